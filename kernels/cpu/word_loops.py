"""Kernels that take 64-bit words of a stream, of two random words each, for something else than samples of a law.

Numbers are sorted by their words with a bucket sort, because words are uniform. Number i stands for word i. By the
first bits of its word it comes into a bucket as an entry: the next 32 bits of the word, and i. A bucket fits into the
cache, where a second distribution leaves a number some places from its own. Where 32 bits do not tell two apart, their
words are drawn again: one pair in 2^32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from ..contract import COLUMNS, block_size
from .blocks import store, words_of
from .forms import Form
from .loops import load_int64, scratch, store_int64, word
from .rows import (
    ADDRESS,
    BITS,
    BOUNDS,
    ENTRIES,
    LENGTH,
    NUMBER,
    SAMPLES,
    SEED,
    SPARE,
    STREAM_ID,
    SUMS,
)  # fmt: skip
from .simd import join

BLOCK = block_size(64)  # words that sixteen counters draw
BLOCK_BYTES = 8 * BLOCK
INDEX = np.uint64(0xFFFFFFFF)
HALF, HALF_MASK = np.uint64(32), np.uint64(0xFFFFFFFF00000000)
ONE = np.uint64(1)


@intrinsic
def draw_words(context, address, block, seed, stream_id):
    """Writes all words of a block, of 64 bits each."""

    def build(context, builder, signature, arguments):
        address, block, seed, stream_id = arguments
        a, b, c, d = words_of(builder, COLUMNS, block, (seed, stream_id))
        vectors = [join(a, b).value, join(c, d).value]
        store(builder, vectors, address, 8, ir.Constant(ir.IntType(64), 0))
        return context.get_dummy_value()

    return types.void(address, block, seed, stream_id), build


@register_jitable
def load_word(address):
    return np.uint64(load_int64(address))  # the same bits


@intrinsic
def counted(context, address, more):
    """The count of 32 bits that stands there, to which `more` is added."""

    def build(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        count = builder.load(place)
        builder.store(builder.add(count, builder.trunc(arguments[1], count.type)), place)
        return builder.zext(count, ir.IntType(64))

    return types.int64(address, more), build


@intrinsic
def high_half(context, a, b):
    """Of the product of two words of 64 bits."""

    def build(context, builder, signature, arguments):
        both = ir.IntType(128)
        product = builder.mul(*(builder.zext(word, both) for word in arguments))
        return builder.trunc(builder.lshr(product, both(64)), ir.IntType(64))

    return types.uint64(a, b), build


@register_jitable
def word_of(number, spare, seed, stream_id):
    draw_words(spare, number // BLOCK, seed, stream_id)
    return load_word(spare + 8 * (number % BLOCK))


@register_jitable
def follows(a, b, spare, seed, stream_id):
    """Whether entry a comes after entry b: by their words, then by their numbers."""
    if a >> HALF != b >> HALF:
        return a > b
    first = word_of(np.int64(a & INDEX), spare, seed, stream_id)
    second = word_of(np.int64(b & INDEX), spare, seed, stream_id)
    return first > second or (first == second and a > b)


def count(row, start, stop):
    """How many of a slice's numbers go to each of 2^BITS buckets, added to the counts at ADDRESS.

    The slice is never cut: it begins with NUMBER, which is a block's first.
    """
    counts, first, seed, stream_id = word(row, ADDRESS), word(row, NUMBER), word(row, SEED), word(row, STREAM_ID)
    spare = scratch(BLOCK_BYTES)
    shift = np.uint64(63 - word(row, BITS))  # and once more, as no word can be shifted by all its bits
    for block in range(first // BLOCK, -(-(first + stop) // BLOCK)):
        draw_words(spare, block, seed, stream_id)
        for k in range(min(BLOCK, first + stop - block * BLOCK)):
            place = counts + 8 * np.int64(load_word(spare + 8 * k) >> shift >> ONE)
            store_int64(load_int64(place) + 1, place)


def scatter(row, start, stop):
    """Write a slice's numbers as entries to their buckets, each of which goes on where the table at ADDRESS says.

    For the slice see `count`.
    """
    places, first, seed, stream_id = word(row, ADDRESS), word(row, NUMBER), word(row, SEED), word(row, STREAM_ID)
    entries, bits = word(row, ENTRIES), word(row, BITS)
    spare = scratch(BLOCK_BYTES)
    shift, used = np.uint64(63 - bits), np.uint64(bits)
    for block in range(first // BLOCK, -(-(first + stop) // BLOCK)):
        draw_words(spare, block, seed, stream_id)
        for k in range(min(BLOCK, first + stop - block * BLOCK)):
            drawn = load_word(spare + 8 * k)
            place = places + 8 * np.int64(drawn >> shift >> ONE)
            at = load_int64(place)
            store_int64(at + 1, place)
            store_int64(np.int64((drawn << used) & HALF_MASK | np.uint64(block * BLOCK + k)), entries + 8 * at)


def settle(row, start, stop):
    """Order as many buckets as the row says, from number NUMBER on, and write their numbers.

    BOUNDS lists where buckets begin, and end; at SPARE there is room for the greatest one, and for 2^BITS counts: no
    thread shares it. Entries may lie where the numbers are written, at ADDRESS: a bucket is in the spare room before
    one of its numbers is written.
    """
    out, bounds, entries, bits = word(row, ADDRESS), word(row, BOUNDS), word(row, ENTRIES), word(row, BITS)
    seed, stream_id, spare = word(row, SEED), word(row, STREAM_ID), word(row, SPARE)
    words = scratch(BLOCK_BYTES)
    counts, ordered = spare, spare + (4 << bits)
    shift = np.uint64(63 - bits)
    bucket = word(row, NUMBER) + start
    last = bucket + stop - start
    while bucket < last:
        begin, end = load_int64(bounds + 8 * bucket), load_int64(bounds + 8 * bucket + 8)
        for pair in range(1 << bits >> 1):
            store_int64(0, counts + 8 * pair)
        for at in range(begin, end):
            counted(counts + 4 * np.int64(load_word(entries + 8 * at) >> shift >> ONE), 1)
        total = 0
        for k in range(1 << bits):
            here = counted(counts + 4 * k, 0)
            counted(counts + 4 * k, total - here)
            total += here
        for at in range(begin, end):
            entry = load_word(entries + 8 * at)
            to = counted(counts + 4 * np.int64(entry >> shift >> ONE), 1)
            store_int64(np.int64(entry), ordered + 8 * to)
        before = load_word(ordered)
        for at in range(1, end - begin):
            entry = load_word(ordered + 8 * at)
            if follows(before, entry, words, seed, stream_id):
                to = at
                while to > 0 and follows(load_word(ordered + 8 * to - 8), entry, words, seed, stream_id):
                    store_int64(np.int64(load_word(ordered + 8 * to - 8)), ordered + 8 * to)
                    to -= 1
                store_int64(np.int64(entry), ordered + 8 * to)
            else:
                before = entry
        for at in range(end - begin):
            store_int64(np.int64(load_word(ordered + 8 * at) & INDEX), out + 8 * (begin + at))
        bucket += 1


def choose(row, start, stop):
    """For each of the words in [start, stop) the place that its share of the total has among its own LENGTH sums.

    That is the number of sums that are at most floor(word * total / 2^64); the last sum is the total. Each group of
    SAMPLES words has sums of its own, which lie at SUMS one behind the other; numbers are written to ADDRESS.
    """
    out, length, samples, sums = word(row, ADDRESS), word(row, LENGTH), word(row, SAMPLES), word(row, SUMS)
    seed, stream_id = word(row, SEED), word(row, STREAM_ID)
    spare = scratch(BLOCK_BYTES)
    kept = -1  # the block whose words the scratch holds: short rows share one
    position = start
    while position < stop:
        group = position // samples
        own = sums + 8 * length * group
        total = load_word(own + 8 * length - 8)
        until = min(stop, (group + 1) * samples)
        while position < until:
            block = position // BLOCK
            if block != kept:
                draw_words(spare, block, seed, stream_id)
                kept = block
            for k in range(position - block * BLOCK, min(BLOCK, until - block * BLOCK)):
                share = np.int64(high_half(load_word(spare + 8 * k), total))
                place, left = 0, length
                while left > 1:  # branch-free, because a branch would be mispredicted half the time
                    half = left >> 1
                    place += half if load_int64(own + 8 * (place + half - 1)) <= share else 0
                    left -= half
                store_int64(place, out + 8 * position)
                position += 1


def step_kernel(step: Form) -> Callable[..., None]:
    """The Python source of one of `forms.STEPS`, still to be compiled."""
    source: Callable[..., None] = {"count": count, "scatter": scatter, "settle": settle, "choose": choose}[step]
    return source
