"""Huge pages for large fresh tensors: page faults cost more than drawing (0.7 against 0.16 ns a float32)."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

HUGE_PAGE = 2 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def setting() -> str:
    """What the kernel does: always, madvise (advice helps), never; or why that cannot be told."""
    try:
        return SETTING.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown: " + ("no such setting" if sys.platform == "linux" else f"not on {sys.platform}")


@functools.cache
def madvise() -> Callable[[int, int, int], int] | None:
    """The C library's madvise, where advice makes a difference."""
    if setting() != "madvise":
        return None
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        return prototype(("madvise", ctypes.CDLL(None)))
    except AttributeError:
        return None


def advise_huge_pages(address: int, size: int) -> None:
    """Ask for huge pages in the `size` bytes at `address`.

    Advice only: memory that is in use already or belongs to a file is left as it is, and an error means nothing.
    """
    advise = madvise()
    start = -(-address // HUGE_PAGE) * HUGE_PAGE
    stop = (address + size) // HUGE_PAGE * HUGE_PAGE
    if advise is not None and start < stop:
        advise(start, stop - start, mmap.MADV_HUGEPAGE)
