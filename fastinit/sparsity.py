"""The zeros of sparse_: in each column the elements whose words are smallest, among equal words the first rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import engines
from .kernels.engine import Draw, Engine
from .kernels.forms import SAME_SIZE
from .laws import Words
from .regions import Shard, Target, local_of
from .streams import Stream

PART = 1 << 20  # elements in whose columns the zeros are found at a time; some 10 bytes each, on other devices 30
# Up to so many elements, or so many columns of up to PART, selecting by NumPy is faster than to call the kernels, which
# take 64 columns at a time: 4096 x 1 takes 0.03 against 0.17 ms.
FEW, FEW_COLUMNS = 1 << 12, 2


@dataclass
class Drawn:
    """The words that decide: those of a global tensor of `rows` x `columns`, any box of them."""

    engine: Engine
    stream: Stream
    rows: int
    columns: int
    fast: bool | None = None

    def box(self, out: Tensor, row: int, column: int) -> Tensor:
        draw = Draw("words", (), self.stream.seed, self.stream.id)
        first = row * self.columns + column
        self.engine = engines.draw_into(self.engine, out, self.fast, draw, first, (self.columns, 1))
        return out


def zero_smallest(target: Target, zeros: int, fast: bool | None, stream: Stream) -> None:
    """Set to zero the `zeros` elements of each column with the smallest words of `stream`; `target` is a matrix."""
    local = local_of(target)
    rows, columns = target.shape
    top, left = target.offset if isinstance(target, Shard) else (0, 0)
    if zeros == 0 or local.numel() == 0:
        return
    with torch.no_grad():
        bits = local.view(SAME_SIZE[local.element_size()])  # torch fills no float8 by a mask, NumPy knows none
        if zeros == rows:
            bits.zero_()
            return
        like = torch.empty(0, dtype=torch.int32, device=local.device)
        engine = engines.choose(like, fast or None, Words().parameters(like.dtype))
        words = Drawn(engine, stream, rows, columns, fast or None)
        width = local.shape[1]
        few = rows * width <= FEW or (width <= FEW_COLUMNS and rows <= PART)
        if not local.is_cpu:
            zero_by_order(bits, top, left, zeros, words)
        elif few or not zero_by_kernels(bits, top, left, zeros, words):
            zero_by_partition(bits, top, left, zeros, words)


def zero_by_kernels(bits: Tensor, top: int, left: int, zeros: int, words: Drawn) -> bool:
    """Whether there are kernels that can."""
    if words.engine is not engines.load("cpu"):
        return False
    from .kernels.smallest import Smallest

    try:
        place = (words.rows, words.columns, top, left, words.stream.seed, words.stream.id)
        smallest = Smallest(bits, zeros, *place)
    except ImportError as error:
        like = torch.empty(0, dtype=torch.int32, device="cpu")
        words.engine = engines.without_kernel(like, words.fast, error)
        return False
    smallest.clear()
    return True


def zero_by_partition(bits: Tensor, top: int, left: int, zeros: int, words: Drawn) -> None:
    """On the CPU, for any engine. NumPy selects with vector instructions: 0.5 ns a word on one core with AVX-512.

    Torch's operations would start threads, for which a forked child would wait for ever.
    """
    step = max(1, PART // words.rows)
    for start in range(0, bits.shape[1], step):
        part = bits[:, start : start + step]
        # Whole columns, whatever rows the shard has: which words of a column are smallest hangs on all of them.
        strip = torch.empty(part.shape[1], words.rows, dtype=torch.int32, device="cpu")
        words.box(strip.t(), 0, left + start)
        numbers = strip.numpy().view(np.uint32)
        greatest = np.partition(numbers, zeros - 1, axis=1)[:, zeros - 1 : zeros]
        chosen = numbers <= greatest
        surplus = np.count_nonzero(chosen, axis=1) - zeros
        for column in np.flatnonzero(surplus).tolist():
            equal = np.flatnonzero(numbers[column] == greatest[column])
            chosen[column, equal[-surplus[column] :]] = False
        np.copyto(part.numpy(), 0, where=chosen[:, top : top + part.shape[0]].T)


def zero_by_order(bits: Tensor, top: int, left: int, zeros: int, words: Drawn) -> None:
    """The definition, on any device and for any engine: a stable sort."""
    step = max(1, PART // words.rows)
    for start in range(0, bits.shape[1], step):
        part = bits[:, start : start + step]
        strip = torch.empty(words.rows, part.shape[1], dtype=torch.int32, device=bits.device)
        words.box(strip, 0, left + start)
        order = (strip ^ -(1 << 31)).t().argsort(dim=1, stable=True)  # the sign bit turned: words as unsigned numbers
        chosen = torch.zeros(part.shape[1], words.rows, dtype=torch.bool, device=bits.device)
        chosen.scatter_(1, order[:, :zeros], True)
        part.masked_fill_(chosen[:, top : top + part.shape[0]].t(), 0)
