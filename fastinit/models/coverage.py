"""Which memory nothing has written since it was made, and which was computed from what was drawn by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy

from ..drawing.deferred import Fill, key_of, reference
from ..drawing.regions import Shard
from . import origins
from .names import has_memory, named_tensors

# Operations that make memory and write nothing into it.
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted")
COPY = ("clone", "_to_copy")
Region = tuple[int, torch.Size, tuple[int, ...]]


class CoverageError(RuntimeError):
    """Parameters or buffers of a model that were not initialised."""


class Unwritten:
    """Memory that nothing has written, but for some parts."""

    def __init__(self, storage: UntypedStorage) -> None:
        self.memory = reference(storage)
        self.size = storage.nbytes()
        self.parts: set[Region] = set()
        self.written = 0  # bytes in parts

    def write(self, tensor: Tensor) -> bool:
        """Note what is written; returns whether that is all of it."""
        region = (int(tensor.storage_offset()), tensor.shape, tensor.stride())
        if region not in self.parts:
            self.parts.add(region)
            self.written += tensor.numel() * tensor.itemsize
        return self.written >= self.size


class Coverage:
    """Is told of every operation of a constructor, by a `Watch`."""

    def __init__(self) -> None:
        self.unwritten: dict[int, Unwritten] = {}
        self.numbered: dict[int, StorageWeakRef] = {}  # memory that depends on what was drawn by number
        self.drawn: set[int] = set()  # numbers of the fills that were
        self.seen: dict[int, StorageWeakRef] = {}  # memory that was made or written

    def made(self, tensor: Tensor) -> None:
        """New memory, that nothing has written."""
        storage = tensor.untyped_storage()
        self.numbered.pop(storage._cdata, None)
        if storage.nbytes():
            self.unwritten[storage._cdata] = Unwritten(storage)

    def wrote(self, tensor: Tensor) -> None:
        """A tensor was written, all of it."""
        found = self.unwritten.get(key_of(tensor))
        if found is not None and found.write(tensor):
            del self.unwritten[key_of(tensor)]

    def drew(self, fill: Fill, storage: UntypedStorage) -> None:
        """A fill was drawn before the end, and so by its number."""
        if fill.source.by_default and not fill.name:
            self.numbered[storage._cdata] = reference(storage)
            self.drawn.add(fill.number)

    def did(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """An operation was done."""
        made, taken = in_memory(result), in_memory((args, kwargs))
        for tensor in made:
            self.seen[key_of(tensor)] = reference(tensor.untyped_storage())
        if name in EMPTY or (name in COPY and key_of(args[0]) in self.unwritten):
            for tensor in made:
                self.made(tensor)
            return
        written = in_memory([value for argument, value in arguments(func, args, kwargs) if is_written(argument)])
        for tensor in written:
            self.wrote(tensor)
            origins.altered(tensor)
        if self.numbered and any(key_of(tensor) in self.numbered for tensor in taken):
            for tensor in (*made, *written):
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
            elif has_memory(tensor) and key_of(tensor) in self.unwritten:
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


def arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The arguments of an operation by its schema, with what was given."""
    for number, argument in enumerate(func._schema.arguments):
        if number < len(args):
            yield argument, args[number]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument or a result of an operation, those in its lists, too; of shards the local ones."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors([*value.values()])
    elif isinstance(value, Shard):
        yield value.local


def in_memory(value: Any) -> list[Tensor]:
    """Those of them that have memory of their own."""
    return [tensor for tensor in tensors(value) if has_memory(tensor)]
