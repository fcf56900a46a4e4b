"""What an interruption leaves, and what the next run makes of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation import pipeline as build_fineharm
from annotation.pipeline import main
from annotation.records import Annotation
from annotation.resume import finish_folder, keep_annotations, whole_lines
from tests.annotation.test_annotation import config_for, rows, write
from tests.conftest import ROOT, no_score, parsed
from utils.files import InputError, atomic_folder


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


@given(st.lists(st.text("ab", max_size=4), max_size=9), st.text("ab"), st.integers(1, 4))
def test_half_a_line_is_cut_off(lines, half, multiple):
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"lines-{os.getpid()}"
    path.write_text("".join(f"{line}\n" for line in lines) + half)
    kept = len(lines) - len(lines) % multiple
    assert whole_lines(path, multiple) == kept
    assert path.read_text() == "".join(f"{line}\n" for line in lines[:kept])
    path.unlink()
    assert whole_lines(path) == 0


def test_kept_annotations_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("annotation.resume.WINDOW", 4)
    records = parsed(*(f"Text {number}." for number in range(11)))
    asked = []

    def annotate(some):
        for record in some:
            asked.append(record.id)
            yield Annotation([int(record.id[-1]) % 2])

    expected = list(annotate(records))
    path = tmp_path / "kept.jsonl"
    stream = keep_annotations(annotate, records, path)
    for _ in range(6):
        next(stream)
    with pytest.raises(InputError, match="another run is writing these annotations"):
        next(keep_annotations(annotate, records, path))
    stream.close()
    for _ in range(2):
        asked.clear()
        assert list(keep_annotations(annotate, records, path)) == expected
    assert asked == [record.id for record in records[8:]]  # the part of a window, made anew


def test_parsing_goes_on_where_it_was(tmp_path, monkeypatch):
    config = config_for(write(tmp_path / "rows.jsonl", rows()), tmp_path)
    main(config)
    expected = outputs(tmp_path / "out")
    assert not (tmp_path / "out.work").exists()
    parse, taken = build_fineharm.parse, []

    def stops(some, *others):
        for number, record in enumerate(parse(some, *others)):
            if number == 20:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(build_fineharm, "parse", stops)
    again = replace(config, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        main(again)
    with open(next((tmp_path / "out.work").glob("*.unfinished")) / "parsed.jsonl", "a") as file:
        file.write('{"id": "half')

    def counts(some, *others):
        for record in parse(some, *others):
            taken.append(record.id)
            yield record

    monkeypatch.setattr(build_fineharm, "parse", counts)
    main(again)
    assert len(taken) == 40 and outputs(tmp_path / "out") == expected
    assert not (tmp_path / "out.work").exists()


def test_two_runs_share_the_work(tmp_path):
    """The second waits for the first, and finds the folder complete."""
    found = []

    def second():
        with finish_folder(tmp_path / "work" / "key") as folder:
            found.append(folder)

    with finish_folder(tmp_path / "work" / "key") as folder:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert not found
        (folder / "done").touch()
    thread.join()
    assert found == [None]
    assert [path.name for path in (tmp_path / "work").rglob("*")] == ["key", "done"]


def test_a_killed_annotator_keeps_its_records_and_annotations(tmp_path, monkeypatch):
    """Bad input behind the parsing leaves the parsed records to the next run."""
    config = config_for(write(tmp_path / "rows.jsonl", rows()), tmp_path)

    class Fails:
        def annotate(self, records):
            raise InputError("the endpoint refuses")
            yield

    make = build_fineharm.make_annotator
    monkeypatch.setattr(build_fineharm, "make_annotator", lambda *_: Fails())
    with pytest.raises(InputError, match="refuses"):
        main(config)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(build_fineharm, "make_annotator", make)
    monkeypatch.setattr(build_fineharm, "parse", no_score)
    main(config)
    assert len(outputs(tmp_path / "out")) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_process_behind(number, tmp_path):
    made = [row | {"id": f"{row['id']}-{n}"} for n in range(200) for row in rows()]
    for n, row in enumerate(made):
        row["response"] += f" Case {n}, {n * n}, {n % 7}." * 5
    config = config_for(write(tmp_path / "rows.jsonl", made), tmp_path)
    words = [sys.executable, "-m", "annotation.pipeline", "--input", config.input]
    words += ["--output-dir", config.output_dir, "--num-workers", "2"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL) as build:
        process, deadline = psutil.Process(build.pid), time.monotonic() + 120
        spool = Path(f"{config.output_dir}.work")
        while not [path for path in spool.rglob("parsed.jsonl") if path.stat().st_size]:
            assert build.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        children = process.children(recursive=True)
        assert len(children) >= 2
        build.send_signal(number)
    assert build.returncode == (128 + number if number == signal.SIGTERM else -number)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_appears_meanwhile_stays(tmp_path):
    with pytest.raises(InputError, match="already holds an earlier run"):
        with atomic_folder(tmp_path / "out", "mark") as folder:
            (folder / "mark").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]
