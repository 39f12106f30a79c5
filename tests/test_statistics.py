"""Right distribution: one-sample tests against the law, two-sample tests against torch.nn.init.

ALPHA is the false-alarm rate of each test here; the seeds are fixed, so a failure means that the code changed. The
one-sample and two-sample tests are run again on laws whose std is 1 % off and must then fail: they can.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from common import FLOAT8, FLOATS, LAW_DTYPES, LAWS, name_of, slow_unless
from scipy import stats

import fastinit
from fastinit.drawing import engines
from fastinit.kernels.contract import Draw
from fastinit.kernels.dtypes import FORMATS
from fastinit.laws import Cauchy, Exponential, LogNormal, Normal, TruncNormal, Uniform
from fastinit.laws.floats import at_least, at_most

ALPHA = 1e-4
# A std 1 % off moves the distribution function by 0.0024 (normal) or more; this many samples see 0.0016.
ENOUGH = 1 << 21


def critical(count: float) -> float:
    """The Kolmogorov distance that `count` samples exceed with probability ALPHA (Smirnov's limit)."""
    return math.sqrt(-math.log(ALPHA / 2) / (2 * count))


def counted(sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sorted numbers of a sample, of narrow dtypes a short list, and how often each occurs."""
    ordered = torch.from_numpy(np.sort(sample.double().numpy()))  # ten times as fast as torch's
    return ordered.unique_consecutive(return_counts=True)


def one_sample(sample: torch.Tensor, cdf) -> float:
    """The Kolmogorov distance of a sample of a continuous law, rounded to the sample's dtype.

    The rounded law puts at each held value all mass up to the middle to its upper neighbour.
    """
    held, counts = counted(sample)
    above = counts.cumsum(0).double() / sample.numel()
    before = above - counts.double() / sample.numel()
    lower, upper = gaps(held, sample.dtype)
    return max((above - cdf(held + upper / 2)).abs().max().item(), (before - cdf(held - lower / 2)).abs().max().item())


def gaps(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The distances to the lower and to the upper neighbour in `dtype`."""
    form = FORMATS[dtype]
    mantissa, exponent = torch.frexp(values)
    exponent = torch.where(values == 0, form.smallest, exponent)
    one = torch.ones(()).double()
    outward = torch.ldexp(one, (exponent - form.precision).clamp(min=form.smallest).double())
    # Towards zero from a power of two, numbers lie twice as dense.
    inward = torch.where(mantissa.abs() == 0.5, (outward / 2).clamp(min=2.0**form.smallest), outward)
    return torch.where(values > 0, inward, outward), torch.where(values < 0, inward, outward)


def two_sample(a: torch.Tensor, b: torch.Tensor) -> float:
    """The Kolmogorov distance of two samples."""
    both = [counted(sample) for sample in (a, b)]
    values = torch.cat([held for held, _ in both])
    parts = []
    for held, counts in both:
        shares = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).double() / counts.sum()
        parts.append(shares[torch.searchsorted(held, values, right=True)])
    return (parts[0] - parts[1]).abs().max().item()


def truth(law):
    """The law's distribution function for tensors, by torch's ndtr: not fastinit's own."""
    if isinstance(law, Uniform):
        return lambda x: ((x - law.a) / (law.b - law.a)).clamp(0.0, 1.0)
    if isinstance(law, Exponential):
        return lambda x: -torch.expm1(-law.rate * x.clamp(min=0))
    if isinstance(law, Cauchy):
        return lambda x: 0.5 + torch.atan((x - law.median) / law.sigma) / math.pi
    mass_below = torch.special.ndtr
    if isinstance(law, Normal):
        return lambda x: mass_below((x - law.mean) / law.std)
    if isinstance(law, LogNormal):
        return lambda x: mass_below((x.clamp(min=0).log() - law.log_mean) / law.log_std)
    low, high = torch.tensor([law.a, law.b]).double().sub(law.centre).div(law.scale)
    if low > 0:  # from the right tail, where the masses are not all near 1
        whole = mass_below(-low) - mass_below(-high)
        return lambda x: ((mass_below(-low) - mass_below((law.centre - x) / law.scale)) / whole).clamp(0.0, 1.0)
    whole = mass_below(high) - mass_below(low)
    return lambda x: ((mass_below((x - law.centre) / law.scale) - mass_below(low)) / whole).clamp(0.0, 1.0)


def wider(law, factor=1.01):
    """The same law with its std 1 % (or more) larger, about its mean."""
    if isinstance(law, Uniform):
        return Uniform(law.mean - factor * (law.mean - law.a), law.mean + factor * (law.b - law.mean))
    if isinstance(law, Normal):
        return Normal(law.mean, factor * law.std)
    if isinstance(law, LogNormal):
        return LogNormal(law.log_mean, factor * law.log_std)
    if isinstance(law, Cauchy):  # whose distribution function moves by two thirds of the normal's
        return Cauchy(law.median, law.sigma * factor**1.5)
    if isinstance(law, Exponential):  # which has no mean of its own
        return Exponential(law.rate / factor)
    return TruncNormal(
        law.mean + factor * (law.centre - law.mean),
        factor * law.scale,
        law.mean + factor * (law.a - law.mean),
        law.mean + factor * (law.b - law.mean),
    )


def drawn(engine: str, law, dtype, shape, seed=2026) -> torch.Tensor:
    out = torch.empty(shape, dtype=dtype)
    found = engines.load(engine)
    assert not isinstance(found, str)
    found.fill(out, Draw(*law.parameters(dtype), seed, 0), 0, None)
    return out.flatten()


@pytest.mark.parametrize(("name", "dtype"), LAW_DTYPES, ids=str)
def test_every_law_follows_its_distribution(name, dtype):
    law = LAWS[name]
    sample = drawn("cpu", law, dtype, (ENOUGH,))
    assert one_sample(sample, clipped(truth(law), ends(sample))) < critical(ENOUGH)


def ends(sample):
    numbers = sample.double()
    return torch.stack([numbers.min(), numbers.max()])


def clipped(cdf, edges):
    """A law whose rounding would cross a bound holds that mass at the last value inside."""

    def inside(x):
        x_inside = cdf(x)
        x_inside = torch.where(x >= edges[1], torch.ones_like(x), x_inside)
        return torch.where(x <= edges[0], torch.zeros_like(x), x_inside)

    return inside


# In [-3.02, -3] bfloat16 has two numbers, whose shares hardly move with the width, and float8 one.
UNSEEN = {("narrow_left", torch.bfloat16), *(("narrow_left", dtype) for dtype in FLOAT8)}
# Far out float8 has two to seven numbers, and none near where the distribution functions differ most: 10 % is seen.
COARSE = {(name, dtype) for name in ("wide_right", "tail", "tail_left") for dtype in FLOAT8}
SEEN = [(name, dtype) for name in LAWS for dtype in FLOATS if (name, dtype) not in UNSEEN | COARSE]


OFF = [(*case, 1.01) for case in SEEN] + [(*case, 1.1) for case in sorted(COARSE, key=str)]


@pytest.mark.parametrize(
    ("name", "dtype", "factor"), slow_unless(lambda case: case[1] is torch.float32 or case[0] == "normal", OFF), ids=str
)
def test_the_one_sample_test_sees_a_law_one_percent_off(name, dtype, factor):
    law = LAWS[name]
    sample = drawn("cpu", wider(law, factor), dtype, (ENOUGH,))
    assert one_sample(sample, clipped(truth(law), ends(sample))) > critical(ENOUGH)


# Each initialiser with its law, for a shape.
INITIALISERS = {
    "uniform_": ((-0.5, 1.5), lambda shape: Uniform(-0.5, 1.5)),
    "normal_": ((0.25, 2.0), lambda shape: Normal(0.25, 2.0)),
    "trunc_normal_": ((), lambda shape: TruncNormal(0.0, 1.0, -2.0, 2.0)),
    "trunc_normal_ std": ((0.0, 0.02), lambda shape: Normal(0.0, 0.02)),
    "trunc_normal_ narrow": ((0.0, 10.0), lambda shape: TruncNormal(0.0, 10.0, -2.0, 2.0)),
    "xavier_uniform_": ((1.5,), lambda shape: centred(1.5 * math.sqrt(6 / sum(two_fans(shape))))),
    "xavier_normal_": ((), lambda shape: Normal(0.0, math.sqrt(2 / sum(two_fans(shape))))),
    # To the last bit as torch has it: float8 may hold 1 / sqrt(fan_in), and a bound just above it lets that in.
    "kaiming_uniform_": ((math.sqrt(5),), lambda shape: centred(math.sqrt(3) * kaiming_std(two_fans(shape)[0]))),
    "kaiming_normal_": (
        (0, "fan_out", "relu"),
        lambda shape: Normal(0.0, math.sqrt(2 / two_fans(shape)[1])),
    ),
}
SHAPES = [(1448, 1449), (512, 16, 16, 16), (128, 64, 4, 8, 8)]
FEWER = {"cpu": (512, 1449), "eager": (61, 1449), "reference": (61, 1449)}


def centred(bound: float) -> Uniform:
    return Uniform(-bound, bound)


def kaiming_std(fan):
    return torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5)) / math.sqrt(fan)


def two_fans(shape):
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


# The default engine in float32 on every shape, of which only the fans matter; every dtype, and the other engines, which
# have its bits (tests/test_engines.py), on fewer samples.
PLACES = [("cpu", shape, torch.float32) for shape in SHAPES]
PLACES += [(engine, shape, dtype) for engine, shape in FEWER.items() for dtype in FLOATS]
USUAL = slow_unless(lambda place: place in (PLACES[0], PLACES[2]) or place[0::2] == ("eager", torch.bfloat16), PLACES)


@pytest.mark.parametrize(("engine", "shape", "dtype"), USUAL, ids=[f"{e}-{len(s)}d-{name_of(d)}" for e, s, d in PLACES])
@pytest.mark.parametrize("name", INITIALISERS)
def test_two_samples_against_torch(name, dtype, shape, engine):
    """fastinit's initialiser and torch's draw from one law."""
    arguments, law = INITIALISERS[name]
    function = name.split()[0]
    law = law(shape)
    ours = torch.empty(shape, dtype=dtype)
    theirs = torch.empty(shape, dtype=torch.float32 if dtype in FLOAT8 else dtype)
    with fastinit.use_engine(engine):
        getattr(fastinit, function)(ours, *arguments)
    getattr(torch.nn.init, function)(theirs, *arguments)
    if dtype in FLOAT8:  # which torch does not draw: its float32, within the bounds that ours keeps to, rounded
        theirs = theirs.clamp(*law.held(dtype)).to(dtype)
    # torch draws half-precision uniforms on a lattice of 2^-8 or 2^-11 of the interval: its own error is the slack.
    slack = 2.0 ** -FORMATS[dtype].precision if dtype in (torch.bfloat16, torch.float16) else 0.0
    bound = critical(ours.numel() / 2) + slack
    assert two_sample(ours.flatten().double(), theirs.flatten().double()) < bound
    mean, std, errors = law.mean, law.std, 5.0
    if dtype in FLOAT8:  # rounding moves the moments, of both sides alike: two samples' errors instead of one's
        mean, std, errors = theirs.double().mean(), theirs.double().std(), 5 * math.sqrt(2)
    assert abs(ours.double().mean() - mean) < errors * std / math.sqrt(ours.numel()) + slack * std
    assert abs(ours.double().std() / std - 1) < errors / math.sqrt(ours.numel()) + slack


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_"])
def test_the_two_sample_test_sees_a_law_one_percent_off(name):
    law = INITIALISERS[name][1](None)
    count = 2 * ENOUGH
    theirs = torch.empty(count)
    getattr(torch.nn.init, name)(theirs, *INITIALISERS[name][0])
    right, wrong = (
        drawn("cpu", law, torch.float32, (count,)),
        drawn("cpu", wider(law), torch.float32, (count,)),
    )
    assert two_sample(right.double(), theirs.double()) < critical(count / 2)
    assert two_sample(wrong.double(), theirs.double()) > critical(count / 2)


def test_neighbours_are_independent():
    """Lanes share Philox counters and normals come in pairs: neither may show in pairs at any of these distances."""
    sample = drawn("cpu", Normal(0.0, 1.0), torch.float32, (1 << 20,))
    cells = (torch.special.ndtr(sample.double()) * 16).long().clamp(0, 15)
    distances = (1, 2, 15, 16, 17, 31, 32, 48, 63, 64)
    for distance in distances:
        pairs = torch.bincount(cells[:-distance] * 16 + cells[distance:], minlength=256).double()
        expected = pairs.sum() / 256
        chi_square = ((pairs - expected) ** 2 / expected).sum().item()
        assert stats.chi2.sf(chi_square, 255) > ALPHA / len(distances)


def test_independence_test_can_fail():
    sample = drawn("cpu", Normal(0.0, 1.0), torch.float32, (1 << 20,))
    sample[16:] += 0.02 * sample[:-16].clone()
    cells = (torch.special.ndtr(sample.double()) * 16).long().clamp(0, 15)
    pairs = torch.bincount(cells[:-16] * 16 + cells[16:], minlength=256).double()
    expected = pairs.sum() / 256
    assert stats.chi2.sf((((pairs - expected) ** 2) / expected).sum().item(), 255) < ALPHA


def test_tails_of_the_normal():
    """Beyond 4, 5 and 6 standard deviations, where a lattice of 24 bits would show: Poisson counts."""
    count = 1 << 27
    out = torch.empty(1 << 22)
    counts = dict.fromkeys((4, 5, 6), 0)
    cpu = engines.load("cpu")
    for block in range(count // out.numel()):
        cpu.fill(out, Draw("normal", (0.0, 1.0), 9, 9), block * out.numel(), None)
        for bound in counts:
            counts[bound] += int((out.abs() > bound).sum())
    for bound, seen in counts.items():
        expected = count * 2 * stats.norm.sf(bound)
        assert ALPHA / 2 < stats.poisson.cdf(seen, expected) < 1 - ALPHA / 2 + stats.poisson.pmf(seen, expected)


BOUNDED = [
    (Uniform(0.1, 0.7), False),
    (Uniform(-1.0, 1.0), False),
    (Uniform(1.0, 1.02), False),
    (TruncNormal(0.0, 1.0, -0.3, 2.1), True),
    (TruncNormal(0.0, 0.02, -0.05, 0.05), True),
    (TruncNormal(3.0, 0.1, 3.28, 3.31), True),
    (TruncNormal(0.0, 1.0, 4.1, 4.2), True),
]


@pytest.mark.parametrize(
    ("law", "closed", "dtype"),
    # float8 has no number in the last two intervals; see the next test.
    [(*case, dtype) for case in BOUNDED for dtype in FLOATS if not (dtype in FLOAT8 and case in BOUNDED[-2:])],
    ids=str,
)
def test_no_sample_lies_outside(law, closed, dtype):
    """Bounds hold for the numbers that the dtype can hold; torch's own half uniforms may return b."""
    sample = drawn("cpu", law, dtype, (1 << 20,)).double()
    assert sample.min() >= law.a
    assert sample.max() <= law.b if closed else sample.max() < law.b


def test_an_interval_without_a_number_gives_the_nearest_one():
    """No bfloat16 but 1 lies in [1, 1.001), and none in [3.3, 3.31]; no float8 in [3.28, 3.31] and [4.1, 4.2]."""
    assert drawn("cpu", Uniform(1.0, 1.001), torch.bfloat16, (100,)).unique().tolist() == [1.0]
    assert drawn("cpu", TruncNormal(3.0, 0.1, 3.3, 3.31), torch.bfloat16, (100,)).unique().tolist() == [3.296875]
    for (law, _), dtype in itertools.product(BOUNDED[-2:], FLOAT8):
        assert at_least(law.a, dtype) > at_most(law.b, dtype)
        expected = torch.tensor(law.a).to(dtype).item()
        assert drawn("cpu", law, dtype, (100,)).double().unique().tolist() == [expected]
