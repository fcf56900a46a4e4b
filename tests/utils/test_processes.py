"""Work spread over processes."""

import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import ROOT
from utils.files import InputError
from utils.processes import map_chunks


def take(factor: int) -> int:
    return factor


def multiply(factor: int, chunk: list[int]) -> list[int]:
    if 13 in chunk:
        raise InputError("thirteen")
    return [factor * number for number in chunk]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_chunks_are_read_as_they_are_needed(workers):
    read = []

    def chunks():
        for number in range(100):
            read.append(number)
            yield [number, 200 + number]

    results = map_chunks(multiply, chunks(), workers, take, 3)
    assert [next(results) for _ in range(5)] == [[3 * n, 600 + 3 * n] for n in range(5)]
    assert len(read) <= 5 + 2 * workers
    results.close()
    with pytest.raises(InputError, match="thirteen"):
        list(map_chunks(multiply, chunks(), workers, take, 3))


SLEEP = """
import os, time
from utils.processes import map_chunks

def sleep(state, chunk):
    os.write(1, b"busy\\n")  # one write: two workers' lines do not mix
    time.sleep(chunk)

list(map_chunks(sleep, [60] * 9, 2, int))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_none_behind(number):
    command = [sys.executable, "-c", SLEEP]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"busy\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.send_signal(number)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
