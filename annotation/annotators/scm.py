"""A trained SCM annotates: a sentence is harmful when enough of its tokens are.

Source: arXiv 2506.09996: a monitor can serve as a pseudo-harmfulness annotator.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotation.cache import keep_labels
from annotation.options import ModelConfig
from annotation.records import Annotation, Annotator, ParsedResponse
from data.fineharm import every_word
from utils.options import Precision
from utils.run_record import read_record

CUT = "prompt or response lie in part beyond the model's context"


@dataclass(kw_only=True)
class ScmConfig(ModelConfig):
    """A trained SCM: a sentence is harmful when enough of its tokens are."""

    annotator_threshold: float = 0.5
    """Least probability of a harmful token."""
    token_share: float = 0.3
    """Least share of harmful tokens of a harmful sentence."""
    precision: Precision = "auto"
    """auto takes bf16 on hardware made for it."""

    shares = ("annotator_threshold", "token_share")

    def make_annotator(self) -> "ScmAnnotator":
        return ScmAnnotator(self)


class ScmAnnotator(Annotator):
    """Scores every response token; a sentence takes its verdict from its own tokens' share.

    Raises:
        InputError: The folder is no dual-task checkpoint.
    """

    def __init__(self, config: ScmConfig) -> None:
        from data.alignment import Layout
        from data.tokenization import TextEncoder, leading_ids, load_tokenizer
        from model.qwen_dual_task import load_dual_task
        from utils.device import default_device, use_bf16

        self.config, self.folder = config, Path(config.annotator_model)
        device = default_device()
        self.model = load_dual_task(self.folder).to(device)
        tokenizer = load_tokenizer(self.folder)
        self.encoder = TextEncoder(tokenizer.backend_tokenizer)
        self.bf16 = use_bf16(config.precision, device)
        # the layout it was trained on; checkpoints of others were trained on the paper's
        trained_on = (read_record(self.folder) or {}).get("data") or {}
        self.layout = Layout(
            trained_on.get("join", "newline"),
            min(4096, self.model.config.max_position_embeddings),
            tuple(leading_ids(tokenizer)),
            trained_on.get("reading", "plain"),
        )

    def annotate(self, records: Iterable[ParsedResponse]) -> Iterator[Annotation]:
        """Annotates records in order; no verdict where sentences lie beyond the context."""
        return keep_labels(self.config, records, self._annotate)

    def report(self) -> dict[str, Any]:
        return {
            "model": self.folder.name,
            "join": self.layout.join,
            "token_threshold": self.config.annotator_threshold,
            "token_share": self.config.token_share,
        }

    def _annotate(self, records: list[ParsedResponse]) -> Iterator[Annotation]:
        from data.alignment import encode_records
        from data.splits import to_examples
        from evaluation.predict import predict

        unlabelled = []
        for record in records:
            zeros = [0] * len(record.sentences)
            unlabelled += [(record.id, record.labelled(zeros, every_word(zeros, record.words)))]
        encoded = encode_records(unlabelled, self.encoder, self.layout)
        scores = predict(self.model, to_examples(encoded), bf16=self.bf16)
        for record, example, probs in zip(records, encoded, scores.token_probs, strict=True):
            count = len(record.sentences)
            if example.cut_response and (unread := count - 1 - int(example.sentence[-1])):
                yield Annotation(None, f"{unread} sentences lie beyond the model's context")
                continue
            tokens = np.bincount(example.sentence, minlength=count)
            exceeding = probs >= self.config.annotator_threshold
            harmful = np.bincount(example.sentence, exceeding, minlength=count)
            share = harmful / np.maximum(tokens, 1)
            cut = example.cut_prompt or example.cut_response
            labels = (share >= self.config.token_share).astype(int).tolist()
            yield Annotation(labels, CUT if cut else None)
