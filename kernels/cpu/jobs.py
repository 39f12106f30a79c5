"""Jobs: fills that are done together, on all threads, as a table of rows; see `rows` and `team`."""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, UntypedStorage

from ..contract import ASKED_TOGETHER, SAMPLERS, Draw, KernelMissing, block_size, width_of
from ..runs import Runs, are_neighbours, extent, runs_of
from . import helpers, loading
from .forms import BLOCKS_AT_ONCE, CONSTANT, EACH, LINE, Form, form_of
from .pages import advise_huge_pages
from .rows import (
    ADDRESS,
    COUNT,
    END,
    ENTRY,
    FIRST,
    KERNEL,
    LEAD,
    LENGTH,
    MASK,
    OUTER,
    PARAMETERS,
    ROW_BYTES,
    SEED,
    SIZE,
    STREAM_ID,
    STRIDE,
    TABLE,
    TOGETHER,
    WORDS,
    address_of,
    new_rows,
    words,
)  # fmt: skip

# Measured by `python -m bench.thresholds`.
THREADS_FROM = 1 << 14  # elements; below, handing over takes longer than drawing
# Bytes of a job; from here on, stores are non-temporal: what it writes does not stay in the cache anyway.
STREAMING_FROM = 1 << 20
HUGE_PAGES_FROM = 16 << 20  # bytes of a tensor; three times as fast on fresh memory, which it is from 32 MiB on


def row_of(draw: Draw, dtype: torch.dtype, first: int, form: Form) -> array[int]:
    """A row for a kernel of this form, with the law's parameters behind it; where its elements lie is to come."""
    each = form in EACH.values()
    parameters = words(draw.parameters, None if each else SAMPLERS[draw.kind].whole)
    row = new_rows(1, len(parameters))
    row[KERNEL] = loading.kernel(draw.kind, dtype, form, len(parameters) // (2 if each else 1))
    row[FIRST], row[SEED], row[STREAM_ID] = first & MASK, draw.seed & MASK, draw.stream_id & MASK
    row[PARAMETERS], row[SIZE] = address_of(row) + ROW_BYTES, dtype.itemsize
    # A cut inside a block would draw it twice.
    row[TOGETHER] = together = BLOCKS_AT_ONCE * block_size(width_of(draw.kind, dtype))
    row[LEAD] = first % together
    row[WORDS:] = parameters
    return row


def pattern_of(draw: Draw, dtype: torch.dtype, first: int = 0, form: Form = "long") -> array[int]:
    """The row of contiguous tensors, for `team` to fill in an address, a length and a stream."""
    row = row_of(draw, dtype, first, form)
    row[STRIDE] = dtype.itemsize
    return row


class Plan(NamedTuple):
    """How contiguous tensors are filled with a law.

    Up to `alone` elements by one thread: `fill(pattern, address, elements, seed, stream_id)`; up to `most` by `draw`.
    """

    fill: Callable[[int, int, int, int, int], None]
    pattern: int
    alone: int
    most: int
    size: int  # an element's bytes
    owned: array[int]  # where the pattern lies

    def job(self) -> Job:
        """For fills by plans like this one."""
        return Job()

    def draw(self, address: int, count: int, seed: int, stream_id: int) -> None:
        if count <= self.alone:
            self.fill(self.pattern, address, count, seed, stream_id)
            return
        try:
            share = loading.entry("share")
        except KernelMissing:  # Numba has broken since
            self.fill(self.pattern, address, count, seed, stream_id)
            return
        threads, around = torch.get_num_threads(), count * self.size >= STREAMING_FROM
        share(self.pattern, address, count, seed, stream_id, around, threads, helpers.team(threads))


def plan(draw: Draw, dtype: torch.dtype, form: Form = "long", first: int = 0) -> Plan:
    """For a law in an output dtype, from its element `first` on. Raises `KernelMissing` where there is no kernel."""
    return plan_of(pattern_of(draw, dtype, first, form))


def constant(element: bytes) -> Plan:
    """For tensors each of whose elements is to become these bytes: 1, 2, 4 or 8. Raises `KernelMissing`."""
    pattern = new_rows(1, LINE // 8)
    pattern[KERNEL] = loading.kernel("words", torch.int64, CONSTANT, 0)
    pattern[SIZE], pattern[TOGETHER], pattern[PARAMETERS] = len(element), LINE, address_of(pattern) + ROW_BYTES
    pattern[WORDS:] = array("Q", element * (LINE // len(element)))
    return plan_of(pattern)


def plan_of(pattern: array[int]) -> Plan:
    size = pattern[SIZE]
    most = HUGE_PAGES_FROM // size - 1
    return Plan(loading.entry("fill"), address_of(pattern), THREADS_FROM - 1, most, size, pattern)


# What a job remembers of a fill, one behind the other: the tensor, by which one tells whether its memory is still there
# (or a list of tensors); what owns the memory that its entry refers to; where it begins and ends in memory, if it has
# gaps or another order, or None; and its entry (see `rows.ENTRY`; or the address of a row, and zeros), as bytes.
FILL = 4
ENTRY_BYTES = 8 * ENTRY
BYTES = operator.attrgetter("nbytes")
pack = struct.Struct(f"{ENTRY}Q").pack


class Job:
    """Fills that are done together, with the outcome that they would have one after the other.

    Making one raises `KernelMissing` where it could not be done.
    """

    def __init__(self) -> None:
        loading.entry("lay_out"), loading.entry("run")  # now, not when it is too late
        self.taken = False
        # In one list: Python's garbage collector would look at an object for each fill again and again.
        self.fills: list[Any] = []
        self.laid_out: Table | None = None  # the first of them

    def add(self, form: Form, out: Tensor, runs: Runs, draw: Draw, first: int, owner: Tensor | None = None) -> None:
        """A fill by a kernel of this form. Raises `KernelMissing` where there is none."""
        row = row_of(draw, out.dtype, first, form)
        length, stride, outer = runs
        table = words([number for dimension in outer for number in dimension])
        row[ADDRESS], row[COUNT], row[LENGTH], row[STRIDE] = out.data_ptr(), out.numel(), length, stride & MASK
        row[OUTER], row[TABLE] = len(outer), address_of(table)
        if form == "turned":  # runs side by side are not cut at all
            row[TOGETHER], row[LEAD] = length * (LINE // out.dtype.itemsize), 0
        if (size := out.numel() * out.dtype.itemsize) >= HUGE_PAGES_FROM:
            advise_huge_pages(out.data_ptr(), size)
        reach = None if out.is_contiguous() else extent(out)
        self.add_row(row, out if owner is None else owner, (row, table), reach)

    def add_row(self, row: array[int], out: Tensor, owned: Any, reach: tuple[int, int] | None = None) -> None:
        # In one step: a signal handler may add to the same job.
        self.fills.extend((out, owned, reach, pack(address_of(row), 0, 0, 0, 0)))

    def add_plan(self, plan: Plan, out: Tensor, address: int, count: int, seed: int, stream_id: int) -> None:
        """A fill of a contiguous tensor, as `Plan.draw` makes it."""
        if count > plan.most:
            advise_huge_pages(address, count * plan.size)
        self.fills.extend((out, plan, None, pack(plan.pattern, address, count, seed, stream_id)))

    def add_plans(
        self,
        plans: Sequence[Plan],
        outs: Sequence[Tensor],
        patterns: Any,
        addresses: Any,
        counts: Any,
        seeds: Any,
        stream_ids: Any,
    ) -> None:
        """The same of many tensors, by some of these plans: for each its plan's pattern, and so on, or one for all."""
        entries = np.empty((len(outs), ENTRY), np.uint64)
        for place, several in enumerate((patterns, addresses, counts, seeds, stream_ids)):
            entries[:, place] = several
        self.fills.extend(([*outs], plans, None, entries.tobytes()))

    def add_fill(
        self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None, owner: Tensor | None = None
    ) -> None:
        """What `contract.Engine.fill` writes."""
        runs = runs_of(out.shape, out.stride(), out.dtype.itemsize, steps)
        self.add(form_of(runs, draw.kind, out.dtype), out, runs, draw, first, owner)

    def add_constant(self, out: Tensor, element: bytes) -> None:
        """Each element of a contiguous tensor becomes these bytes. Raises `KernelMissing`."""
        self.add_plan(constant(element), out, out.data_ptr(), out.numel(), 0, 0)

    def tensors(self) -> list[Tensor]:
        """What is to be written."""
        together = (filled if type(filled) is list else (filled,) for filled in self.fills[::FILL])
        return [*itertools.chain.from_iterable(together)]

    def table(self) -> Table:
        """A row for each fill, in order; and where in memory its elements begin and end."""
        fills = self.fills[:]  # to which a signal handler may add
        if self.laid_out is None or self.laid_out.length != len(fills):
            entries = fills[3::FILL]
            rows = lay_out(np.frombuffer(b"".join(entries), np.uint64).reshape(-1, ENTRY))
            begins = rows[:, ADDRESS].copy()
            ends = begins + rows[:, COUNT] * rows[:, SIZE]
            number = 0
            for reach, entry in zip(fills[2::FILL], entries, strict=True):
                if reach is not None:
                    begins[number], ends[number] = reach
                number += len(entry) // ENTRY_BYTES
            self.laid_out = Table(rows, begins, ends, len(fills))
        return self.laid_out

    def touches(self, tensor: Tensor) -> bool:
        """Whether the memory that it writes and the memory that this tensor reaches over have bytes in common."""
        if not self.fills or not tensor.is_cpu or not tensor.numel():
            return False
        begin, end = extent(tensor)
        _, begins, ends, _ = self.table()
        return bool(((begins < np.uint64(end)) & (ends > np.uint64(begin))).any())

    def check(self) -> None:
        """Raise `RuntimeError` where a tensor has got other memory since its fill was added."""
        rows, begins, ends, _ = self.table()
        sizes, tensors = rows[:, COUNT] * rows[:, SIZE], self.tensors()
        for start in range(0, len(tensors), ASKED_TOGETHER):
            some = slice(start, start + ASKED_TOGETHER)
            storages = [*map(Tensor.untyped_storage, tensors[some])]
            first, room = (numbers(map(ask, storages)) for ask in (UntypedStorage.data_ptr, UntypedStorage.nbytes))
            address, size = numbers(map(Tensor.data_ptr, tensors[some])), numbers(map(BYTES, tensors[some]))
            same = (address == rows[some, ADDRESS]) & (size == sizes[some])
            if not (same & (begins[some] >= first) & (ends[some] <= first + room)).all():
                raise RuntimeError(
                    "a tensor has got other memory since it was to be filled (by `.data =`, `.to()` or `resize_` in a "
                    "batch): nothing that is pending is drawn"
                )

    def do(self) -> None:
        """Returns when all of it is written. An interruption skips what has not begun."""
        if not self.fills:
            return
        table = self.table()
        for chosen in in_order(table):
            rows = table.rows if len(chosen) == len(table.rows) else again(table.rows, chosen)
            runner(rows)()


def again_and_again(out: Tensor, draw: Draw, first: int, steps: Sequence[int]) -> Callable[[int, int, int], None]:
    """What fills memory that is laid out as `out`, from an address, a seed and a stream, on one thread.

    Its rows are made once: for small parts that takes longer than drawing them. Raises `KernelMissing`.
    """
    count = out.numel()
    if out.is_contiguous() and are_neighbours(out.shape, steps):
        found = plan(draw, out.dtype, first=first)
        return lambda address, seed, stream_id: found.fill(found.pattern, address, count, seed, stream_id)
    job = Job()
    job.add_fill(out, draw, first, steps)
    rows, owned = job.table().rows, job.fills[1::FILL]  # not the tensor, which may go
    length, run = int(rows[-1, END]), loading.entry("run")

    def fill(address: int, seed: int, stream_id: int, owned: Any = owned) -> None:
        own = rows.copy()  # another thread may be at it
        own[0, ADDRESS], own[0, SEED], own[0, STREAM_ID] = address, seed, stream_id
        run(own.ctypes.data, 1, 0, length, 1, helpers.team(1))

    return fill


class Table(NamedTuple):
    """The rows of a job, and where in memory the elements of each begin and end."""

    rows: NDArray[np.uint64]
    begins: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    length: int  # of the job's `fills` of which it was made


def lay_out(entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Rows, as `team.lay_out` makes them of entries."""
    rows = np.zeros((len(entries), WORDS), np.uint64)
    loading.entry("lay_out")(entries.ctypes.data, len(entries), rows.ctypes.data, STREAMING_FROM)
    return rows


def runner(rows: NDArray[np.uint64]) -> Callable[[], None]:
    """What does these rows, with torch's number of threads, for as long as they live."""
    length = int(rows[-1, END])
    threads = torch.get_num_threads() if length >= THREADS_FROM else 1
    return functools.partial(helpers.run, rows.ctypes.data, len(rows), length, threads)


def again(rows: NDArray[np.uint64], chosen: Sequence[int]) -> NDArray[np.uint64]:
    """The rows of these numbers, as a table of their own."""
    entries = np.zeros((len(chosen), ENTRY), np.uint64)
    entries[:, 0] = rows.ctypes.data + ROW_BYTES * np.asarray(chosen)
    return lay_out(entries)


def numbers(of: Iterable[int]) -> NDArray[np.uint64]:
    return np.fromiter(of, np.uint64)


def in_order(table: Table) -> list[Sequence[int]]:
    """The numbers of rows that are to be done one after the other: of those together no two write the same memory.

    What a later row writes anew as a whole is left out.
    """
    rows, begins, ends, _ = table
    order = np.argsort(begins, kind="stable")
    if not (begins[order][1:] < np.maximum.accumulate(ends[order])[:-1]).any():
        return [range(len(rows))]
    places = list(zip(begins.tolist(), ends.tolist(), strict=True))
    # Rows without gaps: their elements take all the memory that they reach over.
    dense = (ends - begins == rows[:, COUNT] * rows[:, SIZE]).tolist()
    last = {place: number for number, place in enumerate(places) if dense[number]}
    together: list[list[int]] = [[]]
    taken: list[tuple[int, int]] = []  # the places of the last ones, in order
    for number, (begin, end) in enumerate(places):
        if last.get((begin, end), number) > number:
            continue
        at = bisect.bisect(taken, (begin, end))
        if (at > 0 and taken[at - 1][1] > begin) or (at < len(taken) and taken[at][0] < end):
            together.append([])
            taken, at = [], 0
        taken.insert(at, (begin, end))
        together[-1].append(number)
    return [*together]
