"""Many lanes at once, as LLVM vectors: the arithmetic's primitives for the CPU engine.

An instance stands for a value inside a function that is being built. Running the arithmetic over such
values writes its instructions into that function: straight vector code, with nothing left for a
loop vectoriser to find. LLVM cuts the lanes into registers of whatever width the CPU has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from ..arithmetic.primitives import horner_by

TYPES = {
    "u8": ir.IntType(8), "u16": ir.IntType(16), "u32": ir.IntType(32), "i32": ir.IntType(32),
    "u64": ir.IntType(64), "i64": ir.IntType(64), "mask": ir.IntType(1),
    "f16": ir.HalfType(), "f32": ir.FloatType(), "f64": ir.DoubleType(),
}  # fmt: skip


class Lanes:
    """A vector of values of one type, or one value that all lanes share (kept scalar until a vector meets it)."""

    __slots__ = ("builder", "element", "value")

    def __init__(self, builder: ir.IRBuilder, element: str, value: ir.Value) -> None:
        self.builder, self.element, self.value = builder, element, value

    @property
    def shared(self) -> bool:
        return not isinstance(self.value.type, ir.VectorType)

    @property
    def count(self) -> int:
        """How many lanes: 1 for a shared value."""
        return 1 if self.shared else int(self.value.type.count)

    def spread(self, count: int) -> Lanes:
        """The same value in a vector, if it is shared."""
        if not self.shared:
            return self
        vector = ir.VectorType(TYPES[self.element], count)
        first = self.builder.insert_element(
            ir.Constant(vector, ir.Undefined), self.value, ir.Constant(ir.IntType(32), 0)
        )
        return self.picked(first, [0] * count)

    def part(self, start: int, count: int) -> Lanes:
        """`count` neighbouring lanes."""
        return self.picked(self.value, range(start, start + count))

    def picked(self, vector: ir.Value, lanes: Sequence[int]) -> Lanes:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        nothing = ir.Constant(vector.type, ir.Undefined)
        return Lanes(self.builder, self.element, self.builder.shuffle_vector(vector, nothing, mask))

    def constant(self, number: float) -> Lanes:
        """A Python number of this type, shared."""
        if self.element in ("f32", "f64"):
            return Lanes(self.builder, self.element, ir.Constant(TYPES[self.element], float(number)))
        bits = TYPES[self.element].width
        return Lanes(self.builder, self.element, ir.Constant(TYPES[self.element], int(number) % (1 << bits)))

    def cast(self, element: str, instruction: str) -> Lanes:
        target: Any = TYPES[element] if self.shared else ir.VectorType(TYPES[element], self.count)
        return Lanes(self.builder, element, getattr(self.builder, instruction)(self.value, target))

    def divided_by(self, other: Any) -> Lanes:
        return self._binary(other, self.builder.fdiv)

    def _binary(self, other: Any, emit: Callable[[Any, Any], ir.Value], element: str | None = None) -> Lanes:
        first, second = alike(self, other)
        return Lanes(self.builder, element or self.element, emit(first.value, second.value))

    def _arithmetic(self, other: Any, name: str) -> Lanes:
        instruction = f"f{name}" if self.element in ("f32", "f64") else name
        return self._binary(other, getattr(self.builder, instruction))

    def __add__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "add")

    def __sub__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "sub")

    def __mul__(self, other: Any) -> Lanes:
        return self._arithmetic(other, "mul")

    def __neg__(self) -> Lanes:
        return Lanes(self.builder, self.element, self.builder.fneg(self.value))

    def __and__(self, other: Any) -> Lanes:
        return self._binary(other, self.builder.and_)

    def __or__(self, other: Any) -> Lanes:
        return self._binary(other, self.builder.or_)

    def __xor__(self, other: Any) -> Lanes:
        return self._binary(other, self.builder.xor)

    def __lshift__(self, count: int) -> Lanes:
        return self._binary(count, self.builder.shl)

    def __rshift__(self, count: int) -> Lanes:
        signed = self.element in ("i32", "i64")
        return self._binary(count, self.builder.ashr if signed else self.builder.lshr)

    def _compare(self, other: Any, operator: str) -> Lanes:
        if self.element in ("f32", "f64"):
            return self._binary(other, lambda a, b: self.builder.fcmp_ordered(operator, a, b), "mask")
        signed = self.element in ("i32", "i64")
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
    """All values as Lanes of the first one's type, all vectors if one is."""
    values = [first]
    for other in others:
        value = other if isinstance(other, Lanes) else first.constant(other)
        if value.element != first.element:
            raise TypeError(f"a value of type {first.element} met one of type {value.element}")
        values.append(value)
    count = max(value.count for value in values)
    return values if count == 1 else [value.spread(count) for value in values]


def numbers(builder: ir.IRBuilder, element: str, values: Sequence[int]) -> Lanes:
    """Constants, one a lane."""
    return Lanes(builder, element, ir.Constant(ir.VectorType(TYPES[element], len(values)), list(values)))


def _intrinsic(name: str, *arguments: Lanes) -> Lanes:
    first = arguments[0]
    whole = first.value.type
    suffix = first.element if first.shared else f"v{first.count}{first.element}"
    function_type = ir.FunctionType(whole, [whole] * len(arguments))
    module = first.builder.module
    function = module.globals.get(f"llvm.{name}.{suffix}") or ir.Function(
        module, function_type, f"llvm.{name}.{suffix}"
    )
    return Lanes(first.builder, first.element, first.builder.call(function, [argument.value for argument in arguments]))


def fma(x: Any, y: Any, z: Any) -> Lanes:
    lane = next(v for v in (x, y, z) if isinstance(v, Lanes))
    element = lane.element
    x, y, z = (v if isinstance(v, Lanes) else lane.constant(v) for v in (x, y, z))
    if not element == x.element == y.element == z.element:
        raise TypeError(f"fma of types {x.element}, {y.element} and {z.element}")
    return _intrinsic("fma", *alike(x, y, z))


def where(condition: Lanes, yes: Any, no: Any) -> Lanes:
    lane = yes if isinstance(yes, Lanes) else no
    yes, no = (v if isinstance(v, Lanes) else lane.constant(v) for v in (yes, no))
    if not condition.shared:
        yes, no = yes.spread(condition.count), no.spread(condition.count)
    yes, no = alike(yes, no)
    return Lanes(lane.builder, lane.element, lane.builder.select(condition.value, yes.value, no.value))


class Counters:
    """The counters `first`, `first + 1`, ...: consecutive numbers of 32 bits, which never run over."""

    __slots__ = ("count", "first")

    def __init__(self, first: Lanes, count: int) -> None:
        self.first, self.count = first, count

    def times(self, factor: int) -> Lanes:
        """Their products, in 64-bit lanes of `wide_order`, by one addition each."""
        steps = numbers(self.first.builder, "u64", [factor * lane for lane in wide_order(self.count)])
        return self.first.cast("u64", "zext") * factor + steps


class Xors:
    """Words between Philox's multiplications: the exclusive or of `terms`, each one half of 64-bit lanes.

    A 32 x 32 -> 64 bit product wants its factors in the lower halves of 64-bit lanes, and leaves both its words in
    one. So nothing is moved or joined until it is known for what: the next product (`wide`), which ignores the upper
    halves, or the samples (`packed`), where a shuffle fetches either half. Packing around each product would
    double the instructions; packing at the end alone, and only then joining, saves 8 of 75 for a vector of floats.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Sequence[tuple[Lanes, bool]]) -> None:
        self.terms = sorted(terms, key=lambda term: not term[0].shared)  # what lanes share is joined first, as scalars

    def __xor__(self, other: Xors | Lanes) -> Xors:
        return Xors([*self.terms, *(other.terms if isinstance(other, Xors) else [(other, False)])])

    def wide(self) -> Lanes:
        """In the lower halves of 64-bit lanes, the upper ones junk."""
        wide = [term.cast("u64", "zext") if term.element == "u32" else term for term, _ in self.terms]
        parts = [term >> 32 if upper else term for term, (_, upper) in zip(wide, self.terms, strict=True)]
        return functools.reduce(Lanes.__xor__, parts)

    def packed(self) -> Lanes:
        """In 32-bit lanes, in order."""
        return functools.reduce(Lanes.__xor__, (packed(term, upper) for term, upper in self.terms))


def wide_order(count: int) -> list[int]:
    """Which word stands in which 64-bit lane: of sixteen the even ones and then the odd ones.

    So that each half of two vectors interleaves with the other's: one masked move instead of five shuffles.
    """
    return [start + lane for start in range(0, count, 16) for odd in (0, 1) for lane in range(odd, 16, 2)]


def packed(term: Lanes, upper: bool) -> Lanes:
    """One half of 64-bit lanes in `wide_order`, in order."""
    if term.element == "u32":
        return term
    if term.shared:
        return (term >> 32 if upper else term).cast("u32", "trunc")
    halves = term.builder.bitcast(term.value, ir.VectorType(TYPES["u32"], 2 * term.count))
    places = {word: lane for lane, word in enumerate(wide_order(term.count))}
    lanes = [2 * places[word] + upper for word in range(term.count)]
    return Lanes(term.builder, "u32", term.value).picked(halves, lanes)


def mulhilo(a: Lanes | Counters | Xors, b: int) -> tuple[Xors, Xors]:
    if isinstance(a, Counters):
        product = a.times(b)
    elif isinstance(a, Xors):
        product = (a.wide() & 0xFFFFFFFF) * b
    elif a.shared:
        product = a.cast("u64", "zext") * b
    else:
        raise TypeError("a vector that is to be multiplied comes as Counters, in the order of their products")
    return Xors([(product, True)]), Xors([(product, False)])


def product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    exact = a.cast("u64", "zext") * b.cast("u64", "zext")
    return (exact >> 32).cast("u32", "trunc"), exact.cast("u32", "trunc")


def join(low: Lanes, high: Lanes | int) -> Lanes:
    high = high if isinstance(high, Lanes) else low.constant(high)
    both = high.cast("u64", "zext") << 32 | low.cast("u64", "zext")
    return Lanes(both.builder, "i64", both.value)


def primitives(width: int) -> dict[str, Any]:
    """The arithmetic's primitives over Lanes, in working precision float`width`."""
    real, whole = f"f{width}", f"i{width}"

    def u32(x: Lanes) -> Lanes:
        return Lanes(x.builder, "u32", x.value)

    def i32(x: Lanes) -> Lanes:
        return Lanes(x.builder, "i32", x.value)

    def real_where(condition: Lanes, yes: Any, no: Any) -> Lanes:
        if not isinstance(yes, Lanes) and not isinstance(no, Lanes):
            yes = Lanes(condition.builder, real, ir.Constant(TYPES[real], float(yes)))
        return where(condition, yes, no)

    def to_real(x: Lanes) -> Lanes:
        return x.cast(real, "sitofp" if x.element in ("i32", "i64") else "uitofp")

    return {
        "u32": u32,
        "i32": i32,
        "real": to_real,
        "bits": lambda x: x.cast(whole, "bitcast"),
        "unbits": lambda x: x.cast(real, "bitcast"),
        "negative": lambda x: -x,
        "mulhilo": mulhilo,
        "product": product,
        "join": join,
        "fma": fma,
        "sqrt": lambda x: _intrinsic("sqrt", x),
        "divide": Lanes.divided_by,
        "ceil": lambda x: _intrinsic("ceil", x),
        "where": real_where,
        "minimum": lambda x, y: where(x < y, x, y),
        "maximum": lambda x, y: where(x > y, x, y),
        "horner": horner_by(fma),
    }
