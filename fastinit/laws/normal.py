"""The normal distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, fma, sqrt
from ..kernels.arithmetic.transforms import inner_unit, minus_two_log, turn
from ..kernels.contract import sampler
from .floats import nearest
from .law import Example, Parameters, unbounded, working

# How far a Box-Muller normal can reach: sqrt(-2 ln 2^-33) and sqrt(-2 ln 2^-65).
REACH = {32: 6.77, 64: 9.5}


@sampler(pairs=True, short=True)
def normal(
    low_a: Number, high_a: Number, low_b: Number, high_b: Number, mean: Number, std: Number
) -> tuple[Number, Number]:
    """Two independent normal samples from two draws (Box and Muller 1958)."""
    radius = sqrt(minus_two_log(inner_unit(low_a, high_a), 0.0)) * std
    c, s = turn(low_b, high_b)
    return fma(radius, c, mean), fma(radius, s, mean)


@dataclass(frozen=True)
class Normal:
    """Normal with this mean and standard deviation."""

    mean: float
    std: float

    @property
    def support(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return unbounded(dtype)

    def cdf(self, x: Tensor) -> Tensor:
        mass: Tensor = torch.special.ndtr((x - self.mean) / self.std)
        return mass if self.std > 0 else (x >= self.mean).double()

    def parameters(self, dtype: torch.dtype) -> Parameters:
        number = working(dtype)
        return "normal", (nearest(self.mean, number), nearest(self.std, number))


EXAMPLES = {"normal": Example(Normal(0.25, 2.0), by_element=Normal(0.25, 2.0))}
