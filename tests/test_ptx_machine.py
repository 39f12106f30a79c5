"""The PTX machine: how it reads, branches, loads and stores; and that it refuses what it does not know.

What its opcodes compute is tested in `test_ptx_opcodes.py`.
"""

from __future__ import annotations

import itertools
import struct

import numpy as np
import ptx
import pytest
from ptx import PtxError
from ptx_text import JUMPS, LOADS, SPECIALS, STORES
from ptx_tiny import ADDRESS, FILES, module, ran

# The thread's number in the grid to %r8, and to %rd1 where its four bytes of output are.
OWN_PLACE = """
    mad.lo.u32 %r1, %tid.z, %ntid.y, %tid.y; mad.lo.u32 %r2, %r1, %ntid.x, %tid.x;
    mad.lo.u32 %r3, %ctaid.z, %nctaid.y, %ctaid.y; mad.lo.u32 %r4, %r3, %nctaid.x, %ctaid.x;
    mul.lo.u32 %r5, %ntid.x, %ntid.y; mul.lo.u32 %r5, %r5, %ntid.z; mad.lo.u32 %r8, %r4, %r5, %r2;
    mad.wide.u32 %rd1, %r8, 4, %rd0;
"""


def words(data: bytes) -> list[int]:
    return [number for (number,) in struct.iter_unpack("<I", data)]


# --- parameters and stores ---------------------------------------------------------------------

VALUES = {"b": 0x8123456789ABCDEF, "u": 0xFEDCBA9876543210, "s": -0x123456789ABCDEF, "f": 0.1}


@pytest.mark.parametrize("opcode", LOADS)
def test_loads_of_parameters(opcode):
    kind = opcode.rsplit(".", 1)[1]
    width = int(kind[1:])
    value = VALUES[kind[0]] if kind[0] == "f" else VALUES[kind[0]] >> 64 - width
    form = {"f32": "<f", "f64": "<d"}.get(kind) or {16: "<H", 32: "<I", 64: "<Q"}[width]
    expected = struct.pack(form, value if kind[0] == "f" else value % (1 << width))
    register = f"{FILES[width]}5"
    for argument in (value, expected):  # a number, or its bytes
        got = ran(f"{opcode} {register}, [p0]; st.global.b{width} [%rd0], {register};", width // 8, [kind], [argument])
        assert got == expected


@pytest.mark.parametrize(("kind", "wider"), [("b16", "b32"), ("b16", "b64"), ("b32", "b64")])
def test_loads_into_a_wider_register(kind, wider):
    """Zero above what was loaded; a narrower one is refused."""
    code = "ld.param.{0} {1}5, [p0]; st.global.{2} [%rd0], {1}5;"
    value = 0x87654321 % (1 << int(kind[1:]))
    width = int(wider[1:])
    got = ran(code.format(kind, FILES[width], wider), width // 8, [kind], [value])
    assert got == value.to_bytes(width // 8, "little")
    with pytest.raises(PtxError, match="is not"):
        ran(code.format(wider, FILES[int(kind[1:])], kind), width // 8, [wider], [value])


def test_loads_from_within_an_aggregate():
    text = module("ld.param.b32 %r1, [p + 8]; st.global.b32 [%rd0], {%r1}; ld.param.b32 %r1, [p+13];")
    kernel = ptx.parse(text.replace(".u64 out", ".u64 out, .param .align 8 .b8 p[16]"))
    memory, data = ptx.Memory(), np.zeros(4, np.uint8)
    memory.add(data, ADDRESS)
    with pytest.raises(PtxError, match="beyond the parameter's end"):
        ptx.run(kernel, (1, 1, 1), [ADDRESS, bytes(range(16))], memory, np.random.default_rng(0))
    assert data.tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("kind", "argument"),
    [("u32", 1 << 32), ("u32", -(1 << 31) - 1), ("b64", b"1234"), ("u64", 1.0), ("u16", 65536)],
)
def test_arguments_that_do_not_fit(kind, argument):
    with pytest.raises(PtxError):
        ran("", 4, [kind], [argument])


def test_there_is_an_argument_for_each_parameter():
    for arguments in ([], [1, 2]):
        with pytest.raises(PtxError, match="for 2 parameters"):
            ran("", 4, ["u32"], arguments)


@pytest.mark.parametrize("opcode", STORES)
def test_stores(opcode):
    """Registers in their order, each with its lowest byte first."""
    count, kind = STORES[opcode]
    width = int(kind[1:])
    held = max(width, 16)  # a register's width
    patterns = [0x1122334455667788 * (k + 3) % (1 << held) for k in range(count)]
    names = [f"{FILES[held]}{k + 1}" for k in range(count)]
    moves = "".join(f"mov.b{held} {name}, {value};" for name, value in zip(names, patterns, strict=True))
    size = count * width // 8
    got = ran(f"{moves} {opcode} [ %rd0 + {size} ], {{ {', '.join(names)} }};", 3 * size)
    expected = b"".join((value % (1 << width)).to_bytes(width // 8, "little") for value in patterns)
    assert got == bytes(size) + expected + bytes(size)


def test_stores_under_a_predicate():
    body = OWN_PLACE + "setp.lt.u32 %p1, %r8, 3; @%p1 st.global.b32 [%rd1], %r8; @!%p1 st.global.b32 [%rd1], -1;"
    assert words(ran(body, 20, threads="5")) == [0, 1, 2, 0xFFFFFFFF, 0xFFFFFFFF]


def test_each_write_is_counted():
    memory, data = ptx.Memory(), np.zeros(16, np.uint8)
    writes = memory.add(data, ADDRESS)
    kernel = ptx.parse(module("st.global.b32 [%rd0+4], 7; st.global.b16 [%rd0+6], 8;", threads="3"))
    ptx.run(kernel, (2, 1, 1), [ADDRESS], memory, np.random.default_rng(0))
    assert writes.tolist() == [0] * 4 + [6, 6, 12, 12] + [0] * 8


@pytest.mark.parametrize("place", ["-4", "64", "2305843009213693952"])
def test_stores_out_of_bounds(place):
    with pytest.raises(PtxError, match="out of bounds"):
        ran(f"add.s64 %rd1, %rd0, {place}; st.global.b32 [%rd1], 1;", 64)


def test_stores_over_the_end():
    body = "st.global.v4.b32 [%rd0+48], {1, 1, 1, 1};"
    ran(body, 64)
    for size in (63, 8):
        with pytest.raises(PtxError, match="out of bounds"):
            ran(body, size)


@pytest.mark.parametrize(
    ("opcode", "offset"), [("st.global.b16", 1), ("st.global.b64", 4), ("st.global.v2.b32", 4), ("st.global.v4.b32", 8)]
)
def test_misaligned_stores(opcode, offset):
    count, _ = STORES[opcode]
    with pytest.raises(PtxError, match="misaligned"):
        ran(f"{opcode} [%rd0 + {offset}], {{ {', '.join('1' * count)} }};")
    ran(f"setp.ne.b32 %p1, 0, 0; @%p1 {opcode} [%rd0 + {offset}], {{ {', '.join('1' * count)} }};")


@pytest.mark.parametrize("width", [32, 64])
def test_loads_of_memory(width):
    """Under a predicate too; what is not loaded keeps its value, and nothing outside or between elements is read."""
    size = width // 8
    register = f"{FILES[width]}5"
    mask = f"setp.ne.b32 %p1, 0, 1; mov.b{width} {register}, 7;"
    body = (
        f"{mask} @%p1 ld.global.b{width} {{{{ {register} }}}}, [%rd0 + {{0}}]; st.global.b{width} [%rd0], {register};"
    )
    memory = bytes(range(1, 33))
    for place in (8, 24):
        got = ran(body.format(place), before=memory)
        assert got[:size] == memory[place : place + size]
        assert got[size:] == memory[size:]
    for place, error in ((32, "out of bounds"), (1 << 20, "out of bounds"), (2, "misaligned")):
        with pytest.raises(PtxError, match=error):
            ran(body.format(place), before=memory)
    skipped = body.replace("@%p1", "@!%p1")
    assert ran(skipped.format(2), before=memory)[:size] == (7).to_bytes(size, "little")


def test_stretches_of_memory_lie_apart():
    memory, found = ptx.Memory(), [np.zeros(4, np.uint8) for _ in range(2)]
    for k, data in enumerate(found):
        memory.add(data, ADDRESS + (k << 33))
    kernel = ptx.parse(module("mad.wide.u32 %rd1, %tid.x, -1, %rd0; mul.wide.u32 %rd2, %tid.x, 0xFFFFFFFF;"
                              "shl.b64 %rd3, %rd2, 1; add.s64 %rd3, %rd3, %rd0; cvt.u64.u32 %rd4, %tid.x;"
                              "shl.b64 %rd4, %rd4, 1; add.s64 %rd3, %rd3, %rd4; st.global.b32 [%rd3], %tid.x;",
                              threads="2"))  # fmt: skip
    ptx.run(kernel, (1, 1, 1), [ADDRESS], memory, np.random.default_rng(0))
    assert [data.tolist() for data in found] == [[0, 0, 0, 0], [1, 0, 0, 0]]


# --- registers and constants -------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECIALS)
def test_special_registers(name):
    threads, grid = (4, 3, 2), (3, 2, 5)
    got = words(ran(f"{OWN_PLACE} st.global.b32 [%rd1], {name};", 4 * 24 * 30, threads="4, 3, 2", grid=grid))
    each = itertools.product(*(range(n) for n in (*reversed(grid), *reversed(threads))))
    which, axis = SPECIALS[name]
    places = {"ctaid": lambda k: k[2 - axis], "tid": lambda k: k[5 - axis]}
    sizes = {"ntid": threads[axis], "nctaid": grid[axis]}
    assert got == [places[which](k) if which in places else sizes[which] for k in each]


def test_moves_of_parts():
    """The lowest part stands first."""
    body = """
        mov.b32 %r1, 0x11112222U; mov.b32 %r2, 0x33334444; mov.b64 %rd1, {%r1, %r2}; st.global.b64 [%rd0], %rd1;
        mov.b64 {_, %r3}, %rd1; st.global.b32 [%rd0+8], %r3; mov.b64 {%r4, _}, %rd1; st.global.b32 [%rd0+12], %r4;
        mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r5, {%rs2, %rs1}; st.global.b32 [%rd0+16], %r5;
        mov.b64 %rd2, {%rs1, %rs1, %rs2, %rs2}; st.global.b64 [%rd0+24], %rd2;
    """
    expected = [0x11112222, 0x33334444, 0x33334444, 0x11112222, 0x22221111, 0, 0x22222222, 0x11111111]
    assert words(ran(body, 32)) == expected


def test_constants():
    body = """
        mov.b32 %r1, -845247145; mov.u32 %r2, 0x3340U; mov.f32 %r3, 0f3F800001; mov.b32 %r4, 0Fbf800000;
        st.global.v4.b32 [%rd0], {%r1, %r2, %r3, %r4}; mov.f64 %rd1, 0d3FF0000000000001;
        st.global.v2.b64 [%rd0+16], {%rd1, -2}; mov.pred %p1, -1; selp.b32 %r5, 5, 6, %p1; st.global.b32 [%rd0+32], %r5;
    """
    assert words(ran(body, 36)) == [
        2**32 - 845247145, 0x3340, 0x3F800001, 0xBF800000, 1, 0x3FF00000, 2**32 - 2, 2**32 - 1, 5,
    ]  # fmt: skip


def test_inner_scopes_have_registers_of_their_own():
    body = """
        mov.b32 %r1, 1; {.reg .b64 p; .reg .b32 %r<2>; mov.b32 %r1, 7; mul.wide.u32 p, %r1, -1; mov.b64 {%r2, %r3}, p;}
        { .reg .b32 p, q; mov.b32 p, %r1; mov.b32 q, 9; st.global.v4.b32 [%rd0], {p, %r2, %r3, q}; }
    """
    assert words(ran(body, 16)) == [1, 2**32 - 7, 6, 9]


def test_results_under_a_predicate():
    body = OWN_PLACE + "setp.eq.u32 %p1, %r8, 1; mov.b32 %r7, 5; @%p1 mov.b32 %r7, 6; st.global.b32 [%rd1], %r7;"
    assert words(ran(body, 12, threads="3")) == [5, 6, 5]


@pytest.mark.parametrize("body", ["st.global.b32 [%rd0], %r1;", "setp.eq.u32 %p1, %tid.x, 1; @%p1 mov.b32 %r1, 6;"])
def test_registers_without_a_value(body):
    with pytest.raises(PtxError, match="%r1 has no value"):
        ran(body)


def test_a_part_without_a_value_may_be_anything():
    """Another number in each thread; the part that has a value keeps it."""
    body = (
        OWN_PLACE + "mov.b32 %r1, 7; mov.b64 %rd2, {{%r1, %r7}}; mov.b64 {{%r2, %r3}}, %rd2; st.global.b32 [%rd1], {};"
    )
    assert words(ran(body.format("%r2"), 16, threads="4")) == [7] * 4
    assert len(set(words(ran(body.format("%r3"), 16, threads="4")))) == 4


# --- branches ----------------------------------------------------------------------------------

# Each block goes round once more than the one before, and adds up what it counts.
LOOP = f"""
    {OWN_PLACE} mov.b32 %r1, 0; mov.b32 %r2, 0;
    setp.eq.u32 %p1, %ctaid.x, 0; @%p1 bra $L_end;
    $L_again: add.s32 %r1, %r1, 1; add.s32 %r2, %r2, %r1; setp.lt.u32 %p2, %r1, %ctaid.x; @%p2 bra $L_again;
    $L_end: add.s32 %r2, %r2, %tid.x; st.global.b32 [%rd1], %r2;
"""


def test_blocks_part_ways():
    """More of them than are run together."""
    blocks = ptx.BATCH + 9
    expected = [n * (n + 1) // 2 + thread for n in range(blocks) for thread in range(2)]
    assert words(ran(LOOP, 8 * blocks, threads="2", grid=(blocks, 1, 1))) == expected


def test_some_blocks_of_a_grid():
    got = words(ran(LOOP, 80, threads="2", grid=(10, 1, 1), blocks=[1, 7]))
    assert got == [0, 0, 1, 2, *[0] * 10, 28, 29, *[0] * 4]


def test_threads_do_not_part_ways():
    with pytest.raises(PtxError, match=r"part ways: @%p1 bra \$L_end"):
        ran("setp.eq.u32 %p1, %tid.x, 0; @%p1 bra $L_end; $L_end:", threads="2")


def test_every_jump():
    """Also negated, without a condition, and a return that some blocks take."""
    body = OWN_PLACE + """
        setp.lt.u32 %p1, %ctaid.x, 2; @!%p1 bra $L_more; bra.uni $L_store;
        $L_more: setp.eq.u32 %p2, %ctaid.x, 2; @%p2 ret;
        bra $L_store; st.global.b32 [%rd1], 99; $L_store: st.global.b32 [%rd1], 1;
    """  # fmt: skip
    assert set(JUMPS) == {"bra", "bra.uni", "ret"}
    assert words(ran(body, 16, grid=(4, 1, 1))) == [1, 1, 0, 1]


def test_blocks_return_from_the_middle():
    """The last instruction is none that they come to."""
    body = OWN_PLACE + "setp.eq.u32 %p1, %ctaid.x, 1; @%p1 ret; st.global.b32 [%rd1], 1; ret; st.global.b32 [%rd1], 2;"
    assert words(ran(body, 12, grid=(3, 1, 1))) == [1, 0, 1]


@pytest.mark.parametrize("grid", [(1 << 31, 1, 1), (1, 1 << 16, 1), (1, 1, 1 << 16)])
def test_grids_that_no_gpu_takes(grid):
    with pytest.raises(PtxError, match="grid"):
        ran("", grid=grid, blocks=[0])


def test_a_kernel_returns():
    memory = ptx.Memory()
    kernel = ptx.parse(module("mov.b32 %r1, 1;").replace("ret;", ""))
    with pytest.raises(PtxError, match="beyond its end"):
        ptx.run(kernel, (1, 1, 1), [0], memory, np.random.default_rng(0))


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "add.rz.f32 %r1, %r2, %r3", "add.rn.ftz.f32 %r1, %r2, %r3", "add.sat.s32 %r1, %r2, %r3",
        "add.f16 %rs1, %rs2, %rs3",
        "fma.rn.sat.f32 %r1, %r2, %r3, %r4", "fma.f32 %r1, %r2, %r3, %r4", "div.s64 %rd1, %rd2, %rd3",
        "sqrt.approx.f32 %r1, %r2", "rsqrt.approx.f32 %r1, %r2", "ex2.approx.f32 %r1, %r2", "min.NaN.f32 %r1, %r2, %r3",
        "cvt.rz.bf16.f32 %rs1, %r1", "cvt.f32.u32 %r1, %r2", "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r1, %r2",
        "setp.lt.and.s32 %p1, %r1, %r2, %p2", "mov.b128 %rd1, %rd2", "ld.param.v2.b32 {%r1, %r2}, [p0]",
        "ld.global.b16 %rs1, [%rd0]", "ld.shared.b32 %r1, [%rd0]", "ld.local.b32 %r1, [%rd0]", "ld.b32 %r1, [%rd0]",
        "st.shared.b32 [%rd0], %r1", "st.local.b32 [%rd0], %r1", "st.b32 [%rd0], %r1", "st.global.wt.b32 [%rd0], %r1",
        "red.global.add.u32 [%rd0], 1", "bar.sync 0", "barrier.sync 0", "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1",
        "call foo, ()", "exit", "trap",
    ],
)  # fmt: skip
def test_unknown_instructions(line):
    """Also where they are jumped over."""
    with pytest.raises(PtxError) as caught:
        ptx.parse(module(f"bra $L_end; {line}; $L_end:", ["b64"]))
    assert str(caught.value) == f"unknown instruction: {line}"


REFUSED = {
    "is not": [
        "add.s64 %rd1, %r2, %rd3", "add.s32 %rd1, %r2, %r3", "mov.b32 %r1, %p1", "@%r1 mov.b32 %r1, %r2",
        "mov.b64 {%rs1, %rs2}, %rd1", "mov.b64 {%r1, %r2}, %r3", "mov.b32 %rd1, {%rs1, %rs2}",
        "st.global.b32 [%r0], %r1", "st.global.b32 [%rd0], %rd1", "st.global.b16 [%rd0], %r1",
    ],
    "unknown operand": [
        "mov.b32 %r9, %r1", "mov.b32 %r1, %x1", "mov.b32 %r1, p0", "mov.u32 %r1, %laneid", "mov.u64 %rd1, %tid.x",
        "mov.u32 %tid.x, %r1", "mov.b32 %r1, 1.5", "mov.f32 %r1, 1", "mov.b32 %r1, 017", "add.s32 %r1, %r2, 0f3F800000",
        "mov.f32 %r1, 0d3FF0000000000000", "setp.eq.s32 %p1|%p2, %r1, %r2", "selp.b32 %r1, %r2, %r3, !%p1",
        "st.global.b32 [p0], %r1", "st.global.v2.b32 [%rd0], {%r1}", "st.global.b32 [%rd0], {%r1, %r2}",
    ],
    "is no number": ["mov.b32 %r1, 0x100000000", "mov.b32 %r1, -2147483649", "mov.b64 %rd1, {0x100000000, 0}"],
    "operands, not": ["add.s32 %r1, %r2", "add.s32 %r1, %r2, %r3, %r4", "ret %r1", "bra", "mov.b32 %r1"],
    "unknown type": ["mov.b64 {%r1, %r2, %r3}, %rd1", ".reg .b8 %b<2>", ".reg .f8 %x", ".reg .v2 .b32 v"],
    "unknown declaration": [".reg .b32 %r<9>", ".reg .b32 3x"],
    "unknown address": ["st.global.b32 %rd0, %r1", "st.global.b32 [%rd0+%rd1], %r1", "st.global.b32 [%rd0-4], %r1"],
    "no such parameter": ["ld.param.b32 %r1, [p7]", "ld.param.b32 %r1, [%rd0]"],
    "no such label": ["bra $L_nowhere"],
    "stands twice": ["$L_one: mov.b32 %r1, 1; $L_one:", "$L_one: $L_one:"],
    "unknown directive": [".shared .b32 s", ".local .align 8 .b8 d[16]", ".param .b32 q", '.pragma "nounroll"'],
    "no instruction": ["+", "@%p1 @%p2 ret"],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "line"), [(reason, line) for reason, lines in REFUSED.items() for line in lines])
def test_lines_that_are_not_understood(reason, line):
    with pytest.raises(PtxError, match=reason):
        ptx.parse(module(f"{line};", ["b64"]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".address_size 64", ".address_size 32"),
        (".address_size 64", ".address_size 64\n.extern .shared .align 16 .b8 global_smem[];"),
        (".address_size 64", ".address_size 64\n.func f() { ret; }"),
        (".target sm_90", ".target sm_90, texmode_independent"),
        (".visible .entry", ".weak .entry"),
        (".reqntid 1\n", ""),
        (".reqntid 1\n", ".reqntid 1\n.reqnctapercluster 2\n"),
        (".param .u64 out", ".param .u65 out"),
        (".param .u64 out", ".param .u64 .ptr .shared .align 4 out"),
        ("ret;\n        }", "ret;\n        }\n.visible .entry other() { ret; }"),
        ("ret;\n        }", "ret;\n        }\n.global .b32 x;"),
        ("ret;\n        }", "ret;"),
    ],
)
def test_modules_that_are_not_understood(old, new):
    text = module("")
    assert old in text
    ptx.parse(text)
    with pytest.raises(PtxError):
        ptx.parse(text.replace(old, new))


def test_what_does_not_matter():
    """Comments, where lines come from, how many registers ptxas may use, and what describes the source."""
    text = module("// add.rz.f32;\n .loc 1 76 12, function_name $L_info, inlined_at 2 60 22 // x\n /* { */ $L_tmp:")
    text = text.replace(".reqntid 1\n", ".reqntid 1\n.maxnreg 128\n")
    text = text.replace("out)", "out, .param .u64 .ptr .global .align 1 x)")
    kernel = ptx.parse(text + '\n.file 1 "/a.shared/b.py"\n.section .debug_info\n{\n.b8 1 // x\n}')
    assert [p.name for p in kernel.parameters] == ["out", "x"]
    assert [step.opcode for step in kernel.instructions] == ["ld.param.u64", "ret"]
