"""FineHarm records → token-labelled splits (scripts/run-data.sh)."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from tqdm import tqdm

from data.alignment import HARMFUL, IGNORE_INDEX, EncodedRecord, Join, Layout, encode_records
from data.fineharm import SPLITS, Record, every_word, find_split, read_split
from data.tokenization import TextEncoder, leading_ids, load_tokenizer, tokenizer_fingerprint
from utils.cli import run_command
from utils.files import InputError, atomic_folder, refuse_overwrite, sha256_file, write_json
from utils.processes import end_with_parent

MARK = "meta.json"  # each output folder of this command holds it
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

POSITIONAL = ("output_dir", "tokenizer_path")  # the first words of the command line


@dataclass
class DataConfig:
    """Options of data preparation."""

    output_dir: str = field(metadata={"help": "Folder to write the processed splits into."})
    tokenizer_path: str = field(metadata={"help": "Folder with the model's tokenizer.json."})
    input_dir: str = field(
        default="FineHarm", metadata={"help": "Folder with the train/valid/test files."}
    )
    join: Join = field(
        default="newline",
        metadata={
            "help": "newline: each sentence encoded by itself, a newline after it (the paper's"
            " numbers). original: the untouched response (what a live stream looks like)."
        },
    )
    max_length: int = field(
        default=4096, metadata={"help": "Longest sequence in tokens, prompt included."}
    )
    word_rule: Literal["given", "all"] = field(
        default="given",
        metadata={
            "help": "given: words as the records label them. all: each word as its sentence, an"
            " ablation."
        },
    )
    num_workers: int = field(
        default=0, metadata={"help": "Processes; 0 takes every core where the data is worth it."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the output folder if it is there already."}
    )

    def __post_init__(self) -> None:
        if self.max_length < 16:
            raise InputError(f"--max-length: {self.max_length} is below 16 tokens")
        if self.num_workers < 0:
            raise InputError(f"--num-workers: {self.num_workers} is negative")


_worker: dict[str, Any] = {}  # what a worker process keeps between chunks


def _start_worker(tokenizer_json: str, layout: Layout, records: list[tuple[str, Record]]) -> None:
    """Keeps what all chunks need; a forked worker inherits the records without a copy."""
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = TextEncoder(Tokenizer.from_str(tokenizer_json))
    _worker.update(encoder=encoder, layout=layout, records=records)


def _encode_chunk(start: int) -> list[EncodedRecord]:
    records = _worker["records"][start : start + CHUNK]
    return encode_records(records, _worker["encoder"], _worker["layout"])


def encode_split(
    records: list[tuple[str, Record]],
    tokenizer: Tokenizer,
    layout: Layout,
    num_workers: int = 1,
    description: str = "",
) -> list[EncodedRecord]:
    """Encodes records over several processes, in order, behind a progress bar.

    Args:
        records: (where, record) pairs.
        tokenizer: The fast tokenizer behind the model's.
        layout: How a record is laid out.
        num_workers: Processes at the most; 0 takes one a core. Small splits take fewer.
        description: Stands before the progress bar.

    Raises:
        InputError: At the first record that cannot be encoded.
    """
    wanted = num_workers or os.cpu_count() or 1
    workers = min(wanted, max(1, len(records) // RECORDS_PER_WORKER))
    starts = range(0, len(records), CHUNK)

    def results() -> Iterator[list[EncodedRecord]]:
        if workers == 1:
            encoder = TextEncoder(tokenizer)
            for start in starts:
                yield encode_records(records[start : start + CHUNK], encoder, layout)
            return
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context(),
            initializer=_start_worker,
            initargs=(tokenizer.to_str(), layout, records),
        ) as pool:
            yield from pool.map(_encode_chunk, starts)

    encoded: list[EncodedRecord] = []
    with tqdm(total=len(records), desc=description, unit="record") as bar:
        for part in results():
            encoded += part
            bar.update(len(part))
    return encoded


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
    """Counts what a reader of meta.json wants to know about one split."""
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
    """Prepares all three splits; writes nothing unless all of them are good."""
    output_dir, input_dir = Path(config.output_dir), Path(config.input_dir)
    refuse_overwrite(output_dir, config.overwrite, MARK)
    paths = {split: find_split(input_dir, split) for split in SPLITS}
    tokenizer = load_tokenizer(Path(config.tokenizer_path))
    layout = Layout(config.join, config.max_length, tuple(leading_ids(tokenizer)))

    splits, counts = {}, {}
    for split, path in paths.items():
        records = read_split(path, split)
        if config.word_rule == "all":
            for _, record in records:
                labels = every_word(record["sentence_labels"], record["words"])
                record["word_labels"] = labels
        encoded = encode_split(
            records, tokenizer.backend_tokenizer, layout, config.num_workers, description=split
        )
        counts[split] = statistics(encoded)
        if not 0 < counts[split]["harmful"] < len(encoded):
            missing = "harmful" if counts[split]["harmful"] == 0 else "benign"
            raise InputError(f"{path}: holds no {missing} record; a split needs both classes")
        splits[split] = to_dataset(encoded)

    datasets.disable_progress_bars()
    with atomic_folder(output_dir, MARK, config.overwrite) as folder:
        datasets.DatasetDict(splits).save_to_disk(folder)
        tokenizer.save_pretrained(folder / "tokenizer")
        write_json(
            folder / "meta.json",
            {
                "tokenizer": tokenizer_fingerprint(tokenizer),
                "join": config.join,
                "max_length": config.max_length,
                "word_rule": config.word_rule,
                "inputs": {
                    split: {"file": path.name, "sha256": sha256_file(path)}
                    for split, path in paths.items()
                },
                "splits": counts,
            },
        )
    _report(counts, output_dir)


def _report(counts: dict[str, dict[str, int]], output_dir: Path) -> None:
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
    print(f"written to {output_dir}")


if __name__ == "__main__":
    run_command(DataConfig, main, POSITIONAL)
