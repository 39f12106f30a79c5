"""The GPU kernels' static cost: the project's targets, and a counter that is not fooled."""

from __future__ import annotations

import math
import subprocess
import sys

import benches
import pytest
import torch

pytest.importorskip("triton.backends.nvidia", reason="needs Triton's compiler for CUDA")

from fastinit.kernels.gpu import engine as gpu

sass, model = benches.load("sass"), benches.load("gpu_model")
H100 = model.target_of(90)
WORDS = model.variants(torch.int32)["words"]

# 16 bytes, four elements a turn; the store and the jump as cuobjdump prints them.
SASS = """
 Function fill_tiles:
  REG:54 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0
        Function : fill_tiles
        /*0000*/                   LDC R1, c[0x0][0x28] ;          /* 0x00000a00ff017b82 */
                                                                   /* 0x000ff00000000800 */
        /*0010*/              @!P0 EXIT ;                          /* 0x000000000000894d */
        /*0020*/                   IMAD.WIDE.U32 R42, R7, -0x326172a9, RZ ;  /* 0xcd9e8d57072a7825 */
        /*0030*/                   LOP3.LUT R7, R36, UR29, R41, 0x96, !PT ;  /* 0x0000001d24077c12 */
        /*0040*/               @P1 SEL R7, R7, R8, P2 ;            /* 0x0000001d24077c12 */
        /*0050*/                   I2FP.F32.U32 R14, R14 ;         /* 0x0000000e000e7245 */
        /*0060*/                   FFMA R14, R14, UR25, R28.reuse ; /* 0x000000190e0e7c23 */
        /*0070*/                   FFMA2 R2, R2.F32x2.HI_LO, R4.F32x2.HI_LO, R6.F32x2.HI_LO ; /* 0x0 */
        /*0080*/                   MUFU.RSQ R3, R3 ;               /* 0x0 */
        /*0090*/                   UIADD3 UR10, UP1, UPT, UR10, 0x4000, URZ ; /* 0x0 */
        /*00a0*/                   STG.E.128 desc[UR20][R24.64+0x40], R12 ; /* 0x0000000c18007986 */
        /*00b0*/                   {jump} ;                        /* 0xffffffe100b47547 */
        /*00c0*/                   EXIT ;                          /* 0x000000000000794d */
        /*00d0*/                   BRA 0xd0;                       /* 0xfffffffc00fc7947 */
        /*00e0*/                   NOP;                            /* 0x0000000000007918 */
"""
JUMPS = ("@P0 BRA 0x20", "BRA.U UP0, 0x20", "BRA 0x20", "@P0 BRA `(.L_x_1)", "BRA.U !UP1, `(.L_x_1)")


def text(jump: str = JUMPS[0], **changes: str) -> str:
    made = SASS.replace("{jump}", jump).replace("        /*0020*/", ".L_x_1:\n        /*0020*/")
    for old, new in changes.items():
        assert old in made
        made = made.replace(old, new)
    return made


def count(jump: str = JUMPS[0], elements: int = 4, **changes: str):
    return model.count_text(text(jump, **changes), WORDS, H100, elements)


@pytest.mark.parametrize(("kind", "most"), model.TARGETS.items(), ids=list(model.TARGETS))
def test_instructions_an_element(kind, most):
    """Issue slots of the loop, float32 on sm_90: 14.6, 32.2 and 47.5 when this was written."""
    counts = model.count(model.variants(torch.float32)[kind], H100)
    assert counts.instructions <= most
    # Ten rounds of Philox are 20 products for four words; a counter that misses instructions would see fewer.
    assert counts.opcodes["IMAD.WIDE.U32"] / counts.elements >= 4.5


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_architecture_is_understood(arch):
    """The loop is found and each of its opcodes known, whatever form its jump has."""
    counts = model.count(model.variants(torch.bfloat16)["uniform"], model.target_of(arch))
    assert 10 < counts.instructions < 20
    assert set(counts.stores) == {16}
    assert counts.resources[1:] == (0, 0, 0)
    assert 16 <= counts.warps <= 64


@pytest.mark.parametrize("jump", JUMPS)
def test_a_known_loop_gives_known_counts(jump):
    counts = count(jump)
    assert counts.opcodes.total() == 10
    assert counts.prologue == 2
    assert counts.stores == (16,)
    assert counts.resources == (54, 0, 0, 0)
    expected = {"issue": 10, "imad": 2, "fma": 5, "alu": 3, "xu": 1, "uniform": 1, "lsu": 4, "control": 1}
    assert {pipe: passes * 4 for pipe, passes in counts.pipes.items() if passes} == expected


def test_resident_warps_follow_registers():
    """54 registers are 1792 a warp, 7168 a block of four: nine blocks. 255 are 8192: two."""
    assert count().warps == 36
    assert count(**{"REG:54": "REG:255"}).warps == 8
    assert count(**{"REG:54": "REG:16"}).warps == 64


def test_a_loop_within_the_loop_is_not_taken_for_it():
    """Around the stores, and the innermost of those: a jump that skips the store, and one around everything."""
    inner = text(**{"@P1 SEL R7, R7, R8, P2": "@P1 BRA 0x30"})
    assert len(sass.loop(sass.parse(inner))) == 10
    outer = text(**{"NOP;": "@P3 BRA 0x0;"})
    assert len(sass.loop(sass.parse(outer))) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FFMA2": "FROB.F32"}, r"no pipe is known for FROB\.F32"),
        ({"@P0 BRA 0x20": "@P0 BRA 0xc0"}, "no loop around the 1 stores"),
        ({"STG.E.128": "LDG.E.128"}, "no loop around the 0 stores"),
        ({"@P0 BRA 0x20": "@P0 BRA 0xb0"}, "no loop"),
        ({"@P0 BRA 0x20": "BRX R4 -0x20"}, "no loop"),
        ({"@P0 BRA 0x20": "@P0 BRA `(.L_x_7)"}, "no target known"),
        ({"STG.E.128": "STG.E.64"}, "the loop writes 8 bytes"),
        ({"REG:54": "54 registers"}, "resource usage of one kernel, found 0"),
    ],
)
def test_what_the_counter_does_not_understand_it_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        count(**changes)


def test_nothing_and_two_functions_are_refused():
    with pytest.raises(ValueError, match="no instruction"):
        sass.parse("code for sm_90a")
    with pytest.raises(ValueError, match="more than one function"):
        sass.parse(text() + text())


def test_predictions_are_the_slowest_part():
    """By hand: memory takes 4 bytes an element; a fast one waits for 3 special functions in 4 elements."""
    h100 = next(device for device in model.DEVICES if device.name == "H100-SXM")
    made = model.predict(count(), h100)
    assert (made.bound, made.share, made.elements_per_ns) == ("memory", 1.0, 3350 / 4)
    slow = count(**{"MUFU.RSQ R3, R3 ;": "MUFU.RSQ R3, R3 ; /*0082*/ MUFU.EX2 R3, R3 ; /*0084*/ MUFU.RCP R3, R3 ;"})
    made = model.predict(slow, h100._replace(gigabytes=1e6))
    assert made.bound == "xu"
    assert math.isclose(made.elements_per_ns, 132 * 1.98 * 16 / 0.75)
    assert math.isclose(made.share, made.elements_per_ns * 4 / 1e6)


def test_shared_integer_pipes_are_slower():
    """Ten logic operations and two passes of a product for four elements, 64 a clock, apart and together."""
    h100 = next(device for device in model.DEVICES if device.name == "H100-SXM")._replace(gigabytes=1e6)
    logic = " ".join(f"/*00{address:x}*/ LOP3.LUT R7, R7, R8, R9, 0x96, !PT ;" for address in range(0x82, 0x89))
    counts = count(**{"MUFU.RSQ R3, R3 ;": logic})
    apart, together = (model.predict(counts, h100, shared=shared) for shared in (False, True))
    assert (apart.bound, together.bound) == ("alu", "alu+imad")
    assert math.isclose(apart.elements_per_ns / together.elements_per_ns, 12 / 10)


def test_the_report_without_a_gpu(tmp_path):
    """The script itself, over two laws so that it is quick; it says that nothing was measured."""
    words = (
        "import sys, torch; from bench import gpu_model as m;"
        "m.DTYPES = (torch.float32,);"
        "m.explanations = lambda found: [];"
        "m.LAWS = {kind: m.LAWS[kind] for kind in m.TARGETS};"
        f"sys.argv = ['gpu_model', '--arch', '90', '--json', {str(tmp_path / 'model.json')!r}];"
        "raise SystemExit(m.main())"
    )
    root = benches.FOLDER.parent
    done = subprocess.run([sys.executable, "-c", words], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "modelled" in done.stdout
    assert "not measured" in done.stdout
    assert done.stdout.count(": met") == 3
    assert '"modelled, not measured"' in (tmp_path / "model.json").read_text()


def test_a_target_that_is_missed_shows(monkeypatch, capsys):
    """The twin: with a target of 14 for uniform, the script says so and fails."""
    monkeypatch.setattr(model, "TARGETS", {"uniform": 14})
    monkeypatch.setattr(model, "LAWS", {"uniform": model.LAWS["uniform"]})
    monkeypatch.setattr(model, "DTYPES", (torch.float32,))
    monkeypatch.setattr(model, "explanations", lambda found: [])
    monkeypatch.setattr(sys, "argv", ["gpu_model", "--arch", "90"])
    assert model.main() == 1
    assert "missed" in capsys.readouterr().out


def test_columns_of_a_thread_are_what_is_stored():
    """Each store takes all that a thread holds side by side, at most 16 bytes."""
    for dtype in (torch.float32, torch.float8_e4m3fn):
        counts = model.count(model.variants(dtype)["uniform"], H100)
        assert set(counts.stores) == {gpu.columns_a_thread(dtype) * dtype.itemsize}
