"""The exponential distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number
from ..kernels.arithmetic.transforms import inner_unit, minus_two_log
from ..kernels.contract import sampler
from .floats import nearest
from .law import Example, Parameters, unbounded, working


@sampler(short=True)
def exponential(low: Number, high: Number, half_scale: Number) -> Number:
    """-ln(u) times the scale, of a u strictly inside (0, 1): above 0, and at most 22.9 scales (45.1 in float64)."""
    return minus_two_log(inner_unit(low, high), 0.0) * half_scale


@dataclass(frozen=True)
class Exponential:
    """Exponential with this rate, so with mean and standard deviation 1 / rate. By inverse distribution function."""

    rate: float

    @property
    def mean(self) -> float:
        return 1 / self.rate

    @property
    def std(self) -> float:
        return 1 / self.rate

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, math.inf

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return 0.0, unbounded(dtype)[1]

    def cdf(self, x: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * x.clamp(min=0.0))

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return "exponential", (nearest(0.5 / self.rate, working(dtype)),)


EXAMPLES = {"exponential": Example(Exponential(2.0))}
