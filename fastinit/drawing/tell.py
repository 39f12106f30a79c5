"""Warnings that point at the caller's line, and those that a process gives once."""

from __future__ import annotations

import sys
import warnings

PACKAGE = __package__.partition(".")[0]
told: set[str] = set()  # what was given already


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first line that is not fastinit's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_once(topic: str, message: str) -> None:
    """The one `RuntimeWarning` of a process about `topic`."""
    if topic not in told:
        told.add(topic)  # first, for the warning may be made an error, and the next call must work
        warn(message, RuntimeWarning)
