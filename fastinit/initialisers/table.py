"""The initialisers as data: what law each one's arguments mean, and how a call comes to be drawn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator

from ..drawing import originals
from ..drawing.batch import settle
from ..drawing.fill import fill
from ..drawing.originals import torchs_own
from ..drawing.regions import Shard, Target, local_of
from ..drawing.route import COMPILED, TORCH, Way
from ..drawing.streams import Stream
from ..drawing.tell import warn
from ..kernels.contract import Engine
from ..kernels.dtypes import FORMATS, WHOLE
from ..laws import (
    Bernoulli,
    Cauchy,
    Exponential,
    Geometric,
    Integers,
    Law,
    LogNormal,
    Normal,
    TruncNormal,
    Uniform,
    working,
)
from ..laws.floats import as_float, is_proxy
from ..laws.law import COUNTED
from .checks import check_bounds, check_moments
from .fans import NUMBERS, Layout, kaiming_std, variance_std, xavier_std

T = TypeVar("T", bound=Target)
Shape = Sequence[int]

# --- laws of numbers ---------------------------------------------------------------------------


def uniform(dtype: torch.dtype, a: float = 0.0, b: float = 1.0) -> Law | None:
    greatest = FORMATS[dtype].greatest
    return Uniform(a, b) if -greatest <= a <= b <= greatest and b - a <= greatest else None


def normal(dtype: torch.dtype, mean: float = 0.0, std: float = 1.0) -> Law | None:
    greatest = FORMATS[working(dtype)].greatest
    return Normal(mean, std) if abs(mean) <= greatest and 0 <= std <= greatest else None


def truncated(dtype: torch.dtype, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Law | None:
    check_moments(dtype, mean, std)
    if is_far(law := TruncNormal(mean, std, a, b)):
        warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. The distribution of values may be incorrect."
        )
    check_bounds(dtype, mean, std, a, b)
    return law


def is_far(law: Law) -> bool:
    """Whether torch warns of it."""
    if not isinstance(law, TruncNormal):
        return False
    return law.centre < law.a - 2 * law.scale or law.centre > law.b + 2 * law.scale  # not if there is a nan


def bernoulli(dtype: torch.dtype, p: float = 0.5) -> Law | None:
    return Bernoulli(p) if 0 <= p <= 1 else None


def cauchy(dtype: torch.dtype, median: float = 0.0, sigma: float = 1.0) -> Law | None:
    greatest = FORMATS[working(dtype)].greatest
    return Cauchy(median, sigma) if abs(median) <= greatest and 0 < sigma <= greatest else None


def exponential(dtype: torch.dtype, rate: float = 1.0) -> Law | None:
    return Exponential(rate) if rate > 0 else None


def geometric(dtype: torch.dtype, p: float) -> Law | None:
    return Geometric(p) if 0 < p < 1 else None


def log_normal(dtype: torch.dtype, mean: float = 1.0, std: float = 2.0) -> Law | None:
    greatest = FORMATS[working(dtype)].greatest
    return LogNormal(mean, std) if abs(mean) <= greatest and 0 < std <= greatest else None


def integers(dtype: torch.dtype, start: int | None, stop: int | None) -> Law | None:
    """From 0, if None, up to what the dtype holds without gaps, if None."""
    if dtype in FORMATS:
        most = 1 << FORMATS[dtype].precision
        least = -most
    else:
        least, most = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    start, stop = 0 if start is None else start, most + 1 if stop is None else stop
    return Integers(start, stop) if least <= start < stop <= most + 1 else None


# By the names of torch.nn.init, which are those of the tensor's own methods, too: the law that these numbers mean in a
# dtype, or None where only torch can say what they mean.
OF_NUMBERS: dict[str, Callable[..., Law | None]] = {
    "uniform_": uniform,
    "normal_": normal,
    "trunc_normal_": truncated,
    "bernoulli_": bernoulli,
    "cauchy_": cauchy,
    "exponential_": exponential,
    "geometric_": geometric,
    "log_normal_": log_normal,
    "random_": integers,
}
# The dtypes that each is drawn in; the others in `FORMATS`. As torch has it: no float8, and geometric_ no bool.
COUNTING = frozenset({*COUNTED, *WHOLE})
DTYPES: dict[str, Collection[torch.dtype]] = {
    **dict.fromkeys(("cauchy_", "exponential_", "log_normal_"), FORMATS),
    "bernoulli_": COUNTING,
    "geometric_": COUNTING - {torch.bool},
    "random_": COUNTING,
}

# --- laws of a weight's shape ------------------------------------------------------------------


class Scaled(NamedTuple):
    """An initialiser whose law's scale follows from the fans: `std(shape, *values, layout)`, and the law's form."""

    std: Callable[..., Any]
    function: str  # which of OF_NUMBERS
    values_of: Callable[[Any], tuple[Any, ...]]  # its arguments, from the standard deviation
    passes_empty: bool = False  # whether tensors without elements are left alone, with a warning


def symmetric(std: Any) -> tuple[Any, Any]:
    bound = math.sqrt(3.0) * std
    return -bound, bound


def centred(std: Any) -> tuple[Any, Any]:
    return 0.0, std


# The standard deviation of a standard normal given that it falls in [-2, 2], as JAX, Keras and TensorFlow write it.
STD_WITHIN_TWO = 0.87962566103423978


def within_two(std: Any) -> tuple[Any, ...]:
    """A normal cut at two of its standard deviations, so that what is left has this one."""
    whole = std / STD_WITHIN_TWO
    return 0.0, whole, -2 * whole, 2 * whole


OF_SHAPES = {
    "xavier_uniform_": Scaled(xavier_std, "uniform_", symmetric),
    "xavier_normal_": Scaled(xavier_std, "normal_", centred),
    "kaiming_uniform_": Scaled(kaiming_std, "uniform_", symmetric, passes_empty=True),
    "kaiming_normal_": Scaled(kaiming_std, "normal_", centred, passes_empty=True),
    "variance_scaling_ uniform": Scaled(variance_std, "uniform_", symmetric, passes_empty=True),
    "variance_scaling_ untruncated_normal": Scaled(variance_std, "normal_", centred, passes_empty=True),
    "variance_scaling_ truncated_normal": Scaled(variance_std, "trunc_normal_", within_two, passes_empty=True),
}
# What is no law of independent elements, and what draws nothing.
MATRICES, CONSTANTS = ("orthogonal_", "sparse_"), ("constant_", "ones_", "zeros_", "eye_", "dirac_")
VALUES = {"zeros_": 0, "ones_": 1}  # what those write that take no value
NAMES = tuple(name for name in (*OF_NUMBERS, *OF_SHAPES, *MATRICES, *CONSTANTS) if name in originals.NAMES)


def law_of(name: str, dtype: torch.dtype, shape: Shape, **arguments: Any) -> Law | None:
    """The law that a call of an initialiser promises for each element; None where it promises none."""
    if name in OF_SHAPES:
        scaled = OF_SHAPES[name]
        return OF_NUMBERS[scaled.function](dtype, *scaled.values_of(scaled.std(shape, layout=None, **arguments)))
    return OF_NUMBERS[name](dtype, **{key: float(value) for key, value in arguments.items()})


# --- drawing -----------------------------------------------------------------------------------


def draw(
    name: str,
    by: Way,
    target: T,
    values: tuple[Any, ...],
    generator: Generator | None,
    stream: Stream | None,
    layout: Layout,
    instead: Callable[[], T] | None = None,
) -> tuple[T, Law | None, Engine | None]:
    """Have a call of the initialiser `name` with these arguments served by whom `route.way` found; by `instead`, if
    torch's call is another than the initialiser's.

    Returns what the call returns, and by which law and engine the like of it can be drawn; None where each has to be
    looked at.
    """
    settle(*values)
    scaled = OF_SHAPES.get(name)
    function, given = name, values
    if scaled is not None and (by is not TORCH or layout is not None or name not in originals.originals):
        if scaled.passes_empty and 0 in target.shape:
            warn("Initializing zero-element tensors is a no-op")
            return target, None, None
        function = scaled.function
        given = scaled.values_of(scaled.std(target.shape, *values, layout))
    if instead is not None and by is TORCH:
        settle(target)
        return instead(), None, None
    if by is TORCH:
        return originals.call(function, target, *given, generator), None, None
    numbers = as_numbers(function, *given)
    law = None if numbers is None else OF_NUMBERS[function](target.dtype, *numbers)
    if law is None and instead is not None:
        settle(target)
        return instead(), None, None
    if law is None:
        return by_torch(function, target, stream, numbers or given, generator), None, None
    engine = fill(target, law, generator, stream=stream, compiled=by is COMPILED, later=True)
    return target, None if is_far(law) else law, engine  # it warns every time


def as_numbers(function: str, *values: Any) -> tuple[float, ...] | None:
    """The values as floats, random_'s as they are; None where only torch can say what they are worth."""
    if function == "random_":
        return values
    try:
        if not {*map(type, values)} <= NUMBERS:
            values = tuple(map(as_float, values))
        if not {*map(type, values)} <= NUMBERS:
            if any(map(is_proxy, values)):
                return None
            # Whatever else torch takes for a float, and its TypeError for the rest. What is in range, the law asks.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torchs_own(function)(torch.empty(0, dtype=torch.float64, device="cpu"), *values)
        return tuple(float(value) + 0.0 for value in values)  # no -0.0: it equals 0.0, and so do laws made of it
    except (RuntimeError, ValueError, OverflowError):
        return None


def by_torch(
    function: str, target: T, stream: Stream | None, values: tuple[Any, ...], generator: Generator | None
) -> T:
    """Hand a call with odd numbers to torch, for its error or for whatever it makes of them."""
    if isinstance(target, Shard) or stream is not None:
        torchs_own(function)(local_of(target).new_empty((0,) * target.ndimension()), *values, generator)
        raise ValueError(f"{function} with {values}: torch.nn.init has no error for this, and fastinit no law")
    return originals.call(function, target, *values, generator)
