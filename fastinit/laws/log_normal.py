"""The log-normal distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number
from ..kernels.arithmetic.transforms import exp
from ..kernels.contract import sampler
from .floats import nearest
from .law import Example, Parameters, unbounded, working
from .normal import normal


@sampler(pairs=True)
def log_normal(
    low_a: Number, high_a: Number, low_b: Number, high_b: Number, mean: Number, std: Number
) -> tuple[Number, Number]:
    """The exponentials of two normal samples."""
    a, b = normal(low_a, high_a, low_b, high_b, mean, std)
    return exp(a), exp(b)


@dataclass(frozen=True)
class LogNormal:
    """What has a normal logarithm, of mean `log_mean` and standard deviation `log_std`: the exponential of Normal's
    samples from the same stream."""

    log_mean: float
    log_std: float

    @property
    def mean(self) -> float:
        return _exp(self.log_mean + self.log_std**2 / 2)

    @property
    def std(self) -> float:
        return self.mean * math.sqrt(_exp(self.log_std**2) - 1)

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, math.inf

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return 0.0, unbounded(dtype)[1]

    def cdf(self, x: Tensor) -> Tensor:
        mass: Tensor = torch.special.ndtr((x.clamp(min=0.0).log() - self.log_mean) / self.log_std)
        return mass

    def parameters(self, dtype: torch.dtype) -> Parameters:
        number = working(dtype)
        return "log_normal", (nearest(self.log_mean, number), nearest(self.log_std, number))


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


EXAMPLES = {"log_normal": Example(LogNormal(0.5, 0.75))}
