"""Categories by their probabilities: the arithmetic of `fastinit.random.multinomial`, exact on every device."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..drawing.fill import fill
from ..drawing.streams import Stream
from ..drawing.words import categories
from ..laws import Exponential


def shares(probabilities: Tensor) -> Tensor:
    """Rows of probabilities by their row's greatest, as float64 rounds the quotient; no -0.0."""
    exact = probabilities.double() + 0.0
    return exact.div_(exact.amax(-1, keepdim=True))


def whole_weights(probabilities: Tensor) -> Tensor:
    """Rows of probabilities as whole numbers, so that sums of them do not depend on their order; int64.

    Shares times 2^s, rounded to nearest even, with s = 62 - the bits of the row's length.
    """
    return shares(probabilities).mul_(2.0 ** (62 - probabilities.shape[-1].bit_length())).round_().long()


def with_replacement(
    probabilities: Tensor, samples: int, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """[rows, samples] categories: sample j of row r takes the word of element r * samples + j.

    It is the first category where the sum of the weights is above floor(word * total / 2^64).
    """
    return categories(whole_weights(probabilities).cumsum(-1), samples, generator, stream, compiled)


def without_replacement(
    probabilities: Tensor, samples: int, generator: Generator | None, stream: Stream | None, compiled: bool
) -> Tensor:
    """[rows, samples] different categories, the first of them as with replacement, each next one among the others.

    Those of the least times come first: category k of row r comes at time -ln(u) / share, of the float64 exponential
    sample of element (r, k). Equal times are in the order of the categories, those of probability 0 at the end.
    """
    times = torch.empty(probabilities.shape, dtype=torch.float64, device=probabilities.device)
    fill(times, Exponential(1.0), generator, stream=stream, compiled=compiled)
    times /= shares(probabilities)
    among = min(samples + 1, times.shape[-1])
    found = torch.topk(times, among, largest=False, sorted=True)
    ties = found.values[..., 1:] == found.values[..., :-1]  # infinite ones too
    if bool(ties.any()):  # topk has its own order of equal ones
        return torch.sort(times, stable=True).indices[..., :samples]
    return found.indices[..., :samples]
