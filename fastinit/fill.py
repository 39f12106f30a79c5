"""Law x stream x region -> tensor: who draws, and the drawing."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import Buffer, Parameter
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from . import engines
from .flags import check_fast, wanted
from .kernels.engine import Draw
from .kernels.formats import FORMATS
from .laws import Law
from .regions import Shard, Target, local_of, region
from .streams import Stream, check_source, drawn_seed

T = TypeVar("T", bound=Target)
SAMPLED = tuple(FORMATS)


def torch_draws(target: Target, generator: torch.Generator | None, fast: bool | None, stream: Stream | None) -> bool:
    """Whether torch.nn.init serves this call, by the flags and by what the tensor is.

    Raises `RuntimeError` where that cannot be: with `fast=True`, and where a stream or a shard is given.
    """
    check_source(generator, stream)
    tensor = local_of(target)
    check_fast(fast)
    asked = wanted(tensor, fast)
    if asked is False:
        reason: str | None = "fast=False asks for torch.nn.init"
    elif generator is not None and not isinstance(generator, torch.Generator):
        reason = f"{type(generator).__name__} is not a torch.Generator"
    else:
        reason = outside_contract(tensor)
    if reason is None:
        if tensor.is_meta:  # nothing to draw: torch's own no-op
            return not isinstance(target, Shard)
        refuse_inference_write(tensor)
        if asked:
            engines.choose(tensor, True)
        return False
    if asked:
        raise RuntimeError(f"fast=True cannot be kept: {reason}; leave it out to fall back to torch.nn.init")
    if stream is not None or isinstance(target, Shard):
        what = "a shard" if isinstance(target, Shard) else "stream="
        raise RuntimeError(f"torch.nn.init cannot serve {what}, and fastinit does not draw here: {reason}")
    return True


def refuse_inference_write(tensor: Tensor) -> None:
    """Raises torch's own error for an inference tensor outside its mode; torch raises it after writing the tensor."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        with torch.inference_mode():
            empty = torch.empty(0, device="cpu")
        empty.zero_()


def outside_contract(tensor: Tensor, dtypes: tuple[torch.dtype, ...] = SAMPLED) -> str | None:
    """Why the kernels must leave this tensor, or this moment, to torch; None if they need not."""
    if torch.compiler.is_compiling():  # first: Dynamo need not trace the rest
        return "torch.compile is tracing"
    if not isinstance(tensor, Tensor):
        return f"{type(tensor).__name__} is not a tensor"
    if not plain(type(tensor)):
        return f"{type(tensor).__name__} brings its own torch functions"
    if tensor.dtype not in dtypes:
        return f"the stream contract does not cover {str(tensor.dtype).removeprefix('torch.')}"
    if torch._C._len_torch_function_stack() and not all(
        type(mode) is DeviceContext
        for mode in _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    ):
        return "a torch function mode is active and must see torch's own calls"
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active and must see torch's own operations"
    if torch._C._functorch.maybe_current_level() is not None:
        return "a functorch transform is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit is tracing"
    if tensor.layout is not torch.strided or tensor.is_neg():
        return f"it is not a plain strided tensor but {tensor.layout}{', negated lazily' if tensor.is_neg() else ''}"
    if not tensor.is_contiguous() and may_overlap(tensor):
        return "its elements may share memory"
    if (tensor.is_cpu or tensor.device.type in engines.GPUS) and tensor.data_ptr() == 0 and tensor.numel():
        return "its memory is not allocated"
    return None


def may_overlap(tensor: Tensor) -> bool:
    """Whether two elements may lie in one place: a dimension steps less far than those inside it reach."""
    reach = 0
    for step, size in sorted(
        (step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False


@functools.cache
def plain(kind: type) -> bool:
    """Whether tensors of this class mean no more than their memory says."""
    if kind in (Tensor, Parameter, Buffer):
        return True
    function, dispatch = (getattr(kind, name) for name in ("__torch_function__", "__torch_dispatch__"))
    inherited = getattr(function, "__func__", function) is getattr(Tensor.__torch_function__, "__func__", None)
    silent = inherited or function is torch._C._disabled_torch_function_impl
    return silent and dispatch is torch._C._disabled_torch_dispatch_impl


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
    one is drawn from the generator: one 64-bit number, whatever the size. A meta tensor stays as it is.
    """
    local, first, steps = region(target)
    if local.is_meta:
        return target
    kind, parameters = law.parameters(local.dtype)
    engine = engines.choose(local, wanted(local, fast) or None, (kind, parameters))
    seed, word = (drawn_seed(generator), 0) if stream is None else (stream.seed, stream.id)
    try:
        if local.numel():
            engine.fill(local, Draw(kind, parameters, seed, word), first, steps)
    finally:  # autograd must hear of writes that go around torch, interrupted ones too
        if not local.is_inference():
            torch.autograd.graph.increment_version(local)
    return target
