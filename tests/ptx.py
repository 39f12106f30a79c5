"""A small PTX machine: runs the text that Triton compiles our kernels to, with NumPy, many blocks at a time.

`parse(text)` (in `ptx_text.py`) is strict about what it knows; what instructions compute stands in `ptx_opcodes.py`.
Stores are checked, and threads of a block may not part ways at a branch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ptx_opcodes import DTYPES, OPCODES, Array
from ptx_text import (
    FETCHES,
    LOADS,
    RETURN,
    SPECIALS,
    STORES,
    Constant,
    Instruction,
    Kernel,
    Parameter,
    PtxError,
    Register,
    Source,
    Special,
    parse,
)

__all__ = ["Kernel", "Memory", "PtxError", "parse", "run"]

BATCH = 32  # blocks at a time: a thousand registers of 4096 threads are 30 MB


# --- memory ------------------------------------------------------------------------------------


class Memory:
    """Stretches of bytes at 64-bit addresses, each with a count of the writes to every byte."""

    def __init__(self) -> None:
        self.stretches: list[tuple[int, NDArray[np.uint8], NDArray[np.uint16]]] = []

    def add(self, data: NDArray[np.uint8], address: int | None = None) -> NDArray[np.uint16]:
        """Let kernels write to `data`, at its own address or another; returns the counts."""
        writes = np.zeros(data.shape, np.uint16)
        self.stretches.append((data.ctypes.data if address is None else address, data, writes))
        return writes

    def store(self, addresses: Array, values: Array, text: str) -> None:
        """Write the bytes `values[n]` to `addresses[n]`, all of which are inside and aligned to their number."""
        for data, writes, inside, places in self.found(addresses, values.shape[1], f"store: {text}"):
            data[places] = values[inside]
            np.add.at(writes, places, 1)

    def fetch(self, addresses: Array, size: int, text: str) -> Array:
        """The `size` bytes at each address, under the same rules."""
        values = np.zeros((len(addresses), size), np.uint8)
        for data, _, inside, places in self.found(addresses, size, f"load: {text}"):
            values[inside] = data[places]
        return values

    def found(self, addresses: Array, size: int, text: str) -> list[tuple[Any, Any, Array, Array]]:
        """By stretch: its bytes and counts, which of the addresses lie in it, and the places of their bytes."""
        if (crooked := addresses % np.uint64(size) != 0).any():
            raise PtxError(f"misaligned, at {addresses[crooked][0]:#x}: {text}")
        outside, found = np.ones(len(addresses), bool), []
        for address, data, writes in self.stretches:
            offsets = addresses - np.uint64(address)  # what lies below wraps around to far above
            inside = (offsets < np.uint64(len(data))) & (offsets + np.uint64(size) <= np.uint64(len(data)))
            found.append((data, writes, inside, offsets[inside, None].astype(np.int64) + np.arange(size)))
            outside &= ~inside
        if outside.any():
            raise PtxError(f"out of bounds, at {addresses[outside][0]:#x}: {text}")
        return found


# --- running -----------------------------------------------------------------------------------


class Launch(NamedTuple):
    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: dict[str, bytes]
    memory: Memory
    generator: np.random.Generator


def encoded(parameter: Parameter, value: bytes | float) -> bytes:
    """A parameter as it is handed over, little endian; bytes are taken as they are."""
    if isinstance(value, bytes):
        if len(value) != parameter.size:
            raise PtxError(f"{len(value)} bytes for {parameter}")
        return value
    if parameter.type[0] == "f":
        return struct.pack({"f32": "<f", "f64": "<d"}[parameter.type], value)
    width = 8 * parameter.size
    if not isinstance(value, int) or not -(1 << width - 1) <= value < 1 << width:
        raise PtxError(f"{value} for {parameter}")
    return (value % (1 << width)).to_bytes(parameter.size, "little")


def run(
    kernel: Kernel,
    grid: tuple[int, int, int],
    arguments: Sequence[bytes | float],
    memory: Memory,
    generator: np.random.Generator,
    blocks: Iterable[int] | None = None,
) -> None:
    """Launch a kernel: all blocks of the grid, or those whose numbers (x fastest) are in `blocks`."""
    if len(arguments) != len(kernel.parameters):
        raise PtxError(f"{len(arguments)} arguments for {len(kernel.parameters)} parameters of {kernel.name}")
    if grid[0] >= 1 << 31 or max(grid[1:]) >= 1 << 16:
        raise PtxError(f"no GPU takes a grid of {grid}")
    values = {p.name: encoded(p, value) for p, value in zip(kernel.parameters, arguments, strict=True)}
    launch = Launch(kernel, grid, values, memory, generator)
    numbers = np.array(range(math.prod(grid)) if blocks is None else list(blocks), np.int64)
    with np.errstate(all="ignore"):
        for start in range(0, len(numbers), BATCH):
            waiting = [Blocks(launch, numbers[start : start + BATCH, None], {}, 0)]
            while waiting:
                waiting += waiting.pop().advance()


@dataclass
class Blocks:
    """Blocks that have branched alike so far, run together from instruction `at`.

    Registers broadcast to (blocks, threads), so that what is the same in all threads of a block is computed once.
    """

    launch: Launch
    numbers: Array
    registers: dict[str, Array]
    at: int

    def advance(self) -> list[Blocks]:
        """Run to the end, or to a branch that some blocks take and some do not. Returns whoever is not at the end."""
        kernel = self.launch.kernel
        while True:
            if self.at == len(kernel.instructions):
                raise PtxError(f"{kernel.name} goes on beyond its end")
            step = kernel.instructions[self.at]
            self.at += 1
            if step.label is None:
                getattr(self, step.form)(step)
                continue
            jumping = self.jumping(step)
            if not jumping.any():
                continue
            staying = [] if jumping.all() else [self.some(~jumping, self.at)]
            if step.label == RETURN:
                return staying
            target = kernel.labels[step.label]
            if staying:
                return [self.some(jumping, target), *staying]
            self.at = target

    def some(self, chosen: Array, at: int) -> Blocks:
        registers = {name: v if len(v) == 1 else v[chosen] for name, v in self.registers.items()}
        return Blocks(self.launch, self.numbers[chosen], registers, at)

    def jumping(self, step: Instruction) -> Array:
        mask = self.mask(step)
        if (mask != mask[:, :1]).any():
            raise PtxError(f"threads of a block part ways: {step.text}")
        return np.broadcast_to(mask[:, 0], len(self.numbers))

    def mask(self, step: Instruction) -> Array:
        if step.guard is None:
            return np.ones((1, 1), bool)
        return self.read(step.guard, step) ^ step.negated

    def read(self, source: Source, step: Instruction) -> Array:
        if isinstance(source, Constant):
            return source.value
        if isinstance(source, Special):
            return self.special(source.name)
        if source.name not in self.registers:
            raise PtxError(f"{source.name} has no value yet: {step.text}")
        return self.registers[source.name]

    def special(self, name: str) -> Array:
        which, axis = SPECIALS[name]
        threads, grid = self.launch.kernel.threads, self.launch.grid
        if which in ("ntid", "nctaid"):
            return np.full((1, 1), (threads if which == "ntid" else grid)[axis], np.uint32)
        shape, numbers = (threads, np.arange(math.prod(threads))[None]) if which == "tid" else (grid, self.numbers)
        return (numbers // math.prod(shape[:axis]) % shape[axis]).astype(np.uint32)

    def write(self, register: Register, value: Array, step: Instruction) -> None:
        value = value.view(DTYPES[register.type])
        if step.guard is not None:
            value = np.where(self.mask(step), value, self.read(register, step))
        self.registers[register.name] = value

    def operate(self, step: Instruction) -> None:
        operation = OPCODES[step.opcode]
        typed = zip(step.sources, operation.sources, strict=True)
        values = [self.read(source, step).view(DTYPES[kind]) for source, kind in typed]
        if operation.approximate:
            values = [self.launch.generator, *values]
        self.write(step.results[0], operation.compute(*values), step)

    def join(self, step: Instruction) -> None:
        whole = step.results[0]
        width = int(whole.type[1:]) // len(step.sources)
        parts = [self.part(source, width, step).astype(DTYPES[whole.type]) for source in step.sources]
        shifted = [part << DTYPES[whole.type](place * width) for place, part in enumerate(parts)]
        self.write(whole, np.bitwise_or.reduce(np.broadcast_arrays(*shifted)), step)

    def part(self, source: Source, width: int, step: Instruction) -> Array:
        """A part of a register. LLVM names one without a value where it needs the others alone: it may be anything."""
        if not isinstance(source, Register) or source.name in self.registers:
            return self.read(source, step)
        shape = (len(self.numbers), math.prod(self.launch.kernel.threads))
        return self.launch.generator.integers(0, 1 << width, shape, DTYPES[f"u{width}"])

    def split(self, step: Instruction) -> None:
        whole = self.read(step.sources[0], step)
        width = 8 * whole.dtype.itemsize // len(step.results)
        for place, register in enumerate(step.results):
            if register is not None:
                part = (whole >> whole.dtype.type(place * width)).astype(DTYPES[register.type])
                self.write(register, part, step)

    def load(self, step: Instruction) -> None:
        register, place = step.results[0], step.place
        dtype = np.dtype(DTYPES[LOADS[step.opcode]])
        data = self.launch.arguments[place.base][place.offset : place.offset + dtype.itemsize]
        if len(data) != dtype.itemsize:
            raise PtxError(f"beyond the parameter's end: {step.text}")
        value = np.frombuffer(data, dtype)[None]
        wider = np.dtype(DTYPES[register.type]).itemsize > dtype.itemsize
        self.write(register, value.astype(DTYPES[register.type]) if wider else value, step)

    def fetch(self, step: Instruction) -> None:
        shape = (len(self.numbers), math.prod(self.launch.kernel.threads))
        dtype = np.dtype(DTYPES[FETCHES[step.opcode]])
        mask = np.broadcast_to(self.mask(step), shape)
        addresses = np.broadcast_to(self.read(step.place.base, step) + np.uint64(step.place.offset), shape)[mask]
        value = np.zeros(shape, dtype)
        value[mask] = self.launch.memory.fetch(addresses, dtype.itemsize, step.text).view(dtype)[:, 0]
        self.write(step.results[0], value, step)

    def store(self, step: Instruction) -> None:
        shape = (len(self.numbers), math.prod(self.launch.kernel.threads))
        dtype = np.dtype(DTYPES[STORES[step.opcode][1]])
        mask = np.broadcast_to(self.mask(step), shape)
        addresses = np.broadcast_to(self.read(step.place.base, step) + np.uint64(step.place.offset), shape)[mask]
        parts = [self.read(source, step).astype(dtype) for source in step.sources]
        values = np.stack([np.broadcast_to(part, shape)[mask] for part in parts], axis=-1)
        size = len(parts) * dtype.itemsize
        self.launch.memory.store(addresses, values.view(np.uint8).reshape(len(addresses), size), step.text)
