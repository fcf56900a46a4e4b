"""Which rows become records, and in which split."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from annotation.annotators.response import ResponseConfig
from annotation.pipeline import main
from annotation.selection import split_of
from data.fineharm import SPLITS, find_split, read_split
from utils.files import InputError

TOPICS = "bread rain trains maps paint soup chess birds tides clocks moss kites".split()


def rows() -> list[dict]:
    """Judged responses: three to a prompt, both labels for each."""
    made = []
    for topic in TOPICS:
        for number in range(3):
            text = f"A word about {topic}.  It isn't hard! 😀\n\n- You can do it {number} times."
            made.append(
                {
                    "id": f"{topic}-{number}",
                    "prompt": f"Tell me about {topic}?",
                    "response": text,
                    "label": number % 2,
                    "label_source": "human",
                }  # fmt: skip
            )
    return made


@pytest.fixture()
def config(tmp_path) -> ResponseConfig:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())))
    return ResponseConfig(
        str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), valid_share=0.3, test_share=0.3
    )


def read_out(config: ResponseConfig) -> dict[str, list[dict]]:
    return {
        split: [r for _, r in read_split(find_split(config.output_dir, split), split)]
        for split in SPLITS
    }


def test_records_are_valid_and_split_by_prompt(config):
    main(config)
    splits = read_out(config)
    assert sum(map(len, splits.values())) == len(rows())
    prompts = [{record["prompt"] for record in records} for records in splits.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    for record in sum(splits.values(), []):
        label = int(record["id"].endswith("1"))
        assert set(record["sentence_labels"]) == {label}
        cursor = 0
        for sentence in record["sentences"]:  # in order, untouched
            cursor = record["response"].index(sentence, cursor) + len(sentence)
        spelled = "".join(word for words in record["words"] for word in words)
        assert spelled == "".join(record["response"].split())
    stats = json.loads((config_path := find_split(config.output_dir, "test")).with_name(
        "stats.json").read_text())  # fmt: skip
    assert stats["splits"]["test"]["responses"]["all"] == len(splits["test"]) and config_path


def test_two_runs_and_several_processes_write_the_same(config, monkeypatch):
    monkeypatch.setattr("annotation.pipeline.SMALL", 0)
    main(replace(config, num_workers=1))
    other = replace(config, output_dir=config.output_dir + "2", num_workers=2)
    main(other)
    for split in SPLITS:
        one, two = find_split(config.output_dir, split), find_split(other.output_dir, split)
        assert one.read_bytes() == two.read_bytes()


def test_trivially_different_prompts_stay_together(config):
    assert split_of("Tell me: about bread!", config) == split_of("tell me about  BREAD", config)
    places = Counter(split_of(f"prompt {number}", config) for number in range(2000))
    assert all(abs(places[split] / 2000 - 0.3) < 0.05 for split in ("valid", "test"))


def test_validation_and_test_keep_only_the_trusted_rows(config, tmp_path):
    changed = [
        row | {"label_source": "human" if n % 3 else "judge"} for n, row in enumerate(rows())
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, changed)))
    main(replace(config, eval_only="label_source=human"))
    splits = read_out(config)
    assert all(record["id"][-1] != "0" for split in ("valid", "test") for record in splits[split])
    assert any(record["id"][-1] == "0" for record in splits["train"])
    stats = json.loads(find_split(config.output_dir, "test").with_name("stats.json").read_text())
    dropped = stats["rejected"]["not for evaluation (--eval-only)"]
    assert dropped == len(rows()) - sum(map(len, splits.values())) > 0


def test_two_rows_of_one_id_are_named_and_nothing_is_written(config, tmp_path):
    changed = rows()
    changed[1]["id"] = "bread-0"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, changed)))
    message = "rows.jsonl: line 2: field 'id': 'bread-0' stands at line 1 too"
    with pytest.raises(InputError, match=message):
        main(config)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_split_without_a_class_is_refused(config, tmp_path):
    benign = [row for row in rows() if row["label"] == 0]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, benign)))
    with pytest.raises(InputError, match="split 'train' came out without harmful rows"):
        main(config)


def test_held_out_rows_are_the_test_split_and_share_no_prompt_with_another(config):
    """Whoever trains on the rest has never seen their source."""
    source = Path(config.input)
    made = [row | {"source": row["id"].split("-")[0]} for row in rows()]
    made += [  # another source knows a prompt of the one that is held out
        made[0] | {"id": "again", "prompt": "tell me ABOUT bread", "source": "maps"},
        made[1] | {"id": "own", "prompt": "Another prompt", "source": "bread"},
    ]
    source.write_text("\n".join(map(json.dumps, made)))
    main(replace(config, hold_out=["source=bread", "source=rain"], near_duplicates=1))
    splits = {
        split: {record["id"] for record in records} for split, records in read_out(config).items()
    }
    held_out = {row["id"] for row in made if row["source"] in ("bread", "rain")}
    assert splits["test"] == held_out
    assert splits["train"] and splits["valid"]
    assert splits["train"] | splits["valid"] == {row["id"] for row in made} - held_out - {"again"}
    lines = (Path(config.output_dir) / "rejected.jsonl").read_text().splitlines()
    assert ("again", "prompt of a row that is held out") in {
        (row["id"], row["reason"]) for row in map(json.loads, lines)
    }


@pytest.mark.parametrize(
    "rule, message",
    [
        ("source", "--hold-out: 'source' is not FIELD=VALUE"),
        ("source=", "--hold-out: 'source=' is not FIELD=VALUE"),
        ("sourse=bread", "--hold-out: field 'sourse' is in no record"),
        ("label_source=llm", "--hold-out: no record has label_source=llm"),
    ],
)
def test_a_hold_out_that_names_no_row_is_refused(config, rule, message):
    with pytest.raises(InputError, match=message):
        main(replace(config, hold_out=[rule]))
    assert not Path(config.output_dir).exists()
