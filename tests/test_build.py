"""`fastinit.build` and `accelerate(model, seed=)`: every parameter drawn once, by its name; and nothing left out."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from common import python, same_bits
from torch import nn

import fastinit
from fastinit import Stream, accelerate, build, initialisers
from fastinit.models.coverage import CoverageError
from fastinit.models.origins import origin_of
from fastinit.models.walk import named_tensors

SEED = 11


def named(name, seed=SEED):
    return Stream.named(name, seed)


class Small(nn.Module):
    """Layers of several kinds, each initialised in its own way."""

    def __init__(self, reverse=False):
        super().__init__()
        made = [
            ("linear", lambda: nn.Linear(30, 40)),
            ("conv", lambda: nn.Conv2d(3, 8, 5)),
            ("embedding", lambda: nn.Embedding(50, 30, padding_idx=3)),
            ("lstm", lambda: nn.LSTM(30, 20)),
            ("norm", lambda: nn.BatchNorm1d(40)),
        ]
        for name, make in reversed(made) if reverse else made:
            setattr(self, name, make())
        self.table = nn.Parameter(torch.empty(30, 30))
        nn.init.orthogonal_(self.table)
        self.register_buffer("noise", torch.randn(7))
        self.register_buffer("hidden", torch.rand(7), persistent=False)
        self.init_weights()

    def init_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def tensors(model):
    return {name: tensor.detach() for name, tensor in named_tensors(model)}


def alike(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    return all(same_bits(first[name], second[name]) for name in first)


def test_each_tensor_has_the_stream_of_its_name():
    found = tensors(build(Small, seed=SEED))
    bound = 1 / math.sqrt(20)
    expected = {
        "linear.weight": fastinit.trunc_normal_(torch.empty(40, 30), std=0.02, stream=named("linear.weight")),
        "conv.weight": fastinit.kaiming_uniform_(torch.empty(8, 3, 5, 5), math.sqrt(5), stream=named("conv.weight")),
        "lstm.weight_hh_l0": fastinit.uniform_(torch.empty(80, 20), -bound, bound, stream=named("lstm.weight_hh_l0")),
        "table": fastinit.orthogonal_(torch.empty(30, 30), stream=named("table")),
        "noise": fastinit.random.randn(7, stream=named("noise")),
        "hidden": fastinit.random.rand(7, stream=named("hidden")),
        "embedding.weight": fastinit.normal_(torch.empty(50, 30), stream=named("embedding.weight")),
    }
    expected["embedding.weight"][3] = 0
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), name
    assert (found["linear.bias"] == 0).all()
    assert (found["norm.running_var"] == 1).all()


def test_neither_the_order_nor_the_generator_matters():
    torch.manual_seed(1)
    first = build(Small, seed=SEED)
    state = torch.get_rng_state()
    torch.rand(3)
    second = build(Small, True, seed=SEED)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(same_bits(tensors(second)[name], tensor) for name, tensor in tensors(first).items())
    assert not alike(first, build(Small, seed=SEED + 1))
    assert alike(first, build(Small, seed=SEED))


def test_accelerate_with_a_model_draws_the_same_by_name():
    model = build(Small, seed=SEED)
    with torch.no_grad():
        model.linear.weight.fill_(7)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with accelerate(model, seed=SEED) as report:
        nn.init.ones_(model.linear.weight)
        model.init_weights()
        model.embedding.reset_parameters()
        nn.init.orthogonal_(model.table)
    assert torch.equal(state, torch.get_rng_state())
    assert alike(model, build(Small, seed=SEED))
    assert not report.escaped


@pytest.mark.parametrize("defer", [True, False])
def test_deferred_or_not_names_give_the_same(defer):
    model, other = Small(), Small()
    with accelerate(model, seed=SEED):
        again(model)
    with accelerate(other, seed=SEED, defer=defer):
        again(other)
    assert alike(model, other)


def again(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.conv.weight.data[2:4].normal_()
    model.conv.weight.data[:, 1].uniform_()
    nn.init.orthogonal_(model.table)
    model.noise.normal_()
    model.hidden.data.uniform_()
    model.init_weights()


def test_a_part_of_a_parameter_has_a_stream_of_its_own():
    model = Small()
    with accelerate(model, seed=SEED):
        model.linear.weight.data[:20].normal_()
        model.linear.weight.data[20:].normal_()
    first, second = model.linear.weight.detach().chunk(2)
    assert not same_bits(first, second)
    whole = fastinit.normal_(torch.empty(40, 30), stream=named("linear.weight"))
    assert not same_bits(first, whole[:20])
    order = Small()
    with accelerate(order, seed=SEED):
        order.linear.weight.data[20:].normal_()
        nn.init.normal_(order.conv.weight)
        order.linear.weight.data[:20].normal_()
    assert same_bits(order.linear.weight.detach(), model.linear.weight.detach())


def test_a_stream_or_generator_that_was_given_is_kept():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.empty(9, 8)) for _ in range(3))
            fastinit.normal_(self.a, stream=Stream(5))
            nn.init.normal_(self.b, generator=torch.Generator().manual_seed(3))
            fastinit.normal_(self.c)

    model = build(Own, seed=SEED)
    assert same_bits(model.a.detach(), fastinit.normal_(torch.empty(9, 8), stream=Stream(5)))
    generator = torch.Generator().manual_seed(3)
    assert same_bits(model.b.detach(), fastinit.normal_(torch.empty(9, 8), generator=generator))
    assert same_bits(model.c.detach(), fastinit.normal_(torch.empty(9, 8), stream=named("c")))


def test_ties_stay_tied_and_are_drawn_by_their_first_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(30, 50, bias=False)
            self.embedding = nn.Embedding(50, 30)
            self.head.weight = self.embedding.weight

    model = build(Tied, seed=SEED)
    assert model.head.weight is model.embedding.weight
    expected = fastinit.normal_(torch.empty(50, 30), stream=named("head.weight"))
    assert same_bits(model.head.weight.detach(), expected)


def test_copies_stay_copies():
    layer = lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)  # noqa: E731
    model = build(lambda: nn.TransformerEncoder(layer(), 3), seed=SEED)
    first = tensors(model.layers[0])
    for other in model.layers[1:]:
        assert alike(model.layers[0], other)
    name = "layers.0.self_attn.in_proj_weight"
    expected = fastinit.xavier_uniform_(torch.empty(48, 16), stream=named(name))
    assert same_bits(first["self_attn.in_proj_weight"], expected)
    assert origin_of(model.layers[2].self_attn.in_proj_weight).fills[-1].name == name


def test_what_is_used_before_it_has_a_name_is_drawn_by_its_number():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 50) * 0.02)
            self.other = nn.Parameter(torch.zeros(1, 1, 50) + self.token.detach())
            self.plain = nn.Parameter(torch.zeros(5))

    model = build(Scaled, seed=SEED)
    assert alike(model, build(Scaled, seed=SEED))
    assert not same_bits(model.token.detach(), build(Scaled, seed=SEED + 1).token.detach())
    assert 0.01 < model.token.std() < 0.03
    assert [name for name, tensor in named_tensors(model) if (o := origin_of(tensor)) and o.computed] == [
        "token",
        "other",
    ]


def test_what_torch_draws_depends_on_the_seed_too():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.empty(9, dtype=torch.complex64))
            nn.init.normal_(self.a)

    assert alike(build(Complex, seed=1), build(Complex, seed=1))
    assert not alike(build(Complex, seed=1), build(Complex, seed=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_device(dtype):
    model = build(Small, seed=SEED, dtype=dtype, device="cpu")
    assert model.linear.weight.dtype is dtype
    assert torch.get_default_dtype() is torch.float32
    expected = fastinit.normal_(torch.empty(50, 30, dtype=dtype), stream=named("embedding.weight"))
    expected[3] = 0
    assert same_bits(model.embedding.weight.detach(), expected)


def test_on_the_meta_device_nothing_is_expected_to_be_written():
    model = build(Small, device="meta")
    assert model.linear.weight.is_meta


def test_later_initialisations_find_a_usual_model():
    model = build(Small, seed=SEED)
    model.linear.reset_parameters()
    model.linear(torch.ones(2, 30)).sum().backward()
    assert model.linear.weight.grad is not None


# --- what is not initialised -------------------------------------------------------------------


class Hole(nn.Module):
    """Parameters that nothing initialises, or not all of."""

    def __init__(self, make):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        make(self)


def left(module, shape=(6, 4), **options):
    module.a = nn.Parameter(torch.empty(shape, **options), requires_grad=False)
    return module.a


def parameter(module, tensor):
    module.a = nn.Parameter(tensor, requires_grad=False)


def halves(module, written):
    flat = torch.empty(100)
    module.a, module.b = nn.Parameter(flat[:30]), nn.Parameter(flat[32:60])
    nn.init.normal_(module.a)
    if written:
        nn.init.normal_(module.b)


HOLES = {
    "empty": (left, "a was written by nothing"),
    "buffer": (lambda m: m.register_buffer("a", torch.empty(5)), "a was written by nothing"),
    "in part": (lambda m: left(m).data[:5].normal_(), "a was written by nothing"),
    "in part by torch": (lambda m: left(m).data[:5].copy_(torch.ones(5, 4)), "a was written by nothing"),
    "the same part twice": (lambda m: [left(m).data[:3].normal_() for _ in range(2)], "a was written by nothing"),
    "legacy": (lambda m: setattr(m, "a", nn.Parameter(torch.Tensor(3, 4))), "a was written by nothing"),
    "like": (lambda m: setattr(m, "a", nn.Parameter(torch.empty_like(m.linear.weight))), "a was written by nothing"),
    "new_empty": (lambda m: setattr(m, "a", nn.Parameter(m.linear.weight.new_empty(3))), "a was written by nothing"),
    "copied": (lambda m: setattr(m, "a", nn.Parameter(torch.empty(9).clone())), "a was written by nothing"),
    "scaled": (lambda m: parameter(m, torch.empty(10) * 0.02), "a was written by nothing"),
    "scaled in place": (lambda m: parameter(m, torch.empty(10).mul_(0.02)), "a was written by nothing"),
    "joined": (lambda m: parameter(m, torch.cat([torch.empty(10), torch.zeros(3)])), "a was written by nothing"),
    "stacked": (lambda m: parameter(m, torch.stack([torch.empty(10)] * 2)), "a was written by nothing"),
    "repeated": (lambda m: parameter(m, torch.empty(10).repeat(2)), "a was written by nothing"),
    "deep copy": (lambda m: parameter(m, copy.deepcopy(torch.empty(4, 4))), "a was written by nothing"),
    "copied from": (lambda m: parameter(m, torch.zeros(10).copy_(torch.empty(10))), "a was written by nothing"),
    "loaded": (
        lambda m: m.linear.load_state_dict(nn.utils.skip_init(nn.Linear, 3, 4).state_dict()),
        "linear.weight was written by nothing",
    ),
    "chosen": (lambda m: parameter(m, torch.empty(4, 4)[torch.tensor([0, 1])]), "a was written by nothing"),
    "triangle": (lambda m: parameter(m, torch.triu(torch.empty(4, 4))), "a was written by nothing"),
    "resized from none": (lambda m: parameter(m, torch.empty(0).resize_(10)), "a was written by nothing"),
    "resized": (lambda m: parameter(m, torch.zeros(2).resize_(10)), "a was written by nothing"),
    "by indices": (lambda m: left(m).data.__setitem__(torch.tensor([1, 2]), 0), "a was written by nothing"),
    "masked": (lambda m: left(m).data.masked_fill_(torch.eye(6, 4, dtype=torch.bool), 0), "a was written by nothing"),
    "overlapping parts": (lambda m: [left(m).data[k : k + 3].zero_() for k in (0, 1)], "a was written by nothing"),
    "half of one memory": (lambda m: halves(m, written=False), "b was written by nothing"),
    "to_empty": (lambda m: m.linear.to_empty(device="cpu"), "linear.weight was written by nothing"),
    "meta": (lambda m: left(m, device="meta"), "a is on the meta device"),
    "lazy": (lambda m: setattr(m, "a", nn.LazyLinear(3)), "a.weight is lazy"),
    "emptied": (lambda m: setattr(left(m, 0), "ds_numel", 24), "a has no elements here: DeepSpeed"),
}
WRITTEN = {
    "in parts": lambda m: [part.normal_() for part in left(m).data.chunk(3)],
    "in parts by torch": lambda m: [part.copy_(torch.ones_like(part)) for part in left(m).data.unbind(1)],
    "by an operation": lambda m: left(m).data.copy_(torch.ones(4)),
    "out": lambda m: torch.eye(4, out=left(m, (4, 4)).data),
    "numpy": lambda m: left(m).detach().numpy().fill(3),
    "data": lambda m: setattr(left(m), "data", torch.ones(3)),
    "element by element": lambda m: [part.__setitem__(k, 1.0) for part in [left(m, 3).data] for k in range(3)],
    "column by column": lambda m: [part.zero_() for part in left(m).data.split(1, dim=1)],
    "padded": lambda m: parameter(m, nn.init.normal_(torch.empty(12, 4)[:10])),
    "parts of one memory": lambda m: halves(m, written=True),
    "with gaps": lambda m: parameter(m, torch.empty_strided((3, 3), (4, 1)).normal_()),
    "a written part is used": lambda m: parameter(m, torch.empty(12, 4)[:10].normal_() * 2),
    "shapes": lambda m: parameter(m, torch.zeros_like(torch.empty(4))),
    "views": lambda m: parameter(m, torch.empty(4, 3).t().normal_()),
    "foreach": lambda m: torch._foreach_zero_([left(m).data]),
    "clone of a part": lambda m: parameter(m, torch.empty(9)[:4].zero_().clone()),
    "fastinit": lambda m: fastinit.dirac_(left(m, (4, 4, 3))),
    "fastinit's stream": lambda m: fastinit.normal_(left(m), stream=Stream(2)),
    "fastinit's shard": lambda m: fastinit.normal_(fastinit.shard(left(m), (8, 4), (2, 0))),
    "by element": lambda m: left(m).data.bernoulli_(torch.full((6, 4), 0.5)),
    "eye": lambda m: nn.init.eye_(left(m)),
    "sparse": lambda m: nn.init.sparse_(left(m), 0.5),
    "no elements": lambda m: left(m, 0),
    "load_state_dict": lambda m: m.load_state_dict({"a": torch.ones(6, 4)}, strict=False) if left(m) is m.a else None,
    "from_numpy": lambda m: setattr(m, "a", nn.Parameter(torch.from_numpy(__import__("numpy").ones(3)))),
}  # fmt: skip


@pytest.mark.parametrize("hole", HOLES)
def test_what_nothing_wrote_is_an_error_that_names_it(hole):
    make, words = HOLES[hole]
    with pytest.raises(CoverageError, match=re.escape(words)) as caught:
        build(Hole, make)
    assert "check=False" in str(caught.value)
    model = build(Hole, make, check=False)
    assert isinstance(model, Hole)


@pytest.mark.parametrize("how", WRITTEN)
def test_what_was_written_is_no_error(how):
    assert isinstance(build(Hole, WRITTEN[how]), Hole)


def test_all_names_are_told_or_counted():
    with pytest.raises(CoverageError, match=r"12 parameters or buffers of ModuleList .* and 4 more"):
        build(lambda: nn.ModuleList([Hole(left) for _ in range(12)]))


def test_a_constructor_that_raises_leaves_nothing_behind():
    def make():
        nn.Linear(3, 4)
        raise KeyError("no")

    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    with pytest.raises(KeyError, match="no"):
        build(make, dtype=torch.float64)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() is dtype
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_model_that_existed_before_is_refused():
    model = nn.Linear(3, 4)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="Linear existed before build was called"):
        build(lambda: model)
    assert same_bits(model.weight.detach(), before)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"torch.nn.Module, got Tensor"):
        build(lambda: torch.ones(3))


@pytest.mark.parametrize("arguments", [{"seed": 3}, {"model": nn.Linear(2, 2)}])
def test_a_seed_and_a_model_go_together(arguments):
    with pytest.raises(ValueError, match="accelerate takes a model and a seed, or neither"):
        accelerate(**arguments)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "a"])
def test_seeds_are_those_of_streams(seed):
    with pytest.raises((ValueError, TypeError)):
        build(nn.Linear, 3, 4, seed=seed)
    with pytest.raises((ValueError, TypeError)):
        accelerate(nn.Linear(3, 4), seed=seed)


def test_flags_in_a_constructor():
    class Flagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.empty(40, 30))
            fastinit.flag(self.a, False)
            nn.init.normal_(self.a)

    model = build(Flagged, seed=SEED)
    torch.manual_seed(SEED)
    assert same_bits(model.a.detach(), nn.init.normal_(torch.empty(40, 30)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_sparse_and_quantized_buffers_are_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.register_buffer("sparse", torch.eye(3).to_sparse())
            self.register_buffer("quantized", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
            self.register_buffer("nothing", None)

    model = build(Odd, seed=SEED)
    assert torch.equal(model.sparse.to_dense(), torch.eye(3))
    assert torch.equal(model.quantized.dequantize(), torch.ones(3))


def test_parameters_that_are_parts_of_one_memory_have_streams_of_their_own():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat = torch.empty(40 * 30 + 20 * 30)
            self.a, self.b = (nn.Parameter(part) for part in self.flat.split([1200, 600]))
            nn.init.normal_(self.a)
            nn.init.uniform_(self.b)

    model = build(Flat, seed=SEED)
    assert model.a.untyped_storage().data_ptr() == model.b.untyped_storage().data_ptr()
    assert same_bits(model.a.detach(), fastinit.normal_(torch.empty(1200), stream=named("a")))
    assert same_bits(model.b.detach(), fastinit.uniform_(torch.empty(600), stream=named("b")))


PEAK = """
import sys
import torch, fastinit
from fastinit.commands.compare import forget_peak, resident
fastinit.build(torch.nn.Linear, 3, 3)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(2048, 2048) for _ in range(12))
        for layer in self.layers:
            torch.nn.init.normal_(layer.weight, std=0.02)
before = forget_peak()
if before is None:
    sys.exit(0)
model = fastinit.build(Model)
size = sum(p.numel() * p.element_size() for p in model.parameters())
extra = resident("VmHWM") - before
assert 0.9 * size < extra < 1.01 * size + (4 << 20), (extra, size)
"""


def test_the_peak_of_memory_is_the_model():
    """And one per cent, beside what kernels and libraries take when they are first used."""
    python(PEAK)


# --- fastinit's own calls ------------------------------------------------------------------------


@pytest.mark.parametrize("name", initialisers.names())
def test_own_calls_are_drawn_by_name(name):
    value = getattr(initialisers, name)(*{"constant": (0.5,), "sparse": (0.3,), "geometric": (0.3,)}.get(name, ()))
    shape = (8, 6, 3) if name in ("convolution_orthogonal", "delta_orthogonal", "dirac") else (8, 6)
    expected = value(shape, stream=Stream.named("weight", 5))
    model = nn.Module()
    model.before, model.weight = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(shape))
    with accelerate(model, seed=5):
        nn.init.normal_(model.before)
        value.fill(model.weight)
    assert same_bits(model.weight.detach(), expected)


def test_parameters_side_by_side_in_one_memory_have_their_own_names():
    model, whole = nn.Module(), torch.zeros(6, 4)
    model.left, model.right = nn.Parameter(whole[:, :2]), nn.Parameter(whole[:, 2:])
    with accelerate(model, seed=5):
        nn.init.normal_(model.left)
        nn.init.normal_(model.right)
    for name in ("left", "right"):
        expected = fastinit.normal_(torch.empty(6, 2), stream=Stream.named(name, 5))
        assert same_bits(getattr(model, name).detach().contiguous(), expected)
