"""Draws that are made together, at the end of a block."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..kernels.contract import Draw, Engine, Job, JobEngine, KernelMissing
from .deferred import Deferred
from .dtensor import memory_of
from .regions import Shard
from .torch_private import in_graph, increment_version

if TYPE_CHECKING:
    from ..kernels.cpu.jobs import Plan

P = ParamSpec("P")
R = TypeVar("R")


class batch:
    """`with fastinit.batch():` draws what the block initialises when it ends, all tensors together, on all cores.

    Calls are checked, routed and given their numbers one by one, in order: errors, generators and bits are those of
    calls without the block. A tensor that is drawn twice as a whole is drawn once. Memory is written at the end of the
    block, or before another call of fastinit's needs what is pending there. Whatever else reads or writes it within the
    block may find it as it was: that is the caller's to avoid. Drawn at once: what returns a new tensor
    (`fastinit.random`, initialisers as values), `orthogonal_`, `sparse_` and the like, parameters by element, GPUs'
    tensors, and what torch serves.

    Where an exception leaves the block, what is pending is not drawn. A block inside another one draws what is pending
    when it ends. Other threads are not concerned. Where a tensor has got other memory since (`module.to(...)`), a
    `RuntimeError` comes when it is to be written, at the latest at the end, and nothing that is pending is drawn.
    Raises `RuntimeError` where the same object is entered twice at a time.
    """

    def __init__(self) -> None:
        self.over = True
        self.thread = 0
        self.around: tuple[weakref.ref[batch], ...] = ()
        self.jobs: list[Job] = []  # one, once something is pending

    def __enter__(self) -> None:
        if not self.over:
            raise RuntimeError("this batch is open already: make another one")
        self.jobs, self.thread, self.around = [], threading.get_ident(), blocks.get()
        self.over = False
        # Weakly: should an interruption come before the with-statement holds the block, it is gone, and not open.
        blocks.set((*self.around, weakref.ref(self)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.over = True
        if (found := blocks.get()) and found[-1]() is self:  # not in another thread
            blocks.set(self.around)
        try:
            if kind is None:
                draw([*opened(self.around), self])
        finally:
            self.jobs = []

    def take(self) -> list[Job]:
        """What is pending, to be done by the caller. What is added from now on is another job's."""
        taken, self.jobs = self.jobs, []
        for job in taken:
            job.taken = True
        return taken


class Watched(batch):
    """A block in which torch's modes see to it that what is pending is drawn before anything else needs the memory.

    So what returns new tensors is put off there, too. Where an exception leaves the block, all is drawn all the same:
    nobody can tell from the outside that anything was put off. Calls of fastinit's own are made with the modes off:
    `off` calls a function so, and `is_seen` says whether they are on. `escaped` counts what torch draws all the same.
    """

    def __init__(
        self, deferred: Deferred, off: Callable[..., Any], is_seen: Callable[[], bool], escaped: Counter[str]
    ) -> None:
        super().__init__()
        self.deferred, self.off, self.is_seen, self.escaped = deferred, off, is_seen, escaped

    def __enter__(self) -> None:
        super().__enter__()
        self.jobs = [self.deferred]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(None, None, None)

    def take(self) -> list[Job]:
        return self.jobs


# The open blocks, the innermost last; some may be over.
blocks: ContextVar[tuple[weakref.ref[batch], ...]] = ContextVar("fastinit.batch", default=())


def opened(found: tuple[weakref.ref[batch], ...]) -> list[batch]:
    """Those of these blocks that are open in this thread."""
    thread = threading.get_ident()
    mine = (block for ref in found if (block := ref()) is not None)
    return [block for block in mine if not block.over and block.thread == thread]


def is_open() -> bool:
    """Whether calls are in a block."""
    return not in_graph() and bool(blocks.get()) and bool(opened(blocks.get()))


def innermost() -> batch | None:
    """The block that calls of this thread are in; None outside of blocks."""
    found = blocks.get()
    last = found[-1]() if found else None
    if last is None or last.over or last.thread != threading.get_ident():  # seldom
        if not (others := opened(found)):
            blocks.set(())  # an interruption can leave one behind that is gone
            return None
        last = others[-1]
    return last


def pending(engine: JobEngine | Plan) -> Job | None:
    """The job of the innermost block, of this engine's kind; None outside of blocks. Raises `KernelMissing`."""
    last = innermost()
    if last is None:
        return None
    jobs = last.jobs
    if not jobs:
        jobs.append(engine.job())
    return jobs[0]


def put_off(engine: JobEngine | Plan, add: Callable[[Job], None]) -> bool:
    """Have `add` add to the job of the innermost block; False outside of blocks. Raises `KernelMissing`."""
    while (job := pending(engine)) is not None:
        add(job)
        if not job.taken:  # by a signal handler, in between
            return True
    return False


def fill(plan: Plan, tensor: Tensor, address: int, count: int, seed: int, stream_id: int) -> None:
    """A fill by a plan, of a contiguous tensor: at the end of the block if there is one."""
    try:
        later = put_off(plan, lambda job: job.add_plan(plan, tensor, address, count, seed, stream_id))
    except KernelMissing:
        later = False
    if not later:
        plan.draw(address, count, seed, stream_id)


def defer(
    engine: Engine, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None, owner: Tensor | None = None
) -> bool:
    """Put off a fill to the end of the block, if this engine can and there is one. Raises `KernelMissing`.

    `owner` is the caller's tensor, if `out` is another one of all its memory.
    """
    if (deferred := watched()) is not None:
        deferred.add_fill(out, draw, first, steps, owner, engine)
        return True
    held = None if owner is None else memory_of(owner)
    return isinstance(engine, JobEngine) and put_off(engine, lambda job: job.add_fill(out, draw, first, steps, held))


def seeing() -> Watched | None:
    """The block whose modes see what this thread does, if it is in one and they are on."""
    if in_graph() or not blocks.get():  # in this order: Dynamo cannot trace the latter
        return None
    block = innermost()
    return block if isinstance(block, Watched) and block.is_seen() else None


def unseen(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function of fastinit's run with the modes of a `Watched` block off."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        block = seeing()
        if block is None:
            return function(*arguments, **named)
        result: R = block.off(function, *arguments, **named)
        return result

    return call


def escapes(name: str) -> None:
    """Have the `Watched` block around, if there is one, know that torch draws, by its function of that name."""
    if not in_graph() and blocks.get() and isinstance(block := innermost(), Watched):
        block.escaped[name] += 1


def watched() -> Deferred | None:
    """What is pending, where the innermost block is a `Watched` one."""
    block = innermost()
    return block.deferred if isinstance(block, Watched) else None


def settle(*touched: Any) -> None:
    """Draw what is pending if any of it lies in memory that something else is about to read or write.

    What is neither a tensor, a shard nor an array is passed over. In a graph nothing is settled: its own operators are.
    """
    if in_graph() or not blocks.get():  # in this order: Dynamo cannot trace the latter
        return
    if (seen := seeing()) is not None:
        seen.off(lambda: settle(*touched))
        return
    open_here = opened(blocks.get())
    jobs = [job for block in open_here for job in block.jobs]
    hit = [(job, thing) for thing in touched for job in jobs if reaches(job, thing)]
    if not all(isinstance(job, Deferred) for job, _ in hit):
        draw(open_here)
        return
    for job, thing in hit:
        at_once(job.settle, *tensors_of(thing))  # type: ignore[attr-defined]


def reaches(job: Job, thing: Any) -> bool:
    """Whether a job may write what this thing holds; also where nobody can tell."""
    try:
        return any(map(job.touches, tensors_of(thing)))
    except Exception:  # no memory, or none that can be asked for: classes of tensors have errors of their own
        return True


def tensors_of(thing: Any) -> list[Tensor]:
    """The tensors that a shard, an array or a list holds, or that it is."""
    if isinstance(thing, (list, tuple)):
        return [tensor for each in thing if isinstance(each, (Tensor, np.ndarray)) for tensor in tensors_of(each)]
    tensor = thing.local if isinstance(thing, Shard) else thing
    tensor = torch.as_tensor(tensor) if isinstance(tensor, np.ndarray) else tensor
    return [memory_of(tensor)] if isinstance(tensor, Tensor) else []


def draw(open_here: list[batch]) -> None:
    """Draw what these blocks have pending, in order."""
    taken = [job for block in open_here for job in block.take()]
    for job in taken:
        job.check()
    for job in taken:
        # Once more than at the call, so that autograd knows that what was used in between was something else.
        increment_version(tuple(tensor for tensor in job.tensors() if not tensor.is_inference()))
        within((), job.do)


def at_once(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function whose draws are not put off, whatever blocks are open."""
    if in_graph() or not blocks.get():
        return function(*arguments, **named)
    return within((), function, *arguments, **named)


def anew(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function that fills a new tensor, which nobody expects to be put off: it is only in a `Watched` block."""
    if in_graph() or not blocks.get():
        return function(*arguments, **named)
    found = blocks.get() if watched() is not None else ()
    return within(found, function, *arguments, **named)


def within(found: tuple[weakref.ref[batch], ...], function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function with these blocks around it."""
    token = blocks.set(found)
    try:
        return function(*arguments, **named)
    finally:
        blocks.reset(token)
