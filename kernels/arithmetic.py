"""The one arithmetic: Philox words to samples, as a fixed sequence of IEEE-754 operations.

Nothing here runs as it stands. An engine brings *primitives* (below) and `bind` makes every
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

import types
from collections.abc import Callable, Mapping
from typing import Any

from . import coefficients

# Primitives, supplied by the engine.
u32: Callable[..., Any]  # to an unsigned word, modulo 2^32
i32: Callable[..., Any]  # a word read as a signed number
real: Callable[..., Any]  # an integer to the working precision, rounded to nearest even
bits: Callable[..., Any]  # a float's bits, as a signed integer of its width
unbits: Callable[..., Any]  # the float that has these bits
negative: Callable[..., Any]  # a float with its sign flipped
mulhilo: Callable[..., Any]  # the high and the low word of a word times a constant
fma: Callable[..., Any]  # x * y + z, rounded once
sqrt: Callable[..., Any]  # correctly rounded
where: Callable[..., Any]  # condition ? a : b
minimum: Callable[..., Any]  # x < y ? x : y, so the second on a tie
maximum: Callable[..., Any]  # x > y ? x : y
horner: Callable[..., Any]  # a polynomial, highest order first, by fma

# Philox's multipliers and Weyl constants (Salmon et al., SC'11).
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85


def philox_round(c0, c1, c2, c3, k0, k1):
    high0, low0 = mulhilo(c0, M0)
    high1, low1 = mulhilo(c2, M1)
    return high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0


def bump(k0, k1):
    return u32(k0 + W0), u32(k1 + W1)


def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four random words from a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    c0, c1, c2, c3 = philox_round(c0, c1, c2, c3, k0, k1)
    k0, k1 = bump(k0, k1)
    return philox_round(c0, c1, c2, c3, k0, k1)


# --- random bits to numbers, in each width -----------------------------------------------------


def lattice_32(low, high):
    """The top 24 bits as a number in [0, 2^24)."""
    return real(high >> 8)


def lattice_64(low, high):
    """The top 53 bits as a number in [0, 2^53)."""
    return fma(real(high), 2097152.0, real(low >> 11))


def counted_32(low, high, step, start):
    """start + step * (all 32 bits as a number), 24 of them significant: fine near 0, where tails are."""
    return fma(real(high), step, start)


def counted_64(low, high, step, start):
    """start + step * (all 64 bits as a number of steps and fractions of 2^-32), 53 of them significant."""
    return fma(fma(real(low), UNIT, real(high)), step, start)


def inner_unit_32(low, high):
    """All bits as a fraction, centred in its step and kept below 1: strictly inside (0, 1)."""
    return fma(real(high), UNIT_BELOW_ONE, HALF_STEP)


def inner_unit_64(low, high):
    return fma(real(high), UNIT_BELOW_ONE, fma(real(low), UNIT_LOW, HALF_STEP))


def signed_32(low, high):
    """The bits as a signed number in [-1, 1], fine near 0."""
    return real(i32(high)) * 4.656612873077393e-10


def signed_64(low, high):
    return fma(real(i32(high)), 4.656612873077393e-10, real(low) * 1.0842021724855044e-19)


# --- transforms, the same in both widths -------------------------------------------------------


def log_terms(x):
    """(e, m, l) with -2 ln(x) = l m - 2 ln(2) e / (the unit of an exponent), for positive, normal x.

    x = 2^e (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)), so that the logarithm of a number just below 1 keeps
    its precision. e stays where it stands in the exponent's bits: its unit goes into the constants.
    """
    i = bits(x)
    e = (i - SQRT_HALF_BITS) & EXPONENT_MASK
    m = unbits(i - e) - 1.0
    return real(e), m, horner(m, LOG)


def minus_two_log(x, offset):
    """-2 ln(x) + offset."""
    e, m, l = log_terms(x)
    return fma(l, m, fma(e, MINUS_TWO_LN2, offset))


def minus_two_log_finely(x, offset):
    """The same, rounded half as much: e's share plus a short offset is exact."""
    e, m, l = log_terms(x)
    return fma(l, m, e * MINUS_TWO_LN2_LOW) + fma(e, MINUS_TWO_LN2_HIGH, offset)


def turn(low, high):
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


def negate_if_odd_32(x, word):
    return unbits(bits(x) ^ i32(u32(word << 31)))


def negate_if_odd_64(x, word):
    return where((word & 1) != 0, negative(x), x)


def near_quantile(q, r):
    """|z| whose upper tail has mass q, for |z| up to 3.1; r = -2 ln(q - q^2) - NEAR_CENTRE."""
    return fma(q, -2.0, 1.0) * horner(r, NEAR)


def far_quantile(r):
    """The same for |z| from 3 on; r = -2 ln(q - q^2) - FAR_CENTRE."""
    return horner(r, FAR)


def clamp(x, lowest, highest):
    return minimum(maximum(x, lowest), highest)


# --- the laws: random bits and parameters to one sample (normal: to two) -----------------------


def words(low, high):
    """The raw Philox word."""
    return high


def uniform(low, high, start, step, highest):
    """start + (length of the interval) * (the top bits as a fraction), at most `highest`.

    The step is the length over 2^24 (2^53): scaled by the law, once, with the same bits as scaling each fraction.
    """
    return minimum(fma(lattice(low, high), step, start), highest)


def uniform_inside(low, high, start, step, lowest, highest):
    """The same where the output dtype does not hold `start`, and would round below it."""
    return clamp(fma(lattice(low, high), step, start), lowest, highest)


def uniform_tiny(low, high, start, length, lowest, highest):
    """The same for intervals so short that their step is no normal number."""
    return clamp(fma(lattice(low, high) * LATTICE, length, start), lowest, highest)


def normal(low_a, high_a, low_b, high_b, mean, std):
    """Two independent normal samples from two draws (Box and Muller 1958)."""
    radius = sqrt(minus_two_log(inner_unit(low_a, high_a), 0.0)) * std
    c, s = turn(low_b, high_b)
    return fma(radius, c, mean), fma(radius, s, mean)


def tail_of(low, high, split, left_mass, right_mass, step):
    """Whether the draw lies left of the median of the untruncated normal, and the mass beyond it on its own side.

    Counted from the nearer end in steps of 2^-32 of the mass inside: a draw and its complement mirror each other.
    """
    left = high <= split
    start = where(left, left_mass, right_mass)
    return left, counted(where(left, low, low ^ 0xFFFFFFFF), where(left, high, high ^ 0xFFFFFFFF), step, start)


def truncated_central(low, high, split, left_mass, right_mass, step, mean, std, lowest, highest):
    """Normal given [lowest, highest], both bounds within 3.1 standard deviations of the mean."""
    left, q = tail_of(low, high, split, left_mass, right_mass, step)
    z = near_quantile(q, minus_two_log(fma(negative(q), q, q), -NEAR_CENTRE))
    return clamp(fma(where(left, negative(z), z), std, mean), lowest, highest)


def truncated_wide(low, high, split, left_mass, right_mass, step, mean, std, lowest, highest):
    """Normal given [lowest, highest], for any bounds that leave a mass of 1e-8 or more."""
    left, q = tail_of(low, high, split, left_mass, right_mass, step)
    x = fma(negative(q), q, q)
    near = near_quantile(q, minus_two_log(x, -NEAR_CENTRE))
    far = far_quantile(minus_two_log_finely(x, -FAR_CENTRE))
    z = where(q < FAR_BELOW, far, near)
    return clamp(fma(where(left, negative(z), z), std, mean), lowest, highest)


def truncated_narrow(low, high, middle, lowest, highest, series):
    """Normal given an interval so narrow that its quantile is a polynomial in the draw."""
    t = signed(low, high ^ 0x80000000)
    return clamp(fma(t, horner(t, series), middle), lowest, highest)


def truncated_tail(low, high, base, span, centre, middle, lowest, highest, series):
    """Normal given a far tail: its quantile is a polynomial in the logarithm of the mass that is left."""
    t = minus_two_log(fma(inner_unit(low, high), span, base), centre)
    return clamp(fma(t, horner(t, series), middle), lowest, highest)


# --- one rounding to the output dtype, nearest even, from float32 ------------------------------


def round_to_bfloat16(x):
    """The sixteen bits of the nearest bfloat16."""
    word = u32(bits(x))
    return (word + 0x7FFF + ((word >> 16) & 1)) >> 16


def round_to_float16(x):
    """The sixteen bits of the nearest float16, subnormal, infinite and nan ones too."""
    return narrowed(x, 13, 0xC8000FFF, 0x38800000, 0.5, 0x3F000000, 0x47800000, 0x7C00, 0x7E00, 16)


def round_to_float8_e5m2(x):
    """The eight bits of the nearest float8_e5m2, subnormal, infinite and nan ones too."""
    return narrowed(x, 21, 0xC80FFFFF, 0x38800000, 128.0, 0x43000000, 0x47800000, 0x7C, 0x7F, 24)


def round_to_float8_e4m3fn(x):
    """The eight bits of the nearest float8_e4m3fn, which has no infinity: its greatest number is as near as it gets."""
    return narrowed(x, 20, 0xC407FFFF, 0x3C800000, 16384.0, 0x46800000, 0x43E80000, 0x7E, 0x7F, 24)


def narrowed(x, dropped, rebias, normal_from, anchor, anchor_bits, overflow_from, overflow, nan, sign_shift):
    """A narrow format's bits: the significand without its last `dropped` bits, half to even, the exponent rebiased.

    `rebias` carries just under half of the last bit kept. Around `anchor` float32 counts in the narrow format's
    subnormal steps, so that adding it to a number below `normal_from` rounds to them. Magnitudes from
    `overflow_from` on become `overflow`. Limits are bits of float32, results bits of the narrow format.
    """
    word = u32(bits(x))
    magnitude = word & 0x7FFFFFFF
    normal = u32(magnitude + rebias + ((magnitude >> dropped) & 1)) >> dropped
    subnormal = u32(bits(unbits(i32(magnitude)) + anchor) - anchor_bits)
    narrow = where(magnitude < normal_from, subnormal, normal)
    narrow = where(magnitude >= overflow_from, overflow, narrow)
    narrow = where(magnitude > 0x7F800000, nan, narrow)
    return narrow | ((word & 0x80000000) >> sign_shift)


# --- binding -----------------------------------------------------------------------------------

# 2^-32 is the step of a word read as a fraction. A number kept below 1 by its last bit has a logarithm below 0,
# so that sqrt's argument is above 0 for every draw.
UNIT_64 = 2.0**-32
UNIT_LOW_64 = 2.0**-64
LATTICE_32, LATTICE_64 = 2.0**-24, 2.0**-53
UNIT_BELOW_ONE_32, UNIT_BELOW_ONE_64 = 2.0**-32 * (1 - 2.0**-24), 2.0**-32 * (1 - 2.0**-53)
HALF_STEP_32, HALF_STEP_64 = 2.0**-33, 2.0**-65
SQRT_HALF_BITS_32, SQRT_HALF_BITS_64 = 0x3F3504F3, 0x3FE6A09E667F3BCD
EXPONENT_MASK_32, EXPONENT_MASK_64 = -(1 << 23), -(1 << 52)


def bind(
    primitives: Mapping[str, Any],
    width: int,
    wrap: Callable[[types.FunctionType], Any] = lambda function: function,
    constant: Callable[[Any], Any] = lambda value: value,
) -> types.SimpleNamespace:
    """The functions above over `primitives`, in working precision float`width` (32 or 64).

    Names that end in _32 or _64 lose the ending that fits and vanish with the other. `wrap` decorates every
    function (`triton.jit`), `constant` every number and tuple (`tl.constexpr`).
    """
    scope: dict[str, Any] = {}
    for name, value in {**vars(coefficients), **globals()}.items():
        if name.endswith(("_32", "_64")):
            if not name.endswith(f"_{width}"):
                continue
            name = name.removesuffix(f"_{width}")
        if isinstance(value, types.FunctionType) and value is not bind:
            scope[name] = value
        elif name.isupper() and isinstance(value, (int, float, tuple)):
            scope[name] = constant(value)
    namespace = dict(primitives) | {name: v for name, v in scope.items() if not isinstance(v, types.FunctionType)}
    for name, function in scope.items():
        if isinstance(function, types.FunctionType):
            bound = types.FunctionType(function.__code__, namespace, function.__name__)
            bound.__module__, bound.__qualname__ = function.__module__, function.__qualname__
            namespace[name] = wrap(bound)
    return types.SimpleNamespace(**{name: namespace[name] for name in scope})
