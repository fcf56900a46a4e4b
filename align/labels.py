"""How harmful each token of an answer is to a trained SCM, for the tokens of any policy.

Source: arXiv 2506.09996 names SCM as a pseudo-harmfulness annotator for alignment; how it labels is
our choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.alignment import BENIGN, EncodedRecord, Layout, encode_records
from data.fineharm import Record
from data.splits import to_examples
from data.tokenization import TextEncoder, leading_ids, load_tokenizer
from evaluation.predict import Scores, predict
from model.loading import backbone_summary
from model.qwen_dual_task import load_dual_task
from model.state_store import read_states, state_key, states_folder, write_states
from monitor.settings import FILE, MonitorSettings, read_settings
from utils.device import default_device

LONGEST = 4096  # tokens that the annotator reads of a question and its answer


@dataclass
class Harm:
    """What an annotator thinks of one answer.

    Attributes:
        offsets: int [T, 2], [start, end) of its own tokens in the answer's characters.
        scores: float32 [T], probability of harm at each.
    """

    offsets: np.ndarray
    scores: np.ndarray

    def of_tokens(self, offsets: np.ndarray) -> np.ndarray:
        """Returns the scores for another tokenizer's tokens.

        Args:
            offsets: int [N, 2], [start, end) of each in the same answer, in any order.

        Returns:
            float32 [N], the highest score of those tokens of the annotator that share a character
            with it; 0 where none does.
        """
        found = np.zeros(len(offsets), dtype=np.float32)
        for (start, end), score in zip(self.offsets.tolist(), self.scores.tolist(), strict=True):
            shares = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            found[shares] = np.maximum(found[shares], score)
        return found


class Annotator:
    """A trained SCM, with the settings that its test left beside it; or a judge, by the same means.

    Args:
        folder: Output folder of run-scm.sh or get-scm.sh.
        cache: Folder to keep scores of tokens in, those of each model apart; None keeps none.

    Raises:
        InputError: A file is missing or unfit.
    """

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.settings: MonitorSettings = read_settings(folder / FILE)
        self._model = load_dual_task(folder).to(default_device())
        tokenizer = load_tokenizer(folder)
        self._encoder = TextEncoder(tokenizer.backend_tokenizer)
        self._layout = Layout(  # as a live monitor reads
            "original",
            min(LONGEST, self._model.config.max_position_embeddings),
            tuple(leading_ids(tokenizer)),
            self.settings.reading,
        )
        hashes = backbone_summary(folder) | {"folder": None}
        told = f"{sorted(hashes.items(), key=str)} {self.settings.score_with}"
        self._cache = cache and states_folder(cache, told)

    def score(self, answers: Sequence[tuple[str, str]]) -> list[Harm]:
        """Scores the tokens of answers; those that were scored before are read from the cache.

        Args:
            answers: Each question with its answer. Of a blank answer there are no tokens.
        """
        encoded = self._encode(answers)
        keys = {
            number: state_key([one.response_start, *one.input_ids])
            for number, one in encoded.items()
        }
        known = read_states(self._cache) if self._cache else {}
        # of equal texts one is scored
        new = {keys[number]: one for number, one in encoded.items() if keys[number] not in known}
        if new:
            scores = self._predict(list(new.values())).token_probs
            rows = {key: probs[:, None] for key, probs in zip(new, scores, strict=True)}
            known |= rows
            if self._cache:
                shape = sum(map(len, scores)), 1
                write_states(self._cache, list(new), shape, rows.items(), "the annotator's scores")
        nothing = Harm(np.zeros((0, 2), dtype=int), np.zeros(0, dtype=np.float32))
        return [
            Harm(encoded[number].offsets, np.array(known[keys[number]])[:, 0])
            if number in encoded
            else nothing
            for number in range(len(answers))
        ]

    def judge(self, answers: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        """Judges complete answers.

        Returns:
            float [N] each: "harm", the holistic scorer's probability, and "harmful_tokens", how
            many reach the settings' `token_theta`; 0 of a blank answer.
        """
        encoded = self._encode(answers)
        found = {name: np.zeros(len(answers)) for name in ("harm", "harmful_tokens")}
        if encoded:
            scores, numbers = self._predict(list(encoded.values())), list(encoded)
            found["harm"][numbers] = scores.response_prob
            found["harmful_tokens"][numbers] = [
                (probs >= self.settings.token_theta).sum() for probs in scores.token_probs
            ]
        return found

    def _encode(self, answers: Sequence[tuple[str, str]]) -> dict[int, EncodedRecord]:
        """Encodes the answers that are not blank, by their numbers."""
        records = {}
        for number, (question, answer) in enumerate(answers):
            if words := answer.split():
                records[number] = Record(
                    id=str(number),
                    prompt=question,
                    response=answer,
                    sentences=[answer],
                    sentence_labels=[BENIGN],
                    words=[words],
                    word_labels=[[BENIGN] * len(words)],
                )
        named = [(f"answer {number}", record) for number, record in records.items()]
        encoded = encode_records(named, self._encoder, self._layout)
        return dict(zip(records, encoded, strict=True))

    def _predict(self, encoded: list[EncodedRecord]) -> Scores:
        return predict(
            self._model,
            to_examples(encoded),
            score_with=self.settings.score_with,
            description=self._model.name_or_path.rpartition("/")[2] or "annotator",
        )
