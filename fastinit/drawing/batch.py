"""Draws that are made together, at the end of a block."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..kernels.contract import Draw, Engine, Job, JobEngine, KernelMissing
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


def pending(engine: JobEngine | Plan) -> Job | None:
    """The job of the innermost block, of this engine's kind; None outside of blocks. Raises `KernelMissing`."""
    found = blocks.get()
    last = found[-1]() if found else None
    if last is None or last.over or last.thread != threading.get_ident():  # seldom
        if not (others := opened(found)):
            blocks.set(())  # an interruption can leave one behind that is gone
            return None
        last = others[-1]
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
    return isinstance(engine, JobEngine) and put_off(engine, lambda job: job.add_fill(out, draw, first, steps, owner))


def settle(*touched: Any) -> None:
    """Draw what is pending if any of it lies in memory that something else is about to read or write.

    What is neither a tensor, a shard nor an array is passed over. In a graph nothing is settled: its own operators are.
    """
    if in_graph() or not blocks.get():  # in this order: Dynamo cannot trace the latter
        return
    open_here = opened(blocks.get())
    jobs = [job for block in open_here for job in block.jobs]
    if jobs and any(reaches(job, thing) for thing in touched for job in jobs):
        draw(open_here)


def reaches(job: Job, thing: Any) -> bool:
    """Whether a job may write what this thing holds; also where nobody can tell."""
    if isinstance(thing, (list, tuple)):
        return any(reaches(job, each) for each in thing if isinstance(each, (Tensor, np.ndarray)))
    try:
        tensor = thing.local if isinstance(thing, Shard) else thing
        tensor = torch.as_tensor(tensor) if isinstance(tensor, np.ndarray) else tensor
        return isinstance(tensor, Tensor) and tensor.device.type == "cpu" and job.touches(tensor)
    except Exception:  # no memory, or none that can be asked for: classes of tensors have errors of their own
        return True


def draw(open_here: list[batch]) -> None:
    """Draw what these blocks have pending, in order."""
    taken = [job for block in open_here for job in block.jobs]
    for block in open_here:
        block.jobs = []
    for job in taken:
        job.taken = True
    for job in taken:
        job.check()
    for job in taken:
        # Once more than at the call, so that autograd knows that what was used in between was something else.
        increment_version(tuple(tensor for tensor in job.tensors() if not tensor.is_inference()))
        job.do()


def at_once(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function whose draws are not put off, whatever blocks are open."""
    if in_graph() or not blocks.get():
        return function(*arguments, **named)
    token = blocks.set(())
    try:
        return function(*arguments, **named)
    finally:
        blocks.reset(token)
