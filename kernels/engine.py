"""What every engine has in common: what it is asked for, what it answers, and how a block is laid out."""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

# Sixteen neighbours come from sixteen neighbouring counters; a block is all that these sixteen draw.
COLUMNS = 16
GPUS = ("cuda", "xpu")  # ROCm's devices call themselves cuda, too
# Kinds whose last argument is a series: how many arguments stand before it.
SERIES_AFTER = {"truncated_narrow": 3, "truncated_tail": 6}
# Kinds whose first parameter is compared with a word, and so is an int.
WHOLE_NUMBER_FIRST = {"truncated_central", "truncated_wide"}


class Draw(NamedTuple):
    """A law of the arithmetic with its parameters, and the stream that its random words come from."""

    kind: str
    parameters: tuple[float, ...]
    seed: int
    id: int


class Engine(Protocol):
    """One way to run the arithmetic."""

    name: str
    compiled: bool

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this engine cannot fill such a tensor, as the end of a sentence; None if it can."""

    def fill(self, out: torch.Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        """Write into `out[n]` the draw's element `first + sum(n[d] * steps[d])`, for every index n.

        Steps of None are those of `out`'s own shape in row-major order. `out` may lie in memory as it likes.
        """


class SettingUp(threading.local):
    """`with setting_up.lock:` around what must not begin anew in its own middle: importing an engine or compiling.

    A signal handler or a finaliser may fill a tensor there, and would find modules and Numba's tables half made.
    Each thread has a lock of its own, which keeps count whatever exception comes in between.
    """

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()

    @property
    def is_on(self) -> bool:
        """Whether the calling thread is in the middle of it."""
        return bool(self.lock._is_owned())


setting_up = SettingUp()


def lanes_in_block(width: int) -> int:
    """How many elements one counter draws: one for each word, or for each pair of words."""
    return 128 // width


def block_size(width: int) -> int:
    """How many neighbouring elements sixteen counters draw together."""
    return COLUMNS * lanes_in_block(width)


def sample_lanes(
    bound: types.SimpleNamespace, width: int, kind: str, words: Sequence[Any], parameters: Sequence[Any]
) -> list[Any]:
    """The samples that one counter's four words give, one a lane, in the working precision."""
    law = getattr(bound, kind)
    head = SERIES_AFTER.get(kind)
    arguments = tuple(parameters) if head is None else (*parameters[:head], tuple(parameters[head:]))
    draws = [(word, word) for word in words] if width == 32 else [(words[0], words[1]), (words[2], words[3])]
    if kind == "normal":
        pairs = zip(draws[::2], draws[1::2], strict=True)
        return [sample for a, b in pairs for sample in law(*a, *b, *arguments)]
    return [law(low, high, *arguments) for low, high in draws]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The step in row-major order of each dimension of a tensor of `shape`."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))


def parts(out: torch.Tensor, first: int, steps: Sequence[int], limit: int) -> Iterator[tuple[torch.Tensor, int]]:
    """`out` cut into parts of at most `limit` elements, each with its own first element; steps stay.

    Cuts the outermost dimension that still can be cut, so that a part's elements are neighbours.
    """
    if out.numel() == 0:
        return
    if out.numel() <= limit:
        yield out, first
        return
    dimension = next(d for d, size in enumerate(out.shape) if size > 1)
    size = out.shape[dimension]
    length = max(1, limit * size // out.numel())
    for start in range(0, size, length):
        part = out.narrow(dimension, start, min(length, size - start))
        yield from parts(part, first + start * steps[dimension], steps, limit)


class Runs(NamedTuple):
    """A tensor's memory as stretches of neighbours in the global tensor; and the dimensions around them.

    `stride` is in bytes; `outer` has each dimension's count, its step in elements of the stream and in bytes of memory.
    """

    length: int
    stride: int
    outer: list[tuple[int, int, int]]


def runs_of(out: torch.Tensor, steps: Sequence[int]) -> Runs:
    """Dimensions joined wherever memory and global index both go on from one to the next."""
    size = out.element_size()
    joined: list[tuple[int, int, int]] = []
    for length, stride, step in zip(out.shape, out.stride(), steps, strict=True):
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
