"""Raw words of the generator, for testing it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, join
from ..kernels.contract import sampler
from .law import Example, Parameters


@sampler(short=True, width=32)
def words(low: Number, high: Number) -> Number:
    """The raw Philox word."""
    return join(high, 0)


@dataclass(frozen=True)
class Words:
    """Raw Philox words, for testing: int32 tensors only."""

    mean: float = math.nan
    std: float = math.nan

    @property
    def support(self) -> tuple[float, float]:
        return -(2.0**31), 2.0**31 - 1

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return self.support

    def cdf(self, x: Tensor) -> Tensor:
        return ((x.floor() + 2**31 + 1) / 2**32).clamp(0.0, 1.0)

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return "words", ()


EXAMPLES = {"words": Example(Words(), (torch.int32,))}
