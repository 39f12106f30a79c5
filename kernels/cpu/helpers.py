"""The threads that help the CPU engine, and jobs for them: Python's side of `team`.

Python's own threads, so that Python knows of them; but each calls compiled code once and never comes back. A fork only
has to forget them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable

from ..contract import KernelMissing
from . import loading
from .slots import ALARM, LOCK, MAILBOX, NOBODY, SIZE, SLOT_BYTES

MOST = 1023  # helpers
# How much of a job is done at once, which nothing can interrupt: some 10 to 30 ms.
A_GO = 1 << 25  # elements a thread


class Team:
    """Memory that helpers look at: for ever, so it is never freed."""

    def __init__(self) -> None:
        allocate = ctypes.pythonapi.PyMem_RawCalloc
        allocate.argtypes, allocate.restype = [ctypes.c_size_t, ctypes.c_size_t], ctypes.c_void_p
        self.address: int = allocate(MOST + 1, SLOT_BYTES)
        self.free = iter(range(MOST))  # slots; next() on it is atomic, and so is pop() of a list
        self.returned: list[int] = []  # slots for which the system gave no thread
        self.lock = threading.RLock()
        self.started = 0
        self.write(self.address + ALARM, taken_lock())

    @staticmethod
    def write(address: int, number: int) -> None:
        ctypes.c_int64.from_address(address).value = number

    @staticmethod
    def read(address: int) -> int:
        return ctypes.c_int64.from_address(address).value

    def slot(self, number: int) -> int:
        return self.address + SLOT_BYTES * (1 + number)

    def grow(self, size: int, serve: Callable[[int], None]) -> None:
        """Have `size` helpers, or as many as the system gives.

        An exception or another job can come in between any two steps. Then a slot may stay without a helper, which
        nobody notices; but two helpers never share one.
        """
        with self.lock, contextlib.suppress(StopIteration):
            while self.started < size:
                number = self.next_slot()
                self.write(self.slot(number) + MAILBOX, NOBODY)
                self.write(self.slot(number) + LOCK, taken_lock())
                self.write(self.address + SIZE, max(number + 1, self.read(self.address + SIZE)))
                name = f"fastinit-helper-{number + 1}"
                try:
                    threading.Thread(target=serve, args=(self.slot(number),), name=name, daemon=True).start()
                except RuntimeError:  # the system gives no more
                    self.returned.append(number)
                    return
                self.started += 1

    def next_slot(self) -> int:
        try:
            return self.returned.pop()
        except IndexError:
            return next(self.free)


def taken_lock() -> int:
    """One of CPython's locks, which waits to be released."""
    allocate, acquire = ctypes.pythonapi.PyThread_allocate_lock, ctypes.pythonapi.PyThread_acquire_lock
    allocate.restype, acquire.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]
    lock: int = allocate()
    acquire(lock, 1)
    return lock


_team = Team()


def _forget_helpers() -> None:
    """After a fork the child has none of the threads; start anew."""
    global _team
    _team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def team(threads: int) -> int:
    """The address of the team, with helpers for so many threads, if there can be."""
    if _team.started < threads - 1:
        with contextlib.suppress(KernelMissing):
            _team.grow(threads - 1, loading.entry("serve"))
    return _team.address


def run(rows: int, number: int, length: int, threads: int) -> None:
    """Do a job, the table of `number` rows at this address, on up to so many threads, the caller's among them.

    The line of the job is as long as its last row's END says, `length`. Returns when it is done. An interruption
    (KeyboardInterrupt) comes between goes, and skips what is left.
    """
    go = A_GO * threads
    for begin in range(0, length, go):
        loading.entry("run")(rows, number, begin, min(begin + go, length), threads, team(threads))
