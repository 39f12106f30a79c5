"""What `contract.WordEngine` makes of 64-bit words, by torch operations on words that any engine has drawn.

Words come as int64: their bits with the first one flipped, so that they are in the order of unsigned words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .eager import join, product

LOW = 0xFFFFFFFF


def permuted(words: Tensor) -> Tensor:
    """The numbers below len(words) in the order of their words; equal ones in the order of the numbers."""
    return torch.sort(words, stable=True).indices


def chosen(words: Tensor, sums: Tensor) -> Tensor:
    """Of each row of words: which of the row's sums is the first above floor(word * total / 2^64)."""
    total = sums[:, -1:]
    low, high = words & LOW, words >> 32 & LOW ^ 0x80000000
    # The high half of a product of 64-bit numbers, of four products of their halves.
    outer, inner = product(low, total >> 32), product(high, total & LOW)
    carried = product(low, total & LOW)[0] + outer[1] + inner[1] >> 32
    top = product(high, total >> 32)
    share = join(top[1], top[0]) + outer[0] + inner[0] + carried
    return torch.searchsorted(sums, share, right=True)
