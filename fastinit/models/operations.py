"""What torch's operations do to the memory of their tensors, as far as it matters for draws that are put off."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..drawing.dtensor import memory_of
from ..drawing.regions import Shard

# Ask no more of their tensors than shapes and dtypes, and give new memory.
NO_LOOK = (
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full"),
    *("is_same_size", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "size", "stride"),
)
# Give memory that nothing has written.
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted")
# Write all of their first tensor (with `_foreach_` before the name: of each of a list), whatever was in it.
OVERWRITES = ("zero_", "fill_", "copy_", "uniform_", "normal_", "bernoulli_", "random_", "exponential_", "log_normal_",
              "cauchy_", "geometric_")  # fmt: skip


class Operation:
    """An operation of torch's, an `OpOverload`.

    `looks`: whether it needs what is in its tensors. `overwrites`: whether it writes all of the first one, whatever is
    in it. `copies`: whether it copies one into another. `draws`: whether torch says that it draws.
    """

    def __init__(self, func: Any) -> None:
        aten = func.namespace == "aten"
        self.name = str(func.overloadpacket.__name__)
        takes = any("Tensor" in str(argument.type) for argument in func._schema.arguments)
        self.looks = takes and not (aten and (func.is_view or self.name in NO_LOOK))
        self.is_view = bool(func.is_view)
        self.is_empty = aten and self.name in EMPTY
        self.overwrites = aten and self.name.removeprefix("_foreach_") in OVERWRITES
        self.copies = func is torch.ops.aten.clone.default or func is torch.ops.aten.copy_.default
        self.draws = torch.Tag.nondeterministic_seeded in func.tags
        arguments = func._schema.arguments
        self.names = [argument.name for argument in arguments]
        self.written = {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}
        if func.namespace == "c10d":  # collectives, which do not say what they write
            self.written = set(self.names)
        self.out = {argument.name for argument in arguments if argument.is_out}

    def given(self, names: set[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """What a call gives for the arguments of these names."""
        positional = [value for name, value in zip(self.names, args, strict=False) if name in names]
        return positional + [value for name, value in kwargs.items() if name in names]


operation = functools.cache(Operation)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument or a result of an operation, in its lists, too; of shards and DTensors local ones."""
    if isinstance(value, Tensor):
        yield memory_of(value)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors([*value.values()])
    elif isinstance(value, Shard):
        yield value.local
