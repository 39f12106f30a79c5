"""The Bernoulli distribution: 1 with a given probability, else 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, where
from ..kernels.arithmetic.transforms import lattice
from ..kernels.contract import sampler
from .law import COUNTED, Example, Parameters


@sampler(short=True, width=64)
def bernoulli(low: Number, high: Number, p: Number) -> Number:
    """Whether 53 bits as a fraction are below p: exactly a multiple of 2^-53 that is at most 2^-53 above p."""
    return where(lattice(low, high) < p * 9007199254740992.0, 1.0, 0.0)


@dataclass(frozen=True)
class Bernoulli:
    """1 with probability p, else 0. Each element takes two words, in every dtype."""

    p: float

    @property
    def mean(self) -> float:
        return self.p

    @property
    def std(self) -> float:
        return math.sqrt(self.p * (1 - self.p))

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, 1.0

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return 0.0, 1.0

    def cdf(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, 0.0, torch.where(x < 1, 1 - self.p, 1.0)).double()

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return "bernoulli", (self.p,)


EXAMPLES = {"bernoulli": Example(Bernoulli(0.3), COUNTED, by_element=Bernoulli(0.25))}
