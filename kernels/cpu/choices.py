"""What the CPU engine makes of 64-bit words besides samples: how the steps of `word_loops` share out their numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import engine
from .jobs import run
from .pages import advise_huge_pages

KEPT_TOGETHER = 11  # bits: a bucket has some 2^11 entries, 16 KB
MOST_BUCKETS = 12  # bits: beyond, scattering costs more than it saves
SMALL = 13  # bits: up to here one bucket is all
A_THREAD = 1 << 16  # numbers that are worth a thread
MOST_NUMBERS = 1 << 32  # an entry has 32 bits for a number


def threads_for(count: int) -> int:
    return max(1, min(torch.get_num_threads(), count // A_THREAD))


def permute(out: Tensor, seed: int, stream_id: int) -> None:
    """Write the numbers below len(out), at most MOST_NUMBERS, in the order of their words to a contiguous int64 tensor.

    Number i has word i; equal ones are ordered by i. Needs as much memory again. Raises `KernelMissing` before anything
    is written.
    """
    count, scatter, settle = (engine.kernel("words", torch.int64, step, 0) for step in ("count", "scatter", "settle"))
    total = out.numel()
    width = (total - 1).bit_length()
    bits = 0 if width <= SMALL else min(width - KEPT_TOGETHER, MOST_BUCKETS)
    threads = threads_for(total)
    share = -(-total // (32 * threads)) * 32
    entries = torch.empty_like(out)
    if (size := total * 8) >= engine.HUGE_PAGES_FROM:
        for tensor in (out, entries):
            advise_huge_pages(tensor.data_ptr(), size)

    def of_slice(step: Callable[..., None], table: Tensor) -> Callable[[int], None]:
        def do(number: int, kept: object = (table, entries)) -> None:
            start, stop = number * share, min((number + 1) * share, total)
            place = (table[number].data_ptr(), 0, 0, start, stop, bits, 0, entries.data_ptr())
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
    pieces = min(1 << bits, 16 * threads)
    cuts = [number * (1 << bits) // pieces for number in range(pieces + 1)]
    starts = bounds[cuts].tolist()

    def settle_piece(number: int, kept: object = (out, bounds, entries)) -> None:
        spare = torch.empty((1 << within >> 1) + greatest, dtype=torch.int64, device="cpu")
        where = (cuts[number], cuts[number + 1], starts[number], starts[number + 1], within, bounds.data_ptr())
        settle(out.data_ptr(), *where, entries.data_ptr(), seed, stream_id, spare.data_ptr(), ())

    run(settle_piece, pieces, threads)


def starts_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each slice's part of each bucket begins, the slices' one after the other; and where buckets begin."""
    flat = counts.t().flatten()
    ends = flat.cumsum(0)
    places = (ends - flat).view(-1, len(counts)).t().contiguous()
    return places, torch.cat([places[0], ends[-1:]])


def choose(out: Tensor, sums: Tensor, first: int, seed: int, stream_id: int) -> None:
    """Write the places that words from number `first` on choose by `sums` (see `word_loops`) to contiguous int64.

    `sums` are contiguous and do not fall; the last one is above 0. Raises `KernelMissing` before anything is written.
    """
    pick = engine.kernel("words", torch.int64, "choose", 0)
    count, total, stream = out.numel(), int(sums[-1]), (seed, stream_id)
    piece = max(A_THREAD // 4, -(-count // engine.PIECES_A_THREAD))

    def choose_piece(number: int, kept: object = (out, sums)) -> None:
        start, stop = number * piece, min((number + 1) * piece, count)
        pick(out.data_ptr(), first, len(sums), start, stop, total, 0, sums.data_ptr(), *stream, 0, ())

    run(choose_piece, -(-count // piece), threads_for(count))
