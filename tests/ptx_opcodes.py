"""What PTX instructions compute, over NumPy arrays: the table that the machine in `ptx.py` runs from.

Every opcode stands here with all of its modifiers and with the types of its operands; what does not stand here is not
known. Meanings are those of the PTX ISA 9.0, chapter 9.7. Which nan an operation on nans gives is left to NumPy, but
for conversions to sixteen bits, where the ISA says which one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinit.kernels.plain import fma as exact

Array = NDArray[Any]
DTYPES: dict[str, type[np.generic]] = {"pred": np.bool_} | {
    f"{letter}{width}": getattr(np, f"{name}{width}")
    for letter, name in (("b", "uint"), ("u", "uint"), ("s", "int"), ("f", "float"))
    for width in (8, 16, 32, 64)
    if (letter, width) != ("f", 8)
}
# Relative; PTX ISA, rsqrt.approx.ftz.f32 and rcp.approx.ftz.f32.
RSQRT_ERROR, RCP_ERROR = 2.0**-22.9, 2.0**-23


class Operation(NamedTuple):
    """An instruction with one result. An approximate one is handed a random generator before its operands."""

    result: str
    sources: tuple[str, ...]
    compute: Callable[..., Array]
    approximate: bool = False


# --- integers ----------------------------------------------------------------------------------


def quotient(a: Array, b: Array) -> Array:
    """a / b towards zero. The ISA leaves division by zero open, so no kernel may come to it."""
    if not b.all():
        raise ZeroDivisionError("PTX does not say what a division by zero gives")
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    magnitude = np.abs(wide_a) // np.abs(wide_b)
    return np.where((wide_a < 0) == (wide_b < 0), magnitude, -magnitude).astype(a.dtype)


def shift_left(a: Array, count: Array) -> Array:
    """Counts of the width and more leave nothing; in C they would be undefined."""
    most = a.dtype.itemsize * 8 - 1
    shifted = a << np.minimum(count, most).astype(a.dtype)
    return np.where(count > most, a.dtype.type(0), shifted)


def shift_right(a: Array, count: Array) -> Array:
    """The same, but signed numbers leave copies of their sign."""
    most = a.dtype.itemsize * 8 - 1
    shifted = a >> np.minimum(count, most).astype(a.dtype)
    gone = np.where(a < 0, a.dtype.type(-1), a.dtype.type(0)) if a.dtype.kind == "i" else a.dtype.type(0)
    return np.where(count > most, gone, shifted)


def field_mask(start: Array, length: Array) -> Array:
    """The bits of a field, of which some may lie beyond bit 31."""
    ones = shift_left(np.uint64(1)[None, None], length) - np.uint64(1)
    return shift_left(ones, start).astype(np.uint32)


def extract_field(a: Array, start: Array, length: Array) -> Array:
    start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
    return shift_right(a & field_mask(start, length), start)


def insert_field(a: Array, b: Array, start: Array, length: Array) -> Array:
    start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
    mask = field_mask(start, length)
    return (b & ~mask) | (shift_left(a, start) & mask)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """Four bytes of the eight of {b, a}, each chosen by four bits: its number, and whether to copy its sign only."""
    eight = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros(np.broadcast_shapes(eight.shape, selector.shape), np.uint32)
    for place in range(4):
        choice = (selector >> np.uint32(4 * place)) & np.uint32(15)
        shift = (choice & np.uint32(7)).astype(np.uint64) * np.uint64(8)
        byte = ((eight >> shift) & np.uint64(0xFF)).astype(np.uint32)
        byte = np.where(choice >= 8, (byte >> np.uint32(7)) * np.uint32(0xFF), byte)
        result |= byte << np.uint32(8 * place)
    return result


# --- floats ------------------------------------------------------------------------------------


def fma_32(x: Array, y: Array, z: Array) -> Array:
    x, y, z = (value.astype(np.float64) for value in (x, y, z))
    return exact.fma_for_float32(x, y, z, np).astype(np.float32)  # type: ignore[no-any-return]


def fma_64(x: Array, y: Array, z: Array) -> Array:
    """Rounded once for all numbers: where `exact.fma` does not reach, in rational numbers."""
    x, y, z = np.broadcast_arrays(x, y, z)
    product = x * y
    middling = [(np.abs(value) >= 1e-290) & (np.abs(value) <= 1e290) for value in (x, y, product, z)]
    regular = middling[0] & middling[1] & middling[2] & (middling[3] | (z == 0))
    # Where a factor is 0, or something is infinite or nan, rounding twice does no harm, if it makes no infinity.
    special = np.where(np.isinf(z) & np.isfinite(x) & np.isfinite(y), z, product + z)
    result = np.where(regular, exact.fma(x, y, z, np), special)
    rest = ~regular & (x != 0) & (y != 0) & np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    for place in np.argwhere(rest):
        result[tuple(place)] = rational_fma(*(float(value[tuple(place)]) for value in (x, y, z)))
    return result


def rational_fma(x: float, y: float, z: float) -> float:
    total = Fraction(x) * Fraction(y) + Fraction(z)
    try:
        return float(total)
    except OverflowError:
        return np.inf if total > 0 else -np.inf


def smaller(a: Array, b: Array) -> Array:
    """The minimum: -0 is below 0, and a nan yields to a number."""
    zeros = (bits(a) | bits(b)).view(a.dtype)
    return np.where(a == b, zeros, np.fmin(a, b))


def larger(a: Array, b: Array) -> Array:
    zeros = (bits(a) & bits(b)).view(a.dtype)
    return np.where(a == b, zeros, np.fmax(a, b))


def bits(a: Array) -> Array:
    return a.view(DTYPES[f"u{a.dtype.itemsize * 8}"])


def flushed(x: Array) -> Array:
    """Subnormal numbers as zeros."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def approximately(generator: np.random.Generator, exact: Array, error: float) -> Array:
    """Any float32 within a relative error of what is exact, each as likely; of one sign, as `exact` is a float64."""
    regular = np.isfinite(exact) & (exact != 0)
    inner = np.where(regular, np.abs(exact), 1.0)
    low, high = inner * (1 - error), inner * (1 + error)
    first, last = low.astype(np.float32), high.astype(np.float32)
    first = np.where(first < low, np.nextafter(first, np.float32(np.inf)), first)
    last = np.where(last > high, np.nextafter(last, np.float32(0)), last)
    pattern = generator.integers(first.view(np.int32), last.view(np.int32), endpoint=True)
    found = np.copysign(pattern.astype(np.int32).view(np.float32), exact.astype(np.float32))
    return np.where(regular, found, exact.astype(np.float32))


def rsqrt_approximately(generator: np.random.Generator, x: Array) -> Array:
    return approximately(generator, 1 / np.sqrt(flushed(x).astype(np.float64)), RSQRT_ERROR)


def rcp_approximately(generator: np.random.Generator, x: Array) -> Array:
    return flushed(approximately(generator, 1 / flushed(x).astype(np.float64), RCP_ERROR))


def to_float16(x: Array) -> Array:
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def to_bfloat16(x: Array) -> Array:
    word = bits(x)
    rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def whole_to_bfloat16(a: Array) -> Array:
    """Rounded once: on the way through float64, numbers of more than 53 bits are rounded to odd."""
    x = a.astype(np.float64)
    back = np.where(x < 2.0**63, x, 0).astype(np.int64)  # 2^63 is above every number
    pattern = x.view(np.int64) - ((np.abs(x) >= 2.0**63) | (np.abs(back) > np.abs(a)))
    inexact = pattern.view(np.float64).astype(np.int64) != a
    pattern |= inexact
    dropped = 52 - 7
    pattern += (1 << dropped - 1) - 1 + (pattern >> dropped & 1)
    rounded = (pattern >> dropped << dropped).view(np.float64).astype(np.float32)
    return (bits(rounded) >> np.uint32(16)).astype(np.uint16)


def truncated(x: Array) -> Array:
    """To int64, towards zero; what does not fit becomes the nearest that does, a nan the least."""
    inside = (x > -(2.0**63)) & (x < 2.0**63)
    whole = np.where(inside, x, 0.0).astype(np.int64)
    return np.where(inside, whole, np.where(x > 0, 2**63 - 1, -(2**63)))


# --- two in a register -------------------------------------------------------------------------


def both(convert: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """Two float32 as two of sixteen bits; the first of them becomes the high half."""
    return lambda a, b: (convert(a).astype(np.uint32) << np.uint32(16)) | convert(b).astype(np.uint32)


def twice(compute: Callable[..., Array]) -> Callable[..., Array]:
    """A float32 operation on the low and on the high halves of 64 bits."""

    def run(*operands: Array) -> Array:
        low = compute(*(value.astype(np.uint32).view(np.float32) for value in operands))
        high = compute(*((value >> np.uint64(32)).astype(np.uint32).view(np.float32) for value in operands))
        return (bits(high).astype(np.uint64) << np.uint64(32)) | bits(low).astype(np.uint64)

    return run


# --- the table ---------------------------------------------------------------------------------

OPCODES: dict[str, Operation] = {}
WHOLE = ("s32", "u32", "s64", "u64")
SHORT_AND_WHOLE = ("s16", "u16", *WHOLE)
BITS = ("b16", "b32", "b64")
REAL = ("f32", "f64")
ORDERS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def enter(opcode: str, types: tuple[str, ...], sources: str, compute: Callable[..., Array], result: str = "T") -> None:
    """Enter an opcode once for each type, which stands for T."""
    for name in types:
        operation = Operation(result.replace("T", name), tuple(sources.replace("T", name).split()), compute)
        OPCODES[opcode.replace("T", name)] = operation


for name, compute in (("add", np.add), ("sub", np.subtract)):
    enter(f"{name}.T", WHOLE, "T T", compute)
    # Without a rounding mode the ISA lets ptxas contract; `test_gpu_assembly` sees to it that no kernel has such.
    enter(f"{name}.T", REAL, "T T", compute)
    enter(f"{name}.rn.T", REAL, "T T", compute)
    enter(f"{name}.rn.f32x2", ("b64",), "T T", twice(compute))
enter("mul.T", REAL, "T T", np.multiply)
enter("mul.rn.T", REAL, "T T", np.multiply)
enter("mul.rn.f32x2", ("b64",), "T T", twice(np.multiply))
enter("fma.rn.f32", ("f32",), "T T T", fma_32)
enter("fma.rn.f64", ("f64",), "T T T", fma_64)
enter("fma.rn.f32x2", ("b64",), "T T T", twice(fma_32))
enter("div.rn.T", REAL, "T T", np.divide)
enter("neg.T", REAL, "T", np.negative)
enter("abs.T", REAL, "T", np.abs)
enter("min.T", REAL, "T T", smaller)
enter("max.T", REAL, "T T", larger)
enter("sqrt.rn.T", REAL, "T", np.sqrt)
OPCODES["rcp.approx.ftz.f32"] = Operation("f32", ("f32",), rcp_approximately, approximate=True)
OPCODES["rsqrt.approx.ftz.f32"] = Operation("f32", ("f32",), rsqrt_approximately, approximate=True)

enter("mul.lo.T", WHOLE, "T T", np.multiply)
enter("mul.hi.u32", ("u32",), "T T", lambda a, b: (a.astype(np.uint64) * b >> np.uint64(32)).astype(np.uint32))
enter("mad.lo.T", WHOLE, "T T T", lambda a, b, c: a * b + c)
enter("mul.wide.T", ("u32",), "T T", lambda a, b: a.astype(np.uint64) * b.astype(np.uint64), "u64")
enter("mul.wide.T", ("s32",), "T T", lambda a, b: a.astype(np.int64) * b.astype(np.int64), "s64")
enter("mad.wide.T", ("u32",), "T T u64", lambda a, b, c: a.astype(np.uint64) * b.astype(np.uint64) + c, "u64")
enter("mad.wide.T", ("s32",), "T T s64", lambda a, b, c: a.astype(np.int64) * b.astype(np.int64) + c, "s64")
enter("div.T", ("s32", "u32"), "T T", quotient)
enter("rem.T", ("s32", "u32"), "T T", lambda a, b: a - quotient(a, b) * b)
enter("min.T", WHOLE, "T T", np.minimum)
enter("max.T", WHOLE, "T T", np.maximum)
enter("neg.T", ("s32", "s64"), "T", np.negative)
for name in ("and", "or", "xor"):
    enter(f"{name}.T", (*BITS, "pred"), "T T", getattr(np, f"bitwise_{name}"))
enter("not.T", (*BITS, "pred"), "T", np.invert)
enter("shl.T", BITS, "T u32", shift_left)
enter("shr.T", (*BITS, *SHORT_AND_WHOLE), "T u32", shift_right)
enter("bfe.u32", ("u32",), "T u32 u32", extract_field)
enter("bfi.b32", ("b32",), "T T u32 u32", insert_field)
enter("prmt.b32", ("b32",), "T T b32", permute_bytes)

enter("mov.T", (*BITS, *SHORT_AND_WHOLE, *REAL, "pred"), "T", lambda a: a)
enter("selp.T", (*BITS, *SHORT_AND_WHOLE, *REAL), "T T pred", lambda a, b, chosen: np.where(chosen, a, b))
for name, order in ORDERS.items():
    enter(f"setp.{name}.T", SHORT_AND_WHOLE if name[0] in "lg" else (*BITS, *SHORT_AND_WHOLE), "T T", order, "pred")
    enter(f"setp.{name}.T", REAL, "T T", lambda a, b, order=order: order(a, b) & (a == a) & (b == b), "pred")
    enter(f"setp.{name}u.T", REAL, "T T", lambda a, b, order=order: order(a, b) | (a != a) | (b != b), "pred")
enter("setp.num.T", REAL, "T T", lambda a, b: (a == a) & (b == b), "pred")
enter("setp.nan.T", REAL, "T T", lambda a, b: (a != a) | (b != b), "pred")

for target in SHORT_AND_WHOLE:
    others = tuple(name for name in SHORT_AND_WHOLE if name != target)
    enter(f"cvt.{target}.T", others, "T", lambda a, dtype=DTYPES[target]: a.astype(dtype), target)
for target in REAL:
    enter(f"cvt.rn.{target}.T", WHOLE, "T", lambda a, dtype=DTYPES[target]: a.astype(dtype), target)
enter("cvt.f64.f32", ("f32",), "T", lambda a: a.astype(np.float64), "f64")
enter("cvt.rn.f32.f64", ("f64",), "T", lambda a: a.astype(np.float32), "f32")
for name, convert in (("f16", to_float16), ("bf16", to_bfloat16)):
    enter(f"cvt.rn.{name}.f32", ("f32",), "T", convert, "b16")
    enter(f"cvt.rn.{name}x2.f32", ("f32",), "T T", both(convert), "b32")
enter("cvt.rn.f16.s64", ("s64",), "T", lambda a: a.astype(np.float64).astype(np.float16).view(np.uint16), "b16")
enter("cvt.rn.bf16.s64", ("s64",), "T", whole_to_bfloat16, "b16")
enter("cvt.rzi.s64.f64", ("f64",), "T", truncated, "s64")
enter("cvt.rpi.T.T", REAL, "T", np.ceil)
