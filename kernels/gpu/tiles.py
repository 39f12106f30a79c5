"""The kernels that write tiles of samples.

A *row* is a block of the stream contract: sixteen counters, which draw sixteen neighbours in each lane. A tile is so
many rows. Each thread draws as many neighbouring columns as one store of 16 bytes holds, so that no value
ever changes threads (through shared memory) on its way.
"""

from __future__ import annotations

import triton
import triton.language as tl

# --- what one counter draws --------------------------------------------------------------------


@triton.jit
def typed(parameters, REAL: tl.constexpr, WHOLE: tl.constexpr):
    """The parameters in the working precision, the first WHOLE of them words; so they are, unless interpreted."""
    numbers = ()
    for k in tl.static_range(len(parameters)):
        if k < WHOLE:
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
    EXACT: tl.constexpr, FINISH: tl.constexpr, ELEMENT: tl.constexpr,
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
        finished = finished + (FINISH(drawn[lane].to(EXACT)).to(ELEMENT),)
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
    WIDTH: tl.constexpr, REAL: tl.constexpr, EXACT: tl.constexpr, FINISH: tl.constexpr, ELEMENT: tl.constexpr,
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
            drawn = drawn + (lanes(words, numbers, LAW, HEAD, PAIRS, WIDTH, EXACT, FINISH, ELEMENT),)
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
    WIDTH: tl.constexpr, REAL: tl.constexpr, EXACT: tl.constexpr, FINISH: tl.constexpr, ELEMENT: tl.constexpr,
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
    samples = lanes(words, numbers, LAW, HEAD, PAIRS, WIDTH, EXACT, FINISH, ELEMENT)
    out = address.to(tl.pointer_type(ELEMENT))
    for lane in tl.static_range(LANES):
        offset = number * (16 * LANES) + (16 * lane + column) - index
        inside = (offset >= 0) & (offset < length) & (row < rows)
        tl.store(out + (place + offset * stride), samples[lane], mask=inside)


@triton.jit
def fill_each(
    address, first, length, stride, given, given_steps, seed, stream_id,
    PHILOX: tl.constexpr, LAW: tl.constexpr, HEAD: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
    REAL: tl.constexpr, EXACT: tl.constexpr, FINISH: tl.constexpr, ELEMENT: tl.constexpr, STORED: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Write one run of `length` neighbours of the stream, each with parameters of its own, `stride` elements apart.

    Those of an element lie at the addresses `given`, `given_steps` (in elements) from one element to the next.
    """
    LANES: tl.constexpr = 128 // WIDTH
    thread = tl.arange(0, ROWS * 16)
    column = thread % 16
    number = first // (16 * LANES) + (tl.program_id(0) * ROWS + thread // 16)
    counter = number * 16 + column
    words = PHILOX(
        low_word(counter), high_word(counter),
        low_word(stream_id), high_word(stream_id), low_word(seed), high_word(seed),
    )  # fmt: skip
    out = address.to(tl.pointer_type(ELEMENT))
    for lane in tl.static_range(LANES):
        offset = number * (16 * LANES) + (16 * lane + column) - first
        inside = (offset >= 0) & (offset < length)
        numbers = ()
        for k in tl.static_range(len(given)):
            place = given[k].to(tl.pointer_type(STORED)) + offset * given_steps[k]
            numbers = numbers + (tl.load(place, mask=inside, other=0.0).to(REAL),)
        # The other lanes' samples, which are not theirs with this lane's parameters, are left out by the compiler.
        samples = lanes(words, numbers, LAW, HEAD, PAIRS, WIDTH, EXACT, FINISH, ELEMENT)
        tl.store(out + offset * stride, samples[lane], mask=inside)
