"""New memory for a model's tensors: on another device, of another dtype."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..drawing.dtensor import is_dtensor
from ..initialisers.parts import Keep
from .entries import Entry
from .rules import Matched
from .walk import alike


def changed(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


@contextlib.contextmanager
def laid_out(found: Matched, device: torch.device | None, dtype: torch.dtype | None) -> Iterator[None]:
    """Give parameters memory on this device, of this dtype; an exception that leaves the context takes it back.

    What is to be written gets new memory, the rest of the model is copied; with `only`, what that names alone.
    """
    anew = {id(one.entry) for one in found.assigned if not isinstance(one.what, Keep)}
    anew |= {id(part) for one in found.assigned for part in one.entry.parts}
    concerned = found.entries if found.only is None else [one.entry for one in found.assigned]
    made = []
    for entry in concerned:
        for one in entry.parts if entry.assign is not None else [entry]:
            if is_lazy(one.tensor):
                continue
            old = one.tensor.detach()
            place = old.device if device is None else device
            kind = changed(old, dtype) if one.is_parameter else old.dtype
            if place != old.device or kind is not old.dtype:
                made.append((one, empty_as(old, place, kind) if id(one) in anew else old.to(place, kind)))
    undo: list[Callable[[], None]] = []
    try:
        for one, new in made:
            undo.append(exchange(one, new))
        yield
    except BaseException:
        for put_back in reversed(undo):
            put_back()
        raise


def empty_as(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """New memory for a tensor, in the same order; for a DTensor's local one."""
    if is_dtensor(tensor):
        return torch.empty_like(tensor, device=device, dtype=dtype)
    return torch.empty_strided(tensor.shape, tensor.stride(), device=device, dtype=dtype)


def exchange(entry: Entry, new: Tensor) -> Callable[[], None]:
    """Put a tensor in an entry's place, wherever it is registered; returns what puts the old one back.

    A parameter stays the same object if it can.
    """
    old = entry.tensor
    if not entry.is_parameter or old.is_meta:
        place_in(entry, alike(old, new))
        return functools.partial(place_in, entry, old)
    if is_dtensor(old):  # whose `.data =` leaves the local tensor as it is
        other = alike(old, new)
        swap: Any = torch.utils.swap_tensors
        swap(old, other)
        return functools.partial(swap, old, other)
    before = old.data
    old.data = new
    return functools.partial(setattr, old, "data", before)


def place_in(entry: Entry, tensor: Tensor) -> None:
    """Register a tensor in an entry's place."""
    for _, module, key in entry.homes:
        own: Any = module._parameters if key in module._parameters else module._buffers
        own[key] = tensor
    entry.tensor = tensor
