"""What a floating-point dtype can hold: neighbours of a number, without a library that differs between machines. And
what a caller's number is worth as a float."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..kernels.dtypes import FORMATS


def spacing(x: float, dtype: torch.dtype) -> float:
    """The distance between neighbours of `dtype` around x, on the side away from zero."""
    form = FORMATS[dtype]
    exponent = math.frexp(x)[1] - form.precision if x else form.smallest
    return math.ldexp(1.0, max(exponent, form.smallest))


def at_most(x: float, dtype: torch.dtype) -> float:
    """The greatest number of `dtype` that is not above x."""
    greatest = FORMATS[dtype].greatest
    if math.isinf(x) or abs(x) > greatest:
        return greatest if x > 0 else -math.inf
    step = spacing(x, dtype)
    return math.floor(x / step) * step + 0.0  # + 0.0: no negative zero


def at_least(x: float, dtype: torch.dtype) -> float:
    """The smallest number of `dtype` that is not below x."""
    return -at_most(-x, dtype) + 0.0


def below(x: float, dtype: torch.dtype) -> float:
    """The greatest number of `dtype` below x."""
    held = at_most(x, dtype)
    if held < x:
        return held
    step = spacing(x, dtype)
    # Just below a power of two the neighbours lie twice as dense.
    if x > 0 and math.frexp(x)[0] == 0.5 and step > math.ldexp(1.0, FORMATS[dtype].smallest):
        step /= 2
    return x - step + 0.0


def nearest(x: float, dtype: torch.dtype) -> float:
    """x rounded to `dtype`, half to even; infinite beyond its range."""
    if math.isinf(x) or math.isnan(x):
        return x
    form = FORMATS[dtype]
    step = spacing(x, dtype)
    held = round(x / step) * step
    return held if abs(held) <= form.greatest else math.copysign(math.inf, x)


def as_float(value: Any) -> Any:
    """A real number as a float: Python's, NumPy's, a fraction, a tensor or array without dimensions.

    What is no real number, or has no float, comes back as it is, for torch to judge.
    """
    if isinstance(value, torch.Tensor):
        real = value.dim() == 0 and not value.is_complex() and not value.is_meta
    elif isinstance(value, np.ndarray):
        real = value.ndim == 0 and value.dtype.kind in "biuf"
    else:
        real = isinstance(value, (Real, np.bool_))
    if not real:
        return value
    try:
        if isinstance(value, torch.Tensor) and value.requires_grad:
            value = value.detach()  # torch warns of a tensor that requires grad
        return float(value)
    except (RuntimeError, OverflowError):
        return value


def is_proxy(value: Any) -> bool:
    """Whether this stands for a number that is not known yet, as torch.fx's proxies do; calls with it are recorded."""
    return hasattr(type(value), "__torch_function__") and not isinstance(value, torch.Tensor)
