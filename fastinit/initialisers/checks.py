"""What trunc_normal_ refuses: torch's errors, and one for what torch answers with an endless loop or another law."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..drawing.originals import torchs_own
from ..kernels.dtypes import FORMATS, name_of
from ..laws import working
from ..laws.floats import as_float


def check_moments(dtype: torch.dtype, mean: float, std: float) -> None:
    """Raises `ValueError` for what no normal law has, or the working precision does not hold; for std = 0
    `ZeroDivisionError`, as torch does."""
    if std == 0:
        raise ZeroDivisionError(f"trunc_normal_ needs std > 0, got {std}; use constant_ for a constant")
    way_out = "fast=False has what torch.nn.init makes of it"
    if not std > 0:
        raise ValueError(f"trunc_normal_ needs std > 0, got {std}; {way_out}")
    if math.isnan(mean):
        raise ValueError(f"trunc_normal_ needs a number for its mean, got {mean}; {way_out}")
    greatest = FORMATS[working(dtype)].greatest
    for name, value in (("mean", mean), ("std", std)):
        if abs(value) > greatest:
            raise ValueError(
                f"trunc_normal_ needs |{name}| <= {greatest:.4g} in {name_of(dtype)}, got {value}; {way_out}"
            )


def in_values(mean: Any, std: Any, a: Any, b: Any, bounds: str) -> tuple[Any, Any]:
    """Bounds in standard deviations as values. Raises `ValueError` for another unit, `TypeError` for what has none."""
    if bounds != "sigma":
        raise ValueError(f'bounds are in units of "value" or "sigma", got {bounds!r}')
    mean, std, a, b = map(as_float, (mean, std, a, b))
    return mean + std * a, mean + std * b


def check_bounds(dtype: torch.dtype, mean: float, std: float, a: float, b: float) -> None:
    """Raises torch's error where torch does, except for infinite bounds; `ValueError` for an interval beyond the dtype.

    Where at most 0.3 of the normal law's mass lies between the bounds, torch draws uniform proposals there, and so
    needs bounds that the dtype holds.
    """
    greatest = FORMATS[dtype].greatest
    ordered, outside = a <= b, a > greatest or b < -greatest
    beyond = outside or -math.inf < a < -greatest or greatest < b < math.inf
    if not ordered or (beyond and mass(mean, std, a, b) <= 0.3):
        torchs_own("uniform_")(torch.empty(0, dtype=dtype, device="cpu"), a, b)
    if outside or not ordered:
        raise ValueError(
            f"trunc_normal_ needs a <= b and a number of {name_of(dtype)} between them, got a={a} and b={b}"
        )


def mass(mean: float, std: float, a: float, b: float) -> float:
    """The normal law's share in [a, b], as torch computes it."""
    low, high = ((1.0 + math.erf((bound - mean) / std / math.sqrt(2.0))) / 2.0 for bound in (a, b))
    return high - low
