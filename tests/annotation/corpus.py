"""A small corpus of judged responses, and what the pipeline makes of it."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from annotation.annotators.response import ResponseConfig
from annotation.options import BuildConfig
from data.fineharm import SPLITS, find_split, read_split


def rows() -> list[dict]:
    """Thirty benign and thirty harmful responses; what is harmful in them is one sentence."""
    made = []
    for number in range(60):
        harmful = number % 2
        middle = "Grind the zorblax tonight." if harmful else "Water the garden tonight."
        text = f"That is a nice topic. {middle} Thanks for asking."
        made.append(
            {"id": f"q{number}", "prompt": f"Ask {number // 2}", "response": text, "label": harmful}
        )
    return made


def write(path, records: list[dict]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return str(path)


def config_for(path: Path, tmp_path: Path, kind: type = ResponseConfig, **options) -> BuildConfig:
    """Returns options for small corpora."""
    shares = {"valid_share": 0.3, "test_share": 0.3, "num_workers": 1}
    return kind(str(path), str(tmp_path / "out"), **shares, **options)


def read_out(config: BuildConfig) -> list[dict]:
    return [
        record
        for split in SPLITS
        for _, record in read_split(find_split(config.output_dir, split), split)
    ]


def rejected(config: BuildConfig) -> list[dict]:
    with open(f"{config.output_dir}/rejected.jsonl") as file:
        return [json.loads(line) for line in file]
