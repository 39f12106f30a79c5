"""Law x stream x region -> tensor: the drawing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.contract import Draw, Engine, KernelMissing
from ..kernels.dtypes import drawn_as
from ..laws import Law
from . import batch, engines
from .regions import Part, Shard, Target, first_of, parts_of
from .streams import Stream, source
from .torch_private import in_graph, increment_version


class ByElement(NamedTuple):
    """A law whose parameters differ from element to element: a law of its kind, and the parameters.

    They broadcast to the shape of the tensor that is written (of a shard, the local one), are on its device, and do not
    require grad.
    """

    like: Law
    parameters: tuple[Tensor, ...]


def fill(
    target: Target,
    law: Law | ByElement,
    generator: torch.Generator | None = None,
    *,
    stream: Stream | None = None,
    compiled: bool = False,
    later: bool = False,
) -> Engine | None:
    """Fill `target` in place with samples of `law`; returns who drew, None for a meta tensor, which stays as it is.

    The bits depend on the law, the stream and each element's index in the global tensor. Without a stream
    one is drawn from the generator (see `streams.default_generator`): one 64-bit number, whatever the size. Inside a
    `batch` the writing may be put off where `later`. Raises `RuntimeError` where `compiled` insists on a compiled
    engine and there is none.
    """
    local, parts = (target.local, [*parts_of(target)]) if isinstance(target, Shard) else (target, [Part(target, ())])
    if local.is_meta:
        return None
    like, each = law if isinstance(law, ByElement) else (law, ())
    kind, parameters = like.parameters(local.dtype)
    each = tuple(parameter.expand(local.shape) for parameter in each)
    dtype = drawn_as(local.dtype)
    engine = engines.choose(local.device, dtype, compiled, (kind, parameters), by_element=bool(each))
    stream = source(target, generator, stream)  # once it is known that something can draw
    draw = Draw(kind, () if each else parameters, stream.seed, stream.id)
    if isinstance(target, Shard) and not parts and target.owner is None:  # nothing to write
        return engine
    note_write(target)
    given = local if isinstance(target, Tensor) or target.owner is None else target.owner
    deferred = batch.watched() if isinstance(target, Shard) and later else None
    if deferred is not None and isinstance(target, Shard) and len(target.boxes) > 1 and target.is_all_of_local:
        deferred.add_shard(target, functools.partial(fill_shard, law, compiled), stream)
        return engine
    for memory, offset in parts:
        if memory.numel():
            if deferred is not None:
                deferred.source = deferred.source.part(torch.Size(target.shape), offset)
            out = memory if memory.dtype is dtype else memory.view(dtype)
            first, steps = first_of(offset, target.shape) if isinstance(target, Shard) else (0, None)
            owner = given if memory is local else None
            engine = draw_into(engine, out, compiled, draw, first, steps, each, later, owner)
    return engine


def note_write(target: Target) -> None:
    """Have autograd hear of a write that goes around torch: before it, in case that it is interrupted."""
    if in_graph():  # where torch writes itself
        return
    tensors = [target] if isinstance(target, Tensor) else [target.local, target.owner]  # torch keeps count of each
    for tensor in tensors:
        if tensor is not None and not tensor.is_inference():
            increment_version((tensor,))


def fill_shard(law: Law | ByElement, compiled: bool, target: Shard, stream: Stream) -> None:
    fill(target, law, stream=stream, compiled=compiled)


def draw_into(
    engine: Engine,
    out: Tensor,
    compiled: bool,
    draw: Draw,
    first: int,
    steps: Sequence[int] | None,
    each: Sequence[Tensor] = (),
    later: bool = False,
    owner: Tensor | None = None,
) -> Engine:
    """Have `engine` fill `out`, or the eager engine where a kernel is missing; returns who did.

    Inside a `batch` the writing is put off where `later`; for `owner` see `batch.defer`.
    """

    def write() -> None:
        if batch.blocks.get():
            if later and batch.defer(engine, out, draw, first, steps, owner):
                return
            batch.settle(out, *each)
        if each:
            engine.fill_each(out, draw, first, steps, each)
        else:
            engine.fill(out, draw, first, steps)

    try:
        write()
    except KernelMissing as error:
        engine = engines.without_kernel(out.device, out.dtype, compiled, error)
        write()
    return engine
