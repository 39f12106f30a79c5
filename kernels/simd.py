"""Sixteen lanes at once, as LLVM vectors: the arithmetic's primitives for the CPU engine.

An instance stands for a value inside a function that is being built. Running the arithmetic over such
values writes its instructions into that function: straight vector code, with nothing left for a
loop vectoriser to find. LLVM cuts the sixteen lanes into registers of whatever width the CPU has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

LANES = 16
TYPES = {
    "u32": ir.IntType(32), "i32": ir.IntType(32), "u64": ir.IntType(64), "i64": ir.IntType(64),
    "f32": ir.FloatType(), "f64": ir.DoubleType(), "mask": ir.IntType(1),
}  # fmt: skip


class Lanes:
    """Sixteen values of one kind, or one value that all lanes share (kept scalar until a vector meets it)."""

    __slots__ = ("builder", "kind", "value")

    def __init__(self, builder: ir.IRBuilder, kind: str, value: ir.Value) -> None:
        self.builder, self.kind, self.value = builder, kind, value

    @property
    def shared(self) -> bool:
        return not isinstance(self.value.type, ir.VectorType)

    def spread(self) -> Lanes:
        """The same value in a vector, if it is shared."""
        if not self.shared:
            return self
        vector = ir.VectorType(TYPES[self.kind], LANES)
        first = self.builder.insert_element(
            ir.Constant(vector, ir.Undefined), self.value, ir.Constant(ir.IntType(32), 0)
        )
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return Lanes(
            self.builder, self.kind, self.builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)
        )

    def constant(self, number: float) -> Lanes:
        """A Python number of this kind, shared."""
        if self.kind in ("f32", "f64"):
            return Lanes(self.builder, self.kind, ir.Constant(TYPES[self.kind], float(number)))
        bits = TYPES[self.kind].width
        return Lanes(self.builder, self.kind, ir.Constant(TYPES[self.kind], int(number) % (1 << bits)))

    def cast(self, kind: str, instruction: str) -> Lanes:
        target: Any = TYPES[kind] if self.shared else ir.VectorType(TYPES[kind], LANES)
        return Lanes(self.builder, kind, getattr(self.builder, instruction)(self.value, target))

    def _binary(self, other: Any, emit: Callable[[Any, Any], ir.Value], kind: str | None = None) -> Lanes:
        first, second = alike(self, other)
        return Lanes(self.builder, kind or self.kind, emit(first.value, second.value))

    def _arithmetic(self, other: Any, name: str) -> Lanes:
        instruction = f"f{name}" if self.kind in ("f32", "f64") else name
        return self._binary(other, getattr(self.builder, instruction))

    def __add__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "add")

    def __sub__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "sub")

    def __mul__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "mul")

    def __neg__(self) -> Lanes:
        return Lanes(self.builder, self.kind, self.builder.fneg(self.value))

    def __and__(self, other: Any) -> Lanes:
        return self._binary(other, self.builder.and_)

    def __or__(self, other: Any) -> Lanes:
        return self._binary(other, self.builder.or_)

    def __xor__(self, other: Any) -> Lanes:
        return self._binary(other, self.builder.xor)

    def __lshift__(self, count: int) -> Lanes:
        return self._binary(count, self.builder.shl)

    def __rshift__(self, count: int) -> Lanes:
        signed = self.kind in ("i32", "i64")
        return self._binary(count, self.builder.ashr if signed else self.builder.lshr)

    def _compare(self, other: Any, operator: str) -> Lanes:
        if self.kind in ("f32", "f64"):
            return self._binary(other, lambda a, b: self.builder.fcmp_ordered(operator, a, b), "mask")
        signed = self.kind in ("i32", "i64")
        compare = self.builder.icmp_signed if signed else self.builder.icmp_unsigned
        return self._binary(other, lambda a, b: compare(operator, a, b), "mask")

    def __lt__(self, other: Any) -> Lanes:
        return self._compare(other, "<")

    def __le__(self, other: Any) -> Lanes:
        return self._compare(other, "<=")

    def __gt__(self, other: Any) -> Lanes:
        return self._compare(other, ">")

    def __ge__(self, other: Any) -> Lanes:
        return self._compare(other, ">=")

    def __ne__(self, other: Any) -> Lanes:  # type: ignore[override]
        return self._compare(other, "!=")


def alike(first: Lanes, *others: Any) -> list[Lanes]:
    """All values as Lanes of the first one's kind, all vectors if one is."""
    values = [first]
    for other in others:
        value = other if isinstance(other, Lanes) else first.constant(other)
        if value.kind != first.kind:
            raise TypeError(f"a value of kind {first.kind} met one of kind {value.kind}")
        values.append(value)
    return values if all(value.shared for value in values) else [value.spread() for value in values]


def numbers(builder: ir.IRBuilder, kind: str, values: Sequence[int]) -> Lanes:
    """Sixteen constants."""
    return Lanes(builder, kind, ir.Constant(ir.VectorType(TYPES[kind], LANES), list(values)))


def _intrinsic(name: str, *arguments: Lanes) -> Lanes:
    first = arguments[0]
    kind = first.value.type
    suffix = ("f32" if first.kind == "f32" else "f64") if first.shared else f"v{LANES}{first.kind}"
    function_type = ir.FunctionType(kind, [kind] * len(arguments))
    module = first.builder.module
    function = module.globals.get(f"llvm.{name}.{suffix}") or ir.Function(
        module, function_type, f"llvm.{name}.{suffix}"
    )
    return Lanes(first.builder, first.kind, first.builder.call(function, [argument.value for argument in arguments]))


def fma(x: Any, y: Any, z: Any) -> Lanes:
    lane = next(v for v in (x, y, z) if isinstance(v, Lanes))
    kind = lane.kind
    x, y, z = (v if isinstance(v, Lanes) else lane.constant(v) for v in (x, y, z))
    if not kind == x.kind == y.kind == z.kind:
        raise TypeError(f"fma of kinds {x.kind}, {y.kind} and {z.kind}")
    return _intrinsic("fma", *alike(x, y, z))


def horner(x: Lanes, coefficients: Sequence[Any]) -> Lanes:
    total = fma(x, coefficients[0], coefficients[1])
    for coefficient in coefficients[2:]:
        total = fma(total, x, coefficient)
    return total


def where(condition: Lanes, yes: Any, no: Any) -> Lanes:
    lane = yes if isinstance(yes, Lanes) else no
    yes, no = (v if isinstance(v, Lanes) else lane.constant(v) for v in (yes, no))
    if not condition.shared:
        yes, no = yes.spread(), no.spread()
    yes, no = alike(yes, no)
    return Lanes(lane.builder, lane.kind, lane.builder.select(condition.value, yes.value, no.value))


class WideWords(Lanes):
    """Words in 64-bit lanes, the upper halves junk: what Philox's rounds keep between their multiplications.

    A 32 x 32 -> 64 bit product wants its factors in 64-bit lanes and leaves both words in one; packing and unpacking
    them around each would double the instructions (0.78 against 0.43 ns an element for the raw words).
    """

    __slots__ = ()

    def __xor__(self, other: Any) -> WideWords:
        wide = other if isinstance(other, WideWords) else widened(other)
        first, second = (self, wide) if self.shared and wide.shared else (self.spread(), wide.spread())
        return WideWords(self.builder, "u64", self.builder.xor(first.value, second.value))

    def packed(self) -> Lanes:
        return self.cast("u32", "trunc")


def widened(words: Lanes) -> WideWords:
    return WideWords(words.builder, "u64", words.cast("u64", "zext").value)


def mulhilo(a: Lanes, b: int) -> tuple[WideWords, WideWords]:
    low_half = a & 0xFFFFFFFF if isinstance(a, WideWords) else widened(a)
    product = low_half * b
    return WideWords(a.builder, "u64", (product >> 32).value), WideWords(a.builder, "u64", product.value)


def primitives(width: int) -> dict[str, Any]:
    """The arithmetic's primitives over Lanes, in working precision float`width`."""
    real, whole = f"f{width}", f"i{width}"

    def u32(x: Lanes) -> Lanes:
        return Lanes(x.builder, "u32", x.value)

    def i32(x: Lanes) -> Lanes:
        return Lanes(x.builder, "i32", x.value)

    def to_real(x: Lanes) -> Lanes:
        return x.cast(real, "sitofp" if x.kind in ("i32", "i64") else "uitofp")

    return {
        "u32": u32,
        "i32": i32,
        "real": to_real,
        "bits": lambda x: x.cast(whole, "bitcast"),
        "unbits": lambda x: x.cast(real, "bitcast"),
        "negative": lambda x: -x,
        "mulhilo": mulhilo,
        "fma": fma,
        "sqrt": lambda x: _intrinsic("sqrt", x),
        "where": where,
        "minimum": lambda x, y: where(x < y, x, y),
        "maximum": lambda x, y: where(x > y, x, y),
        "horner": horner,
    }
