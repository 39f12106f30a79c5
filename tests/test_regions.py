"""Which indices of a tensor a place in a mesh holds: torch's own sharding of their list is what they are judged by.

Without processes: each rank is asked on torch's fake process group, in a Python of its own, because in one Python the
first rank's mesh would answer for all.
"""

from __future__ import annotations

import functools
import itertools
import json
import math

import pytest
import torch
from common import python, same_bits
from hypothesis import given, strategies as st
from ranks import GATHERS_UNEVEN
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

import fastinit
from fastinit import Stream
from fastinit.drawing.dtensor import indices
from fastinit.drawing.regions import Run, between, of_boxes, product

ORACLE = """
import json, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore
from fastinit.drawing.dtensor import indices

rank, cases = {rank}, json.loads({cases!r})
dist.init_process_group("fake", rank=rank, world_size={world}, store=FakeStore())
meshes = {{}}
for size, mesh_shape, placements in cases:
    if {torn} and "_StridedShard" in str(placements) and size % 36:
        continue
    mesh = meshes.setdefault(tuple(mesh_shape), init_device_mesh("cpu", tuple(mesh_shape)))
    placements = [eval(one) for one in placements]
    local = distribute_tensor(torch.arange(size), mesh, placements, src_data_rank=None).to_local().tolist()
    runs = indices((size,), mesh.shape, mesh.get_coordinate(), placements)[0]
    found = [run.begin + k for run in runs for k in range(run.length)]
    assert found == local, (rank, size, mesh_shape, placements, found, local)
print(len(cases))
"""
MESHES = [(6,), (2, 3), (3, 2), (1, 6), (2, 1, 3)]
ONE = ["Replicate()", "Shard(0)", "_StridedShard(0, split_factor=2)", "_StridedShard(0, split_factor=3)"]


def cases() -> list[tuple[int, tuple[int, ...], tuple[str, ...]]]:
    return [
        (size, mesh, placements)
        for size in (0, 1, 5, 6, 7, 12, 23)
        for mesh in MESHES
        for placements in itertools.product(ONE, repeat=len(mesh))
    ]


@pytest.mark.parametrize("rank", range(6))
def test_indices_are_torchs(rank):
    listed = cases()
    found = python(ORACLE.format(rank=rank, world=6, torn=not GATHERS_UNEVEN, cases=json.dumps(listed)))
    assert int(found) == len(listed) == 7 * (4 + 16 + 16 + 16 + 64)


FULLY = """
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
import fastinit
from fastinit import Stream
from fastinit.drawing.dtensor import placed

dist.init_process_group("fake", rank={rank}, world_size=6, store=FakeStore())
mesh = init_device_mesh("cpu", {mesh}, mesh_dim_names=("dp", "tp"))
for rows in range(1, 20):
    whole = torch.arange(rows * 4.0).view(rows, 4)
    model = torch.nn.Sequential(torch.nn.Linear(4, rows, bias=False))
    model[0].weight.data = whole.clone()
    parallelize_module(model, mesh["tp"], {{"0": ColwiseParallel()}}, src_data_rank=None)
    fully_shard(model, mesh=mesh["dp"])
    weight = model[0].weight
    for part in placed(weight).boxes:  # where FSDP2 has put the rows of the whole
        inside = tuple(slice(at, at + size) for at, size in zip(part.offset, part.shape))
        assert torch.equal(part.of(weight.to_local()), whole[inside]), rows
    assert sum(part.shape[0] for part in placed(weight).boxes) == len(weight.to_local())
    fastinit.normal_(weight, stream=Stream(3))
    drawn = fastinit.normal_(torch.empty(rows, 4), stream=Stream(3))
    for part in placed(weight).boxes:
        inside = tuple(slice(at, at + size) for at, size in zip(part.offset, part.shape))
        assert torch.equal(part.of(weight.to_local()), drawn[inside]), rows
print("well")
"""


@pytest.mark.parametrize("rank", range(6))
@pytest.mark.parametrize("mesh", [(3, 2), (2, 3)])
def test_fsdp2_over_tensor_parallel_as_it_really_cuts(rank, mesh):
    """Where lengths do not divide, torch's placements say something else: 7 rows over (3, 2) have 0 rows on rank 4."""
    assert python(FULLY.format(rank=rank, mesh=mesh)).strip() == "well"


placement = st.one_of(
    st.just(Replicate()),
    st.builds(Shard, st.integers(-3, 2)),
    st.builds(lambda dim, factor: _StridedShard(dim, split_factor=factor), st.integers(0, 2), st.integers(1, 4)),
)


@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(1, 4), placement), min_size=1, max_size=3),
    st.booleans(),
)
def test_every_element_is_held_by_one_place_and_its_replicas(shape, meshes, as_fully_shard):
    mesh, placements = [size for size, _ in meshes], [one for _, one in meshes]
    copies = math.prod(size for size, one in meshes if isinstance(one, Replicate))
    held = torch.zeros(shape, dtype=torch.int64)
    for place in itertools.product(*map(range, mesh)):
        runs = indices(shape, mesh, place, placements, as_fully_shard)
        for box in itertools.product(*runs):
            held[tuple(slice(run.begin, run.begin + run.length) for run in box)] += 1
        for own in runs:
            assert all(a.begin + a.length < b.begin for a, b in itertools.pairwise(own))  # joined, in order
    assert bool((held == copies).all())


INITIALISERS = {
    "normal_": (), "trunc_normal_": (), "kaiming_uniform_": (), "bernoulli_": (0.5,), "orthogonal_": (),
    "sparse_": (0.3,), "eye_": (), "constant_": ([1.0, 2.0, 3.0],),
}  # fmt: skip


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=2),
    st.lists(st.tuples(st.integers(1, 4), placement.filter(lambda one: getattr(one, "dim", 0) in (-2, -1, 0, 1)))),
    st.sampled_from(sorted(INITIALISERS)),
    st.booleans(),
)
def test_what_places_draw_together_is_the_whole(shape, meshes, name, as_fully_shard):
    drawn = {} if name in ("eye_", "constant_") else {"stream": Stream(2)}
    call = functools.partial(getattr(fastinit, name), **drawn)
    whole, together = call(torch.empty(shape), *INITIALISERS[name]), torch.full(shape, math.nan)
    for place in itertools.product(*(range(size) for size, _ in meshes[:2])):
        mesh, placements = [size for size, _ in meshes[:2]], [one for _, one in meshes[:2]]
        runs = indices(shape, mesh, place, placements, as_fully_shard)
        local = torch.empty([sum(run.length for run in own) for own in runs])
        boxes = [*product(runs, local.stride())]
        call(of_boxes(local, shape, boxes), *INITIALISERS[name])
        for box in boxes:
            together[tuple(map(slice, box.offset, map(sum, zip(box.offset, box.shape, strict=True))))] = box.of(local)
    assert same_bits(together, whole)


def test_what_does_not_fit():
    for arguments, message in (
        (((4,), (2,), (0,), [Shard(0), Shard(0)]), r"for each dimension of the mesh \(2,\)"),
        (((4,), (2,), (2,), [Shard(0)]), r"the mesh \(2,\) has no place \(2,\)"),
        (((4,), (2,), (0,), [Shard(1)]), "a dimension that a tensor of 1 dimensions does not have"),
        (((4,), (2,), (0,), [Partial()]), "holds summands of the tensor"),
        (((4,), (2,), (0,), ["Shard(0)"]), r"and not the placement 'Shard\(0\)'"),
    ):
        with pytest.raises(ValueError, match=message):
            indices(*arguments)


def test_a_run_is_not_cut_where_it_need_not_be():
    assert indices((8,), (2, 2), (0, 1), [_StridedShard(0, split_factor=2), Shard(0)]) == ((Run(4, 2),),)
    assert indices((8,), (2,), (0,), [_StridedShard(0, split_factor=2)]) == ((Run(0, 2), Run(4, 2)),)
    assert indices((8, 3), (1,), (0,), [Shard(0)]) == ((Run(0, 8),), (Run(0, 3),))


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_stretches_of_row_major_order_as_boxes(shape, data):
    count = math.prod(shape)
    begin = data.draw(st.integers(0, count))
    end = data.draw(st.integers(begin, count))
    order = torch.arange(count).view(shape)
    found = [
        order[tuple(map(slice, at, map(sum, zip(at, size, strict=True))))].flatten()
        for at, size in between(shape, begin, end)
    ]
    assert torch.equal(torch.cat([*found, torch.empty(0, dtype=torch.int64)]), torch.arange(begin, end))
    assert len(found) <= max(2 * len(shape) - 1, 1)
