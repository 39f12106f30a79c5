"""What the tests of torch.compile and torch.export share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import same_bits

from fastinit import Stream

FAR = Stream(2**64 - 3, 2**63 + 5)  # beyond torch's signed whole numbers
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
BACKENDS = ("eager", "aot_eager", pytest.param("inductor", marks=COMPILER))
# The same, for what takes Inductor seconds.
FAST_BACKENDS = ("eager", "aot_eager", pytest.param("inductor", marks=[COMPILER, pytest.mark.slow]))


def words(text: str) -> str:
    """What an error of a traced function says. Dynamo of older releases has only its type."""
    return text if torch.__version__ >= "2.9" else "Observed exception"


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def whole(function: Callable[..., Any], backend: str = "eager", **options: Any) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def twice(function: Callable[..., Any], *arguments: Any) -> list[torch.Tensor]:
    """What two calls give from one seed of the default generator, and where they leave it."""
    torch.manual_seed(11)
    results = [tensor.clone() for _ in range(2) for tensor in function(*arguments)]
    return [*results, torch.get_rng_state()]


def all_same(first: Any, second: Any) -> bool:
    return len(first) == len(second) > 0 and all(map(same_bits, first, second))
