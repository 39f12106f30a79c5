"""Models without memory for their parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from .walk import alike


@contextmanager
def meta() -> Iterator[None]:
    """Modules constructed within the context (in this thread) have their parameters on the meta device, without memory.

    Unlike inside `torch.device("meta")`, buffers are what the constructor makes them: a model's frequencies, masks and
    running statistics. A parameter has memory from when it is made to when it is registered. Tied ones stay tied.
    """
    thread = threading.get_ident()
    seen: Any = WeakIdKeyDictionary()

    def empty(module: torch.nn.Module, name: str, parameter: Any) -> torch.nn.Parameter | None:
        if threading.get_ident() != thread or parameter is None or parameter.is_meta or is_lazy(parameter):
            return None
        if parameter not in seen:
            seen[parameter] = alike(parameter, torch.empty_like(parameter.detach(), device="meta"))
        found: torch.nn.Parameter = seen[parameter]
        return found

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()
