"""Where every coefficient in kernels/arithmetic/transforms.py comes from.

`python -m bench.coefficients` fits them all again and prints them with the greatest error of each
polynomial; tests/test_coefficients.py holds the file to this script. A fit is a minimax one (Remez's exchange
on a dense grid, in 120 digits), its coefficients then rounded to the dtype that uses them.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mpmath import mp, mpf

mp.dps = 120
GRID = 1200
# Where the quantile's two polynomials are centred (there the constant coefficient is nearly a float32, which
# halves the error of the rounded polynomial), and the tail mass (|z| = 3.046) where they meet.
NEAR_CENTRE, FAR_CENTRE_32, FAR_CENTRE_64, FAR_BELOW = 8.09375, 35.375, 62.0, 0.001159667968750

HEADER = '''"""The polynomials of the transforms, highest order first. Made by `python -m bench.coefficients`.

-2 ln(1 + m) = m LOG(m); sin and cos of pi/4 x are x SIN(x^2) and COS(x^2) (relative errors). The normal quantile
is (1 - 2 q) NEAR(r - NEAR_CENTRE) and FAR(r - FAR_CENTRE) with r = -2 ln(q - q^2), q the
mass of the nearer tail (absolute errors, for |z| up to 3.1 and beyond 3). exp(r) is EXP(r) for |r| up to half of
ln(2) (relative errors).
"""

'''


@dataclass(frozen=True)
class Fit:
    """`target(v) ~ sum c_k v^k` over `points`, the error weighed by `weight`."""

    name: str
    degree: int
    points: Sequence[mpf]
    values: Sequence[mpf]
    weights: Sequence[mpf]


def chebyshev_grid(low: mpf, high: mpf, count: int = GRID) -> list[mpf]:
    """`count` points, dense at both ends, where a minimax error has its narrowest waves."""
    return [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * k / (count - 1)) for k in range(count)]


def sample(
    name: str, degree: int, low: mpf, high: mpf, target: Callable[[mpf], mpf], weight: Callable[[mpf], mpf]
) -> Fit:
    """A fit of `target` over [low, high]; `weight` takes the target's value."""
    points = chebyshev_grid(mpf(low), mpf(high))
    values = [target(v) for v in points]
    return Fit(name, degree, points, values, [weight(value) for value in values])


def minus_two_log_fit(name: str, degree: int) -> Fit:
    """-2 ln(1 + m) / m for the mantissa 1 + m in [sqrt(1/2), sqrt(2)], relative."""

    def target(m: mpf) -> mpf:
        return mpf(-2) if m == 0 else -2 * mp.log1p(m) / m

    return sample(name, degree, mp.sqrt("0.5") - 1, mp.sqrt(2) - 1, target, lambda value: 1 / abs(value))


def sin_fit(name: str, degree: int) -> Fit:
    """sin(pi/4 x) / x over v = x^2 in [0, 1], relative."""

    def target(v: mpf) -> mpf:
        x = mp.sqrt(v)
        return mp.pi / 4 if v == 0 else mp.sin(mp.pi / 4 * x) / x

    return sample(name, degree, 0, 1, target, lambda value: 1 / value)


def cos_fit(name: str, degree: int) -> Fit:
    """cos(pi/4 x) over v = x^2 in [0, 1], relative."""
    return sample(name, degree, 0, 1, lambda v: mp.cos(mp.pi / 4 * mp.sqrt(v)), lambda value: 1 / value)


def tail_mass(z: mpf) -> mpf:
    """Q(z), the mass of the standard normal above z."""
    return mp.erfc(z / mp.sqrt(2)) / 2


def near_fit(name: str, degree: int, reach: float) -> Fit:
    """z / (1 - 2 q) over v = -2 ln(q - q^2) - NEAR_CENTRE, for |z| up to `reach`; absolute in z."""
    values = chebyshev_grid(mpf(0), mpf(reach))
    masses = [tail_mass(z) for z in values]
    factors = [1 - 2 * q for q in masses]
    points = [-2 * mp.log(q - q * q) - NEAR_CENTRE for q in masses]
    ratios = [mp.sqrt(mp.pi / 2) if z == 0 else z / x for z, x in zip(values, factors, strict=True)]
    # Weight x makes the error absolute in z; the floor keeps the ratio itself near 0.
    return Fit(name, degree, points, ratios, [max(x, mpf("0.05")) for x in factors])


def far_fit(name: str, degree: int, low: float, reach: float, centre: float) -> Fit:
    """z over v = -2 ln(q - q^2) - centre, for z from `low` to `reach`; absolute."""
    values = chebyshev_grid(mpf(low), mpf(reach))
    masses = [tail_mass(z) for z in values]
    points = [-2 * mp.log(q - q * q) - centre for q in masses]
    return Fit(name, degree, points, values, [mpf(1)] * len(points))


def exp_fit(name: str, degree: int) -> Fit:
    """exp(r) for what is left of an exponent after whole powers of 2, and a little beyond; relative."""
    reach = mp.log(2) / 2 * mpf("1.0001")
    return sample(name, degree, -reach, reach, mp.exp, lambda value: 1 / value)


def remez(fit: Fit) -> list[mpf]:
    """The minimax coefficients, lowest order first."""
    count, last = fit.degree + 1, len(fit.points) - 1
    # Start where a Chebyshev polynomial over the grid has its extrema.
    chosen = [round(last * (1 - math.cos(math.pi * k / count)) / 2) for k in range(count + 1)]
    for _ in range(60):
        system, right = mp.matrix(count + 1), mp.matrix(count + 1, 1)
        for row, index in enumerate(chosen):
            for column in range(count):
                system[row, column] = fit.points[index] ** column
            system[row, count] = (-1) ** row / fit.weights[index]
            right[row] = fit.values[index]
        solution = mp.lu_solve(system, right)
        coefficients = [solution[k] for k in range(count)]
        errors = weighted_errors(fit, coefficients)
        greatest = max(abs(error) for error in errors)
        exchanged = alternation(errors, count + 1)
        if exchanged == chosen or greatest <= abs(solution[count]) * mpf("1.001"):
            break
        chosen = exchanged
    return coefficients


def weighted_errors(fit: Fit, coefficients: Sequence[mpf]) -> list[mpf]:
    """The weighted error of the polynomial (lowest order first) at every point."""
    descending = list(reversed(coefficients))
    return [
        (y - mp.polyval(descending, v)) * weight
        for v, y, weight in zip(fit.points, fit.values, fit.weights, strict=True)
    ]


def alternation(errors: Sequence[mpf], count: int) -> list[int]:
    """The indices of `count` extrema of alternating sign, the greatest errors among them."""
    peaks: list[int] = []
    for index, error in enumerate(errors):
        if peaks and (errors[peaks[-1]] > 0) == (error > 0):
            if abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = index
        else:
            peaks.append(index)
    while len(peaks) > count:
        if len(peaks) == count + 1:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        else:
            weakest = min(range(len(peaks) - 1), key=lambda k: abs(errors[peaks[k]]) + abs(errors[peaks[k + 1]]))
            del peaks[weakest : weakest + 2]
    return peaks


# The polynomials of kernels/arithmetic/coefficients.py, each with the greatest error that it may have.
FITS = {
    "LOG_32": (lambda name: minus_two_log_fit(name, 8), 7e-8),
    "SIN_32": (lambda name: sin_fit(name, 3), 5e-8),
    "COS_32": (lambda name: cos_fit(name, 3), 9e-8),
    "NEAR_32": (lambda name: near_fit(name, 9, 3.1), 1e-7),
    "FAR_32": (lambda name: far_fit(name, 17, 3.0, 7.85, FAR_CENTRE_32), 2e-7),
    "EXP_32": (lambda name: exp_fit(name, 6), 5e-8),
    "LOG_64": (lambda name: minus_two_log_fit(name, 19), 4e-16),
    "SIN_64": (lambda name: sin_fit(name, 6), 2e-16),
    "COS_64": (lambda name: cos_fit(name, 7), 2e-16),
    "NEAR_64": (lambda name: near_fit(name, 21, 3.1), 5e-16),
    "FAR_64": (lambda name: far_fit(name, 40, 3.0, 10.4, FAR_CENTRE_64), 1e-12),
    "EXP_64": (lambda name: exp_fit(name, 11), 2e-16),
}


@functools.cache
def fit_floats(name: str) -> tuple[tuple[float, ...], float]:
    """The coefficients of `name` rounded to its dtype, highest order first, and their greatest weighted error."""
    fit = FITS[name][0](name)
    dtype = np.float32 if name.endswith("_32") else np.float64
    rounded = [mpf(float(dtype(float(c)))) for c in remez(fit)]
    greatest = max(abs(error) for error in weighted_errors(fit, rounded))
    return tuple(float(c) for c in reversed(rounded)), float(greatest)


def module_text() -> str:
    """The whole of kernels/arithmetic/coefficients.py."""
    parts = [HEADER]
    for name in FITS:
        coefficients, greatest = fit_floats(name)
        numbers = "".join(f"{c!r}, " for c in coefficients).rstrip()
        lines = textwrap.fill(numbers, 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        parts.append(f"# greatest error {greatest:.1e}\n{name} = (\n{lines}\n)  # fmt: skip\n")
    for width, dtype in ((32, np.float32), (64, np.float64)):
        unit = 2.0 ** -(23 if width == 32 else 52)
        high = float(mp.nint(-2 * mp.log(2) * 2**12) / 2**12)
        low = float(-2 * mp.log(2) - high)
        parts.append(f"MINUS_TWO_LN2_{width} = {float(dtype(float(-2 * mp.log(2)) * unit))!r}\n")
        parts.append(f"MINUS_TWO_LN2_HIGH_{width} = {high * unit!r}\n")
        parts.append(f"MINUS_TWO_LN2_LOW_{width} = {float(dtype(low * unit))!r}\n")
        inverse, main = float(dtype(float(1 / mp.log(2)))), float(dtype(float(mp.log(2))))
        parts.append(f"LOG2_E_{width} = {inverse!r}\n")
        parts.append(f"LN2_{width} = {main!r}\n")
        parts.append(f"LN2_REST_{width} = {float(dtype(float(mp.log(2) - mpf(main))))!r}\n")
    for name in ("NEAR_CENTRE", "FAR_CENTRE_32", "FAR_CENTRE_64", "FAR_BELOW"):
        parts.append(f"{name} = {globals()[name]!r}\n")
    return "".join(parts)


if __name__ == "__main__":
    print(module_text(), end="")
