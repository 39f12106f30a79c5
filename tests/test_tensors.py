"""A drop-in for torch.nn.init on every tensor: other dtypes, no memory, autograd, modes and subclasses."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
import torch.nn.init as torch_init
from common import ARGUMENTS, DRAWING, FLOAT8, INITIALISERS, call, error_of, name_of, outcome, same_bits

import fastinit
import fastinit.init as init
from fastinit import Stream


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fnuz], ids=str)
@pytest.mark.parametrize("name", DRAWING)
def test_other_dtypes_are_torchs_business(name, dtype):
    def result(function, **keywords):
        torch.manual_seed(3)
        tensor = torch.ones(4, 4).to(dtype)
        try:
            call(lambda t, *a: function(t, *a, **keywords), name, tensor)
        except Exception as error:
            return type(error), str(error)
        return tensor.to(torch.complex64).tolist()

    assert result(getattr(init, name)) == result(getattr(torch_init, name))
    with pytest.raises(RuntimeError, match="fast=True cannot be kept: the stream contract does not cover"):
        call(lambda t, *a: getattr(init, name)(t, *a, fast=True), name, torch.ones(4, 4).to(dtype))


@pytest.mark.parametrize("dtype", FLOAT8, ids=name_of)
@pytest.mark.parametrize("name", DRAWING)
def test_float8_is_drawn_here_and_where_it_is_left_to_torch_the_error_is_torchs(name, dtype):
    """torch.nn.init draws no float8. A subclass that wants to see torch's calls gets torch's error, too."""
    arguments = ARGUMENTS.get(name, ())
    tensor = torch.full((4, 4), 7.0, dtype=dtype)
    theirs = outcome(getattr(torch_init, name), tensor, *arguments)
    assert theirs[0][0] is NotImplementedError
    assert outcome(getattr(init, name), tensor, *arguments, fast=False) == theirs
    assert error_of(getattr(init, name), tensor.as_subclass(Recording), *arguments) == theirs[0]
    assert getattr(init, name)(tensor, *arguments, fast=True) is tensor
    assert len({*tensor.double().flatten().tolist()}) > 4


@pytest.mark.parametrize("name", INITIALISERS)
def test_meta_tensors_stay_meta(name):
    """And the generator where torch leaves it; torch 2.8's sparse_ draws for them."""
    states = []
    for module in (torch_init, init):
        torch.manual_seed(1)
        tensor = torch.empty((4, 4, 3) if name == "dirac_" else (4, 4), device="meta")
        assert call(getattr(module, name), name, tensor) is tensor
        assert tensor.is_meta
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("name", DRAWING)
def test_autograd_hears_of_the_write(name):
    leaf = torch.nn.Parameter(torch.ones(4, 4))
    version = leaf._version
    loss = (leaf * leaf).sum()
    call(getattr(init, name), name, leaf)
    assert leaf._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_version_counter_advances_but_not_by_torchs_count():
    def advance(module, name):
        tensor = torch.zeros(4, 4)
        call(getattr(module, name), name, tensor)
        return tensor._version

    counts = {name: (advance(init, name), advance(torch_init, name)) for name in DRAWING}
    assert all(ours > 0 and theirs > 0 for ours, theirs in counts.values())
    assert any(ours != theirs for ours, theirs in counts.values())


def test_data_views_and_detached_aliases_are_written():
    parameter = torch.nn.Parameter(torch.zeros(64))
    init.normal_(parameter.data, stream=Stream(1))
    assert same_bits(parameter.detach(), init.normal_(torch.empty(64), stream=Stream(1)))
    base = torch.zeros(4, 64)
    init.normal_(base[2], stream=Stream(1))
    assert same_bits(base[2], parameter.detach())
    assert (base[[0, 1, 3]] == 0).all()


def test_scalars_and_empty_tensors():
    scalar = init.normal_(torch.empty(()), stream=Stream(4))
    assert same_bits(scalar.view(1), init.normal_(torch.empty(9), stream=Stream(4))[:1])
    for shape in ((0,), (3, 0)):
        assert init.uniform_(torch.empty(shape)).shape == shape


def test_inference_tensors_behave_as_in_torch():
    with torch.inference_mode():
        tensor = torch.zeros(64)
        init.normal_(tensor, stream=Stream(1))
        normal = torch.zeros(64)
    assert tensor.std() > 0.5
    with pytest.raises(RuntimeError) as theirs:
        torch_init.normal_(torch.inference_mode()(torch.zeros)(64))  # torch writes it first
    assert outcome(init.normal_, normal)[0] == (RuntimeError, str(theirs.value))
    ordinary = torch.zeros(64)
    with torch.inference_mode():
        init.normal_(ordinary, stream=Stream(1))
    assert same_bits(ordinary, tensor.clone())


def test_overlapping_tensors_get_torchs_error():
    for name in ("normal_", "uniform_", "trunc_normal_"):
        tensor = torch.zeros(1, 4).expand(4, 4)
        assert outcome(getattr(init, name), tensor) == outcome(getattr(torch_init, name), tensor)
        assert outcome(getattr(init, name), tensor)[0] is not None
        assert (tensor == 0).all()


class Recording(torch.Tensor):
    """A subclass that watches which functions reach it."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Quiet(torch.Tensor):
    """A subclass that changes nothing."""


def test_subclasses_with_torch_functions_see_torchs_calls():
    tensor = torch.zeros(4, 4).as_subclass(Recording)
    for name in DRAWING:
        calls = []
        for module in (torch_init, init):
            torch.manual_seed(1)
            Recording.seen.clear()
            call(getattr(module, name), name, tensor)
            calls.append(list(Recording.seen))
        assert calls[0] == calls[1] != [], name


def test_subclasses_that_change_nothing_are_fast():
    tensor = torch.zeros(64).as_subclass(Quiet)
    assert init.normal_(tensor, stream=Stream(1)) is tensor
    assert same_bits(tensor.as_subclass(torch.Tensor), init.normal_(torch.empty(64), stream=Stream(1)))


def test_function_modes_see_torchs_calls():
    class Log(torch.overrides.TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    with Log() as log:
        init.normal_(torch.empty(4))
        init.kaiming_uniform_(torch.empty(4, 4))
    assert torch_init.normal_ in log.seen
    assert torch_init.kaiming_uniform_ in log.seen


def test_dispatch_modes_see_torchs_operations():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        seen: list = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    tensor = torch.empty(4)
    with Log() as log:
        init.normal_(tensor)
    assert torch.ops.aten.normal_.default in log.seen


def test_fake_tensors_and_device_contexts():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(4, 4)
        assert init.normal_(fake) is fake
    with torch.device("meta"):
        real = torch.zeros(64, device="cpu")
        init.normal_(real, stream=Stream(1), fast=True)
        init.dirac_(torch.empty(4, 4, 3, device="cpu"))
        assert init.normal_(torch.empty(3)).is_meta
    assert same_bits(real, init.normal_(torch.empty(64), stream=Stream(1)))


def test_vmap_leaves_it_to_torch():
    def noise(x):
        return init.normal_(torch.empty_like(x)) + x

    out = torch.func.vmap(noise, randomness="different")(torch.zeros(3, 1000))
    assert out.shape == (3, 1000)
    assert 0.9 < out.std() < 1.1


def test_memory_that_is_not_allocated_is_an_error():
    """Sharding and offloading free a storage and keep the tensor; writing there would crash the process.

    Torch raises for some tensors and crashes for others.
    """
    for engine in ("cpu", "eager"):
        tensor = torch.zeros(64)
        tensor.untyped_storage().resize_(0)
        words = error_of(torch_init.normal_, tensor)[1].partition("\n")[0]
        with fastinit.use_engine(engine):
            assert error_of(init.normal_, tensor) == (RuntimeError, words)


def test_meta_tensors_have_nothing_to_insist_on():
    for name in DRAWING:
        tensor = torch.empty(4, 4, device="meta")
        assert getattr(init, name)(tensor, *ARGUMENTS.get(name, ()), fast=True) is tensor
    with contextlib.suppress(ZeroDivisionError):  # torch 2.8 divides by it
        assert init.trunc_normal_(torch.empty(3, device="meta"), std=0.0).is_meta
    box = fastinit.shard(torch.empty(2, 2, device="meta"), (4, 4), (0, 0))
    assert init.normal_(box, stream=Stream(1)) is box


def test_dirac_under_modes_and_on_odd_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        init.dirac_(torch.empty(8, 8, 3))
    for make in (lambda: torch.zeros(4, 2, 0), lambda: torch.zeros(4, 2, 1).expand(4, 2, 3)):
        assert outcome(init.dirac_, make()) == outcome(torch_init.dirac_, make())


def test_tracing_records_torchs_operation():
    def function(x):
        return init.normal_(torch.empty_like(x)) + x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, torch.zeros(3), check_trace=False)
    assert "normal" in str(traced.graph)


def test_an_interrupted_fill_is_known_to_autograd(monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    tensor = torch.zeros(4)
    engine = fastinit.drawing.engines.load("cpu")
    monkeypatch.setattr(type(engine), "fill", interrupted)
    monkeypatch.setattr(fastinit.initialisers.quick, "plans", {})  # no short way
    with pytest.raises(KeyboardInterrupt):
        init.normal_(tensor)
    assert tensor._version == 1


def test_tensors_that_may_overlap_are_left_to_torch():
    from fastinit.drawing.route import may_overlap

    assert may_overlap(torch.zeros(100).as_strided((10, 10), (1, 1)))
    assert may_overlap(torch.zeros(100).as_strided((30, 4), (2, 1)))
    assert not may_overlap(torch.zeros(10, 10).t())
    assert not may_overlap(torch.zeros(20, 30)[::3, 1::2])
    assert not may_overlap(torch.zeros(3, 4, 5, 6).permute(2, 0, 3, 1))
    assert not may_overlap(torch.zeros(1, 5).expand(1, 5))
