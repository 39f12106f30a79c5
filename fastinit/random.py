"""torch's random functions that make tensors: `fastinit.random.randn(3, 4)` as `torch.randn(3, 4)`.

Same arguments, shapes, dtypes and errors; `fast` and `stream` by keyword as in `fastinit.init`, `generator` everywhere.
Element i of a result is what the in-place sampler of that law writes to element i of a tensor of its shape, on every
device; what the samplers leave to torch (complex dtypes, say) torch makes. So it does inside torch.compile, where
`randperm`, `multinomial` and tensors of parameters take no stream.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from .drawing import flags
from .drawing.batch import anew, escapes, settle, unseen
from .drawing.route import COMPILED, TORCH, way
from .drawing.streams import Stream
from .drawing.torch_private import in_graph
from .drawing.words import permutation
from .initialisers.categories import with_replacement, without_replacement
from .initialisers.each import check_range, fill_each, not_read
from .initialisers.fans import NUMBERS
from .initialisers.quick import Elsewhere, serve
from .initialisers.table import DTYPES
from .kernels.dtypes import FORMATS, WHOLE, name_of
from .laws.floats import as_float
from .samplers import as_whole

__all__ = [
    "bernoulli", "multinomial", "normal", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "randperm",
]  # fmt: skip


class Call(NamedTuple):
    """A call of a function of torch's that makes a random tensor."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def result(self, generator: Generator | None, fast: bool | None, stream: Stream | None, reason: str = "") -> Tensor:
        """What torch makes of it, or its error; `RuntimeError` where the result was not to be torch's."""
        function = getattr(torch, self.name)
        settle(*self.arguments, *self.options.values())
        if (flags.default if fast is None else fast) or stream is not None:
            self.check()
            why = f" ({reason})" if reason else ""
            raise RuntimeError(f"torch.{self.name} makes this result{why}, which has no stream and takes no fast=True")
        options = self.options if generator is None else {**self.options, "generator": generator}
        escapes(self.name)
        made: Tensor = function(*self.arguments, **options)  # releases of torch do not take a generator everywhere
        return made

    def check(self) -> None:
        """Raise torch's error, if it has one. Draws nothing that anybody notices."""
        others = {key: value for key, value in self.options.items() if key != "out"}
        with torch.random.fork_rng(devices=[]):
            getattr(torch, self.name)(*self.arguments, **others)

    def empty(self, *size: Any, **options: Any) -> Tensor:
        """The memory for the result, or torch's error; `size` and `options` are what torch.empty takes."""
        like = self.name.endswith("_like")
        if not like and "memory_format" in options:
            self.check()
        if options.get("out") is not None and options["out"].requires_grad:
            getattr(torch, self.name)(*self.arguments, **self.options)
        try:
            return torch.empty_like(*size, **options) if like else torch.empty(*size, **options)
        except (TypeError, RuntimeError, ValueError):
            self.check()
            raise


def made(
    call: Call,
    sampler: str,
    numbers: tuple[Any, ...],
    out: Tensor,
    generator: Generator | None,
    fast: bool | None,
    stream: Stream | None,
) -> Tensor:
    """`out` filled by an in-place sampler, or what torch makes of the call."""
    torchs = functools.partial(call.result, generator, fast, stream)
    settle(out)
    if out.dtype not in DTYPES.get(sampler, FORMATS) or (out.requires_grad and call.options.get("out") is not None):
        return torchs(f"in {name_of(out.dtype)}")
    return anew(serve, sampler, out, numbers, generator, fast, stream, elsewhere=Elsewhere(None, torchs))


def rand(
    *size: Any,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Uniform on [0, 1), as `torch.rand`; `options` are torch's (out, dtype, device, requires_grad, ...).

    Elements are those of `fastinit.uniform_`. Raises torch's errors.
    """
    call = Call("rand", size, options)
    return made(call, "uniform_", (0.0, 1.0), call.empty(*size, **options), generator, fast, stream)


def randn(
    *size: Any,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Standard normal, as `torch.randn`. Elements are those of `fastinit.normal_`. Raises torch's errors."""
    call = Call("randn", size, options)
    return made(call, "normal_", (0.0, 1.0), call.empty(*size, **options), generator, fast, stream)


def rand_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Uniform on [0, 1) in the shape, dtype, layout and device of `input`, as `torch.rand_like`."""
    call = Call("rand_like", (input,), options)
    return made(call, "uniform_", (0.0, 1.0), call.empty(input, **options), generator, fast, stream)


def randn_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Standard normal in the shape, dtype, layout and device of `input`, as `torch.randn_like`."""
    call = Call("randn_like", (input,), options)
    return made(call, "normal_", (0.0, 1.0), call.empty(input, **options), generator, fast, stream)


def bounds_of(
    names: tuple[str, ...], arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]] | None:
    """What a call means by `names`, of which the first may be left out (a lower bound of 0), and the other options.

    None where torch has an error for the call, or knows what to make of it.
    """
    places = [name for name in names if name not in options]
    named = dict(zip(places[len(places) - len(arguments) :], arguments, strict=False))
    found = {"low": 0} | named | {name: options[name] for name in names if name in options}
    whole = [as_whole(found.get(name)) for name in names]
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
    call, known = Call("randint", arguments, options), bounds_of(("low", "high", "size"), arguments, options)
    if known is None or not isinstance(known[0][2], (tuple, list)):
        return call.result(generator, fast, stream)
    (low, high, size), others = known
    if others.get("out") is None and others.get("dtype") is None:
        others["dtype"] = torch.int64
    return made(call, "random_", (low, high), call.empty(size, **others), generator, fast, stream)


def randint_like(
    input: Tensor,
    *bounds: Any,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """Whole numbers in [low, high) in the shape, dtype and device of `input`, as `torch.randint_like`."""
    call, known = Call("randint_like", (input, *bounds), options), bounds_of(("low", "high"), bounds, options)
    if known is None:
        return call.result(generator, fast, stream)
    (low, high), others = known
    return made(call, "random_", (low, high), call.empty(input, **others), generator, fast, stream)


@unseen
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
    settle(mean, std, options.get("out"))
    numbers = tuple(number if isinstance(number, Tensor) else as_float(number) for number in (mean, std))
    tensors = [number for number in numbers if isinstance(number, Tensor)]
    sizes = () if size is None else (size,)
    call = Call("normal", (mean, std, *sizes), options)
    torchs = functools.partial(call.result, generator, fast, stream)
    known = all(type(number) in NUMBERS for number in numbers if not isinstance(number, Tensor))
    if not tensors and isinstance(size, (tuple, list)) and known:
        out = call.empty(size, **options)
        check_range("normal_", numbers)
        return made(call, "normal_", numbers, out, generator, fast, stream)
    if not tensors or sizes or options.keys() - {"out"} or not known:
        return torchs()
    shape = tensors[0].shape
    if tensors[-1].shape != shape:
        broadcast: Any = torch.broadcast_tensors  # untyped
        shape = broadcast(*tensors)[0].shape
    if (given := options.get("out")) is not None:
        if given.requires_grad:
            return torchs()
        if given.shape != shape:
            check_range("normal_", numbers)  # before it is resized
    return fill_each("normal_", result(given, shape, tensors[0]), numbers, generator, fast, stream, torchs)


def result(out: Tensor | None, shape: torch.Size, like: Tensor) -> Tensor:
    """`out` in this shape, as torch resizes it, or new memory."""
    if out is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    if out.shape != shape:
        torch.empty(shape, out=out)  # which warns as torch does
    return out


@unseen
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
    settle(input, p, out)
    options = {} if out is None else {"out": out}
    call = Call("bernoulli", (input,) if p is None else (input, p), options)
    torchs = functools.partial(call.result, generator, fast, stream)
    if isinstance(p, Tensor) or (p is not None and out is not None) or (out is not None and out.requires_grad):
        return torchs()
    if p is not None:
        target = torch.empty_like(input, memory_format=torch.contiguous_format)
        return made(call, "bernoulli_", (p,), target, generator, fast, stream)
    if not input.is_floating_point():
        return torchs()
    if out is not None and out.shape != input.shape:
        check_range("bernoulli_", (input,))  # before it is resized
    return fill_each("bernoulli_", result(out, input.shape, input), (input,), generator, fast, stream, torchs)


@unseen
def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    fast: bool | None = None,
    stream: Stream | None = None,
    **options: Any,
) -> Tensor:
    """The numbers from 0 to n - 1 in random order, as `torch.randperm`; int64, if no dtype is given.

    All permutations alike, up to a relative error of n^2 / 2^65: the order of n words of 64 bits.
    """
    n = as_whole(n)
    call, whole = Call("randperm", (n,), options), {"dtype": torch.int64}
    if options.get("out") is not None or options.get("dtype") is not None:
        whole = {}
    out = call.empty(n, **options, **whole) if type(n) is int else None
    if out is None or out.dim() != 1 or n > most(out.dtype):
        return call.result(generator, fast, stream)
    by = way(out, generator, fast, stream, None, None, (out.dtype,))
    if by is TORCH or in_graph():
        return call.result(generator, fast, stream)
    order = permutation(n, out.device, generator, stream, by is COMPILED)
    if out.dtype is torch.int64 and options.keys() <= {"dtype", "device"}:
        return order
    settle(out)
    with torch.no_grad():
        return out.copy_(order)


def most(dtype: torch.dtype) -> int:
    """How many numbers from 0 on a dtype holds without gaps; none where torch permutes none."""
    if dtype not in FORMATS.keys() | WHOLE.keys():
        return 0
    if dtype in FORMATS:
        return 0 if dtype.itemsize == 1 else (1 << FORMATS[dtype].precision) + 1
    return 0 if dtype is torch.bool else torch.iinfo(dtype).max + 1


@unseen
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
    samples = as_whole(num_samples)
    settle(input, out)
    options = {} if out is None else {"out": out}
    torchs = functools.partial(
        Call("multinomial", (input, samples, replacement), options).result, generator, fast, stream
    )
    shaped = input.dim() in (1, 2) and type(samples) is int and samples > 0 and type(replacement) is bool
    if in_graph() or not shaped or (out is not None and (out.dtype is not torch.int64 or out.is_meta)):
        return torchs()
    chosen = torch.empty(*input.shape[:-1], samples, dtype=torch.int64, device=input.device)
    by = way(chosen if out is None else out, generator, fast, stream, None, None, (torch.int64,))
    if by is TORCH or not_read(input, chosen) is not None or not is_distribution(input, samples, replacement):
        return torchs()
    draw = with_replacement if replacement else without_replacement
    rows = input.detach() if input.dim() == 2 else input.detach()[None]
    if rows.device.type == "mps":  # which has no float64
        rows = rows.cpu()
    if out is not None:
        chosen = result(out, chosen.shape, chosen)
    return chosen.copy_(draw(rows, samples, generator, stream, by is COMPILED).view(chosen.shape))


def is_distribution(weights: Tensor, samples: int, replacement: bool) -> bool:
    """Whether torch draws so many samples by these weights, and has no error for them. Waits for a GPU."""
    count = weights.shape[-1]
    fits = (samples <= count or replacement) and count <= 1 << 24
    if fits and count and not weights.numel():
        return True  # no rows
    if not fits or not count or weights.dtype not in FORMATS or weights.dtype.itemsize == 1:
        return False
    low, high = torch.aminmax(weights.detach())
    return bool(low >= 0 and high < math.inf and (weights.detach().amax(-1) > 0).all())
