"""The streams of a model's draws: by the qualified name of the tensor that each fills."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, UntypedStorage

from ..drawing.deferred import Fill, key_in, reference
from ..drawing.streams import Stream

N = TypeVar("N", bound=Tensor)


class Place(NamedTuple):
    """Where a named tensor lies in its memory; offsets and sizes in elements. `reach`: from its first to its last."""

    name: str
    offset: int
    elements: int
    reach: int
    dtype: torch.dtype

    def holds(self, fill: Fill) -> bool:
        """Whether what a fill writes lies between the tensor's first and last elements."""
        begin, first = self.offset * self.dtype.itemsize, fill.offset * fill.dtype.itemsize
        end, last = begin + self.reach * self.dtype.itemsize, first + fill.reach * fill.dtype.itemsize
        return begin <= first and last <= end

    def is_all_of(self, fill: Fill) -> bool:
        return (self.offset, self.elements, self.reach) == (fill.offset, fill.elements, fill.reach)


# Modules of torch's that hold another one, and the name that they give it.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OptimizedModule": "_orig_mod",
}


def walk(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """A module and all in it, each by every name that it has: as in the model without torch's wrappers around parts."""
    yield prefix, module
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.")]
    wrapped = next((WRAPPERS[kind.__name__] for kind in kinds if kind.__name__ in WRAPPERS), None)
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, prefix if name == wrapped else joined(prefix, name))


def joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def named_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A model's parameters, those without memory too; each once, by its first name, which no wrapper changes."""
    yield from first_names(
        (joined(prefix, name), one) for prefix, each in walk(model) for name, one in parameters(each)
    )


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters, then its buffers, in the same way."""
    yield from named_parameters(model)
    yield from first_names(
        (joined(prefix, name), one) for prefix, module in walk(model) for name, one in buffers(module)
    )


def parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A module's own."""
    return ((name, one) for name, one in module._parameters.items() if one is not None)


def buffers(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, one) for name, one in module._buffers.items() if one is not None)


def first_names(named: Iterable[tuple[str, N]]) -> Iterator[tuple[str, N]]:
    """Each tensor once."""
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has elements in memory that can be asked for."""
    try:
        return not tensor.is_meta and tensor.numel() > 0 and tensor.untyped_storage().nbytes() > 0
    except (NotImplementedError, RuntimeError, ValueError):  # a wrapper around others, one that is made later
        return False


def reach(tensor: Tensor) -> int:
    """How many elements lie from a tensor's first to its last one, with those between that are not its own."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


class Names:
    """Which draw is whose: says from which stream a fill of a model's is drawn.

    The stream of a parameter or buffer that is drawn as a whole is `Stream.named(its name, seed)`. A part of one has a
    child of that, by where it lies. A copy of what was to be drawn has the stream of its original, or of the first copy
    in the order of the model. What belongs to no name keeps the stream that the generator gave it.
    """

    def __init__(self, model: torch.nn.Module, seed: int, drawn: Set[int] = frozenset()) -> None:
        self.model, self.seed = model, seed
        self.drawn = drawn  # numbers of calls that were drawn by them: copies have the same stream
        self.found: dict[int, tuple[str, Stream]] = {}  # by the number of the call, whose copies are alike
        self.places: dict[int, tuple[Any, list[Place]]] = {}  # by memory, with a reference to it
        self.read()

    def read(self) -> None:
        """Find out where the tensors of the model are."""
        self.places.clear()
        for name, tensor in named_tensors(self.model):
            if has_memory(tensor):
                storage = tensor.untyped_storage()
                place = Place(name, int(tensor.storage_offset()), tensor.numel(), reach(tensor), tensor.dtype)
                self.places.setdefault(key_in(storage), (reference(storage), []))[1].append(place)

    def place_of(self, fill: Fill, storage: UntypedStorage) -> Place | None:
        """The tensor that a fill is for, or for a part of."""
        if key_in(storage) not in self.places:  # the model may have got other memory since
            self.read()
        around = [place for place in self.places.get(key_in(storage), (None, ()))[1] if place.holds(fill)]
        return next((place for place in around if place.is_all_of(fill)), around[0] if around else None)

    def __call__(self, fill: Fill, storage: UntypedStorage) -> Fill:
        """The same fill, from the stream that it has by its name; as it is where somebody chose its stream."""
        if not fill.source.by_default or fill.number in self.drawn:
            return fill
        if fill.number not in self.found:
            place = self.place_of(fill, storage)
            if place is None:
                return fill
            stream = Stream.named(place.name, self.seed)
            if fill.elements != place.elements:
                stream = stream.part(fill.offset - place.offset, fill.shape, fill.stride)
            self.found[fill.number] = place.name, stream
        name, stream = self.found[fill.number]
        return fill._replace(seed=stream.seed, stream_id=stream.id, name=name)
