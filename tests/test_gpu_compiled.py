"""The proof for GPUs without one: the PTX that Triton makes of every kernel, run on the machine of `ptx.py`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from common import CASE_IDS, CASES, FEWER_CASES, LAWS, name_of, same_bits, slow_unless

pytest.importorskip("triton")

import emulated
import ptx
from emulated import (
    FAR,
    POISON,
    Edit,
    Field,
    Gpu,
    check,
    check_each,
    check_tiles_and_ends,
    draw_of,
    filling,
    names,
    reference,
    tile_of,
)  # fmt: skip

from fastinit.kernels.contract import block_size, has_each, lanes_in_block, width_of
from fastinit.kernels.dtypes import FORMATS
from fastinit.kernels.gpu import engine as gpu, primitives
from fastinit.kernels.runs import row_major
from fastinit.laws import Law, Normal, TruncNormal

device = emulated.device  # a fixture
pytestmark = pytest.mark.skipif(primitives.INTERPRETED, reason="Triton compiles nothing while it interprets")

COMMON = (torch.float32, torch.bfloat16)

# --- every law in every dtype ------------------------------------------------------------------

# All of them with `-m slow`: compiling a kernel takes seconds.
every_case = pytest.mark.parametrize(("law_name", "law", "dtype"), FEWER_CASES, ids=CASE_IDS)
ONE_OF_A_KIND = {(law.parameters(dtype)[0], dtype): (name, law, dtype) for name, law, dtype in CASES}


@every_case
def test_tiles_between_a_head_and_a_tail(device, law_name, law, dtype):
    """Two programs, of three tiles and of two; what is left goes to the other kernel."""
    check_tiles_and_ends(device, law, dtype)
    assert device.launches[0] == ("fill_tiles", 2)
    assert names(device)[1:] == ["fill_runs", "fill_runs"]


@every_case
def test_tiles_where_counters_carry(device, law_name, law, dtype):
    """The counter's low word overflows from one tile to the next; and the last tile that an index can have."""
    tile, carry = tile_of(device, law, dtype), lanes_in_block(width_of(law.parameters(dtype)[0], dtype)) << 32
    check(device, law, dtype, (3 * tile,), carry - 2 * tile)
    check(device, law, dtype, (tile,), 2**63 - tile)
    assert names(device) == ["fill_tiles", "fill_tiles"]


@every_case
def test_runs_of_neighbours(device, law_name, law, dtype):
    """Contiguous, strided, and one element; the first anywhere in a block, and in a block whose counter carries."""
    carry = lanes_in_block(width_of(law.parameters(dtype)[0], dtype)) << 32
    check(device, law, dtype, (900,), FAR)
    check(device, law, dtype, (130,), 2**62 - 3, strides=(3,))
    check(device, law, dtype, (130,), carry - 65, strides=(2,))
    check(device, law, dtype, (1,), 37, strides=(5,))
    assert set(names(device)) == {"fill_runs"}


@every_case
def test_a_box_of_a_global_tensor(device, law_name, law, dtype):
    """Three dimensions around a run, in memory of another order and with gaps."""
    check(device, law, dtype, (4, 3, 5, 70), FAR, (1, 284, 852, 4), row_major((9, 6, 11, 120)))
    assert names(device) == ["fill_runs"]


EACH = [case for case in CASES if has_each(case[1].parameters(case[2])[0])]
EACH_CASES = slow_unless(lambda case: case[0] in ("normal", "bernoulli") and case[2] in COMMON, EACH)


@pytest.mark.parametrize(("law_name", "law", "dtype"), EACH_CASES, ids=[f"{c[0]}-{name_of(c[2])}" for c in EACH])
def test_parameters_for_each_element(device, law_name, law, dtype):
    """Contiguous, strided, of either precision, with a parameter that all share; a row is a launch of its own."""
    check_each(device, law, dtype, (900,), FAR)
    check_each(device, law, dtype, (130,), 2**62 - 3, strides=(3,), wide=True)
    check_each(device, law, dtype, (3, 70), 37, strides=(1, 4))
    check_each(device, law, dtype, (1,), 37)
    assert set(names(device)) == {"fill_each"}
    assert len(device.launches) == 1 + 1 + 3 + 1


@pytest.mark.parametrize("law_name", ["uniform", "central"])
@pytest.mark.parametrize("current", [0, 1])
def test_a_plan_fills_what_the_engine_fills(device, law_name, current, monkeypatch):
    """The short way: contiguous memory from the stream's first element on, of any size and at any address."""
    made_current, law, dtype = [], LAWS[law_name], torch.bfloat16
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    described = contextlib.nullcontext(device.described())
    monkeypatch.setattr(gpu, "made_current", lambda device: made_current.append(device) or described)
    write = gpu.GpuEngine().plan(torch.device("cuda", 0), dtype, law.parameters(dtype))
    made_current.clear()
    tile = tile_of(device, law, dtype)
    for count, aligned in ((1, 0), (tile - 1, 0), (tile, 0), (3 * tile + 5, 0), (3 * tile + 5, 1)):
        field = Field(device, dtype, (count,), None, aligned)
        write(field.out.data_ptr(), count, 2**64 - 59, 2**63 + 11)
        field.check(reference(law, dtype, (count,), 0))
    assert names(device) == ["fill_runs", "fill_runs", "fill_tiles", "fill_tiles", "fill_runs", "fill_runs"]
    assert len(made_current) == 5 * current  # only where another device is the current one


def test_more_dimensions_than_a_kernel_takes(device):
    check(device, LAWS["normal"], torch.float32, (3, 2, 2, 2, 9), 5, (1, 300, 3, 60, 6), row_major((4, 3, 5, 3, 11)))
    assert names(device) == len(device.launches) * ["fill_runs"] != ["fill_runs"]


@pytest.mark.parametrize("arch", [80, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "dtype"), [p for p in ONE_OF_A_KIND if p[1] in COMMON], ids=str)
def test_other_architectures(device, kind, dtype, arch):
    device.arch = arch
    check_tiles_and_ends(device, *ONE_OF_A_KIND[kind, dtype][1:])


@pytest.mark.parametrize("arch", [80, 100])
def test_a_box_on_other_architectures(device, arch):
    device.arch = arch
    check(device, LAWS["normal"], torch.bfloat16, (4, 3, 5, 70), FAR, (1, 284, 852, 4), row_major((9, 6, 11, 120)))


@pytest.mark.parametrize("dtype", FORMATS, ids=name_of)
def test_errors_of_the_approximate_root_do_not_show(device, dtype):
    for device.errors in range(1, 6):
        check(device, LAWS["normal"], dtype, (4 * tile_of(device, LAWS["normal"], dtype),), 0)
    assert set(names(device)) == {"fill_tiles"}


# --- far apart ---------------------------------------------------------------------------------

BASE = 2**47  # where nothing needs to be, as memory is made of stretches


def stretch(device: Gpu, address: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.full(size, POISON, np.uint8)
    return data, device.memory.add(data, address)


def check_stretches(found: Sequence[tuple[np.ndarray, np.ndarray]], expected: torch.Tensor) -> None:
    assert all((writes == 1).all() for _, writes in found)
    got = torch.from_numpy(np.concatenate([data for data, _ in found])).view(expected.dtype)
    assert same_bits(got, expected)


def fill_far_apart(device: Gpu, outer: list[tuple[int, int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three neighbours 2^33 bytes apart, which is more than 32 bits can tell."""
    starts = [k * jump for count, _, jump in outer for k in range(count)] or [0]
    found = [stretch(device, BASE + start + (k << 33), 4) for start in starts for k in range(3)]
    filling(device, LAWS["normal"], torch.float32).runs(BASE, FAR, 3, 1 << 33, outer)
    return found


@pytest.mark.parametrize("outer", [[], [(2, 100, 1 << 35)]], ids=["alone", "two runs"])
def test_elements_far_apart(device, outer):
    found = fill_far_apart(device, outer)
    shape, steps = ((2, 3), (100, 1)) if outer else ((3,), None)
    check_stretches(found, reference(LAWS["normal"], torch.float32, shape, FAR, steps).flatten())


def fill_many_tiles(device: Gpu) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """A tensor of 2^35 bytes, of which a few programs are run; and how many elements a tile has."""
    law, dtype = LAWS["normal"], torch.float32
    tile, device.multiprocessors = tile_of(device, law, dtype), 2**40
    count = (1 << 33) // tile
    device.programs = [0, count // 3, count - 1]
    found = [stretch(device, BASE + 4 * tile * program, 4 * tile) for program in device.programs]
    filling(device, law, dtype).tiles(BASE, FAR // tile, count)
    return found, tile


def test_many_tiles(device):
    found, tile = fill_many_tiles(device)
    first = FAR // tile * tile
    parts = [reference(LAWS["normal"], torch.float32, (tile,), first + program * tile) for program in device.programs]
    check_stretches(found, torch.cat(parts))


def test_as_many_rows_as_a_launch_may_have(device):
    """Their numbers are 32 bits wide in the last program too."""
    law, dtype = LAWS["uniform"], torch.bfloat16
    block = block_size(width_of("uniform", dtype))
    length = gpu.MOST_ROWS * block - 5
    rows = gpu.tile_rows(filling(device, law, dtype).variant(0), device.described().target)
    device.programs = [last := (gpu.MOST_ROWS - 1) // rows]
    start = last * rows * block
    found = stretch(device, BASE + 2 * start, 2 * (length - start))
    filling(device, law, dtype).runs(BASE, 0, length, 2, [])
    assert device.launches == [("fill_runs", last + 1)]
    check_stretches([found], reference(law, dtype, (length - start,), start))


# --- twins: kernels that are wrong -------------------------------------------------------------


def changed(pattern: str, replacement: str, count: int = 0) -> Edit:
    """Edits the PTX, in which the pattern must be."""

    def edit(text: str) -> str:
        edited, found = re.subn(pattern, replacement, text, count=count)
        assert found, pattern
        return edited

    return edit


SWAPPED_WORD = changed(r"mov\.b64 \{(%r\d+), (%r\d+)\}, p;", r"mov.b64 {\2, \1}, p;", count=1)
SWAPPED_STORE = changed(r"(st\.global\.v4\.b32 .*\{) (%r\d+), (%r\d+)", r"\1 \3, \2", count=1)
# The last one, as the pattern begins greedily.
SPLIT_FMA = changed(
    r"(?s)\A(.*)fma\.rn\.f(32|64) \t(%rd?\d+), ([^;]*), (%rd?\d+);",
    r"\1{.reg .b\2 product; mul.rn.f\2 product, \4; add.rn.f\2 \3, product, \5;}",
)
# By one part in 32, where the PTX ISA promises one in 2^22.9.
COARSE_ROOT = changed(r"(rsqrt\.approx\.ftz\.f32 (%r\d+), %r\d+;)", r"\1 mul.rn.f32 \2, \2, 0f3F840000;")
SHORT_PRODUCTS = changed(
    r"(mul\.lo\.s64 \t(%rd\d+), [^;]*;)", r"{.reg .b32 low; \1 cvt.u32.u64 low, \2; cvt.s64.s32 \2, low;}"
)
SHORT_SHIFTS = changed(
    r"(shl\.b64 \t(%rd\d+), [^;]*;)", r"{.reg .b32 low; \1 cvt.u32.u64 low, \2; cvt.s64.s32 \2, low;}"
)


def wrong(device: Gpu, law: Law, dtype: torch.dtype, count: int, edit: Edit) -> bool:
    """Whether an edited kernel gives other bits, though it writes where it should."""
    device.edit = edit
    field = Field(device, dtype, (count,), None, 0)
    gpu.GpuEngine().fill(field.out, draw_of(law, dtype), 0, None)
    field.check(field.out)
    return not same_bits(field.out, reference(law, dtype, (count,), 0))


@pytest.mark.parametrize("law_name", ["uniform", "normal", "central", "wide", "narrow", "tail"])
@pytest.mark.parametrize("edit", [SWAPPED_WORD, SWAPPED_STORE], ids=["word", "store"])
def test_swapped_words_are_seen(device, law_name, edit):
    law = LAWS[law_name]
    assert wrong(device, law, torch.float32, 2 * tile_of(device, law, torch.float32), edit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize(
    "law",
    [
        Normal(0.1, 0.3),
        TruncNormal(0.1, 0.3, -0.5, 0.7),
        TruncNormal(0.1, 0.3, -1.1, 1.5),
        TruncNormal(0.1, 100.0, -2.0, 2.3),
        LAWS["tail"],
    ],
    ids=str,
)
def test_a_split_fma_is_seen(device, law, dtype):
    """One instruction that rounds twice: the least that contraction, or the lack of it, can do."""
    assert wrong(device, law, dtype, 2 * tile_of(device, law, dtype), SPLIT_FMA)


def test_a_coarse_root_is_seen(device):
    """So that the errors above are near enough to what matters."""
    law = LAWS["normal"]
    assert wrong(device, law, torch.float32, tile_of(device, law, torch.float32), COARSE_ROOT)


def test_offsets_of_32_bits_are_seen(device):
    device.edit = SHORT_PRODUCTS
    for outer in ([], [(2, 100, 1 << 35)]):
        with pytest.raises(ptx.PtxError, match="out of bounds"):
            fill_far_apart(device, outer)
    device.edit = SHORT_SHIFTS
    with pytest.raises(ptx.PtxError, match="out of bounds"):
        fill_many_tiles(device)


def test_a_store_without_its_mask_is_seen(device):
    device.edit = changed(r"@%p\d+ (st\.global)", r"\1")
    with pytest.raises(ptx.PtxError, match="out of bounds"):
        check(device, LAWS["uniform"], torch.float32, (900,), FAR)


def test_a_kernel_that_writes_too_little_is_seen(device):
    device.programs = [0]
    with pytest.raises(AssertionError):
        check(device, LAWS["uniform"], torch.float32, (900,), 0)
