"""Values that are no single call: a tensor that is left as it is, and one whose rows are the weights of several gates.

They are called, compared and written to configurations as an `Initializer` is, and stand in its place in rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Generator

from ..drawing.dtensor import is_dtensor, placed
from ..drawing.regions import Shard, Target, rows
from ..drawing.streams import Stream
from ..drawing.torch_private import increment_version
from ..kernels.runs import row_major
from . import values
from .values import Initializer

T = TypeVar("T", bound=Target)


@dataclass(frozen=True)
class Keep:
    """Leaves a tensor as it is. Made by `fastinit.initialisers.keep()`."""

    def fill(self, tensor: T, **_: Any) -> T:
        """The tensor, as it is."""
        return tensor

    def to_config(self) -> dict[str, Any]:
        return {"name": "keep"}

    def __repr__(self) -> str:
        return "keep()"


@dataclass(frozen=True, repr=False)
class Gates:
    """Equal blocks of a tensor's rows, each with an initialiser of its own. Made by `fastinit.initialisers.gates`."""

    layout: str
    value: Initializer
    others: tuple[tuple[str, Initializer], ...] = ()

    def blocks(self, shape: tuple[int, ...]) -> Iterator[tuple[int, int, Initializer]]:
        """First row, last row + 1 and initialiser of each block. Raises `ValueError` where rows do not divide."""
        size, rest = divmod(shape[0], len(self.layout)) if shape else (0, 1)
        if rest:
            raise ValueError(
                f"{self!r} needs rows that its {len(self.layout)} gates divide, got the shape {tuple(shape)}"
            )
        named = dict(self.others)
        for number, gate in enumerate(self.layout):
            yield number * size, (number + 1) * size, named.get(gate, self.value)

    def fill(
        self, tensor: T, *, stream: Stream | None = None, generator: Generator | None = None, fast: bool | None = None
    ) -> T:
        """Fill a tensor, or a `fastinit.shard`, in place and return it.

        As the calls for `tensor.chunk(len(layout))` would, in order: each block is a tensor of its own, from which fans
        are counted, and draws from a number of its own, or from a stream that follows from `stream` and its place.
        """
        held = placed(tensor, fast)
        if is_dtensor(held):
            raise RuntimeError("torch cannot draw gates of a DTensor, whose rows are copies: leave out fast=False")
        if isinstance(held, Shard) and held.owner is not None:
            increment_version((held.owner,))
        for begin, end, value in self.blocks(tuple(tensor.shape)):
            with torch.no_grad():
                part: Any = rows(held, begin, end)
            own, steps = stream, row_major(part.shape)
            if stream is not None and len(self.layout) > 1:
                own = stream.part(begin * steps[0], part.shape, steps)
            value.fill(part, stream=own, generator=generator, fast=fast)
        return tensor

    def to_config(self) -> dict[str, Any]:
        """The value as a dictionary that JSON holds; `fastinit.initialisers.get` makes the value of it again."""
        others = {gate: value.to_config() for gate, value in self.others}
        return {"name": "gates", "layout": self.layout, "value": self.value.to_config(), "others": others}

    def __repr__(self) -> str:
        return f"gates({', '.join([repr(self.layout), repr(self.value), *(f'{g}={v!r}' for g, v in self.others)])})"


Value = Initializer | Keep | Gates


def keep() -> Keep:
    """In rules: these parameters stay as they are."""
    return Keep()


def gates(layout: str, value: Any, **others: Any) -> Gates:
    """Equal blocks of rows, a letter of `layout` for each: `value` initialises them, `others` those of their letters.

    `gates("ifgo", orthogonal())` for an LSTM's weights, `gates("ifgo", zeros(), f=ones())` for its biases (torch's
    order: input, forget, cell, output gate), `gates("rzn", ...)` for a GRU's, `gates("qkv", xavier_uniform())` for
    queries, keys and values in one matrix. Fans are those of a block. Raises `ValueError` for a layout that is no
    letters, or has one twice, and for others that it does not have; `TypeError` for what is no initialiser.
    """
    if not (isinstance(layout, str) and layout.isalpha() and len({*layout}) == len(layout)):
        raise ValueError(f'gates have a layout of different letters, such as "ifgo"; got {layout!r}')
    if unknown := sorted(others.keys() - {*layout}):
        raise ValueError(f"the layout {layout!r} has no gate {', '.join(unknown)}")
    return Gates(layout, values.get(value), tuple((gate, values.get(each)) for gate, each in others.items()))


def get(spec: Any) -> Value:
    """What `values.get` finds, and also `keep` and the configurations of gates."""
    if isinstance(spec, (Keep, Gates)):
        return spec
    if spec is keep or (isinstance(spec, str) and spec in ("keep", "Keep")):
        return keep()
    if isinstance(spec, Mapping) and spec.get("name") == "keep" and len(spec) == 1:
        return keep()
    if isinstance(spec, Mapping) and spec.get("name") == "gates":
        try:
            return gates(spec["layout"], spec["value"], **spec["others"])
        except (KeyError, TypeError):
            raise ValueError(f"a configuration of gates is what to_config() makes, got {dict(spec)!r}") from None
    return values.get(spec)
