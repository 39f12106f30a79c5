"""Initialisers for JAX, Flax and whatever calls `init(key, shape, dtype)`, as `jax.nn.initializers` do.

`initializer("he_normal")`, or `he_normal()` with the names and arguments of `fastinit.initialisers` and JAX's own
`in_axis`, `out_axis` and `batch_axis`. Usable as a Flax `kernel_init`, in `jit`,
`vmap` and `eval_shape`, with traced keys. The array has the bits of a torch tensor of the same shape, dtype and stream;
it is drawn on the host.

A key's stream is part of the stream contract. A key is 32-bit words (`jax.random.key_data`): two of threefry2x32, four
of rbg and unsafe_rbg. The first two are the stream's seed, the next two its id, each with the high word first; where
there are two words, the id is 0. So `jax.random.key(7)` and `jax.random.PRNGKey(7)` are `fastinit.Stream(7)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..drawing.streams import Stream
from ..initialisers import values
from .arrays import Array, Axes, drawn, in_layout

# Namesakes of JAX's with another first argument, and JAX's.
OTHERS = {"normal": "stddev", "uniform": "scale"}


@dataclass(frozen=True)
class Initializer:
    """An initialiser in JAX's calling style; made by `initializer`."""

    value: values.Initializer
    in_axis: Axes = -2
    out_axis: Axes = -1
    batch_axis: Axes = ()

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None) -> jax.Array:
        """An array of that shape, drawn from the key's stream.

        `dtype` is any that fastinit draws, JAX's default float if None; as everywhere in JAX, 64 bits need
        jax_enable_x64. With `out_sharding` (a `jax.sharding.Sharding` over automatic axes of a mesh) and a key that is
        not traced, each device's part is drawn on its own, with the bits of the whole array, which need not exist.
        Raises `TypeError` for what is no key, `ValueError` for several keys and for keys of another number of words.
        """
        words = words_of(key)
        shape = tuple(map(int, shape))
        held = np.dtype(jax.dtypes.canonicalize_dtype(float if dtype is None else dtype))
        value = in_layout(self.value, shape, self.in_axis, self.out_axis, self.batch_axis)
        if isinstance(words, jax.core.Tracer):
            result = jax.ShapeDtypeStruct(shape, held)

            def host(batch: Any) -> Array:
                return draw_batch(value, shape, held, np.asarray(batch))

            array: jax.Array = jax.pure_callback(host, result, words, vmap_method="broadcast_all")
            return array if out_sharding is None else jax.lax.with_sharding_constraint(array, out_sharding)
        stream = stream_of(np.asarray(words))
        if out_sharding is None:
            return jax.numpy.asarray(drawn(value, shape, held, stream))

        def part(index: tuple[slice, ...]) -> Array:
            bounds = [axis.indices(size) for axis, size in zip(index, shape, strict=True)]
            local = [stop - start for start, stop, _ in bounds]
            return drawn(value, local, held, stream, shape, [start for start, _, _ in bounds])

        return jax.make_array_from_callback(shape, out_sharding, part)


def initializer(spec: Any, *, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()) -> Initializer:
    """The initialiser that `spec` means (see `fastinit.initialisers.get`) in JAX's calling style.

    The axes are those of a weight's inputs, outputs and of independent weights beside each other, as in
    `jax.nn.initializers.variance_scaling`; all others are the receptive field. A value's own `layout` counts before
    them, and an orthogonal one's columns are the last axis.
    """
    axes = [axis if isinstance(axis, int) else tuple(axis) for axis in (in_axis, out_axis, batch_axis)]
    return Initializer(values.get(spec), *axes)


def words_of(key: Any) -> Any:
    """The words of one key, typed or of the old style, traced or not."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    elif dtype != np.uint32:
        raise TypeError(f"a key is made by jax.random.key or jax.random.PRNGKey, got {key!r}")
    if key.ndim != 1:
        raise ValueError(f"an initialiser takes one key, got keys of shape {key.shape[:-1]}; jax.vmap draws from each")
    if key.shape[0] not in (2, 4):
        raise ValueError(f"keys of 2 and 4 words have a stream, got one of {key.shape[0]}")
    return key


def stream_of(words: Array) -> Stream:
    """The stream of a key's words."""
    numbers = [*map(int, words), 0, 0]
    return Stream(numbers[0] << 32 | numbers[1], numbers[2] << 32 | numbers[3])


def draw_batch(value: values.Initializer, shape: Sequence[int], dtype: np.dtype[Any], words: Array) -> Array:
    """An array for each row of words, which `vmap` may have stacked along more axes in front."""
    if words.ndim == 1:
        return drawn(value, shape, dtype, stream_of(words))
    return np.stack([draw_batch(value, shape, dtype, row) for row in words])


def __getattr__(name: str) -> Callable[..., Initializer]:
    if name not in values.names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def make(
        *arguments: Any, in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = (), **named: Any
    ) -> Initializer:
        if arguments and name in OTHERS:
            raise TypeError(f"{name} takes its arguments by keyword here: JAX's first is {OTHERS[name]}")
        if named.get("column_axis") == 0:
            raise ValueError("0 is torch's default of column_axis, for which the last axis stands here; say -rank")
        return initializer(
            values.factory(name)(*arguments, **named), in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
        )

    make.__name__ = make.__qualname__ = name
    return make
