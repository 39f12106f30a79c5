"""Categories by their probabilities: the arithmetic of `fastinit.random.multinomial`, exact on every device."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..drawing import engines
from ..drawing.fill import fill
from ..drawing.streams import Stream, source
from ..kernels.contract import KernelMissing
from ..kernels.plain.eager import ARITHMETIC
from ..laws import Exponential
from ..laws.integers import integers_long
from .order import WORDS, words

PART = 1 << 18  # samples at a time: a dozen temporaries of 8 bytes each
LOW = 0xFFFFFFFF


def whole_weights(probabilities: Tensor) -> Tensor:
    """Rows of probabilities as whole numbers, so that sums of them do not depend on their order; int64.

    A row's greatest is 2^s, the others in proportion, rounded to nearest even: s = 62 - the bits of the row's length.
    """
    scale = 2.0 ** (62 - probabilities.shape[-1].bit_length())
    exact = probabilities.double()
    return (exact / exact.amax(-1, keepdim=True)).mul_(scale).round_().long()


def with_replacement(
    probabilities: Tensor, samples: int, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """[rows, samples] categories: sample j of row r takes the word of element r * samples + j.

    It is category k where floor(word * total / 2^64) is below the sum of the weights up to k, and not below those
    before.
    """
    sums = whole_weights(probabilities).cumsum(-1)
    out = torch.empty(len(sums), samples, dtype=torch.int64, device=sums.device)
    engine = engines.choose(out.device, torch.int64, compiled, WORDS.parameters(torch.int64))
    stream = source(out, generator, stream)
    for row in range(len(sums)):
        try:
            if engine.name != "cpu" or not out.is_cpu:
                raise KernelMissing
            from ..kernels.cpu.choices import choose

            choose(out[row], sums[row], row * samples, stream.seed, stream.id)
        except KernelMissing:
            choose_plainly(out, sums, row, stream, compiled)
    return out


def choose_plainly(out: Tensor, sums: Tensor, row: int, stream: Stream, compiled: bool) -> None:
    """One row by torch operations, on any device."""
    samples = out.shape[-1]
    total = sums[row, -1]
    for start in range(0, samples, PART):
        count = min(PART, samples - start)
        low, high = words(row * samples + start, count, out.numel(), out.device, stream, compiled)
        share = ARITHMETIC[64](integers_long)(low, high, total & LOW, total >> 32, 0, 0)
        out[row, start : start + count] = torch.searchsorted(sums[row], share, right=True)


def without_replacement(
    probabilities: Tensor, samples: int, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """[rows, samples] different categories, the first of them as with replacement, each next one among the others.

    Those of the least times, first come: category k of row r comes at time -ln(u) / p, of the float64 exponential
    sample of element (r, k). Equal times are in the order of the categories, those of probability 0 at the end.
    """
    times = torch.empty(probabilities.shape, dtype=torch.float64, device=probabilities.device)
    fill(times, Exponential(1.0), generator, stream=stream, compiled=compiled)
    times /= probabilities
    among = min(samples + 1, times.shape[-1])
    found = torch.topk(times, among, largest=False, sorted=True)
    if bool((found.values.diff() == 0).any()):  # topk has its own order of equal ones
        return torch.sort(times, stable=True).indices[..., :samples]
    return found.indices[..., :samples]
