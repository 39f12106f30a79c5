"""One rounding to the output dtype, to the nearest, half to even, from float32. Results are bits of the dtype."""

from __future__ import annotations

from .primitives import Number, bits, i32, u32, unbits, where


def round_to_bfloat16(x: Number) -> Number:
    """The sixteen bits of the nearest bfloat16."""
    word = u32(bits(x))
    return (word + 0x7FFF + ((word >> 16) & 1)) >> 16


def round_to_float16(x: Number) -> Number:
    """The sixteen bits of the nearest float16, subnormal, infinite and nan ones too."""
    return narrowed(x, 13, 0xC8000FFF, 0x38800000, 0.5, 0x3F000000, 0x47800000, 0x7C00, 0x7E00, 16)


def round_to_float8_e5m2(x: Number) -> Number:
    """The eight bits of the nearest float8_e5m2, subnormal, infinite and nan ones too."""
    return narrowed(x, 21, 0xC80FFFFF, 0x38800000, 128.0, 0x43000000, 0x47800000, 0x7C, 0x7F, 24)


def round_to_float8_e4m3fn(x: Number) -> Number:
    """The eight bits of the nearest float8_e4m3fn, which has no infinity: its greatest number is as near as it gets."""
    return narrowed(x, 20, 0xC407FFFF, 0x3C800000, 16384.0, 0x46800000, 0x43E80000, 0x7E, 0x7F, 24)


def narrowed(
    x: Number,
    dropped: Number,
    rebias: Number,
    normal_from: Number,
    anchor: Number,
    anchor_bits: Number,
    overflow_from: Number,
    overflow: Number,
    nan: Number,
    sign_shift: Number,
) -> Number:
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
