"""Fan-in and fan-out, by torch's rule or by a given layout; and the standard deviations that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..drawing.originals import originals, ours, standing, torchs_own
from ..laws.floats import as_float, is_proxy

NUMBERS = {float, int}
MODES = ("fan_in", "fan_out")
AXES = {"o": "output features", "i": "input features", "s": "receptive field", "b": "batch of independent weights"}


class Axes(NamedTuple):
    """A layout, and what a shape does not tell: made by `axes`."""

    layout: str | None
    fan_in: int | None
    fan_out: int | None
    groups: int


Layout = str | Axes | None


def axes(layout: str | None, fan_in: int | None, fan_out: int | None, groups: int) -> Axes:
    """What an initialiser was told of a weight. Raises `ValueError` for a fan or groups not a whole number above 0."""
    for name, value in (("fan_in", fan_in), ("fan_out", fan_out), ("groups", groups)):
        if not (value is None and name != "groups") and (type(value) is not int or value < 1):
            raise ValueError(f"{name} is a whole number above 0, got {value!r}")
    return Axes(layout, fan_in, fan_out, groups)


def fans(shape: Sequence[int], layout: Layout = None) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight of this shape.

    Without a layout as torch has it: dimension 0 is output features, 1 input features, the rest the receptive field.
    A layout has a letter for each dimension: `o` output features, `i` input features, `s` receptive field, `b` a
    batch of independent weights, which no fan counts. "io" is a weight used as `x @ w`, "bio" one for each expert. A
    letter may come more than once. In `Axes`, a fan that is given counts instead of the shape's, and the features whose
    dimension comes first are those of all groups, as in torch's convolutions (transposed ones are "ios"): a unit
    is connected with those of its own group only. Raises torch's `ValueError` for fewer than two dimensions, and
    `ValueError` for a layout that does not fit.
    """
    if isinstance(layout, Axes):
        return fans_by(shape, layout)
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


def fans_by(shape: Sequence[int], given: Axes) -> tuple[int, int]:
    layout, fan_in, fan_out, groups = given
    if fan_in is not None and fan_out is not None:
        return fan_in, fan_out
    own_in, own_out = fans(shape, layout)
    inputs_first = layout is not None and layout.index("i") < layout.index("o")
    whole = own_in if inputs_first else own_out
    if whole % groups:
        raise ValueError(f"{groups} groups do not divide the features of shape {tuple(shape)}")
    own_in, own_out = (own_in // groups, own_out) if inputs_first else (own_in, own_out // groups)
    return own_in if fan_in is None else fan_in, own_out if fan_out is None else fan_out


def chosen_fan(shape: Sequence[int], mode: Any, layout: Layout = None) -> int:
    """The fan that `mode` ("fan_in" or "fan_out") names. Raises torch's `ValueError` for another mode."""
    if mode not in MODES:
        mode = mode.lower()
        if mode not in MODES:
            raise ValueError(f"Mode {mode} not supported, please use one of {[*MODES]}")
    if isinstance(layout, Axes) and (given := getattr(layout, mode)) is not None:
        return int(given)  # whatever the shape is
    return fans(shape, layout)[mode == "fan_out"]


def xavier_std(shape: Sequence[int], gain: float, layout: Layout) -> float:
    """gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010). Raises `ZeroDivisionError` where both are 0."""
    fan_in, fan_out = fans(shape, layout)
    total = fan_in + fan_out
    if total == 0:
        raise ZeroDivisionError(f"Xavier's scale divides by fan_in + fan_out, which is 0 for shape {tuple(shape)}")
    if type(gain) not in NUMBERS and type(gain := as_float(gain)) is not float and not is_proxy(gain):
        # For torch's error. Nothing may look the product up among known laws: a complex number may equal a float.
        torchs_own("xavier_normal_")(torch.empty(0, 1, dtype=torch.float64, device="cpu"), gain)
    return gain * math.sqrt(2.0 / total)


def kaiming_std(shape: Sequence[int], a: float, mode: Any, nonlinearity: Any, layout: Layout) -> float:
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


# Of fan_in and fan_out: what else a variance is divided by.
DENOMINATORS: dict[str, Callable[[int, int], float]] = {
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
    "fan_geo_avg": lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
}


def variance_std(shape: Sequence[int], scale: float, mode: str, layout: Layout) -> float:
    """sqrt(scale / the fan that `mode` names), as JAX and Keras have it.

    Raises `ValueError` for another mode or a scale that is not above 0, `ZeroDivisionError` where the fan is 0.
    """
    if mode not in (*MODES, *DENOMINATORS):
        raise ValueError(f"mode is one of {', '.join((*MODES, *DENOMINATORS))}; got {mode!r}")
    scale = as_float(scale)
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise ValueError(f"variance scaling needs a finite scale > 0, got {scale!r}")
    fan = chosen_fan(shape, mode, layout) if mode in MODES else DENOMINATORS[mode](*fans(shape, layout))
    if fan == 0:
        raise ZeroDivisionError(f"variance scaling divides by {mode}, which is 0 for shape {tuple(shape)}")
    return math.sqrt(scale / fan)
