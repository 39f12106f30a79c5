"""The streams of a model's draws: by the qualified name of the tensor that each fills."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

from ..drawing.deferred import Fill, key_in, reference
from ..drawing.streams import Stream


class Place(NamedTuple):
    """Where a named tensor lies in its memory; offsets and sizes in elements."""

    name: str
    offset: int
    elements: int
    dtype: torch.dtype


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters, then its buffers, those without memory too; each once, by its first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has elements in memory that can be asked for."""
    try:
        return not tensor.is_meta and tensor.numel() > 0 and tensor.untyped_storage().nbytes() > 0
    except (NotImplementedError, RuntimeError, ValueError):  # a wrapper around others, one that is made later
        return False


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
                place = Place(name, int(tensor.storage_offset()), tensor.numel(), tensor.dtype)
                self.places.setdefault(key_in(storage), (reference(storage), []))[1].append(place)

    def place_of(self, fill: Fill, storage: UntypedStorage) -> Place | None:
        """The tensor that a fill is for, or for a part of."""
        if key_in(storage) not in self.places:  # the model may have got other memory since
            self.read()
        for place in self.places.get(key_in(storage), (None, ()))[1]:
            size = place.elements * place.dtype.itemsize
            begin, end = place.offset * place.dtype.itemsize, place.offset * place.dtype.itemsize + size
            first = fill.offset * fill.dtype.itemsize
            if begin <= first and first + fill.reach * fill.dtype.itemsize <= end:
                return place
        return None

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
                stream = stream.child(f"{fill.offset - place.offset} {[*fill.shape]} {[*fill.stride]}")
            self.found[fill.number] = place.name, stream
        name, stream = self.found[fill.number]
        return fill._replace(seed=stream.seed, stream_id=stream.id, name=name)
