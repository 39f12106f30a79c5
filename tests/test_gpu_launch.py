"""Launches rehearsed: what the GPU engine, Triton's launcher and Triton's driver tell libcuda. See rehearsal.py."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import pytest
import torch
from common import LAWS, bits, name_of

pytest.importorskip("triton.backends.nvidia.driver", reason="needs Triton")

import rehearsal
from rehearsal import PLACES, STREAM, Fill, Launched, Memory, Rehearsal
from triton.backends.compiler import GPUTarget

from fastinit.kernels.contract import SAMPLERS, Draw, block_size, width_of
from fastinit.kernels.dtypes import FORMATS
from fastinit.kernels.gpu import engine as gpu
from fastinit.kernels.plain.reference import ReferenceEngine
from fastinit.kernels.runs import row_major, runs_of
from fastinit.laws import Normal, Uniform, Words, examples

H100 = GPUTarget("cuda", 90, 32)
ADDRESS = 0x7F3A_0000_0000  # of memory that does not exist
NORMAL = Draw("normal", (0.25, 2.0), 2**64 - 59, 2**63 + 11)
SCRATCH = (bytes(8),) * rehearsal.SCRATCH  # pointers to nothing
SCRATCH_TYPES = ("u64",) * len(SCRATCH)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler, as Triton itself does to launch")
    with rehearsal.stage(compiler, tmp_path_factory.mktemp("stage")) as process:
        yield process


@pytest.fixture
def rehearse(stage: Executor) -> Callable[..., Rehearsal]:
    return lambda *fills, **options: stage.submit(rehearsal.rehearse, fills, **options).result(timeout=300)


def flat(dtype: torch.dtype, count: int, address: int = ADDRESS, index: int = 0) -> Memory:
    return Memory(dtype, (count,), (1,), address, index)


def tile_of(draw: Draw, dtype: torch.dtype) -> int:
    """How many elements a program of the contiguous kernel writes at a time."""
    variant = gpu.Variant(draw.kind, dtype, len(draw.parameters), None)
    return gpu.tile_rows(variant, H100) * block_size(width_of(draw.kind, dtype))


def packed(forms: str, *values: float) -> tuple[bytes, ...]:
    return tuple(struct.pack(f"<{form}", value) for form, value in zip(forms, values, strict=True))


# --- the arguments -----------------------------------------------------------------------------


def test_arguments_of_the_run_kernel_arrive_as_they_were_meant(rehearse):
    """Every byte, at the ends of their ranges; the draw's 64-bit numbers keep all their bits."""
    first = 2**62 + 2**40 + 1
    launched = rehearse(Fill(flat(torch.float32, 1000, ADDRESS + 4), NORMAL, first)).launches
    assert [launch.types for launch in launched] == [
        ("u64",) * 4 + ("u32",) * 2 + ("u64",) * 2 + ("f32",) * 2 + SCRATCH_TYPES
    ]
    rows = (first % 64 + 1000 + 63) // 64
    place = packed("qqqqii", ADDRESS + 4, first, 1000, 1, rows, rows)
    assert launched[0].values == place + packed("QQff", 2**64 - 59, 2**63 + 11, 0.25, 2.0) + SCRATCH
    assert launched[0].grid == (math.ceil(rows / 8), 1, 1)


def test_arguments_of_the_tile_kernel_arrive_as_they_were_meant(rehearse):
    tile = tile_of(NORMAL, torch.float32)
    first, count = 2**62 - 7, 100 * tile
    head, size = -first % tile, 4
    address = ADDRESS + 16 - head * size % 16  # so that the first whole tile is aligned
    tiles, *ends = rehearse(Fill(flat(torch.float32, count, address), NORMAL, first)).launches
    assert tiles.types == ("u64",) * 6 + ("f32",) * 2 + SCRATCH_TYPES
    place = packed("qqqq", address + head * size, (first + head) // tile, 99, 99)
    assert tiles.values == place + packed("QQff", 2**64 - 59, 2**63 + 11, 0.25, 2.0) + SCRATCH
    assert tiles.grid == (99, 1, 1)
    assert [launch.place["length"] for launch in ends] == [head, tile - head]


def test_arguments_of_the_kernel_for_runs_in_three_dimensions_arrive_as_they_were_meant(rehearse):
    """A corner of a global tensor, transposed in memory: sizes of 32 bits, steps and strides of 64, row by row."""
    shape, local = (2**20, 2**21, 2**10), (3, 5, 7)
    steps, strides = row_major(shape), (1, 3 * 2**33, 3)
    first = 17 * steps[0] + 2**20 * steps[1] + 1
    [launch] = rehearse(Fill(Memory(torch.float32, local, strides, ADDRESS), NORMAL, first, steps)).launches
    assert launch.types == ("u64",) * 4 + ("u32",) * 5 + ("u64",) * 8 + ("f32",) * 2 + SCRATCH_TYPES
    place = packed("qqqqii", ADDRESS, first, 7, 3, 3 * 5 * 2, 2)
    around = packed("iii", 1, 3, 5) + packed("qqq", 0, *steps[:2]) + packed("qqq", 0, *strides[:2])
    assert launch.values == place + around + packed("QQff", 2**64 - 59, 2**63 + 11, 0.25, 2.0) + SCRATCH


SEEDS = (0, 1, 16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 11, 2**64 - 1)


def test_all_bits_of_seed_and_stream_arrive(rehearse):
    fills = [
        Fill(flat(torch.float32, count), NORMAL._replace(seed=seed, stream_id=id))
        for count in (100, 2**20)
        for seed, id in zip(SEEDS, reversed(SEEDS), strict=True)
    ]
    launched = rehearse(*fills).launches
    assert [launch.kernel for launch in launched] == ["fill_runs"] * len(SEEDS) + ["fill_tiles"] * len(SEEDS)
    for fill, launch in zip(fills, launched, strict=True):
        place = len(PLACES[launch.kernel])
        assert launch.values[place : place + 2] == packed("QQ", fill.draw.seed, fill.draw.stream_id)


EXACT = [
    ("words", Words(), torch.int32),
    ("uniform_tiny", Uniform(0.0, 1e-38), torch.float32),
    ("normal", Normal(0.1, 1 / 3), torch.float64),
    ("central", LAWS["central"], torch.bfloat16),
    ("wide_left", LAWS["wide_left"], torch.float64),
    ("narrow", LAWS["narrow"], torch.float16),
    ("tail_left", LAWS["tail_left"], torch.float64),
]


@pytest.mark.parametrize(("law", "dtype"), [case[1:] for case in EXACT], ids=[case[0] for case in EXACT])
def test_parameters_arrive_as_the_very_numbers_of_the_law(rehearse, law, dtype):
    """float32 for the 32-bit laws, float64 unrounded for the others, a word where one is compared with words."""
    kind, parameters = law.parameters(dtype)
    real = "d" if dtype is torch.float64 else "f"
    forms = "".join("I" if isinstance(number, int) else real for number in parameters)
    [launch] = rehearse(Fill(flat(dtype, 100), Draw(kind, parameters, 1, 2))).launches
    assert launch.values[8:] == packed(forms, *parameters) + SCRATCH
    types = {"I": "u32", "f": "f32", "d": "f64"}
    assert launch.types[8:] == (*(types[form] for form in forms), *SCRATCH_TYPES)
    # Packing rounds nothing: the bytes are the law's own number.
    values = zip(forms, launch.values[8 : -len(SCRATCH)], strict=True)
    assert tuple(struct.unpack(f"<{form}", value)[0] for form, value in values) == parameters


def test_a_word_among_the_parameters_arrives_unsigned(rehearse):
    kind, (_, *others) = LAWS["central"].parameters(torch.bfloat16)
    splits = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
    fills = [Fill(flat(torch.bfloat16, 100), Draw(kind, (split, *others), 1, 2)) for split in splits]
    assert [launch.values[8] for launch in rehearse(*fills).launches] == [*packed("IIIII", *splits)]


def test_check_of_arguments_can_fail(rehearse):
    """The twin: a seed that is one off, and a seed that the kernel takes in 32 bits, are seen."""
    fill = Fill(flat(torch.float32, 100), NORMAL)
    expected = rehearse(fill).launches[0]
    assert rehearse(fill._replace(draw=NORMAL._replace(seed=NORMAL.seed + 1))).launches[0].values != expected.values
    narrowed = rehearse(fill, types={"seed": "i32"}).launches[0]
    assert narrowed.types != expected.types
    assert narrowed.values[6] == expected.values[6][:4]


# --- the launch --------------------------------------------------------------------------------


def test_blocks_are_of_128_threads_and_share_nothing(rehearse):
    transposed = Memory.of(torch.empty(64, 96, device="meta").T, ADDRESS)
    launched = rehearse(*(Fill(out, NORMAL) for out in (flat(torch.float32, 2**20 + 1), transposed))).launches
    assert [launch.kernel for launch in launched] == ["fill_tiles", "fill_runs", "fill_runs"]
    for launch in launched:
        threads = 32 * gpu.launch_of(H100).warps
        assert (launch.block, launch.shared, launch.attributes) == ((threads, 1, 1), 0, 0)


def test_launches_go_to_the_tensors_device_and_its_current_stream(rehearse):
    heard = rehearse(*(Fill(flat(torch.float32, 2**20 + 1, index=index), NORMAL) for index in (5, 0, 3)))
    assert [(launch.device, launch.stream) for launch in heard.launches] == [
        (index, STREAM + index) for index in (5, 5, 0, 0, 3, 3)
    ]
    # Each in the device's guard, which is left for the device that was current before.
    guards = [call for call in heard.calls if call.startswith("device") or call == "cuLaunchKernelEx"]
    inside = ["cuLaunchKernelEx"] * 2
    assert guards == ["device 5", *inside, "device 0", "device 0", *inside, "device 0", "device 3", *inside, "device 0"]


def test_a_fill_waits_for_nothing_and_asks_the_driver_for_launches_only(rehearse):
    """No synchronisation, no copy, no allocation; nothing but the current context and the launches, once loaded."""
    fill = Fill(flat(torch.float32, 2**20 + 1, index=2), NORMAL)
    heard = rehearse(fill, fill)
    last = len(heard.calls) - 1 - heard.calls[::-1].index("device 2")
    assert heard.calls[last:] == ["device 2", *["cuCtxGetCurrent", "cuLaunchKernelEx"] * 2, "device 0"]
    assert not [call for call in heard.calls if "Sync" in call or "Mem" in call or "Pointer" in call]


# --- one kernel for all values -----------------------------------------------------------------


def test_no_value_asks_for_another_kernel(rehearse):
    """Seeds, streams, first elements, counts, addresses and parameters that Triton's own jit would specialise on."""
    values = (1, 15, 16, 2**31 - 1, 2**31, 2**32, 2**40 + 1, 2**62)
    draws = [Draw("normal", numbers, value, value) for value in values for numbers in ((0.0, 1.0), (1.0, 16.0))]
    fills = [Fill(flat(torch.float32, 2**20, ADDRESS + 4 * k), draw, k) for k, draw in enumerate(draws)]
    fills += [Fill(flat(torch.float32, 100), NORMAL, value) for value in values]
    fills += [Fill(flat(torch.float32, value), NORMAL) for value in values]
    for shape in ((2, 3), (16, 16), (1, 7), (2**15, 2**15), (2**35, 2)):
        for strides in ((64, 1), (2**18, 2), (1, shape[0])):
            fills += [Fill(Memory(torch.float32, shape, strides, ADDRESS + 4 * k), NORMAL, k) for k in (0, 1)]
    heard = rehearse(*fills)
    assert heard.calls.count("triton.compile") == heard.calls.count("cuModuleLoadData") == 3
    kernels = {(launch.kernel, launch.types) for launch in heard.launches}
    assert len(kernels) == 3


def test_a_device_loads_a_kernel_once(rehearse):
    fills = [Fill(flat(torch.float32, 100, index=index), NORMAL) for index in (0, 1, 0, 1, 1)]
    assert rehearse(*fills).calls.count("cuModuleLoadData") == 2


def test_kernels_are_no_more_than_laws_times_dtypes_times_three(monkeypatch):
    """Whatever the parameters and the memory: whole tiles, one run, and runs in up to three dimensions."""
    asked: set[gpu.Variant] = set()

    def loaded(variant: gpu.Variant, device: gpu.Device):
        asked.add(variant)
        return defaultdict(lambda: lambda *_: None), ()  # whatever the grid, nothing

    monkeypatch.setattr(gpu, "loaded", loaded)
    device = gpu.Device("cuda", 0, H100, 132)
    monkeypatch.setattr(gpu, "made_current", lambda _: contextlib.nullcontext(device))
    odd = [Uniform(0.0, 1e-38), Uniform(0.0, 1e-308), Uniform(2.0, 2.0), Normal(0.0, 0.0)]
    laws = [(law, dtype) for law in odd for dtype in FORMATS] + [(law, dtype) for _, law, dtype in examples()]
    shapes = ((), (1,), (5,), (2**18 + 1,), (3, 4), (2, 3, 4), (5, 1, 3, 2, 2), (2, 2, 2, 2, 2, 2))
    for law, dtype in laws:
        draw = Draw(*law.parameters(dtype), 1, 2)
        views = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
        views += [view.permute(tuple(reversed(range(view.ndim)))) for view in views]
        for view in views:
            for around in (1, 2):  # a whole tensor, and one in the middle of a larger one
                steps = row_major([around * size for size in view.shape])
                gpu.GpuEngine().fill(Memory.of(view, ADDRESS), draw, 0, steps)
    kinds = {variant.kind for variant in asked} - {"words"}
    assert kinds == SAMPLERS.keys() - {"words"}
    assert len({(variant.kind, variant.dtype, variant.outer) for variant in asked}) == len(asked)
    assert {variant.outer for variant in asked} == {None, 0, 3}
    assert len(asked) <= len(kinds) * len(FORMATS) * 3 + 3


# --- what is covered ---------------------------------------------------------------------------

Box = tuple[tuple[int, int], ...]  # a start and a size for each dimension


def box_of(launch: Launched, fill: Fill) -> Box:
    """Which elements a launch writes, in the joined dimensions of its tensor; asserts that they lie where they should.

    From the arguments alone, as the kernels are documented to read them. The programs must be as many as it takes,
    and all numbers in the range of the types that the kernel counts in.
    """
    dtype, size, draw = fill.out.dtype, fill.out.dtype.itemsize, fill.draw
    length, stride, outer = runs_of(fill.out.shape, fill.out.stride(), fill.out.element_size(), fill.steps)
    dimensions = [*outer, (length, 1, stride)]
    where, (programs, *others) = launch.place, launch.grid
    assert others == [1, 1]
    if launch.kernel == "fill_tiles":
        assert where["address"] % 16 == 0
        assert programs == where["programs"] <= where["tiles"]
        assert programs < 2**31
        tile = tile_of(draw, dtype)
        first, extents = where["tile"] * tile, {1: where["tiles"] * tile}
    else:
        first, extents = where["first"], {1: where["length"]}
        extents |= dict(zip(where["index_steps"], where["sizes"], strict=True))
        block = block_size(width_of(draw.kind, dtype))
        begin = block - 1 if where["sizes"] else first % block
        assert where["rows_a_run"] >= math.ceil((begin + where["length"]) / block)
        assert where["rows"] == math.prod(where["sizes"]) * where["rows_a_run"]
        rows = gpu.tile_rows(gpu.Variant(draw.kind, dtype, len(draw.parameters), 0), H100)
        assert programs == math.ceil(where["rows"] / rows)
        assert programs * rows <= 2**31
        strides = {step: jump for _, step, jump in dimensions}
        assert where["stride"] * size == stride
        for step, jump in zip(where["index_steps"], where["strides"], strict=True):
            assert extents[step] == 1 or jump * size == strides[step]
    box, address, left = [], fill.out.address, first - fill.first
    for _, step, jump in dimensions:
        start, left = divmod(left, step)
        address += start * jump
        box.append((start, extents.get(step, 1)))
    assert left == 0
    assert where["address"] == address
    return tuple(box)


def assert_covered_once(launches: list[Launched], fill: Fill) -> None:
    """No two launches write the same element, and together they write as many as there are."""
    length, _, outer = runs_of(fill.out.shape, fill.out.stride(), fill.out.element_size(), fill.steps)
    sizes = [*(size for size, _, _ in outer), length]
    boxes = [box_of(launch, fill) for launch in launches]
    assert all(start + extent <= size for box in boxes for (start, extent), size in zip(box, sizes, strict=True))
    assert sum(math.prod(extent for _, extent in box) for box in boxes) == math.prod(sizes)
    for k, one in enumerate(boxes):
        for other in boxes[:k]:
            pairs = zip(one, other, strict=True)
            assert any(a + size_a <= b or b + size_b <= a for (a, size_a), (b, size_b) in pairs)


FLAT = [
    (torch.float32, 5 * 10**9, 0, 0),
    (torch.float32, 5 * 10**9, 1, 4),  # the same place in a 16-byte word: an odd head
    (torch.float32, 5 * 10**9, 1, 0),  # never aligned: one kernel for all of it
    (torch.bfloat16, 2**40 + 5, 2**62 + 3, 6),
    (torch.bfloat16, 2**40 + 5, 2**40 + 1, 0),  # never aligned, and more rows than 32 bits count
    (torch.float64, 2**31 + 1, 2**32 - 1, 8),
    (torch.float8_e4m3fn, 2**37 + 11, 2**33 + 5, 5),
    (torch.float32, 2**16 - 1, 3, 12),
    (torch.float32, 2**16 + 11, 64, 0),
    (torch.float32, 1, 2**62, 0),
]


@pytest.mark.parametrize(
    ("dtype", "count", "first", "offset"), FLAT, ids=[f"{name_of(case[0])}-{case[1]}-{case[2]}" for case in FLAT]
)
def test_contiguous_memory_is_covered_once(rehearse, dtype, count, first, offset):
    draw = Draw(*LAWS["uniform"].parameters(dtype), 1, 2)
    fill = Fill(flat(dtype, count, ADDRESS + offset), draw, first)
    assert_covered_once(rehearse(fill).launches, fill)


STRIDED = {
    "transposed": ((70000, 70000), (1, 70000), None, 0),
    "every other element": ((3 * 10**9,), (2,), None, 1),
    "a box of a global tensor": ((40000, 60000), (60000, 1), (2**20, 1), 2**40 + 3),
    "two long runs": ((2, 2**37), (2**40, 1), None, 0),
    "two runs with too many rows each": ((2, 2**38), (2**40, 1), None, 0),
    "more runs than rows in 32 bits": ((2**33, 3), (4, 1), None, 5),
    "few dimensions around many": ((2, 2**31, 2), (1, 8, 2), None, 0),
    "five dimensions": ((2, 3, 5, 7, 64), (6720, 1, 1344, 192, 3), None, 1),
}


@pytest.mark.parametrize(("shape", "strides", "steps", "first"), STRIDED.values(), ids=STRIDED)
def test_strided_memory_is_covered_once(rehearse, shape, strides, steps, first):
    fill = Fill(Memory(torch.float32, shape, strides, ADDRESS), Draw("normal", (0.0, 1.0), 1, 2), first, steps)
    assert_covered_once(rehearse(fill).launches, fill)


def test_check_of_coverage_can_fail(rehearse):
    """The twin: a launch too few, launches done twice, and one that went elsewhere are seen."""
    fill = Fill(flat(torch.float32, 2**20 + 1), NORMAL)
    launches = rehearse(fill).launches
    moved = launches[0]._replace(values=(struct.pack("<q", ADDRESS + 16), *launches[0].values[1:]))
    for wrong in (launches[1:], launches * 2, [moved, *launches[1:]]):
        with pytest.raises(AssertionError):
            assert_covered_once(wrong, fill)


# --- from the call to the tensor ---------------------------------------------------------------

LAYOUTS = {
    "contiguous": ((2**16 + 5001,), (1,), None, 2**33 - 5, 11),  # an odd head, and whole tiles that are aligned
    "transposed": ((70, 41), (1, 70), None, 0, 0),
    "a box of a global tensor": ((3, 30, 50), (1600, 50, 1), (10**6, 1000, 1), 2**40 + 3007, 1),
}
RUN = [
    ("normal", torch.float32),
    ("uniform_inside", torch.bfloat16),
    ("central", torch.float8_e4m3fn),
    ("narrow", torch.float64),
    ("tail", torch.float16),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "dtype"), RUN, ids=[f"{name}-{name_of(dtype)}" for name, dtype in RUN])
def test_what_the_driver_is_told_fills_the_tensor(stage, name, dtype, layout):
    """The whole way: engine, launcher, driver, and the compiled kernels run on the very bytes that arrived."""
    shape, strides, steps, first, offset = LAYOUTS[layout]
    base = torch.full(((2**16 + 6000) * dtype.itemsize,), 77, dtype=torch.uint8).view(dtype)
    before = base.clone()
    view, draw = base.as_strided(shape, strides, offset), Draw(*LAWS[name].parameters(dtype), 2**64 - 59, 2**63 + 11)
    fill = Fill(Memory.of(view, ADDRESS), draw, first, steps)
    job = stage.submit(rehearsal.perform, fill, bits(before).numpy().tobytes(), ADDRESS)
    ReferenceEngine().fill(view, draw, first, steps or row_major(shape))
    done = job.result(timeout=300)
    assert done.storage == bits(base).numpy().tobytes()
    assert sum(done.writes) == view.numel() * dtype.itemsize
    assert max(done.writes) == 1
    assert {launch.kernel for launch in done.heard.launches} >= ({"fill_tiles"} if layout == "contiguous" else set())
