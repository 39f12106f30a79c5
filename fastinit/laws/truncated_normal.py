"""The normal distribution given an interval, by its inverse distribution function."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from ..kernels.arithmetic.primitives import Number, fma, horner, negative, where
from ..kernels.arithmetic.transforms import (
    FAR_BELOW,
    FAR_CENTRE,
    NEAR_CENTRE,
    clamp,
    counted,
    far_quantile,
    inner_unit,
    minus_two_log,
    minus_two_log_finely,
    near_quantile,
    signed,
)
from ..kernels.contract import sampler
from ..kernels.dtypes import WIDTHS
from . import gaussian
from .floats import at_least, at_most, nearest
from .law import Example, Parameters, ceiling, working
from .normal import REACH, Normal
from .uniform import uniform_parameters

# Which of the arithmetic's truncated laws serves, by bounds in standard deviations from the mean.
CENTRAL_UP_TO = 3.04  # both bounds: one polynomial for the quantile
TAIL_FROM = 4.0  # the nearer bound: the quantile of a tail
FLAT_BELOW = Decimal("1e-20")  # interval width, as below: no float64 can tell the density from a flat one
POINT_FROM = 10**20  # the nearer bound: nothing but that bound can be told apart
NARROW_UP_TO = {
    32: Decimal("0.25"),
    64: Decimal("0.03125"),
}  # interval width, times the distance from the mean where that is above 1
SERIES_NARROW = 9
SERIES_TAIL = {32: 14, 64: 34}


def tail_of(
    low: Number, high: Number, split: Number, left_mass: Number, right_mass: Number, step: Number
) -> tuple[Number, Number]:
    """Whether the draw lies left of the median of the untruncated normal, and the mass beyond it on its own side.

    Counted from the nearer end in steps of 2^-32 of the mass inside: a draw and its complement mirror each other.
    """
    left = high <= split
    start = where(left, left_mass, right_mass)
    return left, counted(where(left, low, low ^ 0xFFFFFFFF), where(left, high, high ^ 0xFFFFFFFF), step, start)


@sampler(whole=1)
def truncated_central(
    low: Number, high: Number, split: Number, left_mass: Number, right_mass: Number, step: Number, mean: Number,
    std: Number, lowest: Number, highest: Number,
) -> Number:  # fmt: skip
    """Normal given [lowest, highest], both bounds within 3.1 standard deviations of the mean."""
    left, q = tail_of(low, high, split, left_mass, right_mass, step)
    z = near_quantile(q, minus_two_log(fma(negative(q), q, q), -NEAR_CENTRE))
    return clamp(fma(where(left, negative(z), z), std, mean), lowest, highest)


@sampler(whole=1)
def truncated_wide(
    low: Number, high: Number, split: Number, left_mass: Number, right_mass: Number, step: Number, mean: Number,
    std: Number, lowest: Number, highest: Number,
) -> Number:  # fmt: skip
    """Normal given [lowest, highest], for any bounds that leave a mass of 1e-8 or more."""
    left, q = tail_of(low, high, split, left_mass, right_mass, step)
    x = fma(negative(q), q, q)
    near = near_quantile(q, minus_two_log(x, -NEAR_CENTRE))
    far = far_quantile(minus_two_log_finely(x, -FAR_CENTRE))
    z = where(q < FAR_BELOW, far, near)
    return clamp(fma(where(left, negative(z), z), std, mean), lowest, highest)


@sampler(series_after=3)
def truncated_narrow(
    low: Number, high: Number, middle: Number, lowest: Number, highest: Number, series: Number
) -> Number:
    """Normal given an interval so narrow that its quantile is a polynomial in the draw."""
    t = signed(low, high ^ 0x80000000)
    return clamp(fma(t, horner(t, series), middle), lowest, highest)


@sampler(series_after=6)
def truncated_tail(
    low: Number, high: Number, base: Number, span: Number, centre: Number, middle: Number, lowest: Number,
    highest: Number, series: Number,
) -> Number:  # fmt: skip
    """Normal given a far tail: its quantile is a polynomial in the logarithm of the mass that is left."""
    t = minus_two_log(fma(inner_unit(low, high), span, base), centre)
    return clamp(fma(t, horner(t, series), middle), lowest, highest)


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

    @property
    def support(self) -> tuple[float, float]:
        return self.a, self.b

    def held(self, dtype: torch.dtype) -> tuple[float, float]:
        return at_least(self.a, dtype), at_most(self.b, dtype)

    def cdf(self, x: Tensor) -> Tensor:
        low, high = map(float, self.bounds)
        z = ((x - self.centre) / self.scale).clamp(low, high)
        if low + high < 0:  # count from the thinner tail, whose masses are small numbers and so precise ones
            return 1.0 - share_of_mass(-high, -low, -z)
        return share_of_mass(low, high, z)

    def parameters(self, dtype: torch.dtype) -> Parameters:
        return _truncated(self, dtype)


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
    highest = ceiling(lowest, highest)
    reach = REACH[width] * law.scale
    if lowest <= nearest(law.centre - reach, dtype) and nearest(law.centre + reach, dtype) <= highest:
        return Normal(law.centre, law.scale).parameters(dtype)
    low, high = law.bounds
    nearer = max(low, high.copy_negate(), Decimal(0))
    if nearer > POINT_FROM:
        return uniform_parameters(lowest, lowest, dtype) if low > 0 else uniform_parameters(highest, highest, dtype)
    with localcontext(gaussian.DIGITS):
        # How far the density's logarithm goes from one bound to the other.
        bend = (high - low) * max(nearer, Decimal(1))
    if bend < FLAT_BELOW:
        return uniform_parameters(law.a, law.b, dtype)
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
            # Six decimals, so that the nodes do not depend on a C library's last bit.
            node = span / 2 * (1 - Decimal(f"{math.cos(math.pi * (k + 0.5) / count):.6f}"))
            z = gaussian.quantile_of_tail(log_mass - node / 2, z)
            points.append(node - centre)
            values.append(Decimal(law.centre) + sign * z * Decimal(law.scale))
        series = gaussian.polynomial_through(points, values)
        rounded = [nearest(float(c), number) for c in series]
        shares = [nearest(float(share), number) for share in (base, 1 - base)]
    return (*shares, -float(centre), rounded[-1], lowest, highest, *rounded[:-1])


def share_of_mass(low: float, high: float, z: Tensor) -> Tensor:
    """The share of the standard normal's mass in [low, high] that lies below z, by logarithms of upper tails."""
    ends = torch.special.log_ndtr(torch.tensor([-low, -high], dtype=torch.float64))
    share: Tensor = torch.expm1(torch.special.log_ndtr(-z) - ends[0]) / torch.expm1(ends[1] - ends[0])
    return share


# One for each sampler, and one for each side where there are two.
EXAMPLES = {
    "central": Example(TruncNormal(0.0, 1.0, -2.0, 2.0)),
    "central_right": Example(TruncNormal(0.5, 2.0, 1.5, 5.0)),
    "wide": Example(TruncNormal(0.0, 0.02, -0.08, 0.1)),
    "wide_left": Example(TruncNormal(0.0, 1.0, -math.inf, 0.5)),
    "wide_right": Example(TruncNormal(1.0, 1.0, 4.5, 9.0)),
    "narrow": Example(TruncNormal(0.0, 100.0, -2.0, 2.0)),
    "narrow_left": Example(TruncNormal(0.0, 1.0, -3.02, -3.0)),
    "narrower": Example(TruncNormal(0.0, 1000.0, -2.0, 2.0), (torch.float64,)),  # narrower ones there
    "tail": Example(TruncNormal(0.0, 1.0, 5.0, 6.0)),
    "tail_left": Example(TruncNormal(0.0, 1.0, -math.inf, -4.5)),
}
