"""What the CPU engine makes of 64-bit words besides samples: how the steps of `word_loops` share out their numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import engine
from .jobs import run
from .pages import advise_huge_pages

# Bits of numbers. Measured for 2^20 of them on one thread, ns a number: buckets of 2^9 to 2^12 take 11.6, 10.3, 9.3 and
# 10.9; at 2^24 more than 2^12 buckets at a time gain nothing (17.9 to 20.1).
KEPT_TOGETHER = 11  # a bucket has some 2^11 entries, 16 KB, while there are no more than MOST_BUCKETS
MOST_BUCKETS = 12
SMALL = 13  # up to here one bucket is all: other steps would cost more than they save
A_THREAD = 1 << 17  # numbers that are worth a thread: some 1 ms; and more than kernels do with the GIL
MOST_NUMBERS = 1 << 32  # an entry has 32 bits for a number


def threads_for(count: int) -> int:
    return max(1, min(torch.get_num_threads(), count // A_THREAD))


def permute(out: Tensor, seed: int, stream_id: int) -> bool:
    """See `contract.WordEngine`. Buckets lie where their numbers will: a bucket is copied before it is written."""
    count, scatter, settle = (engine.kernel("words", torch.int64, step, 0) for step in ("count", "scatter", "settle"))
    total = out.numel()
    if total > MOST_NUMBERS:
        return False
    width = (total - 1).bit_length()
    bits = 0 if width <= SMALL else min(width - KEPT_TOGETHER, MOST_BUCKETS)
    threads = threads_for(total)
    share = -(-total // (32 * threads)) * 32
    if (size := total * 8) >= engine.HUGE_PAGES_FROM:
        advise_huge_pages(out.data_ptr(), size)

    def of_slice(step: Callable[..., None], table: Tensor) -> Callable[[int], None]:
        def do(number: int, kept: object = (table, out)) -> None:
            start, stop = number * share, min((number + 1) * share, total)
            place = (table[number].data_ptr(), 0, 0, start, stop, bits, 0, out.data_ptr())
            step(*place, seed, stream_id, 0, ())

        return do

    places = torch.zeros(threads, 1 << bits, dtype=torch.int64, device="cpu")
    bounds = torch.tensor([0, total], device="cpu")
    if bits:
        run(of_slice(count, places), threads, threads)
        places, bounds = starts_of(places)
    run(of_slice(scatter, places), threads, threads)
    greatest = int(bounds.diff().max())
    within = max(greatest.bit_length() - 1, 1)  # bits: of the counts that share out a bucket
    pieces = min(1 << bits, 16 * threads, max(1, total // A_THREAD))
    cuts = [number * (1 << bits) // pieces for number in range(pieces + 1)]
    starts = bounds[cuts].tolist()

    def settle_piece(number: int, kept: object = (out, bounds)) -> None:
        spare = torch.empty((1 << within >> 1) + greatest, dtype=torch.int64, device="cpu")
        where = (cuts[number], cuts[number + 1], starts[number], starts[number + 1], within, bounds.data_ptr())
        settle(out.data_ptr(), *where, out.data_ptr(), seed, stream_id, spare.data_ptr(), ())

    run(settle_piece, pieces, threads)
    return True


def starts_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each slice's part of each bucket begins, the slices' one after the other; and where buckets begin."""
    flat = counts.t().flatten()
    ends = flat.cumsum(0)
    places = (ends - flat).view(-1, len(counts)).t().contiguous()
    return places, torch.cat([places[0], ends[-1:]])


def choose(out: Tensor, sums: Tensor, seed: int, stream_id: int) -> bool:
    """See `contract.WordEngine`."""
    pick = engine.kernel("words", torch.int64, "choose", 0)
    count, samples = out.numel(), out.shape[-1]
    piece = max(A_THREAD, -(-count // engine.PIECES_A_THREAD))

    def choose_piece(number: int, kept: object = (out, sums)) -> None:
        start, stop = number * piece, min((number + 1) * piece, count)
        place = (out.data_ptr(), 0, sums.shape[-1], start, stop, samples, 0, sums.data_ptr())
        pick(*place, seed, stream_id, 0, ())

    run(choose_piece, -(-count // piece), threads_for(count))
    return True
