"""Any part of a model's initial weights once more, without the model."""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from ..drawing.batch import unseen
from ..drawing.streams import Stream
from ..initialisers.parts import Gates, Keep
from ..initialisers.values import Initializer
from .checkpoint import Item, fill_box, whole
from .initialize import floating, is_torchs, judge, memory_on
from .memory import changed
from .rules import Match, Rules, RulesError, known, matched

Module = torch.nn.Module
Slices = tuple[slice | int | EllipsisType, ...] | slice | int | EllipsisType


@unseen
def regenerate(
    model: Module,
    name: str,
    slices: Slices = (),
    *,
    rules: Rules,
    seed: int,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A part of what `initialize(model, rules, seed=seed, dtype=dtype)` makes of one tensor, as a new tensor.

    For comparing what a running job began with, for restarts on another mesh, for debugging. The model may be on the
    meta device or sharded, and is left as it is. `slices` is an index of the whole tensor, of whole numbers and slices
    with positive steps; without one all of it is made. `device`: the CPU, unless it says another. Takes the memory of
    the part (while it is drawn, of what its steps leave out, too), and of the whole tensor for
    `orthogonal` and its like, for functions, and for what torch draws (flags, complex numbers).

    Raises `RulesError` for a name that the model does not have, for tensors that no rule draws, and for all that is
    wrong with the rules; `IndexError`, `TypeError` for what is no such index.
    """
    seed, kind, place = Stream(seed).seed, floating(dtype), memory_on(device) or torch.device("cpu")
    one = rule_for(model, name, rules, kind)
    entry, what = one.entry, one.what
    index = written_out(slices if isinstance(slices, tuple) else (slices,), len(entry.shape))
    offset, size, rest = hull(index, entry.shape)
    item = Item(entry.name, entry.shape, changed(entry.tensor, kind), entry, one)
    if not isinstance(what, (Initializer, Gates)) or is_torchs(entry.tensor, item.dtype, None):
        with whole(model, item, seed) as tensor:
            return tensor[index].to(place, copy=True)
    part = torch.empty(size, dtype=item.dtype, device=place)
    fill_box(item, what, Stream.named(entry.name, seed), offset, size, part)
    wanted = part[rest]
    return wanted if wanted.numel() == part.numel() else wanted.clone()  # without the memory between steps


def rule_for(model: Module, name: str, rules: Rules, dtype: torch.dtype | None) -> Match:
    """The rule that draws the tensor of this name."""
    found = matched(model, rules)
    names = known(model, found.entries, [name])
    its = [one for one in found.assigned if any(home.name in names for home in one.entry.homes)]
    found.assigned = [one for one in its if not isinstance(one.what, Keep)]
    judge(model, found, torch.device("cpu"), dtype)
    if not found.assigned:
        raise RulesError(f"{name} of {type(model).__name__} is drawn by no rule, so there is nothing to make again")
    return found.assigned[0]


def written_out(index: tuple[Any, ...], dimensions: int) -> tuple[Any, ...]:
    """An index with slices in place of `...`. Raises `TypeError` for truth values, which torch takes for masks."""
    if any(isinstance(one, bool) for one in index):
        raise TypeError(f"an index has whole numbers and slices, got {index}")
    if Ellipsis not in index:
        return index
    at = index.index(Ellipsis)
    return (*index[:at], *[slice(None)] * max(dimensions - len(index) + 1, 0), *index[at + 1 :])


def hull(index: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]:
    """The box around an index of a tensor of `shape`: where it begins, its shape, and the index within it."""
    if len(index) > len(shape):
        raise IndexError(f"too many indices for a tensor of shape {shape}: {index}")
    offset: list[int] = []
    size: list[int] = []
    rest: list[slice | int] = []
    for one, length in zip((*index, *[slice(None)] * (len(shape) - len(index))), shape, strict=True):
        if isinstance(one, slice):
            begin, end, step = one.indices(length)
            if step < 1:
                raise IndexError(f"slices have positive steps, got {one}")
            offset.append(begin)
            size.append(max(end - begin, 0))
            rest.append(slice(None, None, step))
        else:
            at = operator.index(one)
            if not -length <= at < length:
                raise IndexError(f"index {at} is out of bounds for a dimension of {length} elements")
            offset.append(at % length)
            size.append(1)
            rest.append(0)
    return tuple(offset), tuple(size), tuple(rest)
