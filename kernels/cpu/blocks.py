"""Whole blocks of samples, as LLVM vectors and the stores that write them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ..arithmetic.bind import Arithmetic
from ..arithmetic.philox import philox
from ..contract import COLUMNS, sample_lanes, width_of
from ..dtypes import FORMATS
from . import simd
from .forms import BLOCKS_AT_ONCE, LINE
from .simd import Counters, Lanes

ARITHMETIC = {width: Arithmetic(simd.primitives(width), width) for width in (32, 64)}


def target() -> tuple[str, str]:
    """The name and the features of the CPU that Numba compiles for."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name, features


def at_once(width: int) -> int:
    """How many counters to draw from at a time where there are neighbours enough.

    Several blocks hide each other's latencies, where the CPU has the registers for it: with AVX-512 four in float32
    (normals take 0.47 ns on one thread, with two blocks 0.52, with one 0.67), two in float64. The sixteen registers
    of AVX2 gain nothing.
    """
    if "+avx512f" not in target()[1].split(","):
        return COLUMNS
    return (BLOCKS_AT_ONCE if width == 32 else 2) * COLUMNS


def converts_to_float16() -> bool:
    """Whether the CPU rounds to float16 itself, in all cases as the arithmetic does (0.33 against 0.49 ns, uniform)."""
    return "+f16c" in target()[1].split(",") or platform.machine().lower() in ("aarch64", "arm64")


def word(builder: ir.IRBuilder, value: Any, shift: int) -> Lanes:
    """Bits `shift` to `shift + 31` of a 64-bit number."""
    return (Lanes(builder, "u64", value) >> shift).cast("u32", "trunc")


def words_of(builder: ir.IRBuilder, columns: int, number: Any, stream: Sequence[Any]) -> list[Lanes]:
    """Instructions for the four words of `columns` counters.

    `number` counts such groups of counters, `stream` is its seed and stream_id.
    """
    first = builder.mul(number, ir.Constant(number.type, columns))
    low, *others = (word(builder, value, shift) for value in (first, stream[1], stream[0]) for shift in (0, 32))
    return [output.packed() for output in ARITHMETIC[32](philox)(Counters(low, columns), *others)]


def parameter(builder: ir.IRBuilder, value: Any, width: int) -> Lanes:
    """A law's parameter as the sampler takes it: as a word, or in the working precision."""
    if isinstance(value.type, ir.IntType):
        return word(builder, value, 0)
    number = Lanes(builder, "f64", value)
    return number if width == 64 else number.cast("f32", "fptrunc")


def finished(lanes: Sequence[Lanes], dtype: torch.dtype, columns: int) -> list[ir.Value]:
    """The samples of `columns` counters in the output dtype: vectors of sixteen neighbours, in order."""
    done = [rounded(lane.spread(columns), dtype) for lane in lanes]
    return [lane.part(start, COLUMNS).value for start in range(0, columns, COLUMNS) for lane in done]


def rounded(lane: Lanes, dtype: torch.dtype) -> Lanes:
    """Samples in the output dtype: as its bits, where LLVM does not know it."""
    if dtype not in FORMATS:
        return converted(lane, "i64").cast(f"u{8 * dtype.itemsize}", "trunc" if dtype.itemsize < 8 else "bitcast")
    lane = converted(lane, f"f{FORMATS[dtype].width}")
    rounding = FORMATS[dtype].rounding
    if rounding is None:
        return lane
    if dtype is torch.float16 and converts_to_float16():
        return lane.cast("f16", "fptrunc")
    whole: Lanes = ARITHMETIC[32](rounding)(lane)
    return whole.cast(f"u{8 * dtype.itemsize}", "trunc")


def converted(lane: Lanes, element: str) -> Lanes:
    """The same numbers as floats or whole numbers of another width, rounded once."""
    if lane.element == element:
        return lane
    if element == "i64":
        return lane.cast(element, "fptosi")
    return lane.cast(element, {"i64": "sitofp", "f64": "fptrunc", "f32": "fpext"}[lane.element])


def store(
    builder: ir.IRBuilder, vectors: Sequence[Any], address: Any, align: int, streaming: Any, stride: Any = None
) -> None:
    """Vectors one behind the other, or `stride` bytes from one to the next; where `streaming`, non-temporal, for
    which each address must be a cache line's."""
    size = vectors[0].type.count * vectors[0].type.element.get_abi_size(cpu_target.target_context.target_data)
    with builder.if_else(builder.trunc(streaming, ir.IntType(1))) as branches:
        for branch, around in zip(branches, (True, False), strict=True):
            with branch:
                for k, vector in enumerate(vectors):
                    number = ir.Constant(address.type, k if stride is not None else k * size)
                    apart = number if stride is None else builder.mul(stride, number)
                    place = builder.inttoptr(builder.add(address, apart), vector.type.as_pointer())
                    written = builder.store(vector, place, align=min(LINE, size) if around else align)
                    if around:
                        one = ir.Constant(ir.IntType(32), 1)
                        written.set_metadata("nontemporal", builder.module.add_metadata([one]))


def block_writer(kind: str, dtype: torch.dtype, columns: int) -> Any:
    """A Numba intrinsic that writes all that `columns` counters draw to an address."""
    width = width_of(kind, dtype)

    @intrinsic
    def write_block(context, address, block, seed, stream_id, streaming, parameters):
        def build(context, builder, signature, arguments):
            address, block, seed, stream_id, streaming, parameters = arguments
            values = [parameter(builder, value, width) for value in cgutils.unpack_tuple(builder, parameters)]
            words = words_of(builder, columns, block, (seed, stream_id))
            lanes = sample_lanes(ARITHMETIC[width], kind, words, values)
            store(builder, finished(lanes, dtype, columns), address, dtype.itemsize, streaming)
            return context.get_dummy_value()

        return types.void(address, block, seed, stream_id, streaming, parameters), build

    return write_block
