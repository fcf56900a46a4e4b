"""FineHarm records → token-labelled splits (scripts/run-data.sh)."""

import multiprocessing
import os
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from tqdm import tqdm

from data.alignment import HARMFUL, IGNORE_INDEX, EncodedRecord, Layout, encode_records
from data.fineharm import SPLITS, Record, every_word, find_split, read_split
from data.hiding import Disguise
from data.meta import META
from data.options import DataConfig
from data.tokenization import TextEncoder, leading_ids, load_tokenizer, tokenizer_fingerprint
from utils.files import InputError, sha256_file, write_json
from utils.processes import map_chunks
from utils.run_record import run_folder

CHUNK = 128  # records a worker gets at once
RECORDS_PER_WORKER = 1000  # below this a further process costs more than it brings

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "prompt_key": datasets.Value("string"),  # equal for equal prompts, whatever was cut off
        "input_ids": datasets.List(datasets.Value("int32")),
        "token_labels": datasets.List(datasets.Value("int8")),
        "response_start": datasets.Value("int32"),
        "response_label": datasets.Value("int8"),
    }
)


Work = tuple[TextEncoder, Layout, list[tuple[str, Record]]]


def _start(tokenizer_json: str, layout: Layout, records: list[tuple[str, Record]]) -> Work:
    if multiprocessing.parent_process():  # a worker's share is one core
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return TextEncoder(Tokenizer.from_str(tokenizer_json)), layout, records


def _encode_chunk(work: Work, start: int) -> list[EncodedRecord]:
    encoder, layout, records = work
    return encode_records(records[start : start + CHUNK], encoder, layout)


def encode_split(
    records: list[tuple[str, Record]],
    tokenizer: Tokenizer,
    layout: Layout,
    num_workers: int = 1,
    description: str = "",
) -> list[EncodedRecord]:
    """Encodes (where, record) pairs over several processes, in order, behind a progress bar.

    Args:
        tokenizer: The fast tokenizer behind the model's.
        num_workers: Processes at the most; 0 takes one a core. Small splits take fewer.

    Raises:
        InputError: At the first record that cannot be encoded.
    """
    wanted = num_workers or os.cpu_count() or 1
    workers = min(wanted, max(1, len(records) // RECORDS_PER_WORKER))
    starts = range(0, len(records), CHUNK)
    state = (tokenizer.to_str(), layout, records)
    encoded: list[EncodedRecord] = []
    with tqdm(total=len(records), desc=description, unit="record") as bar:
        for part in map_chunks(_encode_chunk, starts, workers, _start, *state):
            encoded += part
            bar.update(len(part))
    return encoded


def add_train(
    splits: dict[str, list[tuple[str, Record]]], more: list[tuple[str, Record]], times: int = 1
) -> None:
    """Adds records to the training split, each of them so often; a copy has an id of its own.

    Raises:
        InputError: A record has another's id, or a prompt of validation or test.
    """
    ids = {record["id"]: where for records in splits.values() for where, record in records}
    prompts = {
        record["prompt"]: where
        for split, records in splits.items()
        if split != "train"
        for where, record in records
        if record["prompt"]
    }
    for where, record in more:
        if other := ids.get(record["id"]):
            raise InputError(f"{where}: field 'id': '{record['id']}' stands in {other} too")
        if other := prompts.get(record["prompt"]):
            raise InputError(f"{where}: field 'prompt': it is that of {other}, to be held out")
    for turn in range(times):
        splits["train"] += [
            (where, record | {"id": f"{record['id']}#{turn + 1}"} if turn else record)
            for where, record in more
        ]


def share_of(
    records: list[tuple[str, Record]], share: float, seed: int
) -> list[tuple[str, Record]]:
    """Returns a share of records in their order; at one seed a smaller one lies in a larger one."""

    def rank(place: int) -> bytes:
        return sha256(f"{seed}:{records[place][1]['id']}".encode()).digest()

    chosen = sorted(range(len(records)), key=rank)[: max(round(share * len(records)), 1)]
    return [records[place] for place in sorted(chosen)]


def to_dataset(encoded: list[EncodedRecord]) -> datasets.Dataset:
    """Returns the examples as a `datasets.Dataset` with the columns of `FEATURES`."""
    columns = {}
    for name in FEATURES:
        values = [getattr(example, name) for example in encoded]
        if isinstance(FEATURES[name], datasets.List):  # flat and with offsets: no Python loop
            offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
            columns[name] = pa.ListArray.from_arrays(offsets, np.concatenate(values))
        else:
            columns[name] = pa.array(values, type=FEATURES[name].pa_type)
    return datasets.Dataset(pa.table(columns)).cast(FEATURES)


def statistics(encoded: list[EncodedRecord]) -> dict[str, int]:
    """Returns the counts of one split that meta.json holds."""
    response_labels = [example.token_labels[example.response_start :] for example in encoded]
    return {
        "records": len(encoded),
        "harmful": sum(example.response_label for example in encoded),
        "benign": sum(1 - example.response_label for example in encoded),
        "tokens": sum(len(example.input_ids) for example in encoded),
        "response_tokens": sum(len(labels) for labels in response_labels),
        "harmful_tokens": int(sum((labels == HARMFUL).sum() for labels in response_labels)),
        "unlabelled_response_tokens": int(
            sum((labels == IGNORE_INDEX).sum() for labels in response_labels)
        ),
        "longest": max(len(example.input_ids) for example in encoded),
        "truncated_prompts": sum(example.cut_prompt > 0 for example in encoded),
        "truncated_responses": sum(example.cut_response > 0 for example in encoded),
        "truncated_tokens": sum(example.cut_prompt + example.cut_response for example in encoded),
        "harmful_cut_off": sum(example.harmful_cut_off for example in encoded),
        "inexact_alignments": sum(example.inexact for example in encoded),
        "harmful_words_without_token": int(sum(example.tokenless for example in encoded)),
    }


def main(config: DataConfig) -> None:
    """Prepares the splits; writes nothing unless all of them are good."""
    input_dir = Path(config.input_dir)
    with run_folder(config) as folder:
        paths = {split: find_split(input_dir, split) for split in config.splits}
        tokenizer = load_tokenizer(Path(config.tokenizer_path))
        layout = Layout(
            config.join, config.max_length, tuple(leading_ids(tokenizer)), config.reading
        )
        disguise = Disguise(tuple(config.hide), config.hide_records, config.hide_words, config.seed)
        hidden_splits = [name for name in paths if config.hide and name in config.hide_splits]

        more = [find_split(Path(name), "train") for name in config.more_train]
        found = {split: read_split(path, split) for split, path in paths.items()}
        for path in more:
            add_train(found, read_split(path, "train"), config.more_train_times)
        if config.train_share < 1 and "train" in found:
            found["train"] = share_of(found["train"], config.train_share, config.seed)

        splits, counts = {}, {}
        for split, path in paths.items():
            records = found.pop(split)
            if config.word_rule == "all":
                for _, record in records:
                    labels = every_word(record["sentence_labels"], record["words"])
                    record["word_labels"] = labels
            encoded = encode_split(
                records,
                tokenizer.backend_tokenizer,
                replace(layout, disguise=disguise) if split in hidden_splits else layout,
                config.num_workers,
                split,
            )
            counts[split] = statistics(encoded)
            if len(paths) == len(SPLITS) and not 0 < counts[split]["harmful"] < len(encoded):
                missing = "harmful" if counts[split]["harmful"] == 0 else "benign"
                raise InputError(f"{path}: holds no {missing} record; a split needs both classes")
            splits[split] = to_dataset(encoded)

        datasets.disable_progress_bars()
        datasets.DatasetDict(splits).save_to_disk(folder)
        tokenizer.save_pretrained(folder / "tokenizer")
        write_json(
            folder / META,
            {
                "tokenizer": tokenizer_fingerprint(tokenizer),
                "join": config.join,
                "max_length": config.max_length,
                "word_rule": config.word_rule,
                "reading": config.reading,
                "hidden": dict.fromkeys(hidden_splits, asdict(disguise)),
                "inputs": {
                    split: {"file": path.name, "sha256": sha256_file(path)}
                    for split, path in paths.items()
                },
                "more_train": {str(path): sha256_file(path) for path in more},
                "more_train_times": config.more_train_times,
                "train_share": config.train_share,
                "splits": counts,
            },
        )
        _report(counts)


def _report(counts: dict[str, dict[str, int]]) -> None:
    for split, count in counts.items():
        share = count["harmful_tokens"] / count["response_tokens"]
        print(
            f"{split:5}  {count['records']:6} records ({count['harmful']} harmful),"
            f" {count['tokens']:9} tokens, {share:.1%} of response tokens harmful"
        )
        if count["truncated_prompts"] or count["truncated_responses"]:
            print(
                f"       truncated: {count['truncated_responses']} responses,"
                f" {count['truncated_prompts']} prompts; {count['harmful_cut_off']} harmful records"
                " kept no harmful token"
            )
        if count["inexact_alignments"] or count["harmful_words_without_token"]:
            print(
                f"       aligned by matching: {count['inexact_alignments']} lists; harmful words"
                f" without a token: {count['harmful_words_without_token']}"
            )
