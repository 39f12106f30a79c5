"""The distributions that tensors are filled with, each in a file of its own. This is the only list of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import bernoulli, cauchy, exponential, geometric, integers, log_normal, normal, truncated_normal, uniform, words
from .bernoulli import Bernoulli
from .cauchy import Cauchy
from .exponential import Exponential
from .geometric import Geometric
from .integers import Integers
from .law import Example, Law, Parameters, working
from .log_normal import LogNormal
from .normal import Normal
from .truncated_normal import TruncNormal
from .uniform import Uniform
from .words import Words

ALL = (
    words, uniform, normal, truncated_normal, exponential, log_normal, cauchy, bernoulli, geometric, integers
)  # fmt: skip
EXAMPLES: dict[str, Example] = {name: example for law in ALL for name, example in law.EXAMPLES.items()}

__all__ = [
    "ALL", "EXAMPLES", "Bernoulli", "Cauchy", "Example", "Exponential", "Geometric", "Integers", "Law", "LogNormal",
    "Normal", "Parameters", "TruncNormal", "Uniform", "Words", "examples", "working",
]  # fmt: skip


BY_NAME = {law.__name__.rpartition(".")[2]: law for law in ALL}  # as files are called: truncated_normal


def examples() -> Iterator[tuple[str, Law, torch.dtype]]:
    """Every example in each of its dtypes."""
    for name, example in EXAMPLES.items():
        for dtype in example.dtypes:
            yield name, example.law, dtype
