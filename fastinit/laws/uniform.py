"""The uniform distribution."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, fma, minimum
from ..kernels.arithmetic.transforms import LATTICE, clamp, lattice
from ..kernels.contract import sampler
from ..kernels.dtypes import FORMATS, WIDTHS
from .floats import at_least, below, nearest
from .law import SMALLEST_NORMAL, Example, Parameters, ceiling, working

STEP = {32: 2.0**-24, 64: 2.0**-53}  # of a uniform number in [0, 1)


@sampler(short=True)
def uniform(low: Number, high: Number, start: Number, step: Number, highest: Number) -> Number:
    """start + (length of the interval) * (the top bits as a fraction), at most `highest`.

    The step is the length over 2^24 (2^53): scaled by the law, once, with the same bits as scaling each fraction.
    """
    return minimum(fma(lattice(low, high), step, start), highest)


@sampler(short=True)
def uniform_inside(low: Number, high: Number, start: Number, step: Number, lowest: Number, highest: Number) -> Number:
    """The same where the output dtype does not hold `start`, and would round below it."""
    return clamp(fma(lattice(low, high), step, start), lowest, highest)


@sampler(short=True)
def uniform_tiny(low: Number, high: Number, start: Number, length: Number, lowest: Number, highest: Number) -> Number:
    """The same for intervals so short that their step is no normal number."""
    return clamp(fma(lattice(low, high) * LATTICE, length, start), lowest, highest)


@dataclass(frozen=True)
class Uniform:
    """Uniform on [a, b); a tensor holds no value outside, as its dtype rounds."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / 2 + self.b / 2

    @property
    def std(self) -> float:
        return (self.b - self.a) / math.sqrt(12)

    @property
    def support(self) -> tuple[float, float]:
        return self.a, self.b

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return at_least(self.a, dtype), below(self.b, dtype)

    def cdf(self, x: Tensor) -> Tensor:
        return ((x - self.a) / (self.b - self.a)).clamp(0.0, 1.0) if self.b > self.a else (x >= self.a).double()

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return uniform_parameters(self.a, self.b, dtype)


@functools.lru_cache(maxsize=1024)
def uniform_parameters(a: float, b: float, dtype: torch.dtype) -> Parameters:
    number, width = working(dtype), WIDTHS[dtype]
    length = nearest(b - a, number)
    step = length * STEP[width]
    lowest, highest = at_least(a, dtype), below(b, dtype)
    if lowest > highest:  # no number of this dtype in [a, b)
        lowest = highest = nearest(a, dtype)
    start = at_least(a, number)
    if length > 0 and step < SMALLEST_NORMAL[width]:
        return "uniform_tiny", (start, length, lowest, ceiling(lowest, highest))
    if lowest > start:
        return "uniform_inside", (start, step, lowest, highest)
    return "uniform", (start, step, highest)


EXAMPLES = {
    "uniform": Example(Uniform(-0.5, 1.5)),
    "uniform_inside": Example(Uniform(-0.1, 0.3)),  # where the dtype does not hold -0.1
    "uniform_tiny": Example(Uniform(0.0, 1e-38), tuple(dtype for dtype in FORMATS if dtype is not torch.float64)),
    "uniform_tiniest": Example(Uniform(0.0, 1e-300), (torch.float64,)),  # the reference is not exact there
}
