"""What of a model rules are for: its parameters and buffers, with every name that they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..drawing.dtensor import placed
from ..drawing.regions import Shard, Target
from .walk import buffers, joined, parameters, walk

Module = torch.nn.Module


class Home(NamedTuple):
    """Where a tensor is registered: its qualified name, the module, and its name there."""

    name: str
    module: Module
    key: str


@dataclass(eq=False)
class Entry:
    """A parameter or a buffer; or a weight that a module, `how`, computes from other parameters, its `parts`.

    `assign` sets such a weight. `cut` tells what of a global tensor it holds; DTensors do that themselves.

    `aside`: only rules that name it are for it, as buffers and what a weight is computed from; `why` says why one must.
    """

    tensor: Tensor
    homes: list[Home]
    aside: bool = False
    why: str = ""
    parts: list[Entry] = field(default_factory=list)
    how: Module | None = None
    assign: Callable[[Tensor], None] | None = None
    cut: Callable[[Tensor], Target] | None = None

    def target(self) -> Target:
        """What is to be filled: the tensor, or what it holds of a global one. Raises what `placed` raises.

        `TypeError` where `cut` returns neither a tensor nor a shard.
        """
        found: Target = placed(self.tensor if self.cut is None else self.cut(self.tensor), True)
        if not isinstance(found, (Tensor, Shard)):
            raise TypeError(f"shard returns a tensor or what fastinit.shard makes of it, got {type(found).__name__}")
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """The global tensor's; () of a lazy one."""
        return () if is_lazy(self.tensor) else tuple((self.tensor if self.cut is None else self.target()).shape)

    @property
    def name(self) -> str:
        return self.homes[0].name

    @property
    def is_parameter(self) -> bool:
        return self.homes[0].key in self.homes[0].module._parameters

    def padding(self) -> int | None:
        """The row that stands for padding, of an embedding."""
        for _, module, key in self.homes:
            row = getattr(module, "padding_idx", None)
            if type(row) is int and key == "weight" and len(self.shape) == 2:
                return row % self.shape[0]
        return None

    @property
    def saved_name(self) -> str:
        """Its first name in a model's `state_dict`; "" where it has none."""
        saved = (
            name
            for name, module, key in self.homes
            if key in module._parameters or key not in module._non_persistent_buffers_set
        )
        return "" if self.assign else next(saved, "")


def entries(model: Module, deep: bool = True) -> list[Entry]:
    """A model's parameters, in order, then its buffers, then the weights that are computed from some of the former.

    Without `deep` only those of the module itself.
    """
    walked = [*walk(model)] if deep else [("", model), *parametrisations(model)]
    found: dict[int, Entry] = {}
    computed: dict[int, Entry] = {}
    for registered, aside in ((parameters, False), (buffers, True)):
        for prefix, module in walked:
            for key, tensor in registered(module):
                entry = found.setdefault(id(tensor), Entry(tensor, [], aside))
                entry.homes.append(Home(joined(prefix, key), module, key))
    for prefix, module in walked:
        for key, parts, how, weight, assign in computed_weights(module):
            own = [found[id(part)] for part in parts]
            for part in own:
                part.aside = True
                part.why = "" if assign else f" ({key} is computed from it, with no right_inverse that could set it)"
            if assign is not None:
                entry = computed.setdefault(id(how), Entry(weight, [], parts=own, how=how, assign=assign))
                entry.homes.append(Home(joined(prefix, key), module, key))
    return [*found.values(), *computed.values()]


def parametrisations(module: Module) -> Iterator[tuple[str, Module]]:
    """What computes a module's own weights."""
    if parametrize.is_parametrized(module):
        found: Any = module.parametrizations
        yield from ((f"parametrizations.{key}", how) for key, how in found.items())


class Computed(NamedTuple):
    """A weight that a module computes: its name, the parameters that it comes from, its value, and what sets it."""

    key: str
    parts: list[Tensor]
    how: Module
    value: Tensor
    assign: Callable[[Tensor], None] | None


def computed_weights(module: Module) -> Iterator[Computed]:
    """The weights that a module computes, by parametrisations or by the hook of torch.nn.utils.weight_norm."""
    for path, how in parametrisations(module):
        key = path.partition(".")[2]
        originals = {name: one for name, one in parameters(how) if name.startswith("original")}
        steps: Any = how
        settable = all(hasattr(step, "right_inverse") for step in steps)
        if originals:  # else it is a buffer's
            assign = setter(module, key, [*originals]) if settable else None
            yield Computed(key, [*originals.values()], how, value_of(module, key, how), assign)
    hooks: list[Any] = [*module._forward_pre_hooks.values()]
    for hook in hooks:
        if type(hook).__name__ == "WeightNorm" and hasattr(hook, "dim"):
            own, key = module._parameters, str(hook.name)
            length, direction = own.get(f"{key}_g"), own.get(f"{key}_v")
            if length is not None and direction is not None:
                yield Computed(key, [length, direction], module, direction, normed(module, key, hook.dim))


def value_of(module: Module, key: str, how: Module) -> Tensor:
    """A parametrised weight as it is; in evaluation, where spectral norms do not count it as a step."""
    with evaluated(how), torch.no_grad(), torch.random.fork_rng(devices=[]):
        value: Tensor = getattr(module, key)
        return value


@contextmanager
def evaluated(module: Module) -> Iterator[None]:
    training = [one for one in module.modules() if one.training]
    try:
        for one in training:
            one.training = False
        yield
    finally:
        for one in training:
            one.training = True


def setter(module: Module, key: str, originals: list[str]) -> Callable[[Tensor], None]:
    """What sets a parametrised weight, in the memory that its originals have: torch would give them other memory."""

    def assign(value: Tensor) -> None:
        how: Any = module.parametrizations
        memory = {name: how[key].get_parameter(name).data for name in originals}
        setattr(module, key, value)
        for name, old in memory.items():
            original = how[key].get_parameter(name)
            original.data = old.copy_(original.data)

    return assign


def normed(module: Module, key: str, dim: int) -> Callable[[Tensor], None]:
    def assign(value: Tensor) -> None:
        module.get_parameter(f"{key}_g").copy_(torch.norm_except_dim(value, 2, dim))
        module.get_parameter(f"{key}_v").copy_(value)

    return assign
