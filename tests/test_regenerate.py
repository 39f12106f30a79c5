"""Any part of a model's initial weights once more. From sharded models: tests/test_sharded.py."""

from __future__ import annotations

import pytest
import torch
from common import same_bits
from hypothesis import given, strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import fastinit
from fastinit import RulesError, initialize, regenerate
from fastinit.initialisers import gates, keep, normal, orthogonal, sparse, xavier_uniform

SEED = 12


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=3)
        self.cell = nn.LSTMCell(6, 5)
        self.layer = nn.Linear(6, 9)
        self.other = nn.Linear(6, 9)
        self.other.weight = self.layer.weight
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.empty(()))


def halves(tensor: torch.Tensor) -> None:
    nn.init.uniform_(tensor, 0, 0.5)


RULES = {
    "embedding.weight": normal(),
    "cell.weight_ih": gates("ifgo", orthogonal(), f=sparse(0.4)),
    "cell.*": gates("ifgo", normal(), f=normal(mean=1.0)),
    "layer.weight": xavier_uniform(),
    "other.weight": xavier_uniform(),
    "other.bias": halves,
    "norm.bias": keep(),
    "*": normal(std=0.1),
}


@pytest.fixture(scope="module")
def drawn():
    model = Model()
    initialize(model, RULES, seed=SEED)
    return {name: tensor.detach() for name, tensor in model.named_parameters(remove_duplicate=False)}


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Model()


def test_every_tensor_as_a_whole(drawn):
    model = on_meta()
    for name, tensor in drawn.items():
        if name != "norm.bias":
            assert same_bits(regenerate(model, name, rules=RULES, seed=SEED), tensor), name
    assert all(parameter.is_meta for parameter in model.parameters())


@given(
    st.sampled_from(["embedding.weight", "cell.weight_ih", "cell.weight_hh", "other.weight", "other.bias"]), st.data()
)
def test_any_part_of_them(drawn, name, data):
    tensor = drawn[name]
    index = []
    for size in tensor.shape[: data.draw(st.integers(0, tensor.dim()))]:
        bounds = st.one_of(st.none(), st.integers(-size - 1, size + 1))
        step = st.one_of(st.none(), st.integers(1, 3))
        index.append(data.draw(st.one_of(st.integers(-size, size - 1), st.builds(slice, bounds, bounds, step))))
    part = regenerate(on_meta(), name, tuple(index), rules=RULES, seed=SEED)
    assert same_bits(part.contiguous(), tensor[tuple(index)].contiguous())


def test_dtypes_wrappers_and_a_single_slice(drawn):
    wrapped = checkpoint_wrapper(on_meta())
    part = regenerate(wrapped, "layer.weight", slice(2, 4), rules=RULES, seed=SEED, dtype="bfloat16")
    assert same_bits(part, drawn["layer.weight"][2:4].to(torch.bfloat16))
    last = regenerate(on_meta(), "layer.weight", (..., 2), rules=RULES, seed=SEED)
    assert same_bits(last, drawn["layer.weight"][..., 2].contiguous())
    few = regenerate(on_meta(), "layer.weight", slice(None, None, 4), rules=RULES, seed=SEED)
    assert few.untyped_storage().nbytes() == 4 * few.numel() == 4 * 18
    assert regenerate(on_meta(), "scale", rules={"*": normal()}, seed=SEED).shape == ()
    assert regenerate(nn.Linear(3, 2), "weight", 1, rules="torch_default", seed=SEED).shape == (3,)


@pytest.mark.parametrize(
    ("name", "index", "error", "message"),
    [
        ("layer.weigth", (), RulesError, r"has no tensors of these names: 'layer\.weigth' \(near it: layer\.weight\)"),
        ("norm.bias", (), RulesError, "drawn by no rule, so there is nothing to make again"),
        ("layer.weight", (0, 0, 0), IndexError, "too many indices"),
        ("layer.weight", 9, IndexError, "out of bounds for a dimension of 9"),
        ("layer.weight", slice(None, None, -1), IndexError, "positive steps"),
        ("layer.weight", "a", TypeError, "integer"),
        ("layer.weight", True, TypeError, "whole numbers and slices"),
    ],
)
def test_what_cannot_be_made_again(name, index, error, message):
    model = Model()
    with pytest.raises(error, match=message):
        regenerate(model, name, index, rules=RULES, seed=SEED)


def test_inside_accelerate(drawn):
    model = Model()
    with fastinit.accelerate(model, seed=1):
        nn.init.normal_(model.layer.weight)
        part = regenerate(model, "layer.weight", (slice(3),), rules=RULES, seed=SEED)
    assert same_bits(part, drawn["layer.weight"][:3])
