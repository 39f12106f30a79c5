"""Rules: which parameter is initialised how, by its name; what is wrong is told before anything is written."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
import warnings

import numpy as np
import pytest
import rich.console
import torch
import tqdm
from common import python, same_bits
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.nn.utils import parametrizations, prune

import fastinit
from fastinit import Rule, RulesError, Stream, accelerate, audit, initialize
from fastinit.initialisers import (
    constant,
    gates,
    get,
    kaiming_normal,
    keep,
    normal,
    ones,
    orthogonal,
    uniform,
    xavier_uniform,
    zeros,
)
from fastinit.models import rules as rules_module
from fastinit.models.rules import judged

SEED = 20261128


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=3)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)


RULES = [
    ("head.weight", normal(std=0.5)),
    ((nn.Linear, "bias"), zeros()),
    (nn.Linear, kaiming_normal(nonlinearity="relu")),
    (nn.Embedding, normal(std=0.02)),
    ((nn.LayerNorm, "weight"), ones()),
    ("*norm.bias", zeros()),
]


def drawn(value, name: str, shape, dtype=None) -> torch.Tensor:
    return value(shape, dtype, stream=Stream.named(name, SEED))


def untouched(model: nn.Module, act) -> pytest.ExceptionInfo:
    """The error that `act` raises; the model and the generator are as they were."""
    before = {name: (one, one.clone()) for name, one in model.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    with pytest.raises((ValueError, TypeError)) as caught:
        act()
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        if not tensor.is_meta:
            assert same_bits(tensor.detach(), before[name][1].detach()), name
    assert torch.equal(torch.get_rng_state(), state)
    return caught


# --- what is drawn -----------------------------------------------------------------------------


def test_each_parameter_is_drawn_by_the_first_rule_from_the_stream_of_its_name():
    model, state = Net(), torch.get_rng_state()
    report = initialize(model, RULES, seed=SEED)
    assert torch.equal(torch.get_rng_state(), state)
    found = dict(model.named_parameters())
    assert same_bits(found["head.weight"].detach(), drawn(normal(std=0.5), "head.weight", (20, 8)))
    for number in range(3):
        name = f"layers.{number}.weight"
        assert same_bits(found[name].detach(), drawn(kaiming_normal(nonlinearity="relu"), name, (8, 8)))
        assert not found[f"layers.{number}.bias"].any()
    expected = drawn(normal(std=0.02), "embedding.weight", (20, 8))
    expected[3] = 0  # padding
    assert same_bits(found["embedding.weight"].detach(), expected)
    assert (found["norm.weight"] == 1).all()
    assert not found["norm.bias"].any()
    assert [one.name for one in report.assigned] == list(found)
    assert report.assigned[-1][:2] == ("head.weight", (20, 8))
    assert report.assigned[-1].initialiser == "normal(std=0.5)"
    assert report.assigned[-1].rule == "('head.weight', normal(std=0.5))"


def test_audit_knows_the_laws():
    model = Net()
    initialize(model, RULES, seed=SEED)
    found = audit(model)
    assert not found.errors
    assert {row.by for row in found.rows} == {"name", "constant"}


@pytest.mark.parametrize(
    "what",
    [
        normal(0.0, 0.3),
        {"name": "normal", "arguments": {"std": 0.3}},
        functools.partial(torch.nn.init.normal_, std=0.3),
        functools.partial(fastinit.normal_, std=0.3),
        lambda weight: torch.nn.init.normal_(weight, std=0.3),
        lambda weight: weight.data.normal_(0.0, 0.3),
        lambda weight: fastinit.normal_(weight, std=0.3),
    ],
    ids=["value", "config", "torch", "fastinit", "torch's in a function", "method", "fastinit's in a function"],
)
def test_whatever_says_the_same_draws_the_same(what):
    model = nn.Linear(6, 5, bias=False)
    initialize(model, [(nn.Linear, what)], seed=SEED)
    assert same_bits(model.weight.detach(), drawn(normal(std=0.3), "weight", (5, 6)))


@pytest.mark.parametrize("what", ["zeros", "Zeros", zeros, torch.nn.init.zeros_, fastinit.zeros_], ids=range(5))
def test_names_and_functions_are_initialisers(what):
    model = nn.Linear(6, 5)
    initialize(model, {"*": what}, seed=SEED)
    assert not model.weight.any()


@pytest.mark.parametrize(
    "where",
    [
        nn.Linear,
        (nn.Conv2d, nn.Linear),
        nn.Module,
        ((nn.Conv2d, nn.Linear), "weight"),
        (nn.Linear, "w*"),
        "0.weight",
        "*weight",
        "?.w[ef]ight",
        lambda name, module, parameter: name == "0.weight" and module.in_features == 6 and parameter.dim() == 2,
        (nn.Linear,),
        ((nn.Linear,), "weight"),
    ],
    ids=range(11),
)
def test_where(where):
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    initialize(model, [Rule(where, constant(0.5))], seed=SEED)
    assert (model[0].weight == 0.5).all()


def test_keep_leaves_what_is_there():
    model = Net()
    before = model.layers[1].weight.detach().clone()
    initialize(model, [("layers.1.*", keep()), *RULES], seed=SEED)
    assert same_bits(model.layers[1].weight.detach(), before)
    assert get(keep().to_config()) == keep() == get("keep")
    assert keep().fill(before) is before


def test_the_order_of_modules_and_what_else_there_is_change_nothing():
    small, large = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(3, 4))
    initialize(small, SIMPLE, seed=1)
    initialize(large, [*SIMPLE, (nn.Embedding, normal())], seed=1)
    assert same_bits(small[0].weight.detach(), large[0].weight.detach())


SIMPLE = [((nn.Linear, "weight"), xavier_uniform()), ((nn.Linear, "bias"), uniform(-0.1, 0.1))]


@pytest.mark.parametrize("fast", [None, True, False])
def test_fast(fast):
    """With False torch draws, from generators seeded by name: the same for the same seed, whatever the order."""
    one, other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.ModuleDict({"1": nn.Linear(4, 4)})
    initialize(one, SIMPLE, seed=SEED, fast=fast)
    initialize(other, SIMPLE, seed=SEED, fast=fast)
    assert same_bits(one[1].weight.detach(), other["1"].weight.detach())
    assert not same_bits(one[0].weight.detach(), one[1].weight.detach())
    ours = same_bits(one[1].weight.detach(), drawn(xavier_uniform(), "1.weight", (4, 4)))
    assert ours is (fast is not False)


def test_what_torch_draws_is_by_name_too():
    """Complex parameters are outside of the stream contract."""

    def made(*names):
        model = nn.Module()
        for name in names:
            model.register_parameter(name, nn.Parameter(torch.empty(30, dtype=torch.complex64)))
        initialize(model, {"*": normal()}, seed=SEED)
        return dict(model.named_parameters())

    assert torch.equal(made("a", "b")["b"], made("b")["b"])
    assert made("b")["b"].std().item() == pytest.approx(1, abs=0.4)


def test_flags_are_obeyed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fastinit.flag(model[0], False)
    initialize(model, SIMPLE, seed=SEED)
    assert not same_bits(model[0].weight.detach(), drawn(xavier_uniform(), "0.weight", (4, 4)))
    assert same_bits(model[1].weight.detach(), drawn(xavier_uniform(), "1.weight", (4, 4)))


@pytest.mark.parametrize(("progress", "disable"), [(None, None), (True, False), (False, True)])
def test_progress(progress, disable, monkeypatch):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, **named):
            super().__init__(**{**named, "file": io.StringIO(), "disable": False})
            bars.append((named, self))

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setattr("fastinit.models.initialize.GROUP", 100)
    model, expected = Net(), Net()
    initialize(model, RULES, seed=SEED, progress=progress)
    ((named, shown),) = bars
    assert named["disable"] is disable
    assert shown.n == shown.total == sum(one.numel() for one in model.parameters())
    monkeypatch.undo()
    initialize(expected, RULES, seed=SEED)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


# --- several names, wrappers, parts ----------------------------------------------------------------


def test_tied_parameters_are_drawn_once_by_their_first_name():
    model = Net()
    model.head.weight = model.embedding.weight
    initialize(model, [("*", normal())], seed=SEED)
    expected = drawn(normal(), "embedding.weight", (20, 8))
    expected[3] = 0
    assert same_bits(model.head.weight.detach(), expected)


def test_rules_that_disagree_about_a_tied_parameter_are_an_error():
    model = Net()
    model.head.weight = model.embedding.weight
    found = untouched(model, lambda: initialize(model, RULES, seed=SEED))
    assert found.match(r"embedding\.weight \(20, 8\) is one tensor with the names embedding\.weight, head\.weight")
    initialize(
        model, [((nn.Embedding, "weight"), normal()), ("head.weight", normal()), *RULES[1:3], *RULES[4:]], seed=SEED
    )


def wrapped():
    yield "plain", lambda model: model
    yield "DataParallel", nn.DataParallel
    yield "torch.compile", torch.compile
    yield "checkpoint_wrapper", checkpoint_wrapper


@pytest.mark.parametrize("wrap", [pytest.param(wrap, id=name) for name, wrap in wrapped()])
@pytest.mark.parametrize("part", ["all", "a layer"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_wrappers_do_not_change_names(wrap, part):
    expected, model = Net(), Net()
    initialize(expected, RULES, seed=SEED)
    if part == "all":
        model = wrap(model)
    else:
        model.layers[1] = wrap(model.layers[1])
    report = initialize(model, RULES, seed=SEED)
    assert all(map(same_bits, (p.detach() for p in model.parameters()), (p.detach() for p in expected.parameters())))
    assert [one.name for one in report.assigned] == [name for name, _ in expected.named_parameters()]


@pytest.fixture
def one_process(tmp_path):
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of one process, and of FSDP1
@pytest.mark.parametrize(
    "wrap",
    [
        nn.parallel.DistributedDataParallel,
        lambda model: FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu")),
    ],
    ids=["DDP", "FSDP1"],
)
def test_distributed_wrappers_do_not_change_names(wrap):
    expected, model = Net(), wrap(Net())
    initialize(expected, RULES, seed=SEED)
    report = initialize(model, RULES, seed=SEED)
    assert [one.name for one in report.assigned] == [name for name, _ in expected.named_parameters()]
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


def test_a_module_called_module_is_none_of_these():
    model = nn.Module()
    model.module = nn.Linear(4, 4)
    initialize(model, SIMPLE, seed=SEED)
    assert same_bits(model.module.weight.detach(), drawn(xavier_uniform(), "module.weight", (4, 4)))


def test_gates():
    model = nn.LSTM(6, 5)
    rules = [
        ((nn.LSTM, "weight_hh_*"), gates("ifgo", orthogonal())),
        ((nn.LSTM, "weight_ih_*"), xavier_uniform()),
        ((nn.LSTM, "bias_ih_*"), gates("ifgo", zeros(), f=ones())),
        ((nn.LSTM, "bias_hh_*"), zeros()),
    ]
    initialize(model, rules, seed=SEED)
    for gate in model.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(5), atol=1e-5, rtol=0)
    assert len({gate.sum().item() for gate in model.weight_hh_l0.detach().chunk(4)}) == 4
    assert model.bias_ih_l0.tolist() == [0] * 5 + [1] * 5 + [0] * 10
    by_hand = nn.LSTM(6, 5)
    with accelerate(by_hand, seed=SEED):
        nn.init.xavier_uniform_(by_hand.weight_ih_l0)
        nn.init.zeros_(by_hand.bias_hh_l0)
        for gate in by_hand.weight_hh_l0.chunk(4):
            nn.init.orthogonal_(gate)
        for gate, value in zip(by_hand.bias_ih_l0.chunk(4), (0.0, 1.0, 0.0, 0.0), strict=True):
            nn.init.constant_(gate, value)
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert same_bits(ours.detach(), theirs.detach())


def test_gates_are_values():
    value = gates("ifgo", orthogonal(gain=2.0), f=normal(std=0.1))
    assert value == get(value.to_config()) != gates("ifgo", orthogonal(gain=2.0))
    assert repr(value) == "gates('ifgo', orthogonal(gain=2.0), f=normal(std=0.1))"
    assert hash(value) == hash(get(value.to_config()))
    whole = value.fill(torch.empty(20, 4), stream=Stream(3))
    for rows in ((0, 20), (3, 9), (5, 5), (18, 20)):
        part = torch.empty(rows[1] - rows[0], 3)
        value.fill(fastinit.shard(part, (20, 4), (rows[0], 1)), stream=Stream(3))
        assert same_bits(part, whole[rows[0] : rows[1], 1:].contiguous())
    torch.manual_seed(3)
    ours = value.fill(torch.empty(20, 4))
    torch.manual_seed(3)
    loop = torch.empty(20, 4)
    for number, gate in enumerate(loop.chunk(4)):
        (normal(std=0.1) if number == 1 else orthogonal(gain=2.0)).fill(gate)
    assert same_bits(ours, loop)
    with pytest.raises(ValueError, match=r"needs rows that its 4 gates divide, got the shape \(5, 4\)"):
        value.fill(torch.empty(5, 4))
    with pytest.raises(ValueError, match="needs rows that its 4 gates divide"):
        value.fill(torch.empty(()))


@pytest.mark.parametrize("layout", ["", "aa", "a1", 3])
def test_layouts_of_gates_are_different_letters(layout):
    with pytest.raises(ValueError, match="gates have a layout of different letters"):
        gates(layout, zeros())


def test_bad_gates():
    with pytest.raises(ValueError, match="the layout 'ifgo' has no gate x"):
        gates("ifgo", zeros(), x=ones())
    with pytest.raises(ValueError, match="no initialiser 'zeroes'"):
        gates("ifgo", "zeroes")
    with pytest.raises(ValueError, match="a configuration of gates is what to_config"):
        get({"name": "gates"})


# --- weights that are computed from others -------------------------------------------------------


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(module)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, old_weight_norm], ids=["parametrised", "hook"])
@pytest.mark.parametrize("where", [nn.Linear, (nn.Linear, "weight"), "*.weight"], ids=str)
def test_weight_norm_sets_the_weight(norm, where):
    model = nn.Sequential(norm(nn.Linear(6, 5, bias=False)))
    initialize(model, [(where, normal(std=0.3))], seed=SEED)
    model(torch.zeros(1, 6))  # a hook computes it
    torch.testing.assert_close(model[0].weight.detach(), drawn(normal(std=0.3), "0.weight", (5, 6)))


def test_weight_norm_on_meta():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5, device="meta")))
    initialize(model, [((nn.Linear, "weight"), normal(std=0.3)), ("*.bias", zeros())], seed=SEED, device="cpu")
    torch.testing.assert_close(model[0].weight.detach(), drawn(normal(std=0.3), "0.weight", (5, 6)))


def test_what_a_weight_is_computed_from_can_be_named():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5, bias=False)))
    original = "0.parametrizations.weight.original"
    initialize(model, [(f"{original}0", ones()), (f"*{original}1", normal())], seed=SEED)
    assert (model[0].parametrizations.weight.original0 == 1).all()
    assert same_bits(model[0].parametrizations.weight.original1.detach(), drawn(normal(), f"{original}1", (5, 6)))


def test_spectral_norm_s_state_is_not_moved_by_looking():
    model = parametrizations.spectral_norm(nn.Linear(6, 5, bias=False))
    before = [buffer.clone() for buffer in model.buffers()]
    initialize(model, [(nn.Linear, normal())], seed=SEED)
    assert all(map(torch.equal, before, model.buffers()))
    assert model.training
    assert model.parametrizations.weight.training
    assert same_bits(model.parametrizations.weight.original.detach(), drawn(normal(), "weight", (5, 6)))


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_an_initialiser_that_would_have_no_effect_is_an_error():
    model = nn.Sequential(nn.Linear(6, 5))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    found = untouched(model, lambda: initialize(model, {"*": normal()}, seed=SEED))
    assert found.match(r"0\.parametrizations\.weight\.original \(5, 6\): no rule names it \(weight is computed from it")
    initialize(model, [("*.original", normal()), ("*.bias", zeros())], seed=SEED)


def test_hooks_that_rename_a_weight():
    """Pruning and the old spectral norm compute `weight` from `weight_orig`."""
    model = nn.Sequential(prune.random_unstructured(nn.Linear(6, 5), "weight", amount=0.5))
    initialize(model, [((nn.Linear, "weight"), normal()), ((nn.Linear, "bias"), zeros())], seed=SEED)
    assert same_bits(model[0].weight_orig.detach(), drawn(normal(), "0.weight_orig", (5, 6)))


class Positive(nn.Module):
    def forward(self, x):
        return x.abs()

    def right_inverse(self, weight):
        if weight.min() < 0:
            raise ValueError("not positive")
        return weight


def test_a_weight_that_cannot_be_set_leaves_the_model_as_it_was():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 5))
    model[1].weight.data.abs_()
    nn.utils.parametrize.register_parametrization(model[1], "weight", Positive())
    found = untouched(model, lambda: initialize(model, {"*.bias": zeros(), "*.weight": normal()}, seed=SEED))
    assert found.match("not positive")


class Scale(nn.Module):
    """A parametrisation with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.k

    def right_inverse(self, x):
        return x / self.k


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_parametrisation_s_own_parameters_come_first(device):
    with fastinit.meta() if device else contextlib.nullcontext():
        model = nn.Sequential(nn.Linear(6, 5))
        nn.utils.parametrize.register_parametrization(model[0], "weight", Scale())
    initialize(model, {"*.k": constant(4.0), "*.weight": normal(), "*.bias": zeros()}, seed=SEED, device=device)
    torch.testing.assert_close(model[0].weight.detach(), drawn(normal(), "0.weight", (5, 6)))
    assert model[0].parametrizations.weight[0].k == 4


def test_computed_weights_keep_their_memory():
    model = parametrizations.weight_norm(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    model.share_memory()
    original = model.parametrizations.weight.original1
    before = original.data_ptr(), original.stride()
    initialize(model, {"weight": normal(), "bias": zeros()}, seed=SEED)
    assert (original.data_ptr(), original.stride()) == before
    assert original.is_shared()
    torch.testing.assert_close(model.weight.detach(), drawn(normal(), "weight", (4, 4, 3, 3)))


def test_a_row_for_padding_cannot_be_of_a_computed_weight():
    model = parametrizations.weight_norm(nn.Embedding(5, 3, padding_idx=1))
    found = untouched(model, lambda: initialize(model, {"*": normal()}, seed=SEED))
    assert found.match(r"weight \(5, 3\) is computed, and has a row for padding")


def test_a_part_of_two_computed_weights_would_be_written_twice():
    one, other = (parametrizations.weight_norm(nn.Linear(3, 3, bias=False)) for _ in range(2))
    other.parametrizations.weight.original1 = one.parametrizations.weight.original1
    model = nn.Sequential(one, other)
    found = untouched(model, lambda: initialize(model, {"*.weight": normal()}, seed=SEED))
    assert found.match(r"1\.weight is computed from 0\.parametrizations\.weight\.original1, as 0\.weight")


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)

    def right_inverse(self, x):
        return x


def test_looking_at_a_parametrisation_draws_nothing():
    model = nn.Linear(3, 3)
    nn.utils.parametrize.register_parametrization(model, "weight", Noise())
    state = torch.get_rng_state()
    initialize(model, {"weight": normal(), "bias": zeros()}, seed=SEED)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_function_for_a_computed_weight_in_another_dtype():
    model = parametrizations.weight_norm(nn.Linear(6, 5))
    rules = {"weight": lambda weight: nn.init.ones_(weight), "bias": zeros()}
    initialize(model, rules, seed=SEED, dtype=torch.bfloat16)
    assert model.weight.dtype is torch.bfloat16
    torch.testing.assert_close(model.weight.detach(), torch.ones(5, 6, dtype=torch.bfloat16), atol=0.01, rtol=0)


# --- memory layouts, flags, threads ----------------------------------------------------------------


@pytest.mark.parametrize("layout", ["ab", "a"])
@pytest.mark.parametrize("how", ["channels_last", "transposed", "columns"])
def test_gates_in_any_memory_layout(how, layout):
    model, value = nn.Module(), gates(layout, normal())
    whole = {
        "channels_last": lambda: torch.empty(8, 4, 3, 3, memory_format=torch.channels_last),
        "transposed": lambda: torch.empty(5, 8).t(),
        "columns": lambda: torch.empty(8, 10)[:, 3:8],
    }[how]()
    model.weight = nn.Parameter(whole)
    initialize(model, {"weight": value}, seed=SEED)
    expected = value.fill(torch.empty(whole.shape), stream=Stream.named("weight", SEED))
    assert same_bits(model.weight.detach().contiguous(), expected)


def test_the_environment_variable_is_obeyed():
    code = f"""
import math, torch, fastinit
from torch import nn
model = nn.Linear(4, 4)
fastinit.initialize(model, "torch_default", seed={SEED})
torch.manual_seed(fastinit.Stream.named("weight", {SEED}).id)
print(torch.equal(model.weight, nn.init.kaiming_uniform_(torch.empty(4, 4), math.sqrt(5))))
"""
    assert python(code, FASTINIT="0").split() == ["True"]


def test_torch_draws_the_same_in_several_threads():
    models = [nn.Sequential(*[nn.Linear(40, 40) for _ in range(10)]) for _ in range(4)]
    named = {"seed": SEED, "fast": False}
    threads = [threading.Thread(target=initialize, args=(one, "torch_default"), kwargs=named) for one in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models[1:]:
        assert all(map(torch.equal, model.parameters(), models[0].parameters()))


def test_what_torch_refuses_only_of_memory_has_the_parameter_s_name():
    model = nn.Module()
    model.b = nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    found = untouched(model, lambda: initialize(model, {"b": orthogonal()}, seed=SEED, fast=False))
    assert found.match(r"b \(4, 4\) cannot be initialised by orthogonal\(\)")


def test_a_module_that_contains_itself():
    model = Net()
    model.layers[0].parent = model
    report = initialize(model, RULES, seed=SEED)
    assert len(report.assigned) == 10


# --- meta, device, dtype, buffers ------------------------------------------------------------------


def test_meta_models_get_memory_and_stay_tied():
    with torch.device("meta"):
        model = Net()
    model.head.weight = model.embedding.weight
    model.head.weight.mark = 5
    rules = [("*", normal())]
    found = untouched(model, lambda: initialize(model, rules, seed=SEED))
    assert found.match(r"embedding\.weight \(20, 8\) is on the meta device, without memory: give device=")
    initialize(model, rules, seed=SEED, device="cpu", dtype=torch.bfloat16)
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.mark == 5
    expected = drawn(normal(), "embedding.weight", (20, 8), torch.bfloat16)
    expected[3] = 0
    assert same_bits(model.head.weight.detach(), expected)


def test_dtype_keeps_the_parameter_objects():
    model = Net()
    before = [*model.parameters()]
    kept = model.norm.weight.detach().clone()
    initialize(model, [*RULES[:4], ("norm.weight", keep()), RULES[5]], seed=SEED, dtype=torch.float16)
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    assert {one.dtype for one in model.parameters()} == {torch.float16}
    assert same_bits(model.norm.weight.detach(), kept.half())
    assert same_bits(model.head.weight.detach(), drawn(normal(std=0.5), "head.weight", (20, 8), torch.float16))


@pytest.mark.parametrize("function", [lambda weight: 1 / 0, torch.randn_like], ids=["raises", "writes nothing"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_function_that_fails_takes_the_new_memory_back(device, function):
    with torch.device("meta") if device else contextlib.nullcontext():
        model = Net()
    before = {name: (one, one.data_ptr(), one.dtype) for name, one in model.named_parameters()}
    values = {name: one.detach().clone() for name, one in model.named_parameters()}
    rules = [("head.weight", function), *RULES[1:]]
    with pytest.raises((ZeroDivisionError, RulesError)):
        initialize(model, rules, seed=SEED, dtype=torch.float64, device=device)
    for name, one in model.named_parameters():
        assert (one, one.data_ptr(), one.dtype) == before[name]
        assert one.is_meta or torch.equal(one, values[name])


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"dtype": torch.int8}, "dtype is what floating-point parameters become"),
        ({"dtype": "bfloat"}, "torch has no dtype 'bfloat'"),
        ({"device": "meta"}, "the meta device has none"),
    ],
)
def test_bad_dtypes_and_devices(named, text):
    model = Net()
    found = untouched(model, lambda: initialize(model, RULES, seed=SEED, **named))
    assert found.match(text)


def test_dtypes_by_name():
    model = Net()
    initialize(model, RULES, seed=SEED, dtype="bfloat16")
    assert model.head.weight.dtype is torch.bfloat16


def test_keeping_what_has_no_memory_is_an_error():
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    found = untouched(model, lambda: initialize(model, {"weight": keep(), "bias": zeros()}, seed=SEED, device="cpu"))
    assert found.match(r"weight \(3, 3\) is on the meta device, so there is nothing to keep")


NORM = {"weight": ones(), "bias": zeros()}


def test_buffers_are_left_to_rules_that_name_them():
    model = nn.BatchNorm1d(4)
    model.running_mean.fill_(3.0)
    initialize(model, {"*": ones()}, seed=SEED)
    assert (model.running_mean == 3).all()
    initialize(
        model, {"*running_mean": zeros(), (nn.BatchNorm1d, "running_var"): constant(2.0), "*": ones()}, seed=SEED
    )
    assert not model.running_mean.any()
    assert (model.running_var == 2).all()


def test_buffers_without_memory_need_a_rule():
    with torch.device("meta"):
        model = nn.BatchNorm1d(4)
    found = untouched(model, lambda: initialize(model, NORM, seed=SEED, device="cpu"))
    assert found.match(r"running_mean \(4,\): no rule names it")
    assert found.match(r"num_batches_tracked \(\): no rule names it")
    with fastinit.meta():
        model = nn.BatchNorm1d(4)
    assert model.weight.is_meta
    initialize(model, NORM, seed=SEED, device="cpu")
    assert (model.weight == 1).all()
    assert (model.running_var == 1).all()


def test_meta_keeps_ties_attributes_and_buffers():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.ones(3, 3), requires_grad=False)
            weight.mark = "mine"
            self.a, self.b = weight, weight
            self.register_buffer("table", torch.arange(3.0))
            self.lazy = nn.LazyLinear(3)

    with fastinit.meta():
        model = Tied()
    assert model.a is model.b
    assert model.a.is_meta
    assert not model.a.requires_grad
    assert model.a.mark == "mine"
    assert model.table.tolist() == [0, 1, 2]
    assert nn.parameter.is_lazy(model.lazy.weight)
    assert not nn.Linear(2, 2).weight.is_meta


# --- only ------------------------------------------------------------------------------------------


def test_only_what_a_checkpoint_did_not_hold():
    source, model = Net(), Net()
    state = source.state_dict()
    del state["layers.1.weight"], state["norm.bias"]
    missing = model.load_state_dict(state, strict=False).missing_keys
    model.norm.bias.data.fill_(7)
    report = initialize(model, RULES, seed=SEED, only=missing)
    assert {one.name for one in report.assigned} == {*missing}
    expected = drawn(kaiming_normal(nonlinearity="relu"), "layers.1.weight", (8, 8))
    assert same_bits(model.layers[1].weight.detach(), expected)
    assert not model.norm.bias.any()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_only_takes_the_names_of_a_wrapped_model_s_state():
    model, expected = nn.DataParallel(Net()), Net()
    report = initialize(model, RULES, seed=SEED, only=["module.head.weight"])
    initialize(expected, RULES, seed=SEED)
    assert [one.name for one in report.assigned] == ["head.weight"]
    assert torch.equal(model.module.head.weight, expected.head.weight)


def test_only_with_a_part_of_a_computed_weight():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)))
    missing = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]
    report = initialize(model, {"*.weight": normal(), "*.bias": zeros()}, seed=SEED, only=missing)
    assert [one.name for one in report.assigned] == ["0.weight"]
    torch.testing.assert_close(model[0].weight.detach(), drawn(normal(), "0.weight", (5, 6)))


def test_only_leaves_a_tied_parameter_that_was_loaded_under_one_of_its_names():
    """As transformers' checkpoints, and fastinit's, have tied parameters: once."""
    model = Net()
    model.head.weight = model.embedding.weight
    missing = model.load_state_dict({"embedding.weight": torch.full((20, 8), 7.0)}, strict=False).missing_keys
    assert "head.weight" in missing
    report = initialize(model, [("*", normal())], seed=SEED, only=missing)
    assert (model.embedding.weight == 7).all()
    assert {one.name for one in report.assigned} == {*missing} - {"head.weight"}
    initialize(model, [("*", normal())], seed=SEED, only=["head.weight", "embedding.weight"])
    assert not (model.embedding.weight == 7).any()


def test_only_with_half_of_a_computed_weight_is_an_error():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)))
    rules = {"*.weight": normal(), "*.bias": zeros()}
    only = ["0.parametrizations.weight.original0"]
    found = untouched(model, lambda: initialize(model, rules, seed=SEED, only=only))
    assert found.match(r"0\.weight \(5, 6\) is computed from .*, of which only= names some")


@pytest.mark.parametrize("only", ["head.weight", 5, [5], ([], [])], ids=str)
def test_only_is_a_list_of_names(only):
    model = Net()
    found = untouched(model, lambda: initialize(model, RULES, seed=SEED, only=only))
    assert found.match(r"only is a list of names, such as load_state_dict\(\.\.\.\)\.missing_keys; got")


def test_only_with_no_names_does_nothing():
    model = Net()
    before = [one.detach().clone() for one in model.parameters()]
    assert not initialize(model, RULES, seed=SEED, only=[]).assigned
    assert all(map(torch.equal, before, model.parameters()))


def test_only_names_what_the_model_has():
    model = Net()
    found = untouched(model, lambda: initialize(model, RULES, seed=SEED, only=["layer.1.weight"]))
    assert found.match(r"Net has no tensors of these names: 'layer\.1\.weight' \(near it: layers\.1\.weight\)")


def test_what_is_not_in_only_needs_no_rule():
    model = Net()
    initialize(model, [("head.weight", normal())], seed=SEED, only=["head.weight"])
    assert same_bits(model.head.weight.detach(), drawn(normal(), "head.weight", (20, 8)))


# --- what is wrong is told before anything is written ----------------------------------------------


def test_all_problems_at_once():
    model = Net()
    model.extra = nn.Parameter(torch.zeros(3))
    model.twice = nn.Parameter(model.norm.weight.detach())
    rules = [
        *RULES,
        ("*.wieght", zeros()),
        (nn.Conv2d, zeros()),
        ((nn.Linear, "biass"), zeros()),
        ("twice", xavier_uniform()),
    ]
    found = untouched(model, lambda: initialize(model, rules, seed=SEED))
    assert found.type is RulesError
    for text in (
        "Net and its rules, 6 problems; nothing was written:",
        "rule 6, ('*.wieght', zeros()), matches nothing; near it: ",
        "rule 7, (Conv2d, zeros()), matches nothing",
        "rule 8, ((Linear, 'biass'), zeros()), matches nothing; near it: Linear has weight, bias",
        "extra (3,): no rule matches it",
        "twice (8,) cannot be initialised by xavier_uniform(): Fan in and fan out can not be computed",
        "fewer than 2 dimensions; put a rule for it before rule 9",
        "shares memory with",
    ):
        assert found.match(re.escape(text))


def test_rules_behind_others_that_take_all_are_dead():
    model = nn.Linear(3, 3)
    found = untouched(model, lambda: initialize(model, [("*", normal()), ((nn.Linear, "bias"), zeros())], seed=SEED))
    assert found.match(r"rule 1, .*, never applies: earlier rules match every tensor that it matches")


def test_a_class_that_is_near():
    model = nn.Sequential(nn.Conv2d(2, 2, 2))
    found = untouched(model, lambda: initialize(model, [(nn.Conv1d, zeros()), ("*", zeros())], seed=SEED))
    assert found.match("rule 0, .* matches nothing; near it: Conv2d")


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.zeros(3, 3), 0.1, 0, torch.qint8)


def inference_tensor() -> torch.Tensor:
    with torch.inference_mode():
        return nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def emptied_by_zero3() -> torch.Tensor:
    parameter = nn.Parameter(torch.empty(0))
    parameter.ds_numel = 9
    return parameter


ODD = {
    "sparse": (lambda: torch.zeros(3, 3).to_sparse(), "has the layout torch.sparse_coo"),
    "quantised": (quantised, "is quantised"),
    "integers": (lambda: torch.zeros(3, 3, dtype=torch.int8), "cannot be initialised by normal()"),
    "empty": (lambda: torch.empty(0, 3), "has no elements"),
    "zero3": (emptied_by_zero3, "has no elements here: DeepSpeed ZeRO-3 has taken them"),
    "overlapping": (lambda: torch.zeros(20).as_strided((3, 3), (4, 2)), "has elements that share memory"),
    "inference": (inference_tensor, "is an inference tensor, which nothing may write outside torch.inference_mode()"),
    "expanded": (lambda: torch.zeros(3, 1).expand(3, 3), "has elements that share memory"),
    "lazy": (lambda: nn.parameter.UninitializedParameter(), "is lazy, and gets its shape from the first batch"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_odd_parameters(name):
    make, text = ODD[name]
    model, tensor = nn.Module(), make()
    model.odd = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    model.fine = nn.Parameter(torch.ones(3))
    with pytest.raises(
        RulesError, match=re.escape(f"odd {'' if name == 'lazy' else str(tuple(tensor.shape)) + ' '}{text}")
    ):
        initialize(model, {"*": normal()}, seed=SEED)
    assert (model.fine == 1).all()
    initialize(model, {"odd": keep(), "fine": normal()}, seed=SEED)


def test_views_of_one_tensor_would_be_written_twice():
    model, whole = nn.Module(), torch.zeros(6, 4)
    model.whole, model.part = nn.Parameter(whole), nn.Parameter(whole[2:4])
    found = untouched(model, lambda: initialize(model, {"*": normal()}, seed=SEED))
    assert found.match("part shares memory with whole, and would be written twice")
    found = untouched(model, lambda: initialize(model, {"whole": normal(), "part": keep()}, seed=SEED))
    assert found.match("part shares memory with whole")
    initialize(model, {"whole": keep(), "part": keep()}, seed=SEED)


def test_parts_beside_each_other_are_fine():
    model, whole = nn.Module(), torch.zeros(6, 4)
    model.left, model.right = nn.Parameter(whole[:, :2]), nn.Parameter(whole[:, 2:])
    initialize(model, {"*": normal()}, seed=SEED)
    assert same_bits(model.left.detach().contiguous(), drawn(normal(), "left", (6, 2)))


def test_a_function_that_fails_after_an_initialiser_changes_nothing():
    model = Net()

    def fails(weight):
        nn.init.normal_(weight)
        raise ValueError("mine")

    found = untouched(model, lambda: initialize(model, [("head.weight", fails), *RULES[1:]], seed=SEED))
    assert str(found.value) == "mine"


def test_a_function_has_to_write_all_of_its_tensor():
    model = Net()
    found = untouched(model, lambda: initialize(model, [("head.weight", torch.randn_like), *RULES[1:]], seed=SEED))
    assert found.match(r"head\.weight \(20, 8\): .* returned without having written all of it")
    with pytest.raises(RulesError, match="returned without having written all of it"):
        initialize(model, [("head.weight", lambda weight: weight[:3].fill_(1)), *RULES[1:]], seed=SEED)


@pytest.mark.parametrize(
    ("rules", "kind", "text"),
    [
        (3, TypeError, "rules are a list of pairs (where, initialiser), or a recipe; got int"),
        ([3], TypeError, "rule 0: expected a pair (where, initialiser), got 3"),
        ([("a", "zeros", 1)], TypeError, "rule 0: expected a pair"),
        ([(3, "zeros")], TypeError, "rule 0: where is a class of modules, a pattern"),
        ([(int, "zeros")], TypeError, "rule 0: where is"),
        ([((int, "weight"), "zeros")], TypeError, "rule 0: where is"),
        ([((), "zeros")], TypeError, "rule 0: where is"),
        ([("*", "zeroes")], ValueError, "rule 0: there is no initialiser 'zeroes'; near it: zeros"),
        ([("*", 3)], TypeError, "rule 0: an initialiser is a value"),
        ([("*", nn.Linear)], TypeError, "rule 0: an initialiser is a value"),
        ([("*", "zeroes"), (3, 3)], TypeError, "rule 0: there is no initialiser 'zeroes'"),
        ("gpt3", ValueError, "there is no recipe 'gpt3'; near it: gpt2"),
        ("gpt2(n_layers=2)", ValueError, "a recipe is written as gpt2(n_layer=12)"),
        (lambda model: 3, TypeError, "rules are a list"),
        ([(nn.Linear(2, 2), "zeros")], TypeError, "rule 0: where is a class of modules"),
        ([("*", nn.ReLU())], TypeError, "rule 0: an initialiser is a value"),
        ([("*", np.array([1, 2]))], TypeError, "rule 0: an initialiser is a value"),
    ],
    ids=range(17),
)
def test_bad_rules(rules, kind, text):
    model = Net()
    found = untouched(model, lambda: initialize(model, rules, seed=SEED))
    assert found.type is kind
    assert found.match(re.escape(text))


@pytest.mark.parametrize("seed", [-1, 2**64, "a", None])
def test_bad_seeds(seed):
    model = Net()
    untouched(model, lambda: initialize(model, RULES, seed=seed))


def test_an_optional_rule_may_match_nothing():
    model = nn.Linear(3, 3)
    initialize(model, [Rule(nn.Conv2d, zeros(), optional=True), ("*", zeros())], seed=SEED)
    assert judged([Rule("a", "zeros", True)]) == [Rule("a", zeros(), True)]


# --- apply -----------------------------------------------------------------------------------------

APPLIED = [
    ((nn.Linear, "bias"), zeros()),
    (nn.Linear, kaiming_normal(nonlinearity="relu")),
    (nn.Embedding, normal(std=0.02)),
    ("weight", ones()),
    ("b*s", zeros()),
    (nn.Conv2d, zeros()),
]


def test_apply_inside_accelerate_has_the_bits_of_initialize():
    model, expected = Net(), Net()
    with accelerate(model, seed=SEED) as report:
        model.apply(fastinit.apply(APPLIED))
    initialize(expected, [("head.weight", kaiming_normal(nonlinearity="relu")), *RULES[1:]], seed=SEED)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))
    assert not report.escaped


def test_apply_draws_from_the_generator():
    model = nn.Sequential(nn.Linear(4, 4))
    torch.manual_seed(3)
    model.apply(fastinit.apply(APPLIED))
    torch.manual_seed(3)
    expected = fastinit.kaiming_normal_(torch.empty(4, 4), nonlinearity="relu")
    assert same_bits(model[0].weight.detach(), expected)


def test_apply_to_computed_weights():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    model.apply(fastinit.apply([((nn.Linear, "weight"), constant(0.5)), ("bias", zeros())]))
    torch.testing.assert_close(model[0].weight, torch.full((4, 4), 0.5))


def test_apply_with_a_function_and_keep():
    model = Net()
    before = model.norm.weight.detach().clone().fill_(3)
    model.norm.weight.data.fill_(3)
    model.apply(fastinit.apply([(nn.LayerNorm, keep()), ("bias", zeros()), ("*", lambda weight: weight.fill_(2))]))
    assert torch.equal(model.norm.weight, before)
    assert (model.head.weight == 2).all()
    assert not model.embedding.weight[3].any()


def test_apply_raises_for_what_no_rule_is_for():
    with pytest.raises(RulesError, match=r"weight \(8,\): no rule matches it"):
        Net().apply(fastinit.apply(APPLIED[:3]))


def test_apply_knows_no_qualified_names():
    with pytest.raises(ValueError, match=r"rule 0, \('head\.\*', zeros\(\)\): model\.apply tells no qualified names"):
        fastinit.apply({"head.*": zeros()})


# --- reports and sizes ---------------------------------------------------------------------------


def test_a_report_shows_what_each_rule_did():
    model = Net()
    report = initialize(model, RULES, seed=SEED)
    assert repr(report) == "Report(drawn=11, replaced=0, assigned=10 parameters)"
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(report)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["(Linear,", "kaiming_normal(nonlinearity='relu'))", "layers.0.weight", "3", "192"] in lines
    assert len(lines) >= len(RULES) + 2


@pytest.mark.parametrize(
    "act", [lambda: initialize(3, RULES, seed=0), lambda: fastinit.write_checkpoint(3, [], "a", seed=0)]
)
def test_what_is_no_module(act):
    with pytest.raises(TypeError, match=r"rules are for a torch\.nn\.Module, got int"):
        act()


def test_many_rules_for_many_parameters_take_no_square_of_time(monkeypatch):
    """A rule for each parameter, as recipes make them: each is found by its name."""
    asked = []
    matches = rules_module.matches
    monkeypatch.setattr(rules_module, "matches", lambda *args: asked.append(1) or matches(*args))
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(100))
    initialize(model, "torch_default", seed=SEED)
    assert len(asked) == 200


@pytest.mark.usefixtures("one_process")
def test_what_is_wrong_with_dtensors_is_told_together():
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    model = nn.Linear(4, 4)
    fully_shard(model, mesh=mesh)
    model.summands = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    model.odd = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Shard(0)], shape=(3,), stride=(1,)))
    before = model.weight.full_tensor().clone()
    with pytest.raises(RulesError) as error:
        initialize(model, {"*": normal()}, seed=SEED)
    assert "summands (3,) cannot be initialised: rank 0, DTensor of shape (3,)" in str(error.value)
    assert "holds summands of the tensor" in str(error.value)
    assert "odd (3,) cannot be initialised: rank 0" in str(error.value)
    assert "expected a local tensor of shape (3,), found (2,)" in str(error.value)
    assert same_bits(model.weight.full_tensor(), before)
