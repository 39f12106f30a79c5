"""The standard normal distribution in decimal arithmetic: the same digits on every platform.

Parameters of the truncated laws decide bits of samples, so they must not come from a C library's erf, whose last bit is
its own. `decimal` rounds correctly everywhere. 50 digits leave plenty after every cancellation below.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext

DIGITS = Context(prec=60, Emin=-(10**18 - 1), Emax=10**18 - 1)
SERIES_UP_TO = 6  # beyond, the continued fraction converges faster than the series
SQRT_TWO_PI = Decimal("2.50662827463100050241576528481104525300698674060993831662992357634229")


def density(z: Decimal) -> Decimal:
    """phi(z)."""
    with localcontext(DIGITS):
        return (-z * z / 2).exp() / SQRT_TWO_PI


def log_tail(z: Decimal) -> Decimal:
    """ln Q(z) for z >= 0, also where Q(z) is too small to be a number."""
    with localcontext(DIGITS):
        return mills_ratio(z).ln() - z * z / 2 - SQRT_TWO_PI.ln()


def density_ratio(x: Decimal, z: Decimal) -> Decimal:
    """phi(x) / phi(z), also where both are too small to be numbers; 0 for an infinite x."""
    with localcontext(DIGITS):
        return Decimal(0) if x.is_infinite() else ((z * z - x * x) / 2).exp()


def tail_over_density(x: Decimal, z: Decimal) -> Decimal:
    """Q(x) / phi(z), also where both are too small to be numbers."""
    with localcontext(DIGITS):
        if x.is_infinite():
            return Decimal(0) if x > 0 else 1 / density(z)
        return mills_ratio(x) * ((z * z - x * x) / 2).exp() if x > 0 else tail(x) / density(z)


def tail(z: Decimal) -> Decimal:
    """Q(z), the mass above z; z may be infinite."""
    with localcontext(DIGITS):
        if z.is_infinite():
            return Decimal(0 if z > 0 else 1)
        if z < 0:
            return 1 - tail(-z)
        return density(z) * mills_ratio(z)


def mills_ratio(z: Decimal) -> Decimal:
    """Q(z) / phi(z) for z >= 0, to some 40 digits (DLMF 7.6.2 and 7.9.3)."""
    with localcontext(DIGITS):
        if z <= SERIES_UP_TO:
            term = total = z
            k = 1
            while term > total * Decimal("1e-50"):
                term = term * z * z / (2 * k + 1)
                total += term
                k += 1
            return 1 / (2 * density(z)) - total
        # The depth that 40 digits take falls with z squared; 2000 / z^2 was found to be enough.
        value = z
        for k in range(int(2000 / (z * z)) + 30, 0, -1):
            value = z + k / value
        return 1 / value


def quantile_of_tail(log_mass: Decimal, guess: Decimal) -> Decimal:
    """z > 0 with ln Q(z) = log_mass, by Newton's method from `guess`."""
    with localcontext(DIGITS):
        z = guess
        for _ in range(60):
            step = (log_tail(z) - log_mass) * mills_ratio(z)
            z = max(z + step, z / 2)
            if abs(step) < z * Decimal("1e-40"):
                return z
        raise ArithmeticError(f"no quantile found for a tail of mass exp({log_mass})")


def polynomial_through(points: Sequence[Decimal], values: Sequence[Decimal]) -> list[Decimal]:
    """The interpolating polynomial's coefficients, highest order first (Newton's divided differences)."""
    with localcontext(DIGITS):
        differences = list(values)
        count = len(points)
        for order in range(1, count):
            for k in range(count - 1, order - 1, -1):
                differences[k] = (differences[k] - differences[k - 1]) / (points[k] - points[k - order])
        coefficients = [differences[-1]]
        for k in range(count - 2, -1, -1):  # times (x - points[k]), plus differences[k]
            shifted = [*coefficients, Decimal(0)]
            for index, coefficient in enumerate(coefficients):
                shifted[index + 1] -= coefficient * points[k]
            shifted[-1] += differences[k]
            coefficients = shifted
        return coefficients
