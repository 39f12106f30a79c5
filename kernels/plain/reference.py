"""The reference engine: the arithmetic over NumPy arrays, for tests and for reading. Slow and plain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arithmetic.bind import Arithmetic
from ..arithmetic.philox import philox
from ..arithmetic.primitives import horner_by
from ..contract import COLUMNS, Draw, block_size, sample_lanes, width_of
from ..dtypes import FORMATS, uncovered
from ..runs import parts, row_major
from . import fma as exact

Array = NDArray[Any]
PART = 1 << 18  # elements at a time: some forty temporaries of 8 bytes each


def fma_32(x: Any, y: Any, z: Any) -> Array:
    x, y, z = (np.asarray(v, np.float32).astype(np.float64) for v in (x, y, z))
    return exact.fma_for_float32(x, y, z, np).astype(np.float32)  # type: ignore[no-any-return]


def fma_64(x: Any, y: Any, z: Any) -> Array:
    x, y, z = (np.asarray(v, np.float64) for v in (x, y, z))
    return exact.fma(x, y, z, np)  # type: ignore[no-any-return]


def mulhilo(a: Array, b: int) -> tuple[Array, Array]:
    product = a.astype(np.uint64) * np.uint64(b)
    return (product >> np.uint64(32)).astype(np.uint32), product.astype(np.uint32)


def product(a: Any, b: Any) -> tuple[Array, Array]:
    exact = np.asarray(a, np.uint64) * np.asarray(b, np.uint64)
    return (exact >> np.uint64(32)).astype(np.uint32), exact.astype(np.uint32)


def join(low: Any, high: Any) -> Array:
    return (np.asarray(high, np.uint64) << np.uint64(32) | np.asarray(low, np.uint64)).view(np.int64)


def primitives(real: type[np.floating], whole: type[np.signedinteger], fma: Any) -> dict[str, Any]:
    return {
        "u32": lambda x: np.asarray(x).astype(np.uint32),
        "i32": lambda x: np.asarray(x).astype(np.uint32).view(np.int32),
        "real": lambda x: np.asarray(x).astype(real),
        "bits": lambda x: np.asarray(x).view(whole),
        "unbits": lambda x: np.asarray(x).astype(whole).view(real),
        "negative": np.negative,
        "mulhilo": mulhilo,
        "product": product,
        "join": join,
        "fma": fma,
        "sqrt": np.sqrt,
        "divide": np.divide,
        "ceil": np.ceil,
        "where": np.where,
        "minimum": lambda x, y: np.where(x < y, x, y),
        "maximum": lambda x, y: np.where(x > y, x, y),
        "horner": horner_by(fma),
    }


ARITHMETIC = {
    32: Arithmetic(primitives(np.float32, np.int32, fma_32), 32),
    64: Arithmetic(primitives(np.float64, np.int64, fma_64), 64),
}


def values_at(draw: Draw, indices: NDArray[np.int64], width: int, each: Sequence[Array] = ()) -> Array:
    """The draw's elements at `indices`, in the working precision: the stream contract as code.

    `each` lists the elements' own parameters, where they have some.
    """
    block, within = np.divmod(indices, block_size(width))
    lane, column = np.divmod(within, COLUMNS)
    counter = (block * COLUMNS + column).astype(np.uint64)

    def word(value: Any) -> Array:
        return np.broadcast_to(np.asarray(value, np.uint64).astype(np.uint32), counter.shape)

    words = ARITHMETIC[32](philox)(
        word(counter), word(counter >> np.uint64(32)), word(draw.stream_id & 0xFFFFFFFF), word(draw.stream_id >> 32),
        word(draw.seed & 0xFFFFFFFF), word(draw.seed >> 32),
    )  # fmt: skip
    dtype = np.float64 if width == 64 else np.float32
    parameters = [p if isinstance(p, int) else dtype(p) for p in draw.parameters] + [p.astype(dtype) for p in each]
    lanes = sample_lanes(ARITHMETIC[width], draw.kind, words, parameters)
    return np.choose(lane, lanes)


def rounded(samples: Array, dtype: torch.dtype) -> torch.Tensor:
    """Samples as a tensor of `dtype`, rounded once."""
    if dtype not in FORMATS:
        whole = samples.astype(np.int64).astype(f"i{dtype.itemsize}")  # what is too great wraps
        return torch.from_numpy(whole).view(dtype)
    working = samples.astype(np.float64 if FORMATS[dtype].width == 64 else np.float32)
    if (rounding := FORMATS[dtype].rounding) is None:
        return torch.from_numpy(working)
    pattern = ARITHMETIC[32](rounding)(working)
    return torch.from_numpy(pattern.astype(f"u{dtype.itemsize}")).view(dtype)


class ReferenceEngine:
    """NumPy, any device: what every other engine is compared with."""

    name = "reference"
    compiled = False

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return uncovered(dtype)

    def fill(self, out: torch.Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        self.fill_each(out, draw, first, steps, ())

    @torch.no_grad()
    def fill_each(
        self, out: torch.Tensor, draw: Draw, first: int, steps: Sequence[int] | None, parameters: Sequence[torch.Tensor]
    ) -> None:
        steps = row_major(out.shape) if steps is None else steps
        with np.errstate(over="ignore", invalid="ignore"):  # words wrap, and samples may overflow
            for part, start, given in parts(out, first, steps, PART, parameters):
                axes = [np.arange(n) * step for n, step in zip(part.shape, steps, strict=True)]
                indices = np.array([start])
                for axis in axes:
                    indices = indices[..., None] + axis
                each = [tensor.double().cpu().numpy() for tensor in given]
                samples = values_at(draw, indices.astype(np.int64), width_of(draw.kind, out.dtype), each)
                part.copy_(rounded(samples, out.dtype).view(part.shape))
