"""`fastinit.accelerate`: torch's calls recognised, deferred and drawn once; nobody can tell, but by the numbers."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import math
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
import torch.utils.dlpack
from common import python, same_bits
from torch import nn
from torch.nn import functional
from torch.nn.init import dirac_, eye_, orthogonal_, sparse_, trunc_normal_, xavier_normal_
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit import Stream, accelerate
from fastinit.drawing import originals
from fastinit.drawing.batch import blocks
from fastinit.models import functions, recognise
from fastinit.models.block import here

SHAPE = (40, 30)
POISON = 7.0
seed = torch.manual_seed


@pytest.fixture(autouse=True)
def nothing_stays():
    """No mode, no block and no wrapper is left behind."""
    before = {name: vars(torch.nn.init)[name] for name in originals.NAMES}
    yield
    assert {name: vars(torch.nn.init)[name] for name in originals.NAMES} == before
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not blocks.get()
    assert not here.blocks
    assert not functions.users


def poisoned(shape=SHAPE, dtype=torch.float32):
    return torch.full(shape, POISON, dtype=dtype)


def raw(tensor):
    """A tensor's first element, by its address: read without torch's knowledge."""
    kind = {4: ctypes.c_float, 8: ctypes.c_double}[tensor.element_size()]
    return kind.from_address(ADDRESS[id(tensor)])


ADDRESS: dict[int, int] = {}


def watched(shape=SHAPE, dtype=torch.float32):
    """A poisoned tensor, whose address is taken before a block, which cannot know."""
    tensor = poisoned(shape, dtype)
    ADDRESS[id(tensor)] = tensor.data_ptr()
    return tensor


# --- recognised --------------------------------------------------------------------------------

# How it is written with torch, and with fastinit.
WAYS = {
    "nn.init.uniform_": (lambda t: nn.init.uniform_(t, -1, 2), lambda t: fastinit.uniform_(t, -1, 2)),
    "nn.init.normal_": (lambda t: nn.init.normal_(t, std=0.02), lambda t: fastinit.normal_(t, std=0.02)),
    "nn.init.trunc_normal_": (lambda t: nn.init.trunc_normal_(t, std=0.5),
                              lambda t: fastinit.trunc_normal_(t, std=0.5)),
    "trunc_normal_ by name": (lambda t: trunc_normal_(t, a=0.5), lambda t: fastinit.trunc_normal_(t, a=0.5)),
    "nn.init.xavier_uniform_": (nn.init.xavier_uniform_, fastinit.xavier_uniform_),
    "xavier_normal_ by name": (lambda t: xavier_normal_(t, 2.0), lambda t: fastinit.xavier_normal_(t, 2.0)),
    "nn.init.kaiming_uniform_": (lambda t: nn.init.kaiming_uniform_(t, a=math.sqrt(5)),
                                 lambda t: fastinit.kaiming_uniform_(t, a=math.sqrt(5))),
    "nn.init.kaiming_normal_": (lambda t: nn.init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"),
                                lambda t: fastinit.kaiming_normal_(t, mode="fan_out", nonlinearity="relu")),
    "nn.init.orthogonal_": (lambda t: nn.init.orthogonal_(t, 2.0), lambda t: fastinit.orthogonal_(t, 2.0)),
    "nn.init.sparse_": (lambda t: nn.init.sparse_(t, 0.5), lambda t: fastinit.sparse_(t, 0.5)),
    "nn.init.eye_": (nn.init.eye_, fastinit.eye_),
    "nn.init.constant_": (lambda t: nn.init.constant_(t, 0.3), lambda t: fastinit.constant_(t, 0.3)),
    "nn.init.ones_": (nn.init.ones_, fastinit.ones_),
    "nn.init.zeros_": (nn.init.zeros_, fastinit.zeros_),
    "nn.init.uniform": (lambda t: nn.init.uniform(t), fastinit.uniform_),
    "uniform_()": (lambda t: t.uniform_(), fastinit.uniform_),
    "uniform_(to=)": (lambda t: t.uniform_(to=3), lambda t: fastinit.uniform_(t, 0, 3)),
    "data.uniform_": (lambda t: (t.data.uniform_(-1, 1), t)[1], lambda t: fastinit.uniform_(t, -1, 1)),
    "detach().normal_": (lambda t: t.detach().normal_(1.0, std=2.0), lambda t: fastinit.normal_(t, 1, 2)),
    "normal_()": (lambda t: t.normal_(), fastinit.normal_),
    "bernoulli_()": (lambda t: t.bernoulli_(), fastinit.bernoulli_),
    "bernoulli_(p)": (lambda t: t.bernoulli_(p=0.2), lambda t: fastinit.bernoulli_(t, 0.2)),
    "bernoulli_(tensor)": (lambda t: t.bernoulli_(torch.full(SHAPE, 0.2)),
                           lambda t: fastinit.bernoulli_(t, torch.full(SHAPE, 0.2))),
    "cauchy_": (lambda t: t.cauchy_(1.0), lambda t: fastinit.cauchy_(t, 1.0)),
    "exponential_": (lambda t: t.exponential_(lambd=2.0), lambda t: fastinit.exponential_(t, 2.0)),
    "geometric_": (lambda t: t.geometric_(0.3), lambda t: fastinit.geometric_(t, 0.3)),
    "log_normal_": (lambda t: t.log_normal_(), fastinit.log_normal_),
    "random_()": (lambda t: t.random_(), fastinit.random_),
    "random_(to)": (lambda t: t.random_(10), lambda t: fastinit.random_(t, 10)),
    "random_(from, to)": (lambda t: t.random_(-3, to=10), lambda t: fastinit.random_(t, -3, 10)),
    "random_(from, None)": (lambda t: t.random_(5, None), lambda t: fastinit.random_(t, 5, None)),
    "fill_": (lambda t: t.fill_(0.3), lambda t: fastinit.constant_(t, 0.3)),
    "torch.fill_": (lambda t: torch.fill_(t, value=0.3), lambda t: fastinit.constant_(t, 0.3)),
    "zero_": (lambda t: t.zero_(), fastinit.zeros_),
    "Tensor.normal_(t)": (lambda t: torch.Tensor.normal_(t), fastinit.normal_),
    "a part": (lambda t: (t[:7].normal_(), t.data[:, 3].zero_()) and t,
               lambda t: (fastinit.normal_(t[:7]), fastinit.zeros_(t[:, 3])) and t),
    "transposed": (lambda t: nn.init.kaiming_uniform_(t.t()), lambda t: fastinit.kaiming_uniform_(t.t())),
    "several": (lambda t: (nn.init.normal_(t), nn.init.xavier_uniform_(t), t[3].zero_()) and t,
                lambda t: (fastinit.normal_(t), fastinit.xavier_uniform_(t), fastinit.zeros_(t[3])) and t),
}  # fmt: skip
MAKERS = {
    "rand": (lambda: torch.rand(SHAPE), lambda: fastinit.random.rand(SHAPE)),
    "randn": (lambda: torch.randn(40, 30), lambda: fastinit.random.randn(40, 30)),
    "randn in a Parameter": (lambda: nn.Parameter(torch.randn(40, 30)), lambda: fastinit.random.randn(40, 30)),
    "randint": (lambda: torch.randint(9, SHAPE), lambda: fastinit.random.randint(9, SHAPE)),
    "rand_like": (lambda: torch.rand_like(poisoned()), lambda: fastinit.random.rand_like(poisoned())),
    "normal": (lambda: torch.normal(0.0, 2.0, SHAPE), lambda: fastinit.random.normal(0.0, 2.0, SHAPE)),
    "normal by element": (lambda: torch.normal(poisoned(), poisoned()),
                          lambda: fastinit.random.normal(poisoned(), poisoned())),
    "bernoulli": (lambda: torch.bernoulli(torch.full(SHAPE, 0.3)),
                  lambda: fastinit.random.bernoulli(torch.full(SHAPE, 0.3))),
    "Tensor.bernoulli": (lambda: poisoned().bernoulli(0.3), lambda: fastinit.random.bernoulli(poisoned(), 0.3)),
    "randperm": (lambda: torch.randperm(50), lambda: fastinit.random.randperm(50)),
    "multinomial": (lambda: torch.multinomial(torch.ones(50), 9),
                    lambda: fastinit.random.multinomial(torch.ones(50), 9)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`nn.init.uniform` is now deprecated:FutureWarning")
@pytest.mark.parametrize("defer", [True, False])
@pytest.mark.parametrize("kind", [nn.Parameter, torch.Tensor])
@pytest.mark.parametrize("way", WAYS)
def test_torchs_calls_give_the_bits_of_fastinits(way, kind, defer):
    torchs, ours = WAYS[way]
    seed(3)
    expected = poisoned()
    ours(expected)
    after = torch.get_rng_state()
    seed(3)
    tensor = poisoned() if kind is torch.Tensor else nn.Parameter(poisoned())
    before = tensor._version
    with accelerate(defer=defer) as report, torch.no_grad():
        result = torchs(tensor)
        assert type(result) in (torch.Tensor, nn.Parameter)
    assert same_bits(tensor.detach(), expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert not report.escaped
    assert tensor._version > before or "data" in way or "detach" in way


@pytest.mark.parametrize("defer", [True, False])
@pytest.mark.parametrize("maker", MAKERS)
def test_torchs_random_tensors_are_fastinits(maker, defer):
    torchs, ours = MAKERS[maker]
    seed(3)
    expected = ours()
    after = torch.get_rng_state()
    seed(3)
    with accelerate(defer=defer) as report:
        made = torchs()
    assert same_bits(made.detach(), expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert not report.escaped


def test_every_initialiser_and_sampler_is_among_those():
    written = " ".join([*WAYS, *MAKERS])
    for name in {*originals.NAMES[:14], *recognise.METHODS, *fastinit.random.__all__} - {
        "dirac_",
        "randn_like",
        "randint_like",
    }:
        assert name in written
    weight = nn.Parameter(torch.full((4, 4, 3), POISON))
    with accelerate():
        nn.init.dirac_(weight, groups=2)
    assert same_bits(weight.detach(), nn.init.dirac_(torch.empty(4, 4, 3), groups=2))


@pytest.mark.parametrize("a", [0.1, 1 / 3, 0.01, math.sqrt(5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_formula_of_the_standard_deviation(a, dtype):
    """Also for slopes whose square torch rounds in another way."""
    slopes = [a, *(k / 20_000 for k in range(1, 20_000, 7) if (k / 20_000) ** 2 != (k / 20_000) * (k / 20_000))]
    for slope in slopes:
        seed(1)
        expected = fastinit.kaiming_normal_(torch.empty(SHAPE, dtype=dtype), slope)
        seed(1)
        with accelerate():
            tensor = nn.init.kaiming_normal_(torch.empty(SHAPE, dtype=dtype), slope)
        assert same_bits(tensor, expected)


@pytest.mark.parametrize("name", ["orthogonal_", "sparse_"])
def test_functions_imported_by_name_run_torchs_algorithm_and_are_named(name):
    function = {"orthogonal_": orthogonal_, "sparse_": lambda t: sparse_(t, 0.5)}[name]
    seed(3)
    tensor = poisoned((30, 30))
    with accelerate() as report:
        function(tensor)
    assert any(name in escaped and "imported by name" in escaped for escaped in report.escaped)
    if name == "orthogonal_":
        assert torch.allclose(tensor @ tensor.t(), torch.eye(30), atol=1e-5)
    else:
        assert ((tensor == 0).sum(0) == 15).all()


def test_patterns_imported_by_name_are_torchs():
    square, kernel = poisoned((30, 30)), poisoned((4, 4, 3))
    with accelerate() as report:
        square.normal_()
        eye_(square)
        dirac_(kernel)
    assert torch.equal(square, torch.eye(30))
    assert torch.equal(kernel, nn.init.dirac_(torch.empty(4, 4, 3)))
    assert not report.escaped


# --- deferred ----------------------------------------------------------------------------------


def test_memory_is_written_when_the_block_ends():
    tensor, again = watched(), watched()
    with accelerate() as report:
        nn.init.normal_(tensor)
        again.uniform_()
        nn.init.xavier_uniform_(again)
        assert raw(tensor).value == raw(again).value == POISON
    assert raw(tensor).value == tensor[0, 0].item() != POISON
    assert report.drawn == 2
    assert report.replaced == 1
    assert not report.early


def test_without_deferring_memory_is_written_at_once():
    tensor = watched()
    with accelerate(defer=False) as report:
        nn.init.normal_(tensor)
        assert raw(tensor).value != POISON
    assert report.drawn == 1


def test_what_nobody_keeps_is_never_drawn():
    with accelerate() as report:
        for _ in range(5):
            torch.empty(100).normal_()
        kept = nn.init.normal_(torch.empty(100))
    assert report.drawn == 1
    assert report.replaced == 5
    assert kept.std() > 0.5


# Each needs what is in the tensor; the result, or what the tensor is afterwards, is compared with calls at once.
NEEDS = {
    "clone": lambda t: t.clone(memory_format=torch.preserve_format).add(0),
    "+": lambda t: t + 1,
    "cat": lambda t: torch.cat([torch.zeros(1, 30), t]),
    "stack in a tuple": lambda t: torch.stack((t, t)),
    "by keyword": lambda t: torch.add(input=torch.zeros(SHAPE), other=t),
    "out": lambda t: torch.mul(torch.ones(SHAPE), t, out=torch.empty(SHAPE)),
    "into it": lambda t: torch.add(torch.ones(5, 30), 1, out=t[:5]),
    "in place": lambda t: t.mul_(0.02),
    "a part": lambda t: t[3:5].copy_(torch.ones(2, 30)),
    "an element": lambda t: t.__setitem__((0, 0), 1.0),
    "masked": lambda t: t.masked_fill_(torch.eye(40, 30, dtype=torch.bool), 3.0),
    "itself": lambda t: t.copy_(t.flip(0)),
    "its own view": lambda t: t.copy_(t[:1].expand(SHAPE)),
    "view": lambda t: t.view(-1)[3] + 1,
    "data": lambda t: t.data.sum(),
    "item": lambda t: t[1, 2].item(),
    "tolist": lambda t: t.tolist(),
    "bool": lambda t: bool((t > 0).any()),
    "repr": repr,
    "equal": lambda t: torch.equal(t, t.clone()),
    "linear": lambda t: functional.linear(torch.ones(30), t),
    "half": lambda t: t.half(),
    "contiguous": lambda t: t.t().contiguous(),
    "numpy": lambda t: t.detach().numpy().copy(),
    "array": lambda t: np.asarray(t.detach()).copy(),
    "address": lambda t: ctypes.c_float.from_address(t.data_ptr()).value,
    "storage": lambda t: t.untyped_storage().tolist(),
    "typed storage": lambda t: [*t.storage()],
    "dlpack": lambda t: np.from_dlpack(t.detach()).copy(),
    "to_dlpack": lambda t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t.detach())).clone(),
    "share_memory_": lambda t: t.share_memory_(),
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "save": lambda t: torch.load(saved(t), weights_only=True),
    "resize_": lambda t: t.resize_(20, 30).clone(),
    "set_": lambda t: torch.empty(0).set_(t).clone(),
    "sparse": lambda t: t.to_sparse().to_dense(),
    "sparse parts": lambda t: torch.sparse_coo_tensor(torch.tensor([[1, 2]]), t[:2, 0], (5,)).to_dense(),
    "foreach": lambda t: torch._foreach_add([t, t], 1.0)[0],
    "list of indices": lambda t: t[[1, 2], [3, 4]],
    "where": lambda t: torch.where(t > 0, t, 0),
    "einsum": lambda t: torch.einsum("ij->i", t),
    "no_grad": lambda t: nn.init.normal_(torch.empty(5)).mul_(t[0, 0]),
    "index_copy_": lambda t: t.index_copy_(0, torch.tensor([1]), torch.zeros(1, 30)),
    "vstack": lambda t: torch.vstack([t[0], t[1]]),
    "jit": lambda t: SCRIPTED(t),
    "functorch": lambda t: torch.func.vmap(lambda row: row * 2)(t),
}


def saved(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return file


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SCRIPTED = torch.jit.script(torch.nn.ReLU())
    SCRIPTED_DROPOUT = torch.jit.script(torch.nn.Dropout())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("need", NEEDS)
def test_what_needs_the_memory_finds_it_drawn(need):
    def work():
        seed(5)
        tensor = nn.init.normal_(poisoned())
        return tensor, NEEDS[need](tensor)

    with accelerate(defer=False):
        expected, wanted = work()
    with accelerate() as report:
        tensor, got = work()
    assert same_bits(tensor, expected)
    if isinstance(wanted, torch.Tensor):
        assert same_bits(got, wanted)
    elif isinstance(wanted, np.ndarray):
        assert np.array_equal(got, wanted)
    else:
        assert got == wanted
    assert report.early


HARMLESS = {
    "shape": lambda t: (t.shape, t.size(0), t.stride(), t.dim(), t.numel(), t.is_contiguous(), t.dtype, t.device),
    "views": lambda t: (t.view(-1), t.t(), t[3], t[1:3, ::2], t.data, t.detach(), t.unsqueeze(0), t.expand(2, *SHAPE)),
    "like": lambda t: (torch.empty_like(t), torch.zeros_like(t), t.new_empty(3), t.new_zeros(3), torch.ones_like(t)),
    "meta": lambda t: t.to("meta"),
    "grad": lambda t: (t.requires_grad_(False), t.grad, t.is_leaf, t.requires_grad),
    "Parameter": lambda t: nn.Parameter(t),
    "module": lambda t: setattr(nn.Linear(30, 40, device="meta"), "weight", nn.Parameter(t)),
    "overwritten": lambda t: t.copy_(torch.ones(SHAPE)),
    "copied": lambda t: (t.clone(), copy.deepcopy(t), torch.empty(SHAPE).copy_(t)),
    "chunks": lambda t: (t.chunk(3), t.split(5), t.unbind(0), torch.split(t, 7)),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_needs_no_memory_draws_nothing(what):
    tensor = watched()
    with accelerate() as report:
        nn.init.normal_(tensor)
        HARMLESS[what](tensor)
        assert raw(tensor).value == POISON or what == "overwritten"
    assert not report.early
    assert (tensor == 1).all() if what == "overwritten" else (tensor != POISON).all()


def test_a_copy_of_what_is_pending_is_pending_and_the_same():
    source = poisoned()
    with accelerate() as report:
        nn.init.normal_(source)
        source[3].zero_()
        copied, second = source.clone(), copy.deepcopy(nn.Parameter(source))
        nn.init.uniform_(source)
    assert same_bits(copied, second.detach())
    assert (copied[3] == 0).all()
    assert copied.min() < -0.1 < source.min()
    assert not report.early


def test_a_copy_into_another_tensor_is_pending_too():
    online, target = nn.Linear(30, 40), nn.Linear(30, 40)
    with accelerate() as report:
        online.reset_parameters()
        nn.init.ones_(target.weight)
        target.load_state_dict(online.state_dict())
    assert same_bits(online.weight.detach(), target.weight.detach())
    assert target.weight.std() > 0.05
    assert not report.early
    array = target.weight.detach().numpy()
    with accelerate():
        online.reset_parameters()
        target.load_state_dict(online.state_dict())
        assert np.array_equal(array, target.weight.detach().numpy())  # whose address is known
    assert same_bits(online.weight.detach(), torch.from_numpy(array))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_copy_in_another_layout(layout):
    seed(2)
    expected = fastinit.normal_(torch.empty(4, 5, 6, 7)).contiguous(memory_format=layout)
    seed(2)
    with accelerate():
        made = nn.init.normal_(torch.empty(4, 5, 6, 7)).contiguous(memory_format=layout)
        other = made.clone(memory_format=layout)
    assert same_bits(made, expected)
    assert same_bits(other, expected)
    assert made.stride() == expected.stride()


GIVE_AWAY = {
    "numpy": lambda t: t.numpy(),
    "from_numpy": lambda t: t,
    "data_ptr": lambda t: t.data_ptr(),
    "untyped_storage": lambda t: t.untyped_storage(),
    "dlpack": lambda t: t.__dlpack__(),
    "share_memory_": lambda t: t.share_memory_(),
    "numpy before": lambda t: t,
}


@pytest.mark.parametrize("how", GIVE_AWAY)
def test_memory_whose_address_is_known_is_never_deferred_again(how):
    tensor = torch.from_numpy(np.full(SHAPE, POISON, np.float32)) if how == "from_numpy" else poisoned()
    if how == "numpy before":
        array = tensor.numpy()
    with accelerate():
        nn.init.normal_(tensor)
        kept = GIVE_AWAY[how](tensor)
        address = tensor.data_ptr()
        nn.init.constant_(tensor, 0.5)
        assert ctypes.c_float.from_address(address).value == 0.5
        nn.init.uniform_(tensor, 2, 3)
        assert 2 <= ctypes.c_float.from_address(address).value < 3
    del kept
    if how == "numpy before":
        assert array.min() >= 2


def test_what_was_written_unseen_is_not_overwritten_and_is_reported():
    tensor, other = nn.Parameter(poisoned()), nn.Parameter(poisoned())

    def elsewhere():
        with torch.no_grad():
            tensor.fill_(3.0)

    with accelerate() as report:
        nn.init.normal_(tensor)
        nn.init.normal_(other)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert (tensor == 3).all()
    assert report.foreign[0] is tensor
    assert len(report.foreign) == 1
    assert (other != POISON).all()


def test_memory_that_was_moved_or_resized_meanwhile():
    first, second = nn.Parameter(poisoned()), poisoned()
    with accelerate() as report:
        nn.init.normal_(first)
        first.data = torch.ones(3)
        nn.init.normal_(second)
        second.resize_(100, 30)
        nn.init.uniform_(second)
    assert (first == 1).all()
    assert 0 <= second.min() < second.max() < 1
    assert not report.foreign


def test_a_module_that_is_converted_in_the_block():
    def make():
        seed(1)
        return nn.Sequential(nn.Linear(30, 40), nn.Embedding(9, 5, padding_idx=2)).half()

    with accelerate(defer=False):
        expected = make()
    with accelerate():
        model = make()
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert same_bits(ours.detach(), theirs.detach())


# --- who is concerned --------------------------------------------------------------------------


def test_other_threads_see_plain_torch_with_torchs_bits():
    made, go, done = [], threading.Event(), threading.Event()

    def elsewhere():
        go.wait(60)
        for name in ("normal_", "trunc_normal_", "orthogonal_", "kaiming_uniform_"):
            generator = torch.Generator().manual_seed(4)
            made.append(getattr(nn.init, name)(torch.empty(9, 9), generator=generator))
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with accelerate():
        nn.init.normal_(torch.empty(3))
        go.set()
        assert done.wait(60)
    thread.join()
    for name, tensor in zip(("normal_", "trunc_normal_", "orthogonal_", "kaiming_uniform_"), made, strict=True):
        generator = torch.Generator().manual_seed(4)
        assert same_bits(tensor, getattr(nn.init, name)(torch.empty(9, 9), generator=generator)), name


def test_blocks_of_several_threads_at_once():
    results, start = {}, threading.Barrier(4)

    def work(number):
        generator = torch.Generator().manual_seed(number)
        start.wait(60)
        for _ in range(20):
            with accelerate():
                tensors = [nn.init.trunc_normal_(torch.empty(50, 20), generator=generator) for _ in range(3)]
                tensors.append(nn.init.orthogonal_(torch.empty(5, 5), generator=generator))
        results[number] = tensors

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        for _ in range(20):
            expected = [fastinit.trunc_normal_(torch.empty(50, 20), generator=generator) for _ in range(3)]
            expected.append(fastinit.orthogonal_(torch.empty(5, 5), generator=generator))
        assert all(same_bits(*pair) for pair in zip(results[number], expected, strict=True))


def test_a_block_in_a_block():
    seed(1)
    first, second = (fastinit.normal_(torch.empty(SHAPE)) for _ in range(2))
    seed(1)
    tensor, inner = watched(), watched()
    with accelerate() as report:
        nn.init.normal_(tensor)
        with accelerate() as own:
            assert raw(tensor).value != POISON  # what is pending around it is drawn before
            nn.init.normal_(inner)
        assert raw(inner).value != POISON
        nn.init.zeros_(inner[0])
    assert same_bits(tensor, first)
    assert same_bits(inner[1:], second[1:])
    assert own.drawn == 1
    assert report.drawn == 3


def test_one_object_is_one_block_at_a_time():
    block = accelerate()
    with block, pytest.raises(RuntimeError, match="open already"):
        block.__enter__()
    with block as report:
        torch.empty(3)
    assert report.drawn == 0


def test_as_a_decorator_each_call_has_a_block_of_its_own():
    @accelerate()
    def make(depth):
        """Docs."""
        tensor = nn.init.normal_(torch.empty(SHAPE))
        return [tensor, *(make(depth - 1) if depth else [])]

    seed(1)
    expected = [fastinit.normal_(torch.empty(SHAPE)) for _ in range(3)]
    seed(1)
    assert all(same_bits(*pair) for pair in zip(make(2), expected, strict=True))
    assert make.__doc__ == "Docs."


def test_an_exception_changes_nothing_but_what_it_stops():
    tensor = poisoned()
    block = accelerate()
    with contextlib.suppress(KeyError), block as report:
        nn.init.normal_(tensor)
        raise KeyError
    assert (tensor != POISON).all()
    assert report.drawn == 1


def test_in_a_batch_and_around_one():
    seed(1)
    first, second, third = (fastinit.normal_(torch.empty(SHAPE)) for _ in range(3))
    seed(1)
    tensors = [poisoned() for _ in range(3)]
    with fastinit.batch():
        fastinit.normal_(tensors[0])
        with accelerate():
            nn.init.normal_(tensors[1])
            with fastinit.batch():
                fastinit.normal_(tensors[2])
                fastinit.zeros_(tensors[1][0])
            assert (tensors[2] != POISON).all()
    assert all(same_bits(*pair) for pair in zip(tensors[::2], (first, third), strict=True))
    assert same_bits(tensors[1][1:], second[1:])
    assert (tensors[1][0] == 0).all()


# --- who decides -------------------------------------------------------------------------------


def test_opt_in_touches_flagged_tensors_alone():
    flagged, other = poisoned(), poisoned()
    fastinit.flag(flagged, True)
    seed(1)
    ours = fastinit.normal_(torch.empty(SHAPE))
    theirs = nn.init.normal_(torch.empty(SHAPE))
    noise = torch.randn(5)
    seed(1)
    with accelerate(opt_in=True):
        nn.init.normal_(flagged)
        nn.init.normal_(other)
        made = torch.randn(5)
    assert same_bits(flagged, ours)
    assert same_bits(other, theirs)
    assert same_bits(made, noise)


@pytest.mark.parametrize("name", ["normal_", "trunc_normal_", "orthogonal_", "kaiming_normal_", "zeros_"])
def test_flags_are_obeyed(name):
    tensor = poisoned()
    fastinit.flag(tensor, False)
    seed(1)
    expected = getattr(nn.init, name)(torch.empty(SHAPE))
    seed(1)
    with accelerate() as report:
        nn.init.uniform_(tensor, generator=torch.Generator().manual_seed(1))
        getattr(nn.init, name)(tensor)
    assert same_bits(tensor, expected)
    assert report.escaped.keys() == {"uniform_", name} - {"zeros_"}


def test_the_environment_is_obeyed():
    code = """
import torch, fastinit
torch.manual_seed(1)
expected = [torch.nn.init.normal_(torch.empty(40, 30)), torch.nn.init.orthogonal_(torch.empty(9, 9)), torch.randn(4)]
torch.manual_seed(1)
with fastinit.accelerate() as report:
    made = [torch.nn.init.normal_(torch.empty(40, 30)), torch.nn.init.orthogonal_(torch.empty(9, 9)), torch.randn(4)]
assert all(map(torch.equal, made, expected))
assert sum(report.escaped.values()) == 3, report
"""
    python(code, FASTINIT="0")


@pytest.mark.parametrize("engine", ["reference", "eager", "cpu"])
def test_engines_are_obeyed(engine):
    seed(1)
    expected = [fastinit.normal_(torch.empty(SHAPE)), fastinit.zeros_(torch.empty(3))]
    seed(1)
    with fastinit.use_engine(engine), accelerate():
        made = [nn.init.normal_(torch.empty(SHAPE)), nn.init.zeros_(torch.empty(3))]
    assert all(same_bits(*pair) for pair in zip(made, expected, strict=True))


def test_fastinits_own_calls_in_a_block():
    stream = Stream(4)
    calls = [
        lambda: fastinit.normal_(torch.empty(SHAPE), stream=stream),
        lambda: fastinit.normal_(torch.empty(SHAPE), std=0.02),
        lambda: fastinit.normal_(torch.empty(SHAPE), fast=False),
        lambda: fastinit.kaiming_uniform_(torch.empty(SHAPE), layout="io"),
        lambda: fastinit.orthogonal_(torch.empty(9, 9), stream=stream),
        lambda: fastinit.normal_([torch.empty(9), torch.empty(8)])[1],
        lambda: fastinit.random.randn(5, stream=stream),
        lambda: fastinit.random.randperm(50, stream=stream),
        lambda: fastinit.random.multinomial(torch.ones(9), 3, stream=stream),
        lambda: fastinit.constant_(torch.empty(5), [1, 2, 3]),
        lambda: fastinit.initialisers.normal(std=0.5)((4, 5), stream=stream),
        lambda: fastinit.normal_(fastinit.shard(torch.empty(4, 9), (8, 9), (4, 0)), stream=stream).local,
        lambda: fastinit.dirac_(torch.empty(4, 4, 3)),
        lambda: fastinit.zeros_(torch.empty(4)),
        lambda: fastinit.bernoulli_(torch.empty(50), torch.full((50,), 0.3), stream=stream),
        lambda: fastinit.bits_(torch.empty(50, dtype=torch.int32), stream=stream),
    ]
    seed(1)
    expected = [call() for call in calls]
    seed(1)
    with accelerate() as report:
        made = [call() for call in calls]
    for number, pair in enumerate(zip(made, expected, strict=True)):
        assert same_bits(*pair), number
    assert not report.escaped


def test_a_flag_that_is_set_in_the_block_does_not_draw():
    tensor = watched()
    with accelerate() as report:
        nn.init.normal_(tensor)
        fastinit.flag(tensor, True)
        assert raw(tensor).value == POISON
    assert not report.early


def test_errors_are_torchs_and_come_at_once():
    tensor = poisoned()
    with accelerate():
        for call, error, words in (
            (lambda: nn.init.normal_(tensor, std=-1), RuntimeError, "std >= 0.0"),
            (lambda: nn.init.uniform_(tensor, 2, 1), RuntimeError, "from"),
            (lambda: nn.init.xavier_normal_(torch.empty(3)), ValueError, "fewer than 2 dimensions"),
            (lambda: nn.init.kaiming_uniform_(tensor, mode="fan"), ValueError, "Mode fan not supported"),
            (lambda: nn.init.orthogonal_(torch.empty(3)), ValueError, "2 or more dimensions"),
            (lambda: nn.init.eye_(torch.empty(3)), ValueError, "2 dimensions"),
            (lambda: tensor.normal_(1, 2, 3), TypeError, "normal_"),
            (lambda: tensor.random_(1.5), TypeError, "random_"),
            (lambda: tensor.geometric_(), TypeError, "geometric_"),
            (lambda: tensor.exponential_(-1), RuntimeError, "lambd"),
            (lambda: torch.randn(-3), RuntimeError, "negative"),
            (lambda: torch.randn("a"), TypeError, "randn"),
            (lambda: nn.init.trunc_normal_(tensor, std="a"), TypeError, "str"),
            (lambda: nn.init.orthogonal_(), TypeError, "tensor"),
            (lambda: nn.Parameter(tensor).normal_(), RuntimeError, "leaf Variable that requires grad"),
        ):
            with pytest.raises(error, match=words):
                call()
    assert (tensor == POISON).all()


def test_autograds_business_stays_its_own():
    weight = nn.Parameter(torch.ones(3))
    with accelerate() as report:
        noisy = (weight * 2).normal_()
    noisy.sum().backward()
    assert (weight.grad == 0).all()
    assert report.escaped


def test_meta_devices_skip_init_and_to_empty():
    with accelerate() as report:
        with torch.device("meta"):
            model = nn.Linear(300, 40)
        skipped = nn.utils.skip_init(nn.Linear, 30, 40)
        model.to_empty(device="cpu")
        nn.init.normal_(model.weight)
        nn.init.zeros_(skipped.weight)
    assert model.weight.std() > 0.9
    assert (skipped.weight == 0).all()
    assert not report.escaped


class Counting(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Seeing(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Counting, Seeing])
def test_a_mode_around_the_block_sees_torchs_own_calls(mode):
    """It must see them, so torch draws, with torch's numbers."""
    torch.manual_seed(2)
    expected = nn.init.normal_(torch.empty(SHAPE))
    torch.manual_seed(2)
    with mode() as other, accelerate() as report:
        tensor = nn.init.normal_(torch.empty(SHAPE))
        doubled = tensor * 2
    assert same_bits(tensor, expected)
    assert any("normal_" in name for name in other.names)
    assert any("mul" in name for name in other.names)
    assert torch.equal(doubled, tensor * 2)
    assert report.escaped["normal_"]


@pytest.mark.parametrize("mode", [Counting, Seeing])
def test_a_mode_inside_the_block_sees_torchs_calls_too(mode):
    with accelerate(), mode() as other:
        tensor = nn.init.normal_(torch.empty(SHAPE))
        doubled = tensor * 2
    assert any("normal_" in name for name in other.names)
    assert any("mul" in name for name in other.names)
    assert torch.equal(doubled, tensor * 2)


def test_a_mode_that_is_entered_while_something_is_pending():
    seed(1)
    expected = fastinit.normal_(torch.empty(SHAPE))
    seed(1)
    tensor, other = watched(), Seeing()
    with accelerate():
        nn.init.normal_(tensor)
        with other:
            doubled = tensor * 2
        nn.init.normal_(torch.empty(3))
    assert same_bits(tensor, expected)
    assert torch.equal(doubled, 2 * expected)
    assert "aten.mul.Tensor" in other.names


def test_replaced_functions_are_obeyed(monkeypatch):
    seen = []

    def skipping(tensor, *args, **kwargs):
        seen.append(tensor)
        return tensor

    tensor = poisoned()
    monkeypatch.setattr(nn.init, "normal_", skipping)
    monkeypatch.setattr(nn.init, "orthogonal_", skipping)
    with accelerate():
        nn.init.normal_(tensor)
        nn.init.orthogonal_(tensor)
    assert seen == [tensor, tensor]
    assert (tensor == POISON).all()


def test_a_wrapper_that_calls_torchs_function_is_served(monkeypatch):
    torchs = nn.init.normal_
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *args, **kwargs: torchs(tensor, *args, **kwargs).mul_(2))
    seed(1)
    expected = 2 * fastinit.random.randn(SHAPE)
    seed(1)
    with accelerate(), torch.no_grad():
        tensor = nn.init.normal_(torch.empty(SHAPE))
    assert torch.equal(tensor, expected)


def test_whoever_imported_a_wrapper_may_keep_it():
    with accelerate():
        kept = nn.init.orthogonal_
        assert kept is not orthogonal_
    seed(1)
    expected = orthogonal_(torch.empty(9, 9))
    seed(1)
    assert same_bits(kept(torch.empty(9, 9)), expected)


# --- what escapes ------------------------------------------------------------------------------

ESCAPES = {
    "complex": (lambda: torch.empty(5, dtype=torch.complex64).normal_(), {"normal_"}),
    "dropout": (lambda: functional.dropout(torch.ones(50)), {"bernoulli_"}),
    "gumbel_softmax": (lambda: functional.gumbel_softmax(torch.ones(5)), {"exponential_"}),
    "poisson": (lambda: torch.poisson(torch.ones(5)), {"poisson"}),
    "fractional_max_pool2d": (lambda: functional.fractional_max_pool2d(torch.ones(1, 9, 9), 2, output_size=4),
                              {"rand"}),
    "sdpa": (lambda: functional.scaled_dot_product_attention(*[torch.ones(1, 2, 4, 4)] * 3, dropout_p=0.5), None),
    "scripted": (lambda: SCRIPTED_DROPOUT(torch.ones(9)), {"bernoulli_"}),
}  # fmt: skip


@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.parametrize("what", ESCAPES)
def test_what_torch_draws_is_counted(what, pending):
    call, expected = ESCAPES[what]
    with accelerate() as report:
        kept = nn.init.normal_(torch.empty(5)) if pending else None
        call()
    assert report.escaped
    if expected is not None:
        assert report.escaped.keys() == expected
    del kept


def test_what_may_draw_and_does_not_is_not_counted():
    with accelerate() as report:
        functional.dropout(torch.ones(50), training=False)
        functional.scaled_dot_product_attention(*[torch.ones(1, 2, 4, 4)] * 3)
        nn.LSTM(3, 4)(torch.ones(2, 3))
    assert not report.escaped
