"""Initialisers as values: `he_normal(layout="io")` says what to draw, and is called with a shape to draw it.

A value has the arguments of the public function of its name (`fastinit.he_normal_`), without the tensor and without
what says how to draw (`stream`, `generator`, `fast`), which a call gives. Values are compared, hashed, copied, pickled
and written to JSON by what they say, so that they can stand in a model's configuration.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from ..drawing import originals
from ..drawing.batch import anew, settle
from ..drawing.regions import Target, shard
from ..drawing.route import outside_contract
from ..drawing.streams import Stream, check_source
from ..drawing.tell import quiet
from ..laws.floats import as_float
from . import functions
from .fans import axes, fans
from .lists import HOW

T = TypeVar("T", bound=Target)
PARAMETER = inspect.Parameter
# Names and arguments that were found right, with the arguments' types: True and 1 are equal, and not both right.
judged: set[tuple[Any, ...]] = set()
MOST_JUDGED = 4096  # then the set starts anew; a program that tries out many arguments fills it


@dataclass(frozen=True, repr=False)
class Initializer:
    """An initialiser with its arguments. Made by the factories (`fastinit.initialisers.normal(std=0.02)`) or `get`.

    `name` is the function's without the underscore, `arguments` those that differ from its defaults, in the order of
    its signature; given as a mapping or as pairs. Numbers of NumPy and torch are kept as Python's, arrays as tuples.
    Raises at once: `ValueError` for a name that does not exist, fans that are no whole number above 0 and layouts that
    are none; `TypeError` for arguments that the function does not take or that no configuration can hold (complex
    numbers, functions). What only a tensor's shape and dtype tell, the call raises, in the function's own words.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        name, given = known(self.name), {key: plain(value) for key, value in dict(self.arguments).items()}
        signature = signature_of(name)
        rest = given.pop(rest_of(signature), ())
        bound = bind(name, rest if isinstance(rest, tuple) else (rest,), given)
        kept = [
            (key, value) for key, value in bound.items() if not is_default(value, signature.parameters[key].default)
        ]
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", tuple(kept))
        self._judge()

    def _judge(self) -> None:
        """Raise what a call would raise of any tensor, unless these arguments were found right before.

        A trial takes 34 µs; the rest of `he_normal()`, 11 (`python -m timeit -s "from fastinit.initialisers import
        he_normal" "he_normal()"`). In every call `frameworks` make a value with the layout of the shape.
        """
        key = (self.name, *((name, type(value), value) for name, value in self.arguments))
        if key in judged:
            return
        complete = self._rehearse()
        if complete and not any(type(value) is tuple for _, value in self.arguments):  # long, and of types of their own
            if len(judged) >= MOST_JUDGED:
                judged.clear()
            judged.add(key)

    def _rehearse(self) -> bool:
        """Raise what a call would raise of any tensor: it is tried on shapes without memory, and one is enough.

        Not what is a `RuntimeError`, which may be about a tensor's device or memory; and not while a mode, a transform
        or somebody's replacement of a function of torch.nn.init would hear of it. Returns whether it was tried.
        """
        if self.takes("fan_in"):
            axes(*(self.argument(key) for key in ("layout", "fan_in", "fan_out", "groups")))
        layout = self.argument("layout") if self.takes("layout") else None
        if layout is not None:
            fans((1,) * len(layout) if isinstance(layout, str) else (), layout)
        overheard = outside_contract(torch.empty(0, device="cpu")) is not None
        if overheard or any(map(originals.replacement, originals.NAMES)):
            return False
        first: Exception | None = None
        for shape, dtype in itertools.product(self._shapes(layout), (torch.float64, torch.int64)):
            try:
                with quiet():  # warnings about the arguments come with each call
                    self.fill(shard(torch.empty(shape, dtype=dtype, device="meta"), shape, (0,) * len(shape)))
                return True
            except RuntimeError:
                continue
            except Exception as error:
                first = first or error
        if first is not None:
            raise first
        return True

    def _shapes(self, layout: str | None) -> list[tuple[int, ...]]:
        """Shapes of which one suits any right arguments: a matrix, a convolution and a vector, or the layout's."""
        groups = self.argument("groups") if self.takes("groups") else 1
        # Groups must divide the features; 16 of each group rather than 1, for the errors that name the shape.
        features = 16 * max(groups, 1) if type(groups) is int else 16
        if layout:
            return [tuple(features if letter in "io" else 1 for letter in layout)]
        elements = 1 << 40  # no fewer than constant_ is given values; without memory they cost nothing
        return [(features, 1), (features, 1, 1), (elements,)]

    def __call__(
        self,
        shape: Sequence[int] | int,
        dtype: Any = None,
        device: torch.device | str | None = None,
        stream: Stream | None = None,
        *,
        generator: Generator | None = None,
        fast: bool | None = None,
    ) -> Tensor:
        """A new tensor of that shape, filled: what the in-place function makes of `torch.empty(shape)`.

        `dtype` is torch's, its name ("bfloat16"), or another framework's of the same name; torch's default if None,
        and so is `device`. `stream`, `generator`, `fast` as in the in-place functions.
        """
        tensor = torch.empty(shape, dtype=as_dtype(dtype), device=device)
        return anew(self.fill, tensor, stream=stream, generator=generator, fast=fast)

    def fill(
        self, tensor: T, *, stream: Stream | None = None, generator: Generator | None = None, fast: bool | None = None
    ) -> T:
        """Fill a tensor, or a `fastinit.shard`, in place and return it: a call of the function with these arguments.

        What draws nothing (zeros, identity) takes no notice of `stream`, `generator` and `fast`.
        """
        function = functions[f"{self.name}_"]
        named = dict(self.arguments)
        rest = named.pop(rest_of(signature_of(self.name)), ())
        if draws(self.name):
            named |= {"stream": stream, "generator": generator, "fast": fast}
        else:
            check_source(generator, stream)
        filled: T = function(tensor, *rest, **named)
        return filled

    def takes(self, parameter: str) -> bool:
        """Whether the function has this parameter."""
        return parameter in signature_of(self.name).parameters

    def argument(self, parameter: str) -> Any:
        """The value of this parameter, its default included. Raises `KeyError` where the function has none."""
        return dict(self.arguments).get(parameter, signature_of(self.name).parameters[parameter].default)

    def replace(self, **changes: Any) -> Initializer:
        """A copy of this initialiser with some arguments changed."""
        return Initializer(self.name, {**dict(self.arguments), **changes})  # type: ignore[arg-type]

    def to_config(self) -> dict[str, Any]:
        """The value as a dictionary that JSON holds; `from_config` makes the value of it again."""
        return {"name": self.name, "arguments": {key: as_lists(value) for key, value in self.arguments}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Initializer:
        """The value of a dictionary that `to_config` made. Raises `ValueError` for another dictionary."""
        if set(config) - {"arguments"} != {"name"} or not isinstance(config.get("arguments", {}), Mapping):
            raise ValueError(
                'an initialiser\'s configuration is {"name": ..., "arguments": {...}}, as to_config() makes it; '
                f"got {dict(config)!r}"
            )
        return cls(config["name"], config.get("arguments", {}))

    def __repr__(self) -> str:
        rest = rest_of(signature_of(self.name))
        shown = [", ".join(map(repr, value)) if key == rest else f"{key}={value!r}" for key, value in self.arguments]
        return f"{self.name}({', '.join(shown)})"


def get(spec: Any) -> Initializer:
    """The initialiser that `spec` means.

    A value; a name, in snake or camel case ("he_normal", "he_normal_", "HeNormal"); a configuration; a factory; a
    function of fastinit or its namesake in torch.nn.init, also with arguments bound to it by `functools.partial`.
    Raises `ValueError` for a name that does not exist, `TypeError` for anything else.
    """
    if isinstance(spec, Initializer):
        return spec
    if isinstance(spec, str):
        return Initializer(spec)
    if isinstance(spec, Mapping):
        return Initializer.from_config(spec)
    if isinstance(spec, functools.partial):
        return factory(get_name(spec.func))(*spec.args, **spec.keywords)
    return Initializer(get_name(spec))


def get_name(function: Any) -> str:
    """The name of the initialiser that a factory or a function is."""
    name = getattr(function, "__name__", "").removesuffix("_")
    if f"{name}_" in functions:
        theirs = getattr(torch.nn.init, f"{name}_", None)
        if any(function is own for own in (functions[f"{name}_"], theirs, factory(name))):
            return name
    raise TypeError(
        "an initialiser is a value, its name, its configuration, or a function of fastinit.initialisers or fastinit; "
        f"got {function!r}"
    )


def names() -> list[str]:
    """The names of all initialisers."""
    return [name.removesuffix("_") for name in functions]


@functools.cache
def spellings() -> dict[str, str]:
    """Every way to write a name, to the name."""
    return {
        spelled: name
        for name in names()
        for spelled in (name, f"{name}_", "".join(part.capitalize() for part in name.split("_")))
    }


def known(spelled: str) -> str:
    """The name that is spelled so. Raises `ValueError`, with names that are near, where there is none."""
    if not isinstance(spelled, str):
        raise TypeError(f"an initialiser's name is a string, got {spelled!r}")
    if (name := spellings().get(spelled)) is not None:
        return name
    near = {spellings()[word]: None for word in difflib.get_close_matches(spelled, spellings(), 6, 0.5)}
    hint = f"; near it: {', '.join([*near][:3])}" if near else f"; there are {', '.join(names())}"
    raise ValueError(f"there is no initialiser {spelled!r}{hint}")


@functools.cache
def factory(name: str) -> Callable[..., Initializer]:
    """What makes values of that name."""

    def make(*arguments: Any, **named: Any) -> Initializer:
        return Initializer(name, bind(name, arguments, named))  # type: ignore[arg-type]

    make.__name__ = make.__qualname__ = name
    make.__module__ = __package__
    make.__signature__ = signature_of(name)  # type: ignore[attr-defined]
    own = functions[f"{name}_"].__doc__
    make.__doc__ = f"`fastinit.{name}_` with these arguments, as a value. {own}"
    return make


@functools.cache
def signature_of(name: str) -> inspect.Signature:
    """The arguments of a value: those of the function that say what to draw."""
    _, *parameters = inspect.signature(functions[f"{name}_"]).parameters.values()
    return inspect.Signature([p.replace(annotation=PARAMETER.empty) for p in parameters if p.name not in HOW])


@functools.cache
def draws(name: str) -> bool:
    """Whether the function draws, and so asks from what."""
    return "stream" in inspect.signature(functions[f"{name}_"]).parameters


def rest_of(signature: inspect.Signature) -> str:
    """The name of the parameter that takes any number of arguments; "" where there is none."""
    return next((p.name for p in signature.parameters.values() if p.kind is PARAMETER.VAR_POSITIONAL), "")


def bind(name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by their parameters. Raises `TypeError` for those that the function does not take, or lacks."""
    signature = signature_of(name)
    try:
        return signature.bind(*arguments, **named).arguments
    except TypeError as error:
        raise TypeError(f"{name}{signature}: {error}") from None


def is_default(value: Any, default: Any) -> bool:
    """Whether an argument says no more than the default; a truth value does (torch refuses some)."""
    return (type(value) is bool) == (type(default) is bool) and bool(value == default)


def plain(value: Any) -> Any:
    """An argument as Python's own numbers and strings, and tuples of them, which a configuration holds."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        settle(value)
        held = value.tolist()
        if isinstance(held, (bool, int, float, list)):
            return plain(held)
    elif type(number := as_float(value)) is float:
        return number
    raise TypeError(f"an initialiser's argument is a number, a string, None or a list of numbers, got {value!r}")


def as_lists(value: Any) -> Any:
    return [*map(as_lists, value)] if isinstance(value, tuple) else value


def as_dtype(dtype: Any) -> torch.dtype | None:
    """torch's dtype of that name; None for None. Raises `TypeError` where torch has none."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or np.dtype(dtype).name
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"torch has no dtype {dtype!r}")
    return found
