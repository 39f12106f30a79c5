"""The arithmetic over an engine's own operations, in one working precision."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Function = types.FunctionType


class Primitive(NamedTuple):
    """A name in the arithmetic that stands for an engine's own operation."""

    name: str


class ByWidth(NamedTuple):
    """A name in the arithmetic that stands for one thing in float32 and for another in float64."""

    narrow: Any
    wide: Any


def by_width(narrow: Any, wide: Any) -> Any:
    """What the arithmetic calls by one name in both working precisions."""
    return ByWidth(narrow, wide)


class Arithmetic:
    """Makes functions of the arithmetic, and whatever they call, again over an engine's `primitives`.

    `width` is that of the working precision, 32 or 64. `wrap` decorates every function (`triton.jit`), `constant` every
    number and tuple (`tl.constexpr`); `also` are names that every function can use.
    """

    def __init__(
        self,
        primitives: Mapping[str, Any],
        width: int,
        wrap: Callable[[Function], Any] = lambda function: function,
        constant: Callable[[Any], Any] = lambda value: value,
        also: Mapping[str, Any] | None = None,
    ) -> None:
        self.primitives, self.width, self.wrap, self.constant = primitives, width, wrap, constant
        self.also = also or {}
        self.made: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        """A function, a primitive or a number of the arithmetic as this engine has it."""
        if isinstance(value, ByWidth):
            value = value.narrow if self.width == 32 else value.wide
        if isinstance(value, Primitive):
            return self.primitives[value.name]
        if not isinstance(value, Function):
            return self.constant(value)
        if value not in self.made:
            names = {name: self(used) for name, used in names_in(value)}
            function = Function(value.__code__, names | dict(self.also), value.__name__)
            function.__module__, function.__qualname__ = value.__module__, value.__qualname__
            self.made[value] = self.wrap(function)
        return self.made[value]


def names_in(function: Function) -> Iterator[tuple[str, Any]]:
    """The global names that a function of the arithmetic uses, and what they stand for.

    Raises `TypeError` for what the arithmetic does not know.
    """
    for name in function.__code__.co_names:
        if name in function.__globals__:
            value = function.__globals__[name]
            if not isinstance(value, (Function, Primitive, ByWidth, int, float, tuple)):
                raise TypeError(f"{function.__qualname__} uses {name}, which the arithmetic cannot: {value!r}")
            yield name, value


def reached_from(function: Function) -> dict[Function, None]:
    """A function of the arithmetic and all those that it comes to call, in either precision."""
    found: dict[Function, None] = {}
    waiting: list[Any] = [function]
    while waiting:
        value = waiting.pop()
        if isinstance(value, ByWidth):
            waiting += [value.narrow, value.wide]
        elif isinstance(value, Function) and value not in found:
            found[value] = None
            waiting += [used for _, used in names_in(value)]
    return found
