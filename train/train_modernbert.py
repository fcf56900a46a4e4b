"""Trains the bidirectional baseline for full detection (scripts/run-modernbert-full.sh)."""

from pathlib import Path

from model.modernbert import load_encoder
from train.options import TrainConfig
from train.training import train_detector


def main(config: TrainConfig) -> None:
    """Trains the baseline."""
    folder = Path(config.base_model_path)
    train_detector(config, lambda *_: load_encoder(folder, config.attention), score_with="holistic")
