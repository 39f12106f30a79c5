"""TensorFlow 1's initialisers, by its names, with its arguments and defaults: `glorot_uniform_initializer(seed=7)`.

Each is called as `init(shape, dtype=None, partition_info=None)` and returns a tensor of TensorFlow (in a graph, an
operation that draws it), an array of NumPy where TensorFlow has not been imported. The bits are those of a torch tensor
of the same shape, dtype and stream, and those of a variable's part (`partition_info`) are the whole variable's.

`seed` in [0, 2^64) gives the same values in every call, those of `fastinit.Stream(seed)`. Without one TensorFlow's own
seed decides (`tf.compat.v1.set_random_seed`, `tf.random.set_seed`), so that calls differ and runs repeat; where there
is none either, the values are new in every call. Weights are [in, out] and [..., in, out]; both fans of a vector are
its length, as in TensorFlow.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..drawing.streams import MASK, Stream
from ..initialisers import values
from .arrays import Array, drawn, dtype_of, in_layout

make = values.factory


class Initializer:
    """The base of all: a subclass has TensorFlow's arguments as fields, and says what they are of fastinit's."""

    seed: int | None = None
    dtype: Any
    means: ClassVar[str]  # the name here, where no argument but the seed and the dtype says more

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        """The initialiser that it means in a dtype."""
        return values.get(self.means)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", name_of(self.dtype))
        if self.seed is not None:
            Stream(self.seed)  # for its errors, and the value's
        self.meaning(dtype_of(self.dtype))

    def __call__(self, shape: Sequence[int], dtype: Any = None, partition_info: Any = None) -> Any:
        """A tensor of that shape; of the initialiser's dtype where none is given."""
        held = dtype_of(self.dtype if dtype is None else name_of(dtype))
        shape = tuple(map(int, shape))
        whole = offset = None
        if partition_info is not None:
            whole, offset = ([*map(int, axes)] for axes in (partition_info.full_shape, partition_info.var_offset))
        value = in_layout(self.meaning(held), whole or shape, vectors=True)
        stream = self._stream()

        def draw() -> Array:
            return drawn(value, shape, held, stream or Stream(secrets.randbits(64)), whole, offset)

        tensorflow: Any = sys.modules.get("tensorflow")
        if tensorflow is None:
            return draw()
        if tensorflow.executing_eagerly():
            return tensorflow.constant(draw())
        tensor = tensorflow.numpy_function(draw, [], tensorflow.as_dtype(held))
        tensor.set_shape(shape)
        return tensor

    def _stream(self) -> Stream | None:
        """The stream of this call; None where no seed decides."""
        if self.seed is not None:
            return Stream(self.seed)
        tensorflow: Any = sys.modules.get("tensorflow")
        seeds = [] if tensorflow is None else [*tensorflow.compat.v1.get_seed(None)]
        return None if None in seeds or not seeds else Stream(*(int(seed) & MASK for seed in seeds))

    def get_config(self) -> dict[str, Any]:
        """The arguments, as JSON holds them."""
        return {name: values.as_lists(values.plain(value)) for name, value in vars(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Initializer:
        """The initialiser of a configuration that `get_config` made."""
        return cls(**config)


def name_of(dtype: Any) -> str:
    """The name of a dtype of TensorFlow, NumPy or torch, or of such a name. Raises `TypeError` where torch has none."""
    return str(values.as_dtype(dtype)).removeprefix("torch.")


@dataclass(frozen=True)
class zeros_initializer(Initializer):
    """Zeros."""

    dtype: Any = "float32"
    means = "zeros"


@dataclass(frozen=True)
class ones_initializer(Initializer):
    """Ones."""

    dtype: Any = "float32"
    means = "ones"


@dataclass(frozen=True)
class constant_initializer(Initializer):
    """One value, or several in row-major order and the last of them again and again.

    With `verify_shape` a call raises `TypeError` for a shape that is not the value's.
    """

    value: Any = 0
    dtype: Any = "float32"
    verify_shape: bool = False

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        return make("constant")(self.value)

    def __call__(self, shape: Sequence[int], dtype: Any = None, partition_info: Any = None) -> Any:
        if self.verify_shape and np.shape(self.value) != tuple(shape):
            raise TypeError(f"constant_initializer has a value of shape {np.shape(self.value)}, not {tuple(shape)}")
        return super().__call__(shape, dtype, partition_info)


@dataclass(frozen=True)
class random_uniform_initializer(Initializer):
    """Uniform on [minval, maxval), maxval 1 if None; in whole-number dtypes all numbers from minval up to maxval."""

    minval: float = 0.0
    maxval: float | None = None
    seed: int | None = None
    dtype: Any = "float32"

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        if dtype.kind not in "iu":
            return make("uniform")(self.minval, 1.0 if self.maxval is None else self.maxval)
        if self.maxval is None:
            raise ValueError(f"random_uniform_initializer needs maxval in {dtype}")
        return make("random")(int(self.minval), int(self.maxval))


@dataclass(frozen=True)
class random_normal_initializer(Initializer):
    """Normal."""

    mean: float = 0.0
    stddev: float = 1.0
    seed: int | None = None
    dtype: Any = "float32"

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        return make("normal")(self.mean, self.stddev)


@dataclass(frozen=True)
class truncated_normal_initializer(Initializer):
    """Normal, given that it falls within two stddev of the mean; what is left has 0.88 of that deviation."""

    mean: float = 0.0
    stddev: float = 1.0
    seed: int | None = None
    dtype: Any = "float32"

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        return make("trunc_normal")(self.mean, self.stddev, -2.0, 2.0, bounds="sigma")


@dataclass(frozen=True)
class uniform_unit_scaling_initializer(Initializer):
    """Uniform on [-b, b) with b = factor sqrt(3 / fan_in)."""

    factor: float = 1.0
    seed: int | None = None
    dtype: Any = "float32"

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        return make("uniform_unit_scaling")(self.factor)


@dataclass(frozen=True)
class variance_scaling_initializer(Initializer):
    """Variance scale / fan; distribution "normal" is "truncated_normal", as in TensorFlow."""

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    seed: int | None = None
    dtype: Any = "float32"

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        law = "truncated_normal" if self.distribution == "normal" else self.distribution
        return make("variance_scaling")(self.scale, self.mode, law)


@dataclass(frozen=True)
class orthogonal_initializer(Initializer):
    """Orthogonal, the last axis for the columns, times gain."""

    gain: float = 1.0
    seed: int | None = None
    dtype: Any = "float32"

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        return make("orthogonal")(self.gain)


@dataclass(frozen=True)
class identity_initializer(Initializer):
    """The identity matrix times gain."""

    gain: float = 1.0
    dtype: Any = "float32"

    def meaning(self, dtype: np.dtype[Any]) -> values.Initializer:
        return make("identity")(self.gain)


@dataclass(frozen=True)
class Scaled(Initializer):
    """The base of those whose scale follows from the fans alone."""

    seed: int | None = None
    dtype: Any = "float32"


@dataclass(frozen=True)
class glorot_uniform_initializer(Scaled):
    """Uniform of variance 2 / (fan_in + fan_out)."""

    means = "glorot_uniform"


@dataclass(frozen=True)
class glorot_normal_initializer(Scaled):
    """Truncated normal of variance 2 / (fan_in + fan_out)."""

    means = "glorot_normal"


@dataclass(frozen=True)
class he_uniform(Scaled):
    """Uniform of variance 2 / fan_in."""

    means = "he_uniform"


@dataclass(frozen=True)
class he_normal(Scaled):
    """Truncated normal of variance 2 / fan_in."""

    means = "he_normal"


@dataclass(frozen=True)
class lecun_uniform(Scaled):
    """Uniform of variance 1 / fan_in."""

    means = "lecun_uniform"


@dataclass(frozen=True)
class lecun_normal(Scaled):
    """Truncated normal of variance 1 / fan_in."""

    means = "lecun_normal"
