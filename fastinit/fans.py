"""Fan-in and fan-out: how many inputs and outputs a weight joins, by torch's rule or a layout of one's own; and the
standard deviations that they make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .floats import as_float, is_proxy
from .originals import originals, ours, standing, torch_init, torchs_own
from .regions import Target

NUMBERS = {float, int}
MODES = ("fan_in", "fan_out")
AXES = {"o": "output features", "i": "input features", "s": "receptive field", "b": "batch of independent weights"}


def fans(tensor: Target, layout: str | None = None) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight.

    Without a layout as torch has it: dimension 0 is output features, 1 input features, the rest the receptive field.
    A layout has a letter for each dimension: `o` output features, `i` input features, `s` receptive field, `b` a
    batch of independent weights, which no fan counts. "io" is a weight used as `x @ w`, "bio" one for each expert. A
    letter may come more than once. Raises torch's `ValueError` for fewer than two dimensions, and `ValueError` for a
    layout that does not fit.
    """
    if layout is None:
        shape = tensor.shape
        if len(shape) < 2:
            torch_init._calculate_fan_in_and_fan_out(tensor)  # raises in torch's words
        field = 1 if len(shape) == 2 else math.prod(shape[2:])
        return shape[1] * field, shape[0] * field
    if not isinstance(layout, str) or set(layout) - set(AXES):
        legend = ", ".join(f"{letter} ({meaning})" for letter, meaning in AXES.items())
        raise ValueError(f"a layout is a string of the letters {legend}; got {layout!r}")
    if len(layout) != tensor.dim():
        raise ValueError(
            f"layout {layout!r} names {len(layout)} dimensions, the tensor has {tensor.dim()}: {tuple(tensor.shape)}"
        )
    if "i" not in layout or "o" not in layout:
        raise ValueError(f"a layout needs input and output features (i and o), got {layout!r}")

    def extent(letter: str) -> int:
        return math.prod(size for size, axis in zip(tensor.shape, layout, strict=True) if axis == letter)

    return extent("i") * extent("s"), extent("o") * extent("s")


def chosen_fan(tensor: Target, mode: Any, layout: str | None = None) -> int:
    """The fan that `mode` ("fan_in" or "fan_out") names. Raises torch's `ValueError` for another mode."""
    if mode not in MODES:
        mode = mode.lower()
        if mode not in MODES:
            torch_init._calculate_correct_fan(tensor, mode)  # raises in torch's words
    return fans(tensor, layout)[mode == "fan_out"]


def xavier_std(name: str, tensor: Target, gain: float, layout: str | None) -> float:
    """gain * sqrt(2 / (fan_in + fan_out)). Raises `ZeroDivisionError`, on behalf of `name`, where both are 0."""
    fan_in, fan_out = fans(tensor, layout)
    total = fan_in + fan_out
    if total == 0:
        raise ZeroDivisionError(f"{name} divides by fan_in + fan_out, which is 0 for shape {tuple(tensor.shape)}")
    if type(gain) not in NUMBERS and type(gain := as_float(gain)) is not float and not is_proxy(gain):
        # For torch's error. Nothing may look the product up among known laws: a complex number may equal a float.
        torchs_own(name)(torch.empty(0, 1, dtype=torch.float64, device="cpu"), gain)
    return gain * math.sqrt(2.0 / total)


def kaiming_std(tensor: Target, a: float, mode: Any, nonlinearity: Any, layout: str | None) -> float:
    """gain / sqrt(fan), torch's errors included."""
    fan = chosen_fan(tensor, mode, layout)
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
