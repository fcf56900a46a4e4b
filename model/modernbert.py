"""ModernBERT as the bidirectional baseline: it judges a response, or a prefix of one, as a whole.

It has no token scorer. Partial detection encodes every prefix anew (`evaluation.prefixes`).
"""

from pathlib import Path

from torch import Tensor
from torch.nn import functional as F
from transformers import ModernBertForSequenceClassification

from model.loading import load_pretrained, load_trained
from model.options import Attention
from model.qwen_dual_task import DualTaskOutput


class ModernBertForFullDetection(ModernBertForSequenceClassification):
    """transformers' text classifier behind the `forward` that our rows share.

    Its checkpoints load as a ModernBertForSequenceClassification, too.
    """

    _keys_to_ignore_on_load_unexpected = ["decoder.bias", "decoder.weight"]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        response_label: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        **rest,
    ) -> DualTaskOutput:
        """Judges a batch; with labels given, computes the loss.

        Args:
            input_ids: int (batch, seq_len).
            attention_mask: (batch, seq_len), 0 on padding; default all ones.
            response_label: int (batch,), 0/1.
            num_items_in_batch: (2,), of which the second is the number of responses that the loss
                is averaged over; default those of this batch.
            rest: What only models with a token scorer read.
        """
        logits = super().forward(input_ids=input_ids, attention_mask=attention_mask).logits
        output = DualTaskOutput(holistic_logits=logits)  # (batch, 2)
        if response_label is not None:
            responses = len(logits) if num_items_in_batch is None else num_items_in_batch[1]
            total = F.cross_entropy(logits.float(), response_label.long(), reduction="sum")
            output.loss = output.holistic_loss = total / responses
        return output


def load_encoder(folder: Path, attention: Attention = "sdpa") -> ModernBertForFullDetection:
    """Puts a fresh head on a ModernBERT; a trained one goes on with its own.

    Raises:
        InputError: The folder is missing or holds no ModernBERT in safetensors.
    """
    return load_pretrained(
        ModernBertForFullDetection,
        folder,
        fresh_heads=True,
        attn_implementation=attention,
        id2label={0: "benign", 1: "harmful"},
        label2id={"benign": 0, "harmful": 1},
    )


def load_full_detection(folder: Path) -> ModernBertForFullDetection:
    """Loads a trained ModernBERT.

    Raises:
        InputError: The folder is no such checkpoint.
    """
    script = "scripts/run-modernbert-full.sh"
    return load_trained(ModernBertForFullDetection, folder, script)
