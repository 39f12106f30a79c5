"""Laws whose parameters differ from element to element: every engine, every layout, and what torch says to bad ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from common import CASES, ENGINES, bits, error_of, name_of, outcome, python, same_bits, slow_unless
from scipy import stats

import fastinit
from fastinit.drawing import engines
from fastinit.initialisers import each
from fastinit.kernels.contract import Draw, has_each
from fastinit.kernels.runs import row_major

ALPHA = 1e-4  # the false-alarm rate of each statistical test; seeds are fixed
STREAM = fastinit.Stream(2**64 - 59, 2**63 + 11)
STORED = (torch.float32, torch.float64)
# Laws with parameters, all of them plain numbers.
EVERY = [case for case in CASES if has_each(case[1].parameters(case[2])[0])]
FEW = slow_unless(
    lambda case: case[0] in ("normal", "bernoulli") and case[2] in (torch.float32, torch.float64, torch.uint8), EVERY
)
IDS = [f"{name}-{name_of(dtype)}" for name, _, dtype in EVERY]
every_case = pytest.mark.parametrize(("name", "law", "dtype"), FEW, ids=IDS)


def filled(engine: str, out: torch.Tensor, kind: str, first: int, steps, parameters) -> torch.Tensor:
    found = engines.load(engine)
    assert not isinstance(found, str)
    out.view(torch.uint8 if out.dtype.itemsize == 1 else out.dtype).zero_()
    found.fill_each(out, Draw(kind, (), STREAM.seed, STREAM.id), first, steps, parameters)
    return out.clone()


def layouts(dtype: torch.dtype):
    """(memory to write, its first element's number, steps): within a block and over some, strided, a box, one."""
    memory = torch.zeros(2000, dtype=dtype)
    yield memory[3:1203], 5, None
    yield memory[:1200].view(30, 40), 2**62 - 1200, None
    yield memory[:1200].view(40, 30).t(), 2**40 + 17, None
    yield memory[:280].view(7, 40)[:, :31], 11, (100, 1)
    yield memory[:120].view(2, 3, 4, 5).permute(3, 1, 0, 2), 9, (1000, 200, 50, 7)
    yield memory[7], 77, None


def spread(numbers: tuple[float, ...], shape: torch.Size, stored: torch.dtype) -> list[torch.Tensor]:
    """Parameters around these: of every element its own, and the last of a row's own or all the same."""
    count = shape.numel()
    scale = 0.5 + torch.arange(count, dtype=torch.float64).view(shape) / count
    several = [(number * scale).to(stored) for number in numbers]
    if len(numbers) > 1 and shape:
        several[-1] = several[-1][..., :1].expand(shape)
    return several


@every_case
@pytest.mark.parametrize("stored", STORED, ids=name_of)
def test_engines_agree(name, law, dtype, stored):
    kind, numbers = law.parameters(dtype)
    for out, first, steps in layouts(dtype):
        given = spread(numbers, out.shape, stored)
        results = [filled(engine, out, kind, first, steps, given) for engine in ENGINES]
        assert all(same_bits(results[0], other) for other in results[1:])
        other = [number.flip(0) if out.dim() else number * 0.1 for number in given]
        if (
            out.numel() > 1 and results[0].any()
        ):  # twin: whose parameters are whose shows, where not all is rounded to 0
            assert not same_bits(results[0], filled("cpu", out, kind, first, steps, other))


@every_case
def test_equal_parameters_give_the_samples_of_the_law(name, law, dtype):
    """From memory, and where all elements share a number."""
    kind, numbers = law.parameters(dtype)
    for out, first, steps in layouts(dtype):
        expected = torch.zeros_like(out)
        engines.load("cpu").fill(
            expected, Draw(kind, numbers, STREAM.seed, STREAM.id), first, steps or row_major(out.shape)
        )
        shared = [torch.tensor(number, dtype=torch.float64).expand(out.shape) for number in numbers]
        apart = [number.clone() for number in shared]
        for given in (shared, apart):
            assert same_bits(filled("cpu", out, kind, first, steps, given), expected)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float8_e5m2], ids=name_of)
def test_numbers_of_other_dtypes_are_what_they_are_in_float32(stored):
    mean = torch.linspace(-2, 2, 1000).to(stored)
    out, expected = torch.empty(1000), torch.empty(1000)
    for engine in ENGINES:
        given = [mean, torch.ones(1000)]
        result = filled(engine, out, "normal", 0, None, given)
        assert same_bits(result, filled("reference", expected, "normal", 0, None, [mean.float(), given[1]]))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "converted"])
def test_threads_and_parts_do_not_show(layout, monkeypatch):
    shape = (1500, 1030)
    mean, std = torch.randn(shape), torch.rand(shape)
    if layout == "transposed":
        mean = mean.t().contiguous().t()
    if layout == "converted":
        mean = mean.to(torch.bfloat16)
    expected = fastinit.random.normal(mean.float().contiguous(), std, stream=STREAM)
    before = torch.get_num_threads()
    out = torch.empty(shape)
    monkeypatch.setattr("fastinit.kernels.cpu.engine.STAGING", 100_003)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out.zero_()
            fastinit.random.normal(mean, std, out=out, stream=STREAM)
            assert same_bits(out, expected)
    finally:
        torch.set_num_threads(before)


def test_nothing_beside_the_parameters_is_read():
    """They begin where a page begins, or end where one ends, and the pages around them may not be read."""
    code = """
import ctypes, mmap, torch, fastinit
from fastinit.drawing import engines
from fastinit.kernels.contract import Draw
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 3 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
whole = torch.frombuffer(memory, dtype=torch.float32)
for at in (start, start + 2 * page):
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), page, 0) == 0
engine, per = engines.load("cpu"), page // 4
for count in (1, 17, 63, 64, 65, 300):
    for first in (0, 1, 50, 63, 64):
        for mean in (whole[per : per + count], whole[2 * per - count : 2 * per]):
            out, expected = torch.zeros(count), torch.zeros(count)
            engine.fill_each(out, Draw("normal", (), 1, 2), first, None, [mean, torch.tensor(1.0).expand(count)])
            engine.fill(expected, Draw("normal", (0.0, 1.0), 1, 2), first, None)
            assert torch.equal(out, expected)
print("read")
"""
    assert python(code).strip() == "read"


# --- the public functions ----------------------------------------------------------------------


def test_samples_have_each_elements_own_law():
    """Standardised, they are one law; with the twin's parameters they are not."""
    mean, std = torch.linspace(-5, 5, 1 << 16), torch.linspace(0.1, 3, 1 << 16)
    drawn = fastinit.random.normal(mean, std, stream=STREAM)
    assert stats.kstest(((drawn - mean) / std).numpy(), "norm").pvalue > ALPHA
    assert stats.kstest(((drawn - mean) / (std * 1.05)).numpy(), "norm").pvalue < ALPHA
    p = torch.linspace(0, 1, 1 << 16)
    chosen = fastinit.bernoulli_(torch.empty(1 << 16), p, stream=STREAM)
    for off, fits in ((0.0, True), (0.02, False)):
        z = (chosen - (p * (1 - off))).sum() / (p * (1 - p)).sum().sqrt()
        assert (abs(z.item()) < stats.norm.isf(ALPHA / 2)) == fits
    assert chosen[0] == 0
    assert chosen[-1] == 1


@pytest.mark.parametrize("name", ["bernoulli_", "normal_"])
def test_a_shard_holds_its_part(name):
    shape, box = (37, 53), (slice(5, 30), slice(11, 50))
    numbers = (torch.rand(shape),) if name == "bernoulli_" else (torch.randn(shape), torch.rand(shape))
    whole = torch.empty(shape)
    each.fill_each(name, whole, numbers, None, None, STREAM, lambda: whole)
    part = fastinit.shard(torch.empty(25, 39), shape, (5, 11))
    each.fill_each(name, part, tuple(number[box] for number in numbers), None, None, STREAM, lambda: part)
    assert same_bits(part.local, whole[box])


@pytest.mark.parametrize("kept", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool], ids=name_of)
def test_the_fast_path_gives_the_same_bits(kept, monkeypatch):
    """Small tensors, as they are and where it is told to look twice."""
    p = torch.rand(700)
    quick = fastinit.bernoulli_(torch.empty(700, dtype=kept), p, stream=STREAM)
    with fastinit.use_engine("reference"):
        assert same_bits(quick, fastinit.bernoulli_(torch.empty(700, dtype=kept), p, stream=STREAM))
    calls = []
    fill = each.fill
    monkeypatch.setattr(each, "fill", lambda *a, **k: calls.append(a) or fill(*a, **k))
    fastinit.bernoulli_(torch.empty(700, dtype=kept), p, stream=STREAM)
    assert calls == []
    fastinit.bernoulli_(torch.empty(2, 700, dtype=kept), p, stream=STREAM)
    assert len(calls) == 1


def test_a_tensor_may_hold_its_own_probabilities():
    p = torch.rand(5000)
    expected = fastinit.bernoulli_(torch.empty(5000), p, stream=STREAM)
    assert same_bits(fastinit.bernoulli_(p.clone().requires_grad_(), p, stream=STREAM).detach(), expected)
    for shift in (0, 1, 13):
        memory = torch.cat([p, torch.zeros(20)])
        out = memory[shift : shift + 5000]
        assert same_bits(fastinit.bernoulli_(out, memory[:5000], stream=STREAM), expected)
    size = 100_000  # two tensors of one memory, which torch knows nothing of
    array = np.full(size + 1, 0.5, np.float32)
    first, second = torch.from_numpy(array[:size]), torch.from_numpy(array[1:])
    expected = fastinit.bernoulli_(torch.empty(size), torch.full((size,), 0.5), stream=STREAM)
    assert same_bits(fastinit.bernoulli_(second, first, stream=STREAM), expected)


@pytest.mark.parametrize("count", [1, 5, 700, 300_000])
def test_bits_do_not_depend_on_the_size(count):
    """A number beside a tensor, in float64, which float32 does not hold."""
    out = torch.empty(count, dtype=torch.float64)
    expected = fastinit.normal_(torch.empty_like(out), 0.1, 1.0, stream=STREAM)
    assert same_bits(fastinit.random.normal(0.1, torch.ones(count), out=out, stream=STREAM), expected)
    exact = torch.full((count,), 0.1, dtype=torch.float64)
    assert same_bits(fastinit.random.normal(exact, 1.0, stream=STREAM), expected)
    half = fastinit.random.normal(torch.full((count,), 0.1), torch.ones(count).double(), stream=STREAM)
    assert same_bits(half, fastinit.normal_(torch.empty(count), 0.1, 1.0, stream=STREAM))


def test_neighbours_in_memory_are_no_reason_to_look_twice(monkeypatch):
    memory = torch.rand(768)
    mean, std, out = memory[:256], memory[256:512], memory[512:]
    monkeypatch.setattr(each, "fill", None)
    fastinit.random.normal(mean, std, out=out, stream=STREAM)


def test_numbers_on_another_device_are_not_read(monkeypatch):
    """As far as it can be tried without one: their address is no address here."""
    p = torch.rand(300)
    real = each.ordinary_address
    monkeypatch.setattr(each, "ordinary_address", lambda t, *a: 1 << 45 if t is p else real(t, *a))
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda t: t is not p))
    assert not each.fill_quickly("bernoulli_", torch.empty(300), (p,), None, None, STREAM)


@pytest.mark.parametrize("strided", [False, True])
def test_numbers_beyond_the_precision_are_torchs(strided):
    mean = torch.zeros(600)[::2] if strided else torch.zeros(300)
    assert fastinit.random.normal(mean, 1e39).isinf().all()
    with pytest.raises(RuntimeError, match="beyond the precision"):
        fastinit.random.normal(mean, 1e39, stream=STREAM)


NAN = float("nan")
BAD = [
    torch.tensor([0.5, 2.0]),
    torch.tensor([0.5, -0.1]),
    torch.tensor([NAN, 0.5]),
    torch.ones(3),
    torch.ones(2, 2),
    torch.ones(1, 1, 1),
]
BAD += [torch.tensor([1, 0]), torch.tensor([True, False]), torch.ones(2, dtype=torch.complex64)]


@pytest.mark.parametrize("p", BAD, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=name_of)
def test_probabilities_that_torch_refuses(p, dtype):
    """Its words, an untouched tensor, and a generator that has not advanced; some of them torch takes."""

    def torchs(tensor):
        return tensor.bernoulli_(p)

    ours = outcome(fastinit.bernoulli_, torch.zeros(2, dtype=dtype), p)
    theirs = (
        error_of(torchs, torch.zeros(2, dtype=dtype)) if ours[0] is not None else torchs(torch.zeros(2, dtype=dtype))
    )
    assert ours[0] is None or ours[0] == theirs
    if ours[0] is not None and p.shape == (2,) and p.is_floating_point():
        before = torch.get_rng_state()
        outcome(fastinit.bernoulli_, torch.zeros(2, dtype=dtype), p)
        assert torch.equal(before, torch.get_rng_state())
        with pytest.raises(ours[0][0]):
            fastinit.bernoulli_(torch.zeros(2, dtype=dtype), p, stream=STREAM)


NEGATIVE = [-1.0, torch.tensor([1.0, -1.0]), torch.tensor([NAN, 1.0])]
REFUSED = [(mean, std) for mean in (0.0, torch.zeros(2)) for std in NEGATIVE] + [(torch.zeros(2), torch.ones(3))]


@pytest.mark.parametrize(("mean", "std"), REFUSED, ids=str)
def test_standard_deviations_that_torch_refuses(mean, std):
    sizes = () if isinstance(mean, torch.Tensor) or isinstance(std, torch.Tensor) else ((2,),)
    with pytest.raises(RuntimeError) as theirs:
        torch.normal(mean, std, *sizes)
    with pytest.raises(RuntimeError) as ours:
        fastinit.random.normal(mean, std, *sizes)
    assert str(ours.value) == str(theirs.value)


def test_what_has_no_stream_says_so():
    for p in (torch.ones(2, dtype=torch.int64), torch.ones(2, device="meta")):
        with pytest.raises(RuntimeError, match="by element"):
            fastinit.bernoulli_(torch.zeros(2), p, stream=STREAM)
    with pytest.raises(RuntimeError, match="cannot serve"):
        fastinit.bernoulli_(torch.zeros(2, dtype=torch.complex64), torch.ones(2), stream=STREAM)


def test_no_parameter_is_written():
    mean, std = torch.randn(3000), torch.rand(3000)
    before = mean.clone(), std.clone(), mean._version
    fastinit.random.normal(mean, std, stream=STREAM)
    assert torch.equal(mean, before[0])
    assert torch.equal(std, before[1])
    assert mean._version == before[2]


def test_a_parameter_on_each_side_of_a_boundary_is_its_own():
    """Element by element against the law with that element's numbers."""
    mean, std = torch.randn(130), torch.rand(130)
    drawn = fastinit.random.normal(mean, std, stream=STREAM)
    for k, (m, s) in enumerate(itertools.islice(zip(mean.tolist(), std.tolist(), strict=True), 0, 130, 7)):
        whole = fastinit.normal_(torch.empty(130), m, s, stream=STREAM)
        assert bits(whole)[7 * k] == bits(drawn)[7 * k]
    assert np.unique(drawn.numpy()).size == 130
