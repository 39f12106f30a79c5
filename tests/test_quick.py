"""The short way of small tensors: the bits, the guards and the side effects of the long one."""

from __future__ import annotations

import warnings
from decimal import Decimal

import pytest
import torch
from common import FLOATS, bits, name_of, python, same_bits, watch_quick_fills
from torch import nn

import fastinit
from fastinit import Stream
from fastinit.drawing import route
from fastinit.initialisers import quick

CALLS = {
    "uniform_": (-0.5, 1.5),
    "normal_": (0.25, 2.0),
    "trunc_normal_": (0.0, 1.0, -2.0, 2.0),
    "xavier_uniform_": (1.5,),
    "xavier_normal_": (1.5,),
    "kaiming_uniform_": (0.1,),
    "kaiming_normal_": (0.1,),
}


@pytest.fixture(autouse=True)
def quick_fills(monkeypatch):
    """No plans at first; a list of what took the short way."""
    monkeypatch.setattr(quick, "plans", {})
    return watch_quick_fills(monkeypatch)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_is_quick_and_draws_the_same(name, dtype, quick_fills):
    call = getattr(fastinit, name)
    first = call(torch.empty(7, 31, dtype=dtype), *CALLS[name], stream=Stream(3, 1 << 63))
    assert not quick_fills
    second = call(torch.empty(7, 31, dtype=dtype), *CALLS[name], stream=Stream(3, 1 << 63))
    assert len(quick_fills) == 1
    assert same_bits(first, second)


@pytest.mark.parametrize("name", CALLS)
def test_the_generator_advances_as_on_the_long_way(name, quick_fills):
    call = getattr(fastinit, name)
    call(torch.empty(4, 4), *CALLS[name])  # makes the plan
    torch.manual_seed(5)
    long = [call(torch.empty(4, 4), *CALLS[name], fast=True) for _ in range(3)]
    torch.manual_seed(5)
    short = [call(torch.empty(4, 4), *CALLS[name]) for _ in range(3)]
    torch.manual_seed(5)
    given = [call(torch.empty(4, 4), *CALLS[name], generator=torch.default_generator) for _ in range(3)]
    assert len(quick_fills) == 6
    assert all(same_bits(a, b) and same_bits(a, c) for a, b, c in zip(long, short, given, strict=True))


def test_autograd_hears_of_a_quick_fill(quick_fills):
    weight = nn.Parameter(torch.empty(3))
    for version in (1, 2):
        assert fastinit.normal_(weight) is weight
        assert weight._version == version
    assert quick_fills


def test_a_large_tensor_takes_the_long_way(quick_fills):
    fastinit.normal_(torch.empty(4))
    most = next(iter(quick.plans.values())).most
    fastinit.normal_(torch.empty(most + 1))
    assert not quick_fills
    fastinit.normal_(torch.empty(most))
    assert quick_fills


def test_no_elements_are_no_work():
    fastinit.normal_(torch.empty(4))
    assert fastinit.normal_(torch.empty(0)).numel() == 0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(4, 4).t()[:, :3],
        torch.empty(4, dtype=torch.complex64),
        torch._neg_view(torch.empty(4)),
        torch.empty(4).to_sparse(),
        torch.empty(4).to_mkldnn(),
        torch.empty(4, device="meta"),
        torch._efficientzerotensor(4),
        nn.UninitializedParameter(),
        [1.0],
    ],
    ids=["strided", "complex", "negated", "sparse", "mkldnn", "meta", "zero", "uninitialised", "list"],
)
def test_what_is_out_of_the_ordinary_is_looked_at_twice(tensor):
    assert not quick.ordinary_address(tensor, None, None, None)


def test_what_is_ordinary_is_not():
    """The control: the same question about plain tensors."""
    for tensor in (torch.empty(4), nn.Parameter(torch.empty(2, 3)), torch.empty(9)[3:]):
        assert quick.ordinary_address(tensor, None, None, None)
        assert quick.ordinary_address(tensor, torch.default_generator, None, None)


@pytest.mark.parametrize("offset", [0, 3])
def test_memory_that_was_taken_away_is_refused(offset):
    """As FSDP takes it: a view then has the address of its offset from nowhere, and torch's normal_ writes there."""
    fastinit.normal_(torch.empty(4))
    tensor = torch.empty(8)[offset : offset + 4]
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="not allocated yet"):
        fastinit.normal_(tensor)


def test_a_flag_that_came_with_a_file_is_obeyed(tmp_path):
    """In a process that never flagged anything."""
    weight = nn.Parameter(torch.empty(3, 3))
    fastinit.flag(weight, False)
    torch.save(weight, tmp_path / "weight.pt")
    code = f"""
import torch, fastinit
weight = torch.load({str(tmp_path / "weight.pt")!r})
plain = torch.empty(3, 3)
for _ in range(2):
    torch.manual_seed(1)
    fastinit.normal_(plain)
torch.manual_seed(1)
fastinit.normal_(weight)
torch.manual_seed(1)
assert torch.equal(weight, torch.nn.init.normal_(torch.empty(3, 3))) and not torch.equal(weight, plain)
"""
    python(code)


def test_nested_tensors_are_left_to_torch():
    fastinit.normal_(torch.empty(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.zeros(600_000), torch.zeros(4)])
    assert not quick.ordinary_address(nested, None, None, None)
    assert route.way(nested, None, None, None) is route.TORCH
    fastinit.normal_(nested)


def test_a_tangent_does_not_outlive_its_value():
    from torch.autograd import forward_ad

    fastinit.normal_(torch.empty(4))
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore")  # torch compiles its own decompositions by a deprecated way
        dual = forward_ad.make_dual(torch.ones(4), torch.ones(4))
        fastinit.normal_(dual)
        tangent = forward_ad.unpack_dual(dual).tangent
    assert tangent is None or not tangent.any()


def test_inference_tensors_are_refused_outside_their_mode(quick_fills):
    fastinit.normal_(torch.empty(4))
    with torch.inference_mode():
        tensor = torch.zeros(4)
        fastinit.normal_(tensor)
    before = tensor.clone()
    with pytest.raises(RuntimeError, match="inference"):
        fastinit.normal_(tensor)
    assert torch.equal(tensor, before)
    assert not quick_fills


def test_flags_environment_and_engines_are_obeyed_after_a_plan(monkeypatch, quick_fills):
    fastinit.normal_(torch.empty(4))
    with fastinit.use_engine("eager"):
        fastinit.normal_(torch.empty(4))
    fastinit.normal_(torch.empty(4), fast=False)
    fastinit.normal_(torch.empty(4), fast=True)
    monkeypatch.setattr(fastinit.drawing.flags, "in_use", True)
    monkeypatch.setattr(fastinit.drawing.flags, "default", True)
    fastinit.normal_(torch.empty(4))
    assert not quick_fills


def test_modes_are_not_passed_by(quick_fills):
    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            calls.append(function.__name__)
            return function(*args, **(kwargs or {}))

    calls: list[str] = []
    fastinit.normal_(torch.empty(4))
    tensor = torch.empty(4)
    with Watch():
        fastinit.normal_(tensor)
    assert "normal_" in calls
    assert not quick_fills


def test_a_number_that_equals_a_known_one_is_no_known_one(quick_fills):
    fastinit.normal_(torch.empty(4), 0.0, 1.0)
    with pytest.raises(TypeError):
        torch.nn.init.normal_(torch.empty(4), Decimal(0), Decimal(1))
    with pytest.raises(TypeError):
        fastinit.normal_(torch.empty(4), Decimal(0), Decimal(1))
    with pytest.raises(TypeError):
        fastinit.normal_(torch.empty(4), [0.0], 1.0)
    assert not quick_fills


@pytest.mark.parametrize("first", [0.0, -0.0])
def test_a_bound_of_negative_zero_is_zero(first):
    """Both are one number to every cache of laws, so they must be one to every law."""
    tensors = [
        fastinit.trunc_normal_(torch.empty(500), 0.0, 1.0, bound, 1e-45, stream=Stream(1)) for bound in (first, -first)
    ]
    assert same_bits(*tensors)
    assert not bits(tensors[0]).lt(0).any()


def test_a_warning_comes_every_time(quick_fills):
    for _ in range(2):
        with pytest.warns(UserWarning, match="more than 2 std"):
            fastinit.trunc_normal_(torch.empty(4), 0.0, 1.0, 5.0, 6.0)
    assert not quick_fills
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.trunc_normal_(torch.empty(4), 0.0, 1.0, 1.0, 6.0)


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(quick, "MOST_PLANS", 3)
    for std in range(1, 10):
        fastinit.normal_(torch.empty(2), 0.0, std)
        assert len(quick.plans) <= 3
