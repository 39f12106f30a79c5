"""Functions of torch.nn.init that others replaced mean something: torch's, ours, transformers' and anybody else's."""

from __future__ import annotations

import functools
import inspect
import warnings
from unittest import mock

import pytest
import torch
import torch.nn.init as torch_init
from common import ARGUMENTS, DRAWING, INITIALISERS, python, same_bits, watch_quick_fills
from torch import nn

import fastinit
import fastinit.init as init
from fastinit import Stream
from fastinit.drawing import originals

SHAPES = {"dirac_": (4, 4, 3)}
HELPERS = ("_no_grad_uniform_", "_no_grad_normal_", "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_")
ALL = tuple(name for name, value in vars(torch_init).items() if inspect.isfunction(value) and hasattr(fastinit, name))
ORIGINALS = {name: getattr(torch_init, name) for name in ALL}


@pytest.fixture(autouse=True)
def _torchs_own_afterwards():
    yield
    for name, function in ORIGINALS.items():
        setattr(torch_init, name, function)


def ones(name: str) -> torch.Tensor:
    return torch.ones(SHAPES.get(name, (4, 4)))


def drawn(module, name: str, tensor: torch.Tensor | None = None, **keywords) -> torch.Tensor:
    """What this initialiser of `module` makes of a tensor, with a seed of its own."""
    torch.manual_seed(11)
    tensor = ones(name) if tensor is None else tensor
    getattr(module, name)(tensor, *ARGUMENTS.get(name, ()), **keywords)
    return tensor.detach()


def fast_is_false(name: str) -> dict[str, bool]:
    return {"fast": False} if name in DRAWING else {}


def put_ours(names) -> None:
    for name in names:
        setattr(torch_init, name, getattr(fastinit, name))


# --- our own functions in torch's places ---------------------------------------------------------


@pytest.mark.parametrize("names", [INITIALISERS, (*INITIALISERS, *HELPERS), HELPERS, ALL], ids=len)
@pytest.mark.parametrize("name", INITIALISERS)
def test_ours_in_torchs_place_work_and_torchs_bits_can_be_had(name, names):
    torchs, fast = drawn(torch_init, name), drawn(fastinit, name)
    assert name not in DRAWING or not same_bits(torchs, fast)
    put_ours(names)
    assert same_bits(drawn(fastinit, name), fast)
    assert same_bits(drawn(fastinit, name, **fast_is_false(name)), torchs)
    assert same_bits(drawn(torch_init, name), fast if name in names or name in DRAWING[:5] else torchs)
    with torch.device("cpu"):  # a torch function mode, which calls torch.nn.init once more
        assert same_bits(drawn(fastinit, name, **fast_is_false(name)), torchs)


@pytest.mark.parametrize("names", [INITIALISERS, ALL], ids=len)
def test_layers_are_made_with_ours_in_torchs_place(names):
    put_ours(names)
    assert torch.equal(nn.LayerNorm(3).weight, torch.ones(3))
    torch.manual_seed(3)
    layer = nn.Linear(8, 8)
    torch.manual_seed(3)
    assert same_bits(layer.weight.detach(), init.kaiming_uniform_(torch.empty(8, 8), a=5**0.5))
    for name in ("normal_", "trunc_normal_", "sparse_"):  # what torch has to serve
        tensor = torch.zeros(4, 4, dtype=torch.complex64)
        try:
            expected = drawn(originals.private_copy(), name, tensor.clone())
        except (RuntimeError, TypeError) as error:
            with pytest.raises(type(error)):
                drawn(fastinit, name, tensor)
        else:
            assert torch.equal(drawn(fastinit, name, tensor), expected)


def test_ours_in_torchs_place_are_as_quick(monkeypatch):
    quick_fills = watch_quick_fills(monkeypatch)
    fastinit.normal_(torch.empty(4))
    put_ours(ALL)
    assert fastinit.initialisers.quick.ordinary_address(torch.empty(4), None, None, None, "normal_")
    quick_fills.clear()
    torch_init.normal_(torch.empty(4))
    assert quick_fills == ["normal_"]


def test_a_partial_or_wrapper_of_ours_does_not_come_back_to_itself():
    plain = drawn(fastinit, "normal_")
    torch_init.normal_ = functools.partial(fastinit.normal_, fast=True)
    assert same_bits(drawn(torch_init, "normal_"), plain)
    assert same_bits(drawn(fastinit, "normal_"), plain)
    box = fastinit.shard(ones("normal_"), (4, 4), (0, 0))
    assert same_bits(fastinit.normal_(box, stream=Stream(1)).local, drawn(fastinit, "normal_", stream=Stream(1)))
    for normal in (fastinit.normal_, ORIGINALS["normal_"]):
        torch_init.normal_ = normal
        expected = drawn(torch_init, "normal_") * 0.5
        torch_init.normal_ = functools.partial(normal, std=0.5)
        assert same_bits(drawn(torch_init, "normal_"), expected)
        assert same_bits(drawn(fastinit, "normal_"), expected)
    torch_init.normal_ = lambda tensor, *args, **kwargs: fastinit.normal_(tensor, *args, **kwargs).mul_(2)
    assert same_bits(drawn(torch_init, "normal_"), plain * 2)
    assert same_bits(drawn(fastinit, "normal_"), plain * 2)


class Doubling:
    """A replacement that is an object with a method or a call."""

    def __init__(self, function):
        self.function = function

    def __call__(self, tensor, *args, **kwargs):
        return self.function(tensor, *args, **kwargs).mul_(2)

    def method(self, tensor, *args, **kwargs):
        return self.function(tensor, *args, **kwargs).mul_(2)


def doubling(function):
    @functools.wraps(function)
    def wrapper(tensor, *args, **kwargs):
        return function(tensor, *args, **kwargs).mul_(2)

    return wrapper


KINDS = {
    "closure": doubling,
    "object": Doubling,
    "method": lambda function: Doubling(function).method,
    "partial": lambda function: functools.partial(doubling(function)),
    "mock": lambda function: mock.MagicMock(side_effect=lambda *args, **kwargs: function(*args, **kwargs).mul_(2)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", [fastinit, torch_init], ids=["ours", "torch's"])
def test_a_wrapper_of_ours_or_torchs_is_applied_once(kind, module):
    expected = {name: drawn(module, name) * 2 for name in ("normal_", "kaiming_uniform_", "zeros_")}
    functions = {name: getattr(module, name) for name in expected}
    for name, function in functions.items():
        setattr(torch_init, name, KINDS[kind](function))
    for name, values in expected.items():
        assert same_bits(drawn(torch_init, name), values)
        assert same_bits(drawn(fastinit, name), values)


def test_a_wrapper_at_work_elsewhere_does_not_hide_this_one():
    """Both come from one decorator, and so have the same code."""
    plain = drawn(fastinit, "normal_")
    torch_init.normal_ = doubling(fastinit.normal_)
    outer = doubling(lambda tensor: fastinit.normal_(tensor))
    torch.manual_seed(11)
    assert same_bits(outer(ones("normal_")), plain * 4)


def test_a_replacement_whose_variables_are_not_set_yet():
    def skip(tensor, *args, **kwargs):
        nonlocal seen
        seen = tensor
        return "skipped"

    torch_init.normal_ = skip
    assert fastinit.normal_(torch.empty(3)) == "skipped"
    seen = None


# --- anybody else's ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INITIALISERS)
def test_a_skip_stays_a_skip(name):
    def skip(*args, **kwargs):
        return "skipped"

    setattr(torch_init, name, skip)
    for keywords in ({}, fast_is_false(name)):
        tensor = ones(name)
        assert getattr(fastinit, name)(tensor, *ARGUMENTS.get(name, ()), **keywords) == "skipped"
        assert torch.equal(tensor, ones(name))


@pytest.mark.parametrize("name", DRAWING)
def test_what_a_replacement_cannot_serve_is_an_error(name):
    setattr(torch_init, name, lambda tensor, *args, **kwargs: tensor)
    whole, arguments = ones(name), ARGUMENTS.get(name, ())
    function = getattr(fastinit, name)
    with pytest.raises(RuntimeError, match=rf"fast=True cannot be kept: torch\.nn\.init\.{name} was replaced by .*lam"):
        function(whole, *arguments, fast=True)
    with pytest.raises(RuntimeError, match=r"cannot serve stream=.*was replaced by"):
        function(whole, *arguments, stream=Stream(1))
    box = fastinit.shard(whole, (8, 4), (0, 0))
    with pytest.raises(RuntimeError, match=r"cannot serve a shard.*was replaced by"):
        function(box, *arguments)
    if "layout" in inspect.signature(function).parameters:
        with pytest.raises(RuntimeError, match=r"cannot serve layout=.*was replaced by"):
            function(whole, *arguments, layout="io")
    fastinit.flag(whole, True)
    with pytest.raises(RuntimeError, match="fast=True cannot be kept"):
        function(whole, *arguments)
    assert torch.equal(whole, ones(name))


def test_shards_of_constants():
    for name in ("constant_", "ones_", "zeros_", "eye_", "dirac_"):
        setattr(torch_init, name, lambda tensor, *args: tensor)
        local = torch.full((2, *SHAPES.get(name, (4, 4))[1:]), 7.0)
        box = fastinit.shard(local, SHAPES.get(name, (4, 4)), (0, 0, 0)[: local.dim()])
        if name in ("eye_", "dirac_"):
            with pytest.raises(RuntimeError, match="cannot serve a shard"):
                getattr(fastinit, name)(box)
        else:
            assert getattr(fastinit, name)(box, *ARGUMENTS.get(name, ())) is box
        assert (local == 7).all()


def test_a_replacement_gets_the_arguments_that_were_given():
    seen = []

    def note(*args, **kwargs):
        seen.append((args[1:], kwargs))

    generator = torch.Generator()
    torch_init.trunc_normal_ = torch_init.kaiming_normal_ = torch_init.constant_ = note
    fastinit.trunc_normal_(torch.empty(3))
    fastinit.trunc_normal_(torch.empty(3), 0.5, 2.5)
    fastinit.trunc_normal_(tensor=torch.empty(3), std=0.02, generator=generator)
    fastinit.kaiming_normal_(torch.empty(3, 3), nonlinearity="relu")
    fastinit.constant_(torch.empty(3), 0.5)
    assert seen == [
        ((), {}),
        ((0.5, 2.5), {}),
        ((), {"std": 0.02, "generator": generator}),
        ((), {"nonlinearity": "relu"}),
        ((0.5,), {}),
    ]


@pytest.mark.parametrize("name", HELPERS)
def test_helpers_that_others_replaced_are_called(name):
    values = (0.0, 1.0, -2.0, 2.0)[: len(inspect.signature(ORIGINALS[name]).parameters) - 2]
    values = {"_no_grad_fill_": (1.0,), "_no_grad_zero_": ()}.get(name, values)
    setattr(torch_init, name, lambda *args, **kwargs: (args[1:], kwargs))
    assert getattr(fastinit, name)(torch.empty(3), *values) == (values, {})


def test_gains_of_somebody_else_count(monkeypatch):
    plain = fastinit.kaiming_normal_(torch.empty(64, 64), stream=Stream(1))
    monkeypatch.setattr(torch_init, "calculate_gain", lambda nonlinearity, param=None: 2**0.5 * 8)
    assert same_bits(fastinit.kaiming_normal_(torch.empty(64, 64), stream=Stream(1)), plain * 8)
    assert fastinit.calculate_gain("anything") == 2**0.5 * 8


def test_another_of_torchs_functions_in_the_place_is_a_replacement():
    uniform = drawn(torch_init, "uniform_")
    torch_init.normal_ = torch_init.uniform_
    assert same_bits(drawn(fastinit, "normal_"), uniform)
    torch_init.normal_, torch_init.uniform_ = fastinit.uniform_, fastinit.normal_
    for name in ("normal_", "uniform_"):  # each stands for the other, and none for itself
        assert drawn(fastinit, name).isfinite().all()


# --- transformers' guard, by a stand-in; the real one is in test_transformers.py -------------------


@pytest.mark.parametrize("name", INITIALISERS)
def test_a_guard_keeps_what_it_marked(name):
    def guard(tensor, *args, **kwargs):
        raise AssertionError("fastinit does what a guard does, and need not call it")

    plain = drawn(fastinit, name)
    guard.__module__, guard.__name__ = "transformers.initialization", name
    setattr(torch_init, name, guard)
    assert same_bits(drawn(fastinit, name), plain)
    marked = nn.Parameter(torch.full(SHAPES.get(name, (4, 4)), 7.0))
    marked._is_hf_initialized = True
    for keywords in ({}, {"fast": True}, {"fast": False}, {"stream": Stream(1)}) if name in DRAWING else ({},):
        assert getattr(fastinit, name)(marked, *ARGUMENTS.get(name, ()), **keywords) is marked
    assert (marked == 7).all()


# --- when fastinit is imported -------------------------------------------------------------------


def test_a_function_that_was_replaced_during_our_import_is_read_from_torch_again():
    """A wrapper may say that it is torch's; torch's own function is known again when it is put back."""
    python("""
import functools, torch, torch.nn.init as torch_init
def drawn(function, **keywords):
    torch.manual_seed(1)
    return function(torch.empty(4), **keywords).clone()
torchs, original = drawn(torch_init.normal_), torch_init.normal_
@functools.wraps(original)
def wrapper(tensor, *args, **kwargs):
    return tensor.fill_(3)
torch_init.normal_ = wrapper
import fastinit
assert (drawn(fastinit.normal_) == 3).all() and (drawn(fastinit.normal_, fast=False) == 3).all()
torch_init.normal_ = original
for _ in range(3):
    assert torch.equal(drawn(fastinit.normal_, fast=False), torchs)
    assert not torch.equal(drawn(fastinit.normal_), torchs)
assert fastinit.initialisers.quick.ordinary_address(torch.empty(4), None, None, None, "normal_")
torch_init.normal_ = fastinit.normal_
assert torch.equal(drawn(fastinit.normal_, fast=False), torchs)
""")


def test_torchs_own_functions_are_known():
    for name in originals.NAMES:
        assert originals.is_torchs(name, ORIGINALS[name])
        assert originals.is_torchs(name, getattr(originals.private_copy(), name))
        assert not originals.is_torchs(name, doubling(ORIGINALS[name]))
        assert not originals.is_torchs(name, fastinit.uniform_)


@pytest.mark.parametrize("in_use", [False, True])
def test_tracing_by_dynamo_needs_no_break(in_use, monkeypatch):
    """Whether a flag is in use or not: Dynamo cannot trace a look at a tensor's memory."""

    def noise(x):
        return fastinit.normal_(torch.empty_like(x)) + x

    monkeypatch.setattr(fastinit.drawing.flags, "in_use", in_use)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(noise, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(5)).shape == (5,)
