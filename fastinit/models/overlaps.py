"""Parameters of a model that are different tensors in the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import torch
from torch import Tensor

from ..drawing.deferred import key_of
from ..drawing.dtensor import memory_of
from ..kernels.runs import reach
from .entries import Entry


def overlaps(found: Sequence[Entry], written: Set[int]) -> Iterator[str]:
    """For each tensor that is to be written (their `id`s): whose elements it would write, too."""
    first: dict[int, Entry] = {}
    for entry in found:
        for part in entry.parts if id(entry) in written else ():
            other = first.setdefault(id(part), entry)
            if other is not entry:
                yield f"{entry.name} is computed from {part.name}, as {other.name}, and that would be written twice"
    by_memory: dict[int, list[Entry]] = {}
    for entry in found:
        if entry.assign is None and (key := key_if_any(entry.tensor)) is not None:
            by_memory.setdefault(key, []).append(entry)
    for alike in by_memory.values():
        for place, entry in enumerate(alike):
            others = [one for one in alike[:place] if id(entry) in written or id(one) in written]
            shared = [one.name for one in others if meet(memory_of(one.tensor), memory_of(entry.tensor))]
            if shared:
                yield (
                    f"{entry.name} shares memory with {', '.join(shared)}, and would be written twice: have one "
                    "parameter, registered under both names, or none of them as a view of another"
                )


def key_if_any(tensor: Tensor) -> int | None:
    try:
        return key_of(tensor) if memory_of(tensor).numel() else None
    except (NotImplementedError, RuntimeError, ValueError):  # lazy, sparse, a wrapper around others
        return None


def meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same memory have an element in common."""
    spans = []
    for tensor in (one, other):
        begin = int(tensor.storage_offset()) * tensor.itemsize
        spans.append((begin, begin + reach(tensor.shape, tensor.stride()) * tensor.itemsize))
    (begin, end), (other_begin, other_end) = spans
    if begin >= other_end or other_begin >= end:
        return False
    if one.itemsize != other.itemsize:
        return True
    first = min(one.storage_offset(), other.storage_offset())
    taken = torch.zeros((max(end, other_end) - min(begin, other_begin)) // one.itemsize, dtype=torch.bool, device="cpu")
    taken.as_strided(one.shape, one.stride(), one.storage_offset() - first).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset() - first).any())
