"""Stream -> 64-bit words -> permutations and categories: what `fastinit.random` draws besides samples."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..kernels.contract import KernelMissing, WordEngine
from ..laws import Integers
from . import engines
from .fill import fill
from .streams import Stream, source

WORDS = Integers(-(1 << 63), 1 << 63)  # whole numbers of 64 random bits, in the order of the bits as unsigned numbers


def permutation(
    count: int, device: torch.device, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """The numbers below `count` in the order of as many words, equal words in the order of the numbers; int64.

    Number i has the word of element i: 64 bits, from two random words. Two words are equal with probability 2^-64, so
    each permutation has a probability of 1 / count!, up to a relative error of some count^2 / 2^65. Raises
    `RuntimeError` where `compiled` insists on a compiled engine and there is none.
    """
    from ..kernels.plain.words import permuted

    out = torch.empty(count, dtype=torch.int64, device=device)
    engine = engines.choose(device, torch.int64, compiled, WORDS.parameters(torch.int64))
    stream = source(out, generator, stream)
    if isinstance(engine, WordEngine) and count:
        try:
            if engine.permute(out, stream.seed, stream.id):
                return out
        except KernelMissing:
            pass
    fill(out, WORDS, stream=stream, compiled=compiled)
    return permuted(out)


def categories(
    sums: Tensor, samples: int, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """[rows, samples] places in the rows of `sums` ([rows, categories], int64), which words of the stream choose.

    See `contract.WordEngine.choose`; sample j of row r takes the word of element r * samples + j.
    """
    from ..kernels.plain.words import chosen

    out = torch.empty(len(sums), samples, dtype=torch.int64, device=sums.device)
    engine = engines.choose(out.device, torch.int64, compiled, WORDS.parameters(torch.int64))
    stream = source(out, generator, stream)
    if isinstance(engine, WordEngine):
        try:
            engine.choose(out, sums, stream.seed, stream.id)
            return out
        except KernelMissing:
            pass
    fill(out, WORDS, stream=stream, compiled=compiled)
    return chosen(out, sums)
