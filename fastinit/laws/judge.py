"""Whether samples follow a law: moments, and the Kolmogorov-Smirnov distance for numbers that a dtype has rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.dtypes import FORMATS, Format
from .law import Law

ALPHA = 1e-4  # how often a true sample fails its check
CHUNK = 1 << 22  # elements that are held in float64 at a time


@dataclass(frozen=True, eq=False)
class Observed:
    """What one side drew for a group: moments of all elements, `sample` of some, and its distance from the law.

    `distance` is the Kolmogorov-Smirnov one, None without a law.
    """

    mean: float
    std: float
    sample: Tensor
    distance: float | None

    @property
    def bound(self) -> float:
        return ks_bound(self.sample.numel())

    @property
    def passes(self) -> bool:
        return self.distance is None or self.distance <= self.bound


def moments(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all elements together; nan for what is no real number."""
    if not tensors[0].is_floating_point():
        return math.nan, math.nan
    origin = tensors[0].reshape(-1)[0].item()  # near the mean, so that squares do not cancel
    count, total, squares = 0, 0.0, 0.0
    for tensor in tensors:
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            shifted = part.double().sub_(origin)
            count += part.numel()
            total += shifted.sum().item()
            squares += shifted.square_().sum().item()
    return origin + total / count, math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def ks_bound(count: int) -> float:
    """The distance that a true sample of `count` exceeds with a probability of at most `ALPHA` (Massart 1990)."""
    return math.sqrt(math.log(2 / ALPHA) / (2 * count))


def ks_distance(sample: Tensor, law: Law) -> float:
    """The greatest distance between the sample's distribution function and that of the law, as the dtype rounds it.

    A number that the dtype holds stands for everything up to the middle between it and its neighbours, and the
    outermost within the law's bounds for everything beyond: an infinity counts as the greatest number, because some
    dtypes have none. nan if a nan is among the sample.
    """
    form = FORMATS[sample.dtype]
    # In float64, which holds every number of every dtype: torch sorts no float8.
    held, counts = torch.unique(sample.double().clamp(-form.greatest, form.greatest), return_counts=True)
    share = counts.cumsum(0).double() / sample.numel()
    share_below = share - counts.double() / sample.numel()
    lowest, highest = law.held(sample.dtype)
    up_to = torch.where(held >= highest, 1.0, law.cdf(held + gap(held, math.inf, form) / 2))
    before = torch.where(held <= lowest, 0.0, law.cdf(held - gap(held, -math.inf, form) / 2))
    return torch.stack([(share - up_to).abs(), (share_below - before).abs()]).max().item()


def gap(held: Tensor, towards: float, form: Format) -> Tensor:
    """The distance from numbers of a format, held in float64, to their neighbours on the side of `towards`."""
    mantissa, exponent = torch.frexp(held)
    # From a power of two towards zero, numbers lie twice as dense.
    exponent = exponent - form.precision - (mantissa == math.copysign(0.5, -towards)).int()
    exponent = torch.where(held == 0, form.smallest, exponent.clamp(min=form.smallest))
    return torch.ldexp(torch.ones_like(held), exponent.double())
