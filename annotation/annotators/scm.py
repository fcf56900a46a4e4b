"""A trained SCM annotates: a sentence is harmful when enough of its tokens are.

Source: arXiv 2506.09996: a monitor can serve as a pseudo-harmfulness annotator.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from annotation.records import WINDOW, Annotation, Parsed, batched
from data.alignment import Layout, encode_records
from data.fineharm import Record
from data.splits import to_examples
from data.tokenization import TextEncoder, leading_ids, load_tokenizer
from evaluation.predict import predict
from model.qwen_dual_task import load_dual_task
from utils.device import default_device, use_bf16
from utils.files import InputError, read_json
from utils.options import Precision
from utils.run_record import RECORD


class ScmAnnotator:
    """Scores every response token; a sentence takes its verdict from its own tokens' share.

    Args:
        folder: A trained dual-task checkpoint.
        threshold: Least probability of a harmful token.
        share: Least share of harmful tokens of a harmful sentence.
        precision: Of the computation.

    Raises:
        InputError: The folder is no dual-task checkpoint.
    """

    def __init__(self, folder: Path, threshold: float, share: float, precision: Precision) -> None:
        self.folder, self.threshold, self.share = Path(folder), threshold, share
        device = default_device()
        self.model = load_dual_task(self.folder).to(device)
        tokenizer = load_tokenizer(self.folder)
        self.encoder = TextEncoder(tokenizer.backend_tokenizer)
        self.bf16 = use_bf16(precision, device)
        record = self.folder / RECORD
        # the layout it was trained on; checkpoints of others were trained on the paper's
        trained_on = read_json(record).get("data", {}) if record.is_file() else {}
        self.layout = Layout(
            trained_on.get("join", "newline"),
            min(4096, self.model.config.max_position_embeddings),
            tuple(leading_ids(tokenizer)),
        )

    def annotate(self, records: Iterable[Parsed]) -> Iterator[Annotation]:
        """Annotates records in order; what lies beyond the context is benign."""
        for window in batched(records, WINDOW):
            yield from self._annotate(window)

    def score(self, sentences: list[str]) -> np.ndarray:
        """Refuses: its tokens are judged after what came before them.

        Raises:
            InputError: Always.
        """
        raise InputError("--word-rule delete: --annotator scm scores no sentences by themselves")

    def report(self) -> dict[str, Any]:
        """Returns model and thresholds."""
        return {
            "model": self.folder.name,
            "join": self.layout.join,
            "token_threshold": self.threshold,
            "token_share": self.share,
        }

    def _annotate(self, records: list[Parsed]) -> Iterator[Annotation]:
        pairs = [(record.id, _unlabelled(record)) for record in records]
        encoded = encode_records(pairs, self.encoder, self.layout)
        scores = predict(self.model, to_examples(encoded), bf16=self.bf16)
        for record, example, probs in zip(records, encoded, scores.token_probs, strict=True):
            count = len(record.sentences)
            tokens = np.bincount(example.sentence, minlength=count)
            harmful = np.bincount(example.sentence, probs >= self.threshold, minlength=count)
            share = harmful / np.maximum(tokens, 1)
            yield Annotation((share >= self.share).astype(int).tolist())


def _unlabelled(record: Parsed) -> Record:
    return Record(
        id=record.id,
        prompt=record.prompt,
        response=record.response,
        sentences=record.sentences,
        sentence_labels=[0] * len(record.sentences),
        words=record.words,
        word_labels=[[0] * len(words) for words in record.words],
    )
