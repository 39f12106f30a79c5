"""The streams of a model's draws: by the qualified name of the tensor that each fills."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

from ..drawing.deferred import Fill, key_in, reference
from ..drawing.dtensor import memory_of, placed
from ..drawing.regions import Shard
from ..drawing.streams import Stream
from ..kernels.runs import reach, row_major, unravelled
from .walk import has_memory, named_tensors

EMPTY = torch.empty(0, device="cpu")


class Place(NamedTuple):
    """Where a named tensor lies in its memory; offsets and sizes in elements.

    Of a DTensor it is the local one, and `whole` says which part of which tensor that is.
    """

    name: str
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    whole: Shard | None = None

    @property
    def reach(self) -> int:
        """See `runs.reach`."""
        return reach(self.shape, self.stride)

    def holds(self, fill: Fill) -> bool:
        """Whether what a fill writes lies between the tensor's first and last elements."""
        begin, first = self.offset * self.dtype.itemsize, fill.offset * fill.dtype.itemsize
        end, last = begin + self.reach * self.dtype.itemsize, first + fill.reach * fill.dtype.itemsize
        return begin <= first and last <= end

    def is_all_of(self, fill: Fill) -> bool:
        return (self.offset, self.shape.numel(), self.reach) == (fill.offset, fill.elements, fill.reach)

    def stream_of(self, fill: Fill, seed: int) -> Stream | None:
        """By name; of a part by where it lies in the tensor, in row-major order whatever the order in memory.

        None where a rank cannot tell of a part of a DTensor where that lies in the whole.
        """
        stream = Stream.named(self.name, seed)
        whole, shape = self.whole, fill.source.shape
        if whole is None or shape is None:
            elements, every = fill.elements, self.shape.numel()
        else:  # a part of a part: of each the global tensor counts
            elements, every = shape.numel(), whole.numel()
        if elements == every:
            return stream
        if whole is not None:
            found = self.part_of(fill, whole)
            return None if found is None else stream.part(*found)
        offset, steps = fill.offset - self.offset, fill.stride
        if steps == self.stride and all(steps):  # a box of the tensor
            logical = row_major(self.shape)
            index = unravelled(offset, [step if size > 1 else 0 for size, step in zip(self.shape, steps, strict=True)])
            offset, steps = sum(at * step for at, step in zip(index, logical, strict=True)), logical
        return stream.part(offset, fill.shape, steps)

    def part_of(self, fill: Fill, whole: Shard) -> tuple[int, Sequence[int], Sequence[int]] | None:
        """Of a part of a DTensor: its place in the tensor, its shape and steps, whatever of it is here.

        None where that is not a box of the tensor, of all or some of its dimensions.
        """
        shape, first = fill.source.shape, fill.source.first
        here, kept = whole.index_of(fill.offset - self.offset), subsequence(fill.stride, self.stride)
        if shape is None or here is None or kept is None:
            return None
        at, steps = list(here), row_major(whole.shape)
        for dimension, own in zip(kept, first, strict=True):
            at[dimension] -= own
        offset = sum(index * step for index, step in zip(at, steps, strict=True))
        return offset, shape, [steps[dimension] for dimension in kept]


def subsequence(some: Sequence[int], of: Sequence[int]) -> list[int] | None:
    """Where the elements of `some` stand in `of`, in order; None where they do not."""
    found: list[int] = []
    for place, one in enumerate(of):
        if len(found) < len(some) and some[len(found)] == one:
            found.append(place)
    return found if len(found) == len(some) else None


def layout_of(tensor: Tensor) -> Shard | None:
    """Which part of a DTensor is here, without its memory; None for other tensors and where that is not known."""
    try:
        found = placed(tensor, True)
    except ValueError:
        return None
    return replace(found, local=EMPTY, owner=None) if isinstance(found, Shard) else None


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
                local = memory_of(tensor)
                storage, begin = local.untyped_storage(), int(local.storage_offset())
                place = Place(name, begin, local.shape, local.stride(), tensor.dtype, layout_of(tensor))
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
            stream = None if place is None else place.stream_of(fill, self.seed)
            if place is None or stream is None:
                return fill
            self.found[fill.number] = place.name, stream
        name, stream = self.found[fill.number]
        return fill._replace(seed=stream.seed, stream_id=stream.id, name=name)
