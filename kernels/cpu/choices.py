"""What the CPU engine makes of 64-bit words besides samples: how the steps of `word_loops` share out their numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import block_size
from . import helpers, jobs, loading
from .forms import Form
from .pages import advise_huge_pages
from .rows import (
    ADDRESS,
    BITS,
    BOUNDS,
    COUNT,
    END,
    ENTRIES,
    KERNEL,
    LENGTH,
    MASK,
    NUMBER,
    SAMPLES,
    SEED,
    SPARE,
    STREAM_ID,
    SUMS,
    TOGETHER,
    WORDS,
    address_of,
    new_rows,
)  # fmt: skip

# Bits of numbers. Measured for 2^20 of them on one thread, ns a number: buckets of 2^9 to 2^12 take 11.6, 10.3, 9.3 and
# 10.9; at 2^24 more than 2^12 buckets at a time gain nothing (17.9 to 20.1).
KEPT_TOGETHER = 11  # a bucket has some 2^11 entries, 16 KB, while there are no more than MOST_BUCKETS
MOST_BUCKETS = 12
SMALL = 13  # up to here one bucket is all: other steps would cost more than they save
A_THREAD = 1 << 17  # numbers that are worth a thread: some 1 ms
BLOCK = block_size(64)  # words that are drawn together
MOST_NUMBERS = 1 << 32  # an entry has 32 bits for a number


def threads_for(count: int) -> int:
    return max(1, min(torch.get_num_threads(), count // A_THREAD))


def permute(out: Tensor, seed: int, stream_id: int) -> bool:
    """See `contract.WordEngine`. Buckets lie where their numbers will: a bucket is copied before it is written."""
    total = out.numel()
    if total > MOST_NUMBERS:
        return False
    width = (total - 1).bit_length()
    bits = 0 if width <= SMALL else min(width - KEPT_TOGETHER, MOST_BUCKETS)
    threads = threads_for(total)
    share = -(-total // (BLOCK * threads)) * BLOCK
    if (size := total * 8) >= jobs.HUGE_PAGES_FROM:
        advise_huge_pages(out.data_ptr(), size)
    tables = torch.zeros(threads, 1 << bits, dtype=torch.int64, device="cpu")
    bounds = torch.tensor([0, total], device="cpu")

    def do(step: Form, rows: list[dict[int, int]]) -> None:
        run_apart(step, [{SEED: seed, STREAM_ID: stream_id, ENTRIES: out.data_ptr(), **row} for row in rows], threads)

    def slices(tables: Tensor) -> list[dict[int, int]]:
        starts = range(0, total, share)
        return [
            {ADDRESS: table.data_ptr(), NUMBER: start, COUNT: min(share, total - start), BITS: bits}
            for table, start in zip(tables, starts, strict=False)
        ]

    if bits:
        do("count", slices(tables))
        tables, bounds = starts_of(tables)
    do("scatter", slices(tables))
    greatest = int(bounds.diff().max())
    within = max(greatest.bit_length() - 1, 1)  # bits: of the counts that share out a bucket
    pieces = min(1 << bits, 16 * threads, max(1, total // A_THREAD))
    cuts = [number * (1 << bits) // pieces for number in range(pieces + 1)]
    spare = torch.empty(pieces, (1 << within >> 1) + greatest, dtype=torch.int64, device="cpu")
    buckets = {ADDRESS: out.data_ptr(), BOUNDS: bounds.data_ptr(), BITS: within}
    places = zip(cuts, cuts[1:], spare, strict=False)
    do("settle", [{**buckets, NUMBER: a, COUNT: b - a, SPARE: own.data_ptr()} for a, b, own in places])
    return True


def run_apart(step: Form, rows: list[dict[int, int]], threads: int) -> None:
    """Do each of the rows, given by place, in one part."""
    address, table, end = loading.kernel("words", torch.int64, step, 0), new_rows(len(rows)), 0
    for number, row in enumerate(rows):
        end += row[COUNT]
        for place, value in {KERNEL: address, TOGETHER: row[COUNT], END: end, **row}.items():
            table[WORDS * number + place] = value & MASK
    loading.entry("run_apart")(address_of(table), len(rows), threads, helpers.team(threads))


def starts_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each slice's part of each bucket begins, the slices' one after the other; and where buckets begin."""
    flat = counts.t().flatten()
    ends = flat.cumsum(0)
    places = (ends - flat).view(-1, len(counts)).t().contiguous()
    return places, torch.cat([places[0], ends[-1:]])


def choose(out: Tensor, sums: Tensor, seed: int, stream_id: int) -> bool:
    """See `contract.WordEngine`."""
    count, row = out.numel(), new_rows(1)
    row[KERNEL], row[COUNT], row[TOGETHER] = loading.kernel("words", torch.int64, "choose", 0), count, BLOCK
    row[END] = line = -(-count // BLOCK) * BLOCK
    row[ADDRESS], row[LENGTH], row[SAMPLES], row[SUMS] = out.data_ptr(), sums.shape[-1], out.shape[-1], sums.data_ptr()
    row[SEED], row[STREAM_ID] = seed & MASK, stream_id & MASK
    helpers.run(address_of(row), 1, line, threads_for(count))
    return True
