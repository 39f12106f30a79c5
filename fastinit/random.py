"""torch's random functions that make tensors: `fastinit.random.randn(3, 4)` as `torch.randn(3, 4)`.

Same arguments, shapes, dtypes and errors; `fast` and `stream` by keyword as in `fastinit.init`, `generator` everywhere.
Element i of a result is what the in-place sampler of that law writes to element i of a tensor of its shape, on every
device; what the samplers leave to torch (complex dtypes, say) torch makes. So it does inside torch.compile, where
`randperm`, `multinomial` and tensors of parameters take no stream.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .drawing.route import COMPILED, TORCH, way
from .drawing.streams import Stream
from .drawing.torch_private import in_graph
from .init import normal_, uniform_
from .initialisers.categories import with_replacement, without_replacement
from .initialisers.each import check_range, fill_each, not_read
from .initialisers.order import permutation
from .kernels.dtypes import FORMATS, WHOLE
from .samplers import bernoulli_, random_

__all__ = [
    "bernoulli", "multinomial", "normal", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "randperm",
]  # fmt: skip


def empty(name: str, arguments: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """The memory for the result of torch's function `name`; its error where there can be none."""
    try:
        return torch.empty_like(*arguments, **options) if name.endswith("_like") else torch.empty(*arguments, **options)
    except (TypeError, RuntimeError, ValueError):
        getattr(torch, name)(*arguments, **options)
        raise


def by_torch(
    name: str,
    arguments: Sequence[Any],
    options: dict[str, Any],
    generator: Generator | None,
    fast: bool | None,
    stream: Stream | None,
) -> Tensor:
    """What torch's function `name` makes of a call, or its error; `RuntimeError` where it was not to be torch's."""
    function = getattr(torch, name)
    if fast or stream is not None:
        function(*arguments, **{key: value for key, value in options.items() if key != "out"})  # for its error
        raise RuntimeError(f"torch.{name} makes this result, which has no stream and takes no fast=True")
    if generator is not None:  # releases of torch do not take it everywhere
        options = {**options, "generator": generator}
    made: Tensor = function(*arguments, **options)
    return made


def rand(
    *size: Any,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Uniform on [0, 1), as `torch.rand`; `options` are torch's (out, dtype, device, requires_grad, ...)."""
    out = empty("rand", size, options)
    if out.dtype not in FORMATS:
        return by_torch("rand", size, options, generator, fast, stream)
    return uniform_(out, 0.0, 1.0, generator, fast=fast, stream=stream)


def randn(
    *size: Any,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Standard normal, as `torch.randn`."""
    out = empty("randn", size, options)
    if out.dtype not in FORMATS:
        return by_torch("randn", size, options, generator, fast, stream)
    return normal_(out, 0.0, 1.0, generator, fast=fast, stream=stream)


def rand_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Uniform on [0, 1) in the shape, dtype and device of `input`, as `torch.rand_like`."""
    out = empty("rand_like", (input,), options)
    if out.dtype not in FORMATS:
        return by_torch("rand_like", (input,), options, generator, fast, stream)
    return uniform_(out, 0.0, 1.0, generator, fast=fast, stream=stream)


def randn_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Standard normal in the shape, dtype and device of `input`, as `torch.randn_like`."""
    out = empty("randn_like", (input,), options)
    if out.dtype not in FORMATS:
        return by_torch("randn_like", (input,), options, generator, fast, stream)
    return normal_(out, 0.0, 1.0, generator, fast=fast, stream=stream)


def bounds_of(
    names: tuple[str, ...], arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]] | None:
    """What a call means by `names`, of which the first may be left out (a lower bound of 0), and the other options.

    None where torch has an error for the call, or knows what to make of it.
    """
    places = [name for name in names if name not in options]
    named = dict(zip(places[len(places) - len(arguments) :], arguments, strict=False))
    found = {"low": 0} | named | {name: options[name] for name in names if name in options}
    whole = [found.get(name) for name in names]
    fits = len(arguments) <= len(places) and type(whole[0]) is int and type(whole[1]) is int
    return (whole, {key: value for key, value in options.items() if key not in names}) if fits else None


def randint(
    *arguments: Any,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Whole numbers in [low, high), as `torch.randint(low=0, high, size)`; int64, if no dtype is given.

    For the probabilities see `fastinit.laws.Integers`.
    """
    known = bounds_of(("low", "high", "size"), arguments, options)
    if known is None or not isinstance(known[0][2], (tuple, list)):
        return by_torch("randint", arguments, options, generator, fast, stream)
    (low, high, size), others = known
    if others.get("out") is None and others.get("dtype") is None:
        others["dtype"] = torch.int64
    return random_(empty("randint", (size,), others), low, high, generator=generator, fast=fast, stream=stream)


def randint_like(
    input: Tensor,
    *bounds: Any,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Whole numbers in [low, high) in the shape, dtype and device of `input`, as `torch.randint_like`."""
    known = bounds_of(("low", "high"), bounds, options)
    if known is None:
        return by_torch("randint_like", (input, *bounds), options, generator, fast, stream)
    (low, high), others = known
    return random_(empty("empty_like", (input,), others), low, high, generator=generator, fast=fast, stream=stream)


def normal(
    mean: Any,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Normal with these means and standard deviations, each a number or a tensor, as `torch.normal`.

    Two numbers take a `size`. Tensors broadcast with each other, and the result has the mean's dtype, or the standard
    deviation's where the mean is a number. Reads all standard deviations first, for torch's error for negative ones.
    """
    tensors = [number for number in (mean, std) if isinstance(number, Tensor)]
    sizes = () if size is None else (size,)
    torchs = functools.partial(by_torch, "normal", (mean, std, *sizes), options, generator, fast, stream)
    if not tensors:
        out = empty("normal", sizes, options) if sizes else None
        if out is None or out.dtype not in FORMATS:
            return torchs()
        check_range("normal_", (mean, std))
        return normal_(out, mean, std, generator, fast=fast, stream=stream)
    if sizes or options.keys() - {"out"}:
        return torchs()
    shape = tensors[0].shape
    if tensors[-1].shape != shape:
        broadcast: Any = torch.broadcast_tensors  # untyped
        shape = broadcast(*tensors)[0].shape
    out = result(options.get("out"), shape, tensors[0])
    return fill_each("normal_", out, (mean, std), generator, fast, stream, torchs)


def result(out: Tensor | None, shape: torch.Size, like: Tensor) -> Tensor:
    """`out` in this shape, as torch resizes it, or new memory."""
    if out is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    if out.shape != shape:
        torch.add(torch.zeros(shape, dtype=out.dtype, device=out.device), 0, out=out)  # which warns as torch does
    return out


def bernoulli(
    input: Tensor,
    p: float | None = None,
    *,
    generator: Generator | None = None,
    out: Tensor | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> Tensor:
    """1 with the probability that stands in `input`, else 0, as `torch.bernoulli`; with p in every place, if given."""

    given: tuple[Any, ...] = (input,) if p is None else (input, p)
    options = {} if out is None else {"out": out}
    torchs = functools.partial(by_torch, "bernoulli", given, options, generator, fast, stream)
    if isinstance(p, Tensor) or (p is not None and out is not None):
        return torchs()
    if p is not None:
        return bernoulli_(
            torch.empty_like(input, memory_format=torch.contiguous_format), p, generator, fast=fast, stream=stream
        )
    if not input.is_floating_point():
        return torchs()
    return fill_each("bernoulli_", result(out, input.shape, input), (input,), generator, fast, stream, torchs)


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """The numbers from 0 to n - 1 in random order, as `torch.randperm`; int64, if no dtype is given.

    All permutations alike, up to a relative error of n^2 / 2^65: the order of n words of 64 bits. Takes 8 bytes a
    number besides the result.
    """
    whole = {} if options.get("out") is not None or options.get("dtype") is not None else {"dtype": torch.int64}
    out = empty("randperm", (n,), options | whole) if type(n) is int else None
    if out is None or out.dim() != 1 or out.dtype not in FORMATS.keys() | WHOLE.keys() or n > most(out.dtype):
        return by_torch("randperm", (n,), options, generator, fast, stream)
    by = way(out, generator, fast, stream, "normal_", None, (out.dtype,))
    if by is TORCH or in_graph():
        return by_torch("randperm", (n,), options, generator, fast, stream)
    order = permutation(n, out.device, generator, stream, by is COMPILED)
    if options.get("out") is None and out.dtype is torch.int64:
        return order
    with torch.no_grad():
        return out.copy_(order)


def most(dtype: torch.dtype) -> int:
    """How many numbers from 0 on a dtype holds without gaps; none where torch permutes none."""
    if dtype in FORMATS:
        return 0 if dtype.itemsize == 1 else (1 << FORMATS[dtype].precision) + 1
    return 0 if dtype is torch.bool else torch.iinfo(dtype).max + 1


def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Generator | None = None,
    out: Tensor | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> Tensor:
    """Categories by the probabilities in `input`, one row or a matrix of rows, as `torch.multinomial`; int64.

    A row need not sum to 1. The same categories on every device: with replacement the weights are rounded to whole
    numbers, the greatest of n to 2^(62 - the bits of n), and summed exactly; without it the times of arrival are
    compared in float64. Where fewer than `num_samples` have a weight, those of weight 0 come last, in their order.
    """

    options = {} if out is None else {"out": out}
    given = (input, num_samples, replacement)
    torchs = functools.partial(by_torch, "multinomial", given, options, generator, fast, stream)
    if in_graph() or (out is not None and out.dtype is not torch.int64):
        return torchs()
    if not is_distribution(input, num_samples, replacement):
        return torchs()
    made = torch.empty(*input.shape[:-1], num_samples, dtype=torch.int64, device=input.device)
    by = way(made, generator, fast, stream, "normal_", None, (torch.int64,))
    if by is TORCH or not_read(input, made) is not None:
        return torchs()
    draw = with_replacement if replacement else without_replacement
    rows = input.detach() if input.dim() == 2 else input.detach()[None]
    made.copy_(draw(rows, num_samples, generator, stream, by is COMPILED).view(made.shape))
    return made if out is None else result(out, made.shape, made).copy_(made)


def is_distribution(weights: Tensor, samples: int, replacement: bool) -> bool:
    """Whether torch draws so many samples by these weights, and has no error for them."""
    count = weights.shape[-1] if weights.dim() in (1, 2) else 0
    fits = type(samples) is int and samples > 0 and (samples <= count or replacement)
    if not fits or weights.numel() == 0 or count > 1 << 24 or weights.is_meta or weights.dtype not in FORMATS:
        return False
    low, high = torch.aminmax(weights.detach().float() if weights.dtype.itemsize == 1 else weights.detach())
    return bool(low >= 0 and high < math.inf and (weights.detach().amax(-1) > 0).all())
