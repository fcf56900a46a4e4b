"""Data preparation in the release's way, as far as it is known, to measure ours against.

One process, a tokenizer call a sentence, tokens decoded one by one to find their words, everything
padded.
"""

import datasets
import numpy as np

from data.alignment import IGNORE_INDEX, EncodedRecord
from data.fineharm import Record


def padded_dataset(encoded: list[EncodedRecord], length: int) -> datasets.Dataset:
    """Returns examples as a dataset in which every one is padded to `length`."""
    columns: dict[str, list] = {"input_ids": [], "attention_mask": [], "token_labels": []}
    for example in encoded:
        ids, labels = example.input_ids, example.token_labels
        padding = (0, length - len(ids))
        columns["input_ids"].append(np.pad(ids, padding))
        columns["attention_mask"].append(np.pad(np.ones(len(ids), dtype=np.int8), padding))
        columns["token_labels"].append(np.pad(labels, padding, constant_values=IGNORE_INDEX))
    return datasets.Dataset.from_dict(columns)


def prepare_as_released(
    records: list[tuple[str, Record]], tokenizer, length: int
) -> datasets.Dataset:
    """Prepares records in the release's way."""
    columns: dict[str, list] = {"input_ids": [], "attention_mask": [], "token_labels": []}
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for _, record in records:
        ids = tokenizer(record["prompt"] + "\n\n", add_special_tokens=False)["input_ids"]
        labels = [IGNORE_INDEX] * len(ids)
        for sentence, words, word_labels in zip(
            record["sentences"], record["words"], record["word_labels"], strict=True
        ):
            sentence_ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
            spans, cursor = [], 0
            for word, label in zip(words, word_labels, strict=True):
                start = sentence.index(word, cursor)
                cursor = start + len(word)
                spans.append((start, cursor, label))
            place = 0
            for token in sentence_ids:
                end = place + len(tokenizer.decode([token]))
                touching = [label for a, b, label in spans if a < end and place < b]
                labels.append(max(touching, default=IGNORE_INDEX))
                place = end
            ids += sentence_ids + newline
            labels += [0] * len(newline)
        ids, labels = ids[:length], labels[:length]
        padding = length - len(ids)
        columns["input_ids"].append(ids + [0] * padding)
        columns["attention_mask"].append([1] * len(ids) + [0] * padding)
        columns["token_labels"].append(labels + [IGNORE_INDEX] * padding)
    return datasets.Dataset.from_dict(columns)
