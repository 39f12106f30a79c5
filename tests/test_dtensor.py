"""DTensors: the bits of the tensor that a single process would have, on any mesh, in real groups of processes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from common import same_bits, slow_unless
from ranks import GATHERS_UNEVEN, group
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
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


def is_torn(shape: tuple[int, ...], placement: tuple[Any, ...]) -> bool:
    """Whether this release of torch cuts a tensor in one way and gathers it in another."""
    return not GATHERS_UNEVEN and any(isinstance(one, _StridedShard) and shape[one.dim] % 12 for one in placement)


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
                if any(getattr(one, "dim", 0) >= len(shape) for one in placement) or is_torn(shape, placement):
                    continue
                sharded = distribute_tensor(torch.full(shape, 7.0, dtype=dtype), mesh, placement, src_data_rank=None)
                for _ in range(2):  # a call like one before may go another way
                    sharded.to_local().fill_(7.0)
                    assert call(sharded, *CALLS[name], **drawn) is sharded
                assert same_bits(sharded.full_tensor(), whole), (shape, mesh_shape, placement)
                seen += 1
    return seen


CASES = [(name, dtype) for dtype in (torch.float32, torch.bfloat16) for name in CALLS]
USUAL_IN_HALF = ("normal_", "trunc_normal_", "orthogonal_", "sparse_", "dirac_")


@pytest.mark.parametrize(
    ("name", "dtype"), slow_unless(lambda case: case[1] is torch.float32 or case[0] in USUAL_IN_HALF, CASES)
)
def test_every_initialiser_on_every_mesh(ranks, name, dtype):
    assert all(seen >= 4 for seen in ranks(every_place, ranks.world, name, dtype))


def by_the_generator(world: int) -> None:
    """One number of the CPU's default generator a call, on every rank, whatever it holds."""
    mesh = mesh_of((world,))
    for call in (fastinit.normal_, fastinit.kaiming_uniform_, fastinit.orthogonal_, lambda t: fastinit.sparse_(t, 0.5)):
        torch.manual_seed(3)
        whole, after = call(torch.empty(3, 8)), torch.rand(1)
        torch.manual_seed(3)
        sharded = call(distribute_tensor(torch.empty(3, 8), mesh, [Shard(0)], src_data_rank=None))
        assert same_bits(sharded.full_tensor(), whole)
        assert torch.equal(torch.rand(1), after)
    generator = torch.Generator().manual_seed(4)
    whole = fastinit.normal_(torch.empty(3, 8), generator=generator)
    sharded = distribute_tensor(torch.empty(3, 8), mesh, [Shard(1)], src_data_rank=None)
    fastinit.normal_(sharded, generator=generator.manual_seed(4))
    assert same_bits(sharded.full_tensor(), whole)


def test_numbers_come_from_the_cpus_generator(ranks):
    ranks(by_the_generator, ranks.world)


def counted_collectives(world: int) -> tuple[int, int]:
    """The collectives of fills, by every initialiser; a dispatch mode would have torch serve them."""
    mesh = mesh_of((world,))
    before = mesh.get_group()._get_sequence_number_for_group()
    for shape in ((8, 6), (8, 6, 3)):
        for name, values in CALLS.items():
            if fits(name, shape):
                fastinit_call = getattr(fastinit, name)
                sharded = distribute_tensor(torch.zeros(shape), mesh, [Shard(0)], src_data_rank=None)
                fastinit_call(sharded, *values)
                fastinit_call(sharded.t() if len(shape) == 2 else sharded, *values)
    fills = mesh.get_group()._get_sequence_number_for_group() - before
    sharded.full_tensor()
    return fills, mesh.get_group()._get_sequence_number_for_group() - before


def test_no_collective_is_needed(ranks):
    assert all(fills == 0 and twin > 0 for fills, twin in ranks(counted_collectives, ranks.world))


def as_a_tensor_would(world: int) -> None:
    mesh = mesh_of((world,))

    def made(*shape: int) -> DTensor:
        return distribute_tensor(torch.full(shape, 7.0), mesh, [Shard(0)], src_data_rank=None)

    # lists
    torch.manual_seed(5)
    alone = fastinit.normal_([torch.empty(6, 4), torch.empty(5)])
    torch.manual_seed(5)
    together = [made(6, 4), made(5)]
    assert fastinit.normal_(together) is together
    assert all(same_bits(a.full_tensor(), b) for a, b in zip(together, alone, strict=True))
    # batches
    torch.manual_seed(5)
    with fastinit.batch():
        batched = [fastinit.normal_(made(6, 4)), fastinit.normal_(made(5))]
    assert all(same_bits(a.full_tensor(), b) for a, b in zip(batched, alone, strict=True))
    # flags and fast=False: torch's own result
    flagged = made(6, 4)
    fastinit.flag(flagged, False)
    torch.manual_seed(5)
    fastinit.normal_(flagged)
    torch.manual_seed(5)
    torchs = torch.nn.init.normal_(made(6, 4))
    assert same_bits(flagged.full_tensor(), torchs.full_tensor())
    torch.manual_seed(5)
    assert same_bits(fastinit.normal_(made(6, 4), fast=False).full_tensor(), torchs.full_tensor())
    fastinit.flag(flagged, True)
    fastinit.normal_(flagged, stream=STREAM)
    assert same_bits(flagged.full_tensor(), fastinit.normal_(torch.empty(6, 4), stream=STREAM))
    # parameters, and autograd, which hears of the write
    for name, values in CALLS.items():
        shape = (6, 4, 3) if name in ("dirac_", "delta_orthogonal_") else (6, 4)
        versioned = made(*shape)
        before = versioned._version
        getattr(fastinit, name)(versioned, *values)
        assert versioned._version > before, name
    versioned = made(6, 4)
    before = versioned._version
    fastinit.initialisers.gates("ab", fastinit.initialisers.normal()).fill(versioned)
    assert versioned._version > before
    parameter = torch.nn.Parameter(made(6, 4))
    assert fastinit.xavier_uniform_(parameter, stream=STREAM) is parameter
    assert same_bits(parameter.detach().full_tensor(), fastinit.xavier_uniform_(torch.empty(6, 4), stream=STREAM))
    # values, constants by index
    fastinit.initialisers.normal(std=0.1).fill(parameter, stream=STREAM)
    assert same_bits(parameter.detach().full_tensor(), fastinit.normal_(torch.empty(6, 4), std=0.1, stream=STREAM))
    listed = fastinit.constant_(made(6, 4), [1.0, 2.0, 3.0])
    assert same_bits(listed.full_tensor(), fastinit.constant_(torch.empty(6, 4), [1.0, 2.0, 3.0]))
    # layouts, other engines, the transposed tensor
    turned = made(6, 4)
    fastinit.kaiming_normal_(turned, stream=STREAM, layout="io")
    assert same_bits(turned.full_tensor(), fastinit.kaiming_normal_(torch.empty(6, 4), stream=STREAM, layout="io"))
    for engine in ("reference", "eager", "cpu"):
        with fastinit.use_engine(engine):
            fastinit.normal_(turned.t(), stream=STREAM)
        assert same_bits(turned.full_tensor().t(), fastinit.normal_(torch.empty(4, 6), stream=STREAM))


@pytest.mark.filterwarnings("ignore:DTensor random operators")
def test_a_dtensor_is_taken_as_a_tensor_is(ranks):
    ranks(as_a_tensor_would, ranks.world)


def outside_the_mesh(world: int) -> None:
    """A rank that a mesh does not have: it writes nothing, and its generator keeps in step if it makes the call."""
    mesh = DeviceMesh("cpu", torch.arange(world // 2))
    inside = torch.distributed.get_rank() < world // 2
    torch.manual_seed(6)
    whole, after = fastinit.normal_(torch.empty(6, 4)), torch.rand(1)
    local = torch.full((6 // (world // 2), 4) if inside else (0,), 7.0)
    sharded = DTensor.from_local(local, mesh, [Shard(0)], shape=(6, 4), stride=(4, 1))
    torch.manual_seed(6)
    for call in (fastinit.normal_, fastinit.eye_, fastinit.normal_):
        assert call(sharded) is sharded
        if call is fastinit.eye_:
            torch.manual_seed(6)
    assert torch.equal(torch.rand(1), after)
    if inside:
        assert same_bits(sharded.full_tensor(), whole)
    else:
        assert sharded.to_local().numel() == 0


def test_ranks_outside_the_mesh(ranks):
    ranks(outside_the_mesh, ranks.world)


def what_is_refused(world: int) -> None:
    mesh = mesh_of((world,))
    rank = torch.distributed.get_rank()
    placed = f"rank {rank}, DTensor of shape .6, 4. with placements .* at .{rank},. of the mesh .{world},."
    summands = DTensor.from_local(torch.ones(6, 4), mesh, [Partial()])
    for call in (fastinit.normal_, fastinit.orthogonal_, fastinit.eye_, fastinit.xavier_uniform_):
        with pytest.raises(ValueError, match=f"{placed}: .*holds summands of the tensor"):
            call(summands)
    odd = DTensor.from_local(torch.ones(1, 4), mesh, [Shard(0)], shape=(6, 4), stride=(4, 1))
    rows = -(-6 // world)
    rows = max(min(6 - rank * rows, rows), 0)
    expected = f"expected a local tensor of shape .{rows}, 4., found .1, 4."
    if rows != 1:
        with pytest.raises(ValueError, match=f"{placed}: {expected}"):
            fastinit.normal_(odd)
        assert torch.equal(odd.to_local(), torch.ones(1, 4))
    fastinit.uniform_(DTensor.from_local(torch.ones(6, 4), mesh, [Replicate()]))  # of which no answer is remembered
    for size in (4, 1 << 19):  # of summands zero is a sum
        summands = DTensor.from_local(torch.ones(size), mesh, [Partial()])
        assert bool((fastinit.zeros_(summands).to_local() == 0).all())
    gates = fastinit.initialisers.gates("ab", fastinit.initialisers.normal())
    with pytest.raises(RuntimeError, match="torch cannot draw gates of a DTensor"):
        gates.fill(odd, fast=False)
    unknown = DTensor.from_local(torch.ones(6, 4), mesh, [OfSomebody()])
    with pytest.raises(ValueError, match=f"{placed}: fastinit knows Replicate, Shard and _StridedShard, and not"):
        fastinit.uniform_(unknown)
    with pytest.raises(ValueError, match="Fan in and fan out can not be computed"):
        fastinit.xavier_normal_(distribute_tensor(torch.empty(6), mesh, [Shard(0)], src_data_rank=None))
    with pytest.raises(RuntimeError, match="cannot serve stream="):
        fastinit.normal_(
            distribute_tensor(torch.empty(6, dtype=torch.complex64), mesh, [Shard(0)], src_data_rank=None),
            stream=STREAM,
        )


def compiled(world: int) -> None:
    """Inside torch.compile torch draws, as its own function would."""
    mesh = mesh_of((world,))
    for name in ("normal_", "kaiming_uniform_", "zeros_"):
        sharded = distribute_tensor(torch.empty(6, 4), mesh, [Shard(0)], src_data_rank=None)
        call = torch.compile(getattr(fastinit, name), backend="eager")
        call(sharded)
        assert bool(sharded.to_local().isfinite().all())


@pytest.mark.filterwarnings("ignore")
def test_inside_torch_compile(ranks):
    ranks(compiled, ranks.world)


class OfSomebody(Replicate):
    """A placement that fastinit does not know."""


def test_what_is_refused(ranks):
    ranks(what_is_refused, ranks.world)


def seeded_apart(world: int) -> None:
    rank = torch.distributed.get_rank()
    for shape in MESHES[world]:
        mesh = mesh_of(shape)
        sharded = distribute_tensor(torch.full((8, 4), 7.0), mesh, [Shard(0)] * len(shape), src_data_rank=None)
        torch.manual_seed(0 if rank == 0 else 1)
        different = r"different numbers: expected \(\d+, 0\), as on rank 0, found \(\d+, 0\) on rank 1"
        with pytest.raises(RuntimeError, match=different), fastinit.check_ranks():
            fastinit.normal_(sharded)
        assert bool((sharded.to_local() == 7).all())
        torch.manual_seed(0)
        with fastinit.check_ranks():
            fastinit.normal_(sharded)
        torch.manual_seed(0)
        assert same_bits(sharded.full_tensor(), fastinit.normal_(torch.empty(8, 4)))
        with pytest.raises(RuntimeError, match="draw it from different numbers"), fastinit.check_ranks():
            fastinit.orthogonal_(sharded, stream=Stream(rank, rank))
    model = torch.nn.Linear(3, 4)
    for act in (
        lambda seed: fastinit.initialize(model, "torch_default", seed=seed),
        lambda seed: fastinit.build(torch.nn.Linear, 3, 4, seed=seed),
        lambda seed: fastinit.accelerate(model, seed=seed).__enter__(),
    ):
        before = model.weight.clone()
        different = "ranks give different seeds for one model: expected 5, as on rank 0"
        with pytest.raises(RuntimeError, match=different), fastinit.check_ranks():
            act(5 + rank)
        assert torch.equal(model.weight, before)
    with fastinit.check_ranks():
        fastinit.initialize(model, "torch_default", seed=5)


def test_ranks_that_are_seeded_apart_are_told_where_they_are_asked(ranks):
    ranks(seeded_apart, ranks.world)


def highest_memory() -> int:
    """The most memory of this process since `forget_highest`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def forget_highest() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return highest_memory()


def growth(world: int) -> list[float]:
    """What each fill takes besides the shard, as a part of the shard; at last of one that makes a copy, the twin."""
    mesh, found = mesh_of((2, world // 2)), []
    for placement in ([Shard(0), Shard(1)], [_StridedShard(0, split_factor=world // 2), Shard(0)]):
        sharded = DTensor.from_local(
            torch.zeros(1 << 11, 1 << 13).reshape(-1, 1 << (13 if placement[1].dim == 0 else 12)),
            mesh, placement,
        )  # fmt: skip
        shard = 4 * sharded.to_local().numel()
        for name in ("normal_", "trunc_normal_", "kaiming_uniform_", "sparse_", "dirac_"):
            values = CALLS[name]
            if name == "dirac_":
                sharded = sharded.view(*sharded.shape, 1) if sharded.dim() == 2 else sharded
            call = functools.partial(getattr(fastinit, name), sharded, *values)
            call()  # what is compiled, is now
            before = forget_highest()
            call()
            found.append((highest_memory() - before) / shard)
    before = forget_highest()
    sharded.to_local().clone()
    found.append((highest_memory() - before) / shard)
    return found


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's memory as Linux tells it")
def test_a_fill_takes_no_memory_besides_the_shard(ranks):
    for *fills, copy in ranks(growth, ranks.world):
        scratch = fills[3::5]  # sparse_'s: 5 MB, whatever the shard's size
        assert max(scratch) <= 6e6 / (4 << 24 >> ranks.world // 2), fills
        assert max(one for number, one in enumerate(fills) if number % 5 != 3) <= 0.01, fills
        assert copy > 0.9
