"""What `fastinit compare` measures and judges: recorded calls, their laws, and the distance of samples from them."""

from __future__ import annotations

import functools
import math
import re
import types

import mpmath
import numpy as np
import pytest
import torch
from common import FLOAT8, FLOATS, LAW_DTYPES, LAWS, every_number, name_of, scipys
from scipy import stats
from torch import nn
from torch.nn.init import trunc_normal_, xavier_normal_

import fastinit
from fastinit.commands import compare, limit
from fastinit.initialisers.table import NAMES
from fastinit.kernels.cpu import helpers
from fastinit.kernels.dtypes import FORMATS
from fastinit.laws import Normal, TruncNormal, Uniform, judge as judging
from fastinit.laws.judge import ks_bound, ks_distance, moments
from fastinit.models.record import Call, call_of, record

SEED = 20260101  # of every statistical test: a failure means that the code changed
RANDOM = ("uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
          "kaiming_normal_")  # fmt: skip
hidden = functools.partial(nn.init.xavier_uniform_, gain=2.0)  # where no search of modules finds it


class Made(nn.Module):
    """Parameters a, b, ... of one shape, and what a constructor may do with them."""

    def __init__(self, initialise, shape=(6, 4), names="a"):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        with torch.no_grad():
            initialise(self)


def calls_of(initialise, **settings):
    """What initialised each parameter."""
    return record(lambda: Made(initialise, **settings))[1]


def recorded(initialise, **settings):
    """Names and arguments of that."""
    return {name: (call.initialiser, call.arguments) for name, call in calls_of(initialise, **settings).items()}


# --- recording ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_initialiser_is_recorded_under_its_own_name(name):
    """The outermost call counts: kaiming_uniform_ is not uniform_, orthogonal_ not normal_."""
    arguments = {"constant_": {"val": 2.0}, "sparse_": {"sparsity": 0.5}}.get(name, {})
    shape = (6, 4, 3) if name == "dirac_" else (6, 4)
    found = recorded(lambda module: getattr(nn.init, name)(module.a, **arguments), shape=shape)
    assert found["a"][0] == name
    assert found["a"][1].items() >= arguments.items()
    assert not {"tensor", "generator"} & found["a"][1].keys()


@pytest.mark.parametrize(
    ("initialise", "expected"),
    [
        (lambda m: nn.init.normal_(m.a, std=0.5), ("normal_", {"mean": 0.0, "std": 0.5})),
        (lambda m: xavier_normal_(m.a), ("xavier_normal_", {"gain": 1.0})),
        (lambda m: hidden(m.a), ("xavier_uniform_", {"gain": 2.0})),
        (lambda m: trunc_normal_(m.a, std=0.5), ("trunc_normal_", {"mean": 0.0, "std": 0.5, "a": -2.0, "b": 2.0})),
        (lambda m: m.a.data.normal_(1.0, std=0.5), ("normal_", {"mean": 1.0, "std": 0.5})),
        (lambda m: m.a.normal_(), ("normal_", {"mean": 0.0, "std": 1.0})),
        (lambda m: m.a.data.uniform_(-2, 3), ("uniform_", {"a": -2, "b": 3})),
        (lambda m: m.a.data.uniform_(to=3.0), ("uniform_", {"a": 0.0, "b": 3.0})),
        (lambda m: m.a.data.fill_(3.0), ("constant_", {"val": 3.0})),
        (lambda m: torch.fill_(m.a.data, value=3.0), ("constant_", {"val": 3.0})),
        (lambda m: m.a.detach().zero_(), ("zeros_", {})),
        (lambda m: m.a.data.view(-1).zero_().requires_grad_(False), ("zeros_", {})),
        (lambda m: fastinit.xavier_normal_(m.a, gain=2.0), ("xavier_normal_", {"gain": 2.0})),
        (lambda m: setattr(m, "a", nn.Parameter(torch.randn(6, 4))), ("normal_", {"mean": 0.0, "std": 1.0})),
        (lambda m: m.a.data.copy_(torch.randn(6, 4)), ("normal_", {"mean": 0.0, "std": 1.0})),
    ],
)
def test_calls_are_recorded_however_they_are_made(initialise, expected):
    assert recorded(initialise)["a"] == expected


@pytest.mark.parametrize(
    "initialise",
    [
        lambda m: None,
        lambda m: m.a.data[:3].normal_(),  # a part
        lambda m: torch.empty(6, 4).normal_(),  # another tensor
        lambda m: m.a.data.copy_(torch.randn(6, 4) + 1),  # no law that anybody could tell
        lambda m: nn.init.normal_(m.a).mul_(2.0),  # changed afterwards
        lambda m: (nn.init.normal_(m.a), m.a.data.__itruediv__(2.0)),
        lambda m: (nn.init.normal_(m.a), setattr(m.a, "data", torch.ones(6, 4))),  # moved away
        lambda m: fastinit.xavier_normal_(m.a, layout="io"),  # no call of torch.nn.init's
    ],
)
def test_no_law_is_made_up(initialise):
    assert recorded(initialise) == {}


def test_what_was_changed_since_has_no_law():
    module, calls = record(lambda: nn.Linear(3, 4))
    assert calls
    with torch.no_grad():
        module.weight.mul_(2)
    assert call_of("weight", module.weight) is None
    assert call_of("bias", module.bias) is not None


class Block(nn.Module):
    """As in nanoGPT: the model applies its own law after its layers have applied theirs."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(20, 80), nn.Linear(80, 20, bias=False)
        self.table = nn.Embedding(50, 20)
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("down.weight"):
                torch.nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(24))

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if getattr(module, "bias", None) is not None:
                torch.nn.init.zeros_(module.bias)


def test_a_model_s_own_law_counts_not_its_layers():
    _, calls = record(Block)
    found = {name: (call.initialiser, call.arguments.get("std")) for name, call in calls.items()}
    assert found == {
        "up.weight": ("normal_", 0.02), "up.bias": ("zeros_", None), "down.weight": ("normal_", 0.02 / math.sqrt(24)),
        "table.weight": ("normal_", 0.02),
    }  # fmt: skip


def test_transformer_layers_are_recorded_as_they_are_made():
    _, found = record(lambda: nn.MultiheadAttention(8, 2))
    assert {name: call.initialiser for name, call in found.items()} == {
        "in_proj_weight": "xavier_uniform_", "in_proj_bias": "constant_",
        "out_proj.weight": "kaiming_uniform_", "out_proj.bias": "constant_",
    }  # fmt: skip


def test_tied_parameters_count_once():
    def make():
        module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        module[1].weight = module[0].weight
        return module

    assert list(record(make)[1]) == ["0.weight"]


def test_parameters_without_memory_are_left_alone():
    make = lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3, device="meta"), nn.Linear(2, 2))  # noqa: E731
    assert list(record(make)[1]) == ["2.weight", "2.bias"]


def test_a_constructor_that_fails_is_heard_and_everything_is_put_back():
    before = [getattr(nn.init, name) for name in NAMES]
    with pytest.raises(ZeroDivisionError):
        record(lambda: Made(lambda m: 1 / 0))
    assert [getattr(nn.init, name) for name in NAMES] == before
    assert trunc_normal_ is nn.init.trunc_normal_
    assert not torch.overrides._get_current_function_mode_stack()


# --- judging -----------------------------------------------------------------------------------


def middle_of(law):
    """Where the middle two thirds of a law lie: their centre, and half their width, a normal law's std."""
    low, high = scipys(law).ppf([0.16, 0.84])
    return (low + high) / 2, (high - low) / 2


@pytest.mark.parametrize("name", LAWS)
def test_distribution_functions_are_scipys(name):
    law = LAWS[name]
    middle, half = middle_of(law)
    points = [middle + k * half / 4 for k in range(-20, 21)]
    got = law.cdf(torch.tensor(points, dtype=torch.float64))
    assert got.tolist() == pytest.approx(scipys(law).cdf(points), abs=1e-9)


def test_distance_of_float64_samples_is_scipys():
    sample = torch.randn(10_001, dtype=torch.float64)
    assert ks_distance(sample, Normal(0.1, 1.0)) == pytest.approx(stats.kstest(sample.numpy(), "norm", (0.1, 1.0))[0])


def test_distance_of_rounded_samples_by_hand():
    """float16 near 1024 holds whole numbers: 1024 stands for [1024, 1024.5), 1025 for [1024.5, 1025.5), ..."""
    law, held = Uniform(1024.0, 1028.0), [1024.0, 1025.0, 1026.0, 1027.0]
    shares = [1, 2, 2, 3]  # eighths; 1027 is the greatest number below the bound, and stands for all above 1026.5
    sample = torch.tensor([value for value, n in zip(held, shares, strict=True) for _ in range(n)]).half()
    assert ks_distance(sample, law) == pytest.approx(0.0, abs=1e-12)
    assert ks_distance(sample[1:], law) == pytest.approx(1 / 8)  # 1024 is missing


@pytest.mark.parametrize(("name", "dtype"), LAW_DTYPES, ids=str)
def test_true_samples_pass_and_slightly_wrong_ones_fail(name, dtype):
    """False alarms: ALPHA each, for a seed that never changes. The twin is shifted by a fiftieth of its width."""
    law = LAWS[name]
    sample = torch.empty(1 << 18, dtype=dtype)
    fastinit.drawing.fill.fill(sample, law, stream=fastinit.Stream(SEED))
    assert ks_distance(sample, law) <= ks_bound(sample.numel())
    if dtype in (torch.float32, torch.float64):
        assert ks_distance(sample + middle_of(law)[1] / 50, law) > ks_bound(sample.numel())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=name_of)
@pytest.mark.parametrize("name", ["uniform", "normal", "central", "wide_left", "narrow"])
def test_slightly_wrong_samples_fail_after_rounding_too(name, dtype):
    """The twin for what is rounded, of laws that the dtype has enough numbers for."""
    law = LAWS[name]
    fastinit.drawing.fill.fill(sample := torch.empty(1 << 18), law, stream=fastinit.Stream(SEED))
    bounds = law.held(dtype)
    assert ks_distance(sample.clamp(*bounds).to(dtype), law) <= ks_bound(sample.numel())
    assert ks_distance((sample + law.std / 50).clamp(*bounds).to(dtype), law) > ks_bound(sample.numel())


@pytest.mark.parametrize(
    ("dtype", "std"), [(torch.float16, 4e4), (torch.float8_e4m3fn, 300.0), (torch.float8_e5m2, 4e4)]
)
def test_what_lies_beyond_a_dtype_is_judged_as_its_greatest_number(dtype, std):
    law = Normal(0.0, std)
    fastinit.drawing.fill.fill(sample := torch.empty(1 << 18, dtype=dtype), law, stream=fastinit.Stream(SEED))
    assert (sample.double().abs() >= FORMATS[dtype].greatest).double().mean() > 0.05
    assert ks_distance(sample, law) <= ks_bound(sample.numel())
    assert ks_distance(sample, Normal(0.0, 1.1 * std)) > ks_bound(sample.numel())


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_gaps_are_those_between_neighbours(dtype):
    if dtype.itemsize <= 2:
        held = every_number(dtype).unique()
        lower, upper = held[:-1], held[1:]
    else:
        some = torch.tensor([0.0, 1.0, 3.0, 2.0**-120, 2.0 ** FORMATS[dtype].smallest, 2.0**120], dtype=dtype)
        lower = torch.cat([some, -some, torch.nextafter(some, torch.zeros_like(some))])
        upper = torch.nextafter(lower, torch.full_like(lower, math.inf)).double()
        lower = lower.double()
    assert torch.equal(judging.gap(lower, math.inf, FORMATS[dtype]), upper - lower)
    assert torch.equal(judging.gap(upper, -math.inf, FORMATS[dtype]), upper - lower)


def test_a_value_that_was_not_written_is_no_sample():
    sample = torch.rand(1000)
    sample[17] = math.nan
    distance = ks_distance(sample, Uniform(0.0, 1.0))
    assert not judging.Observed(0.5, 0.3, sample, distance).passes


def test_moments_are_those_of_all_tensors_together(monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 100)
    tensors = [torch.randn(33, 7) + 1e4, torch.randn(1) + 1e4, torch.randn(8, 4).t() + 1e4]
    together = np.concatenate([tensor.double().numpy().ravel() for tensor in tensors])
    assert moments(tensors) == pytest.approx((together.mean(), together.std()), rel=1e-9)


# --- replaying ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
def test_the_law_of_a_call_is_the_law_of_what_torch_draws(name):
    """Judged on torch's own samples, so that a wrong formula here cannot agree with itself."""
    for arguments in ({}, ARGUMENTS[name]):
        call = calls_of(lambda m, a=arguments: getattr(nn.init, name)(m.a, **a), shape=(300, 200))["a"]
        law = compare.law_of(call)
        assert ks_distance(call.tensor.flatten(), law) <= ks_bound(call.tensor.numel())
        assert ks_distance(call.tensor.flatten() * 1.05, law) > ks_bound(call.tensor.numel())


ARGUMENTS = {
    "uniform_": {"a": -3.0, "b": -1.0},
    "normal_": {"mean": 2.0, "std": 3.0},
    "trunc_normal_": {"mean": 0.2, "std": 0.5, "a": -0.3, "b": 2.0},
    "xavier_uniform_": {"gain": 3.0},
    "xavier_normal_": {"gain": 3.0},
    "kaiming_uniform_": {"a": 2.0, "mode": "fan_out"},
    "kaiming_normal_": {"mode": "fan_out", "nonlinearity": "tanh"},
}


def test_fans_are_those_of_the_view_that_was_given():
    call = calls_of(lambda m: nn.init.kaiming_normal_(m.a.t()))["a"]
    assert compare.law_of(call).std == pytest.approx(math.sqrt(2 / 6))  # rows count, not columns


@pytest.mark.parametrize("reset", [lambda m: nn.init.orthogonal_(m.a), lambda m: nn.init.normal_(m.a, std=0.0)])
def test_no_law_to_judge_by(reset):
    assert compare.law_of(calls_of(reset)["a"]) is None


def test_groups_share_initialiser_dtype_and_law():
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(9, 5), nn.Linear(9, 7), nn.Linear(9, 5, dtype=torch.float64), nn.LayerNorm(5)
    )
    groups = compare.grouped(record(make)[1].values())
    assert {(group.initialiser, len(group.calls), group.elements, group.constant) for group in groups} == {
        ("kaiming_uniform_", 2, 108, None), ("kaiming_uniform_", 1, 45, None), ("uniform_", 2, 12, None),
        ("uniform_", 1, 5, None), ("ones_", 1, 5, 1.0), ("zeros_", 1, 5, 0.0),
    }  # fmt: skip
    assert groups[0].size == 4 * 108


def small() -> nn.Module:
    return nn.Sequential(nn.Embedding(200, 64, padding_idx=0), nn.Linear(64, 200), nn.LayerNorm(200), nn.PReLU())


def test_compare_replays_each_law_with_both():
    made = []

    def make():
        made.append(small())
        made[0].register_parameter("scale", nn.Parameter(torch.full((3,), 7.0)))
        return made[0]

    found = compare.compare(make, seed=SEED, repeat=2)
    (module,) = made
    assert {row.group.initialiser for row in found.rows} == {
        "normal_", "kaiming_uniform_", "uniform_", "ones_", "zeros_", "constant_"
    }  # fmt: skip
    assert (found.passes, found.without_law, found.failures) == (2, 1, [])
    assert module.scale.tolist() == [7.0] * 3
    for row in found.rows:
        assert all(row.seconds[side] > 0 for side in compare.SIDES)
        if row.group.law is not None:
            for side in compare.SIDES:
                seen = row.observed[side]
                assert seen.passes
                assert seen.std == pytest.approx(row.group.law.std, rel=0.3)
            assert row.observed["torch"].distance != row.observed["fastinit"].distance
    assert found.total("torch") == sum(row.seconds["torch"] for row in found.rows)
    assert found.batch > 0
    assert found.stores > 0
    assert bool((module[0].weight[1:].std() > 0.5) and (module[1].weight.std() > 0))  # drawn after stores wrote zeros


def test_what_is_timed_in_one_batch_is_drawn_in_one(monkeypatch):
    done = []
    run = helpers.run
    module, calls = record(small)
    groups = compare.grouped(calls.values())
    compare.draw_together(groups)
    monkeypatch.setattr(helpers, "run", lambda rows, number, *rest: done.append(number) or run(rows, number, *rest))
    torch.manual_seed(4)
    with torch.no_grad():
        compare.draw_together(groups)
    assert done == [sum(len(group.calls) for group in groups)]
    together = [parameter.clone() for parameter in module.parameters()]
    torch.manual_seed(4)
    compare.replay(groups, "fastinit", 4, lambda: None)
    assert all(map(torch.equal, together, module.parameters()))


def test_stores_alone_write_all_and_nothing_else():
    memory = torch.full((3000,), 7.0)
    parts = [memory[100:200], memory[1000:1001], memory[2000:2900]]
    limit.stores(parts)()
    assert memory.count_nonzero() == 3000 - 1001
    assert not any(bool(part.any()) for part in parts)
    assert limit.stores([memory[::2]]) is None
    assert limit.stores([torch.zeros(3, dtype=torch.complex128)]) is None
    assert limit.stores([torch.zeros(3, device="meta")]) is None
    assert limit.stores([]) is None
    assert re.fullmatch(r"[\d.]+ GB/s by non-temporal stores, .*; [\d.]+ by torch's fill_", limit.bandwidth())


def test_compare_is_repeatable():
    first, second = (compare.compare(small, seed=3, repeat=1) for _ in range(2))
    for one, other in zip(first.rows, second.rows, strict=True):
        for side in compare.SIDES:
            assert torch.equal(one.observed[side].sample, other.observed[side].sample)


def test_compare_sees_a_wrong_law(monkeypatch):
    """The twin: a fastinit whose uniform_ is a twentieth too wide."""
    draw = fastinit.init.uniform_
    monkeypatch.setattr(fastinit.init, "uniform_", lambda tensor, a, b: draw(tensor, 1.05 * a, 1.05 * b))
    found = compare.compare(lambda: nn.Linear(1, 100_000), repeat=1)
    assert [row.group.initialiser for row in found.failures] == ["uniform_"]
    assert found.failures[0].observed["torch"].passes


def test_compare_sees_what_was_not_written(monkeypatch):
    monkeypatch.setattr(fastinit.init, "uniform_", lambda tensor, a, b: tensor)
    found = compare.compare(lambda: nn.Linear(8, 8), repeat=1)
    assert [row.group.initialiser for row in found.failures] == ["uniform_"]


def test_passes_make_up_a_second_within_limits():
    assert [compare.passes_for(seconds) for seconds in (0.0, 1e-6, 0.1, 60.0)] == [25, 25, 10, 3]


@pytest.mark.skipif(compare.forget_peak() is None, reason="this system keeps no account of peak memory")
def test_temporaries_are_seen_in_the_peak_of_memory(monkeypatch):
    copying = types.SimpleNamespace(normal_=lambda tensor, mean, std: tensor.copy_(torch.randn(tensor.shape)))
    monkeypatch.setitem(compare.SIDES, "torch", copying)
    groups = compare.grouped(calls_of(lambda m: nn.init.normal_(m.a), shape=(1 << 23,)).values())
    compare.prepare(groups)
    with torch.no_grad():
        extra = {side: compare.watched(groups, side, 0, lambda: None)[0] for side in compare.SIDES}
    assert extra["torch"] > 0.9 * groups[0].size  # Linux counts in batches
    assert extra["fastinit"] < groups[0].size / 8


def test_a_sample_of_a_large_group_comes_from_all_columns():
    """The step through the tensor is odd, so no column of a kernel's block of 64 is always left out."""
    call = Call("a", "uniform_", torch.arange(4.0e6), {"a": 0.0, "b": 4.0e6})
    sample = compare.observe(compare.grouped([call])[0]).sample
    assert 500_000 < sample.numel() <= compare.SAMPLE
    assert len((sample % 64).unique()) == 64


def test_truncated_laws_count_from_the_thinner_tail():
    law = TruncNormal(0.0, 1.0, -math.inf, -30.0)
    share = law.cdf(torch.tensor(law.mean, dtype=torch.float64)).item()
    assert share == pytest.approx(float(mpmath.ncdf(law.mean) / mpmath.ncdf(-30)), rel=1e-9)
