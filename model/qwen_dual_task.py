"""QwenForDualTask: a Qwen2 backbone with a token scorer and a holistic scorer."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen2Model, Qwen2PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from data.alignment import IGNORE_INDEX
from model.config import DualTaskConfig
from model.loading import load_pretrained, load_trained, read_config
from model.loss import dual_task_loss
from model.options import Attention
from utils.files import InputError

LOSS_PARTS = ("loss", "token_loss", "holistic_loss", "logic_loss", "benign_loss")


@dataclass
class DualTaskOutput(ModelOutput):
    """What a forward pass returns. The loss and its parts need labels."""

    loss: Tensor | None = None
    token_loss: Tensor | None = None
    holistic_loss: Tensor | None = None
    logic_loss: Tensor | None = None
    benign_loss: Tensor | None = None
    token_logits: Tensor | None = None  # (batch, seq_len, 2); benign, harmful
    holistic_logits: Tensor | None = None  # (batch, 2), read at the last response token
    holistic_everywhere: Tensor | None = None  # (batch, seq_len, 2), read at every token


class QwenForDualTask(Qwen2PreTrainedModel):
    """Judges each token and the response as a whole in one causal pass.

    The names of parameters and config keys are those of the released checkpoints
    (`liyang-ict/SCM-0.5B`), which therefore load unchanged.

    Source: arXiv 2506.09996, section on SCM.
    """

    config_class = DualTaskConfig
    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]

    def __init__(self, config: DualTaskConfig) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.dropout = nn.Dropout(config.token_dropout)
        hidden, sequences = config.hidden_size, config.num_sequence_labels
        self.benign_weight, self.benign_k = 0.0, 4  # of training alone: no keys of a checkpoint
        self.token_classifier = nn.Linear(hidden, config.num_token_labels)
        self.sequence_classifier = nn.Linear(hidden, sequences, bias=False)
        self.post_init()

    def untrained_holistic_scorer(self) -> str | None:
        """Says why the holistic scorer means nothing; None if some loss has trained it."""
        if (self.config.alpha, self.config.gamma) != (1, 0):
            return None
        return "config.json: fields 'alpha', 'gamma': nothing has trained its holistic scorer"

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.token_classifier or module is self.sequence_classifier:
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        response_mask: Tensor | None = None,
        token_labels: Tensor | None = None,
        response_label: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        holistic_everywhere: bool = False,
        **backbone_inputs,
    ) -> DualTaskOutput:
        """Scores a batch; with both labels given, computes the loss.

        Args:
            input_ids: int (batch, seq_len).
            attention_mask: (batch, seq_len), 0 on padding; default all ones.
            response_mask: bool (batch, seq_len), true on response tokens; default the attention
                mask. Its last true place is where the holistic scorer reads.
            token_labels: int (batch, seq_len), 0/1, -100 for none.
            response_label: int (batch,), 0/1.
            num_items_in_batch: (2,), see `dual_task_loss`.
            holistic_everywhere: Return the holistic scorer's logits at every token, too.
            backbone_inputs: Passed on to Qwen2Model (position_ids, past_key_values, …).
        """
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **backbone_inputs
        ).last_hidden_state  # (batch, seq_len, hidden)
        if response_mask is None:
            response_mask = attention_mask
        if response_mask is None:
            response_mask = torch.ones(hidden.shape[:2], device=hidden.device)
        response_mask = response_mask.bool()
        token_logits = self.token_classifier(self.dropout(hidden))  # (batch, seq_len, 2)
        places = torch.arange(hidden.shape[1], device=hidden.device)
        last = (places * response_mask).argmax(dim=1)  # (batch,); the last response token
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        holistic_logits = self.sequence_classifier(hidden[rows, last])  # (batch, 2)
        losses = {}
        if token_labels is not None and response_label is not None:
            config = self.config
            if config.logic_reduce != "mean":
                raise InputError(
                    f"config.json: field 'logic_reduce': '{config.logic_reduce}' cannot be trained"
                    " with here, 'mean' (over responses) can"
                )
            losses = dual_task_loss(
                token_logits,
                holistic_logits,
                token_labels,
                response_label,
                response_mask,
                alpha=config.alpha,
                logic_weight=config.gamma,
                benign_weight=self.benign_weight,
                benign_k=self.benign_k,
                ignore_index=config.ignore_index,
                num_items=num_items_in_batch,
            )
        everywhere = self.sequence_classifier(hidden) if holistic_everywhere else None
        return DualTaskOutput(
            token_logits=token_logits,
            holistic_logits=holistic_logits,
            holistic_everywhere=everywhere,  # (batch, seq_len, 2)
            **losses,
        )


def load_backbone(
    folder: Path,
    *,
    alpha: float,
    logic_weight: float,
    token_dropout: float,
    benign_weight: float = 0.0,
    benign_k: int = 4,
    attention: Attention = "sdpa",
    first_layers: int = 0,
) -> QwenForDualTask:
    """Puts fresh heads on a Qwen2-family backbone; a trained SCM goes on with its own.

    Args:
        folder: Any Qwen2 model folder with safetensors: Qwen2.5-0.5B, -1.5B, -7B, …
        alpha: Weight of the token loss.
        logic_weight: Weight of the logic-consistency loss (the paper's β).
        token_dropout: Before the token scorer.
        benign_weight: Weight of `benign_consistency`, which the paper does not have.
        benign_k: Its k.
        attention: Implementation of attention; it changes speed and memory alone.
        first_layers: Layers of the backbone to keep, from the first on; 0 keeps all.

    Returns:
        The model in float32; the optimiser's small steps would vanish in bfloat16.

    Raises:
        InputError: The folder is missing or holds no Qwen2 model in safetensors, or one of fewer
            layers.
    """
    kept = {}
    if first_layers:
        config = read_config(folder)
        layers = config.get("num_hidden_layers", 0)
        if first_layers > layers:
            raise InputError(f"--first-layers: {first_layers} of a backbone with {layers} layers")
        kept["num_hidden_layers"] = first_layers
        if config.get("layer_types"):
            kept["layer_types"] = config["layer_types"][:first_layers]
    model = load_pretrained(
        QwenForDualTask,
        folder,
        fresh_heads=True,
        left_out=lambda name: 0 < first_layers <= _layer_of(name),
        **kept,
        attn_implementation=attention,
        num_token_labels=2,
        num_sequence_labels=2,
        alpha=alpha,
        beta=1 - alpha,
        gamma=logic_weight,
        logic_reduce="mean",
        ignore_index=IGNORE_INDEX,
        token_dropout=token_dropout,
    )
    model.benign_weight, model.benign_k = benign_weight, benign_k
    return model


def _layer_of(name: str) -> int:
    """Returns the number of the layer that a weight belongs to; -1 for none."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def load_dual_task(folder: Path) -> QwenForDualTask:
    """Loads a trained checkpoint, ours or a released one, in float32.

    Raises:
        InputError: The folder is no dual-task checkpoint.
    """
    return load_trained(QwenForDualTask, folder, "scripts/run-scm.sh")
