"""A launch rehearsed: the GPU engine, Triton's launcher and Triton's CUDA driver, all of them real, over a stub.

`stub_cuda.c` stands in for libcuda. It is for a process of its own, which `stage` opens: there torch is told that it
has devices, and `rehearse` fills memory that need not exist and returns what reached the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import re
import struct
import subprocess
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import ptx
import torch
import triton
from triton.backends.nvidia.driver import include_dirs
from triton.compiler import CompiledKernel

from fastinit.kernels.contract import Draw
from fastinit.kernels.gpu import engine as gpu

STREAM = 0xABC0  # the current stream of device 0; each device has its own
FAILED = 999  # CUDA_ERROR_UNKNOWN
# How many pointers Triton adds to the parameters of every kernel.
SCRATCH = 1 if triton.__version__.startswith("3.4.") else 2
# The first arguments of each kernel. The draw's come last, behind the tuples of fill_runs.
PLACES = {
    "fill_tiles": ("address", "tile", "tiles", "programs"),
    "fill_runs": ("address", "first", "length", "stride", "rows", "rows_a_run"),
}


class Memory(NamedTuple):
    """As much of a CUDA tensor as an engine looks at. Strides count elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    address: int
    index: int = 0

    @classmethod
    def of(cls, view: torch.Tensor, address: int, index: int = 0) -> Memory:
        """The memory of a view whose storage would begin at `address`; a meta tensor's will do."""
        start = address + view.storage_offset() * view.element_size()
        return cls(view.dtype, tuple(view.shape), view.stride(), start, index)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index)

    def data_ptr(self) -> int:
        return self.address

    def element_size(self) -> int:
        return self.dtype.itemsize

    def stride(self) -> tuple[int, ...]:
        return self.strides


class Fill(NamedTuple):
    """The arguments of an engine's `fill`."""

    out: Memory
    draw: Draw
    first: int = 0
    steps: tuple[int, ...] | None = None


class Launched(NamedTuple):
    """What reached the driver: a kernel's parameters in raw bytes, and with what types its PTX declares them."""

    kernel: str
    types: tuple[str, ...]
    values: tuple[bytes, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    attributes: int
    stream: int
    device: int

    @property
    def place(self) -> dict[str, Any]:
        """Where it writes, by the names of the kernel's arguments; sizes, index_steps and strides are tuples."""
        forms = {"u64": "<q", "u32": "<i", "f32": "<f", "f64": "<d"}
        typed = zip(self.types, self.values, strict=True)
        numbers = [struct.unpack(forms[kind], value)[0] for kind, value in typed]
        names = PLACES[self.kernel]
        place = dict(zip(names, numbers, strict=False))
        if self.kernel == "fill_runs":
            start = len(names)
            count = self.types[start:].index("u64")  # sizes are the last that have 32 bits
            for name in ("sizes", "index_steps", "strides"):
                place[name] = tuple(numbers[start : start + count])
                start += count
        return place


class Rehearsal(NamedTuple):
    """What was called in its order (the driver's functions, compilations, torch's change of device); the launches."""

    calls: list[str]
    launches: list[Launched]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


Witness = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(LaunchConfig), ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
)


class Stub:
    """The stub driver as this process sees it, and the part of torch that a build without CUDA lacks."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.context = ctypes.c_void_p.in_dll(self.library, "stub_current")
        self.kernels: dict[int, tuple[str, str]] = {}
        self.heard = Rehearsal([], [])
        self.memory: ptx.Memory | None = None  # to run the kernels on, if they are to run
        self.witness = Witness(self.call)  # kept: the library has but its address
        self.library.stub_set_witness(self.witness)
        triton.knobs.compilation.listener = lambda **_: self.heard.calls.append("triton.compile")
        load = CompiledKernel._init_handles  # Triton 3.4 has no hook for it
        CompiledKernel._init_handles = lambda kernel: self.loaded(kernel, load(kernel))

    @property
    def device(self) -> int:
        return (self.context.value or 1) - 1

    def exchange(self, index: int) -> int:
        """torch.cuda.device on its way in and out."""
        before = self.device
        self.heard.calls.append(f"device {index}")
        self.context.value = index + 1
        return before

    def loaded(self, kernel: CompiledKernel, _: None) -> None:
        self.kernels[kernel.function] = kernel.name, kernel.asm["ptx"]

    def call(self, name: bytes, config: Any, function: int, parameters: Any) -> int:
        self.heard.calls.append(name.decode())
        if config:
            try:
                launch = self.launched(config.contents, function, parameters)
                self.heard.launches.append(launch)
                if self.memory is not None:
                    kernel = ptx.parse(self.kernels[function][1])
                    ptx.run(kernel, launch.grid, launch.values, self.memory, np.random.default_rng(0))
            except Exception:  # which would be lost in C
                traceback.print_exc()
                return FAILED
        return 0

    def launched(self, config: LaunchConfig, function: int, parameters: Any) -> Launched:
        name, text = self.kernels[function]
        types = tuple(re.findall(rf"\.param \.(\w+)[^,\n]* {name}_param_\d+", text))
        values = tuple(ctypes.string_at(parameters[k], int(kind[1:]) // 8) for k, kind in enumerate(types))
        return Launched(
            name, types, values, tuple(config.grid), tuple(config.block), config.shared,
            config.attribute_count, config.stream or 0, self.device,
        )  # fmt: skip


@functools.cache
def stub() -> Stub:
    return Stub()


def prepare() -> None:
    """Put the stub's devices where torch and Triton look for them, for as long as the process lives."""
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: stub().device
    torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = stub().exchange
    torch._C._cuda_getCurrentRawStream = lambda index: STREAM + index
    torch.cuda.get_device_capability = lambda index: (9, 0)  # as stub_cuda.c says, which older Tritons do not ask
    torch.cuda.get_device_properties = lambda index: SimpleNamespace(
        multi_processor_count=triton.runtime.driver.active.utils.get_device_properties(index)["multiprocessor_count"]
    )


def rehearse(fills: Sequence[Fill], types: dict[str, str] | None = None) -> Rehearsal:
    """Fill one after the other, with no kernel loaded before; `types` replace some of those in gpu.signature."""
    gpu.device_of.cache_clear()
    gpu.loaded.cache_clear()
    heard = stub().heard = Rehearsal([], [])
    signature = gpu.signature
    with mock.patch.object(gpu, "signature", lambda variant: signature(variant) | (types or {})):
        for fill in fills:
            gpu.GpuEngine().fill(fill.out, fill.draw, fill.first, fill.steps)
    return heard


class Performance(NamedTuple):
    """What became of memory: its bytes, how often each was written (16 bits each), and what reached the driver."""

    storage: bytes
    writes: bytes
    heard: Rehearsal


def perform(fill: Fill, storage: bytes, address: int) -> Performance:
    """A fill whose kernels run, in the PTX machine, on `storage`, which stands at `address`."""
    data = np.frombuffer(storage, np.uint8).copy()
    stub().memory = ptx.Memory()
    try:
        writes = stub().memory.add(data, address)
        heard = rehearse([fill])
    finally:
        stub().memory = None
    return Performance(data.tobytes(), writes.tobytes(), heard)


@contextlib.contextmanager
def stage(compiler: str, directory: Path) -> Iterator[Executor]:
    """A process with the stub for its libcuda, to which `rehearse` can be submitted."""
    source = Path(__file__).with_name("stub_cuda.c")
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", *(f"-I{path}" for path in include_dirs)]
    subprocess.run([*command, str(source), "-o", str(directory / "libcuda.so.1")], check=True)
    (directory / "libcuda.so").symlink_to("libcuda.so.1")  # the name that the linker looks for, for Triton 3.4
    paths = [str(directory), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    variables = {
        "LD_LIBRARY_PATH": os.pathsep.join(paths),  # where the process looks
        "TRITON_LIBCUDA_PATH": str(directory),  # where Triton's linker looks
        "TRITON_CACHE_DIR": str(directory / "cache"),
        "TRITON_INTERPRET": "0",
    }
    # Spawned, because the dynamic linker reads its variables when a process begins.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare) as process:
        with mock.patch.dict(os.environ, variables):
            process.submit(os.getpid).result()
        yield process
