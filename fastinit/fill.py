"""Law x stream x region -> tensor: the drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from . import engines
from .flags import forced_engine, wanted
from .kernels.engine import Draw, Engine
from .laws import Law, Parameters
from .regions import Target, region
from .streams import LOWEST, Stream, default_generator, drawn, drawn_seed

if TYPE_CHECKING:
    from .kernels.cpu import CpuEngine, Plan
    from .kernels.gpu import GpuEngine, Plan as GpuPlan

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
    if steps is None and local.is_contiguous():
        remember(local, law, engine, (kind, parameters))
    return target


# --- the short way of a tensor that is filled with a law that was asked for before ---------------

# A law's class, an output dtype and the law's numbers, to the kernel with what it takes; small tensors of the CPU.
plans: dict[tuple[Any, ...], Plan] = {}
# The same and the number of a GPU, to what fills a tensor of any size there.
gpu_plans: dict[tuple[tuple[Any, ...], int], GpuPlan] = {}
MOST_PLANS = 1024  # as many as the laws' own caches hold
increment_version: Callable[[tuple[Tensor]], None] = torch._C._increment_version  # torch's wrapper costs as much again


def key_of(law: Law, dtype: torch.dtype) -> tuple[Any, ...]:
    values: Any = law
    return (type(law), dtype, *(getattr(values, field.name) for field in fields(values)))


def remember(tensor: Tensor, law: Law, engine: Engine, parameters: Parameters) -> None:
    """From now on contiguous tensors of this dtype and device take the short way to this law."""
    if tensor.is_cpu and engine.name == "cpu":
        key = key_of(law, tensor.dtype)
        if key not in plans:
            make_room(plans)
            plans[key] = cast("CpuEngine", engine).plan(tensor.dtype, parameters)
    elif tensor.is_cuda and engine.name == "gpu" and engines.was_found_right(tensor.device, tensor.dtype, parameters):
        place = key_of(law, tensor.dtype), tensor.get_device()
        if place not in gpu_plans:
            make_room(gpu_plans)
            gpu_plans[place] = cast("GpuEngine", engine).plan(tensor.device, tensor.dtype, parameters)


def make_room(remembered: dict[Any, Any]) -> None:
    if len(remembered) >= MOST_PLANS:
        remembered.clear()


def fill_quickly(tensor: Any, key: tuple[Any, ...], generator: torch.Generator | None, stream: Stream | None) -> bool:
    """`fill` for a tensor whose way is QUICK, if its law, dtype and numbers were seen before.

    Returns whether it did; else nothing has happened. The bits are those of `fill`.
    """
    if forced_engine.get() is not None:
        return False
    if tensor.is_cuda:
        return fill_gpu_quickly(tensor, key, generator, stream)
    plan = plans.get(key)
    if plan is None:
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


def fill_gpu_quickly(
    tensor: Any, key: tuple[Any, ...], generator: torch.Generator | None, stream: Stream | None
) -> bool:
    """The same on a GPU, for a tensor of any size: what is long there is to find out how to launch."""
    write = gpu_plans.get((key, tensor.get_device()))
    if write is None:
        return False
    if stream is not None:
        seed, word = stream.seed, stream.id
    else:
        seed, word = drawn_seed(default_generator(tensor) if generator is None else generator), 0
    increment_version((tensor,))
    if count := tensor.numel():
        write(tensor.data_ptr(), count, seed, word)
    return True
