"""The CPU engine: Numba kernels that write blocks of samples with vector stores."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from . import simd
from .arithmetic import bind
from .cache import KernelCache
from .engine import WHOLE_NUMBER_FIRST, Draw, as_signed, block_size, row_major, runs_of, sample_lanes
from .formats import FORMATS, WIDTHS
from .pages import advise_huge_pages
from .simd import LANES, Lanes
from .threads import run

# A child forked while another thread compiles would wait for its lock for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )

ARITHMETIC = {width: bind(simd.primitives(width), width) for width in (32, 64)}
SCRATCH_ALIGNMENT = 64  # a cache line, and the widest vector store


def sampled_block(
    builder: ir.IRBuilder, kind: str, dtype: torch.dtype, block: Any, seed: Any, stream: Any, parameters: Sequence[Any]
) -> list[Lanes]:
    """Instructions for all samples of one block, sixteen to a vector, as `dtype`'s own bits or floats."""
    width = WIDTHS[dtype]

    def word(value: Any, shift: int) -> Lanes:
        return (Lanes(builder, "u64", value) >> shift).cast("u32", "trunc")

    first = Lanes(builder, "u64", builder.mul(block, ir.Constant(block.type, LANES)))
    counter = simd.numbers(builder, "u32", range(LANES)) + first.cast("u32", "trunc")
    wide = ARITHMETIC[32].philox(
        counter, (first >> 32).cast("u32", "trunc"), word(stream, 0), word(stream, 32), word(seed, 0), word(seed, 32)
    )
    words = [words.packed() for words in wide]
    arguments = [
        Lanes(builder, "u64", p).cast("u32", "trunc")
        if isinstance(p.type, ir.IntType)
        else Lanes(builder, "f64", p) if width == 64 else Lanes(builder, "f64", p).cast("f32", "fptrunc")
        for p in parameters
    ]  # fmt: skip
    lanes = [lane.spread() for lane in sample_lanes(ARITHMETIC[width], width, kind, words, arguments)]
    if dtype in FORMATS and (rounding := FORMATS[dtype].rounding) is not None:
        narrow = ir.VectorType(ir.IntType(8 * dtype.itemsize), LANES)
        lanes = [getattr(ARITHMETIC[32], rounding)(lane) for lane in lanes]
        return [Lanes(builder, "narrow", builder.trunc(lane.value, narrow)) for lane in lanes]
    return lanes


def block_writer(kind: str, dtype: torch.dtype) -> Any:
    """A Numba intrinsic that writes one block of samples to an address."""

    @intrinsic
    def write_block(context, address, block, seed, stream, streaming, parameters):
        def build(context, builder, signature, arguments):
            address, block, seed, stream, streaming, parameters = arguments
            unpacked = cgutils.unpack_tuple(builder, parameters)
            lanes = sampled_block(builder, kind, dtype, block, seed, stream, unpacked)

            def store(align: int, nontemporal: bool) -> None:
                for row, lane in enumerate(lanes):
                    vector = lane.value.type
                    place = builder.add(address, ir.Constant(address.type, row * LANES * dtype.itemsize))
                    written = builder.store(lane.value, builder.inttoptr(place, vector.as_pointer()), align=align)
                    if nontemporal:
                        one = ir.Constant(ir.IntType(32), 1)
                        written.set_metadata("nontemporal", builder.module.add_metadata([one]))

            with builder.if_else(builder.trunc(streaming, ir.IntType(1))) as (around, through):
                with around:
                    store(min(SCRATCH_ALIGNMENT, LANES * dtype.itemsize), nontemporal=True)
                with through:
                    store(dtype.itemsize, nontemporal=False)
            return context.get_dummy_value()

        return types.void(address, block, seed, stream, streaming, parameters), build

    return write_block


@intrinsic(prefer_literal=True)
def scratch(context, size):
    """The address of `size` (a literal) bytes on the stack."""

    def build(context, builder, signature, arguments):
        place = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), size.literal_value))
        place.align = SCRATCH_ALIGNMENT
        return builder.ptrtoint(place, ir.IntType(64))

    return types.int64(size), build


@intrinsic
def load_int64(context, address):
    def build(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.int64(address), build


@intrinsic
def copy_bytes(context, target, source, count):
    def build(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        target, source, count = arguments
        cgutils.raw_memcpy(builder, builder.inttoptr(target, byte), builder.inttoptr(source, byte), count, 1)
        return context.get_dummy_value()

    return types.void(target, source, count), build


@intrinsic(prefer_literal=True)
def copy_element(context, target, source, size):
    """One element of `size` (a literal) bytes."""
    element = ir.IntType(8 * size.literal_value)

    def build(context, builder, signature, arguments):
        target, source, _ = arguments
        value = builder.load(builder.inttoptr(source, element.as_pointer()), align=1)
        builder.store(value, builder.inttoptr(target, element.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(target, source, size), build


@intrinsic
def fence(context):
    """Makes non-temporal stores visible to other threads before whatever comes next."""

    def build(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


# Every kernel's arguments before the law's parameters; see `build_kernel`.
HEAD = (types.int64,) * 11


def build_kernel(kind: str, dtype: torch.dtype, contiguous: bool) -> Callable[..., None]:
    """The Python source of a kernel, still to be compiled.

    The elements to write are `runs`: stretches of `length` neighbours in the global tensor, `stride` bytes apart
    in memory. Positions count along all runs; a call fills those in [start, stop), so that threads can
    share a tensor at any cut. Where each run lies is told by a table of (size, index step, byte step) for each of
    the `outer` dimensions around it. `streaming` asks for stores that go around the cache.
    """
    write_block = block_writer(kind, dtype)
    block_elements = block_size(WIDTHS[dtype])
    size = dtype.itemsize
    scratch_bytes = block_elements * size

    def kernel(address, first, length, start, stop, stride, outer, table, seed, stream, streaming, parameters):
        spare = scratch(scratch_bytes)
        kept = -1  # the block that the scratch holds: short runs often share one
        position = start
        while position < stop:
            run = position // length
            offset = position - run * length
            left = min(length - offset, stop - position)
            position += left
            index = first + offset
            target = address + offset * stride
            for dimension in range(outer - 1, -1, -1):
                entry = table + 24 * dimension
                around = run // load_int64(entry)
                along = run - around * load_int64(entry)
                index += along * load_int64(entry + 8)
                target += along * load_int64(entry + 16)
                run = around
            block = index // block_elements
            skip = index - block * block_elements
            target -= skip * stride  # where the block's first element would lie
            aligned = streaming if target % SCRATCH_ALIGNMENT == 0 else 0
            while left > 0:
                count = min(block_elements - skip, left)
                # One call for both cases: the arithmetic stands in the machine code once.
                whole = contiguous and count == block_elements
                if whole or block != kept:
                    write_block(target if whole else spare, block, seed, stream, aligned if whole else 0, parameters)
                if not whole:
                    kept = block
                if contiguous:
                    if not whole:
                        copy_bytes(target + skip * size, spare + skip * size, count * size)
                else:
                    for k in range(skip, skip + count):
                        copy_element(target + k * stride, spare + k * size, size)
                target += block_elements * stride
                block += 1
                left -= count
                skip = 0
        if streaming:
            fence()

    kernel.__name__ = kernel.__qualname__ = (
        f"{kind}_{str(dtype).removeprefix('torch.')}{'' if contiguous else '_strided'}"
    )
    return kernel


@functools.cache
def kernel(kind: str, dtype: torch.dtype, contiguous: bool, parameters: int) -> Callable[..., None]:
    """A law's compiled kernel for an output dtype, from disk where it can be; `parameters` is how many it takes."""
    source = build_kernel(kind, dtype, contiguous)
    dispatcher = njit(nogil=True, error_model="numpy")(source)
    dispatcher._cache = KernelCache(source.__name__)
    kinds = [types.int64 if k == 0 and kind in WHOLE_NUMBER_FIRST else types.float64 for k in range(parameters)]
    dispatcher.compile((*HEAD, types.Tuple(kinds)))
    dispatcher.disable_compile()
    return dispatcher  # type: ignore[no-any-return]


# Measured by `python -m bench.thresholds`.
THREADS_FROM = 2 << 20  # bytes; below, waking a thread takes longer than drawing
STREAMING_FROM = 32 << 20  # bytes; below, the tensor had better stay in the cache
HUGE_PAGES_FROM = 16 << 20  # bytes; twice as fast on fresh memory from here on
PIECES_A_THREAD = 8  # small enough to even out what the machine does to one thread


class CpuEngine:
    """Numba kernels for CPU tensors, shared out over torch's number of threads."""

    name = "cpu"
    compiled = True

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"it writes to memory of the CPU, not of {device.type}"
        return None if dtype in WIDTHS else f"the stream contract does not cover {dtype}"

    def fill(self, out: torch.Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        kind, parameters, seed, stream = draw
        seed, stream = as_signed(seed), as_signed(stream)
        dtype, count, address = out.dtype, out.numel(), out.data_ptr()
        size = count * dtype.itemsize
        if steps is None and size < THREADS_FROM and out.is_contiguous():
            write = kernel(kind, dtype, True, len(parameters))
            write(address, first, count, 0, count, dtype.itemsize, 0, 0, seed, stream, 0, parameters)
            return
        length, stride, outer = runs_of(out, row_major(out.shape) if steps is None else steps)
        write = kernel(kind, dtype, stride == dtype.itemsize, len(parameters))
        # The table lives until the last thread is done, because this frame does.
        table = torch.tensor(outer, dtype=torch.int64, device="cpu") if outer else None
        place = (stride, len(outer), 0 if table is None else table.data_ptr(), seed, stream)
        if size < THREADS_FROM:
            write(address, first, length, 0, count, *place, 0, parameters)
            return
        if size >= HUGE_PAGES_FROM:
            advise_huge_pages(address, size)
        threads = torch.get_num_threads()
        piece = piece_length(count, threads, dtype)
        lead = first % piece  # a cut inside a block would draw it twice
        streaming = int(size >= STREAMING_FROM)

        def fill_piece(number: int) -> None:
            start, stop = number * piece - lead, (number + 1) * piece - lead
            write(address, first, length, max(start, 0), min(stop, count), *place, streaming, parameters)

        run(fill_piece, -(-(lead + count) // piece), threads)


def piece_length(count: int, threads: int, dtype: torch.dtype) -> int:
    """How many elements a thread takes at a time: whole blocks, a few pieces a thread, none too small to pay."""
    least = THREADS_FROM // (2 * dtype.itemsize)
    fair = -(-count // (PIECES_A_THREAD * threads))
    block = block_size(WIDTHS[dtype])
    return -(-max(least, fair) // block) * block
