"""`fastinit.batch`: the bits, errors and generators of calls one by one; memory written at the end, in order."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import math
import os
import re
import threading

import numpy as np
import pytest
import torch
from common import python, same_bits, slow_unless
from hypothesis import given, strategies as st
from interruptions import Interrupter, instrumented
from torch import nn

import fastinit
from fastinit import Stream, batch, random
from fastinit.kernels.contract import KernelMissing
from fastinit.kernels.cpu import helpers, jobs, loading

STREAM = Stream(9)
DRAWS = {
    "uniform_": (),
    "normal_": (0.0, 0.02),
    "trunc_normal_": (),
    "xavier_uniform_": (),
    "xavier_normal_": (),
    "kaiming_uniform_": (),
    "kaiming_normal_": (),
    "variance_scaling_": (),
    "bernoulli_": (0.25,),
    "exponential_": (),
    "random_": (),
    "orthogonal_": (),
    "sparse_": (0.5,),
    "constant_": (0.3,),
    "ones_": (),
    "zeros_": (),
    "eye_": (),
    "identity_": (),
}
LAYOUTS = {
    "contiguous": lambda dtype: torch.full((40, 30), 7, dtype=dtype),
    "large": lambda dtype: torch.full((700, 900), 7, dtype=dtype),
    "transposed": lambda dtype: torch.full((30, 40), 7, dtype=dtype).t(),
    "every other": lambda dtype: torch.full((40, 60), 7, dtype=dtype)[:, ::2],
    "shifted": lambda dtype: torch.full((1203,), 7, dtype=dtype)[3:].view(40, 30),
}


@pytest.fixture(autouse=True)
def no_block_stays():
    """An interruption may leave behind one that is over, which the next call forgets."""
    yield
    fastinit.normal_(torch.empty(3))
    assert not fastinit.drawing.batch.blocks.get()


def call(name: str, tensor: torch.Tensor, **named):
    return getattr(fastinit, name)(tensor, *DRAWS[name], **named)


# --- the same as one by one ------------------------------------------------------------------------


PAIRS = [(name, layout) for name in DRAWS for layout in LAYOUTS]
FEW = ("normal_", "xavier_uniform_", "bernoulli_", "orthogonal_", "sparse_", "constant_")


@pytest.mark.parametrize(("name", "layout"), slow_unless(lambda pair: pair[1] != "large" or pair[0] in FEW, PAIRS))
def test_bits_are_those_of_calls_one_by_one(name, layout):
    """And the generator stands where it would."""
    made = [LAYOUTS[layout](torch.float32) for _ in range(4)]
    torch.manual_seed(3)
    call(name, made[0])
    call(name, made[1])
    after = torch.rand(1)
    torch.manual_seed(3)
    with batch():
        assert call(name, made[2]) is made[2]
        call(name, made[3])
    assert torch.equal(torch.rand(1), after)
    assert same_bits(made[2], made[0])
    assert same_bits(made[3], made[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_every_dtype(dtype):
    one, other = torch.zeros(999, dtype=dtype), torch.zeros(999, dtype=dtype)
    fastinit.normal_(one, stream=STREAM)
    with batch():
        fastinit.normal_(other, stream=STREAM)
    assert same_bits(one, other)


def test_streams_and_generators():
    generator = torch.Generator().manual_seed(5)
    expected = [
        fastinit.normal_(torch.empty(50), generator=generator),
        fastinit.normal_(torch.empty(50), stream=STREAM),
    ]
    generator.manual_seed(5)
    made = [torch.zeros(50), torch.zeros(50)]
    with batch():
        fastinit.normal_(made[0], generator=generator)
        fastinit.normal_(made[1], stream=STREAM)
    assert all(same_bits(a, b) for a, b in zip(made, expected, strict=True))


def test_a_shard_holds_its_part():
    whole = fastinit.kaiming_normal_(torch.empty(60, 50), stream=STREAM)
    local, again = torch.zeros(20, 50), torch.zeros(20, 50)
    with batch():
        fastinit.kaiming_normal_(fastinit.shard(local, (60, 50), (30, 0)), stream=STREAM)
        fastinit.zeros_(fastinit.shard(again.fill_(3), (60, 50), (30, 0)))
    assert same_bits(local, whole[30:50])
    assert (again == 0).all()


@pytest.mark.parametrize("value", [0, 1, -1, 0.1, 1e-45, -0.0, float("inf"), float("nan"), 300, 70000, 1e39], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool,
                                   torch.float16, torch.float8_e5m2, torch.complex64, torch.complex128],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("count", [1, 63, 1000])
def test_constants_are_torchs(value, dtype, count):
    """In every dtype, from any address; and what torch refuses is refused at the call."""

    one, other = torch.zeros(count + 7, dtype=dtype), torch.zeros(count + 7, dtype=dtype)
    problem = None
    try:
        nn.init.constant_(one[5 : count + 5], value)
    except RuntimeError as error:
        problem = str(error)
    with batch(), pytest.raises(RuntimeError, match=re.escape(problem)) if problem else contextlib.nullcontext():
        fastinit.constant_(other[5 : count + 5], value)
        by_torch = value != value or value == 1e-45 or (count == 1 and value in (70000, 1e39))
        written_at_once = dtype is torch.complex128 or by_torch
        assert written_at_once or not other.view(torch.uint8).any()
    assert other.view(torch.uint8).equal(one.view(torch.uint8))
    other.zero_()
    with pytest.raises(RuntimeError, match=re.escape(problem)) if problem else contextlib.nullcontext():
        fastinit.constant_(other[5 : count + 5], value)
    assert other.view(torch.uint8).equal(one.view(torch.uint8))


@pytest.mark.parametrize("count", [1, 1000, 1 << 14, (1 << 18) + 3, (1 << 22) + 5, (1 << 23) + 1])
def test_constants_of_every_size_stay_within_their_memory(count):
    """On one thread, on several, around the cache, in huge pages; autograd hears of each."""
    memory = torch.full((count + 40,), 7.0)
    tensor = memory[20:-20].requires_grad_(False)
    for step, (function, value) in enumerate([(fastinit.ones_, 1.0), (fastinit.zeros_, 0.0)]):
        before = tensor._version
        assert function(tensor) is tensor
        assert tensor._version > before, step
        assert bool((tensor == value).all())
        assert memory[:20].tolist() == memory[-20:].tolist() == [7.0] * 20
    weight = nn.Parameter(torch.zeros(count))
    fastinit.constant_(weight, -0.0)
    assert weight.requires_grad
    assert bool(weight.detach().signbit().all())
    assert not fastinit.constant_(weight, 0.0).detach().signbit().any()


def test_constants_that_equal_each_other_or_depend_on_the_cpu():
    """nan keeps its sign; what is subnormal follows the CPU's setting; a number that is no float is refused in torch's
    words."""
    for value in (math.nan, -math.nan, math.nan):
        drawn, expected = fastinit.constant_(torch.zeros(2), value), nn.init.constant_(torch.zeros(2), value)
        assert same_bits(drawn, expected)
    try:
        for flush in (False, True, False):
            if torch.set_flush_denormal(flush):
                drawn, expected = fastinit.constant_(torch.zeros(2), 1e-40), nn.init.constant_(torch.zeros(2), 1e-40)
                assert same_bits(drawn, expected), flush
    finally:
        torch.set_flush_denormal(False)
    for target in (torch.zeros(3), [torch.zeros(3)]):
        with pytest.raises(Exception) as ours:  # noqa: PT011  (whatever torch raises)
            fastinit.constant_(target, 10**5000)
        with pytest.raises(type(ours.value), match=re.escape(str(ours.value))):
            nn.init.constant_(torch.zeros(3), 10**5000)


def test_a_large_constant_without_the_code_for_jobs(monkeypatch):
    tensor = torch.zeros(5 << 20)
    fastinit.constant_(tensor[:10], 9.0)

    def missing(*_: object) -> None:
        raise KernelMissing("for this test")

    monkeypatch.setattr(jobs, "Job", missing)
    assert bool((fastinit.constant_(tensor, 9.0) == 9).all())
    tensors = [torch.zeros(30), torch.zeros(40)]
    assert all(bool((one == 9).all()) for one in fastinit.constant_(tensors, 9.0))


def test_constants_leave_to_torch_what_is_torchs(monkeypatch):
    """Replaced functions, flagged tensors, other engines, tensors of other kinds; each filled all the same."""
    seen = []
    plain = nn.init._no_grad_zero_
    with monkeypatch.context() as patched:
        patched.setattr(nn.init, "_no_grad_zero_", lambda tensor: seen.append(tensor.shape) or plain(tensor))
        flagged = torch.ones(5)
        fastinit.flag(flagged, False)
        for tensor in (torch.ones(4, 6).t(), flagged, torch.ones(2, dtype=torch.complex64).conj()):
            assert not fastinit.zeros_(tensor).any()
    assert seen == [(6, 4), (5,), (2,)]
    with fastinit.use_engine("eager"):
        assert not fastinit.zeros_(torch.ones(3)).any()
    seen = []
    with torch.inference_mode():
        assert fastinit.ones_(torch.zeros(3)).tolist() == [1.0] * 3
    monkeypatch.setattr(nn.init, "_no_grad_fill_", lambda tensor, value: seen.append(value) or tensor)
    fastinit.ones_(torch.zeros(3))
    monkeypatch.setattr(nn.init, "zeros_", lambda tensor: seen.append("zeros") or tensor)
    fastinit.zeros_(torch.zeros(3))
    assert seen == [1.0, "zeros"]


# --- what is done when -----------------------------------------------------------------------------


def test_memory_is_written_at_the_end_and_by_one_job(monkeypatch):
    runs = []
    right = loading.entry("run")
    monkeypatch.setattr(loading, "entry", lambda name, entry=loading.entry: (
        (lambda *arguments: runs.append(arguments[1]) or right(*arguments)) if name == "run" else entry(name)
    ))  # fmt: skip
    model = nn.TransformerEncoderLayer(64, 4)
    parameters = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    before = copy.deepcopy(parameters)
    with batch():
        for parameter in parameters:
            fastinit.xavier_uniform_(parameter, stream=STREAM)
            fastinit.zeros_(model.norm1.bias)
        assert all(same_bits(a, b) for a, b in zip(parameters, before, strict=True))
        assert runs == []
    assert runs == [len(parameters) + 1]
    assert not any(same_bits(a, b) for a, b in zip(parameters, before, strict=True))
    for parameter in parameters:
        assert same_bits(parameter, fastinit.xavier_uniform_(torch.empty_like(parameter), stream=STREAM))


def test_the_last_of_several_draws_of_a_tensor_is_made(monkeypatch):
    """The others only take their numbers."""
    written = []
    right = helpers.run
    monkeypatch.setattr(helpers, "run", lambda *given: written.append(given[2]) or right(*given))
    torch.manual_seed(1)
    tensor, expected = torch.empty(30_000), torch.empty(30_000)
    with batch():
        fastinit.normal_(tensor)
        fastinit.ones_(tensor)
        fastinit.uniform_(tensor.view(300, 100).t())
        fastinit.trunc_normal_(tensor)
    after = torch.rand(1)
    assert sum(written) < 2 * 30_000
    torch.manual_seed(1)
    for draw in (fastinit.normal_, fastinit.uniform_, fastinit.trunc_normal_):
        draw(expected)
    assert torch.equal(torch.rand(1), after)
    assert same_bits(tensor, expected)


STEPS = {
    "draw": lambda view, k: fastinit.normal_(view, 0.0, 1.0, stream=STREAM.child(str(k))),
    "whole numbers": lambda view, k: fastinit.random_(view, 100, stream=STREAM.child(str(k))),
    "constant": lambda view, k: fastinit.constant_(view, float(k)),
    "zeros": lambda view, k: fastinit.zeros_(view),
    "torch": lambda view, k: fastinit.normal_(view, generator=torch.Generator().manual_seed(k), fast=False),
    "values": lambda view, k: fastinit.constant_(view, [1.0, 2.0]) if view.numel() > 1 else view,
    "by element": lambda view, k: fastinit.bernoulli_(view, torch.full(view.shape, 0.5), stream=STREAM.child(str(k))),
    "orthogonal": lambda view, k: fastinit.orthogonal_(view.unsqueeze(0), stream=STREAM.child(str(k))),
    "turned": lambda view, k: fastinit.orthogonal_(view.unsqueeze(0), column_axis=-1, fast=False,
                                                   generator=torch.Generator().manual_seed(k)),
    "reference": lambda view, k: in_engine("reference", view, k),
    "out": lambda view, k: random.rand(view.shape, out=view, stream=STREAM.child(str(k))),
    "order": lambda view, k: random.randperm(view.numel(), out=view, stream=STREAM.child(str(k))),
    "private": lambda view, k: fastinit.init._no_grad_fill_(view, float(k)),
    "NumPy's": lambda view, k: fastinit.constant_(torch.from_numpy(view.numpy()), float(k)),
}  # fmt: skip


def in_engine(engine: str, view: torch.Tensor, k: int) -> torch.Tensor:
    with fastinit.use_engine(engine):
        return fastinit.uniform_(view, stream=STREAM.child(str(k)))


VIEWS = st.tuples(st.integers(0, 50), st.integers(1, 60), st.integers(1, 3))


@given(st.lists(st.tuples(st.sampled_from(list(STEPS)), VIEWS), max_size=12))
def test_any_calls_on_overlapping_views_keep_their_order(calls):
    one, other = torch.zeros(240), torch.zeros(240)

    def make(memory: torch.Tensor) -> None:
        for k, (step, (start, length, stride)) in enumerate(calls):
            STEPS[step](memory[start : start + length * stride : stride], k)

    make(one)
    with batch():
        make(other)
    assert same_bits(one, other)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


READING = {
    "probabilities": lambda p: fastinit.bernoulli_(torch.empty(64), p, stream=STREAM),
    "torch's probabilities": lambda p: fastinit.bernoulli_(
        torch.empty(64), p, torch.Generator().manual_seed(1), fast=False
    ),
    "one probability": lambda p: fastinit.bernoulli_(torch.empty(64), p[:1], stream=STREAM),
    "deviations": lambda p: random.normal(0.0, p, stream=STREAM),
    "means": lambda p: random.normal(p, torch.ones(64), out=p, stream=STREAM),
    "out of place": lambda p: random.bernoulli(p, stream=STREAM),
    "weights": lambda p: random.multinomial(p, 20, True, stream=STREAM),
    "torch's weights": lambda p: random.multinomial(
        p, 20, True, generator=torch.Generator().manual_seed(1), fast=False
    ),
    "a deviation": lambda p: fastinit.normal_(torch.empty(64), 0.0, p[0], stream=STREAM),
    "a gain": lambda p: fastinit.xavier_normal_(torch.empty(8, 8), p[0], stream=STREAM),
    "an orthogonal gain": lambda p: fastinit.orthogonal_(torch.empty(8, 8), p[0], stream=STREAM),
    "a value": lambda p: fastinit.constant_(torch.empty(64), p[0]),
    "values": lambda p: fastinit.constant_(torch.empty(64), p),
    "turned values": lambda p: fastinit.constant_(torch.empty(64), p.view(8, 8).t()),
    "an initialiser's": lambda p: fastinit.initialisers.constant(p)((64,)),
}


@pytest.mark.parametrize("name", READING)
def test_numbers_that_are_pending_are_drawn_before_they_are_read(name):
    """In place of numbers that would be refused."""

    def made(p: torch.Tensor) -> torch.Tensor:
        fastinit.bernoulli_(p, 1.0, stream=STREAM)
        return READING[name](p)

    expected = made(torch.full((64,), -1.0))
    with batch():
        found = made(torch.full((64,), -1.0))
    assert same_bits(found, expected)


def test_arrays_of_other_frameworks_are_drawn_at_once():
    from fastinit.frameworks.arrays import drawn

    normal = fastinit.initialisers.get("normal")
    with batch():
        found = drawn(normal, (50,), np.dtype("float32"), STREAM).copy()
    assert (found == drawn(normal, (50,), np.dtype("float32"), STREAM)).all()


@pytest.mark.parametrize("made", [
    lambda: torch.eye(3).to_sparse(),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    lambda: torch.empty(3, device="meta"),
], ids=["sparse", "nested", "meta"])  # fmt: skip
def test_tensors_without_an_address_of_their_own(made):
    """What is pending is drawn, whatever it may be."""
    pending = torch.zeros(5)
    with batch():
        fastinit.ones_(pending)
        fastinit.zeros_(made())
    assert (pending == 1).all()


def test_what_returns_a_new_tensor_is_drawn_at_once():
    with batch():
        drawn = random.rand(70, stream=STREAM).clone()
        made = fastinit.initialisers.get("normal")((70,), stream=STREAM).clone()
    assert same_bits(drawn, fastinit.uniform_(torch.empty(70), stream=STREAM))
    assert same_bits(made, fastinit.initialisers.get("normal")((70,), stream=STREAM))


def test_versions_count_each_call_and_the_writing():
    """So that autograd knows when what it has kept was not yet drawn."""
    tensor, factor = torch.ones(10), torch.ones(10, requires_grad=True)
    before = tensor._version
    with batch():
        fastinit.normal_(tensor)
        fastinit.zeros_(tensor)
        assert tensor._version == before + 2
        product = (tensor * factor).sum()
    assert tensor._version > before + 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# --- exceptions ------------------------------------------------------------------------------------


def test_errors_come_at_the_call():
    tensor = torch.zeros(10)
    with batch():
        with pytest.raises(RuntimeError, match=r"normal expects std >= 0\.0"):
            fastinit.normal_(tensor, 0.0, -1.0)
        with pytest.raises(ValueError, match="Fan in and fan out"):
            fastinit.xavier_normal_(tensor)
        fastinit.ones_(tensor)
    assert (tensor == 1).all()


def test_an_exception_draws_nothing():
    tensor = torch.zeros(100)
    with contextlib.suppress(KeyError), batch():
        fastinit.normal_(tensor)
        fastinit.ones_(tensor)
        raise KeyError
    assert (tensor == 0).all()
    with batch():  # and leaves nothing behind
        pass
    assert (tensor == 0).all()
    fastinit.ones_(tensor)
    assert (tensor == 1).all()


CHANGES = {
    "data": lambda tensor: setattr(tensor, "data", torch.zeros(1000)),
    "half": lambda tensor: setattr(tensor, "data", tensor.data.half()),
    "storage": lambda tensor: tensor.untyped_storage().resize_(0),
    "smaller": lambda tensor: tensor.resize_(10),
}


@pytest.mark.parametrize("draw", [fastinit.normal_, fastinit.bernoulli_, fastinit.zeros_])
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_with_other_memory_is_an_error_and_nothing_is_drawn(change, draw):
    """In whichever block, and whatever memory it has now."""
    tensor, other = torch.zeros(1000), torch.zeros(1000)

    def use() -> None:
        with batch():
            fastinit.ones_(other)
            with batch():
                for _ in range(2):  # on the fast path, too
                    draw(tensor)
                CHANGES[change](tensor)

    with pytest.raises(RuntimeError, match="other memory since"):
        use()
    assert (other == 0).all()
    assert not fastinit.drawing.batch.is_open()


def test_a_smaller_storage_in_the_same_place_is_not_written_beyond():
    weight = torch.zeros(1024)
    place = weight.data_ptr()
    with contextlib.suppress(RuntimeError), batch():
        fastinit.ones_(weight)
        for size in range(4096, 0, -64):
            weight.untyped_storage().resize_(size - 64)
            if weight.data_ptr() == place:
                break
        fits = weight.untyped_storage().nbytes() >= 4096
    assert fits or not (torch.empty(0).set_(weight.untyped_storage()) == 1).any()


# --- blocks and threads ----------------------------------------------------------------------------


def test_an_inner_block_draws_at_its_end():
    outer, inner = torch.zeros(100), torch.zeros(100)
    with batch():
        fastinit.ones_(outer)
        with batch():
            fastinit.constant_(inner, 2)
            fastinit.constant_(outer[:10], 3)
        assert (inner == 2).all()
        fastinit.constant_(inner, 4)
        assert (inner == 2).all()
    assert (inner == 4).all()
    assert outer.tolist() == [3.0] * 10 + [1.0] * 90


def test_an_inner_exception_discards_the_inner_block_alone():
    outer, inner = torch.zeros(100), torch.zeros(100)
    with batch():
        fastinit.ones_(outer)
        with contextlib.suppress(KeyError), batch():
            fastinit.ones_(inner)
            raise KeyError
    assert (outer == 1).all()
    assert (inner == 0).all()


def test_a_block_can_be_entered_again():
    block, tensor = batch(), torch.zeros(10)
    for value in (1.0, 2.0):
        with block:
            fastinit.constant_(tensor, value)
            with pytest.raises(RuntimeError, match="open already"):
                block.__enter__()
        assert (tensor == value).all()


def test_other_threads_draw_at_once():
    seen = []

    def other() -> None:
        tensor = fastinit.ones_(torch.zeros(10))
        seen.append(bool((fastinit.normal_(tensor, 5.0, 0.001) > 4).all()))

    with batch():
        pending = fastinit.ones_(torch.zeros(10))
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (pending == 0).all()
    assert seen == [True]


def test_many_threads_have_blocks_of_their_own():
    made = [torch.zeros(20_000) for _ in range(8)]

    def work(tensor: torch.Tensor, number: int) -> None:
        for _ in range(20):
            with batch():
                fastinit.normal_(tensor, stream=Stream(number))
                fastinit.zeros_(tensor[:7])

    threads = [threading.Thread(target=work, args=(tensor, number)) for number, tensor in enumerate(made)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, tensor in enumerate(made):
        expected = fastinit.normal_(torch.empty(20_000), stream=Stream(number))
        expected[:7] = 0
        assert same_bits(tensor, expected)


def test_tasks_have_blocks_of_their_own():
    """One that fails in its block takes nothing of another's with it."""
    one, other, third = torch.zeros(10), torch.zeros(10), torch.zeros(10)

    async def failing() -> None:
        with batch():
            fastinit.ones_(one)
            await asyncio.sleep(0.01)
            raise KeyError

    async def plain() -> None:
        await asyncio.sleep(0.005)
        fastinit.ones_(other)
        with batch():
            fastinit.ones_(third)
            await asyncio.sleep(0.01)

    async def both() -> None:
        await asyncio.gather(failing(), plain(), return_exceptions=True)

    asyncio.run(both())
    assert (one == 0).all()
    assert (other == 1).all()
    assert (third == 1).all()


def test_a_block_that_ends_in_another_thread():
    block, tensor = batch(), torch.zeros(10)
    block.__enter__()
    fastinit.ones_(tensor)
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert (tensor == 1).all()
    fastinit.zeros_(tensor)
    assert (tensor == 0).all()


def test_an_interruption_between_any_two_steps_leaves_no_block_open():
    from fastinit.drawing import batch as module

    interrupter = Interrupter()
    own = instrumented(module, interrupter)
    tensor = torch.zeros(10)

    def use() -> None:
        with own.batch():
            own.settle(tensor)

    for number in itertools.count():
        interrupter.arm((number,))
        with contextlib.suppress(KeyboardInterrupt):
            use()
        interrupter.armed = False
        assert not own.is_open(), number
        if not interrupter.raised:
            break
    assert number > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_in_a_block():
    code = """
import os, torch, fastinit
tensor, stream = torch.zeros(1 << 20), fastinit.Stream(1)
fastinit.normal_(torch.empty(1 << 20), stream=stream)
with fastinit.batch():
    fastinit.normal_(tensor, stream=stream)
    child = os.fork()
same = tensor.numpy().tobytes() == fastinit.normal_(torch.empty(1 << 20), stream=stream).numpy().tobytes()
if child == 0:
    os._exit(0 if same else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python("import warnings; warnings.simplefilter('ignore')" + code).split() == ["True", "0"]


# --- engines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "eager"])
def test_engines_that_cannot_wait_draw_at_once(engine):
    tensor = torch.zeros(100)
    with batch(), fastinit.use_engine(engine):
        fastinit.ones_(tensor)
        fastinit.normal_(tensor, stream=STREAM)
        assert same_bits(tensor, fastinit.normal_(torch.empty(100), stream=STREAM).clone())


def test_flags_and_meta_tensors():
    flagged, meta = torch.zeros(100), torch.empty(100, device="meta")
    fastinit.flag(flagged, fast=False)
    with batch():
        fastinit.normal_(flagged, 5.0, 0.001)
        assert (flagged > 4).all()
        fastinit.normal_(meta)
        fastinit.zeros_(meta)
        fastinit.normal_(torch.empty(0))


def test_without_a_cpu_engine_a_block_changes_nothing(tmp_path):
    code = """
import sys, warnings, torch
sys.modules["numba"] = None
import fastinit
warnings.simplefilter("ignore")
tensor = torch.zeros(10)
with fastinit.batch():
    fastinit.constant_(tensor, 2)
    fastinit.normal_(tensor[:5], 50.0, 0.1)
print((tensor[:5] > 40).all().item(), (tensor[5:] == 2).all().item())
"""
    assert python(code, FASTINIT_CACHE_DIR=str(tmp_path)).split() == ["True", "True"]


def test_replaced_functions_are_obeyed(monkeypatch):
    kept = []
    monkeypatch.setattr(nn.init, "zeros_", lambda tensor: kept.append(tensor) or tensor)
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *_, **__: kept.append(tensor) or tensor)
    tensor = torch.full((5,), 3.0)
    with batch():
        fastinit.zeros_(tensor)
        fastinit.normal_(tensor)
    assert len(kept) == 2
    assert (tensor == 3).all()


def test_a_compiled_function_finds_what_is_pending():
    @torch.compile(fullgraph=True, backend="eager")
    def draw(tensor: torch.Tensor) -> torch.Tensor:
        fastinit.normal_(tensor[:50], stream=STREAM)
        return tensor * 2

    one, other = torch.zeros(100), torch.zeros(100)
    fastinit.ones_(one)
    expected = draw(one)
    with batch():
        fastinit.ones_(other)
        found = draw(other)
    assert same_bits(other, one)
    assert same_bits(found, expected)


# --- jobs in order ---------------------------------------------------------------------------------


def test_rows_that_meet_are_done_one_after_the_other():
    memory = torch.zeros(1000)
    job = jobs.Job()
    for start in range(0, 900, 50):
        job.add_constant(memory[start : start + 100], np.float32(start).tobytes())
    job.do()
    assert memory[:950].tolist() == [float(at // 50 * 50 if at < 900 else 850) for at in range(950)]
    assert (memory[950:] == 0).all()
