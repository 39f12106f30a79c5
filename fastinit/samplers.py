"""The samplers that torch has as methods of its tensors, as initialisers: same names, arguments, laws and errors.

Each fills `tensor`, of any shape and layout, or a `fastinit.shard`, and returns it. `generator`, `fast` and `stream`
mean what they mean in `fastinit.init`, and so does the guarantee: an element depends on the law, the stream and its
index alone. Autograd does not record them, as it does not record torch.nn.init's functions; torch's methods refuse a
parameter. Numbers out of range raise torch's `RuntimeError`, and leave the tensor as it was. What they do not
draw (complex and float8 dtypes) torch draws, or refuses in its own words.
"""

from __future__ import annotations

import operator
from typing import Any, TypeVar

import torch
from torch import Generator

from .drawing import originals
from .drawing.regions import Target
from .initialisers.each import fill_each
from .initialisers.lists import Streams, Targets, alone, takes_lists
from .initialisers.quick import METHOD, serve

T = TypeVar("T", bound=Targets)
One = TypeVar("One", bound=Target)


@takes_lists
def bernoulli_(
    tensor: One,
    p: Any = 0.5,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> One:
    """1 with probability p in [0, 1], else 0, as `torch.Tensor.bernoulli_`; exact to 2^-53, in every dtype.

    p may be a tensor of floating-point numbers that broadcasts to the tensor's shape (a shard's local one): a
    probability for each element. One that has equal numbers gives the samples that the number gives.
    """
    stream = alone(stream)
    if isinstance(p, torch.Tensor) and (p.numel() != 1 or p.dim() > tensor.dim()):
        return fill_each(
            "bernoulli_", tensor, (p,), generator, fast, stream,
            lambda: originals.call("bernoulli_", tensor, p, generator),
        )  # fmt: skip
    return serve("bernoulli_", tensor, (p,), generator, fast, stream, elsewhere=METHOD)


def cauchy_(
    tensor: T,
    median: float = 0.0,
    sigma: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """Cauchy samples, half of them within sigma > 0 of the median, as `torch.Tensor.cauchy_`."""
    return serve("cauchy_", tensor, (median, sigma), generator, fast, stream, elsewhere=METHOD)


def exponential_(
    tensor: T,
    lambd: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """Exponential samples with mean 1 / lambd, lambd > 0, as `torch.Tensor.exponential_`."""
    return serve("exponential_", tensor, (lambd,), generator, fast, stream, elsewhere=METHOD)


def geometric_(
    tensor: T,
    p: float,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """The number of trials to the first success, each of probability p in (0, 1), as `torch.Tensor.geometric_`.

    At most what a whole-number dtype holds.
    """
    return serve("geometric_", tensor, (p,), generator, fast, stream, elsewhere=METHOD)


def log_normal_(
    tensor: T,
    mean: float = 1.0,
    std: float = 2.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """The exponentials of N(mean, std^2), std > 0, as `torch.Tensor.log_normal_`."""
    return serve("log_normal_", tensor, (mean, std), generator, fast, stream, elsewhere=METHOD)


def random_(
    tensor: T,
    *bounds: int | None,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """Whole numbers, all alike, as `torch.Tensor.random_`: `random_(t)`, `random_(t, to)` or `random_(t, from, to)`.

    From 0, unless `from` says otherwise, up to and without `to`; up to the greatest number of a whole-number dtype and
    to 2^24 in float32 (2^53, 2^11, 2^8 in float64, float16, bfloat16), where it is None or missing. The same
    numbers in every dtype. For their bias see `fastinit.laws.Integers`.
    """
    if not bounds:
        return serve("random_", tensor, (None, None), generator, fast, stream, elsewhere=METHOD)
    start, stop = as_whole(bounds[0] if len(bounds) == 2 else 0), as_whole(bounds[-1])
    if len(bounds) > 2 or type(start) is not int or not (type(stop) is int or (stop is None and len(bounds) == 2)):
        torch.empty(0, device="cpu").random_(*bounds)  # for torch's TypeError
    return serve("random_", tensor, (start, stop), generator, fast, stream, elsewhere=METHOD)


def as_whole(value: Any) -> Any:
    """A whole number as an int; anything else, and truth values, as they are."""
    if type(value) is int or isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value
