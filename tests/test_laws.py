"""Laws and what they are made of: numbers of a dtype, the normal distribution, moments, accuracy of the arithmetic."""

from __future__ import annotations

import math
from decimal import Decimal

import mpmath
import numpy as np
import pytest
import torch
from common import FLOAT8, FLOATS, LAWS, bits, every_number, name_of
from hypothesis import given, strategies as st
from scipy import special, stats

from fastinit.kernels.arithmetic import coefficients
from fastinit.kernels.arithmetic.transforms import (
    far_quantile,
    inner_unit,
    minus_two_log,
    minus_two_log_finely,
    near_quantile,
    signed,
    turn,
)  # fmt: skip
from fastinit.kernels.contract import SAMPLERS
from fastinit.kernels.dtypes import FORMATS
from fastinit.kernels.plain.reference import ARITHMETIC, rounded
from fastinit.laws import Law, Normal, TruncNormal, Uniform, Words, gaussian
from fastinit.laws.floats import at_least, at_most, below, nearest

floats = st.floats(allow_nan=False, allow_infinity=False, width=64)


def half_at(place: int) -> float:
    """The float16 that many places above zero."""
    magnitude = float(torch.tensor(abs(place), dtype=torch.int16).view(torch.float16))
    return math.copysign(magnitude, place)


def numbers_near(x: float, dtype: torch.dtype) -> list[float]:
    """All numbers of `dtype` around x, by torch."""
    if dtype in FLOAT8:  # all there are, and what lies beyond the greatest
        return [-math.inf, *every_number(dtype).unique().tolist(), math.inf]
    held = torch.tensor(x, dtype=torch.float64).to(dtype)
    if dtype is torch.float16:  # torch has no nextafter for it
        pattern = held.view(torch.int16).item()
        place = -(pattern + 2**15) if pattern < 0 else pattern  # numbers in order, zero in the middle
        halves = [half_at(k) for k in range(place - 2, place + 3)]
        return sorted({v for v in halves if math.isfinite(v)})
    low = torch.nextafter(torch.nextafter(held, held - math.inf), held - math.inf)
    values = [low]
    for _ in range(4):
        values.append(torch.nextafter(values[-1], values[-1] + math.inf))
    return sorted({float(v) for v in values if v.isfinite()})


@given(st.floats(-60000, 60000) | st.floats(-1e-4, 1e-4) | st.floats(-1e-7, 1e-7), st.sampled_from(FLOATS))
def test_neighbours_of_a_number(x, dtype):
    near = numbers_near(x, dtype)
    assert at_most(x, dtype) == max(v for v in near if v <= x)
    assert at_least(x, dtype) == min(v for v in near if v >= x)
    assert below(x, dtype) == max(v for v in near if v < x)
    assert nearest(x, dtype) in (at_most(x, dtype), at_least(x, dtype))


@given(floats, st.sampled_from([torch.float32, torch.float64]))
def test_rounding_is_nearest_even(x, dtype):
    with np.errstate(over="ignore"):
        assert nearest(x, dtype) == (float(np.float32(x)) if dtype is torch.float32 else x)


def test_ends_of_a_dtype():
    assert at_most(1e300, torch.float32) == FORMATS[torch.float32].greatest
    assert at_least(-1e300, torch.float16) == -65504
    assert at_most(math.inf, torch.bfloat16) == FORMATS[torch.bfloat16].greatest == torch.finfo(torch.bfloat16).max
    assert nearest(1e39, torch.float32) == math.inf
    assert below(0.0, torch.float32) == -(2.0**-149)
    assert below(1.0, torch.float32) == 1 - 2.0**-24
    assert (at_most(math.inf, torch.float8_e4m3fn), at_least(-1e9, torch.float8_e5m2)) == (448.0, -57344.0)
    assert (below(448.0, torch.float8_e4m3fn), below(0.0, torch.float8_e4m3fn)) == (416.0, -(2.0**-9))
    for dtype in FLOATS:
        assert FORMATS[dtype].greatest == torch.finfo(dtype).max
        assert math.ldexp(1.0, FORMATS[dtype].smallest) == torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


@pytest.mark.parametrize("z", [0, 0.1, 1, 2.5, 5.99, 6.01, 10, 38, 1000])
def test_the_normal_distribution_in_decimal(z):
    mpmath.mp.dps = 60
    exact = mpmath.erfc(mpmath.mpf(z) / mpmath.sqrt(2)) / 2
    got = mpmath.mpf(str(gaussian.tail(Decimal(z))))
    assert abs(got / exact - 1) < mpmath.mpf("1e-38")
    if z:
        below_it = mpmath.mpf(str(gaussian.tail(Decimal(z).copy_negate())))
        assert abs(below_it / (1 - exact) - 1) < mpmath.mpf("1e-38")
        found = gaussian.quantile_of_tail(gaussian.log_tail(Decimal(z)), Decimal(z) + 1)
        assert abs(found - Decimal(z)) < Decimal("1e-25")


def cdf(law: Law, x: float) -> float:
    return law.cdf(torch.tensor(x, dtype=torch.float64)).item()


@given(st.floats(-3, 3), st.floats(0.05, 3), st.floats(-6, 6), st.floats(0.01, 6))
def test_moments_and_distribution_function(centre, scale, low, length):
    law = TruncNormal(centre, scale, centre + scale * low, centre + scale * (low + length))
    frozen = stats.truncnorm(low, low + length, centre, scale)
    assert math.isclose(law.mean, frozen.mean(), rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(law.std, frozen.std(), rel_tol=1e-4)
    for share in (0.01, 0.5, 0.9):
        assert math.isclose(cdf(law, frozen.ppf(share)), share, abs_tol=1e-8)
    assert (cdf(law, law.a - 1), cdf(law, law.b + 1)) == (0.0, 1.0)


def test_moments_of_the_plain_laws():
    assert (Uniform(1.0, 3.0).mean, Uniform(1.0, 3.0).std) == (2.0, 2 / math.sqrt(12))
    assert cdf(Uniform(1.0, 3.0), 1.5) == 0.25
    assert (cdf(Uniform(1.0, 1.0), 0.9), cdf(Uniform(1.0, 1.0), 1.0)) == (0.0, 1.0)
    assert cdf(Normal(1.0, 2.0), 1.0) == 0.5
    assert math.isclose(cdf(Normal(1.0, 2.0), 3.0), special.ndtr(1.0))
    assert (cdf(Normal(1.0, 0.0), 0.9), cdf(Normal(1.0, 0.0), 1.0)) == (0.0, 1.0)
    assert cdf(Words(), -1.0) == 0.5


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        (TruncNormal(0, 1, -2, 2), "truncated_central"),
        (TruncNormal(0, 1, -3, 3), "truncated_central"),
        (TruncNormal(0, 1, -3.1, 3), "truncated_wide"),
        (TruncNormal(0, 1, -math.inf, 0), "truncated_wide"),
        (TruncNormal(0, 1, 0.1, 0.3), "truncated_narrow"),
        (TruncNormal(0, 1e9, -2, 2), "truncated_narrow"),
        (TruncNormal(0, 1, 4, 5), "truncated_tail"),
        (TruncNormal(0, 1, 100, math.inf), "truncated_tail"),
        (TruncNormal(0, 0.02, -2, 2), "normal"),
        (TruncNormal(0, 1, -6.8, 6.8), "normal"),
        (TruncNormal(0, 1, -6.8, 6.7), "truncated_wide"),
        (TruncNormal(-1.0, 1e-300, 0.0, 1.0), "uniform"),
    ],
    ids=str,
)
def test_which_arithmetic_serves(law, kind):
    assert law.parameters(torch.float32)[0] == kind


def quantiles(law: TruncNormal, words: np.ndarray, dtype: type) -> np.ndarray:
    """The law's samples for these (high) words, through the arithmetic."""
    width = 8 * np.dtype(dtype).itemsize
    kind, parameters = law.parameters(torch.float64 if width == 64 else torch.float32)
    high = words.astype(np.uint32)
    low = np.zeros_like(high) if width == 64 else high
    sampler = SAMPLERS[kind]
    if (head := sampler.series_after) is not None:
        parameters = (*parameters[:head], parameters[head:])
    return ARITHMETIC[width](sampler.function)(low, high, *parameters)


BOUNDS = [
    (-2, 2), (-3, 3), (-1, 6.5), (0.5, 3.9), (-math.inf, 0.2), (3, 3.9), (-0.1, 0.1), (3, 3.05), (0.001, 0.0011),
    (4, 5), (5, math.inf), (20, 21), (-9, -8), (30, 30.0005),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_truncated_quantiles_are_accurate(bounds, dtype):
    """Each sample against the exact quantile of its word, in 40 digits, in every part of the interval."""
    law = TruncNormal(0.0, 1.0, *map(float, bounds))
    words = np.concatenate([np.geomspace(1, 2**31, 60), 2**32 - np.geomspace(1, 2**31, 60)]).astype(np.uint64)
    kind = law.parameters(torch.float64 if dtype is np.float64 else torch.float32)[0]
    # Tails and intervals right of the mean are counted from their far end.
    backwards = law.a >= 0 if kind != "truncated_narrow" else False
    mpmath.mp.dps = 40
    low, high = map(mpmath.mpf, bounds)
    flip = low > 0
    inside = upper_tail(low) - upper_tail(high) if flip else upper_tail(-high) - upper_tail(-low)
    worst = mpmath.mpf(0)
    for word, value in zip(words.tolist(), quantiles(law, words, dtype).tolist(), strict=True):
        share = (mpmath.mpf(word) + (0.5 if dtype is np.float32 else 2.0**-33)) / 2**32
        z = mpmath.mpf(value)
        below_z = (upper_tail(low) - upper_tail(z) if flip else upper_tail(-z) - upper_tail(-low)) / inside
        density = mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi) / inside
        worst = max(worst, abs(below_z - (1 - share if backwards else share)) / density)
    # Three units in the last place of the greatest value; float64's far tails are fitted to 1e-12.
    unit = np.spacing(dtype(max(abs(b) for b in bounds if math.isfinite(b)) if math.isfinite(sum(bounds)) else 8.0))
    fitted = {"truncated_tail": 1e-12, "truncated_wide": 3e-13}.get(kind, 5e-15) if dtype is np.float64 else 6e-7
    assert worst < max(3 * float(unit), fitted)


def upper_tail(z):
    return mpmath.erfc(z / mpmath.sqrt(2)) / 2


def test_radius_and_angle_are_within_two_units_in_the_last_place():
    """float32 against float64, over words of every size and the ends of the range."""
    near_ends = np.concatenate([np.arange(1 << 16), 2**32 - 1 - np.arange(1 << 16)])
    words = np.concatenate([np.arange(0, 2**32, 1021), near_ends]).astype(np.uint64).astype(np.uint32)
    bound = ARITHMETIC[32]
    x = bound(inner_unit)(words, words)
    assert x.max() < 1
    assert x.min() > 0
    assert ulps(np.sqrt(bound(minus_two_log)(x, 0.0)), np.sqrt(-2 * np.log(x.astype(np.float64)))) < 2
    even = words & ~np.uint32(3)  # bits 0 and 1 only choose the arc
    angle = bound(signed)(even, even).astype(np.float64) * np.pi / 4
    cosine, sine = bound(turn)(even, even)
    assert ulps(sine[angle != 0], np.sin(angle[angle != 0])) < 2
    assert ulps(cosine, np.cos(angle)) < 2


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    return float((np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def test_the_four_arcs_cover_the_circle_evenly():
    words = np.arange(0, 2**32, 4093, dtype=np.uint64).astype(np.uint32)
    cosine, sine = ARITHMETIC[32](turn)(words, words)
    angle = np.arctan2(sine.astype(np.float64), cosine.astype(np.float64)) / (2 * np.pi) + 0.5
    assert stats.kstest(angle, "uniform").statistic < 1e-4
    assert np.abs(cosine.astype(np.float64) ** 2 + sine.astype(np.float64) ** 2 - 1).max() < 3e-7


@pytest.mark.parametrize("part", ["near", "far"])
def test_normal_quantile_is_within_4e_7(part):
    """|z| < 7 against float64, for tail masses as float32 holds them."""
    z = np.linspace(0, 3.046, 1_000_001) if part == "near" else np.linspace(3.046, 7, 1_000_001)
    q = special.ndtr(-z).astype(np.float32)
    exact = -special.ndtri(q.astype(np.float64))
    x = q - q.astype(np.float64) ** 2
    x = x.astype(np.float32)
    bound = ARITHMETIC[32]
    if part == "near":
        got = bound(near_quantile)(q, bound(minus_two_log)(x, -coefficients.NEAR_CENTRE))
    else:
        got = bound(far_quantile)(bound(minus_two_log_finely)(x, -coefficients.FAR_CENTRE_32))
    assert np.abs(got - exact).max() < 4e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=name_of)
def test_rounding_to_half_precision_in_integers_is_ieee(dtype):
    """Around each number of the dtype, each tie between two and each of the 2^16 tops of a float32; a spread of all."""
    numbers = every_number(dtype).unique()  # -0 is among the spread
    beyond = 2 * numbers[-1] - numbers[-2]  # from halfway there numbers overflow
    ties = torch.cat([numbers[1:] + numbers[:-1], numbers[-1:] + beyond, -numbers[-1:] - beyond]) / 2
    marks = torch.cat([numbers, ties]).float().numpy().view(np.uint32)
    tops = (np.arange(2**16, dtype=np.uint64) << np.uint64(16)).astype(np.uint32)
    around = [
        (np.concatenate([marks, tops]).astype(np.int64) + shift).astype(np.uint32)
        for shift in (-0x8000, -1, 0, 1, 0x7FFF, 0x8000, 0x8001)
    ]
    spread = np.arange(0, 2**32, 65521 // 16, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate([spread, *around]).view(np.float32)
    values = values[~np.isnan(values)]
    assert np.isinf(values).any()
    with np.errstate(over="ignore"):
        got = rounded(values, dtype)
        nan = rounded(np.array([np.nan, -np.nan], np.float32), dtype)
    held = torch.from_numpy(values)
    if dtype is torch.float8_e4m3fn:  # it has no infinity: older torch makes a nan of what is too great
        held = held.clamp(-448.0, 448.0)
    assert torch.equal(bits(got), bits(held.to(dtype)))
    assert nan.isnan().all()
    # The twin: one step of one number is seen.
    bits(got)[1] ^= 1
    assert not torch.equal(bits(got), bits(held.to(dtype)))


def test_parameters_are_numbers_of_the_working_precision():
    for law in LAWS.values():
        for dtype in FLOATS:
            _, parameters = law.parameters(dtype)
            number = torch.float64 if dtype is torch.float64 else torch.float32
            assert all(isinstance(p, int) or nearest(p, number) == p for p in parameters)
