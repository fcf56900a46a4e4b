"""Worker processes that do not outlive the process they work for."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Makes this worker process end when its parent does, however that ends.

    A pool's worker waits for work on a pipe that it holds open itself, so that nothing would tell
    it of a parent that was killed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker process only"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
