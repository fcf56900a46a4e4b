"""What a dual-task checkpoint's config.json holds."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config

from data.alignment import IGNORE_INDEX


@strict
class DualTaskConfig(Qwen2Config):
    """A Qwen2's configuration with what the heads and their training add.

    Fields are named as in the released checkpoints. The model type stays "qwen2".

    Attributes:
        num_token_labels: Classes of the token scorer.
        num_sequence_labels: Classes of the holistic scorer.
        alpha: Weight of the token loss; 0 is full detection.
        beta: 1 − alpha.
        gamma: Weight of the logic loss (the paper's β).
        logic_reduce: How the logic loss is reduced; "mean", over responses, can be trained with.
        ignore_index: Label of tokens without a loss.
        token_dropout: Dropout before the token scorer.
    """

    num_token_labels: int = 2
    num_sequence_labels: int = 2
    alpha: float | int = 0.6
    beta: float | int = 0.4
    gamma: float | int = 1.0
    logic_reduce: str = "mean"
    ignore_index: int = IGNORE_INDEX
    token_dropout: float | int = 0.1
