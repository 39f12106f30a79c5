"""Who serves a call: by its arguments, the flags, and what the tensor and the moment are."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import torch
from torch import Tensor
from torch.nn.parameter import Buffer, Parameter

from ..kernels.contract import GPUS
from ..kernels.dtypes import FORMATS, name_of
from . import flags, originals, torch_private as private
from .regions import Shard, Target, given_as, local_of
from .streams import Stream, check_source

ORDINARY = {Tensor, Parameter, Buffer}  # tensors that are known to mean no more than their memory says
SAMPLED = tuple(FORMATS)
standing, torchs, ours = originals.standing, originals.originals, originals.ours


class Way(Enum):
    """Who serves a call."""

    TORCH = "torch.nn.init"
    KERNELS = "an engine"
    COMPILED = "a compiled engine, which the call or a flag insists on"


TORCH, KERNELS, COMPILED = Way


def way(
    target: Target,
    generator: torch.Generator | None,
    fast: bool | None,
    stream: Stream | None,
    name: str | None = "normal_",
    layout: object = None,
    dtypes: Collection[torch.dtype] = SAMPLED,
) -> Way:
    """Who serves a call of an initialiser, by the flags and by what the tensor is; every rule is looked at.

    TORCH is torch.nn.init's function `name`, or what others have put in its place: `originals.call`. Without a name it
    is torch's own function or method, which nobody replaces. Raises `RuntimeError` where it would have to serve and
    cannot: with `fast=True`, where a stream or a shard is given, or a layout to somebody else's function.
    """
    check_source(generator, stream)
    tensor, given = local_of(target), given_as(target)
    flags.check_fast(fast)
    other = None
    if name is not None and standing.get(name) is not torchs[name]:
        if originals.is_kept(name, given):
            return TORCH
        other = originals.replacement(name)
    asked = flags.flag_of(given) if fast is None else fast
    raw = isinstance(target, Shard) and target.owner is None  # which torch has no function for
    beyond_torch = asked or stream is not None or layout is not None or raw
    if name is not None and beyond_torch and other is not None and originals.unwrapped(other) is ours[name]:
        other = None  # a functools.partial of ours, which may be what calls, and can serve all that ours can
    if name is not None and other is not None:
        reason: str | None = originals.told(name, other)
    elif asked is False:
        reason = "fast=False asks for torch.nn.init"
    elif generator is not None and not isinstance(generator, torch.Generator):
        reason = f"{type(generator).__name__} is not a torch.Generator"
    elif compiling := private.in_graph():
        reason = outside_graphs(tensor, dtypes)
    else:
        reason = outside_contract(tensor, dtypes)
    if reason is None:
        if tensor.is_meta:  # nothing to draw: torch's own no-op
            return KERNELS if isinstance(target, Shard) else TORCH
        if not compiling:  # what is compiled asks when it runs
            refuse_inference_write(tensor)
        return COMPILED if asked else KERNELS
    if asked:
        raise RuntimeError(f"fast=True cannot be kept: {reason}; leave it out to fall back to torch.nn.init")
    if stream is not None or raw or (layout is not None and other is not None):
        what = "a shard" if raw else "stream=" if stream is not None else "layout="
        raise RuntimeError(f"torch.nn.init cannot serve {what}, and fastinit does not draw here: {reason}")
    return TORCH


def refuse_inference_write(tensor: Tensor) -> None:
    """Raises torch's own error for an inference tensor outside its mode; torch raises it after writing the tensor."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        with torch.inference_mode():
            empty = torch.empty(0, device="cpu")
        empty.zero_()


def outside_contract(tensor: Tensor, dtypes: Collection[torch.dtype] = SAMPLED) -> str | None:
    """Why the kernels must leave this tensor, or this moment, to torch; None if they need not.

    Raises `RuntimeError`, in torch's words, for memory that is not there: torch's own initialisers may write it.
    """
    if private.in_graph():  # first: Dynamo need not trace the rest
        return "torch.compile is tracing"
    if not issubclass(type(tensor), Tensor):  # isinstance believes a mock
        return f"{type(tensor).__name__} is not a tensor"
    if not plain(type(tensor)):
        return f"{type(tensor).__name__} brings its own torch functions"
    if tensor.dtype not in dtypes:
        return f"the stream contract does not cover {name_of(tensor.dtype)}"
    if private.function_modes() and not all(map(changes_nothing, private.mode_stack())):
        return "a torch function mode is active and must see torch's own calls"
    if private.dispatch_modes():
        return "a torch dispatch mode is active and must see torch's own operations"
    if private.transform() is not None:
        return "a functorch transform is active"
    if private.tracing():
        return "torch.jit is tracing"
    if private.forward._current_level >= 0:
        return "forward-mode differentiation is on, and must hear of it"
    if tensor.is_nested:
        return "it is a nested tensor"
    if private.is_functional(tensor) or private.is_wrapped(tensor):
        return "it is a wrapper around another tensor"
    if tensor.layout is not torch.strided or tensor.is_neg():
        return f"it is not a plain strided tensor but {tensor.layout}{', negated lazily' if tensor.is_neg() else ''}"
    if not tensor.is_contiguous() and may_overlap(tensor):
        return "its elements may share memory"
    # A view into memory that was taken away (as FSDP takes it) has its offset from nowhere for an address.
    nowhere = (tensor.is_cpu or tensor.device.type in GPUS) and (
        tensor.data_ptr() == tensor.storage_offset() * tensor.dtype.itemsize
    )
    if nowhere and tensor.numel():
        if private.is_zero(tensor):
            return "it is zero without memory"
        raise RuntimeError("The tensor has a non-zero number of elements, but its data is not allocated yet.")
    return None


def outside_graphs(tensor: Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """Why the kernels must leave this tensor to torch inside torch.compile and torch.export; None if they need not.

    As far as a tensor without memory tells: the operator that is recorded (`initialisers/operators.py`) asks for the
    rest when it runs.
    """
    if torch.compiler.is_dynamo_compiling() and not plain(type(tensor)):
        return f"{type(tensor).__name__} brings its own torch functions"
    if tensor.dtype not in dtypes:
        return f"the stream contract does not cover {name_of(tensor.dtype)}"
    if private.is_transforming():
        return "a functorch transform is active"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "it is not a plain strided tensor"
    return None


def changes_nothing(mode: object) -> bool:
    """Whether a torch function mode leaves initialisers as they are: torch.device, and Lightning's that is turned off,
    which stays on the stack all the same."""
    kind = type(mode)
    off = kind.__name__ == "_EmptyInit" and getattr(mode, "enabled", None) is False
    return kind is private.DeviceContext or off


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


def decided_by_others(name: str, target: Target) -> bool:
    """Whether an initialiser that draws nothing is not fastinit's to serve, whatever the tensor's dtype and shape.

    Because somebody else's function stands in torch's place, transformers' guard keeps the tensor, or it is none, or
    one with functions of its own. Raises `RuntimeError` where somebody else's function would have to serve a shard.
    """
    cls = type(target)
    if originals.is_kept(name, given_as(target)) or not (cls is Shard or (issubclass(cls, Tensor) and plain(cls))):
        return True
    other = originals.replacement(name)
    if other is not None and isinstance(target, Shard) and target.owner is None:
        reason = originals.told(name, other)
        raise RuntimeError(f"torch.nn.init cannot serve a shard, and fastinit does not write here: {reason}")
    return other is not None


@private.constant_in_graphs
def plain(cls: type) -> bool:
    """Whether tensors of this class mean no more than their memory says."""
    if cls in ORDINARY:
        return True
    function, dispatch = (getattr(cls, name) for name in ("__torch_function__", "__torch_dispatch__"))
    inherited = getattr(function, "__func__", function) is getattr(Tensor.__torch_function__, "__func__", None)
    silent = inherited or function is private.disabled_function
    return silent and dispatch is private.disabled_dispatch
