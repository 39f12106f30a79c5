"""What users get to see meanwhile: warnings that point at the caller's line, or come once in a process; bars."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

PACKAGE = __package__.partition(".")[0]
told: set[str] = set()  # what was given already
held_back: ContextVar[bool] = ContextVar("held_back", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back fastinit's own warnings, in this context (thread or task) only.

    `warnings.catch_warnings` would change what all threads share, unless Python runs with `context_aware_warnings`
    (3.14 and later).
    """
    token = held_back.set(True)
    try:
        yield
    finally:
        held_back.reset(token)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first line that is not fastinit's; not inside `quiet`."""
    if held_back.get():
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_once(topic: str, message: str) -> None:
    """The one `RuntimeWarning` of a process about `topic`, at the first call that is not inside `quiet`."""
    if topic not in told and not held_back.get():
        told.add(topic)  # first, for the warning may be made an error, and the next call must work
        warn(message, RuntimeWarning)


def bar(total: int, what: str, progress: bool | None = None, unit: str = "") -> Any:
    """A bar on stderr, of tqdm's; None: on a terminal alone. It comes after two seconds."""
    from tqdm import tqdm

    disable = None if progress is None else not progress
    return tqdm(total=total, desc=what, delay=2, disable=disable, leave=False, unit=unit, unit_scale=True)
