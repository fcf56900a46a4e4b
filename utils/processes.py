"""Work spread over processes that do not outlive the one they work for."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

State = TypeVar("State")
Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

_state: list[Any] = []  # of a worker process: what its `setup` has returned


def map_chunks(
    function: Callable[[State, Chunk], Result],
    chunks: Iterable[Chunk],
    workers: int,
    setup: Callable[..., State],
    *arguments: Any,
) -> Iterator[Result]:
    """Yields `function(state, chunk)` of each chunk, in order, computed by several processes.

    Args:
        function: Defined at the top of a module, like `setup`.
        chunks: Read a few ahead of the one that is yielded.
        workers: Processes; 1 computes in this one.
        setup: Makes the state, once a process.
        arguments: Of `setup`. Forked processes inherit them without a copy.
    """
    if workers == 1:
        state = setup(*arguments)
        yield from (function(state, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context()
    with ProcessPoolExecutor(workers, context, _start_worker, (setup, arguments)) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_apply, function, chunk))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _start_worker(setup: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Makes the state, and lets this process end when its parent does, even if that is killed.

    A pool's worker waits on a pipe that it holds open itself, which never tells it so.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    _state[:] = [setup(*arguments)]


def _apply(function: Callable[[Any, Any], Any], chunk: Any) -> Any:
    return function(_state[0], chunk)
