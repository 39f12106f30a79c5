"""Which memory nothing has written since it was made, and which was computed from what was drawn by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.nn.parameter import is_lazy

from ..drawing.deferred import Fill, key_in, key_of, reference
from ..drawing.dtensor import memory_of
from . import origins
from .operations import Operation, tensors
from .walk import has_memory, named_tensors


class CoverageError(RuntimeError):
    """Parameters or buffers of a model that were not initialised."""


class Unwritten:
    """Memory of which nothing, or a part alone, has been written."""

    def __init__(self, storage: UntypedStorage, itemsize: int) -> None:
        self.memory = reference(storage)
        self.size, self.itemsize = storage.nbytes(), itemsize
        self.written: Tensor | None = None  # for each element, whether it was; made with the first part

    def write(self, tensor: Tensor) -> bool:
        """Note what is written; returns whether all of it is, now."""
        if tensor.numel() * tensor.itemsize >= self.size and tensor.is_contiguous():
            return True
        if (part := self.part(tensor)) is not None:
            part.fill_(True)
        return self.written is not None and bool(self.written.all())

    def part(self, tensor: Tensor) -> Tensor | None:
        """Whether each of a tensor's elements was written; None where the memory has elements of another size."""
        if tensor.itemsize != self.itemsize:
            return None
        if self.written is None:
            self.written = torch.zeros(self.size // self.itemsize, dtype=torch.bool, device="cpu")
        return self.written.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def misses(self, tensor: Tensor) -> bool:
        """Whether something of this tensor was not written."""
        part = None if self.written is None else self.part(tensor)
        return part is None or not bool(part.all())


class Coverage:
    """Is told of every operation of a constructor, by a `Watch`."""

    def __init__(self) -> None:
        self.unwritten: dict[int, Unwritten] = {}
        self.numbered: dict[int, Any] = {}  # memory that depends on what was drawn by number
        self.drawn: set[int] = set()  # numbers of the fills that were

    def made(self, tensor: Tensor) -> None:
        """New memory, that nothing has written."""
        storage = memory_of(tensor).untyped_storage()
        self.numbered.pop(key_in(storage), None)
        self.unwritten[key_in(storage)] = Unwritten(storage, tensor.itemsize)

    def wrote(self, tensor: Tensor) -> None:
        """A tensor was written, all of it."""
        found = self.unwritten.get(key_of(tensor))
        if found is not None and found.write(memory_of(tensor)):
            del self.unwritten[key_of(tensor)]

    def drew(self, fill: Fill, storage: UntypedStorage) -> None:
        """A fill was drawn before the end, and so by its number."""
        if fill.source.by_default and not fill.name:
            self.numbered[key_in(storage)] = reference(storage)
            self.drawn.add(fill.number)

    def misses(self, tensor: Tensor) -> bool:
        """Whether something of this tensor was not written."""
        found, local = self.unwritten.get(key_of(tensor)), memory_of(tensor)
        return found is not None and local.numel() > 0 and found.misses(local)

    def did(self, done: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, room: int) -> None:
        """An operation was done. `room`: the bytes of the first tensor's memory before."""
        made, taken = in_memory(result), in_memory((args, kwargs))
        changed = in_memory(done.given(done.written, args, kwargs))
        for tensor in changed:
            origins.altered(tensor)
        own = {key_of(tensor) for tensor in taken}
        new = [tensor for tensor in made if key_of(tensor) not in own]
        if done.is_empty or (done.name == "resize_" and made and made[0].untyped_storage().nbytes() > room):
            for tensor in new if done.is_empty else made:
                self.made(tensor)
            return
        if not done.looks or done.is_view:
            return
        # What is written as a whole, without a look at what was in it.
        over = in_memory([done.given(done.out, args, kwargs), args[0] if done.overwrites and args else None])
        blind = {key_of(tensor) for tensor in over}
        spoilt = any(self.misses(tensor) for tensor in taken if key_of(tensor) not in blind)
        for tensor in (*new, *over) if spoilt else over:
            (self.made if spoilt else self.wrote)(tensor)
        if self.numbered and any(key in self.numbered for key in own):
            for tensor in (*new, *changed):
                self.numbered[key_of(tensor)] = reference(tensor.untyped_storage())

    def problems(self, model: torch.nn.Module, device: torch.device | None) -> Iterator[tuple[str, str]]:
        """The parameters and buffers of a model that are not initialised, each with what is wrong with it."""
        for name, tensor in named_tensors(model):
            if is_lazy(tensor):
                yield name, "is lazy, and gets its shape from the first batch"
            elif tensor.is_meta:
                if device is None or device.type != "meta":
                    yield name, "is on the meta device, without memory"
            elif tensor.numel() == 0 and getattr(tensor, "ds_numel", None):
                yield name, "has no elements here: DeepSpeed ZeRO-3 has taken them to its partitions"
            elif has_memory(tensor) and self.misses(tensor):
                yield name, "was written by nothing"


def check(model: torch.nn.Module, found: Iterable[tuple[str, str]]) -> None:
    """Raise `CoverageError` for what was found."""
    problems = [*found]
    if not problems:
        return
    shown = "; ".join(f"{name} {what}" for name, what in problems[:8])
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise CoverageError(
        f"{len(problems)} parameters or buffers of {type(model).__name__} are not initialised: {shown}{more}. "
        "Initialise them in the constructor (or have `make` do so after it, as in build(lambda: finish(Model()))), or "
        "pass check=False to take the model as it is"
    )


def in_memory(value: Any) -> list[Tensor]:
    """Those of them that have memory of their own."""
    return [tensor for tensor in tensors(value) if has_memory(tensor)]
