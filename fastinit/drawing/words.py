"""Stream -> 64-bit words -> permutations and categories: what `fastinit.random` draws besides samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..kernels.contract import KernelMissing, WordEngine
from ..laws import Integers
from ..laws.integers import integers_long
from . import engines
from .fill import fill
from .streams import Stream, source

WORDS = Integers(-(1 << 63), 1 << 63)  # whole numbers of 64 random bits, in the order of the bits as unsigned numbers
LOW = (1 << 32) - 1


def permutation(
    count: int, device: torch.device, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """The numbers below `count` in the order of as many words, equal words in the order of the numbers; int64.

    Number i has the word of element i: 64 bits, from two random words. Two words are equal with probability 2^-64, so
    each permutation has a probability of 1 / count!, up to a relative error of some count^2 / 2^65. Raises
    `RuntimeError` where `compiled` insists on a compiled engine and there is none.
    """
    out = torch.empty(count, dtype=torch.int64, device=device)
    if made(out, lambda engine, stream: engine.permute(out, *stream), generator, stream, compiled):
        return out
    return torch.sort(out, stable=True).indices


def categories(
    sums: Tensor, samples: int, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """[rows, samples] places in the rows of `sums` ([rows, categories], int64), which words of the stream choose.

    See `contract.WordEngine.choose`; sample j of row r takes the word of element r * samples + j.
    """
    out = torch.empty(len(sums), samples, dtype=torch.int64, device=sums.device)
    if made(out, lambda engine, stream: engine.choose(out, sums, *stream), generator, stream, compiled):
        return out
    from ..kernels.plain.eager import ARITHMETIC  # where no kernel chooses

    low, high, total = out & LOW, out >> 32 & LOW ^ 0x80000000, sums[:, -1:]
    share = ARITHMETIC[64](integers_long)(low, high, total & LOW, total >> 32, 0, 0)
    return torch.searchsorted(sums, share, right=True)


def made(
    out: Tensor,
    make: Callable[[WordEngine, tuple[int, int]], bool],
    generator: Generator | None,
    stream: Stream | None,
    compiled: bool,
) -> bool:
    """Have an engine make `out` of the stream's words, if it can, or else draw the words into it: whether it could.

    `make` takes the engine, and the seed and id of the stream. The words are those of `WORDS`.
    """
    engine = engines.choose(out.device, torch.int64, compiled, WORDS.parameters(torch.int64))
    stream = source(out, generator, stream)
    if isinstance(engine, WordEngine) and out.numel():
        with contextlib.suppress(KernelMissing):
            if make(engine, (stream.seed, stream.id)):
                return True
    fill(out, WORDS, stream=stream, compiled=compiled)
    return False
