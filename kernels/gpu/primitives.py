"""The arithmetic's primitives in Triton."""

from __future__ import annotations

import functools
from typing import Any

import triton
import triton.language as tl

from ..arithmetic.bind import Arithmetic

if not hasattr(triton, "knobs"):  # tuples of functions' results came with it
    raise ImportError(f"the GPU engine needs Triton 3.4 or newer, found {triton.__version__}")
# Whether triton.jit makes functions that run here, in NumPy (TRITON_INTERPRET=1), rather than be compiled.
INTERPRETED = bool(triton.knobs.runtime.interpret)
MUL_WIDE = tl.constexpr("{.reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$1, $0}, p;}")


@triton.jit
def u32(x):
    return x.to(tl.uint32, bitcast=x.dtype.primitive_bitwidth == 32)


@triton.jit
def i32(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def real_32(x):
    return x.to(tl.float32)


@triton.jit
def real_64(x):
    return x.to(tl.float64)


@triton.jit
def bits_32(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def bits_64(x):
    return x.to(tl.int64, bitcast=True)


@triton.jit
def unbits_32(x):
    return x.to(tl.float32, bitcast=True)


@triton.jit
def unbits_64(x):
    return x.to(tl.float64, bitcast=True)


@triton.jit
def mulhilo(a, b: tl.constexpr):
    # One 64-bit product: a single IMAD.WIDE, where umulhi and a product are two instructions.
    product = a.to(tl.uint64) * b
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def mulhilo_cuda(a, b: tl.constexpr):
    # In assembly, because LLVM carries the xor that follows out in 64 bits: with `mulhilo` in its place bench.gpu_model
    # counts 16.0 instead of 14.6 instructions an element for uniform on sm_90, 33.2 instead of 32.2 for normal.
    return tl.inline_asm_elementwise(MUL_WIDE, "=r,=r,r,r", [a, tl.cast(b, tl.uint32)], (tl.uint32, tl.uint32), True, 1)


@triton.jit
def product(a, b):
    exact = a.to(tl.uint64) * b.to(tl.uint64)
    return (exact >> 32).to(tl.uint32), exact.to(tl.uint32)


@triton.jit
def join(low, high):
    return (tl.cast(high, tl.int64) << 32) | low.to(tl.int64)


@triton.jit
def fma_32(x, y, z):
    return tl.fma(x, y, z)


@triton.jit
def exact(x):
    # Before 3.9 Triton takes a Python number through float32 on its way into an fma.
    return x if isinstance(x, tl.tensor) else tl.full((), x, tl.float64)


@triton.jit
def fma_64(x, y, z):
    return tl.fma(exact(x), exact(y), exact(z))


@triton.jit
def negative_32(x):
    # Triton's -x is 0 - x, which costs an instruction; flipping the sign is part of whatever uses the result.
    return unbits_32(bits_32(x) ^ -0x80000000)


@triton.jit
def negative_64(x):
    return unbits_64(bits_64(x) ^ -0x8000000000000000)


@triton.jit
def sqrt_32(x):
    return tl.sqrt_rn(x)


@triton.jit
def sqrt_64(x):
    return tl.sqrt(x)


@triton.jit
def divide_32(x, y):
    return tl.div_rn(x, y)


@triton.jit
def divide_64(x, y):
    return x / y


@triton.jit
def ceil(x):
    return tl.ceil(x)


@triton.jit
def ceil_32_cuda(x):
    # tl.ceil calls a function of CUDA's library, which brings a global of its own and takes subnormal numbers for 0.
    return tl.inline_asm_elementwise("cvt.rpi.f32.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def corrected_root(x, inverse):
    """The correctly rounded sqrt(x), from 1 / sqrt(x) with a relative error of up to 2^-22.9; x is a normal number.

    A Newton step for the root and its inverse, and one for the root, whose remainder is exact (Markstein 1990).
    tests/test_gpu_arithmetic.py tries every x with every such start; with a step less, a start or two gives a
    neighbour of the root.
    """
    root, half = x * inverse, inverse * 0.5
    rest = tl.fma(negative_32(root), half, 0.5)
    root, half = tl.fma(root, rest, root), tl.fma(half, rest, half)
    return tl.fma(tl.fma(negative_32(root), root, x), half, root)


@triton.jit
def sqrt_32_cuda(x):
    # 2^-22.9 is what the PTX ISA documents for rsqrt.approx. 8 instructions; sqrt.rn takes 14 and a branch.
    return corrected_root(
        x, tl.inline_asm_elementwise("rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    )


@triton.jit
def corrected_quotient(x, y, inverse):
    """The correctly rounded x / y, from 1 / y with a relative error of up to 2^-23; all of them normal numbers, or x 0.

    A Newton step for the inverse, and two for the quotient, whose remainders are exact (Markstein 1990).
    tests/test_gpu_arithmetic.py tries quotients next to ties with every such start.
    """
    back = negative_32(y)
    inverse = tl.fma(inverse, tl.fma(back, inverse, 1.0), inverse)
    quotient = x * inverse
    quotient = tl.fma(tl.fma(back, quotient, x), inverse, quotient)
    return tl.fma(tl.fma(back, quotient, x), inverse, quotient)


@triton.jit
def divide_32_cuda(x, y):
    # 2^-23 is what the PTX ISA documents for rcp.approx. div.rn has a branch to a function that needs a stack.
    return corrected_quotient(
        x, y, tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, True, 1)
    )


@triton.jit
def where(condition, yes, no):
    return tl.where(condition, yes, no)


@triton.jit
def minimum(x, y):
    return tl.where(x < y, x, y)


@triton.jit
def maximum(x, y):
    return tl.where(x > y, x, y)


@triton.jit
def minimum_cuda(x, y):
    # One instruction. It differs from the above only between zeros of different signs, which the laws avoid.
    return tl.minimum(x, y)


@triton.jit
def maximum_cuda(x, y):
    return tl.maximum(x, y)


@triton.jit
def horner_32(x, coefficients):
    total = tl.fma(x, coefficients[0], coefficients[1])
    for k in tl.static_range(2, len(coefficients)):
        total = tl.fma(total, x, coefficients[k])
    return total


@triton.jit
def horner_64(x, coefficients):
    total = fma_64(x, coefficients[0], coefficients[1])
    for k in tl.static_range(2, len(coefficients)):
        total = fma_64(total, x, coefficients[k])
    return total


def primitives(width: int, cuda: bool) -> dict[str, Any]:
    """The arithmetic's primitives; with `cuda` some of them as PTX has them in fewer instructions."""
    chosen = {"u32": u32, "i32": i32, "mulhilo": mulhilo, "where": where, "minimum": minimum, "maximum": maximum}
    chosen |= {"product": product, "join": join, "ceil": ceil}
    if width == 64:
        chosen |= {"real": real_64, "bits": bits_64, "unbits": unbits_64, "negative": negative_64}
        chosen |= {"fma": fma_64, "horner": horner_64, "sqrt": sqrt_64, "divide": divide_64}
    else:
        chosen |= {"real": real_32, "bits": bits_32, "unbits": unbits_32, "negative": negative_32}
        chosen |= {"fma": fma_32, "horner": horner_32, "sqrt": sqrt_32, "divide": divide_32}
        if cuda:
            chosen |= {"mulhilo": mulhilo_cuda, "sqrt": sqrt_32_cuda, "ceil": ceil_32_cuda, "divide": divide_32_cuda}
            chosen |= {"minimum": minimum_cuda, "maximum": maximum_cuda}
    return chosen


@functools.cache
def arithmetic(width: int, cuda: bool) -> Arithmetic:
    constant = (lambda value: value) if INTERPRETED else tl.constexpr
    # Triton's interpreter wants to see its own name in every function, its compiler those of annotations.
    also = {"tl": tl, "Number": tl.constexpr(None)}
    return Arithmetic(primitives(width, cuda), width, wrap=triton.jit, constant=constant, also=also)
