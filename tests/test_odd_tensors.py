"""Tensors that are not what their class says, and objects that are no tensors: who serves them, and that nothing
that happened before decides it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.fx
import torch.nn.init as torch_init
from common import ARGUMENTS, DRAWING, INITIALISERS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastinit
from fastinit.drawing import flags
from fastinit.drawing.route import COMPILED, KERNELS, TORCH, way
from fastinit.initialisers import quick


class Quiet(torch.Tensor):
    """A subclass that changes nothing."""


class Watching(torch.Tensor):
    """A subclass that sees torch's functions."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return super().__torch_function__(function, types, args, kwargs or {})


class Answering(torch.Tensor):
    """A subclass that answers every attribute."""

    def __getattr__(self, name):
        return name


class QuietParameter(nn.Parameter):
    pass


def under(mode: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    with mode:
        return make()


def matrix(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(4, 4, dtype=dtype)


def nested(**layout: Any) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.zeros(4), torch.zeros(4)], **layout)


def without_memory() -> torch.Tensor:
    tensor = matrix()
    tensor.untyped_storage().resize_(0)
    return tensor


QUICK = "the fast path"
ENGINES = (QUICK, KERNELS, COMPILED)
# A maker for each kind, and who serves it; None where an error says that nobody can.
KINDS: dict[str, tuple[Callable[[], torch.Tensor], Any]] = {
    "plain": (matrix, ENGINES),
    "parameter": (lambda: nn.Parameter(matrix()), ENGINES),
    "buffer": (lambda: nn.Buffer(matrix()), ENGINES),
    "view": (lambda: torch.zeros(6, 4)[2:], ENGINES),
    "transposed": (lambda: matrix().t(), ENGINES),
    "empty": (lambda: torch.zeros(0, 4), ENGINES),
    "detached": (lambda: nn.Parameter(matrix()).detach(), ENGINES),
    "shared": (lambda: matrix().share_memory_(), ENGINES),
    "lazily cloned": (lambda: torch._lazy_clone(matrix()), ENGINES),
    "quiet": (lambda: matrix().as_subclass(Quiet), ENGINES),
    "quiet parameter": (lambda: QuietParameter(matrix()), ENGINES),
    "answering": (lambda: matrix().as_subclass(Answering), ENGINES),
    "float8": (lambda: matrix(torch.float8_e5m2), ENGINES),
    "watching": (lambda: matrix().as_subclass(Watching), TORCH),
    "nested": (nested, TORCH),
    "nested, ragged": (lambda: torch.nested.nested_tensor([torch.zeros(4), torch.zeros(3)]), TORCH),
    "nested, jagged": (lambda: nested(layout=torch.jagged), TORCH),
    "functional": (lambda: torch._to_functional_tensor(matrix()), TORCH),
    "sparse": (lambda: matrix().to_sparse(), TORCH),
    "sparse rows": (lambda: matrix().to_sparse_csr(), TORCH),
    "mkldnn": (lambda: matrix().to_mkldnn(), TORCH),
    "quantized": (lambda: torch.quantize_per_tensor(matrix(), 0.1, 0, torch.qint8), TORCH),
    "negated": (lambda: torch._neg_view(matrix()), TORCH),
    "imaginary part of a conjugate": (lambda: matrix(torch.complex64).conj().imag, TORCH),
    "imaginary part": (lambda: matrix(torch.complex64).imag, ENGINES),
    "complex": (lambda: matrix(torch.complex64), TORCH),
    "conjugate": (lambda: matrix(torch.complex64).conj(), TORCH),
    "whole numbers": (lambda: matrix(torch.int64), TORCH),
    "expanded": (lambda: torch.zeros(1, 4).expand(4, 4), TORCH),
    "meta": (lambda: torch.empty(4, 4, device="meta"), TORCH),
    "fake": (lambda: under(FakeTensorMode(), matrix), TORCH),
    "zero": (lambda: torch._efficientzerotensor(4, 4), TORCH),
    "lazy": (nn.UninitializedParameter, TORCH),
    "left over from vmap": (lambda: torch._C._functorch._add_batch_dim(matrix(), 0, 1), TORCH),
    "made in inference mode": (lambda: under(torch.inference_mode(), matrix), None),
    "without memory": (without_memory, None),
}


def made(kind: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested and sparse tensors are announced as prototypes
        return KINDS[kind][0]()


def who_serves(tensor: Any) -> Any:
    """What is ordinary is quick, and is what the way of all others ends with."""
    if quick.ordinary_address(tensor, None, None, None):
        assert way(tensor, None, None, None) is KERNELS
        return QUICK
    return way(tensor, None, None, None)


def served(kind: str) -> Any:
    try:
        by = who_serves(made(kind))
    except RuntimeError:
        return None
    return ENGINES if by in ENGINES else by


def numbers(tensor: torch.Tensor) -> list[Any] | None:
    """What a tensor holds; None where nobody can say."""
    try:
        if tensor.is_nested:
            return [part.tolist() for part in tensor.unbind()]
        if torch._is_functional_tensor(tensor):
            tensor = torch._from_functional_tensor(tensor)
        plain = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
        return plain.as_subclass(torch.Tensor).resolve_neg().flatten().tolist()
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


def outcome(module: Any, name: str, kind: str) -> tuple[Any, ...]:
    """The error of a call, or the numbers it wrote."""
    tensor = made(kind)  # not an argument: pytest shows those of a failed test, and to show this one may crash
    torch.manual_seed(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(module, name)(tensor, *ARGUMENTS.get(name, ()))
        except Exception as error:  # whatever torch raises
            return type(error), str(error).partition("\n")[0]
        return (numbers(tensor),)


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_rule_decides_whatever_was_flagged_before(kind, name, monkeypatch):
    """And where torch serves, its numbers or its error come."""
    if kind == "without memory" and name not in DRAWING:
        pytest.skip("torch's own function, which crashes the process")
    expected = KINDS[kind][1]
    seen = []
    for in_use in (False, True, False):
        monkeypatch.setattr(flags, "in_use", in_use)  # as one unrelated flag() leaves it
        if name in DRAWING:
            assert served(kind) is expected
        seen.append(outcome(fastinit, name, kind))
    assert seen[0] == seen[1] == seen[2]
    if expected is TORCH:
        assert seen[0] == outcome(torch_init, name, kind)


def test_a_lazy_clone_leaves_its_base_alone():
    base = matrix()
    fastinit.normal_(torch._lazy_clone(base))
    assert not base.any()


# --- only flagged tensors pay for flags ----------------------------------------------------------


def test_one_flag_makes_nobody_else_slow(monkeypatch):
    monkeypatch.setattr(flags, "in_use", False)
    flagged, storage = torch.empty(8), torch.empty(8)
    fastinit.flag(flagged[:4], False)
    assert flags.in_use
    for tensor in (torch.empty(4), nn.Parameter(torch.empty(4)), storage[4:], flagged[4:], flagged):
        assert who_serves(tensor) is QUICK
    for tensor in (flagged[:4], flagged[:4].detach(), nn.Parameter(flagged[:4])):
        assert who_serves(tensor) is TORCH
    fastinit.flag(flagged[:4], None)
    assert who_serves(flagged[:4]) is QUICK


def test_the_memory_s_flag_stays_when_the_memory_moves(monkeypatch):
    """Sharing and resizing give a storage another address."""
    monkeypatch.setattr(flags, "in_use", False)
    shared, tensor = torch.zeros(64), torch.zeros(64)
    fastinit.flag(shared, False)
    fastinit.flag(tensor, False)
    shared.share_memory_()
    assert who_serves(shared.data) is TORCH
    tensor.untyped_storage().resize_(0)
    others = [torch.zeros(64) for _ in range(8)]  # one of them may lie where the flagged one lay
    tensor.untyped_storage().resize_(256)
    assert who_serves(tensor.data) is TORCH
    del tensor
    assert {who_serves(other) for other in (*others, torch.zeros(64))} == {QUICK}


def test_the_environment_decides_about_every_tensor(monkeypatch):
    monkeypatch.setattr(flags, "in_use", True)
    for default, by in ((False, TORCH), (True, COMPILED), (None, QUICK)):
        monkeypatch.setattr(flags, "default", default)
        assert who_serves(torch.empty(4)) is by


# --- no tensors at all ---------------------------------------------------------------------------


def graph_of(module: Any, name: str) -> tuple[Any, ...]:
    """The graph of a call on a traced argument and on a traced parameter, or the error of tracing it."""

    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Any) -> Any:
            function = getattr(module, name)
            return function(x, *ARGUMENTS.get(name, ())), function(self.weight, *ARGUMENTS.get(name, ()))

    try:
        traced = torch.fx.symbolic_trace(Filled())
    except Exception as error:
        return type(error), str(error)
    return str(traced.graph), traced.code, [node.target for node in traced.graph.nodes]


@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize("name", INITIALISERS)
def test_symbolic_tracing_gives_what_torch_gives(name, in_use, monkeypatch):
    monkeypatch.setattr(flags, "in_use", in_use)
    assert graph_of(fastinit, name) == graph_of(torch_init, name)


# The arguments before the one that is traced. Not xavier_uniform_ (one dead node more) and orthogonal_ (a constant).
NUMBERS = {
    "uniform_": (0.0,), "normal_": (0.0,), "trunc_normal_": (0.0,), "xavier_normal_": (), "kaiming_uniform_": (),
    "kaiming_normal_": (), "sparse_": (0.5,), "constant_": (), "dirac_": (),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_tracing_of_an_argument_gives_what_torch_gives(name):
    def traced(module: Any) -> Any:
        tensor = torch.ones(4, 4, 3) if name == "dirac_" else torch.ones(4, 4)
        try:
            graph = torch.fx.symbolic_trace(lambda number: getattr(module, name)(tensor, *NUMBERS[name], number)).graph
        except Exception as error:
            return type(error), str(error)
        return [(node.op, node.target) for node in graph.nodes]

    assert traced(fastinit) == traced(torch_init)


class Everything:
    """Has every attribute, and every one can be called."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return lambda *args, **kwargs: self


def mocks() -> dict[str, Callable[[], Any]]:
    return {
        "Mock": mock.Mock,
        "MagicMock": mock.MagicMock,
        "Mock of a tensor": lambda: mock.Mock(spec=torch.Tensor),
        "MagicMock of a tensor": lambda: mock.MagicMock(spec=torch.Tensor),
        "everything": Everything,
        "None": lambda: None,
        "dict": lambda: {1.0: 2.0},
    }


@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize("kind", mocks())
def test_what_answers_everything_is_asked_what_torch_asks(kind, name, in_use, monkeypatch):
    monkeypatch.setattr(flags, "in_use", in_use)

    def told(module: Any) -> Any:
        target = mocks()[kind]()
        result: Any
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = type(getattr(module, name)(target, *ARGUMENTS.get(name, ()))).__name__
            except Exception as error:
                result = type(error), re.sub(r"id='\d+'", "", str(error))
        asked = getattr(target, "asked", None) if kind == "everything" else None
        calls = [call[0] for call in target.mock_calls] if isinstance(target, mock.NonCallableMock) else None
        return result, asked, calls

    with mock.patch.object(torch, "where", side_effect=TypeError("no loop of trunc_normal_'s over a mock")):
        assert told(fastinit) == told(torch_init)


def test_a_mock_of_a_module_is_not_flagged():
    with pytest.raises(TypeError, match="flag takes a tensor or a module, got Mock"):
        fastinit.flag(mock.Mock(), False)
