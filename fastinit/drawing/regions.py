"""Which elements of the global tensor a local one holds."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.runs import row_major, unravelled

LARGEST = 2**62  # elements, so that no index leaves 64 bits on its way


class Run(NamedTuple):
    """Neighbouring indices of one dimension of a global tensor."""

    begin: int
    length: int


class Box(NamedTuple):
    """A box of a global tensor, and where a local one has it: from its element `begin` on, in steps of `stride`."""

    begin: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: tuple[int, ...]  # in the global tensor

    def of(self, local: Tensor) -> Tensor:
        """The view of a local tensor that holds the box."""
        if (self.begin, self.shape, self.stride) == (0, local.shape, local.stride()):
            return local
        return local.as_strided(self.shape, self.stride, int(local.storage_offset()) + self.begin)

    def permute(self, order: Sequence[int]) -> Box:
        shape, stride, offset = (tuple(values[d] for d in order) for values in (self.shape, self.stride, self.offset))
        return Box(self.begin, shape, stride, offset)

    def within(self, dimension: int, begin: int, end: int) -> Box:
        """What of the box has indices [begin, end) in this dimension, which are a global tensor of their own."""
        at, length = self.offset[dimension], self.shape[dimension]
        first, last = (min(max(index - at, 0), length) for index in (begin, end))
        shape, offset = list(self.shape), list(self.offset)
        shape[dimension], offset[dimension] = last - first, min(max(at - begin, 0), end - begin)
        return Box(self.begin + first * self.stride[dimension], tuple(shape), self.stride, tuple(offset))


@dataclass(frozen=True, eq=False)
class Shard:
    """A local tensor as boxes of a global one of `shape`; made by `shard`, and of DTensors.

    Has as much of a tensor's interface as fans and error messages need, all of it about the global tensor. `owner`: the
    tensor that the caller gave, where that is not the local one: it has the flags, and torch's functions take it.
    """

    local: Tensor
    shape: torch.Size
    boxes: tuple[Box, ...]
    owner: Tensor | None = None

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
        shape = torch.Size(tuple(self.shape[d] for d in order))
        return replace(self, shape=shape, boxes=tuple(box.permute(order) for box in self.boxes))

    def index_of(self, offset: int) -> tuple[int, ...] | None:
        """The index in the global tensor of the local element so far behind the first one; None if it is in no box."""
        for box in self.boxes:
            steps = [step if size > 1 else 0 for size, step in zip(box.shape, box.stride, strict=True)]
            index = unravelled(offset - box.begin, steps)
            reached = sum(at * step for at, step in zip(index, steps, strict=True))
            if reached == offset - box.begin and all(0 <= at < n for at, n in zip(index, box.shape, strict=True)):
                return tuple(at + start for at, start in zip(index, box.offset, strict=True))
        return None

    @property
    def is_all_of_local(self) -> bool:
        """Whether the local tensor has no element beside the boxes."""
        return sum(math.prod(box.shape) for box in self.boxes) == self.local.numel()


Target = Tensor | Shard


class Part(NamedTuple):
    """A view of the memory that is written, and the box of the global tensor that it holds."""

    memory: Tensor
    offset: tuple[int, ...]

    @property
    def where(self) -> tuple[slice, ...]:
        """The box as an index of the global tensor."""
        return tuple(slice(at, at + size) for at, size in zip(self.offset, self.memory.shape, strict=True))


def local_of(target: Target) -> Tensor:
    """The tensor whose memory is written."""
    return target.local if isinstance(target, Shard) else target


def given_as(target: Target) -> Tensor:
    """The tensor that the caller gave: its flag counts, and what others have noted on it."""
    if isinstance(target, Shard):
        return target.local if target.owner is None else target.owner
    return target


def parts_of(target: Target) -> Iterator[Part]:
    """The boxes of the global tensor whose memory is written, those without elements apart."""
    if isinstance(target, Tensor):
        yield Part(target, (0,) * target.dim())
        return
    for box in target.boxes:
        if 0 not in box.shape:
            yield Part(box.of(target.local), box.offset)


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
    return of_boxes(local, whole, (Box(0, tuple(local.shape), strides_of(local), start),))


def of_boxes(local: Tensor, shape: Sequence[int], boxes: Sequence[Box], owner: Tensor | None = None) -> Shard:
    """A local tensor that holds these boxes. Raises `ValueError` for a global tensor that is too large."""
    whole = torch.Size(shape)
    if math.prod(whole) > LARGEST:
        raise ValueError(f"a global tensor has at most 2**62 elements, got {math.prod(whole)} for {tuple(whole)}")
    return Shard(local, whole, tuple(boxes), owner)


def apart(boxes: Sequence[Box]) -> Sequence[Box]:
    """The boxes. Raises `ValueError` where two of one local tensor have an element in common."""
    for one, other in itertools.combinations((box for box in boxes if 0 not in box.shape), 2):
        places = (unravelled(one.begin, one.stride), unravelled(other.begin, one.stride))
        sides = zip(*places, one.shape, other.shape, strict=True)
        if all(at < there + wide and there < at + long for at, there, long, wide in sides):
            raise ValueError(f"boxes of one tensor lie apart; those at {one.offset} and {other.offset} overlap in it")
    return boxes


def strides_of(local: Tensor) -> tuple[int, ...]:
    """A tensor's strides; of one without any, which nothing draws into, those that it would have."""
    return local.stride() if local.layout is torch.strided else row_major(local.shape)


def product(runs: Sequence[Sequence[Run]], stride: Sequence[int]) -> Iterator[Box]:
    """The boxes of a local tensor that has, in each dimension, these indices of the global one, one after the other."""
    places = []
    for own, step in zip(runs, stride, strict=True):
        ends = itertools.accumulate(run.length for run in own)
        places.append([((end - run.length) * step, run) for end, run in zip(ends, own, strict=True)])
    for chosen in itertools.product(*places):
        begin, shape = sum(at for at, _ in chosen), tuple(run.length for _, run in chosen)
        yield Box(begin, shape, tuple(stride), tuple(run.begin for _, run in chosen))


def between(shape: Sequence[int], begin: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Elements [begin, end) of a tensor in row-major order as boxes, in order: where each begins, and its shape."""
    if begin >= end:
        return
    if not shape:
        yield (), ()
        return
    inner = math.prod(shape[1:])
    row, rest = divmod(begin, inner)
    if rest or end - begin < inner:
        stop = min(end, (row + 1) * inner)
        for offset, size in between(shape[1:], rest, stop - row * inner):
            yield (row, *offset), (1, *size)
    else:
        rows = (end - begin) // inner
        stop = begin + rows * inner
        yield (row, *(0 for _ in shape[1:])), (rows, *shape[1:])
    yield from between(shape, stop, end)


def rows(target: Target, begin: int, end: int) -> Target:
    """The part of a target where the first index of the global tensor lies in [begin, end), as a tensor of its own.

    Of a shard the rows that it holds, perhaps none, as a shard of the global tensor's rows.
    """
    if isinstance(target, Tensor):
        return target[begin:end]
    return cut_to(part_of(target, [(begin, end), *((0, size) for size in target.shape[1:])]))


def part_of(target: Shard, ranges: Sequence[tuple[int, int]], kept: Sequence[int] | None = None) -> Shard:
    """What a shard holds of a part of the global tensor, which is a global tensor of its own.

    The part has these indices [begin, end) in each dimension, and of the dimensions those that are `kept`; None: all.
    """
    boxes = target.boxes
    for dimension, (begin, end) in enumerate(ranges):
        boxes = tuple(part for box in boxes if 0 not in (part := box.within(dimension, begin, end)).shape)
    order = range(len(ranges)) if kept is None else kept
    shape = torch.Size(tuple(ranges[d][1] - ranges[d][0] for d in order))
    return Shard(target.local, shape, tuple(box.permute(order) for box in boxes))


def cut_to(target: Shard) -> Shard:
    """The same with the rows of the local tensor that the boxes lie in, if they are all of these."""
    local, boxes = target.local, target.boxes
    step = local.stride(0) if local.dim() else 0
    if not boxes or step == 0 or step < max(local.stride()):
        return target
    first = min(box.begin // step for box in boxes)
    last = max(box.begin // step + box.shape[0] for box in boxes)
    boxes = tuple(box._replace(begin=box.begin - first * step) for box in boxes)
    part = replace(target, local=local.detach()[first:last], boxes=boxes)
    return part if part.is_all_of_local else target


def first_of(offset: Sequence[int], shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """The place in row-major order of the element at `offset` in a tensor of `shape`, and the steps there."""
    steps = row_major(shape)
    return sum(at * step for at, step in zip(offset, steps, strict=True)), steps
