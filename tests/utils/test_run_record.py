"""Output folders: all or nothing, one process each, and known again."""

import errno
import fcntl
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from utils import run_record
from utils.files import InputError, read_json, sha256_file
from utils.run_record import (
    RECORD,
    FinishedAlready,
    claim,
    note,
    read_record,
    refuse_taken,
    run_folder,
    start_record,
    write_record,
)


@dataclass
class Config:
    """Options of a command that copies its input."""

    input: str
    output_dir: str
    rate: float = 0.5
    num_workers: int = 0
    overwrite: bool = False
    resume: bool = False

    def inputs(self) -> dict[str, Any]:
        return {"data": {"path": self.input, "sha256": sha256_file(Path(self.input))}}


class Other(Config):
    """Options of another command."""


@pytest.fixture()
def config(tmp_path) -> Config:
    (tmp_path / "input").write_text("one")
    return Config(str(tmp_path / "input"), str(tmp_path / "runs" / "out"))


def fill(config: Config, text: str = "result", **facts: Any) -> Path:
    """Runs the command."""
    with run_folder(config) as folder:
        (folder / "result").write_text(text)
        if facts:
            note(folder, **facts)
    return Path(config.output_dir)


def names(config: Config) -> list[str]:
    """What lies where the output folder should be."""
    return sorted(os.listdir(Path(config.output_dir).parent))


def test_a_run_leaves_its_result_and_its_record(config, capsys):
    folder = fill(config, kept=3)
    assert names(config) == ["out"] and (folder / "result").read_text() == "result"
    record = read_json(folder / RECORD)
    assert record["status"] == "finished" and record["kept"] == 3 and record["seconds"] >= 0
    assert record["config"]["rate"] == 0.5 and record["data"] == config.inputs()["data"]
    assert record["versions"]["torch"] and record["device"]
    assert capsys.readouterr().out == f"written to {folder}: result, run.json\n"


def test_the_same_run_is_known_by_options_and_content(config):
    folder = fill(config)
    moved = shutil.copy(config.input, f"{config.input}-moved")
    for same in (config, replace(config, num_workers=4), replace(config, input=moved)):
        with pytest.raises(FinishedAlready, match=f"{folder}: the run is finished already"):
            fill(same, "other")
    with pytest.raises(InputError, match="'config.rate': the run was started with 0.5, not 0.7"):
        fill(replace(config, rate=0.7), "other")
    Path(config.input).write_text("two")
    with pytest.raises(InputError, match="field 'data.sha256': the run was started with another"):
        fill(config, "other")
    assert names(config) == ["out"] and (folder / "result").read_text() == "result"


def test_overwrite_replaces_a_run_once_the_new_one_is_complete(config):
    folder = fill(config)
    again = replace(config, rate=0.7, overwrite=True)
    with pytest.raises(ZeroDivisionError), run_folder(again):
        assert (folder / "result").read_text() == "result"
        1 / 0  # noqa: B018
    assert names(config) == ["out"] and (folder / "result").read_text() == "result"
    (folder.parent / ".out.old").mkdir()  # as if killed while replacing
    (folder.parent / ".out.old" / "result").write_text("oldest")
    fill(again, "other")
    assert names(config) == ["out"] and (folder / "result").read_text() == "other"


def test_what_is_no_run_is_never_replaced(config):
    folder = Path(config.output_dir)
    folder.mkdir(parents=True)
    fill(config)  # an empty folder is as good as none
    with pytest.raises(InputError, match="holds the run of another command and is not overwr"):
        fill(Other(**vars(replace(config, overwrite=True))))
    (folder / RECORD).unlink()
    with pytest.raises(InputError, match="holds something else .no run.json. and is not overwr"):
        fill(replace(config, overwrite=True))
    assert (folder / "result").exists()
    (folder / RECORD).write_text("[]")
    with pytest.raises(InputError, match="run.json: field 'config' is missing"):
        fill(replace(config, overwrite=True))
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        fill(replace(config, overwrite=True))
    assert folder.read_text() == "a file" and names(config) == ["out"]


def test_what_a_killed_run_left_is_swept(config):
    partial = Path(config.output_dir).parent / ".out.partial"
    (partial / "deep").mkdir(parents=True)
    (partial / "stale").write_text("half")
    assert sorted(os.listdir(fill(config))) == ["result", RECORD]
    assert names(config) == ["out"]


def test_an_unfinished_run_takes_a_word(config):
    """Of commands that fill their folder in place, for --resume."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True)
    write_record(folder, start_record(config, **config.inputs()))
    with pytest.raises(InputError, match="unfinished run; pass --resume or --overwrite"):
        refuse_taken(config)
    earlier = refuse_taken(replace(config, resume=True))
    assert earlier == read_record(folder) and earlier["status"] == "running"
    with pytest.raises(InputError, match="field 'config.rate'"):
        refuse_taken(replace(config, resume=True, rate=0.7))
    assert refuse_taken(replace(config, overwrite=True)) is None


def test_a_second_process_is_refused_and_deletes_nothing(config):
    """A lock belongs to an open file, so one process can hold it against itself."""
    with run_folder(config) as folder:
        (folder / "result").write_text("first")
        for second in (config, replace(config, overwrite=True)):
            with pytest.raises(InputError, match="another process is writing to it"):
                fill(second, "second")
    assert (Path(config.output_dir) / "result").read_text() == "first"
    assert names(config) == ["out"]


def test_a_folder_that_was_put_in_place_frees_its_name(config):
    """Another process may fill the next one before the first has ended."""
    partial = Path(config.output_dir).parent / ".out.partial"
    with claim(partial):
        os.rename(partial, config.output_dir)
        partial.mkdir()
        handle = os.open(partial, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert partial.exists()
    os.close(handle)


def test_a_full_disk_is_told_with_the_folder(config, monkeypatch):
    """Whether Python notices, or PyTorch, whose error does not say so."""
    with pytest.raises(OSError, match="No space left on device: '.*/runs/.out.partial'"):
        with run_folder(config):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(RuntimeError, match="unexpected pos"), run_folder(config):
        raise RuntimeError("unexpected pos")
    usage = shutil.disk_usage(config.input)._replace(free=0)
    monkeypatch.setattr(run_record.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No space left on device: '.*/runs/.out.partial'"):
        with run_folder(config):
            raise RuntimeError("unexpected pos")
    assert names(config) == []
