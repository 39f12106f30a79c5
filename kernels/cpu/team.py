"""Compiled: how threads share a job, a table of rows (see `rows`), without Python, and with locks only to sleep on.

A job's rows lie one behind the other on a line of elements, each rounded up to a multiple of its TOGETHER. Threads take
pieces of the line by an atomic counter, and call the kernels of the rows that a piece meets.

Helpers wait in compiled code: each looks at its mailbox for a while, then sleeps. A job's caller puts its address into
the mailboxes of idle helpers, works itself, and takes it out again where nobody has begun: a helper that the machine
holds up is waited for only in the middle of a piece. The job lies on its caller's stack: when the call returns it is
over, whatever has happened. Two jobs at a time need no order: the second finds fewer helpers, or none.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .loops import copy_bytes, load_int64, scratch, store_int64, word
from .rows import (
    ADDRESS,
    COUNT,
    END,
    ENTRY,
    KERNEL,
    LEAD,
    LENGTH,
    ROW_BYTES,
    SEED,
    SIZE as ELEMENT_BYTES,
    STREAM_ID,
    STREAMING,
    TOGETHER,
)  # fmt: skip
from .slots import ALARM, ASLEEP, LOCK, MAILBOX, MISSED, NOBODY, SIZE, SLOT_BYTES

LONG, INT, POINTER = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
# A job's numbers, by bytes. Counters that threads write lie in cache lines of their own.
NEXT, ROUSED, ROWS, NUMBER, STOP, PIECE, TEAM, JOB_BYTES = 0, 64, 128, 136, 144, 152, 160, 192
TAKEN = 1  # added to a job's address in a mailbox while the helper works on it
LOOKS = 3000  # at a mailbox before a helper sleeps, and at a helper's before its caller does: some 50 to 150 us
# Elements: waking a sleeping helper takes its caller some 7 us, and the helper comes some 40 us later. A smaller job
# leaves it asleep, unless several of them have: then more will come.
WAKING_FROM = 1 << 17
ENOUGH_MISSED = 4
NAP = 50  # us
ROUSED_BY_EACH = 2
LEAST_PIECE = 1 << 13  # elements, some 4 us: to take one costs less than 0.1 us
PIECES_A_THREAD = 16

# --- instructions ------------------------------------------------------------------------------


def atomic(operation: str) -> Any:
    """An intrinsic that changes a number that threads share, and returns what it was before."""

    @intrinsic
    def change(context, address, value):
        def build(context, builder, signature, arguments):
            place = builder.inttoptr(arguments[0], LONG.as_pointer())
            return builder.atomic_rmw(operation, place, arguments[1], "seq_cst")

        return types.int64(address, value), build

    return change


add, exchange = atomic("add"), atomic("xchg")


@intrinsic
def replaced(context, address, old, new):
    """Whether a number that threads share was `old`, and is `new` now."""

    def build(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], LONG.as_pointer())
        found = builder.cmpxchg(place, *arguments[1:], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(address, old, new), build


@intrinsic
def look(context, address):
    """A number that threads share."""

    def build(context, builder, signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], LONG.as_pointer()), "seq_cst", 8)

    return types.int64(address), build


# LLVM's instruction for a moment of waiting, in which the core's other thread has it.
WAITING = {
    "x86_64": ("llvm.x86.sse2.pause", []), "amd64": ("llvm.x86.sse2.pause", []),
    "aarch64": ("llvm.aarch64.isb", [INT(15)]), "arm64": ("llvm.aarch64.isb", [INT(15)]),
}  # fmt: skip


@intrinsic
def pause(context):
    def build(context, builder, signature, arguments):
        name, given = WAITING.get(platform.machine().lower(), (None, []))
        if name is not None:
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def do_part(context, kernel, row, start, stop):
    """Call the kernel at this address."""

    def build(context, builder, signature, arguments):
        kernel, *others = arguments
        made = ir.FunctionType(ir.VoidType(), [LONG] * 3).as_pointer()
        builder.call(builder.inttoptr(kernel, made), others)
        return context.get_dummy_value()

    return types.void(kernel, row, start, stop), build


def locking(name: str, *options: ir.Constant) -> Any:
    """An intrinsic that calls one of CPython's functions for locks, which need no GIL, with these options."""

    @intrinsic
    def call(context, lock):
        def build(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.IntType(32), [POINTER, *(option.type for option in options)])
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.call(function, [builder.inttoptr(arguments[0], POINTER), *options])
            return context.get_dummy_value()

        return types.void(lock), build

    return call


acquire = locking("PyThread_acquire_lock", INT(1))
release = locking("PyThread_release_lock")
nap = locking("PyThread_acquire_lock_timed", LONG(NAP), INT(0))  # on a lock that nobody releases

# --- pieces ------------------------------------------------------------------------------------


@register_jitable
def cut(row, at):
    """Which element of a row begins the part that begins so far behind the row's own beginning on the line."""
    together = word(row, TOGETHER)
    rounded = (max(at, 0) + together - 1) // together * together
    return min(max(rounded - word(row, LEAD), 0), word(row, COUNT))


@register_jitable
def do_piece(rows, number, begin, end):
    """What lies between two places of the line."""
    low, high = 0, number - 1  # the first row that ends behind `begin`
    while low < high:
        middle = (low + high) // 2
        if word(rows + ROW_BYTES * middle, END) <= begin:
            low = middle + 1
        else:
            high = middle
    row = rows + ROW_BYTES * low
    before = word(row - ROW_BYTES, END) if low > 0 else 0
    while low < number and before < end:
        start, stop = cut(row, begin - before), cut(row, end - before)
        if start < stop:
            do_part(word(row, KERNEL), row, start, stop)
        before = word(row, END)
        row += ROW_BYTES
        low += 1


@register_jitable
def work(job):
    """Take pieces until there are none."""
    rows, number = load_int64(job + ROWS), load_int64(job + NUMBER)
    stop, piece = load_int64(job + STOP), load_int64(job + PIECE)
    begin = add(job + NEXT, piece)
    while begin < stop:
        do_piece(rows, number, begin, min(begin + piece, stop))
        begin = add(job + NEXT, piece)


# --- helpers -----------------------------------------------------------------------------------


@register_jitable
def rouse(job):
    """Wake some of those who have got the job; they wake others."""
    team, roused = load_int64(job + TEAM), 0
    size = load_int64(team + SIZE)
    while roused < ROUSED_BY_EACH:
        number = add(job + ROUSED, 1)
        if number >= size:
            return
        slot = team + SLOT_BYTES * (1 + number)
        if look(slot + MAILBOX) == job and exchange(slot + ASLEEP, 0) == 1:
            release(load_int64(slot + LOCK))
            roused += 1


def serve(slot):
    """What a helper does, for ever, or until NOBODY stands in its mailbox."""
    exchange(slot + MAILBOX, 0)
    looks = 0
    while True:
        job = look(slot + MAILBOX)
        if job == NOBODY:
            return
        if job != 0:
            if replaced(slot + MAILBOX, job, job + TAKEN):
                rouse(job)
                work(job)
                exchange(slot + MAILBOX, 0)
            looks = 0
        elif looks < LOOKS:
            looks += 1
            pause()
        else:
            exchange(slot + ASLEEP, 1)
            # Whoever sets ASLEEP back releases the lock.
            if look(slot + MAILBOX) == 0 or exchange(slot + ASLEEP, 0) == 0:
                acquire(load_int64(slot + LOCK))
            looks = 0


@register_jitable
def offer(job, team, helpers, waking):
    """Put the job into the mailboxes of idle helpers, up to so many, those asleep where `waking`; how many."""
    size, number, found, missed = load_int64(team + SIZE), 0, 0, 0
    while number < size and found < helpers:
        slot = team + SLOT_BYTES * (1 + number)
        if look(slot + MAILBOX) == 0:
            if not waking and look(slot + ASLEEP) == 1:
                missed = 1
            elif replaced(slot + MAILBOX, 0, job):
                found += 1
        number += 1
    # Not by an atomic operation: a count that is lost does no harm.
    store_int64(0 if waking else load_int64(team + MISSED) + missed, team + MISSED)
    return found


@register_jitable
def take_back(job, team):
    """Return when no helper has the job: it is taken from those that have not begun, and waited for."""
    for number in range(load_int64(team + SIZE)):
        slot = team + SLOT_BYTES * (1 + number)
        if not replaced(slot + MAILBOX, job, 0):
            looks = 0
            while look(slot + MAILBOX) == job + TAKEN:
                looks += 1
                if looks < LOOKS:
                    pause()
                else:  # the helper does not run: it may need this core
                    nap(load_int64(team + ALARM))


@register_jitable
def share_job(rows, number, begin, end, piece, threads, team):
    job = scratch(JOB_BYTES)
    store_int64(begin, job + NEXT)
    store_int64(0, job + ROUSED)
    store_int64(rows, job + ROWS)
    store_int64(number, job + NUMBER)
    store_int64(end, job + STOP)
    store_int64(piece, job + PIECE)
    store_int64(team, job + TEAM)
    offered = 0
    if threads > 1:
        waking = end - begin >= WAKING_FROM or load_int64(team + MISSED) >= ENOUGH_MISSED
        offered = offer(job, team, min(threads, (end - begin + piece - 1) // piece) - 1, waking)
    if offered > 0:
        rouse(job)
    work(job)
    if offered > 0:
        take_back(job, team)


# --- what Python calls -------------------------------------------------------------------------


def run(rows, number, begin, end, threads, team):
    """Do what lies between two places of the line of `number` rows."""
    share_job(rows, number, begin, end, piece_of(end - begin, threads), threads, team)


def run_apart(rows, number, threads, team):
    """Do rows that are never cut, each of which is worth a piece."""
    end = word(rows + ROW_BYTES * (number - 1), END)
    share_job(rows, number, 0, end, (end + number - 1) // number, threads, team)


@register_jitable
def piece_of(length, threads):
    """How many elements a thread takes at a time: small enough that one that is held up delays no other."""
    return max(LEAST_PIECE, (length + PIECES_A_THREAD * threads - 1) // (PIECES_A_THREAD * threads))


@register_jitable
def fill_in(row, pattern, address, count, seed, stream_id):
    """A row like `pattern`, for a contiguous tensor; or that row itself, where there is no address."""
    copy_bytes(row, pattern, ROW_BYTES)
    if address != 0:
        store_int64(address, row + 8 * ADDRESS)
        store_int64(count, row + 8 * COUNT)
        store_int64(count, row + 8 * LENGTH)
        store_int64(seed, row + 8 * SEED)
        store_int64(stream_id, row + 8 * STREAM_ID)


@register_jitable
def room_on_line(row):
    together = word(row, TOGETHER)
    return (word(row, LEAD) + word(row, COUNT) + together - 1) // together * together


def lay_out(entries, number, rows, streaming_from):
    """Make rows of entries; see `rows.ENTRY`.

    From so many bytes in all, stores are non-temporal.
    """
    end = size = 0
    for k in range(number):
        entry, row = entries + 8 * ENTRY * k, rows + ROW_BYTES * k
        given = load_int64(entry + 8), load_int64(entry + 16), load_int64(entry + 24), load_int64(entry + 32)
        fill_in(row, load_int64(entry), *given)
        end += room_on_line(row)
        size += word(row, COUNT) * word(row, ELEMENT_BYTES)
        store_int64(end, row + 8 * END)
    if size >= streaming_from:
        for k in range(number):
            store_int64(1, rows + ROW_BYTES * k + 8 * STREAMING)


def fill(pattern, address, count, seed, stream_id):
    """Fill a contiguous tensor by a row that is like `pattern`."""
    row = scratch(ROW_BYTES)
    fill_in(row, pattern, address, count, seed, stream_id)
    do_part(word(row, KERNEL), row, 0, count)


def share(pattern, address, count, seed, stream_id, streaming, threads, team):
    """Fill a contiguous tensor on several threads."""
    row = scratch(ROW_BYTES)
    fill_in(row, pattern, address, count, seed, stream_id)
    end = room_on_line(row)
    store_int64(end, row + 8 * END)
    store_int64(streaming, row + 8 * STREAMING)
    share_job(row, 1, 0, end, piece_of(end, threads), threads, team)


class Entry(NamedTuple):
    """A function that Python calls with whole numbers: how many, and by which of them one tells how many elements it
    writes, as a difference where there are two. Without these it takes long, or never returns."""

    function: Callable[..., None]
    arguments: int
    elements: tuple[int, ...] = ()


ENTRIES: dict[str, Entry] = {
    "run": Entry(run, 6, (3, 2)),
    "run_apart": Entry(run_apart, 4),
    "lay_out": Entry(lay_out, 4, (1,)),
    "fill": Entry(fill, 5, (2,)),
    "share": Entry(share, 8, (2,)),
    "serve": Entry(serve, 1),
}
