"""The generator: Philox4x32-10 (Salmon et al., SC'11)."""

from __future__ import annotations

from .primitives import Number, mulhilo, u32

# Its multipliers and Weyl constants.
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85


def philox_round(
    c0: Number, c1: Number, c2: Number, c3: Number, k0: Number, k1: Number
) -> tuple[Number, Number, Number, Number]:
    high0, low0 = mulhilo(c0, M0)
    high1, low1 = mulhilo(c2, M1)
    return high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0


def bump(k0: Number, k1: Number) -> tuple[Number, Number]:
    return u32(k0 + W0), u32(k1 + W1)


def philox(
    c0: Number, c1: Number, c2: Number, c3: Number, k0: Number, k1: Number
) -> tuple[Number, Number, Number, Number]:
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
