"""Tests ModernBERT, full detection and partial (scripts/run-modernbert-{full,partial}.sh test).

It is bidirectional: partial detection encodes every prefix anew.
"""

from pathlib import Path

from data.splits import Examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.predict import Scores, predict
from evaluation.prefixes import predict_prefixes
from model.modernbert import load_full_detection
from model.modernbert_inference import ModernBertInference
from test.options import ModernBertTestConfig
from test.testing import run_evaluation
from utils.device import default_device, use_bf16
from utils.run_record import run_folder

NAME = "ModernBERT"


def main(config: ModernBertTestConfig) -> None:
    """Scores validation and test and reports."""
    with run_folder(config) as folder:
        model_path, device = Path(config.model_path), default_device()
        data = load_processed(Path(config.data_dir), load_tokenizer(model_path))
        model = ModernBertInference(load_full_detection(model_path)).to(device)
        bf16 = use_bf16(config.precision, device)

        def score(examples: Examples, split: str) -> Scores:
            shared = {"bf16": bf16, "token_budget": config.token_budget, "description": split}
            if config.row == "modernbert-full":
                return predict(model, examples, **shared)
            return predict_prefixes(model, examples, stride=config.stride, **shared)

        run_evaluation(config, data, config.row, NAME, score, folder)
