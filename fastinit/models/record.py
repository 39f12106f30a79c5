"""Which initialiser call of a constructor's made each parameter what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..drawing.deferred import Fill
from ..initialisers.table import CONSTANTS, NAMES
from ..initialisers.values import signature_of
from .build import constructed
from .origins import origin_of
from .walk import named_parameters


@dataclass(frozen=True, eq=False)
class Call:
    """One initialiser call: for which parameter, by which function, the tensor as given, and what followed it.

    `tensor` shares the parameter's memory; it may be a view of another shape, from which fans are then counted.
    """

    parameter: str
    initialiser: str
    tensor: Tensor
    arguments: dict[str, Any]


def record(make: Callable[[], torch.nn.Module]) -> tuple[torch.nn.Module, dict[str, Call]]:
    """The module that `make` returns, and the call of torch.nn.init's that filled each of its parameters last.

    `make` is really called, and fastinit draws (see `accelerate`). A parameter is left out if no single call filled
    all of it, if something else has changed it since, or if torch drew it.
    """
    module, _, _ = constructed(make)
    found = ((name, call_of(name, parameter)) for name, parameter in named_parameters(module))
    return module, {name: call for name, call in found if call is not None}


def call_of(name: str, parameter: Tensor) -> Call | None:
    """The call that made a parameter what it is; None if there is none."""
    origin = origin_of(parameter)
    if origin is None or not origin.fills:
        return None
    fill, *later = origin.fills
    if any(other.source.initialiser not in CONSTANTS for other in later):  # these are padding
        return None
    source = fill.source
    if source.initialiser not in NAMES or source.layout is not None or not is_all_of(fill, parameter):
        return None
    arguments = dict(zip(signature_of(source.initialiser.removesuffix("_")).parameters, source.values, strict=False))
    return Call(name, source.initialiser, fill.tensor(parameter.detach().untyped_storage()), arguments)


def is_all_of(fill: Fill, parameter: Tensor) -> bool:
    """Whether a fill of a parameter's memory is of the parameter, and all of it."""
    return fill.offset == parameter.storage_offset() and fill.elements == parameter.numel()
