"""What a law is: a distribution, and what the engines need to know to draw samples of it.

A law knows its moments and its distribution function exactly (tests and reports judge samples by them), and turns
itself, for an output dtype, into a sampler's parameters: numbers that the working precision holds, made by
correctly rounded operations only, so that they are the same on every platform. The file of a law holds its samplers
(arithmetic over the primitives), itself, and examples of it that go through every sampler.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..kernels.dtypes import FORMATS, WHOLE, WIDTHS, drawn_as

Parameters = tuple[str, tuple[float, ...]]  # the kind of sampler, and what it takes
SMALLEST_NORMAL = {32: 2.0**-126, 64: 2.0**-1022}


class Law(Protocol):
    """A distribution that tensors can be filled with."""

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...

    @property
    def support(self) -> tuple[float, float]:
        """The bounds of its samples, infinite where there are none, before they are rounded to a dtype."""

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        """The least and the greatest number of `dtype` that a sample can be."""

    def cdf(self, x: Tensor) -> Tensor:
        """The probability of a sample at most x, before it is rounded to a dtype; of and in float64."""

    def parameters(self, dtype: torch.dtype) -> Parameters:
        """The sampler, and its parameters for samples of `dtype`."""


# Dtypes that count: those that torch draws whole numbers in. Of whole-number dtypes one of each size.
COUNTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64, *dict.fromkeys(WHOLE.values()))


class Example(NamedTuple):
    """A law to try, and in which dtypes; tests, trials, warm-ups and benchmarks do.

    `by_element` is a law whose numbers float32 holds, where public functions draw it with parameters for each element.
    """

    law: Law
    dtypes: tuple[torch.dtype, ...] = tuple(FORMATS)
    by_element: Law | None = None


def working(dtype: torch.dtype) -> torch.dtype:
    """The precision that samples of `dtype` are computed in."""
    return torch.float64 if WIDTHS[drawn_as(dtype)] == 64 else torch.float32


def unbounded(dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of `dtype`."""
    return -FORMATS[dtype].greatest, FORMATS[dtype].greatest


def ceiling(lowest: float, highest: float) -> float:
    """The upper bound, an upper bound of 0 as negative zero if tiny samples may round to one.

    The arithmetic's minimum takes the bound on a tie, a GPU's takes negative zero: this way they agree.
    """
    return -0.0 if lowest < 0 == highest else highest
