"""What a policy's test leaves behind (scripts/run-align.sh test), made by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align.measures import SUMMARY, measure_of, write_values
from utils.files import write_json
from utils.run_record import RECORD

TRAINING = {
    "method": "dpo", "seed": 1, "beta": 0.1, "alpha": 1.0, "weights": "tokens", "soft": False,
    "learning_rate": 1e-5, "output_dir": "", "data_dir": "pairs.jsonl", "annotator_model": "",
    "base_model_path": "llm",
}  # fmt: skip


def write_policy(
    folder: Path,
    values: dict[str, Sequence[float]],
    name: str = "DPO",
    seed: int | None = 1,
    record: dict | None = None,
    ids: dict[str, list[str]] | None = None,
    **training,
) -> Path:
    """Writes what a policy's test leaves behind.

    Args:
        folder: Where to; must be new.
        values: Of single units, by measure.
        name: Of the row.
        seed: Of the training; None of a policy that was not trained.
        record: Options of the test that are not as usual.
        ids: Of units; others have numbers.
        training: Options of the training that are not as usual.
    """
    folder.mkdir(parents=True)
    values = {one: np.array(some, float) for one, some in values.items()}
    counted = {measure_of(one).unit: len(some) for one, some in values.items()}
    numbered = {unit: [f"{unit} {n}" for n in range(count)] for unit, count in counted.items()}
    trained = (
        {} if seed is None else TRAINING | {"output_dir": str(folder), "seed": seed} | training
    )
    write_values(folder, values, numbered | (ids or {}))
    write_json(folder / SUMMARY, {"method": name, "training": trained, "units": {}, "means": {}})
    options = {"bootstrap": 200, "seed": 7, "max_new_tokens": 64, "longest_prompt": 256}
    judges = {one[6:]: {"weights": {}} for one in values if one.startswith("harm: ")}
    content = {
        "config": {**options, "temperature": 0.0, "strictness": "strict", **(record or {})},
        "git": {"commit": "b" * 40, "dirty": False},
        "model": {"commit": "a" * 40, "dirty": False, "backbone": {"folder": "llm"}},
        "judges": judges,
        "reference": {"folder": "llm", "model.safetensors": "c" * 64},
    }
    write_json(folder / RECORD, content)
    return folder
