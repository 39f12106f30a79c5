"""The CPU engine: kernels that write blocks of samples with vector stores, compiled once and kept on disk."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from llvmlite import binding
from torch import Tensor

from ..contract import SAMPLERS, Draw, KernelMissing, block_size, setting_up, stored_as, width_of
from ..dtypes import uncovered
from ..runs import Runs, is_dense, is_shared, parts, row_major, runs_of
from . import cache, native
from .forms import BLOCKS_AT_ONCE, EACH, LINE, Form, Kernel, form_of, kernel_name
from .identity import arithmetic_text
from .jobs import run
from .pages import advise_huge_pages
from .trust import Folder

# How many kernels this process has "loaded" from disk, and how many it has "compiled": tests ask.
origins: Counter[str] = Counter()
# Kernels that could not be compiled: a broken Numba takes its time to say so.
failures: dict[str, str] = {}


class Plan(NamedTuple):
    """How one call of a kernel fills small contiguous tensors with a law: the kernel, the law's parameters, the most
    elements, an element's bytes."""

    write: Callable[..., None]
    parameters: tuple[float, ...]
    most: int
    size: int


@functools.cache
def kernel(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> Callable[..., None]:
    """A law's kernel for an output dtype, from disk where it can be; `parameters` is how many the law takes.

    `kernel(address, first, length, start, stop, stride, outer, table, seed, stream_id, streaming, parameters)`: see
    `loops.build_kernel`.
    Raises `KernelMissing` where it would have to be compiled and Numba cannot, and where the system lets no kernel run.
    """
    require_executable_memory()
    wanted = (kind, dtype, form, parameters)
    if (found := loaded(wanted)) is not None:
        return found
    with native.compiling, setting_up.lock:
        # Another thread may just have compiled it.
        return loaded(wanted) or compiled(wanted)


def require_executable_memory() -> None:
    """Raise `KernelMissing` where the process may not execute what it has written: there LLVM's linker crashes.

    Asked before each kernel (20 us, against 1 ms for loading it), because a process can lock itself down at any time.
    """
    try:
        binding.check_jit_execution()
    except OSError as error:
        raise KernelMissing(
            "the system does not let this process execute code that it has written to memory, which compiled kernels "
            "need (MemoryDenyWriteExecute of systemd, execmem of SELinux, prctl(PR_SET_MDWE))"
        ) from error


@functools.cache
def source_of(kind: str, parameters: int) -> str:
    """What a kernel is made from besides this package: how many parameters, and a sampler, which may lie anywhere."""
    function, *facts = SAMPLERS[kind]
    return f"{parameters} {facts} {hashlib.sha256(arithmetic_text(function).encode()).hexdigest()}"


def on_disk(wanted: Kernel, *before: Folder) -> bytes | None:
    """A kernel's object code, from the folders `before` the usual ones if it is there; None where it is nowhere."""
    kind, dtype, form, parameters = wanted
    return cache.read(kernel_name(kind, dtype, form), source_of(kind, parameters), *before)


def loaded(wanted: Kernel) -> Callable[..., None] | None:
    object_code = on_disk(wanted)
    if object_code is None:
        return None
    function = native.load(object_code, kernel_name(*wanted[:3]))
    origins["loaded"] += 1
    return function


def compiled(wanted: Kernel) -> Callable[..., None]:
    kind, dtype, form, parameters = wanted
    name, (object_code, kept) = kernel_name(kind, dtype, form), compiled_code(wanted)
    if kept:
        cache.write(name, source_of(kind, parameters), object_code)
    function = native.load(object_code, name)
    origins["compiled"] += 1
    return function


def compiled_code(wanted: Kernel) -> tuple[bytes, bool]:
    """A kernel's object code, and whether it is what its name says. Raises `KernelMissing` where Numba cannot."""
    kind, dtype, form, _ = wanted
    name = kernel_name(kind, dtype, form)
    try:
        if name in failures:
            raise KernelMissing(failures[name])
        from . import compile as compiling

        # A file in the working directory can have Numba compile for another CPU than its environment and this CPU say.
        return compiling.compile_kernel(*wanted), compiling.target() == cache.target()
    except Exception as error:  # a broken installation can raise anything
        reason = failures.get(name, f"Numba cannot compile the kernel {name} here: {type(error).__name__}: {error}")
        if not isinstance(error, (MemoryError, OSError)):  # these may pass
            failures[name] = reason
        raise KernelMissing(reason) from error


def keep(folder: Folder, wanted: Kernel) -> None:
    """Have a kernel in `folder`, from another folder or compiled.

    Raises `OSError` where it cannot be written, `KernelMissing` where it cannot be compiled or not be named.
    """
    kind, dtype, form, parameters = wanted
    name, source = kernel_name(kind, dtype, form), source_of(kind, parameters)
    object_code, kept = on_disk(wanted, folder), True
    if object_code is None:
        object_code, kept = compiled_code(wanted)
    if not kept or not cache.write_to(folder, name, source, object_code):
        raise KernelMissing(f"what the kernel {name} was compiled from and for cannot be told here, so it is not kept")


# Measured by `python -m bench.thresholds`.
THREADS_FROM = 2 << 20  # bytes; below, waking a thread takes longer than drawing
# Bytes; from here on, stores are non-temporal. A smaller tensor may be in the cache already, where they take twice as
# long (16 MB that torch has just written; bench.thresholds, which writes nothing in between, would have 8 MB here).
STREAMING_FROM = 32 << 20
HUGE_PAGES_FROM = 16 << 20  # bytes; twice as fast on fresh memory from here on
# Small enough that a thread that is slowed down delays no other, large enough that handing out pieces is cheap.
LEAST_PIECE = 1 << 19  # bytes
PIECES_A_THREAD = 32
STAGING = 1 << 20  # elements whose parameters are laid out anew at a time, where they do not lie in a row


class CpuEngine:
    """Compiled kernels for CPU tensors, shared out over torch's number of threads."""

    name = "cpu"
    compiled = True

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"it writes to memory of the CPU, not of {device.type}"
        return uncovered(dtype)

    def plan(self, dtype: torch.dtype, law: tuple[str, tuple[float, ...]]) -> Plan:
        kind, parameters = law
        write = kernel(kind, dtype, "long", len(parameters))
        return Plan(write, parameters, THREADS_FROM // dtype.itemsize - 1, dtype.itemsize)

    def fill(self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        kind, parameters, seed, stream_id = draw
        dtype, count, address = out.dtype, out.numel(), out.data_ptr()
        size = count * dtype.itemsize
        if steps is None and size < THREADS_FROM and out.is_contiguous():
            # One kernel for all sizes, also where "rows" would do: compiling a second costs half a second.
            write = kernel(kind, dtype, "long", len(parameters))
            write(address, first, count, 0, count, dtype.itemsize, 0, 0, seed, stream_id, 0, parameters)
            return
        runs = runs_of(out.shape, out.stride(), dtype.itemsize, steps)
        share_out(form_of(runs, kind, dtype), out, runs, draw, first)

    def permute(self, out: Tensor, seed: int, stream_id: int) -> bool:
        from . import choices

        return choices.permute(out, seed, stream_id)

    def choose(self, out: Tensor, sums: Tensor, seed: int, stream_id: int) -> bool:
        from . import choices

        return choices.choose(out, sums, seed, stream_id)

    def plan_each(self, kind: str, dtype: torch.dtype, parameters: int) -> tuple[Callable[..., None], int]:
        """The kernel that takes so many float32 parameters a sample, and up to how many bytes one call fills."""
        return kernel(kind, dtype, "each32", parameters), THREADS_FROM - 1

    @torch.no_grad()
    def fill_each(
        self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None, parameters: Sequence[Tensor]
    ) -> None:
        stored = stored_as(draw.kind, out.dtype, parameters)
        kernel(draw.kind, out.dtype, EACH[stored], len(parameters))  # before anything is written
        steps = row_major(out.shape) if steps is None else steps
        in_place = all(is_dense(tensor) and tensor.dtype is stored for tensor in parameters)
        block = block_size(width_of(draw.kind, out.dtype))
        for part, start, given in parts(out, first, steps, out.numel() if in_place else STAGING, parameters):
            rows = [in_memory(tensor, stored, block) for tensor in given]
            places = tuple(number for row, step in rows for number in (row.data_ptr(), step))
            runs = runs_of(part.shape, part.stride(), part.dtype.itemsize, steps)
            share_out(EACH[stored], part, runs, draw._replace(parameters=places), start, rows)


def in_memory(parameter: Tensor, stored: torch.dtype, block: int) -> tuple[Tensor, int]:
    """Elements' parameters as `each.each_kernel` reads them, and the bytes from one to the next.

    One that all share is repeated as often as a block has elements, and 0 bytes lead on.
    """
    if is_shared(parameter):
        return parameter.as_strided((block,), (0,)).to(stored).contiguous(), 0
    return parameter.to(stored).contiguous(), stored.itemsize


def share_out(form: Form, out: Tensor, runs: Runs, draw: Draw, first: int, owned: object = None) -> None:
    """Have a kernel of this form write runs, on several threads where they are large; keeps what is `owned` for it."""
    kind, parameters, seed, stream_id = draw
    dtype, count, address = out.dtype, out.numel(), out.data_ptr()
    length, stride, outer = runs
    write = kernel(kind, dtype, form, len(parameters) // (2 if form in EACH.values() else 1))
    table = torch.tensor(outer, dtype=torch.int64, device="cpu") if outer else None
    place = (stride, len(outer), 0 if table is None else table.data_ptr(), seed, stream_id)
    size = count * dtype.itemsize
    if size < THREADS_FROM:
        write(address, first, length, 0, count, *place, 0, parameters)
        return
    if size >= HUGE_PAGES_FROM:
        advise_huge_pages(address, size)
    threads = torch.get_num_threads()
    # A cut inside a block would draw it twice; runs side by side are not cut at all.
    blocks = BLOCKS_AT_ONCE * block_size(width_of(kind, dtype))
    together = length * (LINE // dtype.itemsize) if form == "turned" else blocks
    piece = piece_length(count, threads, dtype, together)
    lead = 0 if form == "turned" else first % piece
    streaming = int(size >= STREAMING_FROM)

    def fill_piece(number: int, kept: object = (out, table, owned)) -> None:  # until the last thread is done with them
        start, stop = number * piece - lead, (number + 1) * piece - lead
        write(address, first, length, max(start, 0), min(stop, count), *place, streaming, parameters)

    run(fill_piece, -(-(lead + count) // piece), threads)


def piece_length(count: int, threads: int, dtype: torch.dtype, together: int) -> int:
    """How many elements a thread takes at a time: multiples of `together`, a few a thread, none too small to pay."""
    fair = -(-count // (PIECES_A_THREAD * threads))
    return -(-max(LEAST_PIECE // dtype.itemsize, fair) // together) * together
