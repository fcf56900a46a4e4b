"""Saves an SCM's holistic scorer as a plain text classifier of Hugging Face.

python -m model export-classifier scm-0.5b classifier-0.5b

The result is a `Qwen2ForSequenceClassification`: it reads the last token of whatever text it gets,
through any text-classification pipeline, and can label sentences (`--annotator hf`).
"""

from pathlib import Path

from transformers import Qwen2Config, Qwen2ForSequenceClassification

from data.tokenization import load_tokenizer
from model.options import ExportConfig
from model.qwen_dual_task import load_dual_task
from utils.files import InputError
from utils.run_record import run_folder


def main(config: ExportConfig) -> None:
    """Writes the classifier with its tokenizer.

    Raises:
        InputError: The holistic scorer is untrained, or the tokenizer has no padding or end token.
    """
    model = load_dual_task(Path(config.model_path))
    if untrained := model.untrained_holistic_scorer():
        raise InputError(f"{config.model_path}/{untrained}")
    tokenizer = load_tokenizer(Path(config.model_path))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"{config.model_path}: its tokenizer has no token to pad with")
    settings = model.config.to_dict() | {
        "num_labels": 2,
        "id2label": {0: "benign", 1: "harmful"},
        "label2id": {"benign": 0, "harmful": 1},
        "pad_token_id": tokenizer.pad_token_id,
    }
    classifier = Qwen2ForSequenceClassification(Qwen2Config(**settings))
    classifier.model.load_state_dict(model.model.state_dict())
    classifier.score.load_state_dict(model.sequence_classifier.state_dict())
    with run_folder(config) as folder:
        classifier.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
