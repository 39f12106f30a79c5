"""torch.nn.init, compiled: the same names, signatures, return values, errors and warnings.

Every function takes torch's own arguments, and a `fastinit.shard` in place of a tensor. Those that draw
also take, by keyword:

* `fast`: None draws with the fastest engine that can, and leaves to torch.nn.init what the stream contract does not
  cover; True insists on a compiled engine; False is torch.nn.init itself, with its own bits.
* `stream`: the `fastinit.Stream` to draw from, instead of `generator` or torch's default CPU generator.
* `layout` (where there are fans): which dimension is what; see `fastinit.fans.fans`.

The numbers drawn are not torch's; their distributions are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Generator

from . import matrices, originals
from .checks import check_bounds, check_moments
from .fans import NUMBERS, kaiming_std, xavier_std
from .fill import fill, fill_quickly
from .floats import as_float, is_proxy
from .kernels.formats import FORMATS
from .laws import Normal, TruncNormal, Uniform, Words, working
from .originals import call as _torch, torch_init, torchs_own
from .regions import Shard, Target, local_of
from .streams import Stream, check_source
from .ways import QUICK, TORCH, Way, decided_by_others, outside_contract, refuse_inference_write, way

T = TypeVar("T", bound=Target)

calculate_gain = originals.obedient(torch_init.calculate_gain)
_calculate_fan_in_and_fan_out = torch_init._calculate_fan_in_and_fan_out
_calculate_correct_fan = torch_init._calculate_correct_fan
_make_deprecate = torch_init._make_deprecate


def uniform_(
    tensor: T,
    a: float = 0.0,
    b: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> T:
    """Fill with samples uniform on [a, b), as `torch.nn.init.uniform_`."""
    by = way(tensor, generator, fast, stream, "uniform_")
    numbers = type(a) in NUMBERS and type(b) in NUMBERS
    if by is QUICK and numbers and fill_quickly(tensor, (Uniform, tensor.dtype, a, b), generator, stream):
        return tensor
    return _uniform(tensor, a, b, generator, fast, stream, by)


def normal_(
    tensor: T,
    mean: float = 0.0,
    std: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> T:
    """Fill with samples of N(mean, std^2), as `torch.nn.init.normal_`; none beyond 6.77 std (9.5 in float64)."""
    by = way(tensor, generator, fast, stream, "normal_")
    numbers = type(mean) in NUMBERS and type(std) in NUMBERS
    if by is QUICK and numbers and fill_quickly(tensor, (Normal, tensor.dtype, mean, std), generator, stream):
        return tensor
    return _normal(tensor, mean, std, generator, fast, stream, by)


def trunc_normal_(
    tensor: T,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> T:
    """Fill with samples of N(mean, std^2) given that they fall in [a, b], as `torch.nn.init.trunc_normal_`.

    By inverse distribution function: one pass and no redrawing, for bounds anywhere, infinite ones too.
    No value lies outside [a, b], as the tensor's dtype rounds.
    """
    if (by := way(tensor, generator, fast, stream, "trunc_normal_")) is TORCH:
        return _torch(torch_init.trunc_normal_, tensor, mean, std, a, b, generator)
    if (
        by is QUICK
        and NUMBERS.issuperset((type(mean), type(std), type(a), type(b)))
        and a - 2 * std <= mean <= b + 2 * std
        and fill_quickly(tensor, (TruncNormal, tensor.dtype, mean, std, a, b), generator, stream)
    ):
        return tensor
    numbers = _numbers(torch_init.trunc_normal_, mean, std, a, b)
    if numbers is None:
        return _by_torch(tensor, stream, torch_init.trunc_normal_, mean, std, a, b, generator)
    mean, std, a, b = numbers
    check_moments(tensor.dtype, mean, std)
    if not tensor.is_meta and (mean < a - 2 * std or mean > b + 2 * std):
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=2,
        )
    check_bounds(local_of(tensor), mean, std, a, b)
    return fill(tensor, TruncNormal(mean, std, a, b), generator, fast=fast, stream=stream)


def bits_(tensor: T, generator: Generator | None = None, *, stream: Stream | None = None) -> T:
    """Fill an int32 tensor with raw Philox words (element i: as float32 laws see it). For tests of the generator.

    Raises `TypeError` for another dtype, `RuntimeError` where kernels cannot write the tensor.
    """
    if tensor.dtype is not torch.int32:
        raise TypeError(f"bits_ fills int32 tensors, got {tensor.dtype}")
    check_source(generator, stream)
    if (reason := outside_contract(local_of(tensor), (torch.int32,))) is not None:
        raise RuntimeError(f"bits_ cannot draw here: {reason}")
    refuse_inference_write(local_of(tensor))
    return fill(tensor, Words(), generator, stream=stream)


def constant_(tensor: T, val: float) -> T:
    """Fill with `val`; torch.nn.init.constant_ itself, for shards too."""
    return _filled(torch_init.constant_, tensor, val)


def ones_(tensor: T) -> T:
    """Fill with 1; torch.nn.init.ones_ itself, for shards too."""
    return _filled(torch_init.ones_, tensor)


def zeros_(tensor: T) -> T:
    """Fill with 0; torch.nn.init.zeros_ itself, for shards too."""
    return _filled(torch_init.zeros_, tensor)


def xavier_uniform_(
    tensor: T,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
    layout: str | None = None,
) -> T:
    """Uniform with std gain * sqrt(2 / (fan_in + fan_out)), as torch has it (Glorot and Bengio 2010, equation 16)."""
    if (by := way(tensor, generator, fast, stream, "xavier_uniform_", layout)) is TORCH and layout is None:
        return _torch(torch_init.xavier_uniform_, tensor, gain, generator)
    bound = math.sqrt(3.0) * xavier_std("xavier_uniform_", tensor, gain, layout)
    if by is QUICK and fill_quickly(tensor, (Uniform, tensor.dtype, -bound, bound), generator, stream):
        return tensor
    return _uniform(tensor, -bound, bound, generator, fast, stream, by)


def xavier_normal_(
    tensor: T,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
    layout: str | None = None,
) -> T:
    """Normal with std gain * sqrt(2 / (fan_in + fan_out)), as torch has it (Glorot and Bengio 2010, equation 12)."""
    if (by := way(tensor, generator, fast, stream, "xavier_normal_", layout)) is TORCH and layout is None:
        return _torch(torch_init.xavier_normal_, tensor, gain, generator)
    std = xavier_std("xavier_normal_", tensor, gain, layout)
    if by is QUICK and fill_quickly(tensor, (Normal, tensor.dtype, 0.0, std), generator, stream):
        return tensor
    return _normal(tensor, 0.0, std, generator, fast, stream, by)


def kaiming_uniform_(
    tensor: T,
    a: float = 0,
    mode: Any = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
    layout: str | None = None,
) -> T:
    """Uniform with std gain / sqrt(fan), as torch has it (He et al. 2015, equations 10 and 14)."""
    if (by := way(tensor, generator, fast, stream, "kaiming_uniform_", layout)) is TORCH and layout is None:
        return _torch(torch_init.kaiming_uniform_, tensor, a, mode, nonlinearity, generator)
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    bound = math.sqrt(3.0) * kaiming_std(tensor, a, mode, nonlinearity, layout)
    if by is QUICK and fill_quickly(tensor, (Uniform, tensor.dtype, -bound, bound), generator, stream):
        return tensor
    return _uniform(tensor, -bound, bound, generator, fast, stream, by)


def kaiming_normal_(
    tensor: T,
    a: float = 0,
    mode: Any = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
    layout: str | None = None,
) -> T:
    """Normal with std gain / sqrt(fan), as torch has it (He et al. 2015, equations 10 and 14)."""
    if (by := way(tensor, generator, fast, stream, "kaiming_normal_", layout)) is TORCH and layout is None:
        return _torch(torch_init.kaiming_normal_, tensor, a, mode, nonlinearity, generator)
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    std = kaiming_std(tensor, a, mode, nonlinearity, layout)
    if by is QUICK and fill_quickly(tensor, (Normal, tensor.dtype, 0.0, std), generator, stream):
        return tensor
    return _normal(tensor, 0.0, std, generator, fast, stream, by)


def orthogonal_(
    tensor: T,
    gain: float = 1,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> T:
    """A (semi) orthogonal matrix, Haar-distributed, times gain, as `torch.nn.init.orthogonal_` (Saxe et al. 2013).

    Narrower tensors are computed in float32 (where torch raises). A shard costs the memory and time of its
    global matrix. The normal samples keep the stream contract; the product of the reflections made from them (Stewart
    1980) is the device's own library's.
    """
    if way(tensor, generator, fast, stream, "orthogonal_") is TORCH or tensor.ndimension() < 2:
        return _torch(torch_init.orthogonal_, tensor, gain, generator)
    return matrices.orthogonal(tensor, gain, generator, fast, stream)


def sparse_(
    tensor: T,
    sparsity: float,
    std: float = 0.01,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> T:
    """Normal samples with ceil(sparsity * rows) zeros in each column, as `torch.nn.init.sparse_` (Martens 2010).

    The zeros of a column are its smallest words in the stream's child "zeros": part of the stream contract.
    """
    if way(tensor, generator, fast, stream, "sparse_") is TORCH or tensor.ndimension() != 2:
        return _torch(torch_init.sparse_, tensor, sparsity, std, generator)
    if tensor.is_meta:
        return tensor
    zeros = len(range(tensor.shape[0])[: math.ceil(sparsity * tensor.shape[0])])  # a slice, as torch takes it
    numbers = _numbers(torch_init.normal_, 0.0, std)
    if numbers is None or not 0 <= numbers[1] <= FORMATS[working(tensor.dtype)].greatest:
        return _by_torch(tensor, stream, torch_init.sparse_, sparsity, numbers[1] if numbers else std, generator)
    return matrices.sparse(tensor, zeros, Normal(*numbers), generator, fast, stream)


def eye_(tensor: T) -> T:
    """The identity matrix, as `torch.nn.init.eye_`; a shard gets its part of it."""
    if isinstance(tensor, Shard) and tensor.ndimension() == 2 and not decided_by_others("eye_", tensor):
        matrices.eye_shard(tensor)
        return tensor
    return _torch(torch_init.eye_, tensor)


def dirac_(tensor: T, groups: int = 1) -> T:
    """The Dirac delta of a convolution's weight, as `torch.nn.init.dirac_`, with no loop over channels."""
    if decided_by_others("dirac_", tensor):
        return _torch(torch_init.dirac_, tensor, groups)
    odd_groups = type(groups) is not int or groups < 1
    if odd_groups and isinstance(tensor, Shard):
        raise ValueError(f"dirac_ needs a whole number of groups above 0, got {groups!r}")
    if odd_groups or tensor.ndimension() not in (3, 4, 5) or tensor.shape[0] % groups != 0 or 0 in tensor.shape:
        return _torch(torch_init.dirac_, tensor, groups)
    if not isinstance(tensor, Shard) and outside_contract(tensor, (tensor.dtype,)) is not None:
        return _torch(torch_init.dirac_, tensor, groups)
    matrices.dirac(tensor, groups)
    return tensor


def _filled(torch_function: Callable[..., Any], tensor: T, *arguments: Any) -> T:
    if isinstance(tensor, Shard):
        _torch(torch_function, tensor.local, *arguments)
        return tensor
    return _torch(torch_function, tensor, *arguments)


def _numbers(torch_function: Callable[..., Any], *values: Any) -> tuple[float, ...] | None:
    """The values as floats; None where only torch can say what they are worth."""
    try:
        if not {*map(type, values)} <= NUMBERS:
            values = tuple(map(as_float, values))
        if not {*map(type, values)} <= NUMBERS:
            if any(map(is_proxy, values)):
                return None
            # Whatever else torch takes for a float, and its TypeError for the rest. What is in range, the caller asks.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torchs_own(torch_function.__name__)(torch.empty(0, dtype=torch.float64, device="cpu"), *values)
        return tuple(float(value) + 0.0 for value in values)  # no -0.0: it equals 0.0, and so do laws made of it
    except (RuntimeError, ValueError, OverflowError):
        return None


def _by_torch(target: T, stream: Stream | None, torch_function: Callable[..., Any], *arguments: Any) -> T:
    """Hand a call with odd numbers to torch, for its error or for whatever it makes of them."""
    if isinstance(target, Shard) or stream is not None:
        torchs_own(torch_function.__name__)(local_of(target).new_empty((0,) * target.ndimension()), *arguments)
        raise ValueError(
            f"{torch_function.__name__} with {arguments[:-1]}: torch.nn.init has no error for this, and fastinit no law"
        )
    return _torch(torch_function, target, *arguments)


def _uniform(
    target: T,
    a: Any,
    b: Any,
    generator: Generator | None,
    fast: bool | None,
    stream: Stream | None,
    by: Way,
) -> T:
    if by is TORCH:
        return _torch(torch_init.uniform_, target, a, b, generator)
    numbers = _numbers(torch_init.uniform_, a, b)
    greatest = FORMATS[target.dtype].greatest
    if numbers is None or not (
        -greatest <= numbers[0] <= numbers[1] <= greatest and numbers[1] - numbers[0] <= greatest
    ):
        return _by_torch(target, stream, torch_init.uniform_, *(numbers or (a, b)), generator)
    return fill(target, Uniform(*numbers), generator, fast=fast, stream=stream)


def _normal(
    target: T,
    mean: Any,
    std: Any,
    generator: Generator | None,
    fast: bool | None,
    stream: Stream | None,
    by: Way,
) -> T:
    if by is TORCH:
        return _torch(torch_init.normal_, target, mean, std, generator)
    numbers = _numbers(torch_init.normal_, mean, std)
    greatest = FORMATS[working(target.dtype)].greatest
    if numbers is None or not (abs(numbers[0]) <= greatest and 0 <= numbers[1] <= greatest):
        return _by_torch(target, stream, torch_init.normal_, *(numbers or (mean, std)), generator)
    return fill(target, Normal(*numbers), generator, fast=fast, stream=stream)


@originals.obedient
def _no_grad_uniform_(tensor: T, a: float, b: float, generator: Generator | None = None) -> T:
    return uniform_(tensor, a, b, generator)


@originals.obedient
def _no_grad_normal_(tensor: T, mean: float, std: float, generator: Generator | None = None) -> T:
    return normal_(tensor, mean, std, generator)


@originals.obedient
def _no_grad_trunc_normal_(
    tensor: T, mean: float, std: float, a: float, b: float, generator: Generator | None = None
) -> T:
    return trunc_normal_(tensor, mean, std, a, b, generator)


_no_grad_fill_ = originals.obedient(torch_init._no_grad_fill_)
_no_grad_zero_ = originals.obedient(torch_init._no_grad_zero_)


uniform = _make_deprecate(uniform_)
normal = _make_deprecate(normal_)
constant = _make_deprecate(constant_)
eye = _make_deprecate(eye_)
dirac = _make_deprecate(dirac_)
xavier_uniform = _make_deprecate(xavier_uniform_)
xavier_normal = _make_deprecate(xavier_normal_)
kaiming_uniform = _make_deprecate(kaiming_uniform_)
kaiming_normal = _make_deprecate(kaiming_normal_)
orthogonal = _make_deprecate(orthogonal_)
sparse = _make_deprecate(sparse_)

originals.ours.update({name: globals()[name] for name in originals.NAMES})
