"""Batches: padded to their longest member, grouped by length."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from data.alignment import IGNORE_INDEX

LENGTH_WINDOW = 50  # effective batches that are sorted by length together


def pad(texts: Sequence[Any], pad_to: int = 0) -> tuple[Tensor, Tensor]:
    """Pads token ids on the right to the longest text.

    Args:
        texts: Ids of each, a list or an array.
        pad_to: Least length to pad to.

    Returns:
        input_ids, int64, and the attention mask, bool, (batch, seq_len) each.
    """
    lengths = torch.tensor([len(ids) for ids in texts])
    # padding is masked everywhere, so any id of the vocabulary will do for it
    input_ids = torch.zeros(len(texts), max(int(lengths.max()), pad_to), dtype=torch.long)
    for row, ids in enumerate(texts):
        input_ids[row, : lengths[row]] = torch.as_tensor(ids)
    return input_ids, torch.arange(input_ids.shape[1]) < lengths[:, None]


def collate(examples: Sequence[dict[str, Any]], pad_to: int = 0) -> dict[str, Tensor]:
    """Pads examples on the right to their longest member.

    Args:
        examples: Items of `Examples`.
        pad_to: Least length to pad to; the release pads everything to 4,096.

    Returns:
        input_ids, attention_mask, response_mask (bool) and token_labels, each (batch, seq_len), and
        response_label (batch,).
    """
    input_ids, attention_mask = pad([example["input_ids"] for example in examples], pad_to)
    starts = torch.tensor([int(example["response_start"]) for example in examples])
    token_labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, example in enumerate(examples):
        labels = torch.as_tensor(example["token_labels"])
        token_labels[row, : len(labels)] = labels
    places = torch.arange(input_ids.shape[1])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask.long(),
        "response_mask": attention_mask & (places >= starts[:, None]),
        "token_labels": token_labels,
        "response_label": torch.tensor([int(example["response_label"]) for example in examples]),
    }


def token_budget_batches(
    lengths: np.ndarray, budget: int, groups: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yields index batches of like length whose padded size stays within `budget` tokens.

    Longest first, so that memory that does not suffice shows at once. Every index comes once.

    Args:
        lengths: int [N].
        budget: Tokens a batch.
        groups: int [N], numbers from 0 on; a batch holds members of one group. None: of any.
    """
    groups = np.zeros(len(lengths), dtype=int) if groups is None else groups
    longest = np.zeros(groups.max(initial=0) + 1, dtype=int)  # of each group
    np.maximum.at(longest, groups, lengths)
    order = np.lexsort((-lengths, groups, -longest[groups]))
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        batch = order[start : start + size]
        batch = batch[groups[batch] == groups[batch[0]]]
        yield batch
        start += len(batch)


def count_items(batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Counts what a loss is averaged over: labelled tokens and responses, int64 (2,)."""
    counts = [
        [int((batch["token_labels"] != IGNORE_INDEX).sum()), len(batch["token_labels"])]
        for batch in batches
    ]
    return torch.tensor(counts).sum(dim=0)


class LengthGroupedSampler(Sampler[int]):
    """Shuffles by seed and epoch, keeps examples of like length in one batch.

    Every effective batch is full: the last one of an epoch is topped up with examples of the same
    epoch. However many processes and accumulation steps share a batch, each optimiser step sees the
    same examples.

    Args:
        lengths: int [N].
        batch_size: Examples an optimiser step sees, over all processes.
        seed: With the epoch, decides the order.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = np.resize(random.permutation(len(self.lengths)), len(self))
        window = self.batch_size * LENGTH_WINDOW
        grouped = np.concatenate(
            [
                part[np.argsort(-self.lengths[part], kind="stable")]
                for part in np.split(order, range(window, len(order), window))
            ]
        )
        batches = grouped.reshape(-1, self.batch_size)
        yield from batches[random.permutation(len(batches))].flatten().tolist()
