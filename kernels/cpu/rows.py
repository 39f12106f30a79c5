"""What a compiled kernel is told: a row of whole numbers in memory.

A kernel is a C function `kernel(row, start, stop)`, which does the part [start, stop) of what its row says. So all
kernels have one signature, and a table of rows is a job that threads share without Python: see `team`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

# The places in a row that a job reads, each a number of 64 bits. What comes behind is the kernel's own business.
KERNEL = 0  # its address
END = 1  # where the row ends on the line of a job: the lengths of the rows up to it, each a multiple of TOGETHER
COUNT = 2  # how many elements it has, numbered from 0
TOGETHER = 3  # parts begin where LEAD + the number of their first element is a multiple of it
LEAD = 4
# Those that a kernel of samples reads; see `loops.build_kernel`.
ADDRESS, FIRST, LENGTH, STRIDE, OUTER, TABLE, SEED, STREAM_ID, STREAMING, PARAMETERS = range(5, 15)
SIZE = 15  # an element's bytes
# Those of kernels that make other things of words, besides SEED and STREAM_ID; see `word_loops`.
BITS, ENTRIES, BOUNDS, SPARE, NUMBER = range(6, 11)
SAMPLES, SUMS = 8, 9
WORDS = 16
ROW_BYTES = 8 * WORDS

ENTRY = 5  # numbers of which `team.lay_out` makes a row: a pattern, and an address, a count, a seed and a stream's id
MASK = (1 << 64) - 1


def words(numbers: Sequence[float], whole: int | None = None) -> array[int]:
    """The numbers in memory, of 64 bits each: the first `whole` of them (all, if None) as they are, others as float64.

    Whole numbers count modulo 2^64. Raises `TypeError` where one is none.
    """
    whole = len(numbers) if whole is None else whole
    if not all(isinstance(number, int) for number in numbers[:whole]):
        raise TypeError(f"{numbers[:whole]} are not whole numbers")
    floats = struct.unpack(f"={len(numbers) - whole}Q", struct.pack(f"={len(numbers) - whole}d", *numbers[whole:]))
    return array("Q", [*(int(number) & MASK for number in numbers[:whole]), *floats])


def new_rows(number: int, spare: int = 0) -> array[int]:
    """Rows of zeros, and so many more numbers behind them."""
    return array("Q", bytes(number * ROW_BYTES + 8 * spare))


def address_of(memory: array[int]) -> int:
    return memory.buffer_info()[0]


def with_parameters(row: array[int], parameters: Sequence[int]) -> array[int]:
    """A copy of a row with other parameters, whole numbers, behind it."""
    copy = row[:WORDS] + words(parameters)
    copy[PARAMETERS] = address_of(copy) + ROW_BYTES
    return copy
