"""A drop-in for torch.nn.init: names, signatures, return values, errors and warnings, word for word."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.init as torch_init
from common import FLOAT8, FLOATS, name_of, same_bits

import fastinit
import fastinit.init as init
from fastinit import Stream

DRAWING = (
    "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
    "kaiming_normal_", "orthogonal_", "sparse_",
)  # fmt: skip
WITH_FANS = ("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_")
DEPRECATED = (
    "uniform", "normal", "constant", "eye", "dirac", "xavier_uniform", "xavier_normal", "kaiming_uniform",
    "kaiming_normal", "orthogonal", "sparse",
)  # fmt: skip
PRIVATE = (
    "_calculate_fan_in_and_fan_out", "_calculate_correct_fan", "_no_grad_uniform_", "_no_grad_normal_",
    "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_", "_make_deprecate",
)  # fmt: skip
ARGUMENTS = {"constant_": (0.5,), "sparse_": (0.5,)}


def torch_functions():
    for name in dir(torch_init):
        value = getattr(torch_init, name)
        if inspect.isfunction(value) and value.__module__ == torch_init.__name__:
            yield name, value


def call(function, name, tensor):
    return function(tensor, *ARGUMENTS.get(name.rstrip("_") + "_", ()))


def test_every_name_and_parameter_of_torch_is_here():
    seen = 0
    for name, theirs in torch_functions():
        ours = getattr(fastinit if not name.startswith("_") else init, name)
        expected, got = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
        assert list(got)[: len(expected)] == list(expected), name
        for parameter in expected:
            assert got[parameter].default == expected[parameter].default, (name, parameter)
            assert got[parameter].kind == expected[parameter].kind, (name, parameter)
        extra = {name for name in list(got)[len(expected) :] if got[name].kind is inspect.Parameter.KEYWORD_ONLY}
        assert extra == set(list(got)[len(expected) :])
        if name in DRAWING:
            assert extra == ({"fast", "stream", "layout"} if name in WITH_FANS else {"fast", "stream"})
        seen += 1
    assert seen >= 15 + len(DEPRECATED) + len(PRIVATE)
    for name in getattr(torch_init, "__all__", ()):
        assert name in fastinit.__all__


def test_every_name_that_others_import_is_here():
    for name in (*DEPRECATED, *PRIVATE, *DRAWING, "constant_", "ones_", "zeros_", "eye_", "dirac_", "calculate_gain"):
        assert callable(getattr(init, name))
    for name in ("trunc_normal", "ones", "zeros"):
        assert not hasattr(init, name)
        assert not hasattr(torch_init, name)


@pytest.mark.parametrize("name", [*DRAWING, "constant_", "ones_", "zeros_", "eye_", "dirac_"])
def test_returns_its_argument(name):
    tensor = torch.empty(4, 4, 3) if name == "dirac_" else torch.empty(4, 4)
    assert call(getattr(init, name), name, tensor) is tensor
    parameter = torch.nn.Parameter(tensor.clone())
    assert call(getattr(init, name), name, parameter) is parameter
    assert parameter.requires_grad
    assert parameter.is_leaf


@pytest.mark.parametrize("name", DEPRECATED)
def test_deprecated_names_warn_in_torchs_words(name):
    tensor = torch.empty(4, 4, 3) if name == "dirac" else torch.empty(4, 4)
    with pytest.warns(FutureWarning) as theirs:
        call(getattr(torch_init, name), name, tensor)
    with pytest.warns(FutureWarning) as ours:
        assert call(getattr(init, name), name, tensor) is tensor
    assert [str(w.message) for w in ours] == [str(w.message) for w in theirs]
    assert ours[0].filename == __file__


def outcome(function, tensor, *arguments, **keywords):
    """What a call does: exception type and text, warnings; and that an error left the tensor alone."""
    before = tensor.detach().clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function(tensor, *arguments, **keywords)
            error = None
        except Exception as raised:
            error = (type(raised), str(raised))
            assert same_bits(before, tensor.detach()), "changed by a call that failed"
    return error, [(w.category, str(w.message)) for w in caught]


nan, inf = math.nan, math.inf
BAD_CALLS = [
    ("uniform_", (2.0, 1.0)), ("uniform_", (nan, 1.0)), ("uniform_", (0.0, nan)), ("uniform_", (-inf, 1.0)),
    ("uniform_", (0.0, inf)), ("uniform_", (-3e38, 3e38)), ("uniform_", (0.0, 1e39)), ("uniform_", ("a", 1.0)),
    ("uniform_", (None, 1.0)), ("uniform_", (0.0, 1j)), ("uniform_", (0.0, [1.0])), ("uniform_", (0.0, 1.0, "gen")),
    ("normal_", (0.0, -1.0)), ("normal_", (0.0, nan)), ("normal_", (0.0, "b")), ("normal_", (None,)),
    ("normal_", (0.0, -inf)), ("normal_", (0.0, 1.0, 5)),
    ("trunc_normal_", (0.0, 1.0, 2.0, -2.0)), ("trunc_normal_", (0.0, 1.0, nan, 2.0)),
    ("trunc_normal_", (0.0, 1.0, -2.0, nan)), ("trunc_normal_", (0.0, "s")), ("trunc_normal_", ("m",)),
    ("xavier_uniform_", ("g",)), ("xavier_normal_", ("g",)), ("xavier_normal_", (-1.0,)), ("xavier_uniform_", (-1.0,)),
    ("xavier_normal_", (nan,)), ("xavier_uniform_", (nan,)), ("xavier_uniform_", (inf,)),
    ("kaiming_uniform_", (0, "fan")), ("kaiming_normal_", (0, "fan")), ("kaiming_normal_", (0, 3)),
    ("kaiming_uniform_", (0, "fan_in", "swish")), ("kaiming_normal_", (0, "fan_in", "swish")),
    ("kaiming_uniform_", ("a",)), ("kaiming_normal_", (True,)), ("kaiming_normal_", ([1],)),
    ("orthogonal_", ("g",)), ("sparse_", ("s",)), ("sparse_", (nan,)), ("sparse_", (0.5, -1.0)),
    ("sparse_", (0.5, "s")),
    ("constant_", ("c",)), ("dirac_", (3,)), ("dirac_", (0,)), ("dirac_", ("g",)), ("eye_", (1,)),
]  # fmt: skip


BAD_SHAPES = [(4, 4), (4,), (), (4, 4, 3), (0, 4), (4, 0, 3), (0, 0)]
BAD_PLACES = [(shape, torch.float32) for shape in BAD_SHAPES] + [((4, 4), dtype) for dtype in FLOAT8]
BAD_CASES = [
    (name, arguments, shape, dtype)
    for name, arguments in BAD_CALLS
    for shape, dtype in BAD_PLACES
    # torch writes the tensor before it looks at gain; see test_orthogonal_gain
    if not (name == "orthogonal_" and len(shape) >= 2 and 0 not in shape)
]


@pytest.mark.parametrize(("name", "arguments", "shape", "dtype"), BAD_CASES, ids=str)
def test_bad_calls_fail_in_torchs_words(name, arguments, shape, dtype):
    theirs = outcome(getattr(torch_init, name), torch.full(shape, 7.0, dtype=dtype), *arguments)
    ours = outcome(getattr(init, name), torch.full(shape, 7.0, dtype=dtype), *arguments)
    if theirs[0] is not None and theirs[0][0] is ZeroDivisionError:
        assert ours[0][0] is ZeroDivisionError
    else:
        assert ours == theirs


@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype is not torch.float32], ids=name_of)
@pytest.mark.parametrize("bounds", [(0.0, 70000.0), (-65000.0, 65000.0), (-1e300, 1e300), (0.0, 1e39), (0.0, inf)])
def test_bounds_beyond_a_dtype_fail_in_torchs_words(bounds, dtype):
    theirs = outcome(torch_init.uniform_, torch.full((9,), 7.0, dtype=dtype), *bounds)
    assert outcome(init.uniform_, torch.full((9,), 7.0, dtype=dtype), *bounds) == theirs


def test_errors_are_compared_for_real():
    """The twin: a call that does not fail, and one that fails otherwise, are told apart."""
    bad = outcome(torch_init.normal_, torch.full((4,), 7.0), 0.0, -1.0)
    assert bad[0] is not None
    assert outcome(init.normal_, torch.full((4,), 7.0), 0.0, 1.0) != bad
    assert outcome(init.normal_, torch.full((4,), 7.0), 0.0, nan) != bad


def test_orthogonal_gain():
    tensor = torch.full((4, 4), 7.0)
    with pytest.raises(TypeError, match="mul_"):
        init.orthogonal_(tensor, "g")
    assert (tensor == 7).all()


@pytest.mark.parametrize("name", [*DRAWING, "eye_", "dirac_", "constant_"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 2, 2, 2, 2), (2,) * 6], ids=str)
def test_shapes_are_refused_as_by_torch(name, shape):
    arguments = ARGUMENTS.get(name, ())
    theirs = outcome(getattr(torch_init, name), torch.full(shape, 7.0), *arguments)
    assert outcome(getattr(init, name), torch.full(shape, 7.0), *arguments) == theirs


@pytest.mark.parametrize("target", [None, [1.0, 2.0], np.zeros(3), 3.0], ids=repr)
@pytest.mark.parametrize("name", [*DRAWING, "ones_"])
def test_what_is_no_tensor_is_refused_as_by_torch(name, target):
    def error(function):
        with pytest.raises(Exception) as raised:  # noqa: PT011  (whatever torch raises)
            call(function, name, target)
        return type(raised.value), str(raised.value)

    assert error(getattr(init, name)) == error(getattr(torch_init, name))


@pytest.mark.parametrize("name", ["trunc_normal_", "xavier_normal_", "xavier_uniform_"])
def test_divisions_by_zero_say_what_was_wrong(name):
    if name == "trunc_normal_":
        with pytest.raises(ZeroDivisionError, match="std > 0, got 0"):
            init.trunc_normal_(torch.empty(3), std=0.0)
    else:
        with pytest.raises(ZeroDivisionError, match=r"fan_in \+ fan_out, which is 0 for shape \(0, 0\)"):
            getattr(init, name)(torch.empty(0, 0))


def test_warnings_are_torchs_and_point_at_the_caller():
    for name, tensor, arguments, words in [
        ("trunc_normal_", torch.empty(9), (5.0, 1.0), "mean is more than 2 std"),
        ("kaiming_uniform_", torch.empty(0, 3), (), "zero-element"),
        ("kaiming_normal_", torch.empty(0, 3), (), "zero-element"),
    ]:
        with pytest.warns(UserWarning, match=words) as theirs:
            getattr(torch_init, name)(tensor, *arguments)
        with pytest.warns(UserWarning, match=words) as ours:
            getattr(init, name)(tensor, *arguments)
        assert [str(w.message) for w in ours] == [str(w.message) for w in theirs]
        assert ours[0].filename == __file__


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


@pytest.mark.parametrize("name", [*DRAWING, "constant_", "ones_", "zeros_", "eye_", "dirac_"])
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


def test_vmap_and_compile_leave_it_to_torch():
    def noise(x):
        return init.normal_(torch.empty_like(x)) + x

    out = torch.func.vmap(noise, randomness="different")(torch.zeros(3, 1000))
    assert out.shape == (3, 1000)
    assert 0.9 < out.std() < 1.1


REALS = [
    np.float64, np.float32, np.float16, np.longdouble, np.int64, np.uint8, np.array, Fraction, torch.tensor,
    lambda value: torch.tensor(value, dtype=torch.float64, requires_grad=True),
]  # fmt: skip
# A call with numbers that every type above holds.
REAL_CALLS = {
    "uniform_": (1.0, 3.0), "normal_": (1.0, 2.0), "trunc_normal_": (1.0, 2.0, -3.0, 4.0), "xavier_uniform_": (3.0,),
    "xavier_normal_": (3.0,), "kaiming_uniform_": (3.0,), "kaiming_normal_": (3.0,), "orthogonal_": (3.0,),
    "sparse_": (1.0, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("name", DRAWING)
def test_any_real_number_is_worth_what_float_says(name, dtype):
    function, values = getattr(init, name), REAL_CALLS[name]
    tensor = torch.empty(8, 6, dtype=dtype)
    expected = function(tensor.clone(), *values, stream=Stream(1))
    for real in REALS[:-1] if name == "sparse_" else REALS:  # whose sparsity torch takes with a warning, once a process
        given = [torch.tensor(-3) if value < 0 and real is np.uint8 else real(value) for value in values]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same_bits(function(tensor.clone(), *given, stream=Stream(1)), expected), real
            torch.manual_seed(1)
            ours = function(tensor.clone(), *given)
            torch.manual_seed(1)
            assert same_bits(ours, function(tensor.clone(), *values)), real


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"])
def test_no_number_is_rounded_by_its_own_type(name):
    """A product of a float32 gain and Python's float is a float32 for NumPy and torch."""
    for real in (np.float32(0.1), torch.tensor(0.1), Fraction(1, 3)):
        tensors = [getattr(init, name)(torch.empty(8, 6), gain, stream=Stream(1)) for gain in (real, float(real))]
        assert same_bits(*tensors)


@pytest.mark.parametrize("sparsity", [0.1, np.float64(0.1), np.float32(0.1), torch.tensor(0.1), Fraction(1, 3), True])
def test_the_zeros_of_sparse_are_as_many_as_torchs(sparsity):
    for rows in (1, 3, 10, 30):
        zeros = [(sparse(torch.empty(rows, 4), sparsity) == 0).sum(0).tolist() for sparse in SPARSE]
        assert zeros[0] == zeros[1]


SPARSE = (init.sparse_, torch_init.sparse_)


@pytest.mark.parametrize("stream", [None, Stream(1)], ids=["generator", "stream"])
def test_the_tensors_dtype_decides_what_is_in_range(stream):
    """Not torch's default dtype."""
    double = torch.full((64,), 7.0, dtype=torch.float64)
    for high in (np.float64(1e39), torch.tensor(1e39, dtype=torch.float64), Fraction(10**39)):
        assert 1e36 < init.uniform_(double, 0.0, high, fast=True, stream=stream).max() < 1e39
        assert 1e37 < init.normal_(double, 0.0, high, fast=True, stream=stream).std() < 1e40
        assert 1e37 < init.trunc_normal_(double, 0.0, high, -1e39, 1e39, fast=True, stream=stream).max() < 1e39
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            single = torch.full((64,), 7.0, dtype=dtype)
            words = outcome(torch_init.uniform_, single, 0.0, 1e39)
            assert words[0] is not None
            assert outcome(init.uniform_, single, 0.0, high, stream=stream) == words
    with torch_default(torch.float64):
        single = torch.full((64,), 7.0, dtype=torch.float32)
        assert outcome(init.uniform_, single, 0.0, np.float64(1e39), stream=stream)[0][0] is RuntimeError


@contextlib.contextmanager
def torch_default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "value", [Decimal(1), "1", None, [1.0], np.array([1.0]), torch.tensor([1.0, 2.0]), 1 + 0j], ids=repr
)
def test_what_is_no_real_number_is_refused_in_torchs_words(value):
    for name, arguments in [
        ("uniform_", (0.0, value)), ("normal_", (value, 1.0)), ("normal_", (0.0, value)),
        ("trunc_normal_", (0.0, value)), ("trunc_normal_", (0.0, 1.0, -2.0, value)), ("xavier_normal_", (value,)),
        ("kaiming_normal_", (value,)), ("sparse_", (0.5, value)),
    ]:  # fmt: skip
        theirs = outcome(getattr(torch_init, name), torch.full((4, 4), 7.0), *arguments)
        if name == "kaiming_normal_" and value is None:
            assert theirs[0] is None  # the default slope
            continue
        assert theirs[0] is not None, name
        assert outcome(getattr(init, name), torch.full((4, 4), 7.0), *arguments) == theirs
        assert outcome(getattr(init, name), torch.full((4, 4), 7.0), *arguments, stream=Stream(1)) == theirs


# Finite bounds beyond float16. (mean, std, a, b)
BEYOND_HALF = [
    (0.0, 1e9, -1e5, 1e5), (0.0, 1e6, -7e4, 7e4), (0.0, 1.0, 1.9, 1e5), (0.0, 1.0, -1e5, -1.9), (0.0, 1.0, 1e5, 2e5),
    (0.0, 1.0, -2e5, -1e5), (0.0, 1.0, 65504.0, 65510.0), (0.0, 1.0, 65505.0, 65510.0), (0.0, 1.0, 2e5, 1e5),
    (0.0, 1.0, 1e5, -1e5), (0.0, 1.0, 1e5, inf), (0.0, 1.0, -inf, -1e5), (0.0, 1.0, inf, inf), (0.0, 1.0, inf, -inf),
    (-3e5, 1e5, -1e5, inf),
]  # fmt: skip


BEYOND_OTHERS = [
    (0.0, 1.0, 1.9, 1e39), (0.0, 1.0, -1e39, -1.9), (0.0, 1.0, 1e39, 1e40), (0.0, 3e38, -1e40, -1e39),
    (0.0, 1.0, 2e39, 1e39), (0.0, 1.0, 1e39, inf), (0.0, 1.0, -inf, -1e39), (0.0, 1.0, inf, inf),
]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [(torch.float16, numbers) for numbers in BEYOND_HALF]
    + [(dtype, numbers) for dtype in (torch.bfloat16, torch.float32) for numbers in BEYOND_OTHERS],
    ids=str,
)
def test_truncation_beyond_a_dtype_fails_in_torchs_words(dtype, numbers):
    mean, std, a, b = numbers
    theirs = outcome(torch_init.trunc_normal_, torch.full((64,), 7.0, dtype=dtype), mean, std, a, b)
    assert theirs[0] is not None
    ours = outcome(init.trunc_normal_, torch.full((64,), 7.0, dtype=dtype), mean, std, a, b)
    assert ours == theirs
    box = fastinit.shard(torch.full((8,), 7.0, dtype=dtype), (64,), (8,))
    for target, stream in ((torch.full((64,), 7.0, dtype=dtype), Stream(1)), (box, None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raised = error_of(lambda: init.trunc_normal_(target, mean, std, a, b, stream=stream))  # noqa: B023
        assert raised == theirs[0]


def test_bounds_beyond_a_dtype_are_no_matter_where_the_law_is_within():
    """As in torch; infinite ones always."""
    expected = init.trunc_normal_(torch.empty(64, dtype=torch.float16), 0.0, 1.0, -inf, inf, stream=Stream(1))
    for bounds in ((-1e5, 1e5), (-1e39, inf), (-1e300, 1e300)):
        drawn = init.trunc_normal_(torch.empty(64, dtype=torch.float16), 0.0, 1.0, *bounds, stream=Stream(1))
        assert same_bits(drawn, expected)
    assert init.trunc_normal_(torch.empty(64, dtype=torch.float16), 0.0, 1.0, 1.9, inf).min() >= 1.8994140625


def test_an_interval_beyond_the_dtype_is_refused_where_torch_fills_with_infinities():
    tensor = torch.full((64,), 7.0, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"a number of float16 between them, got a=99998\.0 and b=100002\.0"):
        init.trunc_normal_(tensor, 1e5, 1.0, 1e5 - 2, 1e5 + 2)
    assert (tensor == 7).all()


@pytest.mark.parametrize("stream", [None, Stream(1)], ids=["generator", "stream"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_numbers_that_no_truncated_normal_has(dtype, stream):
    """Torch has no error here: by the numbers it draws with |std|, or nearly uniformly, or never ends."""
    tensor = torch.full((64,), 7.0, dtype=dtype)
    state = torch.get_rng_state()
    for mean, std, words in [
        (0.0, -1.0, r"needs std > 0, got -1\.0; fast=False has what torch"), (0.0, nan, "needs std > 0, got nan"),
        (0.0, -inf, "needs std > 0, got -inf"), (nan, 1.0, "needs a number for its mean, got nan"),
        (inf, 1.0, r"needs \|mean\| <= .* got inf"), (-inf, 1.0, r"needs \|mean\| <= .* got -inf"),
        (0.0, inf, r"needs \|std\| <= .* got inf"), (np.float32(0), np.float32(-1), "needs std > 0, got -1"),
        *([] if dtype is torch.float64 else [
            (1e39, 1.0, r"needs \|mean\| <= 3\.403e\+38 in .* got 1e\+39"),
            (0.0, 1e39, r"needs \|std\| <= 3\.403e\+38 in .* got 1e\+39"),
        ]),
    ]:  # fmt: skip
        for a, b in ((-2.0, 2.0), (2.0, -2.0), (5.0, 6.0), (nan, 2.0)):
            with pytest.raises(ValueError, match="trunc_normal_ " + words):
                init.trunc_normal_(tensor, mean, std, a, b, stream=stream)
    assert (tensor.double() == 7).all()
    assert torch.equal(state, torch.get_rng_state())


def test_not_fast_is_torchs_result_for_such_numbers_too():
    for mean, std in ((0.0, -1.0), (nan, 1.0), (1e39, 1.0), (0.0, inf)):  # torch comes to an end with these
        drawn = []
        for function, keywords in ((torch_init.trunc_normal_, {}), (init.trunc_normal_, {"fast": False})):
            torch.manual_seed(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                drawn.append(function(torch.empty(64), mean, std, **keywords))
        assert same_bits(*drawn)


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "sparse_"])
def test_torchs_errors_come_with_a_stream_and_into_shards(name):
    bad = {
        "uniform_": (2.0, 1.0),
        "normal_": (0.0, -1.0),
        "trunc_normal_": (0.0, 1.0, 2.0, -2.0),
        "sparse_": (0.5, -1.0),
    }
    theirs = error_of(getattr(torch_init, name), torch.empty(4, 4), *bad[name])
    tensor = torch.full((4, 4), 7.0)
    assert error_of(lambda: getattr(init, name)(tensor, *bad[name], stream=Stream(1))) == theirs
    assert error_of(getattr(init, name), fastinit.shard(tensor, (8, 8), (4, 4)), *bad[name]) == theirs
    assert (tensor == 7).all()


def test_layouts_of_fans():
    tall = torch.empty(300, 200)
    kaiming = init.kaiming_normal_(torch.empty(200, 300), stream=Stream(1))
    assert math.isclose(kaiming.std(), math.sqrt(2 / 300), rel_tol=0.02)
    turned = init.kaiming_normal_(tall, stream=Stream(1), layout="io")
    assert math.isclose(turned.std(), math.sqrt(2 / 300), rel_tol=0.02)
    experts = init.xavier_uniform_(torch.empty(8, 100, 50), stream=Stream(1), layout="bio")
    assert math.isclose(experts.std(), math.sqrt(2 / 150), rel_tol=0.02)
    convolution = init.kaiming_uniform_(
        torch.empty(3, 3, 64, 32), 0, "fan_out", "relu", stream=Stream(1), layout="ssio"
    )
    assert math.isclose(convolution.std(), math.sqrt(2 / (9 * 32)), rel_tol=0.02)
    by_torch = init.kaiming_normal_(tall, fast=False, layout="io")
    assert math.isclose(by_torch.std(), math.sqrt(2 / 300), rel_tol=0.02)
    same = init.kaiming_normal_(torch.empty(200, 300), stream=Stream(1), layout="oi")
    assert same_bits(same, kaiming)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("o", "names 1 dimensions, the tensor has 2"),
        ("xy", "letters"),
        ("oo", "needs input and output"),
        (3, "letters"),
    ],
)
def test_bad_layouts(layout, message):
    tensor = torch.full((4, 5), 7.0)
    with pytest.raises(ValueError, match=message):
        init.xavier_normal_(tensor, layout=layout)
    with pytest.raises(ValueError, match="Mode fan not supported"):
        init.kaiming_normal_(tensor, mode="fan", layout="io")
    assert (tensor == 7).all()


def test_half_bounded_truncation_works_where_torch_gives_up():
    """torch rejects [-inf, -2] by accident (no uniform proposal there); it is a law like any other."""
    tensor = init.trunc_normal_(torch.empty(10_000), a=-inf, b=-1.9, stream=Stream(1))
    assert tensor.max() <= -1.9
    assert tensor.min() < -3
    free = init.trunc_normal_(torch.empty(64), a=-inf, b=inf, stream=Stream(1))
    assert same_bits(free, init.normal_(torch.empty(64), stream=Stream(1)))


def test_bits_fills_int32_only():
    words = fastinit.bits_(torch.empty(64, dtype=torch.int32), stream=Stream(0))
    assert words[0].item() & 0xFFFFFFFF == 0x6627E8D5
    with pytest.raises(TypeError, match="int32"):
        fastinit.bits_(torch.empty(64))


def test_a_stream_and_a_generator_together_are_refused():
    tensor = torch.full((4, 4), 7.0)
    for name in DRAWING:
        function = getattr(init, name)
        with pytest.raises(ValueError, match="not both"):
            function(tensor, *ARGUMENTS.get(name, ()), generator=torch.Generator(), stream=Stream(1))
        with pytest.raises(TypeError, match=r"fastinit\.Stream, got int"):
            function(tensor, *ARGUMENTS.get(name, ()), stream=5)
        with pytest.raises(RuntimeError, match="cannot serve stream="):
            function(tensor, *ARGUMENTS.get(name, ()), stream=Stream(1), fast=False)
        with pytest.raises(ValueError, match="fast is True, False or None"):
            function(tensor, *ARGUMENTS.get(name, ()), fast="yes")
    assert (tensor == 7).all()


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


def error_of(function, *arguments):
    with pytest.raises(Exception) as raised:  # noqa: PT011  (whatever torch raises)
        function(*arguments)
    return type(raised.value), str(raised.value)


def test_meta_tensors_have_nothing_to_insist_on():
    for name in DRAWING:
        tensor = torch.empty(4, 4, device="meta")
        assert getattr(init, name)(tensor, *ARGUMENTS.get(name, ()), fast=True) is tensor
    with contextlib.suppress(ZeroDivisionError):  # torch 2.8 divides by it
        assert init.trunc_normal_(torch.empty(3, device="meta"), std=0.0).is_meta
    box = fastinit.shard(torch.empty(2, 2, device="meta"), (4, 4), (0, 0))
    assert init.normal_(box, stream=Stream(1)) is box


def test_private_names_are_at_the_top_too():
    for name in PRIVATE:
        assert getattr(fastinit, name) is getattr(init, name)


def test_warnings_come_once_for_odd_numbers():
    with pytest.warns(UserWarning, match="mean is more than 2 std") as caught:
        init.trunc_normal_(torch.zeros(4, 4), mean=np.float64(4.5))
    assert len(caught) == 1


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
    engine = fastinit.engines.load("cpu")
    monkeypatch.setattr(type(engine), "fill", interrupted)
    monkeypatch.setattr(fastinit.fill, "plans", {})  # no short way
    with pytest.raises(KeyboardInterrupt):
        init.normal_(tensor)
    assert tensor._version == 1


def test_tensors_that_may_overlap_are_left_to_torch():
    from fastinit.ways import may_overlap

    assert may_overlap(torch.zeros(100).as_strided((10, 10), (1, 1)))
    assert may_overlap(torch.zeros(100).as_strided((30, 4), (2, 1)))
    assert not may_overlap(torch.zeros(10, 10).t())
    assert not may_overlap(torch.zeros(20, 30)[::3, 1::2])
    assert not may_overlap(torch.zeros(3, 4, 5, 6).permute(2, 0, 3, 1))
    assert not may_overlap(torch.zeros(1, 5).expand(1, 5))


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_a_slope_beyond_all_squares_is_refused_as_by_torch(name):
    for module in (torch.nn.init, init):
        with pytest.raises(OverflowError):
            getattr(module, name)(torch.empty(2, 3), a=1e200)
