"""Ways to write tensors that cases compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import fastinit
from fastinit.commands import limit

from .timing import Call


def write(tensor: Tensor) -> None:
    tensor.fill_(1.0)


def stores(tensors: list[Tensor]) -> Call:
    """Stores and nothing else, as one job. Raises `RuntimeError` without a CPU engine."""
    call = limit.stores(tensors)
    if call is None:
        raise RuntimeError("the CPU engine does not work here")
    return call


def memory_of(tensor: Tensor) -> Tensor:
    """As many elements of its memory, one behind the other."""
    return tensor.new_empty(0).set_(tensor.untyped_storage(), 0, (tensor.numel(),), (1,))


def on_fresh(function: Callable[[Tensor], Any], make: Callable[[], Tensor]) -> None:
    """Large tensors go back to the system when they are freed, so that each call has pages of its own to fault in."""
    function(make())


def in_batch(call: Call) -> None:
    with fastinit.batch():
        call()
