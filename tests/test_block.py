"""What else happens in a block of `accelerate`: training, compilers, other contexts, odd ways to read memory."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import io
import threading

import pytest
import torch
import torch.utils.checkpoint
from common import same_bits
from interruptions import Interrupter, instrumented
from torch import nn

import fastinit
from fastinit import accelerate, audit, build
from fastinit.drawing import originals
from fastinit.drawing.batch import blocks, opened
from fastinit.models import block as block_module, functions, watch as watch_module
from fastinit.models.block import here
from fastinit.models.origins import origin_of

SHAPE = (40, 30)
POISON = 7.0


@pytest.fixture(autouse=True)
def nothing_stays():
    """No mode, no block and no wrapper is left behind."""
    before = {name: vars(torch.nn.init)[name] for name in originals.NAMES}
    yield
    assert {name: vars(torch.nn.init)[name] for name in originals.NAMES} == before
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not opened(blocks.get())
    assert not here.blocks
    assert not functions.users
    torch.ones(3)  # which fails where torch was told of a mode that is none


def poisoned(shape=SHAPE, dtype=torch.float32):
    return torch.full(shape, POISON, dtype=dtype)


def test_inference_mode_in_a_block_forgets_no_mode():
    """It puts back what the thread was told of its modes when it began: one that came meanwhile would see nothing."""
    tensor = poisoned()
    with accelerate():
        with torch.inference_mode():
            nn.init.normal_(tensor)
        doubled = tensor * 2
        with torch.inference_mode():
            nn.init.uniform_(tensor)
        again = tensor + 0
    assert (doubled < 0).any()
    assert torch.equal(again, tensor)
    torch.ones(3)  # which would fail


def test_a_training_step_in_a_block():
    def work():
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.utils.checkpoint.checkpoint(model, torch.ones(4, 30), use_reentrant=False).sum().backward()
            optimizer.step()
            nn.init.normal_(model[2].bias)
        return model

    with accelerate(defer=False):
        expected = work()
    with accelerate():
        model = work()
    for ours, same in zip(model.parameters(), expected.parameters(), strict=True):
        assert same_bits(ours.detach(), same.detach())


@pytest.mark.parametrize("pending", [True, False])
def test_compiled_functions_in_a_block(pending):
    compiled = torch.compile(lambda x: nn.init.normal_(torch.empty(5)) * 0 + x * 2, backend="eager")
    tensor = torch.ones(5)
    with accelerate():
        if pending:
            nn.init.uniform_(tensor)
        doubled = compiled(tensor)
    assert torch.equal(doubled, tensor * 2)


def test_inference_tensors_and_modes():
    with torch.inference_mode(), accelerate():
        tensor = nn.init.normal_(torch.empty(SHAPE))
        doubled = tensor * 2
    assert torch.equal(doubled, tensor * 2)
    assert tensor.std() > 0.5


def test_a_failed_overwrite_loses_nothing():
    tensor = poisoned()
    with accelerate():
        nn.init.normal_(tensor)
        with pytest.raises(RuntimeError, match="must match"):
            tensor.copy_(torch.ones(7))
        with pytest.raises(RuntimeError, match=r"std >= 0.0|normal expects"):
            tensor.normal_(0, -1, generator=torch.Generator())
    assert (tensor != POISON).all()


def test_weight_norm_and_orthogonal_parametrizations():
    def make():
        torch.manual_seed(3)
        first = nn.utils.parametrizations.weight_norm(nn.Linear(30, 20))
        second = nn.utils.parametrizations.orthogonal(nn.Linear(20, 20))
        return nn.ModuleList([first, second])

    with accelerate(defer=False):
        expected = make()
    with accelerate():
        model = make()
    for (name, ours), (_, same) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert same_bits(ours.detach(), same.detach()), name


# --- who reads memory in odd ways --------------------------------------------------------------

ODD = {
    "torch.tensor": lambda: torch.tensor([torch.rand(()), torch.rand(1)]),
    "as_tensor": lambda: torch.as_tensor([torch.rand(1), torch.rand(1)]),
    "elements": lambda: torch.tensor([*torch.rand(3)]),
    "Tensor": lambda: torch.Tensor([torch.rand(()), torch.rand(())]),
    "LongTensor": lambda: torch.LongTensor([torch.randint(9, ()), torch.randint(9, ())]),
    "new_tensor": lambda: torch.ones(2).new_tensor([torch.rand(()), torch.rand(())]),
    "fill_": lambda: torch.zeros(3).fill_(poisoned((2,)).normal_()[0]),
    "constant_": lambda: nn.init.constant_(torch.zeros(3), poisoned((2,)).normal_()[1]),
    "a size": lambda: torch.randn(torch.randint(3, 9, ()) + 0, 2),
    "a pending size": lambda: torch.randn(torch.randint(3, 9, (2,))[0]),
    "conj": lambda: complex_normal().conj().clone(),
    "from conj": lambda: torch.empty(5, dtype=torch.complex64).copy_(complex_normal().conj()),
    "to conj": lambda: torch.empty(5, dtype=torch.complex64).conj().copy_(complex_normal()),
    "neg": lambda: torch._neg_view(poisoned((9,)).normal_()).clone(),
    "tensor_split": lambda: torch.cat(torch.tensor_split(torch.arange(100), torch.randint(0, 100, (3,)))[1:2]),
    "overlapping": lambda: overlapped(poisoned((12,)).normal_()),
    "jit.save": lambda: saved_by_jit(torch.jit.save),
    "its method": lambda: saved_by_jit(lambda module, file: file.write(module.save_to_buffer())),
    "swap": lambda: swapped(nn.init.normal_(poisoned())),
    "deepcopy of a module": lambda: copy.deepcopy(nn.Linear(30, 40)).weight.detach(),
    "preserved": lambda: preserved(poisoned()),
    "incremented": lambda: incremented(poisoned()),
}


def complex_normal():
    tensor = torch.empty(5, dtype=torch.complex64)
    torch.view_as_real(tensor).normal_()
    return tensor


def overlapped(tensor):
    tensor.as_strided((2, 6), (3, 1)).copy_(torch.zeros(2, 6))
    return tensor


def saved_by_jit(save):
    file = io.BytesIO()
    save(torch.jit.script(nn.Linear(3, 4)), file)
    file.seek(0)
    return torch.jit.load(file).weight.detach()


def swapped(tensor):
    other = torch.zeros(SHAPE)
    torch.utils.swap_tensors(tensor, other)
    return other


def preserved(tensor):
    with torch.autograd._unsafe_preserve_version_counter(tensor):
        return tensor.normal_()


def incremented(tensor):
    tensor.normal_()
    torch.autograd.graph.increment_version(tensor)
    return tensor


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", ODD)
def test_who_reads_memory_in_odd_ways_finds_it_drawn(way):
    made = []
    for defer in (False, True):
        torch.manual_seed(5)
        with accelerate(defer=defer) as report:
            made.append(ODD[way]())
    assert same_bits(torch.view_as_real(made[0].resolve_conj()) if made[0].is_complex() else made[0],
                     torch.view_as_real(made[1].resolve_conj()) if made[1].is_complex() else made[1])  # fmt: skip
    assert not report.foreign


def test_swap_tensors_after_a_block():
    with accelerate():
        model = nn.Linear(3, 4)
    built = build(nn.Linear, 3, 4)
    for module in (model, built):
        before = module.weight.detach().clone()
        torch.utils.swap_tensors(module.weight, nn.Parameter(torch.zeros(4, 3)))
        assert (module.weight == 0).all()
        assert not same_bits(before, module.weight.detach())


# --- other contexts ------------------------------------------------------------------------------


def test_other_tasks_of_a_thread_see_the_block_s_order():
    async def initialise(tensor):
        with accelerate() as report:
            tensor.data.normal_()
            await asyncio.sleep(0.02)
        return report

    async def write(tensor):
        await asyncio.sleep(0.005)
        tensor.data.zero_()
        nn.init.uniform_(tensor[0])

    async def both():
        tensor = poisoned()
        await asyncio.gather(initialise(tensor), write(tensor))
        return tensor

    tensor = asyncio.run(both())
    assert (tensor[1:] == 0).all()
    assert 0 < tensor[0].std() < 1


def test_another_context_of_the_thread():
    tensor, other = poisoned(), poisoned()
    with accelerate():
        nn.init.normal_(tensor)
        contextvars.Context().run(lambda: (nn.init.ones_(tensor), nn.init.normal_(other)))
    assert (tensor == 1).all()
    assert other.std() > 0.5


@pytest.mark.parametrize("name", ["trunc_normal_", "orthogonal_", "sparse_", "normal_", "zeros_", "kaiming_normal_"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_device_around_or_inside_changes_nothing(name, inside):
    arguments = {"sparse_": (0.5,)}.get(name, ())
    torch.manual_seed(3)
    expected = getattr(fastinit, name)(torch.empty(SHAPE), *arguments)
    torch.manual_seed(3)
    contexts = [accelerate(), torch.device("cpu")]
    outer, inner = contexts if inside else contexts[::-1]
    with outer as first, inner as second:
        tensor = getattr(nn.init, name)(torch.empty(SHAPE), *arguments)
        noise = torch.randn(3)
    assert same_bits(tensor, expected)
    report = first if inside else second
    assert not report.escaped
    assert not report.early
    assert noise.device.type == "cpu"


def test_the_device_of_the_context_is_that_of_what_is_made():
    with accelerate(), torch.device("meta"):
        assert torch.randn(3).is_meta
        assert nn.Linear(3, 4).weight.is_meta


def test_a_block_inside_build_changes_nothing_of_the_proof():
    class Inner(nn.Module):
        def __init__(self, hole):
            super().__init__()
            self.first = nn.Parameter(torch.empty(5, 4))
            with accelerate():
                nn.init.normal_(self.first)
            self.after = nn.Parameter(torch.empty(5, 4))
            self.after.data.copy_(torch.ones(5, 4))
            self.used = nn.Parameter(torch.randn(50) * 2)
            if hole:
                self.hole = nn.Parameter(torch.empty(3))

    model = build(Inner, False, seed=3)
    assert origin_of(model.used).computed
    with pytest.raises(fastinit.models.coverage.CoverageError, match=r": hole was written by nothing"):
        build(Inner, True)


def test_build_inside_build():
    inner = build(lambda: build(nn.Linear, 30, 40, seed=1), seed=2)
    assert same_bits(inner.weight.detach(), build(nn.Linear, 30, 40, seed=1).weight.detach())


def test_memory_that_the_model_got_in_the_block_has_its_names():
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30))
    with accelerate(model, seed=4):
        model.to_empty(device="cpu")
        for layer in model:
            nn.init.normal_(layer.weight)
            nn.init.uniform_(layer.bias)
    expected = fastinit.normal_(torch.empty(30, 40), stream=fastinit.Stream.named("1.weight", 4))
    assert same_bits(model[1].weight.detach(), expected)
    assert not same_bits(model[0].bias.detach()[:30], model[1].bias.detach())


def test_laws_are_of_this_model_while_nobody_has_changed_it():
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.empty(300, 200))
            self.w.data.normal_(0, 0.02)

    with accelerate():
        model = Behind()
    with torch.no_grad():
        model.w.mul_(3)
    assert not audit(model).errors


def test_blocks_of_many_threads_forget_what_is_gone():
    failed = []

    def work():
        try:
            for _ in range(60):
                with accelerate():
                    nn.init.normal_(torch.empty(30))
        except BaseException as error:
            failed.append(error)

    before = threading.stack_size()
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    threading.stack_size(before)


def test_a_decorated_coroutine_or_generator_is_refused():
    async def later():
        return torch.randn(3)

    def each():
        yield torch.randn(3)

    for function in (later, each):
        with pytest.raises(TypeError, match="runs after its call"):
            accelerate()(function)


def test_a_function_of_somebody_else_s_that_is_called_fill_():
    calls = []

    def fill_(tensor, value):
        if torch.overrides.has_torch_function_unary(tensor):
            return torch.overrides.handle_torch_function(fill_, (tensor,), tensor, value)
        calls.append(value)
        return tensor

    tensor = poisoned()
    with accelerate():
        fill_(tensor, 5)
    assert calls == [5]
    assert (tensor == POISON).all()


# --- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("module", [block_module, functions, watch_module], ids=["block", "functions", "watch"])
def test_an_interruption_leaves_nothing_behind(module):
    """At each statement: no mode, block or wrapper stays, and a tensor is as it was, or drawn."""
    interrupter = Interrupter()
    made = instrumented(module, interrupter)
    if module is functions:
        second = instrumented(block_module, lambda: None)
        second.functions = made
        block = second.Block
    elif module is watch_module:
        second = instrumented(block_module, lambda: None)
        second.Watch = made.Watch
        block = second.Block
    else:
        second, block = made, made.Block
    interrupter.module = made

    def work(tensor):
        with block(None, None, False, True).opened():
            nn.init.normal_(tensor)
            nn.init.trunc_normal_(torch.empty(3)) + 1

    interrupter.arm()
    work(torch.empty(3))
    count = interrupter.passed
    assert count > 20
    step = max(1, count // 150)
    for number in range(0, count, step):
        tensor = poisoned((4,))
        interrupter.arm([number])
        with contextlib.suppress(KeyboardInterrupt):
            work(tensor)
        interrupter.armed = False
        assert torch._C._len_torch_dispatch_stack() == 0, number
        assert not torch.overrides._get_current_function_mode_stack(), number
        assert not second.here.blocks, number
        assert not second.functions.users, number
        assert nn.init.orthogonal_ is originals.originals["orthogonal_"], number
        assert not opened(blocks.get()), number
        assert (tensor == POISON).all() or (tensor != POISON).all(), number
