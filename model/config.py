"""What a dual-task checkpoint's config.json holds."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config

from data.alignment import IGNORE_INDEX


@strict
class DualTaskConfig(Qwen2Config):
    """A Qwen2's configuration with what the heads and their training add.

    Fields are named as in the released checkpoints. The model type stays "qwen2".
    """

    num_token_labels: int = 2
    num_sequence_labels: int = 2
    alpha: float | int = 0.6  # weight of the token loss; 0 is full detection
    beta: float | int = 0.4  # 1 − alpha
    gamma: float | int = 1.0  # weight of the logic loss (the paper's β)
    logic_reduce: str = "mean"  # over responses; nothing else can be trained with
    ignore_index: int = IGNORE_INDEX  # label of tokens without a loss
    token_dropout: float | int = 0.1  # before the token scorer
