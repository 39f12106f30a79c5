"""What the frameworks share: weights in their layout, drawn into arrays of NumPy that they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..drawing.batch import at_once
from ..drawing.regions import shard
from ..drawing.streams import Stream
from ..initialisers.values import Initializer, as_dtype

Array = np.ndarray[Any, np.dtype[Any]]
Axes = int | Sequence[int]


def in_layout(
    value: Initializer,
    shape: Sequence[int],
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    vectors: bool = False,
) -> Initializer:
    """The value for a weight of that shape whose axes are these, where it says nothing of its own about them.

    In JAX, Keras and TensorFlow dense weights are [in, out] and convolutions' [..., in, out]: layouts "io", "sio",
    "ssio". The columns of an orthogonal one are its last axis; `column_axis=-rank` says the first.
    With `vectors`, both fans of a vector are its length, and of a scalar 1, as in Keras and TensorFlow.
    """
    rank = len(shape)
    if value.takes("column_axis") and value.argument("column_axis") == 0:
        value = value.replace(column_axis=-1)
    if not value.takes("layout") or value.argument("layout") is not None:
        return value
    if rank >= 2:
        return value.replace(layout=layout_of(rank, in_axis, out_axis, batch_axis))
    if vectors and value.takes("fan_in"):
        length = max(1, *shape, 1)
        return value.replace(**{name: value.argument(name) or length for name in ("fan_in", "fan_out")})
    return value


def layout_of(rank: int, in_axis: Axes, out_axis: Axes, batch_axis: Axes) -> str:
    """The layout with these axes, all others the receptive field. Raises `ValueError` for axes that are not there."""
    letters = ["s"] * rank
    for letter, axes in (("i", in_axis), ("o", out_axis), ("b", batch_axis)):
        for axis in (axes,) if isinstance(axes, int) else axes:
            if not -rank <= axis < rank:
                raise ValueError(f"a weight of {rank} axes has none numbered {axis}")
            letters[axis] = letter
    return "".join(letters)


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's dtype of that name, from ml_dtypes where NumPy has none (bfloat16, float8)."""
    if hasattr(np, name) or name == "bool":
        return np.dtype(name)
    import ml_dtypes  # which JAX, Keras and TensorFlow bring

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def drawn(
    value: Initializer,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    stream: Stream,
    whole: Sequence[int] | None = None,
    offset: Sequence[int] | None = None,
) -> Array:
    """A new array of that shape with what a torch tensor of the same shape and dtype would hold, bit for bit.

    Or with the box at `offset` of an array of shape `whole`.
    """
    array = np.empty(shape, dtype)
    # torch knows NumPy's own dtypes; the others go by their bits.
    bits = array if dtype.isbuiltin == 1 else array.view(f"u{dtype.itemsize}")
    own = as_dtype(dtype)
    assert own is not None
    tensor = torch.from_numpy(bits).view(own)
    at_once(value.fill, tensor if whole is None or offset is None else shard(tensor, whole, offset), stream=stream)
    return array
