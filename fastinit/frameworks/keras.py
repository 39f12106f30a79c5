"""Initialisers for Keras 3, with any of its backends.

`Dense(64, kernel_initializer=Initializer("he_normal", seed=7))`. The tensor has the bits of a torch tensor of the same
shape, dtype and stream. Import this module before a model that uses it is loaded: Keras finds the class by its name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from ..drawing.streams import MASK, Stream
from ..initialisers import values
from .arrays import drawn, dtype_of, in_layout


@keras.saving.register_keras_serializable(package="fastinit")
class Initializer(keras.initializers.Initializer):  # type: ignore[misc]
    """An initialiser of fastinit as one of Keras's; `value` is whatever `fastinit.initialisers.get` takes.

    `seed` means what it means in Keras: a whole number in [0, 2^64) gives the same values in every call, those of
    `fastinit.Stream(seed)`; a `keras.random.SeedGenerator` other values each time (its two words are the stream's seed
    and id); None a seed drawn now by Python's `random`, which `keras.utils.set_random_seed` sets and nobody saves.
    In a traced function a `SeedGenerator` has no number to give, and the call raises what its backend raises. Fans are
    Keras's: weights are [in, out] and [..., in, out], both fans of a vector its length.
    """

    def __init__(self, value: Any, seed: Any = None) -> None:
        self.value = values.get(value)
        self._given = keras.saving.deserialize_keras_object(seed) if isinstance(seed, Mapping) else seed
        own = random.getrandbits(64) if self._given is None else self._given
        self.seed = own if isinstance(own, keras.random.SeedGenerator) else Stream(own).seed

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """A tensor of Keras's backend; of `keras.config.floatx()` where no dtype is given."""
        shape = tuple(map(int, shape))
        name = keras.backend.standardize_dtype(dtype)
        value = in_layout(self.value, shape, vectors=True)
        return keras.ops.convert_to_tensor(drawn(value, shape, dtype_of(name), self._stream()), dtype=name)

    def _stream(self) -> Stream:
        if not isinstance(self.seed, keras.random.SeedGenerator):
            return Stream(self.seed)
        return Stream(*(int(word) & MASK for word in self.seed.next()))

    def get_config(self) -> dict[str, Any]:
        return {"value": self.value.to_config(), "seed": keras.saving.serialize_keras_object(self._given)}

    def __repr__(self) -> str:
        return f"Initializer({self.value!r}, seed={self._given!r})"
