"""What was drawn into which memory, for as long as that memory lives."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, UntypedStorage

from ..drawing.deferred import Fill, key_in, key_of, reference
from ..drawing.dtensor import memory_of


@dataclass(frozen=True)
class Origin:
    """Where what a memory holds comes from: the fills since the last one of all of it, in order.

    `version`: the autograd version of the tensor that was filled, then (None: nobody knows). `computed`: it was
    computed from what was drawn by number.
    """

    memory: Any
    fills: tuple[Fill, ...] = ()
    version: int | None = None
    computed: bool = False


origins: dict[int, Origin] = {}
lock = threading.Lock()


def drew(fill: Fill, storage: UntypedStorage, owner: Tensor | None) -> None:
    """Note that this fill was drawn, into a tensor that its owner holds."""
    version = None if owner is None or owner.is_inference() else owner._version
    with lock:
        found = origins.get(key_in(storage))
        before = () if found is None or fill.covers(storage) else found.fills
        origins[key_in(storage)] = Origin(reference(storage), (*before, fill), version)


def altered(tensor: Tensor) -> None:
    """Note that something else has written the tensor's memory."""
    with lock:
        origins.pop(key_of(tensor), None)


def keep(tensor: Tensor, computed: bool) -> None:
    """Note that a tensor of a model's is as it was made; and whether it depends on what was drawn by number."""
    with lock:
        found = origins.get(key_of(tensor))
        if found is None and computed:
            found = Origin(reference(memory_of(tensor).untyped_storage()), computed=True)
        if found is not None and not tensor.is_inference():
            origins[key_of(tensor)] = replace(found, version=tensor._version)


def origin_of(tensor: Tensor) -> Origin | None:
    """Where what the tensor's memory holds comes from; None if that is not known, or something wrote it since.

    Whether something did, the tensor's version tells, which counts what is written by way of it and of its views.
    """
    try:
        found = origins.get(key_of(tensor))
        return found if found is not None and found.version == tensor._version else None
    except (NotImplementedError, RuntimeError, ValueError):  # it has no memory, or no version
        return None


def forget_dead() -> None:
    """Drop what belonged to memory that is gone."""
    with lock:
        for key in [key for key, origin in origins.items() if origin.memory.expired()]:
            del origins[key]
