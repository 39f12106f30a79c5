"""The eager engine: the arithmetic as torch operations, where there is no compiled engine. Same bits, slower.

Words are held in int64, because torch has hardly any unsigned arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arithmetic.bind import Arithmetic
from ..arithmetic.philox import philox
from ..arithmetic.primitives import horner_by
from ..contract import COLUMNS, Draw, block_size, sample_lanes, width_of
from ..dtypes import FORMATS, uncovered
from ..runs import are_neighbours, parts, row_major
from . import fma as exact

PART = 1 << 17  # elements at a time: forty-odd temporaries of 8 bytes each, some 40 MB
MASK = 0xFFFFFFFF


def doubled(v: Any) -> Any:
    return v.double() if isinstance(v, Tensor) else v


def fma_32(x: Any, y: Any, z: Any) -> Tensor:
    return exact.fma_for_float32(doubled(x), doubled(y), doubled(z), torch).float()  # type: ignore[no-any-return]


def fma_64(x: Any, y: Any, z: Any) -> Tensor:
    return exact.fma(x, y, z, torch)  # type: ignore[no-any-return]


def sqrt_32(x: Tensor) -> Tensor:
    # Not torch.sqrt: some builds call a vector library whose last bit is not always right. A root taken in float64
    # may be wrong there by a bit, but no float32 has a root that near to the middle of two float32.
    return torch.sqrt(x.double()).float()


def sqrt_64(x: Tensor) -> Tensor:
    root = torch.sqrt(x)  # perhaps one off in its last place
    rest = fma_64(-root, root, x)
    up, down = torch.nextafter(root, root + 1), torch.nextafter(root, root - 1)
    # The root is beyond the middle to a neighbour if root^2 is off by more than the gap times root.
    root_or_down = torch.where(rest <= root * (down - root), down, root)
    return torch.where(rest > root * (up - root), up, root_or_down)


def mulhilo(a: Any, b: int) -> tuple[Any, Any]:
    product = a * b
    return (product >> 32) & MASK, product & MASK


def product(a: Any, b: Any) -> tuple[Any, Any]:
    exact = a * b  # of words below 2^32; a carry into the sign of int64 is masked away
    return (exact >> 32) & MASK, exact & MASK


def join(low: Any, high: Any) -> Any:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return low | ((high ^ 0x80000000) - 0x80000000 << 32)
    return ((high ^ 0x80000000) - 0x80000000) * 2**32 + low


def primitives(real: torch.dtype, whole: torch.dtype, fma: Any, sqrt: Any) -> dict[str, Any]:
    def where(condition: Tensor, a: Any, b: Any) -> Tensor:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):  # torch would take its default dtype for both
            a = torch.tensor(a, dtype=real, device=condition.device)
        return torch.where(condition, a, b)

    return {
        "u32": lambda x: x.long() & MASK if isinstance(x, Tensor) else x & MASK,
        "i32": lambda x: ((x ^ 0x80000000) - 0x80000000).int(),
        "real": lambda x: x.to(real),
        "bits": lambda x: x.view(whole),
        "unbits": lambda x: x.view(real),
        "negative": torch.neg,
        "mulhilo": mulhilo,
        "product": product,
        "join": join,
        "fma": fma,
        "sqrt": sqrt,
        "divide": torch.div,
        "ceil": torch.ceil,
        "where": where,
        "minimum": lambda x, y: torch.where(x < y, x, y),
        "maximum": lambda x, y: torch.where(x > y, x, y),
        "horner": horner_by(fma),
    }


ARITHMETIC = {
    32: Arithmetic(primitives(torch.float32, torch.int32, fma_32, sqrt_32), 32),
    64: Arithmetic(primitives(torch.float64, torch.int64, fma_64, sqrt_64), 64),
}


def lanes_at(draw: Draw, counter: Tensor, width: int, each: Sequence[Tensor] = ()) -> list[Tensor]:
    """All samples that these counters draw, a tensor for each lane."""
    stream_low, stream_high = draw.stream_id & MASK, draw.stream_id >> 32
    words = ARITHMETIC[32](philox)(
        counter & MASK, (counter >> 32) & MASK, stream_low, stream_high, draw.seed & MASK, draw.seed >> 32
    )
    return sample_lanes(ARITHMETIC[width], draw.kind, words, (*draw.parameters, *each))


def neighbours(draw: Draw, first: int, count: int, width: int, device: torch.device) -> Tensor:
    """Elements first to first + count - 1: whole blocks, cut to size."""
    size = block_size(width)
    blocks = torch.arange(first // size, (first + count - 1) // size + 1, device=device)
    columns = torch.arange(COLUMNS, device=device)
    lanes = lanes_at(draw, blocks[:, None] * COLUMNS + columns, width)
    return torch.stack(lanes, dim=1).flatten()[first % size :][:count]


def scattered(draw: Draw, indices: Tensor, width: int, each: Sequence[Tensor] = ()) -> Tensor:
    """The elements at any indices, perhaps with parameters of their own: every lane is drawn for each, one is kept."""
    size = block_size(width)
    lanes = lanes_at(draw, indices // size * COLUMNS + indices % COLUMNS, width, each)
    lane = indices % size // COLUMNS
    samples = lanes[0]
    for number in range(1, len(lanes)):
        samples = torch.where(lane == number, lanes[number], samples)
    return samples


def rounded(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Samples as `dtype`, rounded once."""
    if dtype not in FORMATS:
        return samples.long().to(dtype)  # numbers that do not fit wrap
    working = samples.to(torch.float64 if FORMATS[dtype].width == 64 else torch.float32)
    if (rounding := FORMATS[dtype].rounding) is None:
        return working
    pattern = ARITHMETIC[32](rounding)(working)
    return pattern.to(torch.uint8 if dtype.itemsize == 1 else torch.int16).view(dtype)  # type: ignore[no-any-return]


class EagerEngine:
    """Plain torch operations on the tensor's own device."""

    name = "eager"
    compiled = False

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "mps":
            return "it needs float64, which mps does not have"
        return uncovered(dtype)

    def fill(self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        self.fill_each(out, draw, first, steps, ())

    @torch.no_grad()
    def fill_each(
        self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None, parameters: Sequence[Tensor]
    ) -> None:
        width, own = width_of(draw.kind, out.dtype), row_major(out.shape)
        steps = own if steps is None else steps
        for part, start, given in parts(out, first, steps, PART, parameters):
            # A part of several whole rows is one stretch of neighbours if its rows follow each other.
            if not given and are_neighbours(part.shape, steps):
                samples = neighbours(draw, start, part.numel(), width, out.device).view(part.shape)
            else:
                indices = torch.tensor(start, device=out.device)
                for n, step in zip(part.shape, steps, strict=True):
                    indices = indices[..., None] + torch.arange(n, device=out.device) * step
                each = [tensor.to(torch.float64 if width == 64 else torch.float32) for tensor in given]
                samples = scattered(draw, indices, width, each)
            part.copy_(rounded(samples, out.dtype))
