"""Same bits for any layout, slice, box, number of threads and alignment; each element written once and nothing else."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from common import CASE_IDS, CASES, ENGINES, FLOATS, LAWS, bits, index_of, name_of, same_bits, slow_unless
from hypothesis import given, strategies as st

import fastinit
from fastinit import Stream
from fastinit.drawing import engines
from fastinit.kernels.contract import Draw, width_of
from fastinit.kernels.cpu import jobs
from fastinit.kernels.runs import row_major
from fastinit.laws import Normal, Words

STREAM = Stream(20, 26)
dtypes = st.sampled_from(FLOATS)
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda shape: math.prod(shape) <= 4000)


def whole(shape, dtype=torch.float32) -> torch.Tensor:
    return fastinit.normal_(torch.empty(shape, dtype=dtype), stream=STREAM)


@given(shapes, dtypes, st.randoms(use_true_random=False))
def test_permuted_memory_holds_the_same_values(shape, dtype, random):
    order = list(range(len(shape)))
    random.shuffle(order)
    memory = torch.empty([shape[d] for d in order], dtype=dtype)
    turned = memory.permute([order.index(d) for d in range(len(shape))])
    assert turned.shape == torch.Size(shape)
    assert same_bits(fastinit.normal_(turned, stream=STREAM), whole(shape, dtype))


@given(shapes, dtypes, st.data())
def test_steps_and_slices_hold_the_same_values_and_nothing_else_is_written(shape, dtype, data):
    steps = [data.draw(st.integers(1, 3)) for _ in shape]
    skips = [data.draw(st.integers(0, 2)) for _ in shape]
    outer = [skip + size * step for size, step, skip in zip(shape, steps, skips, strict=True)]
    memory = torch.full(outer, 77.0, dtype=dtype)
    view = memory[tuple(slice(skip, None, step) for step, skip in zip(steps, skips, strict=True))]
    assert view.shape == torch.Size(shape)
    fastinit.normal_(view, stream=STREAM)
    assert same_bits(view, whole(shape, dtype))
    view.fill_(77.0)
    assert (memory == 77).all()


@given(st.integers(1, 400), st.integers(0, 70), dtypes)
def test_any_alignment_and_tail(count, offset, dtype):
    memory = torch.full((count + offset + 70,), 77.0, dtype=dtype)
    fastinit.normal_(memory[offset : offset + count], stream=STREAM)
    assert same_bits(memory[offset : offset + count], whole((count,), dtype))
    assert (memory[:offset] == 77).all()
    assert (memory[offset + count :] == 77).all()


@given(shapes, dtypes, st.data())
def test_a_box_holds_what_the_whole_tensor_holds_there(shape, dtype, data):
    lengths = [data.draw(st.integers(0, size)) for size in shape]
    offset = [data.draw(st.integers(0, size - length)) for size, length in zip(shape, lengths, strict=True)]
    local = torch.empty(lengths, dtype=dtype)
    box = fastinit.shard(local, shape, offset)
    assert fastinit.normal_(box, stream=STREAM) is box
    assert same_bits(local, whole(shape, dtype)[tuple(map(slice, offset, map(sum, zip(offset, lengths, strict=True))))])


# Compiling takes its time: every law in float32 and every dtype for one law; all of them in the slow tests.
# And what is wider than its dtype: a block of it has fewer elements than a cache line.
FEW_LAWS = [(name, law, dtype) for name, law, dtype in CASES if dtype is torch.float32][::3]
FEW_LAWS += [c for c in CASES if c[2] is torch.uint8 and width_of(c[1].parameters(torch.uint8)[0], torch.uint8) == 64]
FEW = slow_unless(lambda case: case[0] == "normal" or case in FEW_LAWS, CASES)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("law_name", "law", "dtype"), FEW, ids=CASE_IDS)
def test_boxes_in_turned_memory_in_every_engine(engine, law_name, law, dtype):
    found = engines.load(engine)
    draw = Draw(*law.parameters(dtype), 3, 4)
    full = torch.empty(7, 50, 33, dtype=dtype)
    found.fill(full, draw, 2**33, None)
    local = torch.empty(20, 5, 31, dtype=dtype).permute(1, 2, 0)[:, ::2]  # (5, 16, 20)
    found.fill(local, draw, 2**33 + 1 * 50 * 33 + 17 * 33 + 9, row_major((7, 50, 33)))
    assert same_bits(local, full[1:6, 17:33, 9:29])


MEMORIES = {
    "long": lambda dtype: torch.empty(9, 300, dtype=dtype),
    "rows": lambda dtype: torch.empty(9, 40, dtype=dtype)[:, 3:37],
    "strided": lambda dtype: torch.empty(9, 300, dtype=dtype)[:, ::2],
    "turned": lambda dtype: torch.empty(300, 3, 150, dtype=dtype)[:, :, 5:146].permute(1, 2, 0),
}


POISON = 0x41  # in every byte


@pytest.mark.parametrize("form", MEMORIES)
@pytest.mark.parametrize(("law_name", "law", "dtype"), FEW, ids=CASE_IDS)
def test_every_form_of_a_kernel_draws_the_same(form, law_name, law, dtype, monkeypatch):
    """In boxes whose rows begin anywhere in a block; and nothing is written beside."""
    forms = []
    monkeypatch.setattr(jobs, "form_of", lambda *given, choose=jobs.form_of: forms.append(choose(*given)) or forms[-1])
    found, draw = engines.load("cpu"), Draw(*law.parameters(dtype), 3, 4)
    local = MEMORIES[form](dtype)
    memory = local if local._base is None else local._base
    memory.view(torch.uint8).fill_(POISON)
    steps = row_major([size + 7 for size in local.shape])
    found.fill(local, draw, 2**33 + 50, steps)
    assert forms == [form]
    drawn = local.clone()
    local.copy_(torch.full((dtype.itemsize,), POISON, dtype=torch.uint8).view(dtype))
    assert (memory.view(torch.uint8) == POISON).all()
    local.copy_(drawn)
    full = torch.empty(steps[0] * local.shape[0] + 50, dtype=dtype)
    found.fill(full, draw, 2**33, None)
    assert same_bits(local, full[50:].as_strided(local.shape, steps))


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.bfloat16, torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize(("rows", "columns", "offset"), [(4096, 4097, 0), (3001, 6007, 1), (70, 250_001, 3)])
def test_large_transposed_tensors(dtype, rows, columns, offset, two_threads):
    """Side by side, over threads and through streaming stores; nothing is written beside."""
    memory = torch.full((rows * columns + 64,), 77.0, dtype=dtype)
    turned = memory[offset : offset + rows * columns].view(columns, rows).t()
    fastinit.uniform_(turned, stream=STREAM)
    expected = fastinit.uniform_(torch.empty(rows, columns, dtype=dtype), stream=STREAM)
    assert same_bits(turned, expected)
    assert (bits(memory[:offset]) == bits(torch.tensor(77.0, dtype=dtype))).all()
    assert (bits(memory[offset + rows * columns :]) == bits(torch.tensor(77.0, dtype=dtype))).all()


def test_channels_last():
    image = torch.empty(8, 16, 7, 9, memory_format=torch.channels_last)
    assert same_bits(fastinit.kaiming_normal_(image, stream=STREAM), kaiming((8, 16, 7, 9)))
    assert image.is_contiguous(memory_format=torch.channels_last)


def kaiming(shape):
    return fastinit.kaiming_normal_(torch.empty(shape), stream=STREAM)


@pytest.mark.parametrize(
    "name", ["uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
             "kaiming_normal_", "orthogonal_", "sparse_", "eye_", "constant_", "ones_", "zeros_"]
)  # fmt: skip
@pytest.mark.parametrize("cut", ["rows", "columns", "both", "none", "all"])
def test_every_initialiser_takes_shards(name, cut):
    shape = (60, 90)
    rows = {"rows": (20, 25), "both": (31, 12), "none": (10, 0)}.get(cut, (0, 60))
    columns = {"columns": (33, 40), "both": (64, 26)}.get(cut, (0, 90))
    arguments = {"sparse_": (0.3,), "constant_": (0.5,)}.get(name, ())
    keywords = {} if name in ("eye_", "constant_", "ones_", "zeros_") else {"stream": STREAM}
    function = getattr(fastinit, name)
    full = function(torch.empty(shape), *arguments, **keywords)
    local = torch.empty(rows[1], columns[1])
    box = fastinit.shard(local, shape, (rows[0], columns[0]))
    assert function(box, *arguments, **keywords) is box
    assert torch.equal(local, full[index_of(box)])


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("offset", [(0, 0, 0), (5, 1, 1), (2, 0, 2)], ids=str)
def test_dirac_takes_shards(groups, offset):
    full = fastinit.dirac_(torch.empty(12, 4, 3), groups)
    assert torch.equal(full, torch.nn.init.dirac_(torch.empty(12, 4, 3), groups))
    local = torch.empty(7, 3, 1)
    box = fastinit.shard(local, (12, 4, 3), offset)
    fastinit.dirac_(box, groups)
    assert torch.equal(local, full[index_of(box)])


def test_shards_and_a_generator_advance_together():
    """Two ranks with one seed draw one tensor, and their next one, whatever each of them holds."""
    weights = []
    for part in (slice(0, 10), slice(10, 40), slice(0, 0)):
        generator = torch.Generator().manual_seed(5)
        local = [torch.empty(part.stop - part.start, 8) for _ in range(2)]
        for tensor in local:
            fastinit.xavier_normal_(fastinit.shard(tensor, (40, 8), (part.start, 0)), generator=generator)
        weights.append(local)
    generator = torch.Generator().manual_seed(5)
    for number in range(2):
        full = fastinit.xavier_normal_(torch.empty(40, 8), generator=generator)
        assert same_bits(torch.cat([weights[0][number], weights[1][number]]), full)


@pytest.mark.parametrize(
    ("local", "shape", "offset", "message"),
    [
        ((3, 4), (8, 8), (6, 0), r"dimension 0 has 8 elements.*expected offset \+? ?>= 0.*found 6 \+ 3"),
        ((3, 4), (8, 8), (0, -1), r"found -1 \+ 4"),
        ((3, 4), (8,), (0, 0), r"as many dimensions.*got \(3, 4\), \(8,\) and \(0, 0\)"),
        ((3, 4), (8, 8), (0,), "as many dimensions"),
        ((3, 4), (2**40, 2**40), (0, 0), r"at most 2\*\*62 elements"),
    ],
)
def test_a_box_that_does_not_fit(local, shape, offset, message):
    with pytest.raises(ValueError, match=message):
        fastinit.shard(torch.empty(local), shape, offset)


def test_offsets_are_whole_numbers():
    with pytest.raises(TypeError):
        fastinit.shard(torch.empty(3, 4), (8, 8), (0, 2.5))
    box = fastinit.shard(torch.empty(3, 4), torch.tensor([8, 8]), torch.tensor([0, 2]))
    assert fastinit.normal_(box, stream=STREAM) is box


def test_shards_refuse_what_only_torch_could_do():
    local = torch.full((2, 2), 7.0)
    box = fastinit.shard(local, (4, 4), (0, 0))
    with pytest.raises(RuntimeError, match=r"torch\.nn\.init cannot serve a shard"):
        fastinit.normal_(box, fast=False)
    with pytest.raises(RuntimeError, match="does not cover complex64"):
        fastinit.normal_(fastinit.shard(torch.ones(2, dtype=torch.complex64), (4,), (0,)))
    with pytest.raises(RuntimeError, match="std >= 0"):
        fastinit.normal_(box, 0.0, -1.0)
    with pytest.raises(ValueError, match="no law"):
        fastinit.normal_(box, math.inf, 1.0)
    assert (local == 7).all()


def test_fans_of_a_shard_are_the_global_ones():
    local = torch.empty(1000, 4)
    fastinit.kaiming_normal_(fastinit.shard(local, (1000, 4000), (0, 8)), nonlinearity="linear", stream=STREAM)
    assert math.isclose(local.std(), 1 / math.sqrt(4000), rel_tol=0.05)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1 << 18, (1 << 20) + 77, 3_000_001])
def test_threads_do_not_show(threads, count):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = whole((count,))
        torch.set_num_threads(threads)
        assert same_bits(whole((count,)), expected)
        local = torch.empty(count - 1000)
        fastinit.normal_(fastinit.shard(local, (count,), (333,)), stream=STREAM)
        assert same_bits(local, expected[333 : count - 667])
    finally:
        torch.set_num_threads(before)


STREAMED = [
    (name, dtype, offset) for name in ("uniform", "normal", "central") for dtype in FLOATS for offset in (0, 1, 13)
]


@pytest.mark.parametrize(
    ("name", "dtype", "offset"),
    slow_unless(lambda case: case[0] == "normal" or case[1:] == (torch.float32, 13), STREAMED),
    ids=[f"{name}-{name_of(dtype)}-{offset}" for name, dtype, offset in STREAMED],
)
def test_large_tensors_through_streaming_stores(name, dtype, offset, two_threads):
    """Past the cache's size stores go around it, where they are aligned; the bits are the small tensors'."""
    count = 2 * jobs.STREAMING_FROM // dtype.itemsize + 77
    found, draw = engines.load("cpu"), Draw(*LAWS[name].parameters(dtype), 1, 1)
    memory = torch.full((count + 64,), 77.0, dtype=dtype)
    out = memory[offset : offset + count]
    found.fill(out, draw, 5, None if offset else row_major((count,)))
    for start in (0, 64 * 1000 + 3, count - 5000):
        small = torch.empty(5000, dtype=dtype)
        found.fill(small, draw, 5 + start, None)
        assert same_bits(out[start : start + 5000], small)
    assert (memory[:offset] == 77).all()
    assert (memory[offset + count :] == 77).all()


def test_every_element_is_written(two_threads):
    """Poisoned with a pattern that the law cannot draw; two different poisons, so that none can hide."""
    found = engines.load("cpu")
    for shape in ((3_000_000,), (1733, 1731), (100, 100, 300)):
        results = []
        for poison in (math.nan, 1e30):
            out = torch.full(shape, poison)
            found.fill(out, Draw("normal", (0.0, 1.0), 1, 1), 0, None)
            results.append(out)
        assert same_bits(*results)
        assert results[0].isfinite().all()


def test_threads_of_the_caller_do_not_disturb_each_other():
    expected = whole((1_500_000,))
    results: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = whole((1_500_000,))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(same_bits(result, expected) for result in results.values())


def test_global_indices_beyond_2_to_the_32():
    """The far end of a tensor of 2^50 elements, which no machine holds: a shard of it."""
    size = 1 << 25
    for engine in ENGINES:
        with fastinit.use_engine(engine):
            local = torch.empty(3, 100)
            fastinit.normal_(fastinit.shard(local, (size, size), (size - 3, size - 100)), stream=STREAM)
        direct = torch.empty(100)
        first = (size - 2) * size + size - 100
        engines.load(engine).fill(direct, Draw(*Normal(0.0, 1.0).parameters(torch.float32), 20, 26), first, None)
        assert same_bits(local[1], direct)


def test_words_are_a_bijection_of_place():
    """No word sequence repeats along a tensor: all blocks differ."""
    words = torch.empty(1 << 20, dtype=torch.int32)
    engines.load("cpu").fill(words, Draw(*Words().parameters(torch.int32), 1, 1), 0, None)
    assert bits(words).view(-1, 64).unique(dim=0).shape[0] == (1 << 20) // 64


def test_the_layout_tests_can_fail():
    assert not same_bits(whole((30, 40)).t(), fastinit.normal_(torch.empty(40, 30), stream=STREAM))
