"""Which elements of the global tensor a local one holds."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.runs import row_major

LARGEST = 2**62  # elements, so that no index leaves 64 bits on its way


@dataclass(frozen=True, eq=False)
class Shard:
    """A local tensor as the box at `offset` of a global tensor of `shape`; made by `shard`.

    Has as much of a tensor's interface as fans and error messages need, all of it about the global tensor.
    """

    local: Tensor
    shape: torch.Size
    offset: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.local.dtype

    @property
    def device(self) -> torch.device:
        return self.local.device

    @property
    def is_meta(self) -> bool:
        return self.local.is_meta

    def dim(self) -> int:
        return len(self.shape)

    ndimension = dim

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def permute(self, *order: int) -> Shard:
        """The same with the dimensions in another order, of the global tensor too."""
        shape, offset = (tuple(values[d] for d in order) for values in (self.shape, self.offset))
        return Shard(self.local.permute(order), torch.Size(shape), offset)

    @property
    def box(self) -> tuple[slice, ...]:
        """The part of the global tensor, as an index."""
        return tuple(slice(at, at + n) for at, n in zip(self.offset, self.local.shape, strict=True))


Target = Tensor | Shard


def local_of(target: Target) -> Tensor:
    """The tensor whose memory is written."""
    return target.local if isinstance(target, Shard) else target


def offset_of(target: Target) -> tuple[int, ...]:
    """Where that memory begins in the global tensor."""
    return target.offset if isinstance(target, Shard) else (0,) * target.dim()


def shard(local: Tensor, shape: Sequence[int], offset: Sequence[int]) -> Shard:
    """`local` as the box that begins at `offset` in a global tensor of `shape`.

    Every initialiser takes the result in place of a tensor: fans come from the global shape, and `local` gets exactly
    what the whole tensor would hold in that box. `local` may lie in memory as it likes and have no
    elements. Raises `ValueError` where the box does not fit, `TypeError` for what are no whole numbers.
    """
    whole, start = torch.Size(map(operator.index, shape)), tuple(map(operator.index, offset))
    if not local.dim() == len(whole) == len(start):
        raise ValueError(
            f"shard needs as many dimensions in the local tensor, shape and offset; "
            f"got {tuple(local.shape)}, {tuple(whole)} and {start}"
        )
    for dimension, (at, length, size) in enumerate(zip(start, local.shape, whole, strict=True)):
        if at < 0 or at + length > size:
            raise ValueError(
                f"a shard lies within its global tensor: dimension {dimension} has {size} elements, "
                f"expected offset >= 0 and offset + length <= {size}, found {at} + {length}"
            )
    if math.prod(whole) > LARGEST:
        raise ValueError(f"a global tensor has at most 2**62 elements, got {math.prod(whole)} for {tuple(whole)}")
    return Shard(local, whole, start)


def rows(target: Target, begin: int, end: int) -> Target:
    """The part of a target where the first index of the global tensor lies in [begin, end), as a tensor of its own.

    Of a shard the rows that it holds, perhaps none, as a shard of the global tensor's rows.
    """
    if isinstance(target, Tensor):
        return target[begin:end]
    at, length = target.offset[0], len(target.local)
    first, last = (min(max(row - at, 0), length) for row in (begin, end))
    offset = (min(max(at - begin, 0), end - begin), *target.offset[1:])
    return Shard(target.local[first:last], torch.Size((end - begin, *target.shape[1:])), offset)


class Box(NamedTuple):
    """A part of a local tensor, and where its elements stand in the global one: see `contract.Engine.fill`."""

    part: Tensor
    first: int
    steps: tuple[int, ...] | None


def region(shard: Shard) -> list[Box]:
    """The boxes of the global tensor that its local one holds; for now there is one."""
    steps = row_major(shard.shape)
    return [Box(shard.local, sum(at * step for at, step in zip(shard.offset, steps, strict=True)), steps)]
