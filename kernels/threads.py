"""A small pool of threads that shares out the pieces of one fill.

Python's own threads, because the kernels release the GIL and a fork only has to forget them. A piece is taken when a
thread is free, so a thread that the machine slows down takes fewer. Handing a fill to the pool costs some 20 us.
"""

from __future__ import annotations

import contextlib
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
        self.lock = threading.Condition()
        self.helpers, self.closed = 0, False
        self.error: BaseException | None = None

    def help(self) -> None:
        """What a thread of the pool does: takes pieces too, unless the job is over."""
        with self.lock:
            if self.closed:
                return
            self.helpers += 1
        try:
            self.work()
        except BaseException as error:  # raised again by `run`, in the caller's thread
            self.error = self.error or error
        finally:
            with self.lock:
                self.helpers -= 1
                self.lock.notify()

    def work(self) -> None:
        """Do pieces until none is left or one has failed."""
        while self.error is None and (piece := next(self.pieces)) < self.count:
            self.task(piece)

    def close(self) -> None:
        """Let nobody begin any more, and wait until nobody is at work."""
        with self.lock:
            self.closed = True
            while self.helpers:
                self.lock.wait()


class Pool:
    """Idle threads around a queue; grows to the largest number asked for."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.size = 0
        self.lock = threading.Lock()

    def grow(self, size: int) -> int:
        """Have up to `size` threads; returns how many there are, fewer where the system gives no more."""
        with self.lock, contextlib.suppress(RuntimeError):
            while self.size < size:
                threading.Thread(target=self.serve, name=f"fastinit-{self.size + 1}", daemon=True).start()
                self.size += 1
        return min(self.size, size)

    def serve(self) -> None:
        while True:
            self.jobs.get().help()


_pool = Pool()


def _forget_threads() -> None:
    """After a fork the child has none of the threads; start anew."""
    global _pool
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(task: Callable[[int], None], count: int, threads: int) -> None:
    """Call `task(0)` to `task(count - 1)` on up to `threads` threads, the caller's among them.

    Returns, or raises what a task raised, only when no thread is at work on it any more; an interruption
    (KeyboardInterrupt) skips the pieces that nobody has begun, and waits for the others too.
    """
    job, pool = Job(task, count), _pool
    for _ in range(pool.grow(min(threads, count) - 1)):
        pool.jobs.put(job)
    try:
        job.work()
    except BaseException as error:
        job.error = job.error or error
    while True:
        try:
            job.close()
            break
        except BaseException as error:  # a second interruption while waiting: the memory is still being written
            job.error = job.error or error
    if job.error is not None:
        raise job.error
