"""Variance scaling and its names: the laws of JAX and Keras, fans of every kind of weight, errors."""

from __future__ import annotations

import math

import pytest
import torch
from common import same_bits
from scipy import stats

import fastinit
from fastinit.initialisers.fans import axes, fans, variance_std
from fastinit.laws import TruncNormal

ALPHA = 1e-4  # the false-alarm rate of each statistical test; seeds are fixed
STREAM = fastinit.Stream(3, 4)
SHAPE = (96, 160, 3, 3)
FAN_IN, FAN_OUT = 160 * 9, 96 * 9
# The standard deviation of the normal law between -2 and 2 of its own, by SciPy: JAX's and Keras's constant.
WITHIN_TWO = stats.truncnorm(-2, 2).std()
# Each name with its variance and distribution, by the papers and JAX's and Keras's documentation.
NAMES = {
    "lecun_normal_": (1 / FAN_IN, "truncated_normal"),
    "lecun_uniform_": (1 / FAN_IN, "uniform"),
    "glorot_normal_": (2 / (FAN_IN + FAN_OUT), "truncated_normal"),
    "glorot_uniform_": (2 / (FAN_IN + FAN_OUT), "uniform"),
    "he_normal_": (2 / FAN_IN, "truncated_normal"),
    "he_uniform_": (2 / FAN_IN, "uniform"),
}
MODES = {
    "fan_in": FAN_IN,
    "fan_out": FAN_OUT,
    "fan_avg": (FAN_IN + FAN_OUT) / 2,
    "fan_geo_avg": math.sqrt(FAN_IN * FAN_OUT),
}


def scipys(distribution: str, std: float):
    if distribution == "uniform":
        return stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std)
    if distribution == "untruncated_normal":
        return stats.norm(0, std)
    return stats.truncnorm(-2, 2, 0, std / WITHIN_TWO)


def distance(sample: torch.Tensor, law) -> float:
    return float(stats.kstest(sample.double().flatten().numpy(), law.cdf).statistic)


def critical(count: int) -> float:
    return math.sqrt(-math.log(ALPHA / 2) / (2 * count))


def check(sample: torch.Tensor, distribution: str, std: float) -> None:
    assert distance(sample, scipys(distribution, std)) < critical(sample.numel())
    assert distance(1.03 * sample, scipys(distribution, std)) > critical(sample.numel())  # the twin: 3 % wider


@pytest.mark.parametrize("distribution", ["truncated_normal", "untruncated_normal", "uniform"])
@pytest.mark.parametrize("mode", MODES)
def test_variance_is_scale_over_fan(mode, distribution):
    sample = fastinit.variance_scaling_(torch.empty(SHAPE), 1.7, mode, distribution, stream=STREAM)
    check(sample, distribution, math.sqrt(1.7 / MODES[mode]))


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_what_they_mean_elsewhere(name):
    variance, distribution = NAMES[name]
    sample = getattr(fastinit, name)(torch.empty(SHAPE), stream=STREAM)
    check(sample, distribution, math.sqrt(variance))


def test_laws_are_those_of_the_plain_initialisers():
    """Same parameters, same bits."""
    std = math.sqrt(2.0 / FAN_IN) / 0.87962566103423978
    cut = fastinit.trunc_normal_(torch.empty(SHAPE), 0.0, std, -2 * std, 2 * std, stream=STREAM)
    assert same_bits(fastinit.he_normal_(torch.empty(SHAPE), stream=STREAM), cut)
    xavier = fastinit.xavier_uniform_(torch.empty(SHAPE), stream=STREAM)
    assert same_bits(fastinit.glorot_uniform_(torch.empty(SHAPE), stream=STREAM), xavier)
    unit = fastinit.uniform_unit_scaling_(torch.empty(SHAPE), 1.43, stream=STREAM)
    bound = 1.43 * math.sqrt(3 / FAN_IN)
    assert -bound <= unit.min() < -0.999 * bound
    assert 0.999 * bound < unit.max() <= bound


def test_the_constant_is_the_truncated_laws():
    assert TruncNormal(0.0, 1.0, -2.0, 2.0).std == pytest.approx(0.87962566103423978, rel=1e-15)


def test_a_second_call_draws_the_same():
    """From the fast path, whatever axes were given; other axes draw another law."""
    for options in ({}, {"layout": "ioss"}, {"groups": 2}, {"fan_in": 77}):
        first, second = (fastinit.he_normal_(torch.empty(8, 6, 3, 3), stream=STREAM, **options) for _ in range(2))
        assert same_bits(first, second)
        plain = fastinit.he_normal_(torch.empty(8, 6, 3, 3), stream=STREAM)
        assert same_bits(first, plain) == (options in ({}, {"groups": 2}))  # groups change fan_out alone


# --- fans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_fans_of_convolutions_are_their_connections(transposed, groups):
    """How many inputs reach an output in the middle, and the other way round, by autograd."""
    cls = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    module = cls(8, 12, (3, 5), groups=groups, bias=False)
    torch.nn.init.ones_(module.weight)
    inputs = torch.ones(1, 8, 20, 20, requires_grad=True)
    outputs = module(inputs)
    (reached,) = torch.autograd.grad(outputs[0, 0, 10, 10], inputs, retain_graph=True)
    fan_in = int((reached != 0).sum())
    fan_out = sum(
        int(torch.autograd.grad(outputs[0, c, y, x], inputs, retain_graph=True)[0][0, 0, 10, 10] != 0)
        for c in range(12)
        for y in range(5, 16)
        for x in range(5, 16)
    )
    layout = "ioss" if transposed else None
    assert fans(module.weight.shape, axes(layout, None, None, groups)) == (fan_in, fan_out)


def test_fans_that_are_given_count():
    assert fans((6, 4), axes(None, 10, None, 1)) == (10, 6)
    assert fans((6, 4), axes("io", None, 10, 1)) == (6, 10)
    assert fans((7,), axes(None, 3, 5, 1)) == (3, 5)
    bias = fastinit.kaiming_uniform_(torch.empty(7), math.sqrt(5), fan_in=3, stream=STREAM)
    same_fan = [fastinit.he_normal_(torch.empty(n), fan_in=3, stream=STREAM)[:5] for n in (5, 7)]
    assert same_bits(*same_fan)
    bound = math.sqrt(3) * torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5)) / math.sqrt(3)
    assert same_bits(bias, fastinit.uniform_(torch.empty(7), -bound, bound, stream=STREAM))


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"])
def test_torchs_names_take_fans_and_groups(name):
    function = getattr(fastinit, name)
    transposed, straight = torch.empty(8, 6, 3, 3), torch.empty(12, 4, 3, 3)
    # 8 inputs and 12 outputs in two groups: 4 inputs an output and 6 outputs an input, either way.
    a = function(transposed, layout="ioss", groups=2, stream=STREAM)
    b = function(straight, groups=2, stream=STREAM)
    c = function(torch.empty(8, 6, 3, 3), fan_in=36, fan_out=54, stream=STREAM)
    assert same_bits(a, b.reshape(8, 6, 3, 3))
    assert same_bits(a, c)
    torch.manual_seed(1)
    theirs = function(torch.empty(8, 6, 3, 3), fan_in=36, fan_out=54, fast=False)
    assert theirs.std().item() == pytest.approx(a.std().item(), rel=0.2)


def test_experts_do_not_count():
    whole = fastinit.lecun_normal_(torch.empty(5, 30, 20), layout="bio", stream=STREAM)
    one = fastinit.lecun_normal_(torch.empty(150, 20), layout="io", fan_in=30, stream=STREAM)
    assert same_bits(whole.view(150, 20), one)


# --- depth and width ---------------------------------------------------------------------------


def test_normals_that_follow_the_depth():
    """GPT-2's and Megatron's for 12 layers."""
    drawn = fastinit.depth_scaled_normal_(torch.empty(400), 0.02, 12, stream=STREAM)
    assert same_bits(drawn, fastinit.normal_(torch.empty(400), 0.0, 0.02 / math.sqrt(24), stream=STREAM))
    for depth in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number of layers above 0"):
            fastinit.depth_scaled_normal_(torch.empty(3), 0.02, depth)


@pytest.mark.parametrize(("role", "divisor"), [("input", 1), ("hidden", 2), ("output", 4)])
def test_normals_that_follow_the_width(role, divisor):
    drawn = fastinit.mup_normal_(torch.empty(400), 0.02, 4, role, stream=STREAM)
    assert same_bits(drawn, fastinit.normal_(torch.empty(400), 0.0, 0.02 / divisor, stream=STREAM))


def test_widths_that_are_none():
    with pytest.raises(ValueError, match="role is one of input, hidden, output; got 'x'"):
        fastinit.mup_normal_(torch.empty(3), role="x")
    for width in (0, -1, math.nan):
        with pytest.raises(ValueError, match="width_mult is a number above 0"):
            fastinit.mup_normal_(torch.empty(3), width_mult=width)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "fan"}, ValueError, "mode is one of fan_in, fan_out, fan_avg, fan_geo_avg; got 'fan'"),
        ({"distribution": "normal"}, ValueError, "JAX's normal is untruncated_normal, Keras's truncated_normal"),
        ({"scale": 0}, ValueError, "scale > 0, got 0"),
        ({"scale": -1.0}, ValueError, "scale > 0, got -1"),
        ({"scale": math.nan}, ValueError, "scale > 0, got nan"),
        ({"scale": "a"}, ValueError, "scale > 0, got 'a'"),
        ({"fan_in": 0}, ValueError, "fan_in is a whole number above 0, got 0"),
        ({"fan_out": 2.5}, ValueError, "fan_out is a whole number above 0, got 2.5"),
        ({"groups": 0}, ValueError, "groups is a whole number above 0, got 0"),
        ({"groups": 5}, ValueError, "5 groups do not divide"),
        ({"layout": "oo"}, ValueError, "needs input and output features"),
        ({"layout": "oi", "groups": 3, "fast": 0}, ValueError, "fast is True, False or None"),
    ],
    ids=str,
)
def test_what_is_refused(options, error, words):
    tensor = torch.zeros(6, 4)
    with pytest.raises(error, match=words):
        fastinit.variance_scaling_(tensor, **options)
    assert not tensor.any()


def test_vectors_need_their_fans():
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        fastinit.he_normal_(torch.empty(5))
    with pytest.raises(ZeroDivisionError, match=r"divides by fan_in, which is 0 for shape \(3, 0\)"):
        variance_std((3, 0), 1.0, "fan_in", None)


def test_nothing_to_fill_is_left_alone():
    with pytest.warns(UserWarning, match="zero-element"):
        assert fastinit.he_normal_(torch.empty(0, 5)).shape == (0, 5)


def test_torch_draws_where_it_is_asked_to():
    torch.manual_seed(2)
    ours = fastinit.lecun_uniform_(torch.empty(40, 30), fast=False)
    torch.manual_seed(2)
    bound = math.sqrt(3.0) * math.sqrt(1 / 30)
    assert same_bits(ours, torch.nn.init.uniform_(torch.empty(40, 30), -bound, bound))
    assert fastinit.lecun_normal_(torch.empty(4, 3, dtype=torch.float64), fast=True, stream=STREAM).isfinite().all()


# --- bounds in standard deviations -------------------------------------------------------------


def test_bounds_in_standard_deviations():
    cut = fastinit.trunc_normal_(torch.empty(50_000), 1.0, 0.02, bounds="sigma", stream=STREAM)
    assert same_bits(cut, fastinit.trunc_normal_(torch.empty(50_000), 1.0, 0.02, 0.96, 1.04, stream=STREAM))
    assert distance(cut, stats.truncnorm(-2, 2, 1.0, 0.02)) < critical(50_000)
    as_values = fastinit.trunc_normal_(torch.empty(50_000), 0.0, 0.02, stream=STREAM)
    assert as_values.abs().max() > 0.06  # cut at 100 standard deviations, which is nowhere
    one_sided = fastinit.trunc_normal_(torch.empty(1000), 5.0, 2.0, 0.0, math.inf, bounds="sigma", stream=STREAM)
    assert one_sided.min() >= 5
    with pytest.raises(ValueError, match="bounds are in units of"):
        fastinit.trunc_normal_(torch.empty(3), bounds="std")
