"""Whether all ranks draw from the same number: asked only where `check_ranks` says so, since it takes a collective."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch

checking: ContextVar[bool] = ContextVar("fastinit.check_ranks", default=False)


@contextlib.contextmanager
def check_ranks() -> Iterator[None]:
    """Within the context each draw of fastinit into a DTensor, and each seed of a model, is compared among the ranks.

    Each draw gathers one number a rank, over the dimensions of the tensor's mesh; `initialize`, `build` and
    `accelerate(model, seed=)` gather their seed from all ranks. Where the ranks differ, each of them raises
    `RuntimeError`, with the numbers by rank, before anything is written. All ranks have to be in the context. For
    debugging: without it nothing is communicated.
    """
    token = checking.set(True)
    try:
        yield
    finally:
        checking.reset(token)


def agree_on(what: str, number: int | tuple[int, int], groups: Sequence[Any], cure: str) -> None:
    """Raise `RuntimeError` on every rank of these groups, the dimensions of a mesh, where their numbers differ."""
    found = {torch.distributed.get_rank(): number}
    for group in groups:  # one after the other, so that all ranks know of all
        gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(gathered, found, group=group)
        found = dict(itertools.chain.from_iterable(each.items() for each in gathered))
    by_number: dict[Any, list[int]] = {}
    for rank, each in sorted(found.items()):
        by_number.setdefault(each, []).append(rank)
    if len(by_number) > 1:
        (expected, _), *others = by_number.items()
        told = "; ".join(f"found {each} on rank {', '.join(map(str, ranks))}" for each, ranks in others)
        raise RuntimeError(f"{what}: expected {expected}, as on rank {min(found)}, {told}. Nothing was written; {cure}")


def agree_on_seed(seed: int) -> None:
    """The same about the seed of a model, if it is to be asked, among all ranks."""
    if checking.get() and torch.distributed.is_available() and torch.distributed.is_initialized():
        agree_on("ranks give different seeds for one model", seed, [None], "give all ranks the same seed")
