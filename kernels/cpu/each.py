"""Kernels that draw each element with parameters of its own, which lie in memory beside each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..contract import COLUMNS, block_size, lanes_in_block, sample_each, width_of
from .blocks import ARITHMETIC, finished, store, words_of
from .forms import LINE
from .loops import copy_bytes, copy_element, fence, numbers_reader, place_in_memory, place_of, scratch
from .simd import Lanes


def each_writer(kind: str, dtype: torch.dtype, stored: torch.dtype) -> Any:
    """A Numba intrinsic that writes a block of samples, whose parameters, of dtype `stored`, lie at `places`."""
    width = width_of(kind, dtype)
    element, size = ("f64", 8) if stored is torch.float64 else ("f32", 4)
    vector = ir.VectorType(ir.DoubleType() if element == "f64" else ir.FloatType(), COLUMNS)

    def parameter(builder: ir.IRBuilder, place: ir.Value, lane: int) -> Lanes:
        pointer = builder.inttoptr(
            builder.add(place, ir.Constant(place.type, lane * COLUMNS * size)), vector.as_pointer()
        )
        loaded = Lanes(builder, element, builder.load(pointer, align=size))
        return loaded if element == f"f{width}" else loaded.cast("f64", "fpext")

    @intrinsic
    def write_each(context, address, block, seed, stream_id, streaming, places):
        def build(context, builder, signature, arguments):
            address, block, seed, stream_id, streaming, places = arguments
            unpacked = cgutils.unpack_tuple(builder, places)
            words = words_of(builder, COLUMNS, block, (seed, stream_id))
            given = [[parameter(builder, place, lane) for place in unpacked] for lane in range(lanes_in_block(width))]
            lanes = sample_each(ARITHMETIC[width], kind, words, given)
            store(builder, finished(lanes, dtype, COLUMNS), address, dtype.itemsize, streaming)
            return context.get_dummy_value()

        return types.void(address, block, seed, stream_id, streaming, places), build

    return write_each


@intrinsic
def places_at(context, parameters, position):
    """The addresses of an element's parameters: of each an address and a step in bytes, from element to element."""
    place = types.UniTuple(types.int64, len(parameters) // 2)

    def build(context, builder, signature, arguments):
        numbers = cgutils.unpack_tuple(builder, arguments[0])
        twos = zip(numbers[::2], numbers[1::2], strict=True)
        places = [builder.add(address, builder.mul(step, arguments[1])) for address, step in twos]
        return context.make_tuple(builder, place, places)

    return place(parameters, position), build


def keeper(wide: int, given_bytes: int) -> Any:
    """A Numba intrinsic that copies elements' parameters, of `wide` bytes each, to a scratch of `given_bytes` each."""

    @intrinsic
    def kept_at(context, places, spare, skip, count):
        """The same addresses in the scratch, to which `count` elements from number `skip` on are copied."""

        def build(context, builder, signature, arguments):
            places, spare, skip, count = arguments
            kept = []
            for number, place in enumerate(cgutils.unpack_tuple(builder, places)):
                kept.append(builder.add(spare, ir.Constant(spare.type, number * given_bytes)))
                offset = builder.mul(skip, ir.Constant(skip.type, wide))
                byte = ir.IntType(8).as_pointer()
                target, source = (builder.inttoptr(builder.add(at, offset), byte) for at in (kept[-1], place))
                cgutils.raw_memcpy(builder, target, source, count, wide)
            return context.make_tuple(builder, signature.return_type, kept)

        return places(places, spare, skip, count), build

    return kept_at


def each_kernel(kind: str, dtype: torch.dtype, stored: torch.dtype, parameters: int) -> Callable[..., None]:
    """The Python source of a kernel with so many `parameters` an element.

    At PARAMETERS lie, one after the other, an address and a step in bytes for each. An element's own are found by its
    position along all runs (see `loops.build_kernel`). A step is 0 where elements share a parameter, which is repeated
    there for a whole block.
    """
    write_each = each_writer(kind, dtype, stored)
    block_elements = block_size(width_of(kind, dtype))
    size, wide = dtype.itemsize, stored.itemsize
    scratch_bytes, given_bytes = block_elements * size, block_elements * wide
    all_given = parameters * given_bytes
    kept_at, numbers_at = keeper(wide, given_bytes), numbers_reader([types.int64] * (2 * parameters))

    def kernel(row, start, stop):
        address, first, length, stride, outer, table, seed, stream_id, streaming = place_in_memory(row)
        parameters, spare, given = numbers_at(row), scratch(scratch_bytes), scratch(all_given)
        position = start
        while position < stop:
            run = position // length
            offset = position - run * length
            left = min(length - offset, stop - position)
            index, target, _ = place_of(run, outer, table)
            index += first + offset
            target += address + offset * stride
            block = index // block_elements
            skip = index - block * block_elements
            while left > 0:
                count = min(block_elements - skip, left)
                places = places_at(parameters, position - skip)
                whole = count == block_elements
                if not whole:  # what lies before and behind is not ours to read
                    places = kept_at(places, given, skip, count)
                direct = whole and stride == size
                streamed = streaming if direct and target % LINE == 0 else 0
                write_each(target if direct else spare, block, seed, stream_id, streamed, places)
                if not direct and stride == size:
                    copy_bytes(target, spare + skip * size, count * size)
                elif not direct:
                    for k in range(count):
                        copy_element(target + k * stride, spare + (skip + k) * size, size)
                target += count * stride
                position += count
                block += 1
                left -= count
                skip = 0
        if streaming:
            fence()

    return kernel
