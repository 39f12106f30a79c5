"""Where the elements of a tensor stand: in the global tensor's row-major order, and in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The step in row-major order of each dimension of a tensor of `shape`."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))


def unravelled(offset: int, steps: Sequence[int]) -> list[int]:
    """The index of the element that lies `offset` behind the first one, by these steps; 0 where the step is 0."""
    index = [0] * len(steps)
    for dimension in sorted(range(len(steps)), key=lambda dimension: -steps[dimension]):
        if steps[dimension]:
            index[dimension], offset = divmod(offset, steps[dimension])
    return index


class Part(NamedTuple):
    """A part of a tensor, the index of its first element, and the same parts of tensors of its shape."""

    out: torch.Tensor
    first: int
    along: Sequence[torch.Tensor]


def parts(
    out: torch.Tensor, first: int, steps: Sequence[int], limit: int, along: Sequence[torch.Tensor] = ()
) -> Iterator[Part]:
    """`out` cut into parts of at most `limit` elements, each with its own first element; steps stay.

    Cuts the outermost dimension that still can be cut, so that a part's elements are neighbours.
    """
    if out.numel() == 0:
        return
    if out.numel() <= limit:
        yield Part(out, first, along)
        return
    dimension = next(d for d, size in enumerate(out.shape) if size > 1)
    size = out.shape[dimension]
    length = max(1, limit * size // out.numel())
    for start in range(0, size, length):
        part, *cut = (tensor.narrow(dimension, start, min(length, size - start)) for tensor in (out, *along))
        yield from parts(part, first + start * steps[dimension], steps, limit, cut)


class Runs(NamedTuple):
    """A tensor's memory as stretches of neighbours in the global tensor; and the dimensions around them.

    `stride` is in bytes; `outer` has each dimension's count, its step in elements of the stream and in bytes of memory.
    """

    length: int
    stride: int
    outer: list[tuple[int, int, int]]


def runs_of(shape: Sequence[int], strides: Sequence[int], size: int, steps: Sequence[int] | None) -> Runs:
    """Dimensions joined wherever memory and global index both go on from one to the next.

    Of a tensor whose elements have `size` bytes; its strides are in elements, and so are its steps in the global
    tensor's row-major order (its own, if None).
    """
    joined: list[tuple[int, int, int]] = []
    for length, stride, step in zip(shape, strides, row_major(shape) if steps is None else steps, strict=True):
        if length == 1:
            continue
        if joined:
            before, outer_step, outer_stride = joined[-1]
            if outer_step == length * step and outer_stride == length * stride * size:
                joined[-1] = (before * length, step, stride * size)
                continue
        joined.append((length, step, stride * size))
    if joined and joined[-1][1] == 1:
        length, _, stride = joined.pop()
        return Runs(length, stride, joined)
    return Runs(1, size, joined)


def are_neighbours(shape: Sequence[int], steps: Sequence[int]) -> bool:
    """Whether elements that follow each other in row-major order do so in the global tensor."""
    return all(n == 1 or step == own for n, step, own in zip(shape, steps, row_major(shape), strict=True))


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether all elements of a tensor lie in one place."""
    return all(size == 1 or stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether one step leads from each element to the next, in row-major order: perhaps none."""
    return is_shared(tensor) or tensor.is_contiguous()


def in_a_row(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor in one dimension, without a copy."""
    return tensor.as_strided((tensor.numel(),), (0,)) if is_shared(tensor) else tensor.view(-1)


def extent(tensor: Tensor) -> tuple[int, int]:
    """Where the memory that a tensor reaches over begins, and where it ends."""
    start = tensor.data_ptr()
    return start, start + reach(tensor.shape, tensor.stride()) * tensor.element_size()


def reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many elements lie from a tensor's first to its last one, with those between that are not its own."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the memory that two tensors reach over has bytes in common."""
    (start, end), (other, other_end) = extent(a), extent(b)
    return start < other_end and other < end
