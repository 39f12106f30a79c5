"""Two models, parameter by parameter: have they the same laws?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import same_bits
from torch import nn

from fastinit import Rule, RulesError, build, initialize
from fastinit.initialisers import zeros
from fastinit.models.report import Report
from fastinit.models.walk import named_parameters, named_tensors

SEED = 20261128
MOST_Z = 6.0  # standard errors: one true parameter in 5e8 fails


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How many standard errors two samples' means and standard deviations are apart."""
    a, b = ours.detach().double().flatten(), theirs.detach().double().flatten()
    if a.numel() < 2 or (a.std() == 0 and b.std() == 0):
        return 0.0 if torch.equal(a, b) else math.inf
    means = (a.mean() - b.mean()).abs() / math.sqrt((a.var() + b.var()) / a.numel())
    error = [((x - x.mean()).pow(4).mean() - x.var() ** 2).clamp(min=0) / x.numel() / (4 * x.var()) for x in (a, b)]
    stds = (a.std() - b.std()).abs() / math.sqrt(sum(error)) if a.numel() >= 32 else torch.tensor(0.0)
    return max(means.item(), stds.item())


def worst(ours: nn.Module, theirs: nn.Module) -> tuple[float, str]:
    found, expected = dict(named_tensors(ours)), dict(named_tensors(theirs))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype, type(tensor)) == (
            expected[name].shape,
            expected[name].dtype,
            type(expected[name]),
        )
    return max((distance(tensor, expected[name]), name) for name, tensor in found.items())


def by_torch(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(SEED)
    return make()


def follows(make: Callable[[], nn.Module], recipe: object) -> Report:
    """Hold a recipe to a library's own code: the same laws as it draws by torch, the same bits as by `build`."""
    model = make()
    report = initialize(model, recipe, seed=SEED)
    found, where = worst(model, by_torch(make))
    assert found < MOST_Z, where
    by_build = dict(named_parameters(build(make, seed=SEED)))
    assert len(by_build) >= 2
    for name, parameter in named_parameters(model):
        assert same_bits(parameter.detach(), by_build[name].detach()), name
    return report


FAULTS = ("hole", "dead rule", "doubled")


def is_found(fault: str, make: Callable[[], nn.Module], recipe: Callable[[nn.Module], list[Rule]]) -> None:
    """Make a fault in a model, or in the rules of a recipe for it: it alone is told, and nothing is written."""
    model = make()
    rules: list[Any] = recipe(model)
    if fault == "hole":
        model.new = nn.Parameter(torch.ones(3))
        text = "new (3,): no rule matches it"
    elif fault == "dead rule":
        rules = [*rules, ("*.new", zeros())]
        text = f"rule {len(rules) - 1}, ('*.new', zeros()), matches nothing"
    else:
        model.twice = nn.Parameter(next(model.parameters()).detach()[:1])
        rules = [("twice", zeros()), *rules]
        text = "shares memory with"
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    with pytest.raises(RulesError, match=re.escape(text)) as caught:
        initialize(model, rules, seed=SEED)
    assert "1 problem;" in str(caught.value)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor.detach(), before[name]), name
