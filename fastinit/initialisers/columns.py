"""The zeros of sparse_: in each column the elements whose words are smallest, among equal words the first rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..drawing import engines
from ..drawing.fill import draw_into
from ..drawing.regions import Target, local_of, parts_of
from ..drawing.streams import Stream
from ..kernels.contract import Draw, Engine
from ..kernels.cpu.pool import run
from ..laws import Words

PART = 1 << 19  # elements in whose columns the zeros are found at a time; some 10 bytes each, on other devices 30
# Integers of each size in bytes: only the bits of an element matter here, and NumPy knows no float8.
SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Drawn:
    """The words that decide: those of a global tensor of `rows` x `columns`, any box of them."""

    engine: Engine
    stream: Stream
    rows: int
    columns: int
    compiled: bool = False

    def box(self, out: Tensor, row: int, column: int) -> Tensor:
        draw = Draw("words", (), self.stream.seed, self.stream.id)
        first = row * self.columns + column
        self.engine = draw_into(self.engine, out, self.compiled, draw, first, (self.columns, 1))
        return out


def zero_smallest(target: Target, zeros: int, stream: Stream, compiled: bool) -> None:
    """Set to zero the `zeros` elements of each column with the smallest words of `stream`; `target` is a matrix."""
    rows, columns = target.shape
    device = local_of(target).device
    if zeros == 0 or local_of(target).numel() == 0:
        return
    engine = engines.choose(device, torch.int32, compiled, Words().parameters(torch.int32))
    words = Drawn(engine, stream, rows, columns, compiled)
    zero = zero_by_partition if device.type == "cpu" else zero_by_order
    with torch.no_grad():
        for memory, (top, left) in parts_of(target):
            bits = memory.view(SAME_SIZE[memory.element_size()])
            if zeros == rows:
                bits.zero_()
            elif bits.numel():
                zero(bits, top, left, zeros, words)


def zero_by_partition(bits: Tensor, top: int, left: int, zeros: int, words: Drawn) -> None:
    """On the CPU, for any engine. NumPy selects with vector instructions, and lets other threads run meanwhile.

    Torch's operations would start threads of their own, for which a forked child would wait for ever.
    """
    step = max(1, PART // words.rows)

    def zero(number: int) -> None:
        part = bits[:, number * step : (number + 1) * step]
        # Whole columns, whatever rows the shard has: which words of a column are smallest depends on all of them.
        strip = torch.empty(part.shape[1], words.rows, dtype=torch.int32, device="cpu")
        words.box(strip.t(), 0, left + number * step)
        numbers = strip.numpy().view(np.uint32)
        greatest = np.partition(numbers, zeros - 1, axis=1)[:, zeros - 1 : zeros]
        kept = numbers > greatest
        surplus = words.rows - zeros - np.count_nonzero(kept, axis=1)
        for column in np.flatnonzero(surplus).tolist():
            equal = np.flatnonzero(numbers[column] == greatest[column])
            kept[column, equal[-surplus[column] :]] = True
        values = part.numpy()
        np.multiply(values, kept[:, top : top + part.shape[0]].T, out=values)  # in half the time of a masked copy

    threads = torch.get_num_threads() if words.engine.name == "cpu" else 1
    run(zero, -(-bits.shape[1] // step), threads)


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
