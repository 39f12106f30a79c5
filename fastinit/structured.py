"""Weights with a structure that torch.nn.init does not have: scaled identities, orthogonal convolutions."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Generator

from .drawing import flags, originals
from .drawing.regions import Target, local_of
from .drawing.streams import Stream
from .init import eye_, orthogonal_
from .initialisers import matrices

T = TypeVar("T", bound=Target)


def identity_(tensor: T, gain: float = 1.0) -> T:
    """The identity matrix times gain, as TensorFlow 1's `identity_initializer` and Keras's `Identity`.

    Raises torch's `ValueError` for what is no matrix.
    """
    if tensor.ndimension() != 2:
        return eye_(tensor)
    if not originals.is_kept("eye_", local_of(tensor)):
        matrices.eye(tensor, gain)
    return tensor


def delta_orthogonal_(
    tensor: T,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
    layout: str | None = None,
) -> T:
    """A convolution's weight that is orthogonal in the middle of its receptive field and zero around it.

    So that the convolution keeps norms (times gain), at the start of training at any depth (Xiao et al. 2018). As
    `jax.nn.initializers.delta_orthogonal`: `tensor` has 3 to 5 dimensions, torch's [out, in, ...] or those that
    `layout` names ("ssio" is JAX's), and no more input than output features; else `ValueError`. The middle of an even
    size is the place before. The matrix is `orthogonal_`'s of shape (out, in), with its guarantee.
    """
    letters = "oi" + "s" * (tensor.ndimension() - 2) if layout is None else layout
    dimensions = tensor.ndimension()
    if dimensions not in (3, 4, 5) or sorted(letters) != sorted("oi" + "s" * (dimensions - 2)):
        raise ValueError(
            "delta_orthogonal_ needs 3 to 5 dimensions, one of them output features (o in a layout), one input "
            f"features (i), the others the receptive field (s); got shape {tuple(tensor.shape)} and layout {layout!r}"
        )
    field = [d for d, letter in enumerate(letters) if letter == "s"]
    target = tensor.permute(letters.index("o"), letters.index("i"), *field)
    out, into = target.shape[:2]
    if into > out:
        raise ValueError(f"delta_orthogonal_ needs as many output features as input features, got {out} and {into}")
    local = local_of(tensor)
    if originals.is_kept("orthogonal_", local):
        return tensor
    fast = flags.flag_of(local) if fast is None else fast
    matrix = orthogonal_(
        torch.empty(out, into, dtype=local.dtype, device=local.device), gain, generator, fast=fast, stream=stream
    )
    if not local.is_meta:
        matrices.in_the_middle(target, matrix)
    return tensor
