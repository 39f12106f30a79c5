"""The zeros of sparse_: in each column the elements whose words are smallest, among equal words the first rows."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import engines
from .kernels.engine import Draw, Engine
from .kernels.threads import run
from .laws import Words
from .regions import Shard, Target, local_of
from .streams import Stream

BLOCK = 64  # words that a counter's neighbours draw together: narrower strips draw most of them for nothing
# Words that a thread holds at a time, 5 bytes each: 1.3 MB, of a core's cache. Columns of more rows take up to LONG.
PIECE, LONG = 1 << 18, 1 << 20
DEVICE_PART = 1 << 20  # elements whose order another device finds at a time; some 20 bytes each
LAST = np.uint32(0xFFFFFFFF)
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    if local.is_cpu:
        zero_on_cpu(local, top, left, zeros, words)
    else:
        zero_by_order(local, top, left, zeros, words)


def zero_by_order(local: Tensor, top: int, left: int, zeros: int, words: Drawn) -> None:
    """With torch operations alone: the definition, a stable sort."""
    height, width = local.shape
    step = max(1, DEVICE_PART // words.rows)
    for start in range(0, width, step):
        part = local[:, start : start + step]
        # Whole columns, whatever rows the shard has: which words of a column are smallest hangs on all of them.
        strip = torch.empty(words.rows, part.shape[1], dtype=torch.int32, device=local.device)
        words.box(strip, 0, left + start)
        order = (strip ^ -(1 << 31)).t().argsort(dim=1, stable=True)  # the sign bit turned: words as unsigned numbers
        chosen = torch.zeros(part.shape[1], words.rows, dtype=torch.bool, device=local.device)
        chosen.scatter_(1, order[:, :zeros], True)
        with torch.no_grad():
            # torch fills no float8 by a mask; the bits of zero are the same.
            part.view(SAME_SIZE[part.dtype.itemsize]).masked_fill_(chosen[:, top : top + height].t(), 0)


class Scratch(threading.local):
    """A thread's own memory, for as long as the job lasts: fresh pages cost as much as drawing into them."""

    def __init__(self, size: int) -> None:
        with torch.inference_mode(False):
            self.words = torch.empty(size, dtype=torch.int32, device="cpu")
            self.kept = torch.empty(size, dtype=torch.uint8, device="cpu")


@dataclass
class Choice:
    """What is chosen: the words below each column's `bound`; and a few more, where words next to it are equal."""

    bound: NDArray[np.uint32]
    more: list[tuple[int, int]] = field(default_factory=list)  # (row in the global tensor, column in the local one)


def unsigned(words: Tensor) -> NDArray[np.uint32]:
    return words.numpy().view(np.uint32)


def choose_strip(choice: Choice, start: int, strip: Tensor, zeros: int, words: Drawn, left: int) -> None:
    """The choice for the columns that begin at `start`; `strip` is room for them, a column a row.

    NumPy selects with vector instructions: 0.5 ns a word on one core with AVX-512 (its sort 2.3 ns, torch's sort on two
    cores 57 ns).
    """
    words.box(strip.t(), 0, left + start)
    ordered = unsigned(strip)
    ordered.partition(zeros - 1, axis=1)
    greatest = ordered[:, zeros - 1]
    # A bound is above the greatest chosen word, unless not all that equal it are chosen or there is no number above.
    unclear = (ordered[:, zeros:].min(axis=1) == greatest) | (greatest == LAST)
    choice.bound[start : start + len(greatest)] = greatest + ~unclear
    for column in np.flatnonzero(unclear).tolist():
        anew = words.box(torch.empty(words.rows, 1, dtype=torch.int32, device="cpu"), 0, left + start + column)
        here = unsigned(anew[:, 0])
        equal = np.flatnonzero(here == greatest[column])
        count = zeros - np.count_nonzero(here < greatest[column])
        choice.more += [(row, start + column) for row in equal[:count].tolist()]


def zero_on_cpu(local: Tensor, top: int, left: int, zeros: int, words: Drawn) -> None:
    """Twice over the words, by columns to find the bounds and by rows to zero what lies below.

    Drawing them again needs no memory for a mask. Strips hold 256 bytes of a row: zeroing there takes 18 ms of one core
    for 4096 x 4096 float32, zeroing whole rows 10 ms.
    """
    height, width = local.shape
    bits = local.detach().view(SAME_SIZE[local.dtype.itemsize]).numpy().view(UNSIGNED[local.dtype.itemsize])
    choice = Choice(np.empty(width, np.uint32))
    # An engine that is made of torch's operations has torch's threads already.
    threads = torch.get_num_threads() if words.engine.compiled else 1
    blocks = max(BLOCK, PIECE // words.rows // BLOCK * BLOCK)
    step = min(blocks, max(1, LONG // words.rows), width)
    deep = min(max(1, PIECE // width), height)
    scratch = Scratch(max(words.rows * step, deep * width))

    def choose_piece(number: int) -> None:
        start = number * step
        count = min(step, width - start)
        choose_strip(choice, start, scratch.words[: words.rows * count].view(count, -1), zeros, words, left)

    def zero_piece(number: int) -> None:
        start = number * deep
        band = bits[start : start + deep]
        drawn, kept = (room[: band.size].view(band.shape) for room in (scratch.words, scratch.kept))
        np.greater_equal(unsigned(words.box(drawn, top + start, left)), choice.bound, out=kept.numpy().view(np.bool_))
        np.multiply(band, kept.numpy(), out=band)

    run(choose_piece, -(-width // step), threads)
    run(zero_piece, -(-height // deep), threads)
    for row, column in choice.more:
        if top <= row < top + height:
            bits[row - top, column] = 0
