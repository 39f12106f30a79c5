"""The modules and tensors of a model, by names that no wrapper around it or its parts changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ..drawing.dtensor import memory_of

N = TypeVar("N", bound=Tensor)

# Modules of torch's that hold another one, and the name that they give it.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OptimizedModule": "_orig_mod",
}
HELD = frozenset(WRAPPERS.values())


def walk(
    module: torch.nn.Module, prefix: str = "", above: tuple[torch.nn.Module, ...] = ()
) -> Iterator[tuple[str, torch.nn.Module]]:
    """A module and all in it, each by every name that it has: as in the model without torch's wrappers around parts.

    A module that contains itself comes once; `above` are those around this one.
    """
    if any(module is one for one in above):
        return
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            wrapped = name in HELD and is_wrapper(module, name)
            yield from walk(child, prefix if wrapped else joined(prefix, name), (*above, module))


def is_wrapper(module: torch.nn.Module, name: str) -> bool:
    """Whether a module is one of torch's that gives this name to the module that it holds."""
    kinds = (kind for kind in type(module).__mro__ if kind.__module__.startswith("torch."))
    return any(WRAPPERS.get(kind.__name__) == name for kind in kinds)


def joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def named_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A model's parameters, those without memory too; each once, by its first name, which no wrapper changes."""
    return named(walk(model), parameters)


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters, then its buffers, in the same way."""
    walked = [*walk(model)]
    yield from named(walked, parameters)
    yield from named(walked, buffers)


def named(
    walked: Iterable[tuple[str, torch.nn.Module]], registered: Callable[[torch.nn.Module], Iterable[tuple[str, N]]]
) -> Iterator[tuple[str, N]]:
    """What these modules have registered in this way, each once."""
    seen: set[int] = set()
    for prefix, module in walked:
        for key, tensor in registered(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield joined(prefix, key), tensor


def parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A module's own."""
    return ((name, one) for name, one in module._parameters.items() if one is not None)


def buffers(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, one) for name, one in module._buffers.items() if one is not None)


def alike(tensor: Tensor, memory: Tensor) -> Tensor:
    """A tensor of this memory that is a parameter if the other one is, and has its attributes."""
    made = torch.nn.Parameter(memory, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else memory
    made.__dict__.update(vars(tensor))
    return made


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has elements in memory that can be asked for."""
    try:
        memory = memory_of(tensor)
        return not memory.is_meta and memory.numel() > 0 and memory.untyped_storage().nbytes() > 0
    except (NotImplementedError, RuntimeError, ValueError):  # a wrapper around others, one that is made later
        return False
