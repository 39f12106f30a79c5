"""The laws that samples follow, and what the engines need to know of each.

A law knows its moments and its distribution function exactly (tests and reports judge samples by them), and turns
itself, for an output dtype, into the arithmetic's parameters: numbers that the working precision holds, made by
correctly rounded operations only, so that they are the same on every platform.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Protocol

import torch

from . import gaussian
from .floats import at_least, at_most, below, nearest
from .kernels.formats import WIDTHS

Parameters = tuple[str, tuple[float, ...]]

# Which of the arithmetic's truncated laws serves, by bounds in standard deviations from the mean.
CENTRAL_UP_TO = 3.04  # both bounds: one polynomial for the quantile
TAIL_FROM = 4.0  # the nearer bound: the quantile of a tail
FLAT_BELOW = Decimal("1e-20")  # interval width, as below: no float64 can tell the density from a flat one
POINT_FROM = 10**20  # the nearer bound: nothing but that bound can be told apart
NARROW_UP_TO = {
    32: Decimal("0.25"),
    64: Decimal("0.03125"),
}  # interval width, times the distance from the mean where that is above 1
# How far a Box-Muller normal can reach: sqrt(-2 ln 2^-33) and sqrt(-2 ln 2^-65).
REACH = {32: 6.77, 64: 9.5}
SERIES_NARROW = 9
LATTICE = {32: 2.0**-24, 64: 2.0**-53}  # the step of a uniform number in [0, 1)
SMALLEST_NORMAL = {32: 2.0**-126, 64: 2.0**-1022}
SERIES_TAIL = {32: 14, 64: 34}


class Law(Protocol):
    """A distribution that tensors can be filled with."""

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...

    def cdf(self, x: float) -> float:
        """The probability of a sample at most x, before it is rounded to a dtype."""

    def parameters(self, dtype: torch.dtype) -> Parameters:
        """The arithmetic's law and its parameters for samples of `dtype`."""


def working(dtype: torch.dtype) -> torch.dtype:
    """The precision that samples of `dtype` are computed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


@dataclass(frozen=True)
class Words:
    """Raw Philox words, for testing: int32 tensors only."""

    mean: float = math.nan
    std: float = math.nan

    def cdf(self, x: float) -> float:
        return min(max((math.floor(x) + 2**31 + 1) / 2**32, 0.0), 1.0)

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return "words", ()


@dataclass(frozen=True)
class Uniform:
    """Uniform on [a, b); a tensor holds no value outside, as its dtype rounds."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / 2 + self.b / 2

    @property
    def std(self) -> float:
        return (self.b - self.a) / math.sqrt(12)

    def cdf(self, x: float) -> float:
        return min(max((x - self.a) / (self.b - self.a), 0.0), 1.0) if self.b > self.a else float(x >= self.a)

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return _uniform(self.a, self.b, dtype)


@functools.lru_cache(maxsize=1024)
def _uniform(a: float, b: float, dtype: torch.dtype) -> Parameters:
    number, width = working(dtype), WIDTHS[dtype]
    length = nearest(b - a, number)
    step = length * LATTICE[width]
    lowest, highest = at_least(a, dtype), below(b, dtype)
    if lowest > highest:  # no number of this dtype in [a, b)
        lowest = highest = nearest(a, dtype)
    start = at_least(a, number)
    if length > 0 and step < SMALLEST_NORMAL[width]:
        return "uniform_tiny", (start, length, lowest, _ceiling(lowest, highest))
    if lowest > start:
        return "uniform_inside", (start, step, lowest, highest)
    return "uniform", (start, step, highest)


def _ceiling(lowest: float, highest: float) -> float:
    """The upper bound, an upper bound of 0 as negative zero if tiny samples may round to one.

    The arithmetic's minimum takes the bound on a tie, a GPU's takes negative zero: this way they agree.
    """
    return -0.0 if lowest < 0 == highest else highest


@dataclass(frozen=True)
class Normal:
    """Normal with this mean and standard deviation."""

    mean: float
    std: float

    def cdf(self, x: float) -> float:
        return math.erfc((self.mean - x) / (self.std * math.sqrt(2))) / 2 if self.std > 0 else float(x >= self.mean)

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return _normal(self.mean, self.std, dtype)


@functools.lru_cache(maxsize=1024)
def _normal(mean: float, std: float, dtype: torch.dtype) -> Parameters:
    number = working(dtype)
    return "normal", (nearest(mean, number), nearest(std, number))


@dataclass(frozen=True)
class TruncNormal:
    """Normal with mean `centre` and standard deviation `scale`, given that it falls in [a, b]."""

    centre: float
    scale: float
    a: float
    b: float

    @property
    def bounds(self) -> tuple[Decimal, Decimal]:
        """The bounds in standard deviations from the centre."""
        with localcontext(gaussian.DIGITS):
            low, high = (Decimal(bound) - Decimal(self.centre) for bound in (self.a, self.b))
            return low / Decimal(self.scale), high / Decimal(self.scale)

    @functools.cached_property
    def _moments(self) -> tuple[float, float]:
        low, high = self.bounds
        with localcontext(gaussian.DIGITS):
            # In units of the density at the bound nearer to the centre, so that far tails do not underflow.
            origin = max(low, high.copy_negate(), Decimal(0))
            sign = -1 if low + high < 0 else 1
            if sign < 0:
                low, high = high.copy_negate(), low.copy_negate()
            inside = gaussian.tail_over_density(low, origin) - gaussian.tail_over_density(high, origin)
            density_low, density_high = (gaussian.density_ratio(z, origin) for z in (low, high))
            slope_low, slope_high = (
                Decimal(0) if z.is_infinite() else z * density
                for z, density in ((low, density_low), (high, density_high))
            )
            shift = (density_low - density_high) / inside
            variance = 1 + (slope_low - slope_high) / inside - shift * shift
            mean = Decimal(self.centre) + sign * Decimal(self.scale) * shift
            return float(mean), self.scale * math.sqrt(max(float(variance), 0.0))

    @property
    def mean(self) -> float:
        return self._moments[0]

    @property
    def std(self) -> float:
        return self._moments[1]

    def cdf(self, x: float) -> float:
        if not self.a < x < self.b:
            return float(x >= self.b)
        low, high = self.bounds
        with localcontext(gaussian.DIGITS):
            z = (Decimal(x) - Decimal(self.centre)) / Decimal(self.scale)
            if low + high < 0:
                return 1 - _share(high.copy_negate(), low.copy_negate(), z.copy_negate())
            return _share(low, high, z)

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return _truncated(self, dtype)


def _share(low: Decimal, high: Decimal, z: Decimal) -> float:
    """The share of the standard normal's mass in [low, high] that lies below z, for low + high >= 0."""
    origin = max(low, Decimal(0))
    left, right, here = (gaussian.tail_over_density(bound, origin) for bound in (low, high, z))
    return float((left - here) / (left - right))


def _mass(low: Decimal, high: Decimal) -> Decimal:
    """The standard normal's mass in [low, high], without cancellation in either tail."""
    with localcontext(gaussian.DIGITS):
        if low > 0:
            return gaussian.tail(low) - gaussian.tail(high)
        return gaussian.tail(high.copy_negate()) - gaussian.tail(low.copy_negate())


@functools.lru_cache(maxsize=1024)
def _truncated(law: TruncNormal, dtype: torch.dtype) -> Parameters:
    """Which arithmetic serves these bounds in this dtype, and with what parameters."""
    number, width = working(dtype), WIDTHS[dtype]
    lowest, highest = at_least(law.a, dtype), at_most(law.b, dtype)
    if lowest > highest:  # no number of this dtype in [a, b]
        lowest = highest = nearest(max(law.a, min(law.centre, law.b)), dtype)
    highest = _ceiling(lowest, highest)
    reach = REACH[width] * law.scale
    if lowest <= nearest(law.centre - reach, dtype) and nearest(law.centre + reach, dtype) <= highest:
        return Normal(law.centre, law.scale).parameters(dtype)
    low, high = law.bounds
    nearer = max(low, high.copy_negate(), Decimal(0))
    if nearer > POINT_FROM:
        return _uniform(lowest, lowest, dtype) if low > 0 else _uniform(highest, highest, dtype)
    with localcontext(gaussian.DIGITS):
        bend = (high - low) * max(
            nearer, Decimal(1)
        )  # how far the density's logarithm goes from one bound to the other
    if bend < FLAT_BELOW:
        return _uniform(law.a, law.b, dtype)
    if bend <= NARROW_UP_TO[width]:
        return "truncated_narrow", _narrow(law, number, lowest, highest)
    if nearer >= TAIL_FROM:
        return "truncated_tail", _tail(law, number, lowest, highest)
    kind = "truncated_central" if max(low.copy_abs(), high.copy_abs()) <= CENTRAL_UP_TO else "truncated_wide"
    return kind, _two_sided(law, number, lowest, highest)


def _two_sided(law: TruncNormal, number: torch.dtype, lowest: float, highest: float) -> tuple[float, ...]:
    """Masses left of the interval, right of it and inside, and the word at the untruncated median.

    An interval right of the mean is mirrored, so that the mass is always counted from the left tail.
    """
    low, high = law.bounds
    mirrored = low >= 0
    if mirrored:
        low, high = high.copy_negate(), low.copy_negate()
    with localcontext(gaussian.DIGITS):
        below_it, above_it, inside = gaussian.tail(-low), gaussian.tail(high), _mass(low, high)
        to_median = (Decimal("0.5") - below_it) / inside
        split = 2**32 - 1 if high <= 0 else min(max(int(to_median * 2**32), 0), 2**32 - 1)
        half_step = inside / 2 ** (WIDTHS[number] + 1)
        masses = [nearest(float(mass), number) for mass in (below_it + half_step, above_it + half_step, inside)]
        masses[2] *= 2.0**-32  # the mass of one step of a word
    scale = nearest(law.scale, number)
    return (split, *masses, nearest(law.centre, number), -scale if mirrored else scale, lowest, highest)


def _narrow(law: TruncNormal, number: torch.dtype, lowest: float, highest: float) -> tuple[float, ...]:
    """The quantile as a Taylor series about the middle of the interval's mass.

    With t in [-1, 1] and s = (mass inside) / (2 phi(z0)), z = z0 + sum s^n P_n(z0) t^n / n! where P_1 = 1 and
    P_(n+1) = P_n' + n z P_n (Steinbrecher and Shaw 2008, section 2).
    """
    low, high = law.bounds
    with localcontext(gaussian.DIGITS):
        sign = -1 if low < 0 and -low > high else 1  # count from the tail that the interval lies in
        if sign < 0:
            low, high = -high, -low
        z = (low + high) / 2
        for _ in range(60):
            left, right = gaussian.tail_over_density(low, z), gaussian.tail_over_density(high, z)
            step = gaussian.tail_over_density(z, z) - (left + right) / 2
            z += step
            if abs(step) <= (high - low) * Decimal("1e-30"):
                break
        else:
            raise ArithmeticError(f"no middle found for {law}")
        unit = (left - right) / 2
        polynomial, power, factorial = [Decimal(1)], Decimal(1), 1  # P_n, lowest order first
        series = []
        for n in range(1, SERIES_NARROW + 1):
            power, factorial = power * unit, factorial * n
            value = functools.reduce(lambda total, c: total * z + c, reversed(polynomial))
            flip = sign if n % 2 == 0 else 1  # mirrored: z and t both change sign
            series.append(flip * value * power / factorial * Decimal(law.scale))
            derivative = [k * c for k, c in enumerate(polynomial)][1:]
            raised = [Decimal(0)] + [n * c for c in polynomial]
            polynomial = [(derivative[k] if k < len(derivative) else 0) + raised[k] for k in range(len(raised))]
        middle = Decimal(law.centre) + sign * z * Decimal(law.scale)
        rounded = [nearest(float(c), number) for c in (middle, *reversed(series))]
    return (rounded[0], lowest, highest, *rounded[1:])


def _tail(law: TruncNormal, number: torch.dtype, lowest: float, highest: float) -> tuple[float, ...]:
    """The quantile as a polynomial in r = -2 ln(share of the tail's mass beyond), by Chebyshev interpolation."""
    width = WIDTHS[number]
    low, high = law.bounds
    with localcontext(gaussian.DIGITS):
        sign = 1 if low > 0 else -1
        if sign < 0:
            low, high = -high, -low
        log_mass = gaussian.log_tail(low)
        base = Decimal(0) if high.is_infinite() else (gaussian.log_tail(high) - log_mass).exp()
        farthest = Decimal(2 * (width + 1)) * Decimal(2).ln()  # of the smallest share that a word can give
        span = farthest if base == 0 else min(farthest, -2 * base.ln())
        centre = Decimal(nearest(float(span / 2), number))
        count = SERIES_TAIL[width] + 1
        points, values, z = [], [], low
        for k in range(count):
            # Six decimals, so that the nodes do not hang on a C library's last bit.
            node = span / 2 * (1 - Decimal(f"{math.cos(math.pi * (k + 0.5) / count):.6f}"))
            z = gaussian.quantile_of_tail(log_mass - node / 2, z)
            points.append(node - centre)
            values.append(Decimal(law.centre) + sign * z * Decimal(law.scale))
        series = gaussian.polynomial_through(points, values)
        rounded = [nearest(float(c), number) for c in series]
        shares = [nearest(float(share), number) for share in (base, 1 - base)]
    return (*shares, -float(centre), rounded[-1], lowest, highest, *rounded[:-1])


# One law for each way through the arithmetic.
EVERY_KIND: tuple[Law, ...] = (
    Normal(0.0, 1.0),
    Uniform(0.0, 1.0),
    Uniform(0.1, 1.0),
    Uniform(0.0, 1e-40),
    Uniform(0.0, 1e-300),
    TruncNormal(0.0, 1.0, -2.0, 2.0),
    TruncNormal(0.0, 1.0, -4.0, 4.0),
    TruncNormal(0.0, 1.0, 0.0, 0.01),
    TruncNormal(0.0, 1.0, 5.0, 6.0),
)
