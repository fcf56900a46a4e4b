"""Judged responses from every format, as corpora come: columns, votes, spans, bad rows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation.annotators.response import ResponseConfig
from annotation.pipeline import main
from annotation.sources import count_rows, majority, read_judged
from tests.annotation.corpus import config_for, rejected, rows, write
from utils.files import InputError, read_json


def read(path, **options):
    return list(read_judged(ResponseConfig(str(path), "out", **options)))


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_rows(suffix, tmp_path):
    records = [row | {"response": row["response"] + '\n"quoted", and, more'} for row in rows()]
    path = write(tmp_path / f"rows.{suffix}", records)
    found = [
        {"id": row.id, "prompt": row.prompt, "response": row.response, "label": row.label}
        for row in read(path)
    ]
    assert found == records


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_an_unknown_column_is_named_with_those_that_are_there(suffix, tmp_path):
    path = write(tmp_path / f"rows.{suffix}", rows())
    assert count_rows(ResponseConfig(path, "out")) == 60
    for option, columns in (
        ("response", {"response_column": "answer"}),
        ("label", {"label_columns": ["label", "answer"]}),
        ("id", {"id_column": "answer"}),
        ("eval-only", {"eval_only": "answer=human"}),
    ):
        message = rf"{suffix}: --{option}.*: field 'answer' is in no record; there are: id, prompt,"
        with pytest.raises(InputError, match=message):
            count_rows(ResponseConfig(path, "out", **columns))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.parquet", b"no parquet", "x.parquet: cannot be read as Parquet"),
        ("x.csv", b"prompt,response,label\na,b\n", "x.csv: record 1: its fields do not match"),
        ("x.csv", b"prompt,response,label\n", "x.csv: holds no records"),
        ("x.csv", b"prompt,response,label\n\xff,b,1\n", "x.csv: not UTF-8"),
        ("x.csv", b'prompt,response,label\na,"b"c,1\n', "x.csv: after line 1: malformed CSV"),
        ("x.jsonl", b'{"prompt": "\xff"}', "x.jsonl: line 1: not UTF-8"),
        ("x.csv", b"prompt,response,label,response\n", "x.csv: two columns are named 'response'"),
        ("x.jsonl", b"", "x.jsonl: holds no records"),
        ("x.jsonl", b'{"a": 1}\n{"n": ' + b"1" * 5000 + b"}", "x.jsonl: line 2: cannot be read"),
        ("nosuch.csv", None, "nosuch.csv: no such file"),
    ],
)
def test_an_unreadable_file_is_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_parquet_that_python_cannot_hold_is_named(tmp_path):
    path, text = tmp_path / "rows.parquet", pa.array(["a", "b"])
    beyond = pa.array([0, 2**62], pa.timestamp("us"))
    lengths, content = np.array([0, 1, 3], np.int32), pa.py_buffer(b"a\xff\xfe")
    no_utf8 = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(lengths), content])
    for column in (beyond, no_utf8):
        table = {"prompt": text, "response": text, "label": [0, 1], "more": column}
        pq.write_table(pa.table(table), path)
        with pytest.raises(InputError, match=r"rows.parquet: cannot be read as Parquet: .*\Z"):
            read(path)
    names = ["prompt", "response", "label", "response"]
    pq.write_table(pa.table([text, text, pa.array([0, 1]), text], names=names), path)
    with pytest.raises(InputError, match="rows.parquet: two columns are named 'response'"):
        read(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_spans_are_read_from_every_format(suffix, tmp_path):
    options = {"prompt_column": "", "label_columns": [""], "spans_column": "spans"}
    made = [{"response": "abc", "spans": spans} for spans in ([[0, 2], [2, 3]], [])]
    found = read(write(tmp_path / f"rows.{suffix}", made), **options)
    assert [(one.spans, one.label) for one in found] == [([(0, 2), (2, 3)], 1), ([], 0)]
    for bad in ("", "[[0, 2]", "{}", "[" * 100_000):
        path = write(tmp_path / f"rows.{suffix}", [{"response": "abc", "spans": bad}])
        (one,) = read(path, **options)
        assert one.refused[0] == "unusable row" and "1: field 'spans': " in one.refused[1]


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9))
def test_the_majority_decides_and_ties_do_not(votes):
    counts = Counter(votes)
    expected = None if counts[0] == counts[1] else int(counts[1] > counts[0])
    assert majority(votes) == expected


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "values",
    [("unharmful", "harmful", None), (False, True, None), (0.0, 1.0, float("nan")), ("0", "1", "")],
)
def test_judgements_are_understood_as_corpora_spell_them(values, suffix, tmp_path):
    made = [row | {"label": values[n % 3]} for n, row in enumerate(rows()[:6])]
    found = read(write(tmp_path / f"rows.{suffix}", made))
    assert [one.label for one in found] == [0, 1, None] * 2
    assert [one.refused and one.refused[0] for one in found][:3] == [None, None, "nobody judged it"]


def test_judgements_are_combined_and_missing_ones_left_out(tmp_path):
    votes = [(1, 1, 0), (0, None, 1), (None, 1, None), (1, None, 1)]
    made = [row | dict(zip("abc", votes[n % 4], strict=True)) for n, row in enumerate(rows()[:4])]
    found = read(write(tmp_path / "rows.jsonl", made), label_columns=["a", "b", "c"])
    assert [one.label for one in found] == [1, None, 1, 1]
    assert found[1].refused == ("judgements are tied", found[1].where)


@pytest.mark.parametrize(
    "change, reason, detail",
    [
        ({"response": None}, "no response", "rows.jsonl: line 3"),
        ({"response": " \n"}, "no response", "rows.jsonl: line 3"),
        ({"response": 5}, "unusable row", "input should be a valid string, found 5"),
        ({"response": "\ud800"}, "unusable row", "field 'response': lone surrogate"),
        ({"prompt": None}, "unusable row", "field 'prompt' is missing"),
        ({"label": 2}, "unusable row", "field 'label': 2 is no judgement that is known"),
        ({"label": "\x1b[31m"}, "unusable row", r"field 'label': '\x1b[31m' is no judgement"),
        ({"label": 0.5}, "unusable row", "line 3: field 'label': 0.5 is no judgement"),
        ({"label": None}, "nobody judged it", "rows.jsonl: line 3"),
        ({"spans": [[5, 500]]}, "unusable row", "field 'spans.0': (5, 500) is not in the resp"),
        ({"spans": [[5, "x"]]}, "unusable row", "field 'spans.0.1': "),
    ],
)
def test_a_bad_row_is_left_out_with_its_place_and_its_reason(change, reason, detail, tmp_path):
    made = [row | {"spans": []} for row in rows()[:3]]
    made[2] |= change
    first, second, third = read(write(tmp_path / "rows.jsonl", made), spans_column="spans")
    assert first.refused is None and second.refused is None
    assert third.refused[0] == reason and detail in third.refused[1]


def test_bad_rows_do_not_end_the_run(tmp_path):
    made = rows()
    made[3]["response"] = None
    made[7]["label"] = made[9]["label"] = "maybe"
    config = config_for(write(tmp_path / "rows.jsonl", made), tmp_path)
    main(config)
    assert [one["id"] for one in rejected(config)] == ["q3", "q7", "q9"]
    counts = read_json(f"{config.output_dir}/stats.json")["rejected"]
    assert counts == {"no response": 1, "unusable row": 2}


def test_where_no_row_is_left_the_reasons_are_told(tmp_path):
    made = [row | {"label": "maybe"} for row in rows()]
    config = config_for(write(tmp_path / "rows.jsonl", made), tmp_path)
    message = r"without harmful rows; .*60 unusable row \(first: .*line 1: field 'label': 'maybe'"
    with pytest.raises(InputError, match=message):
        main(config)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_ids_are_checked(tmp_path):
    made = rows()
    del made[1]["id"]
    assert [row.id for row in read(write(tmp_path / "rows.jsonl", made))][:3] == [
        "q0",
        "row-1",
        "q2",
    ]
    made[1]["id"] = "\ud800"
    found = read(write(tmp_path / "rows.jsonl", made))[1]
    assert found.id == "row-1" and "line 2: field 'id': lone surrogate" in found.refused[1]
