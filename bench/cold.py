"""What users do, as cases: many tensors, in memory that no cache holds, alone and in one batch.

A benchmark that fills one tensor again and again finds it in the cache, and hides what a model costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .cases import NOTHING, Case, Model, model, square
from .timing import Call, neighbour, threads
from .ways import in_batch, stores, write

COLD = 256 << 20  # bytes, more than caches hold
HOW = {"calls": "", "batch": " in one batch", "list": " as one list"}


@dataclass(frozen=True)
class Many(Case):
    """Tensors of these `shapes`, in memory that no cache holds. fastinit serves them one by one, in one batch or as one
    list (`how`), torch one by one; "stores" are non-temporal stores alone. `busy`: another process keeps a core busy.
    """

    how: str = "calls"
    busy: bool = False
    contenders: ClassVar[tuple[str, ...]] = (*Case.contenders, "batch")

    @property
    def conditions(self) -> str:
        return " cold" + HOW[self.how] + " beside a busy process" * self.busy

    def shapes(self) -> list[tuple[int, ...]]:
        raise NotImplementedError

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes()))

    def tensors(self) -> list[Tensor]:
        return [torch.ones(shape, dtype=self.dtype) for shape in self.shapes()]

    def held(self) -> AbstractContextManager[None]:
        return neighbour() if self.busy else super().held()

    def calls(self) -> dict[str, Call]:
        tensors = self.tensors()
        ours, theirs = self.both()

        def each(function: Callable[[Tensor], Any]) -> None:
            for tensor in tensors:
                function(tensor)

        one_by_one = partial(each, ours)
        batch = partial(in_batch, one_by_one)
        ways: dict[str, Call] = {"calls": one_by_one, "batch": batch, "list": partial(ours, tensors)}
        return {
            "fastinit": ways[self.how],
            "torch": partial(each, theirs),
            "fill_": partial(each, write),
            "stores": stores(tensors),
            "batch": batch,
        }


@dataclass(frozen=True)
class Ring(Many):
    """Tensors of `shape`, `size` bytes of them; "one" is a tensor as large as all of them."""

    size: int = COLD
    contenders: ClassVar[tuple[str, ...]] = (*Many.contenders, "one")

    def shapes(self) -> list[tuple[int, ...]]:
        return [self.shape] * max(1, self.size // (math.prod(self.shape) * self.dtype.itemsize))

    def calls(self) -> dict[str, Call]:
        ours, _ = self.both()
        return super().calls() | {"one": partial(ours, torch.ones(self.elements, dtype=self.dtype))}


@dataclass(frozen=True)
class Small(Many):
    """`shape` small tensors, of 64 to 4096 elements, evenly in the logarithm."""

    @property
    def name(self) -> str:
        return f"{self.shown} {self.dtype_name} of {self.shape[0]} small tensors{self.conditions}"

    def shapes(self) -> list[tuple[int, ...]]:
        count = self.shape[0]
        return [(round(64 * 64 ** (k * 7919 % count / count)),) for k in range(count)]


@dataclass(frozen=True)
class Parameters(Many):
    """The matrices of `torch.nn.Transformer()`, as its constructor initialises them."""

    @property
    def name(self) -> str:
        return f"torch.nn.Transformer {self.dtype_name}{self.conditions}"

    @property
    def label(self) -> str:
        return f"torch.nn.Transformer, {round(self.elements / 1e6)}M parameters, cold memory"

    def shapes(self) -> list[tuple[int, ...]]:
        made = torch.nn.Transformer(device="meta", batch_first=True)
        return [tuple(parameter.shape) for parameter in made.parameters() if parameter.dim() > 1]


@dataclass(frozen=True)
class ModelInBatch(Model):
    """A `Model` whose parameters are drawn in one batch."""

    @property
    def name(self) -> str:
        return f"{super().name} in one batch"

    def calls(self) -> dict[str, Call]:
        calls = super().calls()
        return calls | {"fastinit": calls["batch"]}


@dataclass(frozen=True)
class Threads(Case):
    """One tensor again and again, by all threads; "alone" by one."""

    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "torch", "alone")

    @property
    def conditions(self) -> str:
        return " hot, all threads"

    def calls(self) -> dict[str, Call]:
        calls = super().calls()

        def alone() -> None:
            with threads(1):
                calls["fastinit"]()

        return calls | {"alone": alone}


def ring(function: str, exponent: int, how: str = "calls", busy: bool = False) -> Ring:
    return Ring(function, NOTHING, torch.float32, square(exponent), memory="cold", how=how, busy=busy)


def small(count: int = 10_000, how: str = "batch") -> Small:
    return Small("normal_", NOTHING, torch.float32, (count,), memory="cold", how=how)


def parameters(how: str = "calls", busy: bool = False) -> Parameters:
    return Parameters("xavier_uniform_", NOTHING, torch.float32, (), memory="cold", how=how, busy=busy)


def model_in_batch() -> ModelInBatch:
    made = model()
    return ModelInBatch(made.function, made.keywords, made.dtype, made.shape, memory="fresh", layers=made.layers)


def hot(function: str, exponent: int) -> Threads:
    return Threads(function, NOTHING, torch.float32, square(exponent))
