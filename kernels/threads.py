"""A small pool of threads that shares out the pieces of one fill.

Python's own threads, because the kernels release the GIL and a fork only has to forget them. A piece is taken when a
thread is free, so a thread that the machine slows down takes fewer. Handing a fill to the pool costs some 20 us.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue


class Job:
    """Pieces 0 to count - 1 of one task, taken by whoever is free."""

    def __init__(self, task: Callable[[int], None], count: int) -> None:
        self.task, self.count = task, count
        self.pieces = itertools.count()  # next() on it is atomic
        self.left = count
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Do pieces until none is left; an error skips those that nobody has begun."""
        while (piece := next(self.pieces)) < self.count:
            try:
                if self.error is None:
                    self.task(piece)
            except BaseException as error:  # raised again by `run`, in the caller's thread
                self.error = error
            finally:
                with self.lock:
                    self.left -= 1
                    if self.left == 0:
                        self.done.set()


class Pool:
    """Idle threads around a queue; grows to the largest number asked for."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.size = 0
        self.lock = threading.Lock()

    def grow(self, size: int) -> None:
        with self.lock:
            while self.size < size:
                self.size += 1
                threading.Thread(target=self.serve, name=f"fastinit-{self.size}", daemon=True).start()

    def serve(self) -> None:
        while True:
            self.jobs.get().work()


_pool = Pool()


def _forget_threads() -> None:
    """After a fork the child has none of the threads; start anew."""
    global _pool
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(task: Callable[[int], None], count: int, threads: int) -> None:
    """Call `task(0)` to `task(count - 1)` on up to `threads` threads, the caller's among them.

    Returns, or raises what a task raised, only when no thread is at work on it any more.
    """
    job, pool = Job(task, count), _pool
    helpers = min(threads, count) - 1
    pool.grow(helpers)
    for _ in range(helpers):
        pool.jobs.put(job)
    job.work()
    try:
        job.done.wait()
    except BaseException as interruption:
        job.error = job.error or interruption
        job.done.wait()
    if job.error is not None:
        raise job.error
