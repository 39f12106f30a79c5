"""The Cauchy distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, divide, fma
from ..kernels.arithmetic.transforms import turn
from ..kernels.contract import sampler
from .floats import nearest
from .law import Example, Parameters, unbounded, working


@sampler(short=True)
def cauchy(low: Number, high: Number, median: Number, sigma: Number) -> Number:
    """The tangent of an angle uniform on the circle. Its cosine is never 0: where it is small, bit 1 is set."""
    c, s = turn(low, high)
    return fma(divide(s, c), sigma, median)


@dataclass(frozen=True)
class Cauchy:
    """Cauchy (Lorentz) around `median`, with half its mass within `sigma`; it has neither mean nor std.

    Up to 6.8e8 sigma from the median (2.9e18 in float64).
    """

    median: float
    sigma: float

    mean = std = math.nan

    @property
    def support(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return unbounded(dtype)

    def cdf(self, x: Tensor) -> Tensor:
        return torch.atan2(torch.full_like(x, self.sigma), self.median - x) / math.pi  # precise in the left tail, too

    def parameters(self, dtype: torch.dtype) -> Parameters:
        number = working(dtype)
        return "cauchy", (nearest(self.median, number), nearest(self.sigma, number))


EXAMPLES = {"cauchy": Example(Cauchy(0.5, 2.0))}
