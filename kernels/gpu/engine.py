"""The GPU engine: which Triton kernel writes what, how it is compiled, and its launch."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ..arithmetic.philox import philox
from ..contract import COLUMNS, GPUS, SAMPLERS, Draw, block_size, stored_as, width_of
from ..dtypes import FORMATS, uncovered
from ..runs import are_neighbours, in_a_row, is_dense, is_shared, parts, row_major, runs_of
from . import tiles
from .primitives import INTERPRETED, arithmetic

STORE = 16  # bytes that a thread writes at once: the widest store there is
OUTER = 3  # dimensions around a run that a kernel takes; more are a launch for each index of the shortest ones
MOST_ROWS = 2**31 - 1 - 2**20  # so that the numbers of a last program's rows are still 32 bits
STAGING = 1 << 22  # elements whose parameters are laid out anew at a time, where they do not lie in a row
NOTHING = contextlib.nullcontext()
TILES_FROM = 1 << 16  # elements; below, one launch of the kernel that can do everything is quicker than two or three
# Fills contiguous memory with the first elements of a stream: address, elements, seed and id of the stream.
Plan = Callable[[int, int, int, int], None]
ELEMENTS = {
    torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
    torch.uint8: tl.uint8, torch.int16: tl.int16, torch.int32: tl.int32, torch.int64: tl.int64,
}  # fmt: skip


class Launch(NamedTuple):
    """How a kernel is cut up. Instructions are counted for sm_90 by `python -m bench.gpu_model`, the rest was measured
    on an H200 with Triton 3.6.

    warps: of a block. Nothing is shared between threads, so more than 4 (128 threads) would only make the tiles, and
        so the ragged ends, larger.
    counters: what a thread draws at a time (twice as many for short laws). 4 for uniform leave so much loop around
        the arithmetic that an element takes 15.1 instructions, 8 take 14.6; 8 for truncated normal take 50.1 instead
        of 47.5, as values wait longer for their turn.
    programs: blocks a multiprocessor before one is given a second tile. They take turns, so that neighbouring tiles are
        written at the same time, which the memory likes: with 512, at 2^30 elements, uniform in float32 takes 1.04 ps
        an element (`fill_` 0.86), normal 1.37, truncated normal 2.04, normal in bfloat16 1.39. With 64 they take 1.21,
        1.36, 1.97 and 1.38; with a stretch of tiles for each of 64: 1.24, 1.40, 2.05 and 1.42.
    registers: that a thread of a long law may use (ptxas). Left alone it aims at 80 for some and spills; 128 spill
        nothing but sm_100's wide truncated normal in half precision, 160 not even that.
    """

    warps: int
    counters: int
    programs: int
    registers: int


# By backend and architecture: the newest entry that is not newer than the device.
LAUNCHES = {
    ("cuda", 0): Launch(4, 4, 512, 128),
    ("cuda", 100): Launch(4, 4, 512, 160),
    ("hip", 0): Launch(4, 4, 32, 0),  # wavefronts of 64: 4 of them are 256 threads, so half as many blocks
    ("xpu", 0): Launch(4, 4, 64, 0),
}


@functools.cache
def launch_of(target: GPUTarget) -> Launch:
    """The table's entry for a device; an architecture that is no number (gfx942) has its backend's first."""
    arch = target.arch if isinstance(target.arch, int) else 0
    known = [number for backend, number in LAUNCHES if backend == target.backend and number <= arch]
    return LAUNCHES[(target.backend, max(known))] if known else LAUNCHES[("cuda", 0)]


class Variant(NamedTuple):
    """One kernel to compile: a law, an output dtype, and the shape of memory that it can write.

    `outer` is None for whole tiles of contiguous memory, else the number of dimensions around a run. `stored` is the
    dtype of elements' own parameters, where they have some; then `outer` is 0.
    """

    kind: str
    dtype: torch.dtype
    parameters: int
    outer: int | None
    stored: torch.dtype | None = None


def columns_a_thread(dtype: torch.dtype) -> int:
    """How many neighbouring columns one thread draws: as many as it can store at once, 16 bytes.

    Not so for eight bits: the 64 samples of 16 columns do not fit into the registers, and 8 bytes at a time will do.
    """
    return min(STORE // dtype.itemsize, 8)


@functools.cache
def tile_rows(variant: Variant, target: GPUTarget) -> int:
    """How many blocks of the stream a program draws at a time; a power of two."""
    launch = launch_of(target)
    threads: int = launch.warps * target.warp_size
    if variant.outer is not None:
        return threads // COLUMNS
    wanted = launch.counters * (2 if SAMPLERS[variant.kind].short else 1) * 32 // width_of(variant.kind, variant.dtype)
    columns = columns_a_thread(variant.dtype)
    return threads * max(columns, wanted) // COLUMNS


def constants(variant: Variant, target: GPUTarget) -> dict[str, Any]:
    """What the kernel's source leaves open, by the names of its constexpr arguments."""
    cuda, dtype = target.backend == "cuda" and not INTERPRETED, variant.dtype
    width, sampler = width_of(variant.kind, dtype), SAMPLERS[variant.kind]
    element, finish = ELEMENTS.get(dtype), tiles.as_it_is
    rounding = FORMATS[dtype].rounding if dtype in FORMATS else None
    # CUDA has an instruction for half formats (from sm_80 on); elsewhere, and to eight bits, integers round.
    if rounding is not None and not (cuda and target.arch >= 80 and element is not None):
        element, finish = {1: tl.uint8, 2: tl.uint16}[dtype.itemsize], arithmetic(32, cuda)(rounding)
    chosen = {
        "PHILOX": arithmetic(32, cuda)(philox),
        "LAW": arithmetic(width, cuda)(sampler.function),
        "HEAD": variant.parameters if sampler.series_after is None else sampler.series_after,
        "WHOLE": sampler.whole,
        "REAL": tl.float64 if width == 64 else tl.float32,
        "WIDTH": width,
        # What samples come to before they are rounded: the dtype's working precision, or whole numbers of 64 bits.
        "EXACT": tl.int64 if dtype not in FORMATS else tl.float64 if FORMATS[dtype].width == 64 else tl.float32,
        "PAIRS": sampler.pairs,
        "FINISH": finish,
        "ELEMENT": element,
        "ROWS": tile_rows(variant, target),
        "SIDE": columns_a_thread(dtype),
        "STORED": None if variant.stored is None else ELEMENTS[variant.stored],
    }
    return {name: value for name, value in chosen.items() if name in kernel_of(variant).arg_names}


def signature(variant: Variant) -> dict[str, Any]:
    """The types of all arguments that are no constants. They are fixed here, so that no value can change them."""
    real = "fp64" if width_of(variant.kind, variant.dtype) == 64 else "fp32"
    numbers = ["u32" if k < SAMPLERS[variant.kind].whole else real for k in range(variant.parameters)]
    stream = {"seed": "i64", "stream_id": "i64", "parameters": tuple(numbers)}
    if variant.outer is None:
        return {"address": "i64", "tile": "i64", "tiles": "i64", "programs": "i64"} | stream
    place = {"address": "i64", "first": "i64", "length": "i64", "stride": "i64"}
    if variant.stored is not None:
        given = ("i64",) * variant.parameters
        return place | {"given": given, "given_steps": given, "seed": "i64", "stream_id": "i64"}
    place |= {"rows": "i32", "rows_a_run": "i32"}
    sizes, jumps = ("i32",) * variant.outer, ("i64",) * variant.outer
    return place | {"sizes": sizes, "index_steps": jumps, "strides": jumps} | stream


def kernel_of(variant: Variant) -> Any:
    if variant.stored is not None:
        return tiles.fill_each
    return tiles.fill_tiles if variant.outer is None else tiles.fill_runs


def compile_for(variant: Variant, target: GPUTarget) -> CompiledKernel:
    """The machine code, from Triton's cache on disk where it can be; needs no device."""
    chosen = constants(variant, target)
    types = signature(variant) | dict.fromkeys(chosen, "constexpr")
    alignment = {(0,): [["tt.divisibility", STORE]]} if variant.outer is None else {}
    source = ASTSource(kernel_of(variant), types, chosen, alignment)
    options = {"num_warps": launch_of(target).warps, "enable_fp_fusion": False}
    if target.backend == "cuda" and (not SAMPLERS[variant.kind].short or width_of(variant.kind, variant.dtype) == 64):
        options["maxnreg"] = launch_of(target).registers
    return triton.compile(source, target=target, options=options)


class Device(NamedTuple):
    """A GPU as the launches need it; `type` is torch's name for its kind, cuda or xpu."""

    type: str
    number: int
    target: GPUTarget
    multiprocessors: int


@functools.cache
def device_of(device_type: str, index: int) -> Device:
    """Asks the driver; to be called with the device made current."""
    if INTERPRETED:
        return Device(device_type, index, GPUTarget("cuda", 90, 32), 1)
    properties = getattr(torch, device_type).get_device_properties(index)
    # XPU has another word for them; without either, as many as a middling GPU has.
    count = getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 64)
    return Device(device_type, index, triton.runtime.driver.active.get_current_target(), int(count))


@functools.cache
def loaded(variant: Variant, device: Device) -> tuple[Any, tuple[Any, ...]]:
    """A kernel for one device, and its last arguments."""
    kernel, chosen = kernel_of(variant), constants(variant, device.target)
    last = tuple(chosen[name] for name in kernel.arg_names if name in chosen)
    return (kernel if INTERPRETED else compile_for(variant, device.target)), last


class Filling(NamedTuple):
    """A draw on its way into memory of one device, which has been made current. Addresses and strides in bytes."""

    device: Device
    dtype: torch.dtype
    draw: Draw

    def variant(self, outer: int | None) -> Variant:
        return Variant(self.draw.kind, self.dtype, len(self.draw.parameters), outer)

    def launch(self, outer: int | None, programs: int, *place: Any) -> None:
        kernel, chosen = loaded(self.variant(outer), self.device)
        kernel[(programs, 1, 1)](*place, *self.stream, self.draw.parameters, *chosen)

    @property
    def stream(self) -> tuple[int, int]:
        """The draw's, as launches take it."""
        return as_signed(self.draw.seed), as_signed(self.draw.stream_id)

    @property
    def tile(self) -> int:
        """How many elements a program writes at a time."""
        return tile_rows(self.variant(None), self.device.target) * block_size(width_of(self.draw.kind, self.dtype))

    def neighbours(self, address: int, first: int, count: int, tiles_from: int) -> None:
        """Fill contiguous memory: whole tiles by the kernel made for them, what is left by the other one."""
        size, tile = self.dtype.itemsize, self.tile
        head = -first % tile
        whole = (count - head) // tile
        if count < tiles_from or whole < 1 or (address + head * size) % STORE:
            self.runs(address, first, count, size, [])
            return
        self.tiles(address + head * size, (first + head) // tile, whole)
        body = head + whole * tile
        if head:
            self.runs(address, first, head, size, [])
        if count > body:
            self.runs(address + body * size, first + body, count - body, size, [])

    def tiles(self, address: int, tile: int, count: int) -> None:
        programs = min(count, self.device.multiprocessors * launch_of(self.device.target).programs)
        self.launch(None, programs, address, tile, count, programs)

    def runs(self, address: int, first: int, length: int, stride: int, outer: list[tuple[int, int, int]]) -> None:
        """Fill runs of neighbours that lie `stride` apart; for `outer` see `runs.Runs`."""
        outer = [around for around in outer if around[0] > 1]  # a half may be down to one
        if len(outer) > OUTER:
            shortest = min(outer)
            others = [around for around in outer if around is not shortest]
            count, step, jump = shortest
            for k in range(count):
                self.runs(address + k * jump, first + k * step, length, stride, others)
            return
        block, size = block_size(width_of(self.draw.kind, self.dtype)), self.dtype.itemsize
        # A run among several may begin anywhere in a block, and touches one more than its length tells.
        rows_a_run = (length + block - 2) // block + 1 if outer else (first % block + length - 1) // block + 1
        around = [(1, 0, 0)] * (OUTER - len(outer) if outer else 0) + outer
        sizes, index_steps, jumps = zip(*around, strict=True) if around else ((), (), ())
        rows = math.prod(sizes) * rows_a_run
        if rows > MOST_ROWS:
            self.halves(address, first, length, stride, outer)
            return
        programs = -(-rows // tile_rows(self.variant(len(around)), self.device.target))
        strides = tuple(jump // size for jump in jumps)
        place = (address, first, length, stride // size, rows, rows_a_run, sizes, index_steps, strides)
        self.launch(len(around), programs, *place)

    def each(self, out: Tensor, first: int, steps: Sequence[int], parameters: Sequence[Tensor]) -> None:
        """Fill a tensor whose elements have parameters of their own, by a launch for each run of neighbours."""
        if out.dim() > 1 or steps[0] != 1:
            for k in range(len(out)):
                part, *given = (tensor[k] if out.dim() > 1 else tensor[k : k + 1] for tensor in (out, *parameters))
                self.each(part, first + k * steps[0], steps[1:] or (1,), given)
            return
        variant = Variant(self.draw.kind, self.dtype, len(parameters), 0, parameters[0].dtype)
        block = block_size(width_of(self.draw.kind, self.dtype))
        rows = (first % block + len(out) - 1) // block + 1
        kernel, chosen = loaded(variant, self.device)
        addresses, jumps = zip(*((tensor.data_ptr(), tensor.stride(0)) for tensor in parameters), strict=True)
        place = (out.data_ptr(), first, len(out), out.stride(0), addresses, jumps, *self.stream)
        kernel[(-(-rows // tile_rows(variant, self.device.target)), 1, 1)](*place, *chosen)

    def halves(self, address: int, first: int, length: int, stride: int, outer: list[tuple[int, int, int]]) -> None:
        """The same in two launches, where one would have too many rows to count."""
        if outer:
            (count, step, jump), *inner = outer
            half = count // 2
            self.runs(address, first, length, stride, [(half, step, jump), *inner])
            self.runs(address + half * jump, first + half * step, length, stride, [(count - half, step, jump), *inner])
        else:
            half = length // 2
            self.runs(address, first, half, stride, [])
            self.runs(address + half * stride, first + half, length - half, stride, [])


@contextlib.contextmanager
def made_current(device: torch.device) -> Iterator[Device]:
    """The device as the current one, as Triton's launches want it."""
    index = device.index or 0
    with contextlib.nullcontext() if INTERPRETED else getattr(torch, device.type).device(index):
        yield device_of(device.type, index)


def as_signed(word: int) -> int:
    """The signed 64-bit number with the same bits, which is what Triton's i64 takes."""
    return word - (1 << 64) if word >> 63 else word


class GpuEngine:
    """Triton kernels for CUDA, ROCm and XPU tensors, on the current stream, without waiting for anything."""

    name = "gpu"
    compiled = True

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type not in (("cpu",) if INTERPRETED else GPUS):
            where = "the CPU (TRITON_INTERPRET=1)" if INTERPRETED else "a GPU"
            return f"it writes to memory of {where}, not of {device.type}"
        return uncovered(dtype)

    def fill(self, out: torch.Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        with made_current(out.device) as device:
            filling = Filling(device, out.dtype, draw)
            length, stride, outer = runs_of(out.shape, out.stride(), out.element_size(), steps)
            if not outer and stride == out.element_size():
                filling.neighbours(out.data_ptr(), first, length, TILES_FROM)
            else:
                filling.runs(out.data_ptr(), first, length, stride, outer)

    def fill_each(
        self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None, parameters: Sequence[Tensor]
    ) -> None:
        stored = stored_as(draw.kind, out.dtype, parameters)
        steps = row_major(out.shape) if steps is None else steps
        in_place = all(is_dense(tensor) and tensor.dtype is stored for tensor in parameters)
        with made_current(out.device) as device:
            filling = Filling(device, out.dtype, draw)
            for part, start, given in parts(out, first, steps, out.numel() if in_place else STAGING, parameters):
                rows = [tensor.to(stored) if is_shared(tensor) else tensor.to(stored).contiguous() for tensor in given]
                if part.is_contiguous() and are_neighbours(part.shape, steps):
                    whole, *rows = map(in_a_row, (part, *rows))
                    filling.each(whole, start, (1,), rows)
                else:
                    filling.each(part, start, steps, rows)

    def plan(self, device: torch.device, dtype: torch.dtype, law: tuple[str, tuple[float, ...]]) -> Plan:
        """What fills contiguous memory of this device with a law, and need not find out how each time."""
        kind, parameters = law
        with made_current(device) as described:
            is_current = getattr(torch, device.type).current_device

        def write(address: int, count: int, seed: int, stream_id: int) -> None:
            filling = Filling(described, dtype, Draw(kind, parameters, seed, stream_id))
            with NOTHING if is_current() == described.number else made_current(device):
                filling.neighbours(address, 0, count, TILES_FROM)

        return write

    def sample(
        self, device: torch.device, dtype: torch.dtype, draw: Draw, by_element: bool = False
    ) -> tuple[torch.Tensor, int]:
        """A few thousand neighbours drawn by each of the kernels in turn, and the first one's number.

        Where `by_element`, by the kernel whose elements have parameters of their own.
        """
        with made_current(device) as current:
            filling = Filling(current, dtype, draw)
            ragged = 48  # elements, a multiple of 16 bytes, before the first tile and after the last
            first = 3 * filling.tile - ragged
            out = torch.empty(2 * filling.tile + 3 * ragged, dtype=dtype, device=device)
            if by_element:
                # Half of them from parameters in each precision: the draw's own must fit into both.
                half = out.numel() // 2
                for start, stored in ((0, torch.float32), (half, torch.float64)):
                    part = out[start:][:half]
                    given = [torch.full_like(part, value, dtype=stored) for value in draw.parameters]
                    self.fill_each(part, draw._replace(parameters=()), first + start, None, given)
                return out[: 2 * half], first
            boxed = out.numel() - ragged  # the last ones as a box of 4 rows, which another kernel fills
            filling.neighbours(out.data_ptr(), first, boxed, 0)
            size, row = out.element_size(), ragged // 4
            filling.runs(out.data_ptr() + boxed * size, first + boxed, row, size, [(4, row, row * size)])
        return out, first
