"""Law x stream x region -> tensor: the drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from . import engines
from .flags import forced_engine, wanted
from .kernels.engine import Draw
from .laws import Law
from .regions import Target, region
from .streams import LOWEST, Stream, default_generator, drawn, drawn_seed

if TYPE_CHECKING:
    from .kernels.cpu import CpuEngine, Plan

T = TypeVar("T", bound=Target)


def fill(
    target: T,
    law: Law,
    generator: torch.Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Stream | None = None,
) -> T:
    """Fill `target` in place with samples of `law`; returns `target`.

    The bits depend on the law, the stream and each element's index in the global tensor. Without a stream
    one is drawn from the generator (see `streams.default_generator`): one 64-bit number, whatever the size. A meta
    tensor stays as it is.
    """
    local, first, steps = region(target)
    if local.is_meta:
        return target
    kind, parameters = law.parameters(local.dtype)
    asked = wanted(local, fast) or None
    engine = engines.choose(local, asked, (kind, parameters))
    if generator is None and stream is None and not local.is_cpu:
        generator = default_generator(target)
    seed, word = (drawn_seed(generator), 0) if stream is None else (stream.seed, stream.id)
    draw = Draw(kind, parameters, seed, word)
    try:
        if local.numel():
            engine = engines.draw_into(engine, local, asked, draw, first, steps)
    finally:  # autograd must hear of writes that go around torch, interrupted ones too
        if not local.is_inference():
            torch.autograd.graph.increment_version(local)
    if local.is_cpu and engine.name == "cpu" and steps is None and local.is_contiguous():
        key = key_of(law, local.dtype)
        if key not in plans:
            remember(key, cast("CpuEngine", engine).plan(local.dtype, (kind, parameters)))
    return target


# --- the short way of a small tensor, filled with a law that was asked for before ----------------

# A law's class, an output dtype and the law's numbers, to the kernel with what it takes.
plans: dict[tuple[Any, ...], Plan] = {}
MOST_PLANS = 1024  # as many as the laws' own caches hold
increment_version: Callable[[tuple[Tensor]], None] = torch._C._increment_version  # torch's wrapper costs as much again


def key_of(law: Law, dtype: torch.dtype) -> tuple[Any, ...]:
    values: Any = law
    return (type(law), dtype, *(getattr(values, field.name) for field in fields(values)))


def remember(key: tuple[Any, ...], plan: Plan) -> None:
    """From now on small tensors take the short way to this law in this dtype."""
    if len(plans) >= MOST_PLANS:
        plans.clear()
    plans[key] = plan


def fill_quickly(tensor: Any, key: tuple[Any, ...], generator: torch.Generator | None, stream: Stream | None) -> bool:
    """`fill` for a tensor whose way is QUICK, if it is small and its law, dtype and numbers were seen before.

    Returns whether it did; else nothing has happened. The bits are those of `fill`.
    """
    plan = plans.get(key)
    if plan is None or forced_engine.get() is not None:
        return False
    write, parameters, most, size = plan
    count = tensor.numel()
    if count > most:
        return False
    if stream is not None:
        seed, word = stream.seed, stream.id
    elif generator is not None:
        seed, word = drawn_seed(generator), 0
    else:
        drawn.draw(LOWEST, None)  # without `generator=`, which costs 70 ns
        seed, word = drawn.room.value, 0
    increment_version((tensor,))  # before the write: an interruption may come between
    write(tensor.data_ptr(), 0, count, 0, count, size, 0, 0, seed, word, 0, parameters)
    return True
