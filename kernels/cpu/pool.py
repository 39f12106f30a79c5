"""A small pool of threads for work whose pieces are Python's and NumPy's; compiled work is shared by `team`.

Python's own threads, because NumPy releases the GIL and a fork only has to forget them. A piece is taken when a
thread is free, so a thread that the machine slows down takes fewer. Handing work to the pool costs some 20 us.

An exception can arise between any two lines of the caller's thread (Ctrl-C, a signal handler that raises), and so can a
second fill (a signal handler, a finaliser). Hence: locks are taken by `with` and are C's own, which leaves no moment
between taking one and being bound to release it; those that a thread can meet again are re-entrant; and
`run` closes its job several times over.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType

# How long a job's caller waits before it looks again, should a helper's message have been lost in an interruption.
PATIENCE = 0.05  # seconds


class Job:
    """Pieces 0 to count - 1 of one task, taken by whoever is free.

    Until it is closed the job keeps the task, and so all memory that the task refers to.
    """

    def __init__(self, task: Callable[[int], None], count: int) -> None:
        self.task: Callable[[int], None] | None = task
        self.count = count
        self.pieces = itertools.count()  # next() on it is atomic
        self.lock = threading.Lock()  # a thread never meets the lock of a job twice
        self.helpers, self.closed = 0, False
        self.left: SimpleQueue[None] = SimpleQueue()  # a message from each helper that leaves
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
            self.left.put(None)

    def work(self) -> None:
        """Do pieces until none is left, one has failed, or the job is closed."""
        task = self.task
        while task and not self.closed and self.error is None and (piece := next(self.pieces)) < self.count:
            task(piece)

    def close(self) -> None:
        """Let nobody begin any more, and wait until nobody is at work."""
        with self.lock:
            self.closed = True
        while self.helpers:
            with contextlib.suppress(Empty):
                self.left.get(timeout=PATIENCE)
        self.task = None  # the queue of the pool may hold the job for longer, but not the task's memory

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Pool:
    """Idle threads around a queue; grows to the largest number asked for."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.size = 0
        self.lock = threading.RLock()

    def grow(self, size: int) -> int:
        """Have up to `size` threads; returns how many there are, fewer where the system gives no more."""
        with self.lock, contextlib.suppress(RuntimeError):
            while self.size < size:
                threading.Thread(target=self.serve, name=f"fastinit-pool-{self.size + 1}", daemon=True).start()
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

    Returns, or raises what a task raised, only when no thread is at work on it any more. An interruption
    (KeyboardInterrupt) at any moment skips the pieces that nobody has begun, and waits for the others; two more
    while it is dealt with change nothing. `task` refers to all memory that it touches, which then outlives every
    thread at work on it, whatever happens.
    """
    job, pool = Job(task, count), _pool
    # Closed once by each: an interruption may strike while the last one is dealt with.
    with job, job, job:
        for _ in range(pool.grow(min(threads, count) - 1)):
            pool.jobs.put(job)
        job.work()
    if job.error is not None:
        raise job.error
