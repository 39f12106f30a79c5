"""Fan-in and fan-out, by torch's rule or by a given layout; and the standard deviations that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..drawing.originals import originals, ours, standing, torchs_own
from ..laws.floats import as_float, is_proxy

NUMBERS = {float, int}
MODES = ("fan_in", "fan_out")
AXES = {"o": "output features", "i": "input features", "s": "receptive field", "b": "batch of independent weights"}


def fans(shape: Sequence[int], layout: str | None = None) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight of this shape.

    Without a layout as torch has it: dimension 0 is output features, 1 input features, the rest the receptive field.
    A layout has a letter for each dimension: `o` output features, `i` input features, `s` receptive field, `b` a
    batch of independent weights, which no fan counts. "io" is a weight used as `x @ w`, "bio" one for each expert. A
    letter may come more than once. Raises torch's `ValueError` for fewer than two dimensions, and `ValueError` for a
    layout that does not fit.
    """
    if layout is None:
        if len(shape) < 2:
            raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
        field = 1 if len(shape) == 2 else math.prod(shape[2:])
        return shape[1] * field, shape[0] * field
    if not isinstance(layout, str) or set(layout) - set(AXES):
        legend = ", ".join(f"{letter} ({meaning})" for letter, meaning in AXES.items())
        raise ValueError(f"a layout is a string of the letters {legend}; got {layout!r}")
    if len(layout) != len(shape):
        raise ValueError(
            f"layout {layout!r} names {len(layout)} dimensions, the tensor has {len(shape)}: {tuple(shape)}"
        )
    if "i" not in layout or "o" not in layout:
        raise ValueError(f"a layout needs input and output features (i and o), got {layout!r}")

    def extent(letter: str) -> int:
        return math.prod(size for size, axis in zip(shape, layout, strict=True) if axis == letter)

    return extent("i") * extent("s"), extent("o") * extent("s")


def chosen_fan(shape: Sequence[int], mode: Any, layout: str | None = None) -> int:
    """The fan that `mode` ("fan_in" or "fan_out") names. Raises torch's `ValueError` for another mode."""
    if mode not in MODES:
        mode = mode.lower()
        if mode not in MODES:
            raise ValueError(f"Mode {mode} not supported, please use one of {[*MODES]}")
    return fans(shape, layout)[mode == "fan_out"]


def xavier_std(shape: Sequence[int], gain: float, layout: str | None) -> float:
    """gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010). Raises `ZeroDivisionError` where both are 0."""
    fan_in, fan_out = fans(shape, layout)
    total = fan_in + fan_out
    if total == 0:
        raise ZeroDivisionError(f"Xavier's scale divides by fan_in + fan_out, which is 0 for shape {tuple(shape)}")
    if type(gain) not in NUMBERS and type(gain := as_float(gain)) is not float and not is_proxy(gain):
        # For torch's error. Nothing may look the product up among known laws: a complex number may equal a float.
        torchs_own("xavier_normal_")(torch.empty(0, 1, dtype=torch.float64, device="cpu"), gain)
    return gain * math.sqrt(2.0 / total)


def kaiming_std(shape: Sequence[int], a: float, mode: Any, nonlinearity: Any, layout: str | None) -> float:
    """gain / sqrt(fan) (He et al. 2015), torch's errors included."""
    fan = chosen_fan(shape, mode, layout)
    gain_of = standing["calculate_gain"]  # somebody else's may know more nonlinearities, or other gains
    if (
        (gain_of is originals["calculate_gain"] or gain_of is ours["calculate_gain"])
        and nonlinearity == "leaky_relu"
        and type(a) in NUMBERS
        and abs(a) < 1e150
    ):
        gain = math.sqrt(2.0 / (1 + a * a))  # torch's `a**2` goes through a C library's pow, whose last bit is its own
    else:
        slope = a if isinstance(a, (bool, np.bool_)) else as_float(a)  # torch refuses truth values on purpose
        gain = gain_of(nonlinearity, slope)
    return gain / math.sqrt(fan)
