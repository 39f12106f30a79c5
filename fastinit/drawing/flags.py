"""Who draws: `fast=`, the flag of a tensor, the environment, and the engine that a test forces."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from .torch_private import no_torch_function, no_torch_functions

ATTRIBUTE = "_fastinit_flags"
ENVIRONMENT = {None: None, "": None, "0": False, "1": True}
ENGINES = ("reference", "cpu", "gpu", "eager")

if os.environ.get("FASTINIT") not in ENVIRONMENT:
    raise ValueError(
        f"FASTINIT is 0 (torch.nn.init), 1 (compiled or an error) or unset, got {os.environ['FASTINIT']!r}"
    )
default = ENVIRONMENT[os.environ.get("FASTINIT")]
forced_engine: ContextVar[str | None] = ContextVar("fastinit_engine", default=None)
# Whether any tensor was ever flagged, or the environment says who draws. Until then nobody need look at memory.
in_use = default is not None


def check_fast(fast: bool | None) -> None:
    """Raises for what is neither True, False nor None: 0 must not pass for a default."""
    if fast is not None and fast is not True and fast is not False:
        raise ValueError(f"fast is True, False or None, got {fast!r}")


def flag(target: Tensor | torch.nn.Module, fast: bool | None) -> None:
    """From now on `target` (each parameter and buffer of a module) is initialised so, unless a call says otherwise.

    `fast` as in every initialiser: False for torch.nn.init itself, True for a compiled engine or an error, None to
    take the flag off. It stays with the tensor's memory, and so with `.data` and `nn.Parameter(tensor)`, and with the
    tensor object, and so with a parameter through `module.to`. `copy.deepcopy` and `to_empty` of a module make other
    tensors (so does `module.to` where torch is told to swap parameters): flag those. Raises `ValueError` for another
    `fast`, `TypeError` for what is neither tensor nor module.
    """
    check_fast(fast)
    if isinstance(target, torch.nn.Module):
        for tensor in (*target.parameters(), *target.buffers()):
            flag(tensor, fast)
        return
    if not isinstance(target, Tensor):
        raise TypeError(f"flag takes a tensor or a module, got {type(target).__name__}")
    global in_use
    in_use = True
    if fast is None:
        vars(target).pop(ATTRIBUTE, None)
    else:
        setattr(target, ATTRIBUTE, fast)
    with (
        contextlib.suppress(NotImplementedError, RuntimeError, ValueError),  # a tensor without memory of its own
        no_torch_functions(),  # a mode would take it for somebody's interest in the address
    ):
        storage = target.untyped_storage()
        flags = storage.__dict__.setdefault(ATTRIBUTE, {})
        flags[view_of(target)] = fast


def view_of(tensor: Tensor) -> tuple[object, ...]:
    """Which part of its memory a tensor shows."""
    return tensor.storage_offset(), tensor.shape, tensor.stride()


def is_spoken_for(tensor: Tensor) -> bool:
    """Whether the memory of a plain tensor carries a flag for it, or the environment says who draws.

    Some 100 ns, where `flag_of` takes 3 us.
    """
    if default is not None:
        return True
    flags = tensor.untyped_storage().__dict__.get(ATTRIBUTE)
    return flags is not None and flags.get(view_of(tensor)) is not None


def flag_of(tensor: Tensor) -> bool | None:
    """The flag that `tensor` or its memory carries, else what the environment says."""
    if not issubclass(type(tensor), Tensor):  # such objects may have an answer to everything
        return default
    fast: bool | None = getattr(tensor, ATTRIBUTE, None)
    if not in_use or torch.compiler.is_dynamo_compiling():  # Dynamo cannot trace a look at memory
        return default if fast is None else fast
    # The memory's flag counts before the object's: aliases share it. Subclasses that intercept calls must not see it.
    with (
        contextlib.suppress(NotImplementedError, RuntimeError, TypeError, ValueError),  # no memory, no sizes yet
        no_torch_function(),
    ):
        flags = getattr(tensor.untyped_storage(), ATTRIBUTE, {})
        fast = flags.get(view_of(tensor), fast)
    return default if fast is None else fast


@contextlib.contextmanager
def use_engine(name: str) -> Iterator[None]:
    """Within the context this engine draws everything: reference, cpu, gpu or eager. For tests and benchmarks.

    Raises `ValueError` for another name; a call that the engine cannot serve raises `RuntimeError`.
    """
    if name not in ENGINES:
        raise ValueError(f"use_engine takes one of {', '.join(ENGINES)}; got {name!r}")
    token = forced_engine.set(name)
    try:
        yield
    finally:
        forced_engine.reset(token)
