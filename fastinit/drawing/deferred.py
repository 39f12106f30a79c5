"""Fills that are put off until something else needs the memory that they write; of each memory only the last ones."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

from ..kernels.contract import Draw, Engine, Job, JobEngine, KernelMissing
from ..kernels.runs import reach
from . import engines, torch_private as private
from .dtensor import memory_of
from .regions import Shard
from .streams import Stream

if TYPE_CHECKING:
    from ..kernels.cpu.jobs import Plan

Write = Callable[[Tensor, Stream], object]  # fills a tensor from a stream


class Source(NamedTuple):
    """Where a fill comes from: the initialiser, its arguments, and whether a default generator chose its stream.

    Where the fill is of a part of a global tensor: that one's `shape`, and the index there of the `first` element.
    """

    initialiser: str
    values: tuple[Any, ...]
    by_default: bool
    layout: Any = None
    shape: torch.Size | None = None
    first: tuple[int, ...] = ()

    def part(self, shape: torch.Size, first: tuple[int, ...]) -> Source:
        return self._replace(shape=shape, first=first)


NOBODY = Source("", (), False)


class ByEngine(NamedTuple):
    """How an engine fills: see `contract.Engine.fill`. The draw's stream is the fill's."""

    engine: Engine
    draw: Draw
    first: int
    steps: Sequence[int] | None


class Fill(NamedTuple):
    """A fill of a part of some memory: where, how, and from which stream."""

    dtype: torch.dtype
    offset: int  # in elements
    shape: torch.Size
    stride: tuple[int, ...]
    by: Plan | ByEngine | Write
    seed: int
    stream_id: int
    source: Source
    number: int  # of the call; copies have the same
    name: str = ""  # by which its stream was chosen

    @property
    def elements(self) -> int:
        return self.shape.numel()

    @property
    def reach(self) -> int:
        """See `runs.reach`."""
        return reach(self.shape, self.stride)

    def covers(self, storage: UntypedStorage) -> bool:
        """Whether it writes all of the memory. Engines fill no tensor whose elements share memory."""
        return self.offset == 0 and self.elements * self.dtype.itemsize >= storage.nbytes()

    def fits(self, storage: UntypedStorage) -> bool:
        """Whether the memory, which may have been resized, has the place for it."""
        return not self.elements or (self.offset + self.reach) * self.dtype.itemsize <= storage.nbytes()

    def replaces(self, other: Fill) -> bool:
        """Whether it writes the very part that another one writes."""
        same = (self.shape, self.stride) == (other.shape, other.stride)
        dense = self.reach == self.elements == other.elements == other.reach
        return self.offset == other.offset and self.dtype is other.dtype and (same or dense)

    def tensor(self, storage: UntypedStorage) -> Tensor:
        """What it fills."""
        empty: Any = torch.empty(0, dtype=self.dtype, device=storage.device)
        tensor: Tensor = empty.set_(storage, self.offset, self.shape, self.stride)
        return tensor


class Pending:
    """The fills of one memory, in order, while it lives."""

    __slots__ = ("fills", "memory", "owner", "version")

    def __init__(self, storage: UntypedStorage) -> None:
        self.memory = reference(storage)
        self.fills: list[Fill] = []
        self.owner: Callable[[], Tensor | None] = _nothing  # the tensor that was filled last, while it lives
        self.version = 0  # of that tensor, then

    def storage(self) -> UntypedStorage | None:
        """The memory, if it still lives."""
        found: UntypedStorage | None = private.memory_of(self.memory.cdata)
        return found

    def was_written(self, storage: UntypedStorage) -> bool:
        """Whether somebody else has written it since, or given it another size, unseen."""
        owner = self.owner()
        # Of a DTensor's memory: its own version also counts what is written to copies of its rows.
        moved = owner is not None and memory_of(owner)._version > self.version and key_of(owner) == key_in(storage)
        return moved or not all(fill.fits(storage) for fill in self.fills)


def _nothing() -> None:
    return None


def reference(storage: UntypedStorage) -> Any:
    """A weak reference to memory; while one is kept, no other memory has the same key."""
    return private.WeakMemory(storage)


def key_of(tensor: Tensor) -> int:
    """What tells a tensor's memory from all others, while it lives or a `reference` to it is kept."""
    return key_in(memory_of(tensor).untyped_storage())


def key_in(storage: UntypedStorage) -> int:
    key: int = storage._cdata
    return key


class Deferred:
    """Fills that are put off, by memory, which they do not keep alive. To those who add to it, a `contract.Job`.

    Whoever holds one has to call `settle` before anything else reads or writes what is pending. Where `defer` is false
    nothing is put off.
    """

    taken = False  # see `batch.put_off`

    def __init__(self) -> None:
        self.defer = True
        self.pending: dict[int, Pending] = {}
        self.known: dict[int, Any] = {}  # memory whose address is known elsewhere, which is filled at once
        self.source = NOBODY  # of what is added next
        self.numbers = itertools.count()
        # What says from which stream fills are drawn, when they are.
        self.renamed: Callable[[Fill, UntypedStorage], Fill] = lambda fill, _: fill
        # Is told what is drawn, and into whose tensor.
        self.noted: Callable[[Fill, UntypedStorage, Tensor | None], None] = lambda *_: None
        self.drawn = 0  # fills that were drawn
        self.replaced = 0  # that were not, because others came after them or nobody kept the memory
        self.foreign: list[Tensor] = []  # tensors that somebody else wrote, unseen: they were left as they are

    # --- adding ----------------------------------------------------------------------------------

    def add_plan(self, plan: Plan, out: Tensor, address: int, count: int, seed: int, stream_id: int) -> None:
        """A fill of a contiguous tensor by a plan of the CPU engine's."""
        self.add(out, plan, seed, stream_id)

    def add_plans(
        self,
        plans: Sequence[Plan],
        outs: Sequence[Tensor],
        patterns: Any,
        addresses: Any,
        counts: Any,
        seeds: Any,
        stream_ids: Any,
    ) -> None:
        """The same of many tensors: for each its plan's pattern, and so on, or one for all."""
        by = {plan.pattern: plan for plan in plans}
        for number, out in enumerate(outs):
            pattern, seed, stream_id = (
                some if isinstance(some, int) else int(some[number]) for some in (patterns, seeds, stream_ids)
            )
            self.add(out, by[pattern], seed, stream_id)

    def add_fill(
        self,
        out: Tensor,
        draw: Draw,
        first: int,
        steps: Sequence[int] | None,
        owner: Tensor | None = None,
        engine: Engine | None = None,
    ) -> None:
        """A fill by an engine, the CPU's if None. `owner` is the caller's, if `out` is another tensor of its memory."""
        engine = engines.choose(out.device, out.dtype, False) if engine is None else engine
        self.add(out, ByEngine(engine, draw, first, steps), draw.seed, draw.stream_id, owner)

    def add_shard(self, target: Shard, write: Callable[[Shard, Stream], object], stream: Stream) -> None:
        """A fill of the boxes that a local tensor holds of a global one. Of a part of a tensor it is made at once."""
        if not target.boxes:
            return
        boxes, shape, local = target.boxes, target.shape, target.local
        size, stride, begin = local.shape, local.stride(), int(local.storage_offset())

        def by(out: Tensor, stream: Stream) -> None:  # keeps no memory alive
            write(Shard(out.as_strided(size, stride, begin), shape, boxes), stream)

        self.source = self.source.part(shape, boxes[0].offset)
        before = self.defer
        try:
            self.defer = before and target.is_all_of_local  # what else is there could neither be covered nor replaced
            out = local if target.is_all_of_local else boxes[0].of(local)
            self.add(out, by, stream.seed, stream.id, target.owner)
        finally:
            self.defer = before

    def add(
        self, out: Tensor, by: Plan | ByEngine | Write, seed: int, stream_id: int, owner: Tensor | None = None
    ) -> None:
        storage, owner = out.untyped_storage(), out if owner is None else owner
        key, source = key_in(storage), self.source
        offset, number = int(out.storage_offset()), next(self.numbers)
        fill = Fill(out.dtype, offset, out.shape, out.stride(), by, seed, stream_id, source, number)
        # What cannot be resized is NumPy's, a file's or another process's as well.
        if not self.defer or key in self.known or not storage.resizable():
            self.flush([key])
            self.draw([(self.renamed(fill, storage), storage, owner)])
            return
        found = self.pending.get(key)
        if found is None:
            found = self.pending[key] = Pending(storage)
        if fill.covers(storage):
            self.replaced += len(found.fills)
            found.fills.clear()
        elif found.fills and fill.replaces(found.fills[-1]):
            self.replaced += 1
            found.fills.pop()
        found.fills.append(fill)
        if fill.elements == 1:  # torch.tensor([...]) and its like read numbers where nobody is told
            self.draw([(self.renamed(fill, storage), storage, owner)])
            self.drawn -= 1
        if owner.is_inference():  # which has no version
            found.owner = _nothing
        else:
            found.owner, found.version = weakref.ref(owner), memory_of(owner)._version

    def copy(self, tensor: Tensor, made: Tensor) -> bool:
        """Have `made` filled as `tensor` is to be, of the same strides; False where that cannot be put off."""
        found, key = self.pending.get(key_of(tensor)), key_of(made)
        storage = None if found is None else found.storage()
        if found is None or storage is None or not found.fills[0].covers(storage) or found.was_written(storage):
            return False
        if key in self.known or not made.untyped_storage().resizable() or made.device != tensor.device:
            return False
        before = self.pending.pop(key, None)
        self.replaced += 0 if before is None else len(before.fills)
        copied = self.pending[key] = Pending(made.untyped_storage())
        found.fills[:] = [self.renamed(fill, storage) for fill in found.fills]
        copied.fills = found.fills.copy()
        return True

    # --- drawing -----------------------------------------------------------------------------------

    def touches(self, tensor: Tensor) -> bool:
        """Whether something is pending in the memory of a tensor, or may be: not all tensors have one to ask."""
        if not self.pending:
            return False
        try:
            return key_of(tensor) in self.pending
        except (NotImplementedError, RuntimeError):
            return True

    def settle(self, *tensors: Tensor) -> None:
        """Draw what is pending in the memory of these tensors; all, where nobody can tell."""
        try:
            keys = [*map(key_of, tensors)]
        except (NotImplementedError, RuntimeError):
            keys = [*self.pending]
        self.flush(keys)

    def keep_known(self, tensor: Tensor) -> None:
        """From now on fill the memory of this tensor at once: its address is known where nobody can see."""
        storage = tensor.untyped_storage()
        self.known[key_in(storage)] = reference(storage)

    def do(self) -> None:
        """Draw all that is pending."""
        self.flush([*self.pending])

    def flush(self, keys: Iterable[int]) -> None:
        """Draw what is pending in these memories."""
        taken = {key: found for key in keys if (found := self.pending.pop(key, None)) is not None}
        fills = []
        try:
            for found in taken.values():
                storage = found.storage()
                if storage is None:
                    self.replaced += len(found.fills)
                elif found.was_written(storage):
                    owner = found.owner()
                    self.foreign.append(found.fills[-1].tensor(storage) if owner is None else owner)
                else:
                    fills += [(self.renamed(fill, storage), storage, found.owner()) for fill in found.fills]
            self.draw(fills)
        except BaseException:
            self.pending = taken | self.pending  # drawn again, they are the same
            raise

    def draw(self, fills: Sequence[tuple[Fill, UntypedStorage, Tensor | None]]) -> None:
        """Draw these, in order; neighbours that can be are one job."""
        job: Job | None = None
        with torch.no_grad():
            for fill, storage, owner in fills:
                self.noted(fill, storage, owner)
                out = fill.tensor(storage)
                together = added(fill, out, job) if fill.elements else job
                if together is not None:
                    job = together
                    continue
                if job is not None:
                    job.do()
                    job = None
                draw_alone(fill, out)
            if job is not None:
                job.do()
        self.drawn += len(fills)

    # --- what a job has besides --------------------------------------------------------------------

    def check(self) -> None:
        """Memory is asked for when it is drawn."""

    def tensors(self) -> list[Tensor]:
        """None that autograd has to hear of once more: nobody has used what is pending."""
        return []


def added(fill: Fill, out: Tensor, job: Job | None) -> Job | None:
    """The job, or a new one, with this fill added; None where it cannot be done in one."""
    by: Any = fill.by
    try:
        if isinstance(by, ByEngine) and isinstance(by.engine, JobEngine):
            job = by.engine.job() if job is None else job
            job.add_fill(out, drawn_from(fill), by.first, by.steps)
            return job
        if isinstance(by, ByEngine) or callable(by):
            return None
        job = by.job() if job is None else job
        job.add_plan(by, out, out.data_ptr(), fill.elements, fill.seed, fill.stream_id)
        return job
    except KernelMissing:
        return None


def draw_alone(fill: Fill, out: Tensor) -> None:
    by: Any = fill.by
    if isinstance(by, ByEngine):
        draw = drawn_from(fill)
        try:
            by.engine.fill(out, draw, by.first, by.steps)
        except KernelMissing as error:
            engines.without_kernel(out.device, out.dtype, False, error).fill(out, draw, by.first, by.steps)
    elif callable(by):
        by(out, Stream(fill.seed, fill.stream_id))
    elif fill.elements:
        by.draw(out.data_ptr(), fill.elements, fill.seed, fill.stream_id)


def drawn_from(fill: Fill) -> Draw:
    """What its engine draws."""
    by: Any = fill.by
    draw: Draw = by.draw._replace(seed=fill.seed, stream_id=fill.stream_id)
    return draw
