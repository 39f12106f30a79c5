"""Kernels that look for words in a range, and clear the elements whose words lie below a bound: the work of sparse_.

Of sixty-four neighbours at a time a 64-bit number tells which are meant, one bit each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable

from .blocks import at_once, block_writer
from .engine import COLUMNS, block_size
from .forms import ABREAST
from .loops import copy_element, scratch
from .simd import Lanes

LONG = ir.IntType(64)
WORD = ir.IntType(32)
WORDS = ir.VectorType(WORD, ABREAST)


def loaded(builder: ir.IRBuilder, address: Any) -> Lanes:
    return Lanes(builder, "u32", builder.load(builder.inttoptr(address, WORDS.as_pointer()), align=4))


def flags(builder: ir.IRBuilder, chosen: Lanes) -> Any:
    """A bit a lane, the first lane's the lowest."""
    return builder.bitcast(chosen.value, LONG)


def common(builder: ir.IRBuilder, word: Any) -> Lanes:
    return Lanes(builder, "u32", builder.trunc(word, WORD))


@intrinsic
def count_below(context, words, bound, counts):
    """Adds one to each of the counts whose word is less than `bound`."""

    def build(context, builder, signature, arguments):
        words, bound, counts = arguments
        below = loaded(builder, words) < common(builder, bound)
        total = loaded(builder, counts) + below.cast("u32", "zext")
        builder.store(total.value, builder.inttoptr(counts, WORDS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(words, bound, counts), build


@intrinsic
def between(context, words, least, greatest):
    """Which words lie between two, these included."""

    def build(context, builder, signature, arguments):
        words, least, greatest = arguments
        span = common(builder, builder.sub(greatest, least))
        return flags(builder, loaded(builder, words) - common(builder, least) <= span)

    return types.int64(words, least, greatest), build


@intrinsic
def below(context, words, bounds):
    """Which words are less than their bounds."""

    def build(context, builder, signature, arguments):
        words, bounds = arguments
        return flags(builder, loaded(builder, words) < loaded(builder, bounds))

    return types.int64(words, bounds), build


@intrinsic(prefer_literal=True)
def clear_below(context, words, bounds, target, size):
    """Clears the elements of `size` (a literal) bytes, neighbours, whose words are less than their bounds."""
    elements = ir.VectorType(ir.IntType(8 * size.literal_value), ABREAST)

    def build(context, builder, signature, arguments):
        words, bounds, target, _ = arguments
        place = builder.inttoptr(target, elements.as_pointer())
        kept = builder.load(place, align=size.literal_value)
        clear = loaded(builder, words) < loaded(builder, bounds)
        left = builder.select(clear.value, ir.Constant(elements, None), kept)
        builder.store(left, place, align=size.literal_value)
        return context.get_dummy_value()

    return types.void(words, bounds, target, size), build


@intrinsic(prefer_literal=True)
def clear_element(context, target, size):
    """Clears one element of `size` (a literal) bytes."""
    element = ir.IntType(8 * size.literal_value)

    def build(context, builder, signature, arguments):
        builder.store(element(0), builder.inttoptr(arguments[0], element.as_pointer()), align=size.literal_value)
        return context.get_dummy_value()

    return types.void(target, size), build


@intrinsic
def next_number(context, address):
    """A count of 32 bits, which goes up by one."""

    def build(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], WORD.as_pointer())
        number = builder.load(place)
        builder.store(builder.add(number, WORD(1)), place)
        return builder.zext(number, LONG)

    return types.int64(address), build


@intrinsic
def lowest(context, lanes):
    """The number of the lowest bit that is set, of one or more."""

    def build(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(lanes), build


@register_jitable(inline="always")
def lanes_between(start, stop):
    """The flags of the lanes from `start` up to `stop`, which may lie outside."""
    least, end = max(start, 0), min(stop, ABREAST)
    if least >= end:
        return 0
    return (-1 << least) & ((1 << end) - 1 if end < ABREAST else -1)


def walker(visit: Any) -> Callable[..., None]:
    """A kernel that draws the words of a box of a matrix, sixty-four neighbours in a row at a time."""
    # sparse_ of 4096 x 4096 takes 16 ms with two blocks at a time, with one 18.5, with four 17.
    blocks = min(2, at_once(32) // COLUMNS)
    drawn = blocks * block_size(32)
    scratch_bytes = 4 * drawn
    write_block = block_writer("words", torch.int32, blocks * COLUMNS)

    def kernel(first, columns, rows, width, seed, stream, others):
        """`first` is the number of the box's first element in a matrix of `columns`; `others` is what `visit` takes."""
        spare = scratch(scratch_bytes)
        kept = -1  # the block that the scratch holds
        for row in range(rows):
            index = first + row * columns
            block = index // drawn
            for start in range(block * drawn - index, width, drawn):
                if block != kept:
                    write_block(spare, block, seed, stream, 0, ())
                    kept = block
                block += 1
                for part in range(0, drawn, ABREAST):
                    lanes = lanes_between(-start - part, width - start - part)
                    if lanes != 0:
                        visit(spare + 4 * part, lanes, row, start + part, others)

    return kernel


@register_jitable(inline="always")
def collect(words, lanes, row, column, others):
    """In each column: appends the words from `least` to `greatest` to `places`, adds how many these are to `inside`,
    and how many lie below to `below`.

    `places` has room for `room` words of each column; where there are more, the last ones overwrite each other. Counts
    are words of 32 bits. `below` must go on for 63 more on both sides, which take up anything.
    """
    least, greatest, below, inside, places, room = others
    count_below(words, least, below + 4 * column)
    lanes &= between(words, least, greatest)
    while lanes != 0:
        k = lowest(lanes)
        lanes &= lanes - 1
        number = min(next_number(inside + 4 * (column + k)), room - 1)
        copy_element(places + 4 * ((column + k) * room + number), words + 4 * k, 4)


def clearer(size: int) -> Any:
    @register_jitable(inline="always")
    def clear(words, lanes, row, column, others):
        """Clears the elements of `size` bytes whose words are less than their columns' bounds.

        `down` and `across` are the bytes from one element to the next in a column and in a row. `bounds` must go on for
        63 more on both sides.
        """
        bounds, target, down, across = others
        limits, place = bounds + 4 * column, target + row * down + column * across
        if lanes == -1 and across == size:
            clear_below(words, limits, place, size)
        else:
            lanes &= below(words, limits)
            while lanes != 0:
                clear_element(place + across * lowest(lanes), size)
                lanes &= lanes - 1

    return clear


def build_selection(kind: str, dtype: torch.dtype) -> Callable[..., None]:
    """The Python source of a kernel, still to be compiled; it takes whole numbers and, at last, a tuple of them."""
    return walker(collect if kind == "collect" else clearer(dtype.itemsize))
