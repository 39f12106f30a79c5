"""The GPU engine on a GPU: the reference's bits in any memory, in graphs, on streams. `pytest -m gpu`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import pytest
import torch
from common import CASE_IDS, CASES, FLOATS, LAWS, index_of, name_of, same_bits, watch_quick_fills

pytest.importorskip("triton", reason="needs Triton")

import fastinit
from fastinit import Stream
from fastinit.drawing import engines
from fastinit.initialisers import quick as quick_path
from fastinit.kernels.contract import Draw, has_each
from fastinit.kernels.cpu.engine import CpuEngine
from fastinit.kernels.gpu.engine import GpuEngine
from fastinit.kernels.plain.reference import ReferenceEngine
from fastinit.kernels.runs import row_major
from fastinit.laws import Law, Words

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE = "cuda"
GPU, REFERENCE, CPU = GpuEngine(), ReferenceEngine(), CpuEngine()
SEED, ID = 2**64 - 59, 2**63 + 11
STREAM = Stream(SEED, ID)
POISON = 77
LARGE = 3 * 2**16 + 77  # enough for whole tiles (gpu.TILES_FROM), with ragged ends on both sides
SIZES = (1, 1000, 2**16, LARGE)
FAR = 2**32 * 64 - 100_000  # a tensor from here on crosses the counter's low word


def draw_of(law: Law, dtype: torch.dtype) -> Draw:
    return Draw(*law.parameters(dtype), SEED, ID)


def expected(law: Law, dtype: torch.dtype, count: int, first: int = 0, engine=REFERENCE) -> torch.Tensor:
    out = torch.empty(count, dtype=dtype)
    engine.fill(out, draw_of(law, dtype), first, None)
    return out


def poisoned(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory of the device with the same bits everywhere, whatever numbers they are."""
    return torch.full((count * dtype.itemsize,), POISON, dtype=torch.uint8, device=DEVICE).view(dtype)


def untouched(memory: torch.Tensor) -> bool:
    return bool((memory.contiguous().view(torch.uint8) == POISON).all())


def needs(size: int) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < size:
        pytest.skip(f"needs {size / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} are free")


# --- bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 37, FAR, 2**62 - 300_000])
@pytest.mark.parametrize(("law_name", "law", "dtype"), CASES, ids=CASE_IDS)
def test_bits_of_the_reference(law_name, law, dtype, first):
    for count in SIZES:
        out = poisoned(count, dtype)
        GPU.fill(out, draw_of(law, dtype), first, None)
        assert same_bits(out.cpu(), expected(law, dtype, count, first)), count


@pytest.mark.parametrize(("law_name", "law", "dtype"), CASES, ids=CASE_IDS)
def test_bits_of_many_words(law_name, law, dtype):
    """Rare words (tails, seams, carries) want numbers: four million, against the CPU engine, which is quicker."""
    count = 1 << 22
    out = poisoned(count, dtype)
    GPU.fill(out, draw_of(law, dtype), 0, None)
    assert same_bits(out.cpu(), expected(law, dtype, count, engine=CPU))


def test_comparison_can_fail():
    """The twin: the last bit of one element, and another place in the stream, are seen."""
    law, dtype = LAWS["normal"], torch.float32
    out = poisoned(1000, dtype)
    GPU.fill(out, draw_of(law, dtype), 1, None)
    assert not same_bits(out.cpu(), expected(law, dtype, 1000))
    GPU.fill(out, draw_of(law, dtype), 0, None)
    out.view(torch.int32)[500] ^= 1
    assert not same_bits(out.cpu(), expected(law, dtype, 1000))


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 7, 8, 16, 33])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=name_of)
def test_odd_offsets_and_nothing_else_is_written(dtype, offset):
    law = Words() if dtype is torch.int32 else LAWS["uniform"]
    for count in SIZES:
        memory = poisoned(offset + count + 64, dtype)
        GPU.fill(memory[offset : offset + count], draw_of(law, dtype), 5, None)
        assert same_bits(memory[offset : offset + count].cpu(), expected(law, dtype, count, 5))
        assert untouched(memory[:offset])
        assert untouched(memory[offset + count :])


VIEWS = {
    "transposed": lambda memory: memory[: 300 * 500].view(500, 300).t(),
    "permuted": lambda memory: memory[: 16 * 7 * 9 * 31].view(7, 31, 16, 9).permute(2, 0, 3, 1),
    "channels_last": lambda memory: memory[: 8 * 16 * 7 * 9].view(8, 7, 9, 16).permute(0, 3, 1, 2),
    "steps": lambda memory: memory[: 400 * 400].view(400, 400)[3::2, 1:350:3],
    "five_dimensions": lambda memory: memory[: 2 * 6720].view(8, 7, 6, 5, 4, 2)[..., 1].permute(4, 2, 0, 3, 1),
    "one_column": lambda memory: memory[: 70_000 * 2].view(70_000, 2)[:, 1],
}  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("law_name", ["uniform", "normal", "wide"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_layouts(dtype, law_name, view):
    memory = poisoned(400 * 400, dtype)
    out = VIEWS[view](memory)
    GPU.fill(out, draw_of(LAWS[law_name], dtype), 11, row_major(out.shape))
    assert same_bits(out.cpu().flatten(), expected(LAWS[law_name], dtype, out.numel(), 11))
    out.copy_(poisoned(out.numel(), dtype).view(out.shape))
    assert untouched(memory)  # elsewhere


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_shards(dtype):
    """Boxes of one tensor, in turned memory too, hold what the whole one holds there."""
    shape, offset = (130, 40, 96), (17, 3, 50)
    with fastinit.use_engine("gpu"):
        whole = fastinit.normal_(torch.empty(shape, dtype=dtype, device=DEVICE), stream=STREAM)
        local = torch.empty((30, 100, 46), dtype=dtype, device=DEVICE).permute(1, 0, 2)
        box = fastinit.shard(local, shape, offset)
        fastinit.normal_(box, stream=STREAM)
    assert same_bits(local, whole[index_of(box)])
    with fastinit.use_engine("reference"):
        assert same_bits(whole.cpu(), fastinit.normal_(torch.empty(shape, dtype=dtype), stream=STREAM))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float32], ids=name_of)
@pytest.mark.parametrize("turned", [False, True], ids=["straight", "turned"])
def test_five_thousand_million_elements(dtype, turned):
    """Positions beyond 32 bits, in elements and in bytes; slices against the reference."""
    rows, columns = 50_000, 100_000
    count = rows * columns
    needs(int(1.1 * count * dtype.itemsize))
    memory = torch.empty(count, dtype=dtype, device=DEVICE)
    out = memory.view(columns, rows).t() if turned else memory.view(rows, columns)
    law = LAWS["central"]
    GPU.fill(out, draw_of(law, dtype), 3, row_major(out.shape))
    for place in (0, 2**31 - 500, 2**32 - 500, 2**32 // dtype.itemsize - 500, count - 1000):
        row, column = divmod(place, columns)
        column = min(column, columns - 1000)
        got = out[row, column : column + 1000]
        assert same_bits(got.cpu(), expected(law, dtype, 1000, 3 + row * columns + column)), place
    del out, memory
    torch.cuda.empty_cache()


# --- the device's own ways ---------------------------------------------------------------------


@pytest.mark.parametrize("count", SIZES)
def test_a_graph_is_captured_and_replayed(count):
    out = torch.empty(count, device=DEVICE)
    with fastinit.use_engine("gpu"):
        fastinit.normal_(out, stream=STREAM)  # loads the kernels
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            fastinit.normal_(out, stream=STREAM)
    wanted = out.clone()
    for _ in range(2):
        out.zero_()
        graph.replay()
        assert same_bits(out, wanted)


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device():
    out, turned = torch.empty(LARGE, device=DEVICE), torch.empty(300, 400, device=DEVICE).t()
    generator = torch.Generator(DEVICE).manual_seed(5)
    with fastinit.use_engine("gpu"):
        for _ in range(2):  # the first time loads kernels
            torch.cuda.synchronize()
            with waiting_is_an_error():
                fastinit.normal_(out, stream=STREAM)
                fastinit.normal_(turned)
                fastinit.normal_(out, generator=generator)


def test_waiting_would_be_seen():
    """The twin."""
    out = torch.empty(10, device=DEVICE)
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchronizing"):
        out.cpu()


def test_fills_run_on_the_current_stream():
    """Two streams, each slow to start: what is copied from there later has been drawn before."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    tensors = [torch.zeros(1 << 20, device=DEVICE) for _ in streams]
    torch.cuda.synchronize()
    copies = []
    with fastinit.use_engine("gpu"):
        for number in range(20):
            for k, (stream, tensor) in enumerate(zip(streams, tensors, strict=True)):
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(1_000_000)  # clock ticks
                    fastinit.normal_(tensor, stream=Stream(number, k))
                    copies.append((number, k, tensor[::1000].clone()))
    torch.cuda.synchronize()
    for number, k, copy in copies:
        wanted = fastinit.normal_(torch.empty(1 << 20), stream=Stream(number, k))[::1000]
        assert same_bits(copy.cpu(), wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    out = torch.empty(1000, device="cuda:1")
    GPU.fill(out, draw_of(LAWS["normal"], torch.float32), 0, None)
    assert torch.cuda.current_device() == 0
    assert same_bits(out.cpu(), expected(LAWS["normal"], torch.float32, 1000))
    for _ in range(2):  # the long way and the short one
        fastinit.normal_(out.zero_(), stream=STREAM)
        assert same_bits(out.cpu(), fastinit.normal_(torch.empty(1000), stream=STREAM))
    assert torch.cuda.current_device() == 0


@pytest.fixture
def quick(monkeypatch) -> list[object]:
    """The laws that took the GPU's short way, none of which is known at first."""
    monkeypatch.setattr(quick_path, "gpu_plans", {})
    return watch_quick_fills(monkeypatch, "cuda")


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "kaiming_normal_"])
def test_the_short_way_is_taken_from_the_second_call_on_and_draws_the_same(name, dtype, quick):
    function = getattr(fastinit, name)
    for count in SIZES:
        shape = (count // 7 + 1, 7)
        drawn = [function(poisoned(shape[0] * 7, dtype).view(shape), stream=STREAM) for _ in range(2)]
        assert same_bits(drawn[0].cpu(), drawn[1].cpu())
        with fastinit.use_engine("cpu"):
            assert same_bits(drawn[1].cpu(), function(torch.empty(shape, dtype=dtype), stream=STREAM))
    shapes = len(SIZES)  # each is new to those that ask for it
    assert len(quick) == (shapes if name in ("xavier_uniform_", "kaiming_normal_") else 2 * shapes - 1)


def test_the_short_way_has_the_guards_and_side_effects_of_the_long_one(quick):
    weight = torch.nn.Parameter(torch.empty(64, 3, device=DEVICE))
    fastinit.normal_(weight)
    for advanced in range(1, 4):
        torch.manual_seed(advanced)
        version = weight._version
        fastinit.normal_(weight)
        assert weight._version == version + 1
        torch.manual_seed(advanced)
        assert same_bits(weight.detach().cpu(), fastinit.normal_(torch.empty(64, 3)))
    assert len(quick) == 3
    own = torch.Generator(DEVICE).manual_seed(3)
    for _ in range(2):  # another device's generator takes the long way
        fastinit.normal_(weight, generator=own)
    fastinit.normal_(weight.t())
    fastinit.normal_(weight[:, 1])
    fastinit.normal_(weight, fast=True)
    fastinit.flag(weight, False)
    fastinit.normal_(weight)
    with fastinit.use_engine("reference"), contextlib.suppress(RuntimeError):
        fastinit.normal_(weight)
    assert len(quick) == 3
    assert fastinit.normal_(torch.empty(0, 3, device=DEVICE)).numel() == 0


def test_who_was_not_found_right_has_no_short_way(quick, monkeypatch):
    """Nor one whose trial was put off."""
    monkeypatch.setattr(engines, "trials", {})
    monkeypatch.setattr(engines, "capturing", lambda device: True)
    for _ in range(2):
        fastinit.normal_(torch.empty(9, device=DEVICE))
    assert quick_path.gpu_plans == {}
    assert not quick


def test_a_gpu_tensor_is_drawn_by_the_gpu_engine():
    tensor = torch.empty(1000, device=DEVICE)
    for fast in (None, True):
        engine = engines.choose(tensor.device, tensor.dtype, bool(fast))
        assert (engine.name, engine.compiled) == ("gpu", True)
    drawn = fastinit.normal_(tensor, stream=STREAM, fast=True)
    assert drawn is tensor
    assert same_bits(tensor.cpu(), fastinit.normal_(torch.empty(1000), stream=STREAM))


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "kaiming_normal_"])
def test_public_functions_draw_the_same_on_cpu_and_gpu(name):
    function = getattr(fastinit, name)
    for stream in (None, Stream(5)):
        drawn = []
        for device in ("cpu", DEVICE):
            torch.manual_seed(3)
            with contextlib.nullcontext() if device == "cpu" else fastinit.use_engine("gpu"):
                drawn.append(function(torch.empty(300, 500, device=device), stream=stream).cpu())
        assert same_bits(*drawn)


# --- parameters for each element, permutations, categories -------------------------------------

BY_ELEMENT = [(name, law, dtype) for name, law, dtype in CASES if has_each(law.parameters(dtype)[0])]


@pytest.mark.parametrize("shape", [(LARGE,), (37, 53), ()], ids=str)
@pytest.mark.parametrize(("law_name", "law", "dtype"), BY_ELEMENT, ids=lambda value: str(value)[:30])
def test_parameters_for_each_element(law_name, law, dtype, shape):
    """Contiguous and transposed, of either precision; the last parameter is shared."""
    kind, numbers = law.parameters(dtype)
    draw = Draw(kind, (), SEED, ID)
    for stored in (torch.float32, torch.float64):
        scale = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        given = [(number * (scale if k == 0 else 1.0)) for k, number in enumerate(numbers)]
        given = [torch.as_tensor(number, dtype=stored).expand(shape) for number in given]
        wanted = torch.empty(shape, dtype=dtype)
        REFERENCE.fill_each(wanted, draw, 37, None, given)
        for whole in (shape, shape[::-1]):
            out = torch.empty(whole, dtype=dtype, device=DEVICE)
            out = out if whole == shape else out.t()
            GPU.fill_each(out, draw, 37, None, [number.to(DEVICE) for number in given])
            assert same_bits(out.cpu(), wanted)


def test_random_tensors_are_those_of_the_cpu():
    from fastinit import random

    mean, std, weights = torch.randn(300, 7), torch.rand(7), torch.rand(5, 1000)
    for make in (
        lambda device: random.normal(mean.to(device), std.to(device), stream=STREAM),
        lambda device: random.bernoulli(weights.to(device), stream=STREAM),
        lambda device: random.randperm(100_000, device=device, stream=STREAM),
        lambda device: random.multinomial(weights.to(device), 300, True, stream=STREAM),
        lambda device: random.multinomial(weights.to(device), 300, stream=STREAM),
        lambda device: random.randint(3, 10**6, (1000,), device=device, stream=STREAM),
    ):
        assert same_bits(make(DEVICE).cpu(), make("cpu"))


def test_parameters_on_another_device_are_refused_as_torch_refuses_them():
    with pytest.raises(RuntimeError):
        fastinit.bernoulli_(torch.empty(100), torch.rand(100, device=DEVICE))
    with pytest.raises(RuntimeError):
        fastinit.bernoulli_(torch.empty(100, device=DEVICE), torch.rand(100))


@pytest.mark.parametrize("defer", [True, False])
def test_in_a_block_of_accelerate(defer):
    """Models on a GPU: the last draw of each tensor alone, in the order of the calls."""
    torch.manual_seed(3)
    expected = [fastinit.uniform_(torch.empty(300, 200)) for _ in range(4)][-1]
    torch.manual_seed(3)
    with fastinit.accelerate(defer=defer) as report:
        tensor = torch.empty(300, 200, device=DEVICE)
        for _ in range(4):
            torch.nn.init.uniform_(tensor)
        other = torch.nn.init.normal_(torch.empty(9, device=DEVICE)) + 1
    assert same_bits(tensor.cpu(), expected)
    assert other.mean() > 0
    assert not report.escaped
    assert report.drawn == (2 if defer else 5)
    noise = fastinit.build(torch.nn.Linear, 300, 200, seed=4, device=DEVICE)
    assert same_bits(noise.weight.detach().cpu(), fastinit.build(torch.nn.Linear, 300, 200, seed=4).weight.detach())
    with fastinit.accelerate() as report:
        torch.nn.functional.dropout(torch.ones(50, device=DEVICE))
    assert report.escaped
