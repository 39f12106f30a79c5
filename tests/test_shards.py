"""What other libraries hold of a tensor. Here by objects with the attributes of theirs, in test_libraries by theirs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from common import same_bits
from torch import nn

import fastinit
from fastinit import RulesError, Stream, initialize, shards
from fastinit.drawing.regions import parts_of
from fastinit.initialisers import gates, normal, orthogonal, sparse, zeros

STREAM = Stream(8)
CALLS = {
    "normal_": (), "trunc_normal_": (), "xavier_uniform_": (), "orthogonal_": (), "sparse_": (0.3,), "eye_": (),
    "constant_": (0.5,), "bernoulli_": (0.4,),
}  # fmt: skip
DRAWS_NOTHING = ("eye_", "constant_")


def filled(name: str, target):
    drawn = {} if name in DRAWS_NOTHING else {"stream": STREAM}
    return getattr(fastinit, name)(target, *CALLS[name], **drawn)


def megatron_weight(shape, dim, stride=1) -> nn.Parameter:
    """As `set_tensor_model_parallel_attributes` of megatron.core leaves it."""
    weight = nn.Parameter(torch.full(shape, 7.0))
    weight.tensor_model_parallel, weight.partition_dim, weight.partition_stride = True, dim, stride
    return weight


def megatrons_parts(whole, dim, stride, world):
    """As `_initialize_affine_weight_cpu` of megatron.core cuts a whole weight."""
    pieces = torch.split(whole, whole.shape[dim] // world // stride, dim=dim)
    return [torch.cat(pieces[rank::world], dim=dim) for rank in range(world)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("dim", "stride"), [(0, 1), (1, 1), (0, 2), (0, 3), (1, 2)])
def test_megatrons(name, dim, stride):
    whole = filled(name, torch.empty(24, 12))
    for world in (1, 2):
        for rank, part in enumerate(megatrons_parts(whole, dim, stride, world)):
            weight = megatron_weight(part.shape, dim, stride)
            target = shards.megatron(weight, rank, world)
            assert filled(name, target) is target
            assert same_bits(weight.detach(), part.contiguous())
    replicated = torch.empty(3)
    assert shards.megatron(replicated) is replicated


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("world", [1, 3, 4, 7])
def test_deepspeeds_stretches(name, world):
    """As `_partition_param` of DeepSpeed leaves them: equal stretches, the last one padded."""
    whole = filled(name, torch.empty(7, 5))
    length = -(-35 // world)
    for rank in range(world):
        chunk = torch.full((length,), 7.0)
        parameter = nn.Parameter(torch.empty(0))
        parameter.ds_tensor, parameter.ds_shape, parameter.ds_numel = chunk, torch.Size((7, 5)), 35
        filled(name, shards.deepspeed(parameter, rank))
        own = whole.flatten()[rank * length : (rank + 1) * length]
        assert same_bits(chunk[: len(own)], own)
        assert bool((chunk[len(own) :] == 7).all())
    plain = torch.empty(3)
    assert shards.deepspeed(plain) is plain


class Nanotrons(nn.Parameter):
    """The attributes of a `NanotronParameter`: queries, keys and values in one matrix, each cut over two ranks."""

    is_sharded = True

    def get_sharded_info(self):
        rank = self.rank
        pairs = [
            SimpleNamespace(
                local_slices=(slice(4 * k, 4 * k + 4), slice(None)),
                global_slices=(slice(8 * k + 4 * rank, 8 * k + 4 * rank + 4), slice(None)),
            )
            for k in range(3)
        ]
        return SimpleNamespace(local_global_slices_pairs=pairs, unsharded_shape=(24, 6))


@pytest.mark.parametrize("name", CALLS)
def test_nanotrons_slices(name):
    whole = filled(name, torch.empty(24, 6))
    for rank in range(2):
        parameter = Nanotrons(torch.full((12, 6), 7.0))
        parameter.rank = rank
        filled(name, shards.nanotron(parameter))
        expected = torch.cat([whole[8 * k + 4 * rank : 8 * k + 4 * rank + 4] for k in range(3)])
        assert same_bits(parameter.detach(), expected)


def test_experts():
    whole = fastinit.xavier_uniform_(torch.empty(6, 4, 5), layout="bio", stream=STREAM)
    for rank in range(3):
        local = torch.empty(2, 4, 5)
        fastinit.xavier_uniform_(shards.experts(local, rank, 3), layout="bio", stream=STREAM)
        assert same_bits(local, whole[2 * rank : 2 * rank + 2])


def test_boxes_leave_the_rest_as_it_is():
    whole = fastinit.normal_(torch.empty(9, 8), stream=STREAM)
    local = torch.full((5, 4), 7.0)
    pairs = [
        ((slice(0, 2), slice(1, 3)), (slice(4, 6), slice(5, 7))),
        ((slice(3, 4), slice(0, 4)), (slice(8, 9), slice(0, 4))),
    ]
    fastinit.normal_(shards.boxes(local, (9, 8), pairs), stream=STREAM)
    expected = torch.full((5, 4), 7.0)
    expected[0:2, 1:3], expected[3:4] = whole[4:6, 5:7], whole[8:9, 0:4]
    assert same_bits(local, expected)
    fastinit.zeros_(shards.boxes(local, (9, 8), pairs))
    assert int((local == 0).sum()) == 8
    assert int((local == 7).sum()) == 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shards.boxes(torch.empty(4), (8,), [((slice(0, 2),), (slice(0, 3),))]), "has the same size in both"),
        (lambda: shards.boxes(torch.empty(4), (8,), [((slice(0, 5),), (slice(0, 5),))]), "lie within their tensors"),
        (lambda: shards.boxes(torch.empty(4), (8,), [((slice(0, 2),), (slice(-2, 8),))]), "lie within their tensors"),
        (lambda: shards.boxes(torch.empty(4), (8,), [((slice(0, 4, 2),), (slice(0, 4, 2),))]), "have no steps"),
        (lambda: shards.megatron(megatron_weight((4, 3), 2), 0, 2), "partition_dim 2"),
        (lambda: shards.megatron(megatron_weight((4, 3), 0), 2, 2), "no part 2 of 2"),
        (lambda: shards.megatron(megatron_weight((5, 3), 0, 2), 0, 2), "partition_stride 2"),
        (lambda: shards.megatron(megatron_weight((4, 3), 0)), "megatron.core is not in use here"),
        (lambda: shards.megatron(megatron_weight((4, 3), 0, 0), 0, 2), "partition_stride 0"),
        (lambda: shards.boxes(torch.empty(4), (8,), [((1,), (1,))]), "a slice for each dimension, found 1"),
        (lambda: shards.boxes(torch.empty(()), (), [((), ())]), "a slice for each dimension, found 0"),
        (lambda: shards.boxes(torch.empty(4), (8,), [((slice(0, 2),), (slice(k, k + 2),)) for k in (0, 2)]), "overlap"),
        (lambda: shards.experts(torch.empty(2, 3), 2, 2), "rank lies in"),
        (lambda: shards.stretch(torch.empty(4, 3).t(), (12,), 0), "is contiguous"),
    ],
)  # fmt: skip
def test_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Part(nn.Module):
    """Two layers of which a rank has a part, an embedding with a row for padding, and a norm that all have."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 24 // world)
        self.down = nn.Linear(24 // world, 6, bias=False)
        self.embedding = nn.Embedding(12 // world, 6)
        self.embedding.padding_idx = 7
        for parameter, dim, stride in (
            (self.up.weight, 0, 2), (self.up.bias, 0, 2), (self.down.weight, 1, 1), (self.embedding.weight, 0, 1),
        ):  # fmt: skip
            parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, dim, stride
        self.place = rank, world

    def cut(self, tensor):
        return shards.megatron(tensor, *self.place)


RULES = {
    "up.weight": gates("ab", orthogonal(), b=normal()),
    "up.bias": normal(),
    "down.weight": sparse(0.25),
    "norm.bias": zeros(),
    "*": normal(std=0.5),
}


def test_a_model_by_rules(monkeypatch):
    alone = Part(0, 1)
    initialize(alone, RULES, seed=3)
    assert math.isclose(alone.embedding.weight[7].abs().sum().item(), 0)
    seen = []
    for rank in range(2):
        model = Part(rank, 2)
        report = initialize(model, RULES, seed=3, shard=model.cut)
        shapes = {one.name: one.shape for one in report.assigned}
        assert (shapes["up.weight"], shapes["norm.bias"]) == ((24, 6), (6,))
        for name, parameter in model.named_parameters():
            whole = alone.get_parameter(name).detach()
            dim, stride = (getattr(parameter, key, None) for key in ("partition_dim", "partition_stride"))
            expected = whole if dim is None else megatrons_parts(whole, dim, stride, 2)[rank]
            assert same_bits(parameter.detach(), expected.contiguous()), name
            seen.append(name)
    assert len(seen) == 12


def test_what_rules_cannot_do_to_parts(monkeypatch):
    model = Part(0, 2)
    with pytest.raises(RulesError, match=r"up\.bias \(24,\) holds a part of a tensor, and .*lambda.* fills whole ones"):
        initialize(model, {"up.bias": lambda tensor: tensor.zero_(), "*": normal()}, seed=0, shard=model.cut)
    fastinit.flag(model.down.weight, False)
    with pytest.raises(RulesError, match=r"down\.weight \(6, 24\) is torch's to draw"):
        initialize(model, {"*": normal()}, seed=0, shard=model.cut)
    with pytest.raises(TypeError, match=r"shard returns a tensor or what fastinit\.shard makes of it, got NoneType"):
        initialize(model, {"*": normal()}, seed=0, shard=lambda tensor: None)
    monkeypatch.setattr("fastinit.models.initialize.has_other_ranks", lambda: True)
    with pytest.raises(
        RulesError, match=r"up\.weight \(12, 6\) is a part of a weight .* shard=fastinit\.shards\.megatron"
    ):
        initialize(Part(0, 2), {"*": normal()}, seed=0)


def test_shards_of_several_boxes_are_refused_in_graphs():
    target = shards.megatron(megatron_weight((12, 3), 0, 2), 0, 2)
    with pytest.raises(Exception, match="takes shards of one box, and this one has 2"):
        torch.compile(lambda: fastinit.normal_(target), backend="eager", fullgraph=True)()


def test_checkpointable_tensors_say_what_they_hold():
    """The attributes of `torch.distributed.checkpoint.CheckpointableTensor`, which torch has from 2.14 on."""
    whole = fastinit.kaiming_normal_(torch.empty(8, 6), stream=STREAM)
    tensor = nn.Parameter(torch.full((5, 6), 7.0))
    tensor.global_shape, tensor.global_offsets = (8, 6), ((1, 0), (6, 0))
    tensor.local_offsets, tensor.local_sizes = ((0, 0), (2, 0)), ((2, 6), (2, 6))
    for call in (
        lambda: fastinit.kaiming_normal_(tensor, stream=STREAM),
        lambda: fastinit.kaiming_normal_([tensor], stream=[STREAM]),
    ):
        tensor.data.fill_(7)
        call()
        assert same_bits(tensor.detach(), torch.cat([whole[1:3], whole[6:8], torch.full((1, 6), 7.0)]))
    fastinit.ones_(tensor)
    assert bool((tensor[:4] == 1).all())
    assert bool((tensor[4:] == 7).all())
    assert [part.offset for part in parts_of(fastinit.drawing.dtensor.placed(tensor))] == [(1, 0), (6, 0)]
    tensor.local_offsets = ((0, 0), (4, 0))
    with pytest.raises(ValueError, match=r"a box lies within its tensors"):
        fastinit.normal_(tensor)
    tensor.local_offsets = ((0, 0),)
    with pytest.raises(ValueError, match="have an entry for each box"):
        fastinit.normal_(tensor)
