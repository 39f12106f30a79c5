"""What was drawn into which memory, for as long as that memory lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef

from ..drawing.deferred import Fill, key_of, reference


@dataclass(frozen=True)
class Origin:
    """Where what a memory holds comes from: the fills since the last one of all of it, in order.

    `owner` gives a tensor that was filled, while it lives, and `version` is that tensor's of then. `computed`: from
    what was drawn by number.
    """

    memory: StorageWeakRef
    fills: tuple[Fill, ...] = ()
    owner: Callable[[], Tensor | None] = lambda: None
    version: int = 0
    computed: bool = False

    @property
    def is_known(self) -> bool:
        """Whether nobody has written the memory since, as far as the owner's version tells."""
        owner = self.owner()
        return owner is None or owner._version == self.version


origins: dict[int, Origin] = {}


def drew(fill: Fill, storage: UntypedStorage, owner: Tensor | None) -> None:
    """Note that this fill was drawn, into a tensor that its owner holds."""
    found = origins.get(storage._cdata)
    before = () if found is None or fill.covers(storage) else found.fills
    made = Origin(reference(storage), (*before, fill))
    origins[storage._cdata] = made if owner is None or owner.is_inference() else owned(made, owner)


def owned(origin: Origin, owner: Tensor) -> Origin:
    return replace(origin, owner=weakref.ref(owner), version=owner._version)


def altered(tensor: Tensor) -> None:
    """Note that something else has written the tensor's memory."""
    origins.pop(key_of(tensor), None)


def settle(tensor: Tensor, computed: bool) -> None:
    """Note that a tensor of a model's is as it was made; and whether it depends on what was drawn by number."""
    found = origins.get(key_of(tensor))
    if found is None and computed:
        found = Origin(reference(tensor.untyped_storage()), computed=True)
    if found is not None:
        origins[key_of(tensor)] = owned(found, tensor)


def origin_of(tensor: Tensor) -> Origin | None:
    """Where what the tensor's memory holds comes from; None if that is not known, or something wrote it since."""
    try:
        found = origins.get(key_of(tensor))
    except (NotImplementedError, RuntimeError, ValueError):  # it has no memory
        return None
    return found if found is not None and found.is_known else None


def forget_dead() -> None:
    """Drop what belonged to memory that is gone."""
    for key in [key for key, origin in origins.items() if origin.memory.expired()]:  # type: ignore[no-untyped-call]
        del origins[key]
