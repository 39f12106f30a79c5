"""What the project promises of its speed, on two cores with AVX-512, as ratios within one run: read by bench.guard.

A target is never lowered to be met. `rough` bounds are for machines of another kind with neighbours (CI). With half
the width of vectors and the other core busy, uniform_ was measured at 3.7 times as fast as torch, normal_ in bfloat16
at 3.8; drawn by plain torch operations, at a hundredth; without vectors it should be one or two (an estimate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from . import cases, cold, constructions
from .cases import Case
from .making import MADE

HALF = torch.bfloat16


class Bound(NamedTuple):
    """Of fastinit against another of a case's calls: so many times as fast, or no more than so many times its time."""

    against: str
    target: float
    rough: float
    faster: bool  # whether it is the former

    def measured(self, seconds: Mapping[str, float]) -> float:
        ratio = seconds[self.against] / seconds["fastinit"]
        return ratio if self.faster else 1 / ratio

    def met(self, measured: float) -> bool:
        return measured >= self.target if self.faster else measured <= self.target

    def hopeless(self, measured: float) -> bool:
        """Whether the miss is too great for noise, so that measuring again would only cost time."""
        return 4 * measured < self.target if self.faster else measured > 4 * self.target

    @property
    def roughly(self) -> Bound:
        return self._replace(target=self.rough)

    @property
    def words(self) -> str:
        return f"≥ {self.target:g}x {self.against}" if self.faster else f"≤ {self.target:g}x {self.against}'s time"


class Floor(NamedTuple):
    """A case and its bounds; `budget` seconds for each call in it. Only `ci` rows are measured in a rough run."""

    case: Case
    bounds: tuple[Bound, ...]
    budget: float = 0.4
    ci: bool = True


def torchs(target: float, rough: float) -> Bound:
    return Bound("torch", target, rough, faster=True)


def fills(target: float, rough: float) -> Bound:
    return Bound("fill_", target, rough, faster=False)


def large() -> Iterator[Floor]:
    """2^26 elements, in memory that is in use already."""
    uniform, normal = (torchs(13, 2.5), fills(1.25, 5)), (torchs(10, 2.5), fills(2.0, 8))
    yield Floor(cases.fill("uniform_"), (*uniform, Bound("stores", 2.2, 5, faster=False)))
    yield Floor(cases.fill("normal_"), normal)
    yield Floor(cases.fill("kaiming_normal_"), normal, ci=False)
    yield Floor(cases.fill("xavier_uniform_"), uniform, ci=False)
    yield Floor(cases.fill("trunc_normal_"), (torchs(120, 25), fills(3.0, 12)))
    yield Floor(cases.fill("trunc_normal_", std=0.02), (torchs(14, 3),))
    yield Floor(cases.fill("normal_", HALF), (torchs(14, 2.5), fills(5.0, 20)))
    yield Floor(cases.fill("uniform_", HALF), (torchs(15, 2.5), fills(3.5, 14)))
    yield Floor(cases.fill("normal_", torch.float64), (torchs(8, 2),))
    yield Floor(cases.one_thread(cases.fill("normal_")), (torchs(5, 1.7),))


def small() -> Iterator[Floor]:
    """Where a call's own cost counts: each law in at most 1.25 times torch's time; from 256 elements on, in torch's."""
    for exponent in (0, 4, 8, 10, 12, 16, 20):
        bound = torchs(1.0, 0.5) if exponent >= 8 else torchs(0.8, 0.4)
        for function in cases.SMALL:
            yield Floor(cases.fill(function, exponent=exponent), (bound,), budget=0.06, ci=exponent in (0, 8, 16))


def samplers() -> Iterator[Floor]:
    """2^26 elements; and small fills, from 256 elements on no slower than torch."""
    for function, keywords, dtypes in cases.SAMPLERS:
        for dtype in dtypes:
            target = torchs(5, 1.5) if function == "random_" else torchs(10, 2.5)
            large = replace(cases.fill(function, dtype), keywords=keywords)
            yield Floor(large, (target,), ci=dtype is torch.float32)
        for exponent in (8, 12, 16):
            small = replace(cases.fill(function, exponent=exponent), keywords=keywords)
            yield Floor(small, (torchs(1.0, 0.5),), budget=0.06, ci=exponent == 12)


def made() -> Iterator[Floor]:
    """Tensors of parameters, permutations, categories."""
    yield Floor(cases.made("random.normal(mean tensor)"), (torchs(6, 1.5),))
    yield Floor(cases.made("bernoulli_(p tensor)"), (torchs(10, 2.5),))
    for exponent in (20, 24):
        yield Floor(cases.made("random.randperm", exponent), (torchs(1, 0.5),), ci=exponent == 20)
    for function in (name for name in MADE if "multinomial" in name):
        for exponent in (10, 16, 20):
            yield Floor(cases.made(function, exponent), (torchs(1, 0.5),), ci=exponent == 16)
    yield Floor(cases.many_rows(), (torchs(1, 0.5),))
    for function in ("random.normal(mean tensor)", "bernoulli_(p tensor)", "random.rand", "random.randn"):
        for exponent in (8, 12, 16):
            yield Floor(cases.made(function, exponent), (torchs(1, 0.5),), budget=0.06, ci=exponent == 16)


def others() -> Iterator[Floor]:
    """Fresh memory, a model, shards, matrices."""
    yield Floor(cases.fresh(), (torchs(3, 1.2), fills(1.3, 2.6)), ci=False)
    yield Floor(cases.fresh(memory="fresh in turns"), (fills(1.3, 10),), ci=False)
    yield Floor(cases.model(), (torchs(3, 1.2),))
    for function in ("normal_", "uniform_"):
        yield Floor(cases.slices(function), (Bound("rows", 1.3, 2.6, faster=False),))
    for function in ("normal_", "uniform_"):
        yield Floor(replace(cases.fill(function, exponent=24), layout="transposed"), (torchs(1.0, 0.5),))
    yield Floor(cases.fill("orthogonal_", exponent=24), (torchs(1.5, 1.0),), ci=False)
    sparse = cases.fill("sparse_", exponent=24, sparsity=0.1)
    yield Floor(sparse, (torchs(4, 1.5),))
    yield Floor(replace(sparse, layout="transposed"), (torchs(1.0, 0.5),), ci=False)
    for shape in ((784, 500), (1_000_000, 1)):
        yield Floor(replace(sparse, shape=shape), (torchs(1.0, 0.5),))


def many() -> Iterator[Floor]:
    """Real models: many tensors, cold memory, one call each, or in one batch."""
    yield Floor(cold.parameters(), (torchs(9, 2.5),))
    yield Floor(cold.parameters("batch"), (torchs(13, 2.5),))
    targets = {"uniform_": (6, 7, 9, 11), "normal_": (5, 7, 10, 13)}
    for function, least in targets.items():
        for exponent, target in zip((16, 18, 20, 22), least, strict=True):
            yield Floor(cold.ring(function, exponent), (torchs(target, 1.5),), ci=exponent == 18)
    for function in targets:
        for exponent, most in ((14, 2.0), (16, 1.2), (18, 1.2), (20, 1.2), (22, 1.2)):
            one = Bound("one", most, 3 * most, faster=False)
            yield Floor(cold.ring(function, exponent, "batch"), (one,), ci=exponent == 18)
    yield Floor(cold.small(), (torchs(3, 0.5),))
    yield Floor(cold.small(how="list"), (torchs(8, 1),))
    yield Floor(cold.parameters(busy=True), (torchs(1.0, 0.5),), ci=False)
    for exponent in (12, 16, 20):
        yield Floor(cold.ring("normal_", exponent, busy=True), (torchs(1.0, 0.5),), ci=False)
    yield Floor(cold.hot("normal_", 18), (Bound("alone", 1.6, 0.7, faster=True),))
    yield Floor(cold.model_in_batch(), (torchs(10, 1.2), fills(0.6, 2.6)))


def constructed() -> Iterator[Floor]:
    """Models as their libraries construct them, where these are installed; and a block with nothing to do."""
    targets = {"gpt2": (12, 20), "t5": (15, 25)} | dict.fromkeys(("llama", "bert"), (8, 12))
    for model, least in (targets | dict.fromkeys(("vit", "convnext"), (10, 15))).items():
        for how, target in zip(("accelerate", "build"), least, strict=True):
            if constructions.is_installed(constructions.MODELS[model].library):
                case = constructions.construction(model, how)
                once = Bound("stores", 1.5, 4, faster=False)
                yield Floor(case, (torchs(target, 1.5), once), budget=0.3, ci=model == "gpt2")
    if constructions.is_installed("transformers"):
        yield Floor(constructions.billion(), (torchs(11, 1.5),), budget=0.1, ci=False)
        yield Floor(constructions.skipped(), (Bound("torch", 1.1, 2, faster=False),))
    yield Floor(constructions.idle(), (Bound("torch", 4, 8, faster=False),))
    yield Floor(constructions.idle(pending=True), (Bound("torch", 6, 12, faster=False),), ci=False)
    yield Floor(constructions.tiny(), (Bound("torch", 10, 20, faster=False),), ci=False)


FLOORS = (*large(), *small(), *samplers(), *made(), *others(), *many(), *constructed())
# Milliseconds from `import fastinit`, torch being imported, to the first tensor, with the kernels on disk already.
FIRST_USE, FIRST_USE_ROUGH, FIRST_USE_WISH = 600.0, 2000.0, 150.0
