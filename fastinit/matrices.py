"""Matrices with a structure: orthogonal, sparse, identity, Dirac."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Generator

from .fill import fill
from .flags import wanted
from .kernels.formats import FORMATS
from .laws import Law, Normal, Words
from .regions import Shard, Target, local_of, shard
from .streams import Stream, source

T = TypeVar("T", bound=Target)
SPARSE_PART = 1 << 20  # elements whose order is found at a time; some 20 bytes each


def orthogonal(target: T, gain: float, generator: Generator | None, fast: bool | None, stream: Stream | None) -> T:
    local = local_of(target)
    if target.numel() == 0 or local.is_meta:
        return target
    half = FORMATS[local.dtype].rounding is not None
    rows = target.shape[0]
    matrix = torch.empty(
        rows, target.numel() // rows, dtype=torch.float32 if half else local.dtype, device=local.device
    )
    fill(matrix, Normal(0.0, 1.0), generator, fast=wanted(local, fast), stream=stream)
    tall = matrix if rows >= matrix.shape[1] else matrix.t()
    with torch.no_grad():
        q, r = torch.linalg.qr(tall)
        # Signs that make Q unique make it Haar-distributed (Mezzadri 2007).
        q *= torch.where(torch.diagonal(r) < 0, -1.0, 1.0)
        q.mul_(gain)
        whole = (q if tall is matrix else q.t()).reshape(target.shape)
        local.copy_(whole[target.box] if isinstance(target, Shard) else whole)
    return target


def sparse(target: T, zeros: int, law: Law, generator: Generator | None, fast: bool | None, stream: Stream | None) -> T:
    stream = source(generator, stream)
    fill(target, law, fast=fast, stream=stream)
    local = local_of(target)
    if zeros == 0:
        return target
    rows, columns = target.shape
    top, left = target.offset if isinstance(target, Shard) else (0, 0)
    bottom = top + local.shape[0]
    step = max(1, SPARSE_PART // max(rows, 1))
    for start in range(0, local.shape[1], step):
        width = min(step, local.shape[1] - start)
        # Whole columns, whatever rows the shard has: which words of a column are smallest hangs on all of them.
        words = torch.empty(rows, width, dtype=torch.int32, device=local.device)
        fill(
            shard(words, (rows, columns), (0, left + start)),
            Words(),
            fast=wanted(local, fast),
            stream=stream.child("zeros"),
        )
        order = (words ^ -(1 << 31)).t().argsort(dim=1, stable=True)  # the sign bit turned: words as unsigned numbers
        chosen = torch.zeros(width, rows, dtype=torch.bool, device=local.device)
        chosen.scatter_(1, order[:, :zeros], True)
        with torch.no_grad():
            part = local[:, start : start + width]
            # torch fills no float8 by a mask; the bits of zero are the same.
            bits = part.view(torch.uint8) if part.dtype.itemsize == 1 else part
            bits.masked_fill_(chosen[:, top:bottom].t(), 0)
    return target


def eye_shard(target: Shard) -> None:
    with torch.no_grad():
        target.local.zero_().diagonal(target.offset[0] - target.offset[1]).fill_(1)


def dirac(target: Target, groups: int) -> None:
    """One in the middle of the receptive field for as many channels of each group as there are both in and out."""
    local = local_of(target)
    if local.is_meta:
        return
    offset = target.offset if isinstance(target, Shard) else (0,) * local.dim()
    out_channels = target.shape[0] // groups
    group = torch.arange(groups, device="cpu").repeat_interleave(channels := min(out_channels, target.shape[1]))
    channel = torch.arange(channels, device="cpu").repeat(groups)
    middle = [torch.full_like(channel, size // 2) for size in target.shape[2:]]
    index = (
        torch.stack([group * out_channels + channel, channel, *middle]) - torch.tensor(offset, device="cpu")[:, None]
    )
    inside = ((index >= 0) & (index < torch.tensor(local.shape, device="cpu")[:, None])).all(dim=0)
    with torch.no_grad():
        local.zero_()
        local[tuple(index[:, inside].to(local.device))] = 1
