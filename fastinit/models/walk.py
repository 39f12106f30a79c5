"""The modules and tensors of a model, by names that no wrapper around it or its parts changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

N = TypeVar("N", bound=Tensor)

# Modules of torch's that hold another one, and the name that they give it.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OptimizedModule": "_orig_mod",
}


def walk(
    module: torch.nn.Module, prefix: str = "", above: tuple[torch.nn.Module, ...] = ()
) -> Iterator[tuple[str, torch.nn.Module]]:
    """A module and all in it, each by every name that it has: as in the model without torch's wrappers around parts.

    A module that contains itself comes once; `above` are those around this one.
    """
    if any(module is one for one in above):
        return
    yield prefix, module
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.")]
    wrapped = next((WRAPPERS[kind.__name__] for kind in kinds if kind.__name__ in WRAPPERS), None)
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, prefix if name == wrapped else joined(prefix, name), (*above, module))


def joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def named_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A model's parameters, those without memory too; each once, by its first name, which no wrapper changes."""
    yield from first_names(
        (joined(prefix, name), one) for prefix, each in walk(model) for name, one in parameters(each)
    )


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters, then its buffers, in the same way."""
    yield from named_parameters(model)
    yield from first_names(
        (joined(prefix, name), one) for prefix, module in walk(model) for name, one in buffers(module)
    )


def parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A module's own."""
    return ((name, one) for name, one in module._parameters.items() if one is not None)


def buffers(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, one) for name, one in module._buffers.items() if one is not None)


def first_names(named: Iterable[tuple[str, N]]) -> Iterator[tuple[str, N]]:
    """Each tensor once."""
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has elements in memory that can be asked for."""
    try:
        return not tensor.is_meta and tensor.numel() > 0 and tensor.untyped_storage().nbytes() > 0
    except (NotImplementedError, RuntimeError, ValueError):  # a wrapper around others, one that is made later
        return False
