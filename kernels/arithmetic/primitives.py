"""The operations that an engine brings. Here they only have their names: see `bind`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .bind import Primitive

Number = Any  # what the arithmetic computes with: an array, a tensor, vectors of LLVM or Triton

u32: Any = Primitive("u32")  # to an unsigned word, modulo 2^32
i32: Any = Primitive("i32")  # a word read as a signed number
real: Any = Primitive("real")  # an integer to the working precision, rounded to nearest even
bits: Any = Primitive("bits")  # a float's bits, as a signed integer of its width
unbits: Any = Primitive("unbits")  # the float that has these bits
negative: Any = Primitive("negative")  # a float with its sign flipped
mulhilo: Any = Primitive("mulhilo")  # the high and the low word of a word times a constant
product: Any = Primitive("product")  # the same of two words
join: Any = Primitive("join")  # a signed number of 64 bits from a low and a high word; sums of them wrap
fma: Any = Primitive("fma")  # x * y + z, rounded once
sqrt: Any = Primitive("sqrt")  # correctly rounded
divide: Any = Primitive("divide")  # correctly rounded, of normal numbers, the result too
ceil: Any = Primitive("ceil")  # the next whole number, as a float
where: Any = Primitive("where")  # condition ? a : b
minimum: Any = Primitive("minimum")  # x < y ? x : y, so the second on a tie
maximum: Any = Primitive("maximum")  # x > y ? x : y
horner: Any = Primitive("horner")  # a polynomial, highest order first, by fma


def horner_by(fma: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Sequence[Any]], Any]:
    """`horner` for an engine that has `fma`."""

    def horner(x: Any, coefficients: Sequence[Any]) -> Any:
        total = fma(x, coefficients[0], coefficients[1])
        for coefficient in coefficients[2:]:
            total = fma(total, x, coefficient)
        return total

    return horner
