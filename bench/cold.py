"""What users do, as cases: many tensors, in memory that no cache holds, alone and in one batch.

A benchmark that fills one tensor again and again finds it in the cache, and hides what a model costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

import fastinit
from fastinit.kernels.cpu.jobs import Job

from .cases import NOTHING, Case, Model, model, square, write
from .timing import Call, threads

COLD = 256 << 20  # bytes, more than caches hold


def stores(tensors: list[Tensor]) -> Call:
    """Non-temporal stores and nothing else, by all threads: the limit of the machine."""
    job = Job()
    for tensor in tensors:
        job.add_constant(tensor, bytes(tensor.element_size()))
    return job.do


def in_batch(call: Call) -> None:
    with fastinit.batch():
        call()


@dataclass(frozen=True)
class Ring(Case):
    """Tensors of `shape` one after the other, 256 MiB of them; in one batch where `together`.

    "one" is a tensor as large as all of them, "stores" non-temporal stores alone.
    """

    together: bool = False
    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "torch", "fill_", "stores", "one")

    @property
    def conditions(self) -> str:
        return " cold" + " in one batch" * self.together

    def tensors(self) -> list[Tensor]:
        return [torch.ones(self.shape, dtype=self.dtype) for _ in range(max(1, COLD // self.bytes))]

    def calls(self) -> dict[str, Call]:
        tensors = self.tensors()
        whole = torch.ones(sum(tensor.numel() for tensor in tensors), dtype=self.dtype)
        ours, theirs = self.both()

        def each(function: Callable[[Tensor], Any]) -> None:
            for tensor in tensors:
                function(tensor)

        return {
            "fastinit": partial(in_batch, partial(each, ours)) if self.together else partial(each, ours),
            "torch": partial(each, theirs),
            "fill_": partial(each, write),
            "stores": stores(tensors),
            "one": partial(ours, whole),
        }


@dataclass(frozen=True)
class Small(Ring):
    """`shape` small tensors, of 64 to 4096 elements, evenly in the logarithm."""

    @property
    def name(self) -> str:
        return f"{self.shown} {self.dtype_name} of {self.shape[0]} small tensors{self.conditions}"

    def tensors(self) -> list[Tensor]:
        count = self.shape[0]
        return [torch.ones(round(64 * 64 ** (k * 7919 % count / count)), dtype=self.dtype) for k in range(count)]


@dataclass(frozen=True)
class Parameters(Ring):
    """The matrices of `torch.nn.Transformer()`, as its constructor initialises them."""

    @property
    def name(self) -> str:
        return f"torch.nn.Transformer {self.dtype_name}{self.conditions}"

    def tensors(self) -> list[Tensor]:
        made = torch.nn.Transformer(dtype=self.dtype, batch_first=True)
        return [parameter.detach() for parameter in made.parameters() if parameter.dim() > 1]


@dataclass(frozen=True)
class ModelInBatch(Model):
    """A `Model` whose parameters are drawn in one batch."""

    @property
    def name(self) -> str:
        return f"{super().name} in one batch"

    def calls(self) -> dict[str, Call]:
        calls = super().calls()
        return calls | {"fastinit": partial(in_batch, calls["fastinit"])}


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


@dataclass(frozen=True)
class Limit(Case):
    """One large tensor, against non-temporal stores alone."""

    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "torch", "fill_", "stores")

    @property
    def conditions(self) -> str:
        return " against stores"

    def calls(self) -> dict[str, Call]:
        ours, theirs = self.both()
        tensor = self.tensor().fill_(1.0)
        return {"fastinit": partial(ours, tensor), "torch": partial(theirs, tensor), "fill_": partial(write, tensor),
                "stores": stores([tensor])}  # fmt: skip


def ring(function: str, exponent: int, together: bool = False) -> Ring:
    return Ring(function, NOTHING, torch.float32, square(exponent), memory="cold", together=together)


def small(count: int = 10_000) -> Small:
    return Small("normal_", NOTHING, torch.float32, (count,), memory="cold", together=True)


def parameters(together: bool = False) -> Parameters:
    return Parameters("xavier_uniform_", NOTHING, torch.float32, square(18), memory="cold", together=together)


def model_in_batch() -> ModelInBatch:
    made = model()
    return ModelInBatch(made.function, made.keywords, made.dtype, made.shape, memory="fresh", layers=made.layers)


def hot(function: str, exponent: int) -> Threads:
    return Threads(function, NOTHING, torch.float32, square(exponent))


def limit(function: str, exponent: int = 26) -> Limit:
    return Limit(function, NOTHING, torch.float32, square(exponent))
