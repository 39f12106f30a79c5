"""The loops of the CPU engine's kernels: from positions in a tensor to blocks and to places in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, register_jitable

from ..contract import COLUMNS, SAMPLERS, block_size, width_of
from .blocks import at_once, block_writer, store
from .forms import LINE, Form
from .rows import ADDRESS, FIRST, LENGTH, OUTER, PARAMETERS, SEED, SIZE, STREAM_ID, STREAMING, STRIDE, TABLE


@intrinsic(prefer_literal=True)
def scratch(context, size):
    """The address of `size` (a literal) bytes on the stack."""

    def build(context, builder, signature, arguments):
        # Not by cgutils.alloca_once, which fills it with zeros: LLVM takes seconds to find that they are not read.
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(ir.IntType(8), size.literal_value))
        place.align = LINE
        return builder.ptrtoint(place, ir.IntType(64))

    return types.int64(size), build


@intrinsic
def load_int64(context, address):
    def build(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.int64(address), build


@register_jitable(inline="always")
def word(row, place):
    """A number of a row."""
    return load_int64(row + 8 * place)


@register_jitable(inline="always")
def place_in_memory(row):
    """What a row says besides the parameters of its law; see `build_kernel`."""
    runs = word(row, ADDRESS), word(row, FIRST), word(row, LENGTH), word(row, STRIDE)
    around = word(row, OUTER), word(row, TABLE)
    return (*runs, *around, word(row, SEED), word(row, STREAM_ID), word(row, STREAMING))


def numbers_reader(kinds: Sequence[Any]) -> Any:
    """A Numba intrinsic for the numbers that lie where a row's PARAMETERS says, of these types of 64 bits: a tuple."""
    wanted = types.Tuple(list(kinds))  # type: ignore[attr-defined]

    @intrinsic
    def numbers_at(context, row):
        def build(context, builder, signature, arguments):
            said = builder.add(arguments[0], ir.Constant(arguments[0].type, 8 * PARAMETERS))
            address, values = builder.load(builder.inttoptr(said, said.type.as_pointer())), []
            for number, kind in enumerate(wanted):
                place = builder.add(address, ir.Constant(address.type, 8 * number))
                values.append(builder.load(builder.inttoptr(place, context.get_value_type(kind).as_pointer())))
            return context.make_tuple(builder, wanted, values)

        return wanted(row), build

    return numbers_at


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
def store_int64(context, value, address):
    def build(context, builder, signature, arguments):
        value, address = arguments
        builder.store(value, builder.inttoptr(address, ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(value, address), build


def interleaved(builder: ir.IRBuilder, first: ir.Value, second: ir.Value, start: int) -> ir.Value:
    """The lanes of two vectors in turns, half as many of each, from number `start` on."""
    count = first.type.count
    lanes = [lane + side for lane in range(start, start + count // 2) for side in (0, count)]
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), count), lanes))


def transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The columns of a square of 2^n vectors: in n rounds the first half of the rows interleaves with the second."""
    half = len(rows) // 2
    for _ in range(half.bit_length()):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [interleaved(builder, *pair, start) for pair in pairs for start in (0, half)]
    return rows


@intrinsic(prefer_literal=True)
def turn_square(context, rows, offset, target, stride, size, side, streaming):
    """Writes a square of `side` (a literal, 2^n) elements of `size` (another) bytes, a column at a time.

    `rows` lists the rows' addresses, to which `offset` is added; the columns go to `target`, `stride` bytes from one to
    the next, with non-temporal stores where `streaming`.
    """
    line = ir.VectorType(ir.IntType(8 * size.literal_value), side.literal_value)

    def build(context, builder, signature, arguments):
        rows, offset, target, stride, _, _, streaming = arguments
        loaded = []
        for k in range(side.literal_value):
            place = builder.inttoptr(builder.add(rows, rows.type(8 * k)), ir.IntType(64).as_pointer())
            source = builder.inttoptr(builder.add(builder.load(place), offset), line.as_pointer())
            loaded.append(builder.load(source, align=size.literal_value))
        store(builder, transposed(builder, loaded), target, size.literal_value, streaming, stride)
        return context.get_dummy_value()

    return types.void(rows, offset, target, stride, size, side, streaming), build


@intrinsic
def fence(context):
    """Makes non-temporal stores visible to other threads before whatever comes next."""

    def build(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


@register_jitable(inline="always")
def dimension_of(table, number):
    """A dimension around the runs: its size, index step and byte step."""
    entry = table + 24 * number
    return load_int64(entry), load_int64(entry + 8), load_int64(entry + 16)


@register_jitable(inline="always")
def place_of(run, outer, table):
    """Where a run lies: its first element's index and address, from those of run 0; and its place in the innermost of
    the dimensions around it."""
    index = target = innermost = 0
    for dimension in range(outer - 1, -1, -1):
        size, step, stride = dimension_of(table, dimension)
        around = run // size
        along = run - around * size
        index += along * step
        target += along * stride
        if dimension == outer - 1:
            innermost = along
        run = around
    return index, target, innermost


def build_kernel(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> Callable[..., None]:
    """The Python source of a kernel of samples, still to be compiled; the law has so many `parameters`.

    The elements to write are `runs`: stretches of LENGTH neighbours in the global tensor, STRIDE bytes apart
    in memory. Positions count along all runs; a call fills those in [start, stop), so that threads can
    share a tensor at any cut. Where each run lies is told by a TABLE of (size, index step, byte step) for each of
    the OUTER dimensions around it. The first run's first element is number FIRST of the global tensor, and lies at
    ADDRESS. STREAMING asks for non-temporal stores. For `form` see `forms.form_of`.
    """
    kinds = [types.int64 if k < SAMPLERS[kind].whole else types.float64 for k in range(parameters)]
    build = turned_kernel if form == "turned" else straight_kernel
    return build(kind, dtype, form, numbers_reader(kinds))


def straight_kernel(kind: str, dtype: torch.dtype, form: Form, numbers_at: Any) -> Callable[..., None]:
    """Run by run, block by block."""
    contiguous = form != "strided"
    columns = at_once(width_of(kind, dtype)) if form == "long" else COLUMNS
    write_block = block_writer(kind, dtype, columns)
    block_elements = block_size(width_of(kind, dtype)) * columns // COLUMNS  # of one block, two or four
    size = dtype.itemsize
    scratch_bytes = block_elements * size

    def kernel(row, start, stop):
        address, first, length, stride, outer, table, seed, stream_id, streaming = place_in_memory(row)
        parameters, spare = numbers_at(row), scratch(scratch_bytes)
        kept = -1  # the block that the scratch holds: short runs often share one
        position = start
        while position < stop:
            run = position // length
            offset = position - run * length
            left = min(length - offset, stop - position)
            position += left
            index, target, _ = place_of(run, outer, table)
            index += first + offset
            target += address + offset * stride
            block = index // block_elements
            skip = index - block * block_elements
            target -= skip * stride  # where the block's first element would lie
            aligned = streaming if target % LINE == 0 else 0
            while left > 0:
                count = min(block_elements - skip, left)
                # One call for both cases: the arithmetic stands in the machine code once.
                whole = contiguous and count == block_elements
                if whole or block != kept:
                    write_block(target if whole else spare, block, seed, stream_id, aligned if whole else 0, parameters)
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

    return kernel


@intrinsic
def store_line(context, source, target, streaming):
    """Copies a cache line, with non-temporal stores where `streaming`."""
    line = ir.VectorType(ir.IntType(64), LINE // 8)

    def build(context, builder, signature, arguments):
        source, target, streaming = arguments
        loaded = builder.load(builder.inttoptr(source, line.as_pointer()), align=8)
        store(builder, [loaded], target, LINE, streaming)
        return context.get_dummy_value()

    return types.void(source, target, streaming), build


def constant(row, start, stop):
    """The kernel that writes the same bytes to all elements: those at PARAMETERS, a cache line of them."""
    size, source, streaming = word(row, SIZE), word(row, PARAMETERS), word(row, STREAMING)
    target, end = word(row, ADDRESS) + start * size, word(row, ADDRESS) + stop * size
    while target < end and target % LINE != 0:
        copy_bytes(target, source, size)
        target += size
    while target + LINE <= end:
        store_line(source, target, streaming)
        target += LINE
    while target < end:
        copy_bytes(target, source, size)
        target += size
    if streaming:
        fence()


def turned_kernel(kind: str, dtype: torch.dtype, form: Form, numbers_at: Any) -> Callable[..., None]:
    """Many runs side by side, for runs that lie closer together than their elements: a transposed matrix.

    Written run by run, each element would fetch its cache line anew (10 against 0.4 ns an element, 4096 x 4096).
    A call fills whole runs, in windows of a block's length. The scratch keeps two blocks of each run, as a window
    lies in two unless the run begins where a block does.
    """
    write_block = block_writer(kind, dtype, COLUMNS)
    block_elements, size = block_size(width_of(kind, dtype)), dtype.itemsize
    # As many runs as a cache line has elements, unless a block has fewer (of one byte each, from 64 bits each).
    side_by_side, block_bytes = min(LINE // size, block_elements), block_elements * size
    windows, list_bytes = side_by_side * 2 * block_bytes, side_by_side * 8

    def kernel(row, start, stop):
        address, first, length, stride, outer, table, seed, stream_id, streaming = place_in_memory(row)
        parameters, spare, rows = numbers_at(row), scratch(windows), scratch(list_bytes)
        runs, step, across = dimension_of(table, outer - 1)
        run = start // length
        while run < stop // length:
            index, target, along = place_of(run, outer, table)
            count = min(side_by_side, stop // length - run, runs - along)
            for begin in range(0, length, block_elements):
                width = min(block_elements, length - begin)
                for k in range(count):
                    here = first + index + k * step + begin
                    block = here // block_elements
                    skip = here - block * block_elements  # the same in all windows of a run
                    window = spare + k * 2 * block_bytes
                    store_int64(window + skip * size, rows + 8 * k)
                    drawn = 1 if begin > 0 and skip > 0 else 0  # by the window before, as its second block
                    if drawn:
                        copy_bytes(window, window + block_bytes, block_bytes)
                    while drawn * block_elements < skip + width:
                        write_block(window + drawn * block_bytes, block + drawn, seed, stream_id, 0, parameters)
                        drawn += 1
                place = address + target + begin * stride
                if across == size and count == side_by_side and width == block_elements:
                    around = streaming if place % LINE == 0 and stride % LINE == 0 else 0
                    for offset in range(0, block_elements, side_by_side):
                        turn_square(rows, offset * size, place + offset * stride, stride, size, side_by_side, around)
                else:
                    for offset in range(width):
                        for k in range(count):
                            source = load_int64(rows + 8 * k) + offset * size
                            copy_element(place + offset * stride + k * across, source, size)
            run += count
        if streaming:
            fence()

    return kernel
