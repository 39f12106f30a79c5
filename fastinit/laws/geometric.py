"""The geometric distribution."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, ceil
from ..kernels.arithmetic.transforms import clamp, inner_unit, minus_two_log
from ..kernels.contract import sampler
from ..kernels.dtypes import FORMATS
from . import gaussian
from .floats import at_most, nearest
from .law import COUNTED, Example, Parameters, working


@sampler(short=True)
def geometric(low: Number, high: Number, half_inverse: Number, greatest: Number) -> Number:
    """ln(u) / ln(1 - p), rounded up, of a u strictly inside (0, 1)."""
    return clamp(ceil(minus_two_log(inner_unit(low, high), 0.0) * half_inverse), 1.0, greatest)


@dataclass(frozen=True)
class Geometric:
    """How many trials it takes to the first success, each of probability p: 1, 2, ...; at most what the dtype holds.

    Computed in float64 for whole-number dtypes, which takes two words an element.
    """

    p: float

    @property
    def mean(self) -> float:
        return 1 / self.p

    @property
    def std(self) -> float:
        return math.sqrt(1 - self.p) / self.p

    @property
    def support(self) -> tuple[float, float]:
        return 1.0, math.inf

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return 1.0, FORMATS[dtype].greatest if dtype in FORMATS else float(torch.iinfo(dtype).max)

    def cdf(self, x: Tensor) -> Tensor:
        return -torch.expm1(x.clamp(min=0.0).floor() * math.log1p(-self.p))

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return _geometric(self.p, dtype)


@functools.lru_cache(maxsize=1024)
def _geometric(p: float, dtype: torch.dtype) -> Parameters:
    number = working(dtype)
    with localcontext(gaussian.DIGITS):
        # 60 digits do not tell 1 - p from 1 where p is tiny; there ln(1 - p) is -p to more digits than a float has.
        logarithm = (1 - Decimal(p)).ln() if p > 1e-25 else -Decimal(p)
        half_inverse = float(Decimal("-0.5") / logarithm)
    greatest = math.inf if dtype in FORMATS else at_most(torch.iinfo(dtype).max, number)
    return "geometric", (nearest(half_inverse, number), greatest)


EXAMPLES = {"geometric": Example(Geometric(0.25), COUNTED)}
