"""NVIDIA machine code, read back: a cubin disassembled, cut into instructions, its loop and its resources found."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# What both disassemblers print: `/*0110*/  @!P0 IMAD.WIDE.U32 R2, R3, c[0x0][0x28], RZ ;`. The encoding that follows
# has a space after its `/*`.
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*?)\s*;")
LABEL = re.compile(r"^\s*(\.L\w+):", re.MULTILINE)
# The last operand of a jump: an address (cuobjdump), or a label (nvdisasm). On sm_100 a uniform predicate may stand
# before it: `BRA.U UP0, 0x3e0`.
TARGET = re.compile(r"(?:(0x[0-9a-f]+)|`?\(?(\.L\w+)\)?)$")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


class Instruction(NamedTuple):
    address: int
    guard: str  # the predicate, empty without one
    opcode: str  # with its modifiers
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]


class Resources(NamedTuple):
    """Registers of a thread; bytes of stack and of local memory of a thread, of shared memory of a block."""

    registers: int
    stack: int
    shared: int
    local: int


class Code(NamedTuple):
    instructions: list[Instruction]
    labels: dict[str, int]


def cuobjdump(cubin: bytes) -> str:
    """The kernel's resource usage and its disassembly, by the cuobjdump that comes with Triton."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def resources(text: str) -> Resources:
    found = USAGE.findall(text)
    if len(found) != 1:
        raise ValueError(f"expected the resource usage of one kernel, found {len(found)}")
    return Resources(*map(int, found[0]))


def parse(text: str) -> Code:
    """The instructions of a disassembly that holds one function, and the addresses that its labels stand for."""
    matches = list(INSTRUCTION.finditer(text))
    if not matches:
        raise ValueError("no instruction found in the disassembly")
    instructions = [Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in matches]
    if any(b.address <= a.address for a, b in itertools.pairwise(instructions)):
        raise ValueError("addresses do not ascend: more than one function?")
    labels = {}
    for label in LABEL.finditer(text):
        after = next((i.address for i, m in zip(instructions, matches, strict=True) if m.start() > label.end()), None)
        if after is not None:
            labels[label[1]] = after
    return Code(instructions, labels)


def jump_target(jump: Instruction, labels: dict[str, int]) -> int:
    found = TARGET.search(jump.operands)
    if found is None or (found[2] and found[2] not in labels):
        raise ValueError(f"no target known for {jump.opcode} {jump.operands} at {jump.address:#x}")
    return int(found[1], 16) if found[1] else labels[found[2]]


def loop(code: Code) -> list[Instruction]:
    """The innermost loop that holds every store to global memory, first to last instruction.

    What it branches around counts as inside; a subroutine that it calls, beyond the kernel's end, does not. Raises
    `ValueError` where there is no such loop.
    """
    stores = [i.address for i in code.instructions if i.name in ("STG", "ST")]
    around = []
    for jump in code.instructions:
        if jump.name in ("BRA", "JMP"):
            start = jump_target(jump, code.labels)
            # A jump to itself is the trap behind a kernel's end.
            if start < jump.address and stores and start <= min(stores) and max(stores) <= jump.address:
                around.append((jump.address - start, start, jump.address))
    if not around:
        raise ValueError(f"no loop around the {len(stores)} stores of {len(code.instructions)} instructions")
    _, start, end = min(around)
    return [i for i in code.instructions if start <= i.address <= end]


def store_bytes(instructions: Sequence[Instruction]) -> list[int]:
    """How many bytes a thread writes to global memory with each store."""
    stores = [i for i in instructions if i.name in ("STG", "ST")]
    return [next((BYTES[part] for part in i.opcode.split(".") if part in BYTES), 4) for i in stores]
