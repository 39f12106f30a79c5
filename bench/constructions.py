"""Models as their libraries construct them, and what a block of `accelerate` costs where it has nothing to do."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

import fastinit

from .cases import NOTHING, Case
from .timing import Call
from .ways import stores

Make = Callable[[], torch.nn.Module]
OPERATIONS = 100_000


class Built(NamedTuple):
    """A model of a library: what it is called, its parameters in millions, and how it is constructed."""

    library: str
    label: str
    millions: int
    make: Callable[[Any], Make]  # of the library


def hugging(model: str, config: str, **settings: Any) -> Callable[[Any], Make]:
    return lambda library: lambda: getattr(library, model)(getattr(library, config)(**settings))


def of_timm(name: str) -> Callable[[Any], Make]:
    return lambda library: functools.partial(library.create_model, name)


LLAMA = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}
BILLION = {"num_hidden_layers": 18, "hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16}
MODELS = {
    "gpt2": Built("transformers", "GPT-2", 124, hugging("GPT2LMHeadModel", "GPT2Config")),
    "t5": Built(
        "transformers", "T5", 223,
        hugging("T5Model", "T5Config", d_model=768, d_ff=3072, num_layers=12, num_heads=12, d_kv=64),
    ),
    "llama": Built("transformers", "Llama", 134, hugging("LlamaForCausalLM", "LlamaConfig", vocab_size=32000, **LLAMA)),
    "bert": Built("transformers", "BERT", 109, hugging("BertModel", "BertConfig")),
    "vit": Built("timm", "ViT base", 87, of_timm("vit_base_patch16_224")),
    "convnext": Built("timm", "ConvNeXt base", 89, of_timm("convnext_base")),
    "billion": Built(
        "transformers", "Llama", 1041, hugging("LlamaForCausalLM", "LlamaConfig", vocab_size=32000, **BILLION)
    ),
}  # fmt: skip


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Libraries do not find our folder kernels/, which transformers would take for the package of that name."""
    before, here = sys.path[:], Path(__file__).resolve().parent.parent
    sys.path[:] = [entry for entry in before if Path(entry).resolve() != here]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = before


@dataclass(frozen=True)
class Construction(Case):
    """One of MODELS, constructed by torch, under `accelerate` or by `build`; each time in memory of its own."""

    model: str = "gpt2"
    how: str = "accelerate"
    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "torch", "stores")

    @property
    def built(self) -> Built:
        return MODELS[self.model]

    @property
    def name(self) -> str:
        return f"{self.label}, {self.dtype_name}, by {self.how}"

    @property
    def label(self) -> str:
        return f"{self.built.library} {self.built.label} {self.built.millions}M"

    @property
    def elements(self) -> int:
        return self.built.millions * 1_000_000

    def held(self) -> AbstractContextManager[None]:
        return apart()

    def calls(self) -> dict[str, Call]:
        make = self.built.make(importlib.import_module(self.built.library))
        return {
            "fastinit": functools.partial(self.construct, make),
            "torch": make,
            "stores": functools.partial(written_once, make),
        }

    def construct(self, make: Make) -> torch.nn.Module:
        if self.how == "build":
            return fastinit.build(make)
        with fastinit.accelerate():
            model = make()
        return model  # noqa: RET504  (kept until the block ends, or nothing would be drawn)


def written_once(make: Make) -> torch.nn.Module:
    """The limit: the model without memory, memory for it, and all of that written once by stores alone."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    stores([parameter.detach() for parameter in model.parameters()])()
    return model


@dataclass(frozen=True)
class InHalf(Construction):
    """In bfloat16: by `build`, against memory from `to_empty`, initialised by torch.nn.init."""

    def calls(self) -> dict[str, Call]:
        make = self.built.make(importlib.import_module(self.built.library))

        def by_torch() -> None:
            with torch.device("meta"):
                model = make().to(self.dtype)
            model.to_empty(device="cpu")
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.02)
                else:
                    torch.nn.init.ones_(parameter)

        return {"fastinit": lambda: fastinit.build(make, dtype=self.dtype), "torch": by_torch}


@dataclass(frozen=True)
class Idle(Case):
    """OPERATIONS small additions inside `accelerate`, while nothing or something is `pending`, against outside."""

    pending: bool = False
    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "torch")

    @property
    def name(self) -> str:
        return f"{OPERATIONS:,} additions inside accelerate()" + ", something pending" * self.pending

    @property
    def elements(self) -> int:
        return OPERATIONS * math.prod(self.shape)

    def calls(self) -> dict[str, Call]:
        tensor = torch.ones(self.shape)

        def add() -> None:
            for _ in range(OPERATIONS):
                tensor + 1

        def inside() -> None:
            with fastinit.accelerate():
                kept = torch.empty(8).normal_() if self.pending else None
                add()
            del kept

        return {"fastinit": inside, "torch": add}


@dataclass(frozen=True)
class Skipped(Construction):
    """A construction in which transformers skips every draw: what is left is the block's own cost."""

    @property
    def name(self) -> str:
        return f"{self.label}, all draws skipped, inside accelerate()"

    def calls(self) -> dict[str, Call]:
        calls = super().calls()
        skipped: Any = importlib.import_module("transformers.initialization").no_init_weights

        def without(call: Call) -> None:
            with skipped():
                call()

        return {name: functools.partial(without, call) for name, call in calls.items()}


@dataclass(frozen=True)
class Tiny(Case):
    """A thousand layers of 8 x 8, one by one, inside `accelerate` against outside."""

    contenders: ClassVar[tuple[str, ...]] = ("fastinit", "torch")

    @property
    def name(self) -> str:
        return "1,000 Linear(8, 8) inside accelerate()"

    @property
    def elements(self) -> int:
        return 72_000

    def calls(self) -> dict[str, Call]:
        def make() -> list[torch.nn.Module]:
            return [torch.nn.Linear(8, 8) for _ in range(1000)]

        def inside() -> list[torch.nn.Module]:
            with fastinit.accelerate():
                made = make()
            return made  # noqa: RET504

        return {"fastinit": inside, "torch": make}


def construction(model: str, how: str) -> Construction:
    return Construction("", NOTHING, torch.float32, (), model=model, how=how)


def billion() -> InHalf:
    return InHalf("", NOTHING, torch.bfloat16, (), model="billion", how="build")


def idle(pending: bool = False) -> Idle:
    return Idle("", NOTHING, torch.float32, (8,), pending=pending)


def tiny() -> Tiny:
    return Tiny("", NOTHING, torch.float32, ())


def skipped() -> Skipped:
    return Skipped("", NOTHING, torch.float32, (), model="gpt2")
