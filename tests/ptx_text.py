"""Reads PTX as Triton makes it of our kernels, and nothing beyond: what `ptx.py` runs.

An opcode, modifier, directive, type or register that is not known is an error, wherever it stands in the text; so are
shared and local memory, barriers and calls.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from ptx_opcodes import DTYPES, OPCODES, Array

RETURN = "ret"  # as a label
JUMPS = ("bra", "bra.uni", "ret")
LOADS = {f"ld.param.{kind}": kind for kind in ("b16", "b32", "b64", "u16", "u32", "u64", "s32", "s64", "f32", "f64")}
FETCHES = {f"ld.global.b{width}": f"b{width}" for width in (32, 64)}
# How many registers a store takes, and what it takes of each.
STORES = {
    f"st.global{vector}.b{width}": (count, f"b{width}")
    for vector, count in (("", 1), (".v2", 2), (".v4", 4))
    for width in (8, 16, 32, 64)
    if count * width <= 128
}
SPECIALS = {
    f"%{name}.{axis}": (name, number)
    for name in ("tid", "ntid", "ctaid", "nctaid")
    for number, axis in enumerate("xyz")
}


class PtxError(Exception):
    """Something that the machine does not know, or that a kernel must not do."""


# --- what a kernel consists of -----------------------------------------------------------------


class Parameter(NamedTuple):
    name: str
    type: str
    size: int


class Register(NamedTuple):
    name: str
    type: str


class Constant(NamedTuple):
    value: Array


class Special(NamedTuple):
    name: str


class Place(NamedTuple):
    """An address: a register, or a parameter's name, and bytes beyond it."""

    base: Register | str
    offset: int


Source = Register | Constant | Special


class Instruction(NamedTuple):
    """`form` is the machine's method that runs it; "jump" goes to a label."""

    text: str
    guard: Register | None
    negated: bool
    opcode: str
    form: str
    results: tuple[Register | None, ...] = ()
    sources: tuple[Source, ...] = ()
    place: Place | None = None
    label: str | None = None


class Kernel(NamedTuple):
    name: str
    parameters: tuple[Parameter, ...]
    threads: tuple[int, int, int]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


# --- reading -----------------------------------------------------------------------------------

HEAD = re.compile(r"\s*\.version\s+\d+\.\d+\s+\.target\s+sm_\w+\s+\.address_size\s+64\s*")
ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)\s*((?:\.\w+[ \t]+\d+(?:\s*,\s*\d+)*\s*)*)(?=\{)")
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+\.global\s+\.align\s+\d+\s+)?(\w+)(?:\[(\d+)\])?"
)
STATEMENT = re.compile(r"\s*(?:([\w$]+):|([{}])|([^;{}][^;]*);)")
BETWEEN_OPERANDS = re.compile(r",(?![^{]*\})")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(\d+)\s*)?\]")
FLOAT_BITS = {kind: re.compile(r"0[fF]([0-9A-Fa-f]{8})") for kind in ("f32", "b32")} | {
    kind: re.compile(r"0[dD]([0-9A-Fa-f]{16})") for kind in ("f64", "b64")
}
WHOLE_NUMBER = re.compile(r"(-?)(0[xX][0-9A-Fa-f]+|0|[1-9]\d*)U?")
# What may follow a kernel: where its lines came from. Code and memory may not.
AFTER = re.compile(r"\.(entry|func|extern|shared|global|const|tex|alias)\b")


def bit_type(name: str, text: str) -> str:
    """The type that says no more than the width; predicates are their own."""
    if name not in DTYPES or name.endswith("8"):
        raise PtxError(f"unknown type of a register: {text}")
    return name if name == "pred" else f"b{name[1:]}"


def parse(text: str) -> Kernel:
    """The one kernel of a PTX module."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^[ \t]*\.loc[ \t][^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    head = HEAD.match(text)
    entry = ENTRY.match(text, head.end()) if head else None
    if entry is None:
        raise PtxError(f"the module does not begin with one kernel: {text[: text.find('{')]}")
    name, parameters, limits = entry.groups()
    taken = tuple(parameter(part) for part in parameters.split(",") if part.strip())
    reader = Reader(text, {p.name for p in taken})
    reader.read(entry.end())
    rest = re.sub(r'"[^"]*"', "", text[reader.end :])
    if found := AFTER.search(rest):
        raise PtxError(f"after the kernel there is a {found.group()}")
    known = {None, RETURN, *reader.labels}
    if missing := [step.text for step in reader.instructions if step.label not in known]:
        raise PtxError(f"no such label: {missing[0]}")
    return Kernel(name, taken, threads_of(limits), tuple(reader.instructions), reader.labels)


def parameter(text: str) -> Parameter:
    found = PARAMETER.fullmatch(text.strip())
    if found is None or found[1] not in DTYPES:
        raise PtxError(f"unknown parameter: {text}")
    return Parameter(found[2], found[1], int(found[1][1:]) // 8 * int(found[3] or 1))


def threads_of(limits: str) -> tuple[int, int, int]:
    """A block's shape. `.maxnreg` and the like bind ptxas, and change nothing that is computed."""
    found = {line.split()[0]: line.split(None, 1)[1] for line in re.split(r"\s+(?=\.)", limits.strip()) if line}
    if ".reqntid" not in found or found.keys() - {".reqntid", ".maxnreg", ".minnctapersm"}:
        raise PtxError(f"unknown or missing limits of a kernel: {limits}")
    sizes = [int(size) for size in found[".reqntid"].split(",")]
    x, y, z = sizes + [1] * (3 - len(sizes))
    return x, y, z


class Declaration(NamedTuple):
    """One register; or `count` of them, numbered from 0. `scope` tells those of an inner scope from their namesakes."""

    type: str
    count: int | None
    scope: str


class Reader:
    """Goes through a kernel's body. Scopes have registers of their own, as inline assembly needs them."""

    def __init__(self, text: str, parameters: set[str]) -> None:
        self.text, self.parameters = text, parameters
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.scopes: list[dict[str, Declaration]] = []
        self.opened = 0

    def read(self, start: int) -> None:
        self.end = start
        while found := STATEMENT.match(self.text, self.end):
            self.end = found.end()
            label, brace, statement = found.groups()
            if brace == "{":
                self.opened += 1
                self.scopes.append({})
            elif brace == "}":
                self.scopes.pop()
                if not self.scopes:
                    return
            elif statement is not None:
                self.statement(" ".join(statement.split()))
            elif label == RETURN or label in self.labels:
                raise PtxError(f"a label stands twice: {label}")
            else:
                self.labels[label] = len(self.instructions)
        raise PtxError(f"no statement: {self.text[self.end : self.end + 80]}")

    def statement(self, text: str) -> None:
        if declared := REGISTERS.fullmatch(text):
            for name in declared[2].split(","):
                self.declare(bit_type(declared[1], text), name.strip(), text)
        elif text.startswith("."):
            raise PtxError(f"unknown directive: {text}")
        else:
            self.instructions.append(self.instruction(text))

    def declare(self, kind: str, name: str, text: str) -> None:
        found = re.fullmatch(r"(%?[A-Za-z_]\w*?)(?:<(\d+)>)?", name)
        if found is None or found[1] in self.scopes[-1]:
            raise PtxError(f"unknown declaration: {text}")
        scope = f" of scope {self.opened}" if len(self.scopes) > 1 else ""
        self.scopes[-1][found[1]] = Declaration(kind, int(found[2]) if found[2] else None, scope)

    def register(self, name: str, text: str) -> Register:
        stem = name.rstrip("0123456789")
        for scope in reversed(self.scopes):
            one, many = scope.get(name), scope.get(stem)
            if one and one.count is None:
                return Register(name + one.scope, one.type)
            if many and many.count and name != stem and int(name[len(stem) :]) < many.count:
                return Register(name + many.scope, many.type)
        raise PtxError(f"unknown operand {name}: {text}")

    def typed_register(self, name: str, kind: str, text: str) -> Register:
        register = self.register(name, text)
        if register.type != bit_type(kind, text):
            raise PtxError(f"{name} is not {kind}: {text}")
        return register

    def source(self, name: str, kind: str, text: str) -> Source:
        if name in SPECIALS and kind in ("u32", "s32", "b32"):
            return Special(name)
        number = constant(name, kind)
        return self.typed_register(name, kind, text) if number is None else number

    def instruction(self, text: str) -> Instruction:
        found = re.fullmatch(r"(?:@(!?)(%\w+) )?([\w.:]+)(?: (.+))?", text)
        if found is None:
            raise PtxError(f"no instruction: {text}")
        negated, guard, opcode, rest = found.groups()
        operands = [part.strip() for part in BETWEEN_OPERANDS.split(rest)] if rest else []
        condition = self.typed_register(guard, "pred", text) if guard else None
        forms = (
            *((JUMPS, self.jump), (LOADS, self.load), (FETCHES, self.fetch)),
            *((STORES, self.store), (OPCODES, self.operate)),
        )
        for opcodes, read in forms:
            if opcode in opcodes:
                return read(Instruction(text, condition, bool(negated), opcode, read.__name__), operands)
        raise PtxError(f"unknown instruction: {text}")

    def jump(self, step: Instruction, operands: list[str]) -> Instruction:
        self.expect(0 if step.opcode == RETURN else 1, step, operands)
        return step._replace(label=operands[0] if operands else RETURN)

    def load(self, step: Instruction, operands: list[str]) -> Instruction:
        result, address = self.expect(2, step, operands)
        kind, register = LOADS[step.opcode], self.register(result, step.text)
        # Bits may go to a wider register, which is zero above them.
        if kind[0] != "b" or register.type[0] != "b" or int(register.type[1:]) < int(kind[1:]):
            register = self.typed_register(result, kind, step.text)
        place = self.place(address, step)
        if place.base not in self.parameters:
            raise PtxError(f"no such parameter: {step.text}")
        return step._replace(results=(register,), place=place)

    def fetch(self, step: Instruction, operands: list[str]) -> Instruction:
        result, address = self.expect(2, step, operands)
        register = self.typed_register(*elements(result), FETCHES[step.opcode], step.text)
        place = self.place(address, step)
        if not isinstance(place.base, Register):
            raise PtxError(f"unknown operands of a load: {step.text}")
        return step._replace(results=(register,), place=place)

    def store(self, step: Instruction, operands: list[str]) -> Instruction:
        address, value = self.expect(2, step, operands)
        count, kind = STORES[step.opcode]
        # A byte has no register of its own: a store takes the low one.
        kind = "b16" if kind == "b8" else kind
        sources = tuple(self.source(name, kind, step.text) for name in elements(value))
        place = self.place(address, step)
        if len(sources) != count or not isinstance(place.base, Register):
            raise PtxError(f"unknown operands of a store: {step.text}")
        return step._replace(sources=sources, place=place)

    def operate(self, step: Instruction, operands: list[str]) -> Instruction:
        if step.opcode.startswith("mov.b") and any(operand[0] == "{" for operand in operands):
            return self.move(step, operands)
        operation = OPCODES[step.opcode]
        result, *sources = self.expect(1 + len(operation.sources), step, operands)
        typed = tuple(self.source(name, kind, step.text) for name, kind in zip(sources, operation.sources, strict=True))
        register = self.typed_register(result, operation.result, step.text)
        return step._replace(results=(register,), sources=typed)

    def move(self, step: Instruction, operands: list[str]) -> Instruction:
        """Between a register and its parts, the lowest first."""
        result, source = self.expect(2, step, operands)
        whole = step.opcode.removeprefix("mov.")
        parts = elements(source if source[0] == "{" else result)
        part = f"b{int(whole[1:]) // len(parts)}"
        if source[0] == "{":
            joined = tuple(self.source(name, part, step.text) for name in parts)
            return step._replace(form="join", results=(self.typed_register(result, whole, step.text),), sources=joined)
        results = tuple(None if name == "_" else self.typed_register(name, part, step.text) for name in parts)
        return step._replace(form="split", results=results, sources=(self.source(source, whole, step.text),))

    def expect(self, count: int, step: Instruction, operands: list[str]) -> list[str]:
        if len(operands) != count:
            raise PtxError(f"{len(operands)} operands, not {count}: {step.text}")
        return operands

    def place(self, text: str, step: Instruction) -> Place:
        found = ADDRESS.fullmatch(text)
        if found is None:
            raise PtxError(f"unknown address: {step.text}")
        base = self.typed_register(found[1], "b64", step.text) if found[1].startswith("%") else found[1]
        return Place(base, int(found[2] or 0))


def elements(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{}").split(",")]


def constant(text: str, kind: str) -> Constant | None:
    """A number as a constant of this type; None if it is none, and so a register's name or wrong."""
    dtype = np.dtype(DTYPES[kind])
    width = 8 * dtype.itemsize
    if kind in FLOAT_BITS and (found := FLOAT_BITS[kind].fullmatch(text)):
        pattern = int(found[1], 16)
    elif kind[0] != "f" and (found := WHOLE_NUMBER.fullmatch(text)):
        pattern = int(found[1] + found[2], 0)
        if kind == "pred":
            return Constant(np.array([[pattern != 0]]))
        if not -(1 << width - 1) <= pattern < 1 << width:
            raise PtxError(f"{text} is no number of type {kind}")
    else:
        return None
    return Constant(np.array([[pattern % (1 << width)]], DTYPES[f"b{width}"]).view(dtype))
