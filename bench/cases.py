"""What the CPU benchmarks measure: one list, for the pytest suite, the report and the guard.

A case is a fill of one kind of tensor. `calls` makes what takes turns in it, by name, on memory that they share:
"fastinit", "torch" (torch.nn.init), "fill_" (writing the bytes through the cache), "stores" (our kernel that stores a
constant, as one job: from 1 MiB on non-temporal stores, the limit of the machine), and what else is a measure for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

import fastinit

from .making import MADE, ROWS
from .timing import Call, threads
from .ways import in_batch, memory_of, on_fresh, stores, write

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
RANKS = 8
MOST_MADE = 20  # log2 of the elements that a suite has made: torch's permutations and categories take their time
NOTHING: Mapping[str, float] = MappingProxyType({})

ELEMENTWISE: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("uniform_", NOTHING),
    ("normal_", NOTHING),
    ("trunc_normal_", NOTHING),
    ("trunc_normal_", MappingProxyType({"std": 0.02})),
    ("kaiming_normal_", NOTHING),
    ("xavier_uniform_", NOTHING),
)
MATRIX: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("orthogonal_", NOTHING),
    ("sparse_", MappingProxyType({"sparsity": 0.1})),
)
# The samplers, with the dtypes that they are timed in.
SAMPLERS: tuple[tuple[str, Mapping[str, float], tuple[torch.dtype, ...]], ...] = (
    ("bernoulli_", NOTHING, (torch.float32, torch.bool)),
    ("cauchy_", NOTHING, (torch.float32,)),
    ("exponential_", NOTHING, (torch.float32,)),
    ("geometric_", MappingProxyType({"p": 0.25}), (torch.float32, torch.int64)),
    ("log_normal_", NOTHING, (torch.float32,)),
    ("random_", NOTHING, (torch.float32, torch.int32, torch.int64)),
)
SMALL = (
    "uniform_",
    "normal_",
    "trunc_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "xavier_uniform_",
    "xavier_normal_",
)


def contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def transposed(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape[::-1], dtype=dtype).T


def strided(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Every other column of a matrix."""
    return torch.empty(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]


def channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)


LAYOUTS: dict[str, Callable[[tuple[int, ...], torch.dtype], Tensor]] = {
    "contiguous": contiguous,
    "transposed": transposed,
    "strided": strided,
    "channels_last": channels_last,
}


@dataclass(frozen=True)
class Case:
    """A call on a tensor of `shape`, in warm memory, or in fresh: allocated by each call, so that its pages are faults.

    "fresh" is timed after a call of the same kind, whose pages the system still has at hand; "fresh in turns" is not.
    They differ on virtual machines whose host takes free memory back: there 2^28 float32 in huge pages took 0.2 s in
    the former and 1.4 in the latter, which fill_, in small pages, did not notice.
    """

    function: str
    keywords: Mapping[str, float]
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: str = "contiguous"
    memory: str = "warm"
    threads: int | None = None
    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "torch", "fill_", "stores")

    @property
    def call(self) -> str:
        return self.function + (f"({', '.join(f'{k}={v}' for k, v in self.keywords.items())})" if self.keywords else "")

    @property
    def shown(self) -> str:
        """As it is written in code."""
        return self.call if self.call.endswith(")") else f"{self.call}()"

    @property
    def label(self) -> str:
        """In tables and pictures, where dtype and size stand beside it."""
        return self.shown

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def conditions(self) -> str:
        """What is unusual about it, for its name."""
        words = [
            "" if self.layout == "contiguous" else self.layout,
            "" if self.memory == "warm" else self.memory,
            "" if self.threads is None else f"{self.threads} thread",
        ]
        return "".join(f" {word}" for word in words if word)

    @property
    def name(self) -> str:
        """Sorts by size within a call and dtype."""
        return f"{self.call} {self.dtype_name} {power(self.shape)}{self.conditions}"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def settle(self) -> bool:
        """Whether a timing follows a call that is not timed."""
        return self.memory == "fresh"

    def held(self) -> AbstractContextManager[None]:
        """What the case is timed within."""
        return threads(self.threads)

    def tensor(self) -> Tensor:
        return LAYOUTS[self.layout](self.shape, self.dtype)

    def both(self) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """fastinit's function and torch's; samplers are methods of torch's tensors."""
        theirs = getattr(torch.nn.init, self.function, None) or getattr(Tensor, self.function)
        return partial(getattr(fastinit, self.function), **self.keywords), partial(theirs, **self.keywords)

    def calls(self) -> dict[str, Call]:
        ours, theirs = self.both()
        functions: dict[str, Callable[[Tensor], Any]] = {"fastinit": ours, "torch": theirs, "fill_": write}
        if self.memory != "warm":
            functions["stores"] = lambda tensor: stores([tensor])()
            return {name: partial(on_fresh, function, self.tensor) for name, function in functions.items()}
        tensor = self.tensor().fill_(1.0)
        calls: dict[str, Call] = {name: partial(function, tensor) for name, function in functions.items()}
        return calls | {"stores": stores([memory_of(tensor)])}


@dataclass(frozen=True)
class Slices(Case):
    """All ranks' slices of a matrix, one after the other: of columns, by `shard`, against as large slices of rows."""

    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "rows", "torch", "fill_", "stores")

    @property
    def conditions(self) -> str:
        return f" columns over {RANKS} ranks"

    def calls(self) -> dict[str, Call]:
        rows, columns = self.shape
        wide = torch.ones(rows // RANKS, columns, dtype=self.dtype)
        tall = torch.ones(rows, columns // RANKS, dtype=self.dtype)
        ours, theirs = self.both()

        def shards(local: Tensor, down: int, right: int) -> None:
            for rank in range(RANKS):
                ours(fastinit.shard(local, self.shape, (rank * down, rank * right)))

        store_all = stores([tall])

        def every_rank(function: Callable[[Tensor], Any]) -> None:
            for _ in range(RANKS):
                function(tall)

        return {
            "fastinit": partial(shards, tall, 0, columns // RANKS),
            "rows": partial(shards, wide, rows // RANKS, 0),
            "torch": partial(every_rank, theirs),
            "fill_": partial(every_rank, write),
            "stores": partial(every_rank, lambda _: store_all()),
        }


@dataclass(frozen=True)
class Made(Case):
    """A call that makes a tensor, or takes tensors of parameters: one of MADE, of as many elements as the shape has."""

    def calls(self) -> dict[str, Call]:
        ours, theirs = MADE[self.function](self.elements)
        tensor = torch.empty(self.elements, dtype=self.dtype)
        return {"fastinit": ours, "torch": theirs, "fill_": partial(write, tensor), "stores": stores([tensor])}


def made(function: str, exponent: int = 26) -> Made:
    whole = "randperm" in function or "multinomial" in function
    return Made(function, NOTHING, torch.int64 if whole else torch.float32, square(exponent))


@dataclass(frozen=True)
class Model(Case):
    """Every parameter of a model shaped like Llama, allocated and initialised; `shape` is that of an embedding.

    "batch" is fastinit's in one batch.
    """

    layers: int = 7
    contenders: ClassVar[tuple[str, ...]] = (*Case.contenders, "batch")

    @property
    def name(self) -> str:
        return f"Llama-shaped model {self.dtype_name} {round(self.elements / 1e6)}M parameters"

    @property
    def label(self) -> str:
        return f"a model like Llama, {round(self.elements / 1e6)}M parameters, fresh memory"

    def parameters(self) -> list[tuple[int, ...]]:
        """Attention, gated MLP and norms, layer by layer, between the embedding and a head of its own."""
        width = self.shape[1]
        hidden = width * 11 // 4
        attention, norms = [(width, width)] * 4, [(width,)] * 2
        layer = [*attention, (hidden, width), (hidden, width), (width, hidden), *norms]
        return [self.shape, *layer * self.layers, (width,), self.shape]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.parameters()))

    def calls(self) -> dict[str, Call]:
        shapes = self.parameters()

        def initialise(module: Any) -> None:
            tensors = [torch.empty(shape, dtype=self.dtype) for shape in shapes]
            for tensor in tensors:
                if tensor.dim() > 1:
                    module.normal_(tensor, **self.keywords)
                else:
                    module.ones_(tensor)

        def on_all(function: Callable[[list[Tensor]], Any]) -> None:
            function([torch.empty(shape, dtype=self.dtype) for shape in shapes])

        return {
            "fastinit": partial(initialise, fastinit),
            "torch": partial(initialise, torch.nn.init),
            "fill_": partial(on_all, lambda tensors: [*map(write, tensors)]),
            "stores": partial(on_all, lambda tensors: stores(tensors)()),
            "batch": partial(in_batch, partial(initialise, fastinit)),
        }


def power(shape: tuple[int, ...]) -> str:
    """2^05, so that names sort by size; the shape itself where it is no power of two."""
    exponent = math.prod(shape).bit_length() - 1
    return f"2^{exponent:02}" if math.prod(shape) == 1 << exponent else "x".join(map(str, shape))


def square(exponent: int) -> tuple[int, int]:
    """A matrix of 2^exponent elements: initialisers that divide by fans need two dimensions."""
    return 1 << exponent // 2, 1 << exponent - exponent // 2


def fill(function: str, dtype: torch.dtype = torch.float32, exponent: int = 26, **keywords: float) -> Case:
    return Case(function, keywords, dtype, square(exponent))


def many_rows() -> Made:
    return made(ROWS, 18)


def sampler(function: str, given: Mapping[str, float], exponent: int = 26) -> Case:
    return replace(fill(function, exponent=exponent), keywords=given)


def one_thread(case: Case) -> Case:
    return replace(case, threads=1)


def slices(function: str, side: int = 8192) -> Slices:
    return Slices(function, NOTHING, torch.float32, (side, side))


def model(layers: int = 7, vocabulary: int = 32000, width: int = 2048) -> Model:
    return Model("normal_", {"std": 0.02}, torch.float32, (vocabulary, width), memory="fresh", layers=layers)


def fresh(function: str = "normal_", exponent: int = 28, memory: str = "fresh") -> Case:
    return replace(fill(function, exponent=exponent), memory=memory)


# The README's table, and the report's bars.
TABLE = (
    fill("uniform_"),
    fill("normal_"),
    fill("trunc_normal_"),
    fill("trunc_normal_", std=0.02),
    fill("kaiming_normal_"),
    fill("xavier_uniform_"),
    fill("uniform_", torch.bfloat16),
    fill("normal_", torch.bfloat16),
    fill("trunc_normal_", torch.bfloat16),
    fill("normal_", torch.float16),
    fill("normal_", torch.float64),
    *(sampler(function, given) for function, given, _ in SAMPLERS),
    made("random.normal(mean tensor)"),
    made("bernoulli_(p tensor)"),
    made("random.randperm"),
)


def other_memory(greatest: int) -> Iterator[Case]:
    """Other memory than a whole contiguous matrix that is in use already, and laws of whole matrices."""
    for function in ("uniform_", "normal_"):
        for layout in ("transposed", "strided"):
            yield replace(fill(function, exponent=min(24, greatest)), layout=layout)
        convolution = (max(4, (1 << min(24, greatest)) // 1024), 64, 3, 3)
        yield replace(fill(function), shape=convolution, layout="channels_last")
        yield one_thread(fill(function, exponent=greatest))
        yield slices(function, side=1 << min(26, greatest) // 2)
    for function, keywords in MATRIX:
        yield replace(fill(function, exponent=min(20, greatest)), keywords=keywords)
    for exponent in (10, 16, 20, 24):  # below 2^20 it is slower than torch's
        yield made("random.randperm", min(exponent, greatest))
    yield fresh(exponent=28 if greatest >= 24 else greatest)
    yield model() if greatest >= 24 else model(layers=1, vocabulary=256, width=64)


def elementwise(exponent: int) -> Iterator[Case]:
    """Each law in each dtype."""
    for dtype in DTYPES:
        for function, keywords in ELEMENTWISE:
            yield fill(function, dtype, exponent, **keywords)


def each(exponents: tuple[int, ...]) -> Iterator[Case]:
    """Laws, samplers, and what is made of tensors, in sizes of 2^exponents, rising."""
    for exponent in exponents:
        yield from elementwise(exponent)
        yield from (sampler(function, given, exponent) for function, given, _ in SAMPLERS)
        if exponent <= MOST_MADE:
            yield from (made(function, exponent) for function in MADE)


def suite(exponents: tuple[int, ...]) -> Iterator[Case]:
    """What `pytest bench` measures: the same, and a model."""
    yield from each(exponents)
    yield model(layers=1, vocabulary=4096) if exponents[-1] >= 20 else model(layers=1, vocabulary=256, width=64)


def full_suite(exponents: tuple[int, ...]) -> Iterator[Case]:
    """What `pytest bench --full` measures: the same, matrices, and other kinds of memory in the greatest size."""
    yield from each(exponents)
    for exponent in (8, 16):
        for dtype in (torch.float32, torch.float64):
            for function, keywords in MATRIX:
                yield fill(function, dtype, exponent, **keywords)
    yield from other_memory(min(26, exponents[-1]))
