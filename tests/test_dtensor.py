"""DTensors: the bits of the tensor that a single process would have, on any mesh, in real groups of processes."""

from __future__ import annotations

import functools

import pytest
import torch
from common import same_bits
from ranks import group
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import fastinit
from fastinit import Stream

STREAM = Stream(11)
# For each number of processes the meshes, and how a tensor lies on each: placements, one for each dimension of it.
MESHES = {
    2: {(2,): [(Shard(0),), (Shard(1),), (Shard(2),), (Replicate(),)]},
    4: {
        (4,): [(Shard(0),), (Shard(1),), (Shard(2),)],
        (2, 2): [
            (Shard(0), Shard(0)), (Shard(0), Shard(1)), (Shard(1), Shard(0)), (Replicate(), Shard(0)),
            (Replicate(), Shard(1)), (Shard(2), Replicate()), (_StridedShard(0, split_factor=2), Shard(0)),
            (_StridedShard(1, split_factor=2), Shard(1)), (_StridedShard(0, split_factor=3), Replicate()),
        ],
        (2, 1, 2): [(Shard(0), Replicate(), Shard(1)), (Replicate(), Shard(0), Shard(0))],
    },
}  # fmt: skip
SHAPES = [(16, 12), (5, 7), (3, 8), (1, 5), (6, 4, 3), (4, 2, 5)]
CALLS = {
    "uniform_": (-1.0, 1.0), "normal_": (0.5, 2.0), "trunc_normal_": (0.0, 1.0, -1.0, 1.5), "xavier_uniform_": (),
    "xavier_normal_": (), "kaiming_uniform_": (), "kaiming_normal_": (), "orthogonal_": (), "sparse_": (0.4,),
    "constant_": (0.25,), "ones_": (), "zeros_": (), "eye_": (), "dirac_": (), "bernoulli_": (0.3,), "cauchy_": (),
    "exponential_": (), "geometric_": (0.2,), "log_normal_": (), "random_": (0, 100), "variance_scaling_": (),
    "identity_": (0.5,), "depth_scaled_normal_": (0.02, 4), "delta_orthogonal_": (),
}  # fmt: skip
DRAWS_NOTHING = ("constant_", "ones_", "zeros_", "eye_", "dirac_", "identity_")


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    with group(request.param) as ranks:
        ranks.world = request.param
        yield ranks


@functools.cache  # a mesh has groups of its own, which take long to make
def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape)


def fits(name: str, shape: tuple[int, ...]) -> bool:
    if name in ("sparse_", "eye_", "identity_"):
        return len(shape) == 2
    if name == "dirac_":
        return len(shape) == 3
    return name != "delta_orthogonal_" or (len(shape) == 3 and shape[1] <= shape[0])


def every_place(world: int, name: str, dtype: torch.dtype) -> int:
    """Each shape on each mesh, by each placement: what the initialiser writes there is the single process's."""
    call, seen = getattr(fastinit, name), 0
    drawn = {} if name in DRAWS_NOTHING else {"stream": STREAM}
    for shape in SHAPES:
        if not fits(name, shape):
            continue
        whole = call(torch.full(shape, 7.0, dtype=dtype), *CALLS[name], **drawn)
        for mesh_shape, placements in MESHES[world].items():
            mesh = mesh_of(mesh_shape)
            for placement in placements:
                if any(getattr(one, "dim", 0) >= len(shape) for one in placement):
                    continue
                sharded = distribute_tensor(torch.full(shape, 7.0, dtype=dtype), mesh, placement, src_data_rank=None)
                assert call(sharded, *CALLS[name], **drawn) is sharded
                assert same_bits(sharded.full_tensor(), whole), (shape, mesh_shape, placement)
                seen += 1
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
def test_every_initialiser_on_every_mesh(ranks, name, dtype):
    assert all(seen >= 4 for seen in ranks(every_place, ranks.world, name, dtype))
