"""A GPU made of the PTX machine of `ptx.py`: what the engine launches is compiled by Triton and emulated.

The engine's own code launches, so arguments, grids, masks and tails are those of a real launch. All is judged by the
reference engine's bits, by how often each byte was written, and by the poison around.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import ptx
import pytest
import torch
from common import same_bits
from rehearsal import SCRATCH
from triton.backends.compiler import GPUTarget

from fastinit.kernels.contract import Draw, block_size, width_of
from fastinit.kernels.gpu import engine as gpu
from fastinit.kernels.plain.reference import ReferenceEngine
from fastinit.kernels.runs import row_major
from fastinit.laws import Law

POISON = 0xA5
FAR = 2**40 + 1
Edit = Callable[[str], str]
Shape = tuple[int, ...]


# --- a GPU made of the PTX machine -------------------------------------------------------------


@functools.cache
def compiled(variant: gpu.Variant, arch: int, edit: Edit | None) -> ptx.Kernel:
    text = gpu.compile_for(variant, GPUTarget("cuda", arch, 32)).asm["ptx"]
    return ptx.parse(edit(text) if edit else text)


def flat(argument: Any) -> list[Any]:
    return [one for part in argument for one in flat(part)] if isinstance(argument, tuple) else [argument]


class Gpu:
    """A device as the engine sees it, with the memory that kernels may write to.

    Its kernels are edited by `edit`, approximate with random errors from the seed `errors`, and run the blocks
    `programs` alone if there are any.
    """

    def __init__(self) -> None:
        self.memory = ptx.Memory()
        self.arch, self.multiprocessors, self.errors = 90, 1, 0
        self.edit: Edit | None = None
        self.programs: list[int] | None = None
        self.launches: list[tuple[str, int]] = []

    def described(self) -> gpu.Device:
        return gpu.Device("cuda", 0, GPUTarget("cuda", self.arch, 32), self.multiprocessors)

    def loaded(self, variant: gpu.Variant, device: gpu.Device) -> tuple[Launcher, tuple[()]]:
        """In place of `gpu.loaded`: a kernel of ours, and no constants for it."""
        return Launcher(self, compiled(variant, self.arch, self.edit)), ()

    def launch(self, kernel: ptx.Kernel, grid: tuple[int, int, int], *arguments: Any) -> None:
        self.launches.append((kernel.name, grid[0]))
        generator = np.random.default_rng(self.errors)
        ptx.run(kernel, grid, [*flat(arguments), *[0] * SCRATCH], self.memory, generator, self.programs)


class Launcher(NamedTuple):
    """In place of Triton's compiled kernel."""

    device: Gpu
    kernel: ptx.Kernel

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return functools.partial(self.device.launch, self.kernel, grid)


@pytest.fixture
def device(monkeypatch) -> Gpu:
    """One that is so small that a few tiles are several programs, of several steps."""
    made, launch_of = Gpu(), gpu.launch_of
    monkeypatch.setattr(gpu, "launch_of", lambda target: launch_of(target)._replace(programs=2))
    monkeypatch.setattr(gpu, "TILES_FROM", 0)
    monkeypatch.setattr(gpu, "loaded", made.loaded)
    monkeypatch.setattr(gpu, "made_current", lambda device: contextlib.nullcontext(made.described()))
    return made


# --- filling, and judging ----------------------------------------------------------------------


class Field:
    """A tensor of any strides amid poisoned bytes. Its element number `aligned` lies at a multiple of 16 bytes."""

    def __init__(self, device: Gpu, dtype: torch.dtype, shape: Shape, strides: Shape | None, aligned: int) -> None:
        self.dtype, self.shape, self.strides = dtype, shape, strides or row_major(shape)
        span = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        self.bytes = np.full((span + 2) * dtype.itemsize + 64, POISON, np.uint8)
        self.start = 32 + -(self.bytes.ctypes.data + 32 + aligned * dtype.itemsize) % 16
        self.writes = device.memory.add(self.bytes)
        self.out = self.tensor(self.bytes)

    def tensor(self, data: np.ndarray) -> torch.Tensor:
        size = self.dtype.itemsize
        whole = (len(data) - self.start) // size * size
        values = torch.from_numpy(data[self.start : self.start + whole]).view(self.dtype)
        return values.as_strided(self.shape, self.strides)

    def check(self, expected: torch.Tensor) -> None:
        mine = np.zeros_like(self.bytes)
        ones = torch.full((*self.shape, self.dtype.itemsize), 1, dtype=torch.uint8).view(self.dtype)
        self.tensor(mine).copy_(ones[..., 0])
        assert np.array_equal(self.writes, mine)
        assert (self.bytes[mine == 0] == POISON).all()
        assert same_bits(self.out, expected)


def draw_of(law: Law, dtype: torch.dtype) -> Draw:
    return Draw(*law.parameters(dtype), seed=2**64 - 59, stream_id=2**63 + 11)


def reference(law: Law, dtype: torch.dtype, shape: Shape, first: int, steps: Shape | None = None) -> torch.Tensor:
    out = torch.empty(shape, dtype=dtype)
    ReferenceEngine().fill(out, draw_of(law, dtype), first, steps)
    return out


def check(
    device: Gpu, law: Law, dtype: torch.dtype, shape: Shape, first: int,
    strides: Shape | None = None, steps: Shape | None = None, aligned: int = 0,
) -> None:  # fmt: skip
    field = Field(device, dtype, shape, strides, aligned)
    gpu.GpuEngine().fill(field.out, draw_of(law, dtype), first, steps)
    field.check(reference(law, dtype, shape, first, steps))


def check_each(
    device: Gpu, law: Law, dtype: torch.dtype, shape: Shape, first: int, strides: Shape | None = None,
    wide: bool = False,
) -> None:  # fmt: skip
    """The same where each element has parameters of its own, the last of which all share; nobody writes to them.

    Where `wide`, in float64, if the law computes in it.
    """
    kind, numbers = law.parameters(dtype)
    stored = torch.float64 if wide and width_of(kind, dtype) == 64 else torch.float32
    draw, field = draw_of(law, dtype)._replace(parameters=()), Field(device, dtype, shape, strides, 0)
    scale = 0.5 + torch.arange(field.out.numel(), dtype=torch.float64) / field.out.numel()
    bases = [(number * (scale if k == 0 else scale[:1])).to(stored) for k, number in enumerate(numbers)]
    writes = [device.memory.add(base.numpy().view(np.uint8)) for base in bases]
    given = [base.view(shape if base.numel() > 1 else [1] * len(shape)).expand(shape) for base in bases]
    gpu.GpuEngine().fill_each(field.out, draw, first, None, given)
    expected = torch.empty(shape, dtype=dtype)
    ReferenceEngine().fill_each(expected, draw, first, None, given)
    field.check(expected)
    assert not any(write.any() for write in writes)


def filling(device: Gpu, law: Law, dtype: torch.dtype) -> gpu.Filling:
    return gpu.Filling(device.described(), dtype, draw_of(law, dtype))


def tile_of(device: Gpu, law: Law, dtype: torch.dtype) -> int:
    """How many elements a whole tile has."""
    variant = filling(device, law, dtype).variant(None)
    return gpu.tile_rows(variant, device.described().target) * block_size(width_of(variant.kind, dtype))


def names(device: Gpu) -> list[str]:
    return [name for name, _ in device.launches]


def check_tiles_and_ends(device: Gpu, law: Law, dtype: torch.dtype) -> None:
    tile = tile_of(device, law, dtype)
    check(device, law, dtype, (tile - 1 + 5 * tile + 77,), FAR, aligned=tile - 1)
