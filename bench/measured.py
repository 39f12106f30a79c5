"""What a report is made of: cases with the seconds that each side took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from .cases import Case


class Measured(NamedTuple):
    """Median seconds of a call, by whose it is, and why peers that have the law are not among them."""

    case: Case
    seconds: Mapping[str, float]
    missing: Mapping[str, str]

    def ns(self, name: str) -> float:
        """Nanoseconds an element; nan where it was not measured."""
        return 1e9 * self.seconds.get(name, math.nan) / self.case.elements

    def bandwidth(self, name: str) -> float:
        """Bytes a second."""
        return self.case.bytes / self.seconds.get(name, math.nan)

    @property
    def times(self) -> float:
        """How many times as fast as torch."""
        return self.seconds["torch"] / self.seconds["fastinit"]


class Report(NamedTuple):
    about: dict[str, str]
    models: list[Measured]
    sizes: list[list[Measured]]  # law by law, one tensor again and again
    cold: list[list[Measured]]  # the same laws, tensors one after the other in memory that no cache holds
    table: list[Measured]
    other_memory: list[Measured]
    cached: list[Measured]  # the table's, on one thread in its cache
    peers: list[Measured]

    @property
    def unique(self) -> list[Measured]:
        every = [
            *self.models,
            *(row for rows in (*self.sizes, *self.cold) for row in rows),
            *self.table,
            *self.other_memory,
            *self.cached,
            *self.peers,
        ]
        return list({(row.case.name, *row.seconds): row for row in every}.values())
