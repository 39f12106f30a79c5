"""Permutations: numbers in the order of random words."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..drawing import engines
from ..drawing.fill import fill
from ..drawing.regions import shard
from ..drawing.streams import Stream, source
from ..kernels.contract import KernelMissing
from ..laws import Integers

WORDS = Integers(-(1 << 63), 1 << 63)  # whole numbers of 64 random bits, which are in the order of the bits as a number


def permutation(
    count: int, device: torch.device, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """The numbers below `count` in the order of as many words, equal words in the order of the numbers; int64.

    Number i has the word of element i: 64 bits, from two random words. Two words are equal with probability 2^-64, so
    each permutation has a probability of 1 / count!, up to a relative error of some count^2 / 2^65. Raises
    `RuntimeError` where `compiled` insists on a compiled engine and there is none.
    """
    out = torch.empty(count, dtype=torch.int64, device=device)
    stream = source(out, generator, stream)
    engine = engines.choose(device, torch.int64, compiled, WORDS.parameters(torch.int64))
    if engine.name == "cpu" and device.type == "cpu" and count:
        try:
            from ..kernels.cpu.choices import MOST_NUMBERS, permute

            if count <= MOST_NUMBERS:
                permute(out, stream.seed, stream.id)
                return out
        except KernelMissing:
            pass
    fill(out, WORDS, stream=stream, compiled=compiled)
    return torch.sort(out, stable=True).indices


def words(
    first: int, count: int, total: int, device: torch.device, stream: Stream, compiled: bool
) -> tuple[Tensor, Tensor]:
    """The low and the high halves, as int64, of the words of elements `first` to `first + count - 1` of `total`."""
    both = torch.empty(count, dtype=torch.int64, device=device)
    fill(shard(both, (total,), (first,)), WORDS, stream=stream, compiled=compiled)
    return both & 0xFFFFFFFF, both >> 32 & 0xFFFFFFFF ^ 0x80000000
