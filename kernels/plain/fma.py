"""A fused multiply-add for libraries that have none, by error-free transformations.

The functions take NumPy arrays with `lib=numpy` or tensors with `lib=torch`; all in float64. Boldo and Melquiond,
"Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
"""

from __future__ import annotations

from typing import Any


def exact_sum(x: Any, y: Any) -> tuple[Any, Any]:
    """The rounded sum and what the rounding lost (Knuth)."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def exact_product(x: Any, y: Any) -> tuple[Any, Any]:
    """The rounded product and what the rounding lost (Dekker, with Veltkamp's splitting)."""

    def split(v: Any) -> tuple[Any, Any]:
        wide = v * 134217729.0
        high = wide - (wide - v)
        return high, v - high

    (xh, xl), (yh, yl) = split(x), split(y)
    product = x * y
    return product, ((xh * yh - product) + xh * yl + xl * yh) + xl * yl


def sum_to_odd(x: Any, y: Any, lib: Any) -> Any:
    """x + y, an inexact sum going to whichever neighbour has 1 for its last bit."""
    total, error = exact_sum(x, y)
    pattern = total.view(lib.int64)
    neighbour = lib.where((error > 0) == (total > 0), pattern + 1, pattern - 1)
    # An infinite or nan sum has a nan for its error, which is neither above nor below zero, and stays.
    inexact = ((error > 0) | (error < 0)) & ((pattern & 1) == 0)
    return lib.where(inexact, neighbour, pattern).view(lib.float64)


def fma(x: Any, y: Any, z: Any, lib: Any) -> Any:
    """x * y + z rounded once, for magnitudes between 1e-290 and 1e290 (or 0)."""
    high, low = exact_product(x, y)
    carry, rest = exact_sum(z, low)
    total, error = exact_sum(high, carry)
    return total + sum_to_odd(error, rest, lib)


def fma_for_float32(x: Any, y: Any, z: Any, lib: Any) -> Any:
    """x * y + z of float32 values held in float64, so that rounding the result to float32 rounds the exact one.

    The product is exact; a sum rounded to odd keeps enough, as float64 has more than two bits to spare.
    """
    return sum_to_odd(x * y, z, lib)
