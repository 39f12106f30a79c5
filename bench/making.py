"""Calls that make tensors, or take tensors of parameters: fastinit.random's beside torch's, for `cases.Made`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import fastinit
from fastinit import random

from .timing import Call


def normal_each(count: int) -> tuple[Call, Call]:
    mean, out = torch.rand(count), torch.empty(count)
    return partial(random.normal, mean, 1.0, out=out), partial(torch.normal, mean, 1.0, out=out)


def bernoulli_each(count: int) -> tuple[Call, Call]:
    p, out = torch.rand(count), torch.empty(count)
    return partial(fastinit.bernoulli_, out, p), partial(out.bernoulli_, p)


def categories(replacement: bool, samples: Callable[[int], int], count: int) -> tuple[Call, Call]:
    arguments = torch.rand(count), samples(count), replacement
    return partial(random.multinomial, *arguments), partial(torch.multinomial, *arguments)


def rows_of_categories(count: int) -> tuple[Call, Call]:
    arguments = torch.rand(count // 16, 16), 4, True
    return partial(random.multinomial, *arguments), partial(torch.multinomial, *arguments)


def in_both(name: str, count: int) -> tuple[Call, Call]:
    return partial(getattr(random, name), count), partial(getattr(torch, name), count)


ROWS = "random.multinomial(4 of 16 in each row, replacement)"
MADE: dict[str, Callable[[int], tuple[Call, Call]]] = {
    "random.normal(mean tensor)": normal_each,
    "bernoulli_(p tensor)": bernoulli_each,
    "random.rand": partial(in_both, "rand"),
    "random.randn": partial(in_both, "randn"),
    "random.randperm": partial(in_both, "randperm"),
    "random.multinomial(1 of n)": partial(categories, False, lambda count: 1),
    "random.multinomial(n/4 of n)": partial(categories, False, lambda count: count // 4),
    "random.multinomial(n, replacement)": partial(categories, True, lambda count: count),
    ROWS: rows_of_categories,
}
