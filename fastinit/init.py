"""torch.nn.init, compiled: the same names, signatures, return values, errors and warnings.

Every function takes torch's own arguments; and in place of a tensor a `fastinit.shard`, or a list or tuple of either,
which it fills as a loop would, but together (see `initialisers.lists`). Those that draw also take, by keyword:

* `fast`: None draws with the fastest engine that can, and leaves to torch.nn.init what the stream contract does not
  cover; True insists on a compiled engine; False is torch.nn.init itself, with its own bits.
* `stream`: the `fastinit.Stream` to draw from, instead of `generator` or torch's default CPU generator.
* `layout` (where there are fans): which dimension is what; see `fastinit.initialisers.fans.fans`. `fan_in`, `fan_out`:
  what they are, where the shape does not tell; `groups`: of a convolution, whose units see only those of their group.

The numbers drawn are not torch's; their distributions are.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator

from .drawing import originals
from .drawing.batch import settle
from .drawing.fill import fill
from .drawing.originals import call, torch_init
from .drawing.regions import Shard, Target, given_as, local_of
from .drawing.route import TORCH, decided_by_others, outside_contract, refuse_inference_write, way
from .drawing.streams import check_source
from .initialisers import constants, matrices
from .initialisers.checks import in_values
from .initialisers.fans import axes
from .initialisers.lists import Streams, Targets, alone, takes_lists
from .initialisers.operators import draw_whole
from .initialisers.quick import serve
from .laws import Words

T = TypeVar("T", bound=Targets)
One = TypeVar("One", bound=Target)

calculate_gain = originals.obedient(torch_init.calculate_gain)
_calculate_fan_in_and_fan_out = torch_init._calculate_fan_in_and_fan_out
_calculate_correct_fan = torch_init._calculate_correct_fan
_make_deprecate = torch_init._make_deprecate
if "_make_deprecate" not in originals.standing:  # torch's private names may go
    _make_deprecate = lambda function: function  # noqa: E731


def uniform_(
    tensor: T,
    a: float = 0.0,
    b: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """Fill with samples uniform on [a, b), as `torch.nn.init.uniform_`."""
    return serve("uniform_", tensor, (a, b), generator, fast, stream)


def normal_(
    tensor: T,
    mean: float = 0.0,
    std: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """Fill with samples of N(mean, std^2), as `torch.nn.init.normal_`; none beyond 6.77 std (9.5 in float64)."""
    return serve("normal_", tensor, (mean, std), generator, fast, stream)


def trunc_normal_(
    tensor: T,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    bounds: str = "value",
) -> T:
    """Fill with samples of N(mean, std^2) given that they fall in [a, b], as `torch.nn.init.trunc_normal_`.

    With bounds="sigma", a and b count standard deviations from the mean, as in JAX, Keras and timm's trunc_normal_tf_;
    as they are ("value"), a std of 0.02 is not cut at all. Raises `ValueError` for another word.
    By inverse distribution function: one pass and no redrawing, for bounds anywhere, infinite ones too.
    No value lies outside [a, b], as the tensor's dtype rounds.
    """
    if bounds != "value":
        a, b = in_values(mean, std, a, b, bounds)
    return serve("trunc_normal_", tensor, (mean, std, a, b), generator, fast, stream)


@takes_lists
def bits_(tensor: One, generator: Generator | None = None, *, stream: Streams = None) -> One:
    """Fill an int32 tensor with raw Philox words (element i: as float32 laws see it). For tests of the generator.

    Raises `TypeError` for another dtype, `RuntimeError` where kernels cannot write the tensor.
    """
    stream = alone(stream)
    if tensor.dtype is not torch.int32:
        raise TypeError(f"bits_ fills int32 tensors, got {tensor.dtype}")
    check_source(generator, stream)
    if (reason := outside_contract(local_of(tensor), (torch.int32,))) is not None:
        raise RuntimeError(f"bits_ cannot draw here: {reason}")
    refuse_inference_write(local_of(tensor))
    fill(tensor, Words(), generator, stream=stream)
    return tensor


def constant_(tensor: T, val: Any) -> T:
    """Fill with `val`, as `torch.nn.init.constant_`; shards too.

    A list or array fills in row-major order, and its last value whatever is left, as TensorFlow's
    `constant_initializer` does. Raises `ValueError` where there are more values than elements, or none.
    """
    if type(val) in (int, float):
        return constants.serve("constant_", tensor, val, val)
    return _constant(tensor, val)


@takes_lists
def _constant(tensor: Any, val: Any) -> Any:
    settle(val)
    several = isinstance(val, (list, tuple)) or (isinstance(val, (np.ndarray, torch.Tensor)) and val.ndim > 0)
    if not several or decided_by_others("constant_", tensor):
        return constants.serve("constant_", tensor, val, val)
    own = None if isinstance(val, (np.ndarray, torch.Tensor)) else tensor.dtype  # a list's numbers are not float32 yet
    values = torch.as_tensor(val, dtype=own).flatten()
    if not 0 < values.numel() <= max(tensor.numel(), 1):
        shape = tuple(tensor.shape)
        raise ValueError(f"constant_ needs 1 to {tensor.numel()} values for shape {shape}, got {len(values)}")
    if tensor.numel() and not tensor.is_meta:
        matrices.row_major(tensor, values)
    return tensor


def ones_(tensor: T) -> T:
    """Fill with 1, as `torch.nn.init.ones_`; shards too."""
    return constants.serve("ones_", tensor, 1)


def zeros_(tensor: T) -> T:
    """Fill with 0, as `torch.nn.init.zeros_`; shards too."""
    return constants.serve("zeros_", tensor, 0)


def xavier_uniform_(
    tensor: T,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    layout: str | None = None,
    fan_in: int | None = None,
    fan_out: int | None = None,
    groups: int = 1,
) -> T:
    """Uniform with std gain * sqrt(2 / (fan_in + fan_out)), as torch has it (Glorot and Bengio 2010, equation 16)."""
    given = layout if fan_in is fan_out is None and groups == 1 else axes(layout, fan_in, fan_out, groups)
    return serve("xavier_uniform_", tensor, (gain,), generator, fast, stream, given, shaped=True)


def xavier_normal_(
    tensor: T,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    layout: str | None = None,
    fan_in: int | None = None,
    fan_out: int | None = None,
    groups: int = 1,
) -> T:
    """Normal with std gain * sqrt(2 / (fan_in + fan_out)), as torch has it (Glorot and Bengio 2010, equation 12)."""
    given = layout if fan_in is fan_out is None and groups == 1 else axes(layout, fan_in, fan_out, groups)
    return serve("xavier_normal_", tensor, (gain,), generator, fast, stream, given, shaped=True)


def kaiming_uniform_(
    tensor: T,
    a: float = 0,
    mode: Any = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    layout: str | None = None,
    fan_in: int | None = None,
    fan_out: int | None = None,
    groups: int = 1,
) -> T:
    """Uniform with std gain / sqrt(fan), as torch has it (He et al. 2015, equations 10 and 14)."""
    given = layout if fan_in is fan_out is None and groups == 1 else axes(layout, fan_in, fan_out, groups)
    return serve("kaiming_uniform_", tensor, (a, mode, nonlinearity), generator, fast, stream, given, shaped=True)


def kaiming_normal_(
    tensor: T,
    a: float = 0,
    mode: Any = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    layout: str | None = None,
    fan_in: int | None = None,
    fan_out: int | None = None,
    groups: int = 1,
) -> T:
    """Normal with std gain / sqrt(fan), as torch has it (He et al. 2015, equations 10 and 14)."""
    given = layout if fan_in is fan_out is None and groups == 1 else axes(layout, fan_in, fan_out, groups)
    return serve("kaiming_normal_", tensor, (a, mode, nonlinearity), generator, fast, stream, given, shaped=True)


@takes_lists
def orthogonal_(
    tensor: One,
    gain: float = 1,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    column_axis: int = 0,
) -> One:
    """A (semi) orthogonal matrix, Haar-distributed, times gain, as `torch.nn.init.orthogonal_` (Saxe et al. 2013).

    Narrower tensors are computed in float32 (where torch raises). A shard costs the memory and time of its
    global matrix. The normal samples keep the stream contract; the product of the reflections made from them (Stewart
    1980) is the device's own library's. `column_axis` is the dimension of the matrix's columns, all others together are
    that of its rows: torch's is the first, JAX's the last (-1).
    """
    stream = alone(stream)
    by = way(tensor, generator, fast, stream, "orthogonal_")
    turned = columns_first(tensor, column_axis) if column_axis else tensor
    if by is not TORCH and tensor.ndimension() > 1:
        draw_whole("orthogonal_", by, turned, (gain,), generator, stream)
    elif turned is tensor or originals.is_kept("orthogonal_", given_as(tensor)):
        return call("orthogonal_", tensor, gain, generator)
    else:  # torch's function takes only what it can view as a matrix
        settle(turned)
        fresh = torch.empty_like(local_of(turned), memory_format=torch.contiguous_format)
        with torch.no_grad():
            local_of(turned).copy_(call("orthogonal_", fresh, gain, generator))
    return tensor


def columns_first(tensor: One, axis: int) -> One:
    """The tensor with that dimension in front. Raises torch's `IndexError` for one that it does not have."""
    most = tensor.ndimension()
    if not -most <= axis < most:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-most}, {most - 1}], but got {axis})")
    order = list(range(most))
    order.insert(0, order.pop(axis))
    return tensor.permute(*order)  # type: ignore[return-value]


@takes_lists
def sparse_(
    tensor: One,
    sparsity: float,
    std: float = 0.01,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> One:
    """Normal samples with ceil(sparsity * rows) zeros in each column, as `torch.nn.init.sparse_` (Martens 2010).

    The zeros of a column are its smallest words in the stream's child "zeros": part of the stream contract.
    """
    stream = alone(stream)
    by = way(tensor, generator, fast, stream, "sparse_")
    if by is TORCH or tensor.ndimension() != 2:
        return call("sparse_", tensor, sparsity, std, generator)
    if tensor.is_meta:
        return tensor
    return draw_whole("sparse_", by, tensor, (sparsity, std), generator, stream)


@takes_lists
def eye_(tensor: One) -> One:
    """The identity matrix, as `torch.nn.init.eye_`; a shard gets its part of it."""
    if isinstance(tensor, Shard) and tensor.ndimension() == 2 and not decided_by_others("eye_", tensor):
        matrices.eye(tensor)
        return tensor
    return call("eye_", tensor)


@takes_lists
def dirac_(tensor: One, groups: int = 1) -> One:
    """The Dirac delta of a convolution's weight, as `torch.nn.init.dirac_`, with no loop over channels."""
    if decided_by_others("dirac_", tensor):
        return call("dirac_", tensor, groups)
    odd_groups = type(groups) is not int or groups < 1
    if odd_groups and isinstance(tensor, Shard):
        raise ValueError(f"dirac_ needs a whole number of groups above 0, got {groups!r}")
    if odd_groups or tensor.ndimension() not in (3, 4, 5) or tensor.shape[0] % groups != 0 or 0 in tensor.shape:
        return call("dirac_", tensor, groups)
    if not isinstance(tensor, Shard) and outside_contract(tensor, (tensor.dtype,)) is not None:
        return call("dirac_", tensor, groups)
    matrices.dirac(tensor, groups)
    return tensor


@originals.obedient
def _no_grad_uniform_(tensor: One, a: float, b: float, generator: Generator | None = None) -> One:
    return uniform_(tensor, a, b, generator)


@originals.obedient
def _no_grad_normal_(tensor: One, mean: float, std: float, generator: Generator | None = None) -> One:
    return normal_(tensor, mean, std, generator)


@originals.obedient
def _no_grad_trunc_normal_(
    tensor: One, mean: float, std: float, a: float, b: float, generator: Generator | None = None
) -> One:
    return trunc_normal_(tensor, mean, std, a, b, generator)


@originals.obedient
def _no_grad_fill_(tensor: One, val: Any) -> One:
    settle(tensor, val)
    return torch_init._no_grad_fill_(tensor, val)  # type: ignore[no-any-return]


@originals.obedient
def _no_grad_zero_(tensor: One) -> One:
    settle(tensor)
    return torch_init._no_grad_zero_(tensor)  # type: ignore[no-any-return]


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
