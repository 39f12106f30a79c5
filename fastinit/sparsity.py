"""The zeros of sparse_: in each column the elements whose words are smallest, among equal words the first rows."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import engines
from .kernels.engine import Draw, Engine
from .kernels.forms import ABREAST, CLEAR, COLLECT, SAME_SIZE
from .kernels.threads import run
from .laws import Words
from .regions import Shard, Target, local_of
from .streams import Stream

PIECE = 1 << 18  # words that a thread draws in one go; some 0.1 ms
STRIP = 256  # columns whose bounds a thread finds at a time, at least
PART = 1 << 20  # elements whose order is found at a time by torch's operations; some 30 bytes each
# How far around where it is expected the last chosen word of a column is looked for, in standard deviations and in
# words: one column of ten thousand has it elsewhere.
DEVIATIONS, WORDS_AROUND = 4.0, 8.0
LAST = 0xFFFFFFFF


@dataclass
class Drawn:
    """The words that decide: those of a global tensor of `rows` x `columns`, any box of them."""

    engine: Engine
    stream: Stream
    rows: int
    columns: int

    def box(self, out: Tensor, row: int, column: int) -> Tensor:
        draw = Draw("words", (), self.stream.seed, self.stream.id)
        self.engine.fill(out, draw, row * self.columns + column, (self.columns, 1))
        return out


def zero_smallest(target: Target, zeros: int, fast: bool | None, stream: Stream) -> None:
    """Set to zero the `zeros` elements of each column with the smallest words of `stream`; `target` is a matrix."""
    local = local_of(target)
    rows, columns = target.shape
    top, left = target.offset if isinstance(target, Shard) else (0, 0)
    if zeros == 0 or local.numel() == 0:
        return
    if zeros == rows:
        with torch.no_grad():
            local.view(SAME_SIZE[local.dtype.itemsize]).zero_()
        return
    like = torch.empty(0, dtype=torch.int32, device=local.device)
    words = Drawn(engines.choose(like, fast or None, Words().parameters(like.dtype)), stream, rows, columns)
    if words.engine is engines.load("cpu"):
        try:
            zero_by_kernels(local, top, left, zeros, words)
            return
        except ImportError as error:  # what was zeroed until then is zeroed again
            words.engine = engines.without_kernel(like, fast or None, error)
    zero_by_order(local, top, left, zeros, words)


# --- with torch's operations alone -------------------------------------------------------------


def order_of(words: Tensor) -> Tensor:
    """Numbers in the order in which a column's elements become zeros, all different: by word, then by row."""
    return ((words.long() & LAST) << 31) + torch.arange(len(words), device=words.device)[:, None]


def last_chosen(order: Tensor, zeros: int) -> Tensor:
    """In each column the number `zeros` in order."""
    order = order.t().contiguous()
    if order.is_cpu:  # 8 ns a word on two cores; sorting takes 40
        return order.kthvalue(zeros, dim=1).values
    return order.sort(dim=1).values[:, zeros - 1]  # GPUs refuse kthvalue under deterministic algorithms


def zero_by_order(local: Tensor, top: int, left: int, zeros: int, words: Drawn) -> None:
    """The definition, on any device and for any engine."""
    height, width = local.shape
    step = max(1, PART // words.rows)
    for start in range(0, width, step):
        part = local[:, start : start + step]
        # Whole columns, whatever rows the shard has: which words of a column are smallest hangs on all of them.
        strip = torch.empty(words.rows, part.shape[1], dtype=torch.int32, device=local.device)
        order = order_of(words.box(strip, 0, left + start))
        chosen = order <= last_chosen(order, zeros)
        with torch.no_grad():
            # torch fills no float8 by a mask; the bits of zero are the same.
            part.view(SAME_SIZE[part.dtype.itemsize]).masked_fill_(chosen[top : top + height], 0)


# --- with kernels of the CPU engine ------------------------------------------------------------


class Window(NamedTuple):
    """The words among which a column's last chosen one is looked for; and room for as many, and one more."""

    least: int
    greatest: int
    room: int


def window(rows: int, zeros: int) -> Window:
    """Where the word number `zeros` in order of `rows` most often lies: words are uniform, so that order tells size."""
    around = DEVIATIONS * math.sqrt(zeros * (1 - zeros / rows)) + WORDS_AROUND
    least = max(0, int((zeros - around) / rows * 2**32))
    greatest = min(LAST - 1, int((zeros + around) / rows * 2**32))  # LAST is what stands behind a column's words
    expected = (greatest - least) * rows / 2**32
    return Window(least, greatest, min(rows, int(expected + 5 * math.sqrt(expected) + 8)) + 1)


class Scratch(threading.local):
    """A thread's own memory, for as long as the job lasts."""

    def __init__(self, columns: int, room: int) -> None:
        self.counts = new_words(2, columns + 2 * ABREAST)
        self.places = new_words(columns, room)


def new_words(*shape: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.int32, device="cpu")


def unsigned(words: Tensor) -> NDArray[np.uint32]:
    return words.numpy().view(np.uint32)


@dataclass
class Choice:
    """What is chosen: in each column the words below its bound, and a few `more` elements, where others with the same
    word as the last are not chosen."""

    zeros: int
    bounds: NDArray[np.uint32]
    column: Callable[[int], Tensor]  # draws all words of a column, in order
    more: list[tuple[int, int]] = field(default_factory=list)  # (row in the global tensor, column in the local one)

    def settle(self, start: int, below: NDArray[Any], inside: NDArray[Any], places: NDArray[np.uint32]) -> None:
        """Choose in the columns from `start` on. Of each are given: how many words lie below the window, how many
        inside, and these in any order with LAST behind them; `places` is left in order."""
        places.sort(axis=1)  # with vector instructions, some 2 ns a word
        last = self.zeros - 1 - below
        found = (last >= 0) & (last < inside) & (inside < places.shape[1])
        last = np.where(found, last, 0)
        columns = np.arange(len(places))
        greatest = places[columns, last]
        self.bounds[start : start + len(places)] = greatest + 1
        for k in np.flatnonzero(~found | (greatest == places[columns, last + 1])).tolist():
            self.settle_exactly(start + k)

    def settle_exactly(self, column: int) -> None:
        order = order_of(self.column(column)[:, None])
        last = last_chosen(order, self.zeros)
        bound = last >> 31
        self.bounds[column] = bound.item()
        equal = ((order >> 31) == bound) & (order <= last)
        self.more += [(row, column) for row in equal[:, 0].nonzero()[:, 0].tolist()]


def zero_by_kernels(local: Tensor, top: int, left: int, zeros: int, words: Drawn) -> None:
    """Twice over the words: to find the columns' bounds, and to zero what lies below them.

    The first time only words near the expected bound are kept, 4 % for a tenth of 4096 rows. To draw all again takes as
    long as reading a mask of bytes.
    """
    from .kernels.cpu import kernel

    collect, clear = kernel(*COLLECT), kernel(*CLEAR[local.dtype.itemsize])
    height, width = local.shape
    rows, columns, seed, id = words.rows, words.columns, words.stream.seed, words.stream.id
    least, greatest, room = window(rows, zeros)
    step, deep = min(max(STRIP, PIECE // rows // ABREAST * ABREAST), width), max(1, PIECE // width)
    scratch = Scratch(step, room)
    bounds = new_words(width + 2 * ABREAST)
    down, across = (stride * local.element_size() for stride in local.stride())

    def look(counts: Tensor, places: Tensor, start: int, count: int, least: int, greatest: int) -> None:
        """Collect, in `count` columns from `start` on, the words from `least` to `greatest`."""
        below, inside = counts[0, ABREAST:].data_ptr(), counts[1, ABREAST:].data_ptr()
        range_and_room = (least, greatest, below, inside, places.data_ptr(), places.shape[1])
        tall = PIECE // count
        for row in range(0, rows, tall):
            first = row * columns + left + start
            collect(first, columns, min(tall, rows - row), count, seed, id, *range_and_room)

    def column(number: int) -> Tensor:
        places = new_words(1, rows)
        look(new_words(2, 1 + 2 * ABREAST), places, number, 1, 0, LAST)
        return places[0]

    choice = Choice(zeros, unsigned(bounds[ABREAST:]), column)

    def choose_strip(number: int) -> None:
        start = number * step
        count = min(step, width - start)
        scratch.counts.numpy().fill(0)  # by NumPy: torch would wake threads of its own
        unsigned(scratch.places).fill(LAST)
        look(scratch.counts, scratch.places, start, count, least, greatest)
        below, inside = scratch.counts[:, ABREAST : ABREAST + count].numpy()
        choice.settle(start, below, inside, unsigned(scratch.places[:count]))

    def clear_band(number: int) -> None:
        start = number * deep
        first, place = (top + start) * columns + left, local.data_ptr() + start * down
        from_bound = bounds[ABREAST:].data_ptr()
        clear(first, columns, min(deep, height - start), width, seed, id, from_bound, place, down, across)

    threads = torch.get_num_threads()
    run(choose_strip, -(-width // step), threads)
    run(clear_band, -(-height // deep), threads)
    bits = local.detach().view(SAME_SIZE[local.dtype.itemsize])
    for row, number in choice.more:
        if top <= row < top + height:
            bits[row - top, number] = 0
