"""What a DTensor's local tensor holds of the global one. Nothing else knows private names of torch.distributed.

The engine is torch.distributed's; here is only which global indices belong to a place in a mesh: a function of sizes
and placements, without a collective. torch's own helpers for offsets are wrong where a `_StridedShard` (FSDP2 over
tensor parallel) leaves a local tensor with indices that are no neighbours.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import flags
from .ranks import agree_on
from .regions import Box, Run, Shard, Target, apart, of_boxes, product, strides_of

MODULE = "torch.distributed.tensor"
# What `torch.distributed.checkpoint.CheckpointableTensor` has: a plain tensor that holds boxes of a global one.
BOXES = ("global_shape", "global_offsets", "local_offsets", "local_sizes")


class Cut(NamedTuple):
    """How a mesh dimension shards a tensor: its dimension `dim` is cut into `factor` parts, each of these into as many
    as the mesh dimension has places; a place has its own of each, one after the other. `torch.chunk` says how long.
    """

    dim: int
    factor: int = 1


Step = tuple[Cut, int, int]  # a cut, into how many places, and whose part is kept


def is_dtensor(value: object) -> bool:
    module: Any = sys.modules.get(MODULE)
    return module is not None and isinstance(value, getattr(module, "DTensor", ()))


def cut_of(placement: Any, dimensions: int) -> Cut | None:
    """What a placement does to a tensor of so many dimensions; None: nothing, each place has all.

    Raises `ValueError` for `Partial` and for placements that are not known.
    """
    module: Any = sys.modules[MODULE]
    kind = type(placement)
    if kind is module.Replicate:
        return None
    strided = kind.__name__ == "_StridedShard" and kind.__module__.startswith(MODULE)
    if kind is module.Shard or strided:
        dim = int(placement.dim)
        if not -dimensions <= dim < dimensions:
            raise ValueError(f"{placement} is for a dimension that a tensor of {dimensions} dimensions does not have")
        return Cut(dim % dimensions, int(placement.split_factor) if strided else 1)
    if isinstance(placement, module.Partial):
        raise ValueError(
            f"{placement} holds summands of the tensor, which have no values of their own: initialise it where it is "
            "Replicate or Shard"
        )
    raise ValueError(f"fastinit knows Replicate, Shard and _StridedShard, and not the placement {placement!r}")


def indices(
    shape: Sequence[int],
    mesh: Sequence[int],
    coordinate: Sequence[int],
    placements: Sequence[Any],
    as_fully_shard: bool = False,
) -> tuple[tuple[Run, ...], ...]:
    """For each dimension of a global tensor of `shape` its indices that a place in a mesh holds, in their order.

    `mesh` is the mesh's shape, `coordinate` the place, `placements` one for each dimension of the mesh. What the place
    holds is the product of these. Placements act from left to right, as in `distribute_tensor` and `full_tensor`;
    where `as_fully_shard`, a `_StridedShard` acts after the shards to its right that it counts, as FSDP2 really cuts
    what tensor parallelism has cut. That differs where lengths do not divide. Raises `ValueError` for placements that
    do not fit the mesh or are not known, and for a place that the mesh does not have.
    """
    if not len(mesh) == len(coordinate) == len(placements):
        raise ValueError(
            f"a place and placements are for each dimension of the mesh {(*mesh,)}, found {(*coordinate,)} and "
            f"{(*placements,)}"
        )
    if not all(0 <= at < size for at, size in zip(coordinate, mesh, strict=True)):
        raise ValueError(f"the mesh {(*mesh,)} has no place {(*coordinate,)}")
    steps = steps_of(len(shape), mesh, coordinate, placements)
    return cut_into(shape, fully_sharded(steps) if as_fully_shard else steps)


def steps_of(
    dimensions: int, mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> tuple[Step, ...]:
    """What these placements do to a tensor of so many dimensions, mesh dimension by mesh dimension."""
    cuts = [cut_of(placement, dimensions) for placement in placements]
    return tuple((cut, places, at) for cut, places, at in zip(cuts, mesh, coordinate, strict=True) if cut is not None)


def cut_into(shape: Sequence[int], steps: Sequence[Step]) -> tuple[tuple[Run, ...], ...]:
    """What is left of a tensor's indices by these steps: each cut, into how many places, and whose part is kept."""
    found = [[Run(0, size)] if size else [] for size in shape]
    for cut, places, at in steps:
        own: list[Run] = []
        for part in range(cut.factor):
            own += chunk(chunk(found[cut.dim], cut.factor, part), places, at)
        found[cut.dim] = joined(own)
    return tuple(map(tuple, found))


def fully_sharded(steps: Sequence[Step]) -> list[Step]:
    """The order in which FSDP2 cuts: each `_StridedShard` as a plain one behind those that its factor counts."""
    found: list[Step] = []
    for cut, places, at in reversed(steps):
        later = [step for step in found if step[0].dim == cut.dim]
        counted = cut.factor > 1 and cut.factor == math.prod(step[1] for step in later)
        found.insert(len(found) if counted else 0, (cut._replace(factor=1) if counted else cut, places, at))
    return found


def chunk(runs: Sequence[Run], parts: int, at: int) -> list[Run]:
    """One of the parts of these indices that `torch.chunk` makes; those that it leaves out are empty."""
    count = sum(run.length for run in runs)
    size = -(-count // parts)
    begin, end, seen, found = size * at, min(size * (at + 1), count), 0, []
    for run in runs:
        first, last = max(begin - seen, 0), min(end - seen, run.length)
        if first < last:
            found.append(Run(run.begin + first, last - first))
        seen += run.length
    return found


def joined(runs: Sequence[Run]) -> list[Run]:
    """The same indices, neighbours in one run."""
    found: list[Run] = []
    for run in runs:
        if found and found[-1].begin + found[-1].length == run.begin:
            found[-1] = Run(found[-1].begin, found[-1].length + run.length)
        else:
            found.append(run)
    return found


def placed(target: Any, fast: bool | None = None) -> Any:
    """A DTensor, or a tensor with the attributes `BOXES`, as a `Shard`; what is neither, or is torch's, as it is.

    No collective, no copy. Raises `ValueError` where the local tensor has another size than its placements say, for
    `Partial`, and for placements that are not known; nothing has been written then.
    """
    if not isinstance(target, Tensor):
        return target
    sharded = is_dtensor(target)
    if not sharded and BOXES[0] not in target.__dict__:
        return target
    if (flags.flag_of(target) if fast is None else fast) is False:
        return target
    return of_dtensor(target) if sharded else of_checkpointable(target)


def memory_of(tensor: Tensor) -> Tensor:
    """The tensor that has a DTensor's memory; any other one has its own."""
    return to_local(tensor) if is_dtensor(tensor) else tensor


def to_local(tensor: Any) -> Tensor:
    local: Tensor | None = getattr(tensor, "_local_tensor", None)
    if local is None:
        with torch.no_grad():  # the local tensor itself, without a step of autograd's
            local = tensor.to_local()
    return local


def of_dtensor(tensor: Any) -> Shard:
    """What this rank holds of a DTensor; nothing, where the rank is outside its mesh."""
    local, mesh = to_local(tensor), tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return of_boxes(local, tensor.shape, (), tensor)
    try:
        steps = steps_of(tensor.dim(), mesh.shape, coordinate, tensor.placements)
        boxes = boxes_of(tensor.shape, steps, local.shape, strides_of(local))
    except ValueError as error:
        raise ValueError(f"{described(tensor)}: {error}") from None
    return of_boxes(local, tensor.shape, boxes, tensor)


@functools.lru_cache(4096)
def boxes_of(
    shape: tuple[int, ...], steps: tuple[Step, ...], local: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Box, ...]:
    """What a local tensor of this shape and these strides holds. Raises `ValueError` where it has another shape."""
    possible = [cut_into(shape, order) for order in (fully_sharded(steps), steps)]
    sizes = [tuple(sum(run.length for run in own) for own in runs) for runs in possible]
    if tuple(local) not in sizes:
        raise ValueError(
            f"expected a local tensor of shape {' or '.join(map(str, dict.fromkeys(sizes)))}, found {tuple(local)}, "
            "whose indices are not known; nothing was written. fastinit.shard(local, shape, offset) takes such tensors"
        )
    return tuple(product(possible[sizes.index(tuple(local))], stride))


def check_number(target: Shard, number: tuple[int, int]) -> None:
    """Raise `RuntimeError` where the ranks of a DTensor have drawn different numbers: see `check_ranks`."""
    tensor: Any = target.owner
    if is_dtensor(tensor) and tensor.device_mesh.get_coordinate() is not None:
        mesh = tensor.device_mesh
        agree_on(
            f"{described(tensor)}: ranks draw it from different numbers",
            number,
            [mesh.get_group(dimension) for dimension in range(mesh.ndim)],
            "seed all ranks alike (torch.manual_seed), and have them make the same calls; or draw by names: "
            "fastinit.initialize, stream=fastinit.Stream.named(name, seed)",
        )


def described(tensor: Any) -> str:
    """A DTensor in an error message: which rank's, and how it is placed."""
    mesh = tensor.device_mesh
    return (
        f"rank {torch.distributed.get_rank()}, DTensor of shape {tuple(tensor.shape)} with placements "
        f"{tuple(tensor.placements)} at {tuple(mesh.get_coordinate() or ())} of the mesh {tuple(mesh.shape)}"
    )


def of_checkpointable(tensor: Any) -> Target:
    """A `torch.distributed.checkpoint.CheckpointableTensor`: a plain tensor with boxes of a global one."""
    if not all(hasattr(tensor, name) for name in BOXES):
        return tensor  # type: ignore[no-any-return]
    shape, *lists = (getattr(tensor, name) for name in BOXES)
    shape, stride, boxes = tuple(shape), strides_of(tensor), []
    if len({*map(len, lists)}) > 1:
        raise ValueError(f"{', '.join(BOXES[1:])} have an entry for each box, found {[*map(len, lists)]}")
    for at, start, size in zip(*lists, strict=True):
        start = tuple(start) or (0,) * tensor.dim()
        whole = ((at, size, shape), (start, size, tensor.shape))
        if any(
            len({*map(len, one)}) > 1
            or any(first < 0 or length < 0 or first + length > most for first, length, most in zip(*one, strict=True))
            for one in whole
        ):
            raise ValueError(
                f"a box lies within its tensors: expected one in shape {shape} and in the local {tuple(tensor.shape)}, "
                f"found size {tuple(size)} at {tuple(at)} and locally at {start}"
            )
        begin = sum(index * step for index, step in zip(start, stride, strict=True))
        boxes.append(Box(begin, tuple(size), stride, tuple(at)))
    return of_boxes(tensor.detach(), shape, apart(boxes))
