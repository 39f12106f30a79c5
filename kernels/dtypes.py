"""The dtypes that tensors are drawn in: the one place that lists them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .arithmetic import rounding


class Format(NamedTuple):
    """A binary format, and how the arithmetic comes to it.

    `width` is the precision that its samples are computed in, `rounding` the arithmetic's function that makes its bits
    of a float32 sample (None where the sample is the result). `precision` counts the bits of a significand, `smallest`
    is the exponent of the smallest subnormal, `greatest` the greatest number.
    """

    width: int
    rounding: Callable[..., Any] | None
    precision: int
    smallest: int
    greatest: float


FORMATS = {
    torch.float32: Format(32, None, 24, -149, math.ldexp(2 - 2**-23, 127)),
    torch.bfloat16: Format(32, rounding.round_to_bfloat16, 8, -133, math.ldexp(2 - 2**-7, 127)),
    torch.float16: Format(32, rounding.round_to_float16, 11, -24, 65504.0),
    torch.float8_e4m3fn: Format(32, rounding.round_to_float8_e4m3fn, 4, -9, 448.0),
    torch.float8_e5m2: Format(32, rounding.round_to_float8_e5m2, 3, -16, 57344.0),
    torch.float64: Format(64, None, 53, -1074, math.ldexp(2 - 2**-52, 1023)),
}
# Of whole numbers, each with the one of its size that engines write in its place.
WHOLE = {
    torch.bool: torch.uint8, torch.uint8: torch.uint8, torch.int8: torch.uint8, torch.int16: torch.int16,
    torch.int32: torch.int32, torch.int64: torch.int64,
}  # fmt: skip
WIDTHS = {dtype: form.width for dtype, form in FORMATS.items()} | dict.fromkeys(WHOLE.values(), 64)


def drawn_as(dtype: torch.dtype) -> torch.dtype:
    """The dtype that engines write in its place: its own, or of whole numbers one of their size."""
    return WHOLE.get(dtype, dtype)


def uncovered(dtype: torch.dtype) -> str | None:
    """Why no engine draws a dtype, as the end of a sentence; None if they do."""
    return None if dtype in WIDTHS else f"the stream contract does not cover {dtype}"


def name_of(dtype: torch.dtype) -> str:
    """As torch has it, without its own name in front: float32."""
    return str(dtype).removeprefix("torch.")
