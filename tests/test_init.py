"""A drop-in for torch.nn.init: names, signatures, return values, errors and warnings, word for word."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.init as torch_init
from common import ARGUMENTS, DRAWING, FLOAT8, INITIALISERS, WITH_FANS, call, outcome, refuse_bounds, same_bits

import fastinit
import fastinit.init as init
from fastinit import Stream

DEPRECATED = (
    "uniform", "normal", "constant", "eye", "dirac", "xavier_uniform", "xavier_normal", "kaiming_uniform",
    "kaiming_normal", "orthogonal", "sparse",
)  # fmt: skip


PRIVATE = (
    "_calculate_fan_in_and_fan_out", "_calculate_correct_fan", "_no_grad_uniform_", "_no_grad_normal_",
    "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_", "_make_deprecate",
)  # fmt: skip


def torch_functions():
    for name in dir(torch_init):
        value = getattr(torch_init, name)
        if inspect.isfunction(value) and value.__module__ == torch_init.__name__:
            yield name, value


# What each takes besides torch's arguments, fast= and stream=.
BEYOND = {
    **{name: {"layout", "fan_in", "fan_out", "groups"} for name in WITH_FANS},
    "trunc_normal_": {"bounds"},
    "orthogonal_": {"column_axis"},
}


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
            assert extra == ({"fast", "stream"} | BEYOND.get(name, set()))
        seen += 1
    assert seen >= 15 + len(DEPRECATED) + len(PRIVATE)
    for name in getattr(torch_init, "__all__", ()):
        assert name in fastinit.__all__


def test_every_name_that_others_import_is_here():
    for name in (*DEPRECATED, *PRIVATE, *INITIALISERS, "calculate_gain"):
        assert callable(getattr(init, name))
    for name in ("trunc_normal", "ones", "zeros"):
        assert not hasattr(init, name)
        assert not hasattr(torch_init, name)


@pytest.mark.parametrize("name", INITIALISERS)
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
        assert getattr(init, name)(tensor, *ARGUMENTS.get(name + "_", ())) is tensor
    assert [str(w.message) for w in ours] == [str(w.message) for w in theirs]
    assert ours[0].filename == __file__


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
    disordered = name == "trunc_normal_" and len(arguments) == 4 and arguments[2] > arguments[3]
    torchs = refuse_bounds if disordered else getattr(torch_init, name)
    theirs = outcome(torchs, torch.full(shape, 7.0, dtype=dtype), *arguments)
    ours = outcome(getattr(init, name), torch.full(shape, 7.0, dtype=dtype), *arguments)
    if theirs[0] is not None and theirs[0][0] is ZeroDivisionError:
        assert ours[0][0] is ZeroDivisionError
    else:
        assert ours == theirs


def test_errors_are_compared_for_real():
    """The twin: a call that does not fail, and one that fails otherwise, are told apart."""
    bad = outcome(torch_init.normal_, torch.full((4,), 7.0), 0.0, -1.0)
    assert bad[0] is not None
    assert outcome(init.normal_, torch.full((4,), 7.0), 0.0, 1.0) != bad
    assert outcome(init.normal_, torch.full((4,), 7.0), 0.0, nan) != bad


@pytest.mark.parametrize("name", [*DRAWING, "eye_", "dirac_", "constant_"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 2, 2, 2, 2), (2,) * 6], ids=str)
def test_shapes_are_refused_as_by_torch(name, shape):
    arguments = ARGUMENTS.get(name, ())
    theirs = outcome(getattr(torch_init, name), torch.full(shape, 7.0), *arguments)
    assert outcome(getattr(init, name), torch.full(shape, 7.0), *arguments) == theirs


@pytest.mark.parametrize("target", [None, {1.0: 2.0}, np.zeros(3), 3.0], ids=repr)
@pytest.mark.parametrize("name", [*DRAWING, "ones_"])
def test_what_is_no_tensor_is_refused_as_by_torch(name, target):
    def error(function):
        with pytest.raises(Exception) as raised:  # noqa: PT011  (whatever torch raises)
            call(function, name, target)
        return type(raised.value), str(raised.value)

    assert error(getattr(init, name)) == error(getattr(torch_init, name))


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


def test_private_names_are_at_the_top_too():
    for name in PRIVATE:
        assert getattr(fastinit, name) is getattr(init, name)
