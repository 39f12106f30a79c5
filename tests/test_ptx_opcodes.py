"""What the PTX machine computes, opcode by opcode, against Python's own numbers."""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import math
import operator
import random
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from ptx_opcodes import BITS, OPCODES, RCP_ERROR, REAL, RSQRT_ERROR, SHORT_AND_WHOLE, WHOLE
from ptx_tiny import FILES, ran

from fastinit.kernels.dtypes import FORMATS

# --- numbers of each type ----------------------------------------------------------------------


def width_of(kind: str) -> int:
    return 32 if kind == "pred" else int(kind[1:])


def value_of(pattern: int, kind: str) -> Any:
    """The bits as what the type takes them for."""
    width = width_of(kind)
    if kind[0] == "f":
        return struct.unpack({32: "<f", 64: "<d"}[width], pattern.to_bytes(width // 8, "little"))[0]
    if kind == "pred":
        return bool(pattern)
    return pattern - (1 << width) if kind[0] == "s" and pattern >> width - 1 else pattern


def pattern_of(value: Any, kind: str) -> int:
    width = width_of(kind)
    if kind[0] == "f":
        return int.from_bytes(struct.pack({32: "<f", 64: "<d"}[width], value), "little")
    return int(value) % (1 << width)


FLOATS = [
    0.0, -0.0, 1.0, -1.0, 0.1, -2.5, 3.0, math.inf, -math.inf, math.nan,
    *(1 + 2.0**-k for k in (8, 9, 11, 12, 23, 24, 52)),  # ties of bfloat16, float16 and float32, and what breaks them
    1 + 3 * 2.0**-8, 1 + 3 * 2.0**-11, 65519.99, 65520.0, 2.0**-25, 3 * 2.0**-25, 5e-8, 16777219.0, 2.0**-126,
    2.0**-149, 3 * 2.0**-149, 2.0**-127, 3.4028234663852886e38, -3.3961775292304601e38, 1.0000001e-20, 1e-30,
]  # fmt: skip
DOUBLES = [
    2.0**-1074, 2.0**-1022, 3 * 2.0**-1074, 1e-300, 1e-160, -3e200, 1.7976931348623157e308, 1e16 + 2,
    1 + 2.0**-24 + 2.0**-50, 2.0**-150, 1e39, 1 - 2.0**-53,
]  # fmt: skip


def edges(kind: str) -> list[int]:
    """Patterns at which something may go wrong."""
    width = width_of(kind)
    if kind == "pred":
        return [0, 1]
    if kind[0] == "f":
        values = FLOATS if width == 32 else FLOATS + DOUBLES
        return [pattern_of(value, kind) for value in values]
    top = 1 << width - 1
    numbers = [2 * top - 1, 0, 1, 2, 5, 15, 16, 31, 32, 33, 63, 64, 65, 255, 256, 0x7FFF, 0x8000, top - 1, top, top + 1]
    numbers += [0x3340, 0x5410, 0xBA98, 0xDEADBEEF, 0x0123456789ABCDEF, 0xFEDCBA9876543210, (1 << 24) + 1]
    numbers += [(1 << 53) + 1, (1 << 25) + 3, (1 << 54) + 3]
    return sorted({number % (1 << width) for number in numbers})


def combinations(kinds: tuple[str, ...], most: int = 250) -> list[tuple[int, ...]]:
    every = list(itertools.islice(itertools.product(*map(edges, kinds)), 100_000))
    return every if len(every) <= most else random.Random(1).sample(every, most)


# --- one instruction, for many operands --------------------------------------------------------


def executed(opcode: str, inputs: list[tuple[int, ...]]) -> list[int]:
    """The patterns that the machine computes, by a kernel that takes all operands as parameters."""
    result, sources, _, _ = OPCODES[opcode]
    body, step = [], width_of(result) // 8
    numbers = itertools.count()
    for place in range(len(inputs)):
        names = []
        for k, kind in enumerate(sources, 1):
            width = width_of(kind)
            body.append(f"ld.param.b{width} {FILES[width]}{k}, [p{next(numbers)}];")
            if kind == "pred":
                body.append(f"setp.ne.b32 %p{k}, %r{k}, 0;")
            names.append(f"{FILES['pred' if kind == 'pred' else width]}{k}")
        target = FILES["pred" if result == "pred" else 8 * step] + "0"
        target = "%rd8" if target == "%rd0" else target
        body.append(f"{opcode} {', '.join([target, *names])};")
        if result == "pred":
            body.append(f"selp.b32 %r0, 1, 0, {target};")
            target = "%r0"
        body.append(f"st.global.b{8 * step} [%rd0 + {place * step}], {{ {target} }};")
    parameters = [f"b{width_of(kind)}" for kind in sources] * len(inputs)
    data = ran("\n".join(body), step * len(inputs), parameters, [x for operands in inputs for x in operands])
    return [int.from_bytes(data[place : place + step], "little") for place in range(0, len(data), step)]


def check(opcode: str, truth: Callable[..., Any], inputs: list[tuple[int, ...]] | None = None) -> None:
    result, sources, _, _ = OPCODES[opcode]
    inputs = combinations(sources) if inputs is None else inputs
    for operands, got in zip(inputs, executed(opcode, inputs), strict=True):
        expected = truth(*(value_of(pattern, kind) for pattern, kind in zip(operands, sources, strict=True)))
        same_nan = result[0] == "f" and math.isnan(expected) and math.isnan(value_of(got, result))
        assert same_nan or got == pattern_of(expected, result), (opcode, operands, hex(got), expected)


# --- truth -------------------------------------------------------------------------------------


def nearest(exact: Fraction, dtype: torch.dtype) -> float:
    """The nearest number of a format, ties to even: from the definition."""
    form = FORMATS[dtype]
    if exact == 0:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    step = Fraction(2) ** max(exponent - form.precision + 1, form.smallest)
    rounded = round(exact / step) * step
    if abs(rounded) > Fraction(form.greatest):
        return math.copysign(math.inf, exact)
    return math.copysign(float(rounded), exact)


def single(plain: Callable[..., float]) -> Callable[..., float]:
    """An operation as float32 has it: exact and rounded once; what float64 says where that is no number or 0."""

    def truth(*operands: float) -> float:
        try:
            loose = plain(*operands)
            exact = plain(*map(Fraction, operands))
        except (OverflowError, ValueError):  # an infinity or nan, as a fraction
            return loose
        return nearest(exact, torch.float32) if exact else loose

    return truth


LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
LIBM.fmaf.restype, LIBM.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
LIBM.fma.restype, LIBM.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3


def least(a: float, b: float, sign: int) -> float:
    """The minimum, or for sign -1 the maximum: -0 below 0, and a number rather than a nan."""
    numbers = [x for x in (a, b) if not math.isnan(x)]
    return min(numbers, key=lambda x: (sign * x, sign * math.copysign(1, x)), default=math.nan)


def root(x: float) -> float:
    return math.nan if math.isnan(x) or x < 0 else math.sqrt(x)


def divided(a: Any, b: Any) -> Any:
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


def divided_32(a: float, b: float) -> float:
    return divided(a, b) if b == 0 else single(operator.truediv)(a, b)


def upwards(x: float) -> float:
    return math.copysign(math.ceil(x), x) if math.isfinite(x) else x


def to_int64(x: float) -> int:
    if math.isnan(x) or x < -(2**63):
        return -(2**63)
    return min(int(x), 2**63 - 1) if math.isfinite(x) else 2**63 - 1


def remainder(a: int, b: int) -> int:
    return int(math.fmod(a, b))


def towards_zero(a: int, b: int) -> int:
    return (a - remainder(a, b)) // b


def shifted_left(width: int) -> Callable[[int, int], int]:
    return lambda a, n: a << n if n < width else 0


def shifted_right(a: int, n: int) -> int:
    return a >> min(n, 64)  # Python's keeps the sign


def extracted(a: int, start: int, length: int) -> int:
    return (a >> (start & 255)) & ((1 << (length & 255)) - 1)


def inserted(a: int, b: int, start: int, length: int) -> int:
    for k in range(length & 255):
        if (start & 255) + k < 32:
            place = (start & 255) + k
            b = b & ~(1 << place) | (a >> k & 1) << place
    return b


def permuted(a: int, b: int, selector: int) -> int:
    eight, result = (b << 32 | a).to_bytes(8, "little"), []
    for k in range(4):
        choice = selector >> 4 * k & 15
        byte = eight[choice & 7]
        result.append((255 if byte > 127 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def sixteen(dtype: torch.dtype) -> Callable[[float], int]:
    """The bits of a narrow format."""

    def truth(x: float) -> int:
        if math.isnan(x):
            return 0x7FFF
        value = x if math.isinf(x) or x == 0 else nearest(Fraction(x), dtype)
        if dtype is torch.float16:
            return int.from_bytes(struct.pack("<e", value), "little")
        return pattern_of(value, "f32") >> 16

    return truth


TRUTHS: dict[str, Callable[..., Any]] = {
    "fma.rn.f32": LIBM.fmaf,
    "fma.rn.f64": LIBM.fma,
    "sqrt.rn.f32": lambda x: np.float32(root(x)),  # of 53 bits and then of 24 is as if of 24 at once
    "sqrt.rn.f64": root,
    "mul.wide.u32": operator.mul,
    "mul.wide.s32": operator.mul,
    "mad.wide.u32": lambda a, b, c: a * b + c,
    "mad.wide.s32": lambda a, b, c: a * b + c,
    "bfe.u32": extracted,
    "bfi.b32": inserted,
    "prmt.b32": permuted,
    "div.rn.f32": divided_32,
    "div.rn.f64": divided,
    "mul.hi.u32": lambda a, b: a * b >> 32,
    "cvt.rpi.f64.f64": upwards,
    "cvt.rpi.f32.f32": upwards,
    "cvt.rzi.s64.f64": to_int64,
    "cvt.f64.f32": float,
    "cvt.rn.f32.f64": single(lambda x: +x),
}
for name, plain in (("add", operator.add), ("sub", operator.sub), ("mul", operator.mul)):
    for rounding in ("", ".rn"):
        TRUTHS |= {f"{name}{rounding}.f32": single(plain), f"{name}{rounding}.f64": plain}
    low = "mul.lo" if name == "mul" else name
    TRUTHS |= {f"{low}.{kind}": plain for kind in WHOLE}
for kind in REAL:
    TRUTHS |= {f"neg.{kind}": operator.neg, f"abs.{kind}": abs}
    TRUTHS |= {f"min.{kind}": lambda a, b: least(a, b, 1), f"max.{kind}": lambda a, b: least(a, b, -1)}
    TRUTHS |= {f"setp.num.{kind}": lambda a, b: not (math.isnan(a) or math.isnan(b))}
    TRUTHS |= {f"setp.nan.{kind}": lambda a, b: math.isnan(a) or math.isnan(b)}
    dtype = {"f32": torch.float32, "f64": torch.float64}[kind]
    TRUTHS |= {f"cvt.rn.{kind}.{source}": lambda a, dtype=dtype: nearest(Fraction(a), dtype) for source in WHOLE}
for kind in WHOLE:
    TRUTHS |= {f"mad.lo.{kind}": lambda a, b, c: a * b + c, f"min.{kind}": min, f"max.{kind}": max}
for kind in ("s32", "s64"):
    TRUTHS |= {f"neg.{kind}": operator.neg}
for kind in (*BITS, "pred"):
    TRUTHS |= {f"and.{kind}": operator.and_, f"or.{kind}": operator.or_, f"xor.{kind}": operator.xor}
    TRUTHS |= {f"not.{kind}": operator.not_ if kind == "pred" else operator.invert}
for kind in (*BITS, *SHORT_AND_WHOLE):
    TRUTHS |= {f"shr.{kind}": shifted_right}
    TRUTHS |= {f"shl.{kind}": shifted_left(width_of(kind))} if kind in BITS else {}
    for name in ("eq", "ne") if kind in BITS else ("eq", "ne", "lt", "le", "gt", "ge"):
        TRUTHS[f"setp.{name}.{kind}"] = getattr(operator, name)
for kind in (*BITS, *SHORT_AND_WHOLE, *REAL, "pred"):
    TRUTHS[f"mov.{kind}"] = lambda a: a
    if kind != "pred":
        TRUTHS[f"selp.{kind}"] = lambda a, b, chosen: a if chosen else b
for kind, name in itertools.product(REAL, ("eq", "ne", "lt", "le", "gt", "ge")):
    order = getattr(operator, name)
    TRUTHS[f"setp.{name}.{kind}"] = lambda a, b, order=order: order(a, b) and a == a and b == b
    TRUTHS[f"setp.{name}u.{kind}"] = lambda a, b, order=order: order(a, b) or a != a or b != b
TRUTHS |= {f"cvt.{to}.{kind}": lambda a: a for to, kind in itertools.permutations(SHORT_AND_WHOLE, 2)}
for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
    convert = sixteen(dtype)
    TRUTHS[f"cvt.rn.{name}.f32"] = convert
    TRUTHS[f"cvt.rn.{name}.s64"] = lambda a, convert=convert: convert(a)
    TRUTHS[f"cvt.rn.{name}x2.f32"] = lambda a, b, convert=convert: convert(a) << 16 | convert(b)
PAIRS = {f"{name}.rn.f32x2": f"{name}.rn.f32" for name in ("add", "sub", "mul", "fma")}
DIVISIONS = {
    f"{name}.{kind}": truth for name, truth in (("div", towards_zero), ("rem", remainder)) for kind in WHOLE[:2]
}
ROOT, INVERSE = "rsqrt.approx.ftz.f32", "rcp.approx.ftz.f32"


# --- tests -------------------------------------------------------------------------------------


def test_every_opcode_is_tested():
    assert OPCODES.keys() == TRUTHS.keys() | PAIRS.keys() | DIVISIONS.keys() | {ROOT, INVERSE}


@pytest.mark.parametrize("opcode", sorted(TRUTHS))
def test_an_opcode(opcode):
    check(opcode, TRUTHS[opcode])


def test_the_comparison_can_fail():
    """The twin: a truth that is wrong for one operand in a thousand."""
    with pytest.raises(AssertionError, match="min"):
        check("min.f32", min)  # Python's does not know that -0 is below 0, nor what to do with a nan


@pytest.mark.parametrize("opcode", PAIRS)
def test_two_in_a_register_are_computed_apart(opcode):
    one = PAIRS[opcode]
    low = combinations(OPCODES[one].sources)
    high = low[1:] + low[:1]
    packed = [tuple(h << 32 | x for h, x in zip(*both, strict=True)) for both in zip(high, low, strict=True)]
    got = executed(opcode, packed)
    assert [number & 0xFFFFFFFF for number in got] == executed(one, low)
    assert [number >> 32 for number in got] == executed(one, high)


@pytest.mark.parametrize("opcode", DIVISIONS)
def test_divisions_go_towards_zero(opcode):
    least, minus_one = 1 << 31, (1 << 32) - 1
    inputs = [(a, b) for a, b in combinations(OPCODES[opcode].sources) if b and (a, b) != (least, minus_one)]
    check(opcode, DIVISIONS[opcode], inputs)
    with pytest.raises(ZeroDivisionError):
        executed(opcode, [(1, 0)])


def test_fma_rounds_float32_once():
    """Ties of float32 that float64 cannot tell from what lies next to them."""
    bases = [(1 + k * 2.0**-12, 1 + n * 2.0**-12) for k in range(1, 12, 2) for n in range(1, 12, 2)]
    inputs = [(x, y, sign * 2.0**-k) for x, y in bases for k in (60, 90, 149) for sign in (1, -1)]
    check("fma.rn.f32", LIBM.fmaf, [tuple(pattern_of(v, "f32") for v in values) for values in inputs])
    assert any(np.float32(x * y + z) != LIBM.fmaf(x, y, z) for x, y, z in inputs)


def test_fma_rounds_float64_once():
    """Products that a third number all but takes away, in the middle of the range and at its ends."""
    generator, inputs = random.Random(2), []
    for scale in (1.0, 1e-160, 1e-155, 1e-150, 2.0**-510, 2.0**-537, 1e150, 1e154, 1.3e154):
        for _ in range(60):
            x, y = (scale * generator.uniform(-1.5, 1.5) for _ in range(2))
            for z in (-x * y, -x * y * (1 + 2.0**-52), x * y * 2.0**-54, generator.uniform(-1, 1) * scale * scale):
                inputs.append((x, y, z))
    check("fma.rn.f64", LIBM.fma, [tuple(pattern_of(v, "f64") for v in values) for values in inputs])
    assert any(x * y + z != LIBM.fma(x, y, z) for x, y, z in inputs)


# --- the approximate reciprocal root -----------------------------------------------------------


@pytest.mark.parametrize("x", [1.0, 2.0, 3.9999997615814209, 0.1, 88.7, 2.0**-126, 3.4028234663852886e38])
def test_the_approximate_root_is_any_number_within_its_error(x):
    near = np.float32(1 / math.sqrt(np.float32(x)))
    ladder = (near.view(np.int32) + np.arange(-9, 10, dtype=np.int32)).view(np.float32)
    allowed = [v for v in ladder.tolist() if abs(v * math.sqrt(np.float32(x)) - 1) <= RSQRT_ERROR]
    got = OPCODES[ROOT].compute(np.random.default_rng(0), np.full((1, 4000), x, np.float32))
    assert 2 <= len(allowed) <= 6
    assert sorted(set(got[0].tolist())) == allowed


@pytest.mark.parametrize("x", [1.0, -1.5, 1.9999998807907104, 0.1, 88.7, 2.0**-126, -(2.0**125)])
def test_the_approximate_inverse_is_any_number_within_its_error(x):
    near = np.float32(1 / np.float32(x))
    ladder = (near.view(np.int32) + np.arange(-9, 10, dtype=np.int32)).view(np.float32)
    allowed = [v for v in ladder.tolist() if abs(v * float(np.float32(x)) - 1) <= RCP_ERROR]
    got = OPCODES[INVERSE].compute(np.random.default_rng(0), np.full((1, 4000), x, np.float32))
    assert 2 <= len(allowed) <= 4
    assert sorted(set(got[0].tolist())) == sorted(allowed)


def test_the_approximate_inverse_of_what_is_not_normal():
    """Subnormal numbers count as zeros, and are never a result."""
    values = [0.0, -0.0, 2.0**-127, -(2.0**-149), math.inf, -math.inf, 2.0**127, math.nan]
    got = [value_of(x, "f32") for x in executed(INVERSE, [(pattern_of(value, "f32"),) for value in values])]
    assert got[:7] == [math.inf, -math.inf, math.inf, -math.inf, 0, 0, 0]
    assert [math.copysign(1, x) for x in got[4:7]] == [1, -1, 1]
    assert math.isnan(got[7])


def test_the_approximate_root_of_what_is_not_normal():
    """Subnormal numbers count as zeros."""
    values = [0.0, -0.0, 2.0**-127, -(2.0**-149), -1.0, math.inf, -math.inf, math.nan]
    got = [value_of(x, "f32") for x in executed(ROOT, [(pattern_of(value, "f32"),) for value in values])]
    assert got[:4] == [math.inf, -math.inf, math.inf, -math.inf]
    assert got[5] == 0
    assert all(math.isnan(got[k]) for k in (4, 6, 7))
