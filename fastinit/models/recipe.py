"""What a recipe is: rules that are made for a model, with hyperparameters that its configuration may say."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import torch

from .rules import Rule
from .walk import named_parameters, walk

P = ParamSpec("P")
Module = torch.nn.Module


@dataclass(frozen=True)
class Recipe:
    """A recipe with its hyperparameters; calling it with a model gives the rules. `named` reads its `str`."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(self, model: Module) -> list[Rule]:
        """The rules for this model."""
        rules: Callable[..., Iterator[Rule]] = inspect.unwrap(RECIPES[self.name])
        return [*rules(model, **dict(self.arguments))]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments)})"


RECIPES: dict[str, Callable[..., Recipe]] = {}  # what binds hyperparameters, by name


def recipe(function: Callable[Concatenate[Module, P], Iterator[Rule]]) -> Callable[P, Recipe]:
    """Register a recipe; returns a factory that binds its hyperparameters."""
    _, *hyperparameters = inspect.signature(function).parameters.values()
    signature = inspect.Signature(hyperparameters)

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Recipe:
        bound = signature.bind(*args, **kwargs).arguments
        return Recipe(function.__name__, tuple((key, plain(value)) for key, value in bound.items()))

    make.__signature__ = signature  # type: ignore[attr-defined]
    RECIPES[function.__name__] = make
    return make


def plain(value: Any) -> Any:
    """A hyperparameter as a value: of a model, the shapes of its parameters by name."""
    if isinstance(value, Module):
        value = {name: one.shape for name, one in named_parameters(value)}
    if isinstance(value, Mapping):
        return tuple((name, tuple(shape)) for name, shape in value.items())
    return value


def found(given: Any) -> Any:
    """The recipe that is meant by its name, or by what makes it without a call; anything else as it is."""
    if isinstance(given, str):
        return named(given)
    return given() if any(given is make for make in RECIPES.values()) else given


def named(text: str) -> Recipe:
    """The recipe of that name, with hyperparameters or without: "gpt2", "gpt2(n_layer=12)"."""
    from . import recipes  # noqa: F401 (which registers them)

    name, bracket, _ = text.partition("(")
    if name not in RECIPES:
        import difflib

        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"; near it: {near[0]}" if near else f"; there are {', '.join(RECIPES)}"
        raise ValueError(f"there is no recipe {name!r}{hint}")
    if not bracket:
        return Recipe(name)
    try:
        _, args, kwargs = literal_call(text)
        return RECIPES[name](*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise ValueError(f"a recipe is written as gpt2(n_layer=12), got {text!r} ({error})") from None


def literal_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, arguments and named arguments of `a.name(1, width=2)`. Raises `ValueError` where they are no literals."""
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(str(error)) from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, (ast.Name, ast.Attribute)):
        raise ValueError("expected one call")
    args = [ast.literal_eval(argument) for argument in call.args]
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    if len(kwargs) < len(call.keywords):
        raise ValueError("expected arguments by name, not **")
    return ast.unparse(call.func), args, kwargs


def hyperparameter(given: Any, model: Module, recipe: str, name: str, *keys: str, default: Any = None) -> Any:
    """What was given, else what the model's configuration says under one of these keys."""
    if given is not None:
        return given
    for _, module in walk(model):
        config = getattr(module, "config", None)
        for key in keys:
            value = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
            if value is not None:
                return value
    if default is None:
        raise ValueError(
            f"the recipe {recipe} needs {name}, and the model has no config that says {' or '.join(keys)}: "
            f"recipes.{recipe}({name}=...)"
        )
    return default
