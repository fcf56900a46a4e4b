"""What a detector thought of a split, beside the truth: predictions.npz and back.

All tables and figures are made from these files alone. No pickle is inside.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from data.splits import Examples
from evaluation.decisions import Outcome, full_outcome, partial_outcome
from evaluation.predict import Scores
from utils.files import InputError

PREDICTIONS = "predictions.npz"
METRICS = "metrics.json"  # beside it in each output folder of a test
SCORED_SPLITS = ("valid", "test")


@dataclass
class Predictions:
    """One split of N responses of T tokens. 1 = harmful.

    Attributes:
        ids: [N] str.
        label: int [N].
        group: int [N]; equal for responses to one prompt.
        token_labels: [N] int8 arrays [T], -100 for none.
        pieces: [N] lists of T strings: the text each response token adds; "" for a token that ends
            within a character. Joined they are the response as the detector read it.
        response_prob: float32 [N], probability of harm of the complete response.
        token_probs: [N] float32 arrays [T]; None for a detector of complete responses.
    """

    ids: list[str]
    label: np.ndarray
    group: np.ndarray
    token_labels: list[np.ndarray]
    pieces: list[list[str]]
    response_prob: np.ndarray
    token_probs: list[np.ndarray] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, int [N]."""
        return np.array([len(labels) for labels in self.token_labels], dtype=int)

    def full(self, theta: float) -> Outcome:
        """Judges every response once it is complete."""
        return full_outcome(self.response_prob, self.token_labels, self.label, self.group, theta)

    def partial(self, theta: float, k: int) -> Outcome:
        """Stops every response by delay-k detection."""
        return partial_outcome(
            self.token_probs, self.token_labels, self.label, self.group, theta, k
        )


def token_pieces(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> list[str]:
    """Returns the text that each token adds to what came before it, [T].

    A character whose bytes several tokens share belongs to the last of them; bytes that make no
    character at all are left out.
    """
    stream, backend = DecodeStream(skip_special_tokens=True), tokenizer.backend_tokenizer
    return [stream.step(backend, int(token)) or "" for token in ids]


def collect(
    examples: Examples, scores: Scores, tokenizer: PreTrainedTokenizerFast | None = None
) -> Predictions:
    """Puts a split and its scores together; without a tokenizer there are no `pieces`."""
    responses = zip(examples.input_ids, examples.response_start, strict=True) if tokenizer else ()
    return Predictions(
        ids=examples.ids,
        label=examples.response_label,
        group=examples.prompt_group,
        token_labels=examples.response_token_labels,
        pieces=[token_pieces(tokenizer, ids[start:]) for ids, start in responses],
        response_prob=scores.response_prob,
        token_probs=scores.token_probs,
    )


def save_predictions(path: Path, splits: dict[str, Predictions]) -> None:
    """Writes predictions.npz.

    Ragged columns are flat: response i of a split holds offsets[i] … offsets[i + 1], token t's
    text the UTF-8 bytes text_ends[t - 1] … text_ends[t].
    """
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        texts = [piece.encode("utf-8", "replace") for row in split.pieces for piece in row]
        columns = {
            "ids": np.array(split.ids),
            "response_label": split.label.astype(np.int8),
            "prompt_group": split.group,
            "offsets": np.cumsum([0, *split.lengths]),
            "token_labels": np.concatenate(split.token_labels),
            "text": np.frombuffer(b"".join(texts), dtype=np.uint8),
            "text_ends": np.cumsum([len(text) for text in texts]),
            "response_prob": split.response_prob,
        }
        if split.token_probs is not None:
            columns["token_probs"] = np.concatenate(split.token_probs)
        arrays |= {f"{name}_{key}": value for key, value in columns.items()}
    np.savez_compressed(path, **arrays)


def load_predictions(path: Path) -> dict[str, Predictions]:
    """Reads predictions.npz: {"valid": …, "test": …}; with given thresholds "valid" may lack.

    Raises:
        InputError: It cannot be read, is damaged, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        there = {key.split("_")[0] for key in arrays}
        names = ["test"] if there == {"test"} else SCORED_SPLITS
        return {name: _split(name, arrays) for name in names}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise InputError(f"{path}: array {error} is missing; run the test again") from None
    except Exception as error:  # zipfile, zlib, struct, ast, tokenize …: each fails in its own way
        reason = (str(error) or type(error).__name__).split("\n")[0]
        raise InputError(f"{path}: is no predictions file, or damaged: {reason}") from None


def _split(name: str, arrays: dict[str, np.ndarray]) -> Predictions:
    def column(key: str) -> np.ndarray:
        return arrays[f"{name}_{key}"]

    bounds, text = column("offsets")[1:-1], column("text").tobytes()
    cuts = pairwise([0, *column("text_ends")])
    pieces = np.array([text[start:end].decode() for start, end in cuts], dtype=object)
    probs = arrays.get(f"{name}_token_probs")
    return Predictions(
        ids=column("ids").tolist(),
        label=column("response_label").astype(int),
        group=column("prompt_group"),
        token_labels=np.split(column("token_labels"), bounds),
        pieces=[row.tolist() for row in np.split(pieces, bounds)],
        response_prob=column("response_prob"),
        token_probs=None if probs is None else np.split(probs, bounds),
    )
