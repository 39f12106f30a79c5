"""Clearing the elements of a matrix whose words are its columns' smallest, with the CPU engine's kernels.

Words are uniform, so where a column's greatest chosen word lies is known in advance but for a few percent. One pass
over the words keeps those in between and counts those below; a second clears what lies under each column's bound. To
draw all words again takes no memory and no longer than to read a mask of bytes.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .cpu import kernel
from .forms import ABREAST, CLEAR, COLLECT
from .threads import run

Numbers = NDArray[np.uint32]

PIECE = 1 << 18  # words that a thread draws in one go; some 0.1 ms
# Columns whose bounds a thread finds at a time: more where they are many or short, so that fewer blocks are cut.
STRIP, WIDE_STRIP = 128, 256
# How far around where it is expected the greatest chosen word of a column is looked for, in standard deviations and in
# words: one column of ten thousand has it elsewhere.
DEVIATIONS, WORDS_AROUND = 4.0, 8.0
LAST = 0xFFFFFFFF


class Window(NamedTuple):
    """The words among which a column's greatest chosen one is looked for; and room for as many, and one more."""

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


def padded(width: int) -> Numbers:
    """Zeros, one a column, in memory that goes on on both sides for as many as a kernel takes at a time."""
    return np.zeros(width + 2 * ABREAST, np.uint32)[ABREAST:-ABREAST]


class Lists(threading.local):
    """A thread's lists of the words in the window, for as long as the job lasts."""

    def __init__(self, width: int, room: int) -> None:
        self.below, self.inside = padded(width), padded(width)
        self.places = np.empty((width, room), np.uint32)

    def empty(self) -> None:
        self.below.fill(0)
        self.inside.fill(0)
        self.places.fill(LAST)


class Smallest:
    """The `zeros` elements of each column with the smallest words; among equal words, those of the first rows.

    `out`, of integers, is the part of a matrix of `rows` x `columns` that begins at row `top` and column `left`; the
    choice is among whole columns. The words are those of the stream `seed`, `id`; `zeros` is from 1 to `rows` - 1.
    Raises `ImportError` where a kernel is missing and cannot be compiled.
    """

    def __init__(
        self, out: torch.Tensor, zeros: int, rows: int, columns: int, top: int, left: int, seed: int, id: int
    ) -> None:
        self.collector, self.clearer = kernel(*COLLECT), kernel(*CLEAR[out.element_size()])
        self.out, self.zeros, self.rows, self.columns = out, zeros, rows, columns
        self.top, self.left, self.key = top, left, (seed, id)
        self.height, self.width = out.shape
        self.window = window(rows, zeros)
        # What is chosen: the words below each column's bound; and a few elements more, (row in the matrix, column in
        # `out`), where others with the same word are not chosen.
        self.bounds = padded(self.width)
        self.more: list[tuple[int, int]] = []

    def clear(self) -> None:
        """On torch's number of threads."""
        threads = torch.get_num_threads()
        fair = min(self.width // (2 * threads) // STRIP * STRIP, WIDE_STRIP)
        strip = min(max(STRIP, fair, PIECE // 4 // self.rows // STRIP * STRIP), self.width)
        lists = Lists(strip, self.window.room)
        run(lambda number: self.choose(number * strip, strip, lists), -(-self.width // strip), threads)
        # Where a column's elements lie closer together than a row's, a row must not touch more pages than a core knows.
        down, across = (abs(stride) for stride in self.out.stride())
        wide = min(WIDE_STRIP, self.width) if down < across else self.width
        tall = max(1, PIECE // wide)
        abreast = -(-self.width // wide)

        def clear_box(number: int) -> None:
            row, column = number // abreast * tall, number % abreast * wide
            self.clear_box(row, min(tall, self.height - row), column, min(wide, self.width - column))

        run(clear_box, -(-self.height // tall) * abreast, threads)
        elements = self.out.numpy()
        for row, column in self.more:
            if self.top <= row < self.top + self.height:
                elements[row - self.top, column] = 0

    def choose(self, start: int, most: int, lists: Lists) -> None:
        """Find the bounds of up to `most` columns from `start` on."""
        count = min(most, self.width - start)
        lists.empty()
        self.collect(start, count, lists, self.window.least, self.window.greatest)
        self.settle(start, *(part[:count] for part in (lists.below, lists.inside, lists.places)))

    def collect(self, start: int, count: int, lists: Lists, least: int, greatest: int) -> None:
        """List the words from `least` to `greatest` of `count` columns from `start` on."""
        addresses = (part.ctypes.data for part in (lists.below, lists.inside, lists.places))
        others = (least, greatest, *addresses, lists.places.shape[1])
        tall = PIECE // count
        for row in range(0, self.rows, tall):
            first = row * self.columns + self.left + start
            self.collector(first, self.columns, min(tall, self.rows - row), count, *self.key, others)

    def settle(self, start: int, below: Numbers, inside: Numbers, places: Numbers) -> None:
        """Choose in the columns from `start` on. Of each are given: how many words lie below the window, how many
        inside, and these in any order with LAST behind them; `places` is left in order."""
        places.sort(axis=1)  # with vector instructions, some 2 ns a word
        # Modulo 2^32, as the words are counted: where the one in question is inside, the difference is small.
        place = (np.uint32((self.zeros - 1) & LAST) - below).view(np.int32).astype(np.int64)
        found = (place >= 0) & (place < inside) & (inside < places.shape[1])
        place = np.where(found, place, 0)
        columns = np.arange(len(places))
        greatest = places[columns, place]
        self.bounds[start : start + len(places)] = greatest + 1
        for k in np.flatnonzero(~found | (greatest == places[columns, place + 1])).tolist():
            self.settle_exactly(start + k)

    def settle_exactly(self, column: int) -> None:
        words = self.column(column)
        greatest = np.partition(words, self.zeros - 1)[self.zeros - 1]
        equal = np.flatnonzero(words == greatest)[: self.zeros - np.count_nonzero(words < greatest)]
        self.bounds[column] = greatest
        self.more += [(row, column) for row in equal.tolist()]

    def column(self, number: int) -> Numbers:
        """All words of a column, by row."""
        lists = Lists(1, self.rows)
        lists.empty()
        self.collect(number, 1, lists, 0, LAST)
        words: Numbers = lists.places[0]
        return words

    def clear_box(self, row: int, height: int, column: int, width: int) -> None:
        """Clear what is chosen of a box of `out`, but for `more`."""
        down, across = (stride * self.out.element_size() for stride in self.out.stride())
        place = self.out.data_ptr() + row * down + column * across
        first = (self.top + row) * self.columns + self.left + column
        others = (self.bounds[column:].ctypes.data, place, down, across)
        self.clearer(first, self.columns, height, width, *self.key, others)
