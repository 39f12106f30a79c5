"""Whole numbers of an interval, all with the same probability."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, join, product
from ..kernels.contract import sampler
from .law import COUNTED, Example, Parameters

# Up to so many values one word chooses (torch draws as many into float32); or 2^31, if it is a power of two.
SHORT_UP_TO = (1 << 24) + 1
MASK = (1 << 32) - 1


@sampler(short=True, whole=3, width=32)
def integers(low: Number, high: Number, count: Number, start_low: Number, start_high: Number) -> Number:
    """start + floor(count times a word as a fraction), for counts of up to 2^31."""
    return join(product(high, count)[0], 0) + join(start_low, start_high)


@sampler(short=True, whole=4, width=64)
def integers_long(
    low: Number, high: Number, count_low: Number, count_high: Number, start_low: Number, start_high: Number
) -> Number:
    """The same with two words as a fraction, for counts below 2^64: the high half of a product of 64-bit numbers."""
    top, _ = product(low, count_low)
    outer_top, outer = product(low, count_high)
    inner_top, inner = product(high, count_low)
    carried = join(top, 0) + join(outer, 0) + join(inner, 0) >> 32
    chosen_top, chosen = product(high, count_high)
    whole = join(chosen, chosen_top) + join(outer_top, 0) + join(inner_top, 0) + carried
    return whole + join(start_low, start_high)


@sampler(short=True, whole=3, width=64)
def integers_bits(low: Number, high: Number, mask: Number, start_low: Number, start_high: Number) -> Number:
    """start + the last bits of two words, for counts of 2^32 to 2^64 that are powers of two."""
    return join(low, high & mask) + join(start_low, start_high)


@dataclass(frozen=True)
class Integers:
    """The whole numbers in [start, stop), alike; both in [-2^63, 2^63]. The same numbers in every dtype.

    Each of n values has a probability of 1/n: exactly if n is a power of two, else up to a relative error of
    n / 2^32 for n up to 2^24 + 1, where one word chooses, and of n / 2^64 beyond, where two do.
    """

    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def mean(self) -> float:
        return (self.start + self.stop - 1) / 2

    @property
    def std(self) -> float:
        return math.sqrt((self.count**2 - 1) / 12)

    @property
    def support(self) -> tuple[float, float]:
        return float(self.start), float(self.stop - 1)

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return self.support

    def cdf(self, x: Tensor) -> Tensor:
        return ((x.floor() - self.start + 1) / self.count).clamp(0.0, 1.0)

    def parameters(self, dtype: torch.dtype) -> Parameters:
        start = (self.start & MASK, self.start >> 32 & MASK)
        count = self.count
        power_of_two = count & (count - 1) == 0
        if count <= SHORT_UP_TO or (power_of_two and count <= 1 << 31):
            return "integers", (count, *start)
        if power_of_two:
            return "integers_bits", (count - 1 >> 32, *start)
        return "integers_long", (count & MASK, count >> 32, *start)


EXAMPLES = {
    "integers": Example(Integers(-3, 98), COUNTED),
    "integers_long": Example(Integers(-5, 5**13), (torch.float64, torch.int32, torch.int64)),
    "integers_bits": Example(Integers(0, 2**63), (torch.float64, torch.int64)),
}
