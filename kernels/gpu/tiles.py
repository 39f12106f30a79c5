"""The arithmetic in Triton: its primitives, and the kernels that write tiles of samples.

A *row* is a block of the stream contract: sixteen counters, which draw sixteen neighbours in each lane. A tile is so
many rows. Each thread draws as many neighbouring columns as one store of 16 bytes holds, so that no value
ever changes threads (through shared memory) on its way.
"""

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

# --- primitives --------------------------------------------------------------------------------


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
    if width == 64:
        chosen |= {"real": real_64, "bits": bits_64, "unbits": unbits_64, "negative": negative_64}
        chosen |= {"fma": fma_64, "horner": horner_64, "sqrt": sqrt_64}
    else:
        chosen |= {"real": real_32, "bits": bits_32, "unbits": unbits_32, "negative": negative_32}
        chosen |= {"fma": fma_32, "horner": horner_32, "sqrt": sqrt_32}
        if cuda:
            chosen |= {"mulhilo": mulhilo_cuda, "sqrt": sqrt_32_cuda}
            chosen |= {"minimum": minimum_cuda, "maximum": maximum_cuda}
    return chosen


@functools.cache
def arithmetic(width: int, cuda: bool) -> Arithmetic:
    constant = (lambda value: value) if INTERPRETED else tl.constexpr
    # Triton's interpreter wants to see its own name in every function, its compiler those of annotations.
    also = {"tl": tl, "Number": tl.constexpr(None)}
    return Arithmetic(primitives(width, cuda), width, wrap=triton.jit, constant=constant, also=also)


# --- what one counter draws --------------------------------------------------------------------


@triton.jit
def typed(parameters, REAL: tl.constexpr, WHOLE: tl.constexpr):
    """The parameters in the working precision, the first of them a word if WHOLE; so they are, unless interpreted."""
    numbers = ()
    for k in tl.static_range(len(parameters)):
        if WHOLE and k == 0:
            numbers = numbers + (tl.full((), parameters[k], tl.uint32),)
        else:
            numbers = numbers + (tl.full((), parameters[k], REAL),)
    return numbers


@triton.jit
def one(low, high, parameters, LAW: tl.constexpr, HEAD: tl.constexpr):
    """A sample of a law whose parameters from number HEAD on, if any, are a series."""
    if len(parameters) > HEAD:
        drawn = LAW(low, high, *parameters[:HEAD], parameters[HEAD:])
    else:
        drawn = LAW(low, high, *parameters)
    return drawn


@triton.jit
def lanes(
    words, parameters,
    LAW: tl.constexpr, HEAD: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
    FINISH: tl.constexpr, ELEMENT: tl.constexpr,
):  # fmt: skip
    """The samples that a counter's four words give, one a lane: `contract.sample_lanes` as Triton wants it."""
    a, b, c, d = words
    if WIDTH == 64:
        if PAIRS:
            drawn = LAW(a, b, c, d, *parameters)
        else:
            drawn = (one(a, b, parameters, LAW, HEAD), one(c, d, parameters, LAW, HEAD))
    else:
        if PAIRS:
            drawn = LAW(a, a, b, b, *parameters) + LAW(c, c, d, d, *parameters)
        else:
            drawn = (
                one(a, a, parameters, LAW, HEAD),
                one(b, b, parameters, LAW, HEAD),
                one(c, c, parameters, LAW, HEAD),
                one(d, d, parameters, LAW, HEAD),
            )
    finished = ()
    for lane in tl.static_range(len(drawn)):
        finished = finished + (FINISH(drawn[lane]).to(ELEMENT),)
    return finished


@triton.jit
def low_word(x):
    return x.to(tl.uint32)


@triton.jit
def high_word(x):
    return (x >> 32).to(tl.uint32)


@triton.jit
def side_by_side(columns):
    """Tensors of one column in turn as one tensor, each value in the thread that it was in: n x [R, G] -> [R, G n]."""
    for _ in tl.static_range(4):
        if len(columns) > 1:
            joined = ()
            for k in tl.static_range(len(columns) // 2):
                joined = joined + (tl.join(columns[k], columns[k + len(columns) // 2]),)
            columns = joined
    return columns[0]


# --- kernels -----------------------------------------------------------------------------------


@triton.jit
def as_it_is(x):
    return x


@triton.jit
def fill_tiles(
    address, tile, tiles, programs, seed, stream_id, parameters,
    PHILOX: tl.constexpr, LAW: tl.constexpr, HEAD: tl.constexpr, WHOLE: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH: tl.constexpr, REAL: tl.constexpr, FINISH: tl.constexpr, ELEMENT: tl.constexpr,
    ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Write whole tiles of ROWS blocks each, the first of them the stream's number `tile`, to contiguous memory.

    `address` is divisible by 16. The `programs` that there are take turns, so that those at work at the same time write
    neighbouring tiles. SIDE neighbouring columns are drawn by one thread, which stores them together.
    """
    LANES: tl.constexpr = 128 // WIDTH
    first = tl.program_id(0).to(tl.int64)
    out = address.to(tl.pointer_type(ELEMENT)) + first * (ROWS * 16 * LANES)
    counter = (tile + first) * (ROWS * 16)
    numbers = typed(parameters, REAL, WHOLE)
    row = tl.arange(0, ROWS)[:, None]
    within = (row * 16 + tl.arange(0, 16 // SIDE)[None, :] * SIDE).to(tl.uint32)
    place = row * (16 * LANES) + tl.arange(0, 16)[None, :]
    for _ in range(first, tiles, programs):
        # Tiles divide 2^32 counters evenly, so that one high word serves all of a tile: Philox's first round
        # is the same for all threads but for one product.
        drawn = ()
        for side in tl.static_range(SIDE):
            words = PHILOX(
                low_word(counter) + within + side, high_word(counter),
                low_word(stream_id), high_word(stream_id), low_word(seed), high_word(seed),
            )  # fmt: skip
            drawn = drawn + (lanes(words, numbers, LAW, HEAD, PAIRS, WIDTH, FINISH, ELEMENT),)
        for lane in tl.static_range(LANES):
            columns = ()
            for side in tl.static_range(SIDE):
                columns = columns + (drawn[side][lane],)
            # The pointer is told anew what its alignment is: a loop forgets it.
            there = tl.multiple_of(out, 16) + (place + 16 * lane)
            tl.store(there, tl.reshape(side_by_side(columns), (ROWS, 16)))
        counter += programs * (ROWS * 16)
        out += programs * (ROWS * 16 * LANES)


@triton.jit
def fill_runs(
    address, first, length, stride, rows, rows_a_run, sizes, index_steps, strides, seed, stream_id, parameters,
    PHILOX: tl.constexpr, LAW: tl.constexpr, HEAD: tl.constexpr, WHOLE: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH: tl.constexpr, REAL: tl.constexpr, FINISH: tl.constexpr, ELEMENT: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Write runs of `length` neighbours of the stream, element by element, `stride` elements apart in memory.

    Each run takes `rows_a_run` rows, as many as blocks that it may touch; there are `rows` in all. Where a run begins
    is told by `sizes`, `index_steps` and `strides` (in elements) of the dimensions around it.
    """
    LANES: tl.constexpr = 128 // WIDTH
    numbers = typed(parameters, REAL, WHOLE)
    # One dimension, though rows and columns are two: with an unknown stride Triton before 3.7 stores two dimensions
    # column by column, for which every value goes through shared memory to another thread.
    thread = tl.arange(0, ROWS * 16)
    column = thread % 16
    # Rows and sizes have 32 bits, because a division in 64 is a call with a stack; positions have 64.
    row = tl.program_id(0) * ROWS + thread // 16
    run = row // rows_a_run
    block = row - run * rows_a_run
    index = tl.zeros([ROWS * 16], tl.int64) + first
    place = tl.zeros([ROWS * 16], tl.int64)
    for k in tl.static_range(len(sizes)):
        around = run // sizes[k]
        along = (run - around * sizes[k]).to(tl.int64)
        index += along * index_steps[k]
        place += along * strides[k]
        run = around
    number = index // (16 * LANES) + block  # of the block; an index is never negative
    counter = number * 16 + column
    words = PHILOX(
        low_word(counter), high_word(counter),
        low_word(stream_id), high_word(stream_id), low_word(seed), high_word(seed),
    )  # fmt: skip
    samples = lanes(words, numbers, LAW, HEAD, PAIRS, WIDTH, FINISH, ELEMENT)
    out = address.to(tl.pointer_type(ELEMENT))
    for lane in tl.static_range(LANES):
        offset = number * (16 * LANES) + (16 * lane + column) - index
        inside = (offset >= 0) & (offset < length) & (row < rows)
        tl.store(out + (place + offset * stride), samples[lane], mask=inside)
