"""Draws that are made together, at the end of a block."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from torch import Tensor

from ..kernels.contract import Draw, Engine, JobEngine, KernelMissing
from .regions import Target, local_of

if TYPE_CHECKING:
    from ..kernels.cpu.jobs import Job, Plan

P = ParamSpec("P")
R = TypeVar("R")


class batch:  # noqa: N801: what users write
    """`with fastinit.batch():` draws what the block initialises when it ends, all tensors together, on all cores.

    Calls are checked, routed and given their numbers one by one, in order: errors, generators and bits are those of
    calls without the block. A tensor that is drawn twice as a whole is drawn once. Memory is written at the end of the
    block, or before another call of fastinit's needs what is pending there. Whatever else reads or writes it within the
    block finds it as it was: that is the caller's to avoid. At once is drawn what returns a new tensor
    (`fastinit.random`, initialisers as values), `orthogonal_`, `sparse_` and the like, parameters by element, GPUs'
    tensors, and what torch serves.

    Where an exception leaves the block, what is pending is not drawn. A block inside another one draws what is pending
    when it ends. Other threads are not concerned. Raises `RuntimeError` when it ends, before anything is drawn, where a
    tensor has got other memory since (`module.to(...)`).
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []  # one, once something is pending

    def __enter__(self) -> None:
        global open_blocks
        with _lock:
            open_blocks += 1
        _mine.blocks.append(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global open_blocks
        try:
            if kind is None:
                draw_pending()
        finally:
            self.jobs.clear()
            with contextlib.suppress(ValueError):  # another thread's
                _mine.blocks.remove(self)
            with _lock:
                open_blocks -= 1


class _Mine(threading.local):
    def __init__(self) -> None:
        self.blocks: list[batch] = []  # this thread's open ones, the innermost last


_mine = _Mine()
_lock = threading.Lock()
open_blocks = 0  # of all threads: while there are none, no thread need look for its own


def is_open() -> bool:
    """Whether calls of this thread are in a block."""
    return open_blocks > 0 and bool(_mine.blocks)


def pending(engine: JobEngine | None = None) -> Job:
    """The job of the innermost block, made by this engine if there is none yet."""
    jobs = _mine.blocks[-1].jobs
    if not jobs:
        if engine is None:
            from ..kernels.cpu.jobs import Job

            jobs.append(Job())
        else:
            jobs.append(engine.job())
    return jobs[0]


def fill(plan: Plan, tensor: Tensor, address: int, count: int, seed: int, stream_id: int) -> None:
    """A fill by a plan, of a contiguous tensor: at the end of the block if there is one."""
    if not is_open():
        plan.draw(address, count, seed, stream_id)
        return
    jobs = _mine.blocks[-1].jobs
    try:
        job = jobs[0] if jobs else pending()
    except KernelMissing:  # so nothing is pending
        plan.draw(address, count, seed, stream_id)
        return
    job.entries += (plan.pattern, address, count, seed, stream_id)
    job.tensors.append(tensor)
    job.owned.append(plan)


def defer(engine: Engine, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> bool:
    """Put off a fill to the end of the block, if this engine can and there is one. Raises `KernelMissing`."""
    if not is_open() or not isinstance(engine, JobEngine):
        return False
    pending(engine).add_fill(out, draw, first, steps)
    return True


def add_constant(engine: JobEngine, tensor: Tensor, element: bytes) -> None:
    """Each element of a contiguous tensor becomes these bytes, at the end of the block. Raises `KernelMissing`."""
    pending(engine).add_constant(tensor, element)


def settle(target: Target) -> None:
    """Draw what is pending if any of it lies in the target's memory: something else is about to read or write there."""
    if not is_open() or not any(block.jobs for block in _mine.blocks):
        return
    local = local_of(target)
    if local.is_cpu and any(job.touches(local) for block in _mine.blocks for job in block.jobs):
        draw_pending()


def draw_pending() -> None:
    """Draw what this thread's blocks have pending, in order."""
    taken = [job for block in _mine.blocks for job in block.jobs]
    for block in _mine.blocks:
        block.jobs.clear()
    for job in taken:
        job.do()


def at_once(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function whose draws are not put off, whatever blocks are open."""
    if not is_open():
        return function(*arguments, **named)
    blocks, _mine.blocks = _mine.blocks, []
    try:
        return function(*arguments, **named)
    finally:
        _mine.blocks = blocks
