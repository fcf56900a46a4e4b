"""What an interrupted annotation leaves for the next run: records and annotations, a line each.

A line is kept once its line break is written; half a line, all that a kill can leave, is cut off.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from annotation.records import WINDOW, Annotation, Parsed
from utils.files import InputError

CHUNK = 2**20  # bytes read at once


def whole_lines(path: Path, multiple: int = 1) -> int:
    """Cuts what a killed run has left of a file to whole lines.

    Args:
        path: The file; need not exist.
        multiple: Cut to a multiple of so many.

    Returns:
        How many lines are left.
    """
    if not path.exists():
        return 0
    with open(path, "r+b") as file:
        lines = 0
        while chunk := file.read(CHUNK):
            lines += chunk.count(b"\n")
        lines -= lines % multiple
        file.seek(0)
        end = sum(len(line) for line in islice(file, lines))
        file.truncate(end)
    return lines


@contextmanager
def finish_folder(path: Path) -> Iterator[Path | None]:
    """Goes on with a folder that several runs may want, until it is complete.

    Args:
        path: The complete folder.

    Yields:
        The unfinished folder to go on with, or None where it is complete already. A second run
        waits until the first one is done. After bad input it is removed: another input makes
        another folder.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    while not path.is_dir():
        unfinished.mkdir(parents=True, exist_ok=True)
        with _locked(unfinished) as held:
            if not held:  # another run has finished or given up meanwhile
                continue
            try:
                yield unfinished
            except InputError:
                shutil.rmtree(unfinished)
                with suppress(OSError):  # others are in it
                    path.parent.rmdir()
                raise
            os.rename(unfinished, path)
            return
    yield None


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Waits until no other run holds a folder; yields whether it is still there."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder.is_dir() and os.path.samestat(os.fstat(held), os.stat(folder))
    finally:
        os.close(held)


def keep_annotations(
    annotate: Callable[[Iterable[Parsed]], Iterable[Annotation]],
    records: Iterable[Parsed],
    path: Path,
) -> Iterator[Annotation]:
    """Gives the annotations that a file holds, then those of the other records, which it keeps.

    Args:
        annotate: Annotates records in order, `WINDOW` at a time. A part of a window is annotated
            again, so that an interrupted run comes to the same as another.
        records: All records.
        path: The file; one run at a time.

    Raises:
        InputError: Another run is at the same work.
    """
    records = iter(records)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another run is writing these annotations") from None
        done = whole_lines(path, WINDOW)
        file.seek(0)
        for line in islice(file, done):
            next(records)
            yield Annotation(**json.loads(line))
        for annotation in annotate(records):
            print(json.dumps(vars(annotation)), file=file, flush=True)
            yield annotation
