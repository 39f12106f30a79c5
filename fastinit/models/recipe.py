"""What a recipe is: rules that are made for a model, with hyperparameters that its configuration may say."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import torch

from .names import walk
from .rules import Rule

P = ParamSpec("P")
Module = torch.nn.Module


@dataclass(frozen=True)
class Recipe:
    """A recipe with its hyperparameters: called with a model, its rules. `str` of it is what `named` reads."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(self, model: Module) -> list[Rule]:
        return [*RECIPES[self.name](model, **dict(self.arguments))]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments)})"


RECIPES: dict[str, Callable[..., Iterator[Rule]]] = {}


def recipe(function: Callable[Concatenate[Module, P], Iterator[Rule]]) -> Callable[P, Recipe]:
    """Enter a recipe. What is called with its hyperparameters is made of it."""
    RECIPES[function.__name__] = function
    _, *hyperparameters = inspect.signature(function).parameters.values()
    signature = inspect.Signature(hyperparameters)

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Recipe:
        return Recipe(function.__name__, tuple(signature.bind(*args, **kwargs).arguments.items()))

    make.__signature__ = signature  # type: ignore[attr-defined]
    return make


def named(text: str) -> Recipe:
    """The recipe of that name, with hyperparameters or without: "gpt2", "gpt2(n_layer=12)"."""
    name, bracket, _ = text.partition("(")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"; near it: {near[0]}" if near else f"; there are {', '.join(RECIPES)}"
        raise ValueError(f"there is no recipe {name!r}{hint}")
    if not bracket:
        return Recipe(name)
    try:
        call: Any = ast.parse(text, mode="eval").body
        if call.func.id != name:
            raise ValueError("expected one call")
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        bound = inspect.signature(RECIPES[name]).bind(None, *map(ast.literal_eval, call.args), **arguments).arguments
    except (ValueError, SyntaxError, TypeError, AttributeError) as error:
        raise ValueError(f"a recipe is written as gpt2(n_layer=12), got {text!r} ({error})") from None
    return Recipe(name, tuple([*bound.items()][1:]))


def said(model: Module, recipe: str, argument: str, *names: str, default: Any = None) -> Any:
    """A hyperparameter that was left out, by one of these names of the model's configuration."""
    for _, module in walk(model):
        config = getattr(module, "config", None)
        for name in names:
            value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
            if value is not None:
                return value
    if default is None:
        raise ValueError(
            f"the recipe {recipe} needs {argument}, and the model has no config that says {' or '.join(names)}: "
            f"recipes.{recipe}({argument}=...)"
        )
    return default
