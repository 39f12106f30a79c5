"""From random bits to numbers, and from numbers to what samplers are made of: a fixed sequence of IEEE-754 operations.

Nothing here runs as it stands. An engine brings the primitives, and `bind.Arithmetic` makes every
function here again over them, once for each working precision:

* width 32: float32 arithmetic; an element's random bits are one word.
* width 64: float64 arithmetic; an element's random bits are two words, low and high.

The same operations in the same order round alike everywhere; that is what makes the samples of NumPy,
Numba, Triton and plain torch the same bits. So: no library function but `sqrt` (correctly rounded), no
multiplication followed by an addition that a compiler may contract (`fma` says so explicitly), and no
reordering. Python numbers in an expression take the type of the other operand.

Integers are unsigned 32-bit words (`u32`) unless they are the bits of a float, which are signed. An engine may hold
words in a wider type, so whatever can leave 32 bits goes through `u32(...)`.
"""

from __future__ import annotations

from . import coefficients
from .bind import by_width
from .primitives import Number, bits, fma, horner, i32, maximum, minimum, negative, real, u32, unbits, where

# 2^-32 is the step of a word read as a fraction. A number kept below 1 by its last bit has a logarithm below 0,
# so that sqrt's argument is above 0 for every draw.
UNIT, UNIT_LOW = 2.0**-32, 2.0**-64
LATTICE = by_width(2.0**-24, 2.0**-53)
UNIT_BELOW_ONE = by_width(2.0**-32 * (1 - 2.0**-24), 2.0**-32 * (1 - 2.0**-53))
HALF_STEP = by_width(2.0**-33, 2.0**-65)
SQRT_HALF_BITS = by_width(0x3F3504F3, 0x3FE6A09E667F3BCD)
EXPONENT_MASK = by_width(-(1 << 23), -(1 << 52))
# Adding ANCHOR rounds a number to a whole one, which then stands in the last bits. BIAS << EXPONENT_AT is 1.0.
ANCHOR, ANCHOR_BITS = by_width(1.5 * 2.0**23, 1.5 * 2.0**52), by_width(0x4B400000, 0x4338000000000000)
BIAS, EXPONENT_AT = by_width(127, 1023), by_width(23, 52)
# Beyond these, exp is 0 or infinite.
EXP_FROM, EXP_TO = by_width(-104.0, -746.0), by_width(89.0, 710.0)

NEAR_CENTRE, FAR_BELOW = coefficients.NEAR_CENTRE, coefficients.FAR_BELOW
FAR_CENTRE = by_width(coefficients.FAR_CENTRE_32, coefficients.FAR_CENTRE_64)
MINUS_TWO_LN2 = by_width(coefficients.MINUS_TWO_LN2_32, coefficients.MINUS_TWO_LN2_64)
MINUS_TWO_LN2_HIGH = by_width(coefficients.MINUS_TWO_LN2_HIGH_32, coefficients.MINUS_TWO_LN2_HIGH_64)
MINUS_TWO_LN2_LOW = by_width(coefficients.MINUS_TWO_LN2_LOW_32, coefficients.MINUS_TWO_LN2_LOW_64)
LOG = by_width(coefficients.LOG_32, coefficients.LOG_64)
SIN, COS = by_width(coefficients.SIN_32, coefficients.SIN_64), by_width(coefficients.COS_32, coefficients.COS_64)
NEAR = by_width(coefficients.NEAR_32, coefficients.NEAR_64)
FAR = by_width(coefficients.FAR_32, coefficients.FAR_64)
EXP = by_width(coefficients.EXP_32, coefficients.EXP_64)
LOG2_E = by_width(coefficients.LOG2_E_32, coefficients.LOG2_E_64)
MINUS_LN2 = by_width(-coefficients.LN2_32, -coefficients.LN2_64)
MINUS_LN2_REST = by_width(-coefficients.LN2_REST_32, -coefficients.LN2_REST_64)

# --- random bits to numbers, in each width -----------------------------------------------------


def lattice_32(low: Number, high: Number) -> Number:
    """The top 24 bits as a number in [0, 2^24)."""
    return real(high >> 8)


def lattice_64(low: Number, high: Number) -> Number:
    """The top 53 bits as a number in [0, 2^53)."""
    return fma(real(high), 2097152.0, real(low >> 11))


def counted_32(low: Number, high: Number, step: Number, start: Number) -> Number:
    """start + step * (all 32 bits as a number), 24 of them significant: fine near 0, where tails are."""
    return fma(real(high), step, start)


def counted_64(low: Number, high: Number, step: Number, start: Number) -> Number:
    """start + step * (all 64 bits as a number of steps and fractions of 2^-32), 53 of them significant."""
    return fma(fma(real(low), UNIT, real(high)), step, start)


def inner_unit_32(low: Number, high: Number) -> Number:
    """All bits as a fraction, centred in its step and kept below 1: strictly inside (0, 1)."""
    return fma(real(high), UNIT_BELOW_ONE, HALF_STEP)


def inner_unit_64(low: Number, high: Number) -> Number:
    return fma(real(high), UNIT_BELOW_ONE, fma(real(low), UNIT_LOW, HALF_STEP))


def signed_32(low: Number, high: Number) -> Number:
    """The bits as a signed number in [-1, 1], fine near 0."""
    return real(i32(high)) * 4.656612873077393e-10


def signed_64(low: Number, high: Number) -> Number:
    return fma(real(i32(high)), 4.656612873077393e-10, real(low) * 1.0842021724855044e-19)


lattice, counted = by_width(lattice_32, lattice_64), by_width(counted_32, counted_64)
inner_unit, signed = by_width(inner_unit_32, inner_unit_64), by_width(signed_32, signed_64)


# --- transforms, the same in both widths -------------------------------------------------------


def log_terms(x: Number) -> tuple[Number, Number, Number]:
    """(e, m, l) with -2 ln(x) = l m - 2 ln(2) e / (the unit of an exponent), for positive, normal x.

    x = 2^e (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)), so that the logarithm of a number just below 1 keeps
    its precision. e stays where it stands in the exponent's bits: its unit goes into the constants.
    """
    i = bits(x)
    e = (i - SQRT_HALF_BITS) & EXPONENT_MASK
    m = unbits(i - e) - 1.0
    return real(e), m, horner(m, LOG)


def minus_two_log(x: Number, offset: Number) -> Number:
    """-2 ln(x) + offset."""
    e, m, l = log_terms(x)
    return fma(l, m, fma(e, MINUS_TWO_LN2, offset))


def minus_two_log_finely(x: Number, offset: Number) -> Number:
    """The same, rounded half as much: e's share plus a short offset is exact."""
    e, m, l = log_terms(x)
    return fma(l, m, e * MINUS_TWO_LN2_LOW) + fma(e, MINUS_TWO_LN2_HIGH, offset)


def turn(low: Number, high: Number) -> tuple[Number, Number]:
    """(cos, sin) of an angle uniform on the circle, from all bits of one draw.

    The signed number spans an eighth of a turn to either side; bit 0 chooses the side of the circle
    (cosine's sign), bit 1 swaps sine and cosine. Together these four arcs cover the circle once, evenly.
    """
    x = signed(low, high)
    v = x * x
    s = x * horner(v, SIN)
    c = negate_if_odd(horner(v, COS), low)
    swap = (low & 2) != 0
    return where(swap, s, c), where(swap, c, s)


def negate_if_odd_32(x: Number, word: Number) -> Number:
    return unbits(bits(x) ^ i32(u32(word << 31)))


def negate_if_odd_64(x: Number, word: Number) -> Number:
    return where((word & 1) != 0, negative(x), x)


negate_if_odd = by_width(negate_if_odd_32, negate_if_odd_64)


def near_quantile(q: Number, r: Number) -> Number:
    """|z| whose upper tail has mass q, for |z| up to 3.1; r = -2 ln(q - q^2) - NEAR_CENTRE."""
    return fma(q, -2.0, 1.0) * horner(r, NEAR)


def far_quantile(r: Number) -> Number:
    """The same for |z| from 3 on; r = -2 ln(q - q^2) - FAR_CENTRE."""
    return horner(r, FAR)


def exp(x: Number) -> Number:
    """e^x: 2^k times e to what k leaves. Two steps to 2^k round a subnormal result once."""
    x = clamp(x, EXP_FROM, EXP_TO)
    anchored = fma(x, LOG2_E, ANCHOR)
    k, whole = bits(anchored) - ANCHOR_BITS, anchored - ANCHOR
    rest = fma(whole, MINUS_LN2_REST, fma(whole, MINUS_LN2, x))
    half = k >> 1
    return horner(rest, EXP) * power_of_two(half) * power_of_two(k - half)


def power_of_two(k: Number) -> Number:
    """2^k, for k within the exponents of normal numbers."""
    return unbits((k + BIAS) << EXPONENT_AT)


def clamp(x: Number, lowest: Number, highest: Number) -> Number:
    return minimum(maximum(x, lowest), highest)
