"""Weights with a structure that torch.nn.init does not have: scaled identities, orthogonal convolutions.

Convolutions take `layout`: torch's [out, in, ...] without one; "ssio" is JAX's and Keras's. Matrices are
`orthogonal_`'s, with its guarantee; products of them are the device's own library's.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Generator, Tensor

from .drawing import originals
from .drawing.regions import Target, given_as, local_of
from .drawing.route import TORCH, way
from .drawing.streams import Stream, source
from .init import eye_, orthogonal_
from .initialisers import matrices
from .initialisers.lists import Streams, alone, takes_lists
from .initialisers.operators import draw_whole, whole
from .samplers import bernoulli_

T = TypeVar("T", bound=Target)


@takes_lists
def identity_(tensor: T, gain: float = 1.0) -> T:
    """The identity matrix times gain, as TensorFlow 1's `identity_initializer` and Keras's `Identity`.

    Raises torch's `ValueError` for what is no matrix.
    """
    if tensor.ndimension() != 2:
        return eye_(tensor)
    if not originals.is_kept("eye_", given_as(tensor)):
        matrices.eye(tensor, gain)
    return tensor


@takes_lists
def delta_orthogonal_(
    tensor: T,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    layout: str | None = None,
) -> T:
    """A convolution's weight that is orthogonal in the middle of its receptive field and zero around it.

    So that the convolution keeps norms (times gain), at the start of training at any depth (Xiao et al. 2018). As
    `jax.nn.initializers.delta_orthogonal`: `tensor` has 3 to 5 dimensions, torch's [out, in, ...] or those that
    `layout` names ("ssio" is JAX's), and no more input than output features; else `ValueError`. The middle of an even
    size is the place before. The matrix is `orthogonal_`'s of shape (out, in), with its guarantee.
    """
    stream = alone(stream)
    target = outputs_first("delta_orthogonal_", tensor, layout)
    local = local_of(tensor)
    if local.is_meta or originals.is_kept("orthogonal_", given_as(tensor)):
        return tensor
    by = way(tensor, generator, fast, stream, "orthogonal_")
    if by is TORCH:
        matrices.in_the_middle(target, orthogonal_(middle_of(target), gain, generator, fast=False))
    else:
        draw_whole("delta_orthogonal_", by, target, (gain,), generator, stream)
    return tensor


def draw_middle(target: T, gain: float, generator: Generator | None, stream: Stream | None, compiled: bool) -> T:
    """Draw `delta_orthogonal_` where kernels may."""
    fast, generator, stream = compiled or None, None, source(target, generator, stream)
    matrices.in_the_middle(target, orthogonal_(middle_of(target), gain, generator, fast=fast, stream=stream))
    return target


def middle_of(target: Target) -> Tensor:
    """A new matrix of the shape of its outputs and inputs."""
    local = local_of(target)
    return torch.empty(target.shape[:2], dtype=local.dtype, device=local.device)


whole["delta_orthogonal_"] = draw_middle


@takes_lists
def convolution_orthogonal_(
    tensor: T,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    layout: str | None = None,
) -> T:
    """A convolution's weight that is orthogonal as a whole: its circular convolution keeps norms (times gain).

    TensorFlow 1's `convolutional_orthogonal_1d`, `_2d` and `_3d` (Xiao et al. 2018, algorithm 1): a product of
    convolutions with two taps, each from random projections. `tensor` as in `delta_orthogonal_`, and its receptive
    field has one size; else `ValueError`. Computed in float32 or float64, with the memory of some weights with as
    many input as output features.
    """
    stream = alone(stream)
    target = outputs_first("convolution_orthogonal_", tensor, layout)
    if len(set(target.shape[2:])) > 1:
        raise ValueError(f"convolution_orthogonal_ needs one size of its field, got {tuple(target.shape[2:])}")
    local = local_of(tensor)
    if local.is_meta or target.numel() == 0 or originals.is_kept("orthogonal_", given_as(tensor)):
        return tensor
    by = way(tensor, generator, fast, stream, "orthogonal_")
    if by is TORCH:
        write_kernel(target, gain, lambda function, label, out: function(out, generator=generator, fast=False))
    else:
        draw_whole("convolution_orthogonal_", by, target, (gain,), generator, stream)
    return tensor


def draw_kernel(target: T, gain: float, generator: Generator | None, stream: Stream | None, compiled: bool) -> T:
    """Draw `convolution_orthogonal_` where kernels may: each of its parts from a child of the call's stream."""
    own, fast = source(target, generator, stream), compiled or None
    return write_kernel(target, gain, lambda function, label, out: function(out, stream=own.child(label), fast=fast))


def write_kernel(target: T, gain: float, fill: Callable[[Callable[..., Tensor], str, Tensor], Tensor]) -> T:
    """`fill` has a function fill a tensor from the stream of this label."""
    local = local_of(target)
    dtype = torch.float64 if local.dtype is torch.float64 else torch.float32

    def drawn(function: Callable[..., Tensor], label: str, *shape: int) -> Tensor:
        return fill(function, label, torch.empty(shape, dtype=dtype, device=local.device))

    with torch.no_grad():
        matrices.copy_part(target, gain * orthogonal_kernel(drawn, *target.shape))
    return target


whole["convolution_orthogonal_"] = draw_kernel


def orthogonal_kernel(drawn: Callable[..., Tensor], out: int, into: int, *field: int) -> Tensor:
    """An orthogonal convolution's weight [out, in, ...]; `drawn` has a function fill a new tensor of a shape.

    Two taps P and 1 - P, of a projection P, keep norms in a dimension, and so does one such convolution after the
    other. At last a matrix with orthogonal columns takes the inputs in.
    """
    matrix = drawn(orthogonal_, "matrix", out, into)
    one = torch.eye(out, dtype=matrix.dtype, device=matrix.device)
    kernel = one.reshape(*[1] * len(field), out, out)
    for step in range(field[0] - 1):
        taps = []
        for dimension in range(len(field)):
            columns = drawn(orthogonal_, f"columns {step} {dimension}", out, out)
            columns *= drawn(bernoulli_, f"chosen {step} {dimension}", out)
            projection = columns @ columns.t()
            taps.append((projection, one - projection))
        longer = kernel.new_zeros(*[step + 2] * len(field), out, out)
        for sides in itertools.product((0, 1), repeat=len(field)):
            tap = functools.reduce(torch.matmul, [pair[side] for pair, side in zip(taps, sides, strict=True)])
            longer[tuple(slice(side, side + step + 1) for side in sides)] += kernel @ tap
        kernel = longer
    return (kernel @ matrix).movedim((-2, -1), (0, 1))


def outputs_first(name: str, tensor: T, layout: str | None) -> T:
    """A convolution's weight as [out, in, ...]. Raises `ValueError` for what is none, or more inputs than outputs."""
    dimensions = tensor.ndimension()
    usual = "oi" + "s" * (dimensions - 2)
    letters = usual if layout is None else layout
    if dimensions not in (3, 4, 5) or sorted(letters) != sorted(usual):
        raise ValueError(
            f"{name} needs 3 to 5 dimensions, one of them output features (o in a layout), one input features (i), the "
            f"others the receptive field (s); got shape {tuple(tensor.shape)} and layout {layout!r}"
        )
    field = [d for d, letter in enumerate(letters) if letter == "s"]
    target = tensor.permute(letters.index("o"), letters.index("i"), *field)
    out, into = target.shape[:2]
    if into > out:
        raise ValueError(f"{name} needs as many output features as input features, got {out} and {into}")
    return target  # type: ignore[return-value]
