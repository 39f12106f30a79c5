"""Initialisers as values: every public function has one, which says what it draws, and survives what values do."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import pickle
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from common import bits, name_of, python, same_bits

import fastinit
from fastinit import Stream, initialisers
from fastinit.frameworks.arrays import in_layout
from fastinit.initialisers import Initializer, get, values

STREAM = Stream(5, 6)
REQUIRED = {"constant": (0.5,), "sparse": (0.3,), "geometric": (0.3,)}
CONVOLUTIONS = ("delta_orthogonal", "convolution_orthogonal", "dirac")
NAMES = initialisers.names()


def make(name: str, *arguments, **named) -> Initializer:
    return getattr(initialisers, name)(*arguments, **named)


VALUES = [make(name, *REQUIRED.get(name, ())) for name in NAMES] + [
    make("normal", std=0.02),
    make("trunc_normal", 0.0, 0.02, bounds="sigma"),
    make("trunc_normal", b=math.inf),
    make("kaiming_uniform", math.sqrt(5), fan_in=12),
    make("he_normal", layout="io"),
    make("glorot_uniform", groups=2),
    make("variance_scaling", 0.5, "fan_geo_avg", "uniform", layout="ssio"),
    make("orthogonal", 2.0, column_axis=-1),
    make("constant", [[1, 2.5], [3, 4]]),
    make("constant", True),
    make("random", 5),
    make("random", -(2**63), 2**63 - 1),
    make("random", 3, None),
]


# --- what a value draws ------------------------------------------------------------------------


def test_every_public_function_has_a_value():
    assert {f"{name}_" for name in NAMES} == {name for name in fastinit.__all__ if name.endswith("_")} - {"bits_"}
    assert set(NAMES) <= set(dir(initialisers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("name", NAMES)
def test_a_call_draws_what_the_function_draws(name, dtype):
    shape, given = ((6, 4, 3, 3) if name in CONVOLUTIONS else (8, 6)), REQUIRED.get(name, ())
    function = getattr(fastinit, f"{name}_")
    how = {"stream": STREAM} if "stream" in inspect.signature(function).parameters else {}
    expected = function(torch.empty(shape, dtype=dtype), *given, **how)
    drawn = make(name, *given)(shape, dtype, "cpu", STREAM)
    assert same_bits(drawn, expected)
    target = torch.empty(shape, dtype=dtype)
    assert make(name, *given).fill(target, stream=STREAM) is target
    assert same_bits(target, expected)


def test_how_to_draw_is_said_in_the_call():
    value = make("normal", std=0.02)
    torch.manual_seed(1)
    expected = fastinit.normal_(torch.empty(10), std=0.02)
    torch.manual_seed(1)
    assert same_bits(value(10), expected)
    numbers = [value(10, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert same_bits(*numbers)
    torch.manual_seed(1)
    theirs = torch.nn.init.normal_(torch.empty(10), std=0.02)
    torch.manual_seed(1)
    assert same_bits(value(10, fast=False), theirs)
    for any_value in (value, make("zeros")):
        with pytest.raises(ValueError, match="a stream or a generator, not both"):
            any_value(10, stream=STREAM, generator=torch.Generator())


def test_a_shard_is_filled():
    value = make("he_normal", layout="io")
    whole, part = value((6, 8), stream=STREAM), torch.empty(6, 3)
    value.fill(fastinit.shard(part, (6, 8), (0, 5)), stream=STREAM)
    assert same_bits(part, whole[:, 5:])


@pytest.mark.parametrize(
    "dtype", ["float64", "torch.float64", np.float64, np.dtype("float64"), torch.float64], ids=repr
)
def test_dtypes_of_others(dtype):
    assert make("ones")(3, dtype).dtype is torch.float64


def test_dtypes_that_torch_lacks():
    for dtype in ("float128", np.dtype("U3"), "nn"):
        with pytest.raises(TypeError, match="torch has no dtype"):
            make("ones")(3, dtype)
    assert make("normal")((2, 3), device="meta").is_meta


# --- what a value is ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_round_trips(value):
    others = [
        eval(repr(value), vars(math) | {name: getattr(initialisers, name) for name in NAMES}),
        Initializer.from_config(json.loads(json.dumps(value.to_config()))),
        get(value.to_config()),
        pickle.loads(pickle.dumps(value)),
        copy.deepcopy(value),
        value.replace(),
        get(value),
    ]
    assert all(other == value and hash(other) == hash(value) for other in others)
    assert all(repr(other) == repr(value) for other in others)
    assert len({*others}) == 1


def test_values_are_all_different():
    assert len({*VALUES}) == len(VALUES)


def test_arguments_count_by_what_they_say():
    assert make("normal", 0.0, 1) == make("normal", std=1.0) == make("normal") != make("normal", std=2.0)
    assert make("normal", std=0.5).arguments == (("std", 0.5),)
    for half in (np.float32(0.5), torch.tensor(0.5), np.array(0.5), Fraction(1, 2)):
        assert make("normal", std=half) == make("normal", std=0.5)
    assert (
        make("constant", np.array([1.0, 2.0])) == make("constant", torch.tensor([1.0, 2.0])) == make("constant", [1, 2])
    )
    assert make("normal", std=0.5).replace(std=1.0) == make("normal")


def test_spellings():
    for name, spelled in (
        ("he_normal", ("he_normal", "he_normal_", "HeNormal")),
        ("orthogonal", ("orthogonal", "orthogonal_", "Orthogonal")),
        ("trunc_normal", ("trunc_normal", "trunc_normal_", "TruncNormal")),
    ):
        function = getattr(fastinit, f"{name}_")
        specs = [*spelled, getattr(initialisers, name), function, {"name": name}, functools.partial(function)]
        assert {get(spec) for spec in specs} == {make(name)}
    bound = functools.partial(fastinit.normal_, std=0.02)
    assert get(bound) == get(functools.partial(bound, mean=0.0)) == make("normal", std=0.02)
    assert get(torch.nn.init.xavier_uniform_) == make("xavier_uniform")


def test_factories_say_what_they_take():
    assert str(inspect.signature(initialisers.trunc_normal)) == "(mean=0.0, std=1.0, a=-2.0, b=2.0, *, bounds='value')"
    assert str(inspect.signature(initialisers.he_normal)) == "(*, layout=None, fan_in=None, fan_out=None, groups=1)"
    assert pickle.loads(pickle.dumps(initialisers.he_normal)) is initialisers.he_normal
    assert "Truncated normal of variance 2 / fan_in" in initialisers.he_normal.__doc__


# --- errors ------------------------------------------------------------------------------------


def test_names_that_are_none():
    with pytest.raises(ValueError, match=r"no initialiser 'he_nromal'; near it: he_normal"):
        get("he_nromal")
    with pytest.raises(ValueError, match=r"no initialiser 'qqq'; there are bernoulli, cauchy"):
        get("qqq")
    with pytest.raises(AttributeError, match="no attribute 'he_nromal'"):
        initialisers.he_nromal  # noqa: B018


@pytest.mark.parametrize("spec", [print, 3, None, fastinit.bits_, torch.nn.Linear, torch.nn.init.calculate_gain])
def test_what_is_no_initialiser(spec):
    with pytest.raises(TypeError, match="an initialiser is a value, its name, its configuration, or a function"):
        get(spec)


@pytest.mark.parametrize(
    "config", [{}, {"name": "ones", "seed": 1}, {"class_name": "Ones"}, {"name": "ones", "arguments": 3}]
)
def test_configurations_that_are_none(config):
    with pytest.raises(ValueError, match="an initialiser's configuration is"):
        get(config)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("normal", {"sdt": 1}, TypeError, r"normal\(mean=0.0, std=1.0\): got an unexpected keyword argument 'sdt'"),
        ("normal", {"stream": STREAM}, TypeError, "unexpected keyword argument 'stream'"),
        ("kaiming_normal", {"a": False}, ValueError, "negative_slope False not a valid number"),
        ("sparse", {}, TypeError, "missing a required argument: 'sparsity'"),
        ("he_normal", {"mode": "fan_out"}, TypeError, "unexpected keyword argument 'mode'"),
        ("normal", {"std": 1j}, TypeError, "argument is a number"),
        ("normal", {"std": "a"}, TypeError, "must be float, not str"),
        ("he_normal", {"layout": "ix"}, ValueError, "a layout is a string of the letters"),
        ("he_normal", {"layout": 3}, ValueError, "a layout is a string of the letters"),
        ("delta_orthogonal", {"layout": "io"}, ValueError, "needs 3 to 5 dimensions"),
        ("he_normal", {"fan_in": 0}, ValueError, "fan_in is a whole number above 0"),
        ("xavier_normal", {"groups": 0}, ValueError, "groups is a whole number above 0"),
        ("variance_scaling", {"scale": -1}, ValueError, "scale > 0, got -1"),
        ("variance_scaling", {"mode": "fan"}, ValueError, "mode is one of fan_in"),
        ("variance_scaling", {"distribution": "normal"}, ValueError, "JAX's normal is untruncated_normal"),
        ("kaiming_normal", {"mode": "fan"}, ValueError, "Mode fan not supported"),
        ("kaiming_normal", {"nonlinearity": "q"}, ValueError, "Unsupported nonlinearity q"),
        ("trunc_normal", {"std": -1}, ValueError, "needs std > 0"),
        ("trunc_normal", {"bounds": "std"}, ValueError, "bounds are in units of"),
        ("mup_normal", {"role": "x"}, ValueError, "role is one of"),
        ("depth_scaled_normal", {"depth": 0}, ValueError, "whole number of layers"),
        ("dirac", {"groups": 2.5}, ValueError, "whole number of groups above 0, got 2.5"),
        ("dirac", {"groups": 0}, ValueError, "whole number of groups above 0, got 0"),
        ("constant", {"val": []}, ValueError, "constant_ needs 1 to"),
    ],
    ids=str,
)
def test_arguments_are_judged_when_the_value_is_made(name, arguments, error, words):
    with pytest.raises(error, match=words):
        make(name, **arguments)


def test_whatever_some_tensor_can_take_is_a_value():
    """Of another rank or dtype than a usual weight's, or torch's alone."""
    make("random", 0, 2**60)
    make("constant", [1.0] * 300_000)
    make("he_normal", layout="sssio", groups=9)
    make("he_normal", groups=10**9)
    make("normal", std=-1)  # the error may be torch's or a replacement's
    with pytest.raises(RuntimeError, match="normal expects std >= 0"):
        make("normal", std=-1)(3)
    make("trunc_normal", std=0.1, a=5, b=6)  # torch's warning comes with the call
    with pytest.warns(UserWarning, match="more than 2 std from"):
        make("trunc_normal", std=0.1, a=5, b=6)(3)


def test_arguments_are_judged_once(monkeypatch):
    tried, fill = [], Initializer.fill
    monkeypatch.setattr(values, "judged", set())
    monkeypatch.setattr(
        Initializer, "fill", lambda self, *given, **how: tried.append(self) or fill(self, *given, **how)
    )
    first = [make("normal", std=2.0), in_layout(make("he_normal"), (4, 6)), make("kaiming_normal", 1)]
    assert {*first} <= {*tried}
    tried.clear()
    again = [make("normal").replace(std=2.0), in_layout(make("he_normal"), (8, 12)), make("kaiming_normal", 1)]
    assert again == first
    assert tried == [make("normal")]
    with pytest.raises(ValueError, match="negative_slope True not a valid number"):
        make("kaiming_normal", True)  # equal to 1


def test_what_was_judged_is_bounded(monkeypatch):
    monkeypatch.setattr(values, "MOST_JUDGED", 3)
    monkeypatch.setattr(values, "judged", set())
    for std in (2.0, 3.0, 4.0, 5.0, 5.0):
        make("normal", std=std)
    assert values.judged == {("normal", ("std", float, 5.0))}


@pytest.mark.parametrize("error", ["a", -1])
def test_wrong_arguments_are_judged_every_time(error):
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            make("variance_scaling", scale=error)


def test_nothing_is_taken_for_right_while_it_cannot_be_tried(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, *_: tensor)
        make("trunc_normal", std=-1)
    with pytest.raises(ValueError, match="needs std > 0"):
        make("trunc_normal", std=-1)


def test_making_a_value_leaves_the_warnings_of_other_threads_alone(monkeypatch):
    """`warnings.catch_warnings` changes the filters of all threads (before Python 3.14), and may leave its own."""
    monkeypatch.setattr(values, "judged", set())
    with monkeypatch.context() as patch:
        patch.setattr(warnings, "catch_warnings", None)
        for name in NAMES:
            make(name, *REQUIRED.get(name, ()))
        make("trunc_normal", std=0.1, a=5, b=6)


def test_making_a_value_touches_nothing(monkeypatch):
    """No generator advances, and no mode and no function that others have put in torch's place hears of it."""
    heard = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            heard.append(function.__name__)
            return function(*arguments, **(keywords or {}))

    state = torch.get_rng_state()
    for name in ("normal_", "kaiming_normal_", "orthogonal_", "zeros_"):
        monkeypatch.setattr(torch.nn.init, name, lambda *_, name=name, **__: heard.append(name))
    with Mode():
        for name in NAMES:
            make(name, *REQUIRED.get(name, ()))
    assert torch.equal(state, torch.get_rng_state())
    assert not {name for name in heard if name.endswith("_") and not name.startswith("__")}


def test_fastinit_imports_no_framework():
    assert python("import sys, fastinit; print({'jax', 'keras', 'tensorflow'} & sys.modules.keys())") == "set()\n"


# --- what values showed ------------------------------------------------------------------------


def test_signatures_name_their_options():
    assert [*inspect.signature(fastinit.he_normal_).parameters] == [
        "tensor", "generator", "fast", "stream", "layout", "fan_in", "fan_out", "groups",
    ]  # fmt: skip
    assert bits(values.get("he_normal")((3, 4), stream=STREAM)).shape == (3, 4)
