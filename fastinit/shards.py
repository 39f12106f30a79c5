"""What other libraries hold of a tensor, as `fastinit.shard` has it: for every initialiser, and for `initialize`.

DTensors need none of these, nor do tensors with the attributes of `torch.distributed.checkpoint.CheckpointableTensor`.
Nothing is copied and nothing communicated. Each raises `ValueError` where sizes do not fit.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .drawing.dtensor import Cut, cut_into
from .drawing.regions import Box, Shard, Target, apart, between, of_boxes, product, shard, strides_of
from .kernels.runs import row_major

__all__ = ["boxes", "deepspeed", "experts", "megatron", "nanotron"]

Slices = Sequence[slice]


def boxes(local: Tensor, shape: Sequence[int], pairs: Iterable[tuple[Slices, Slices]]) -> Shard:
    """`local` as several boxes of a global tensor of `shape`: for each its slices of `local`, and of the global tensor.

    Elements of `local` in no box stay as they are. Slices have no steps.
    """
    found = []
    for here, there in pairs:
        if not len(here) == len(there) == local.dim() == len(shape) > 0:
            raise ValueError(
                f"a box has a slice for each dimension, found {len(here)} and {len(there)} for {tuple(local.shape)} in "
                f"{tuple(shape)}"
            )
        begins, sizes = zip(*(span(part, size) for part, size in zip(here, local.shape, strict=True)), strict=True)
        offset, expected = zip(*(span(part, size) for part, size in zip(there, shape, strict=True)), strict=True)
        if sizes != expected:
            raise ValueError(f"a box has the same size in both tensors, found {sizes} in the local one and {expected}")
        begin = sum(at * step for at, step in zip(begins, strides_of(local), strict=True))
        found.append(Box(begin, sizes, strides_of(local), offset))
    return of_boxes(local, shape, apart(found))


def span(part: slice, size: int) -> tuple[int, int]:
    """Where a slice of a dimension begins, and how many elements it has."""
    if not isinstance(part, slice):
        raise ValueError(f"a box has a slice for each dimension, found {part!r}")
    begin, end, step = part.indices(size)
    outside = any(bound is not None and not 0 <= bound <= size for bound in (part.start, part.stop))
    if step != 1 or outside or end < begin:
        raise ValueError(f"a box's slices lie within their tensors and have no steps; found {part} of {size} elements")
    return begin, end - begin


def megatron(weight: Tensor, rank: int | None = None, world_size: int | None = None) -> Target:
    """A weight of Megatron-LM's: its `tensor_model_parallel`, `partition_dim` and `partition_stride` say what it holds.

    As it is where it is not parallel. For a configuration's `init_method`, which is called when they are set:
    `lambda weight: fastinit.normal_(fastinit.shards.megatron(weight), std=0.02)`. `rank`, `world_size`: in the group of
    tensor parallelism; None asks megatron.core (an expert's `init_method` has to say them). On the CPU
    (`use_cpu_initialization`) Megatron gives `init_method` the whole weight, which is right as it is.
    """
    if not getattr(weight, "tensor_model_parallel", False):
        return weight
    dim, stride = int(weight.partition_dim), int(weight.partition_stride)  # type: ignore[attr-defined]
    rank, world_size = megatron_place(weight) if rank is None or world_size is None else (rank, world_size)
    fits = stride > 0 and -weight.dim() <= dim < weight.dim() and weight.shape[dim] % stride == 0
    if not 0 <= rank < world_size or not fits:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} is no part {rank} of {world_size} with partition_dim {dim} and "
            f"partition_stride {stride}"
        )
    shape = [size * world_size if d == dim % weight.dim() else size for d, size in enumerate(weight.shape)]
    runs = cut_into(shape, [(Cut(dim % weight.dim(), stride), world_size, rank)])
    return of_boxes(weight, shape, [*product(runs, strides_of(weight))])


def megatron_place(weight: Tensor) -> tuple[int, int]:
    """This rank, and how many there are, in the group that a weight is cut over."""
    state: Any = sys.modules.get("megatron.core.parallel_state")
    if state is None:
        raise ValueError("megatron.core is not in use here: say rank= and world_size=")
    # Megatron marks experts' weights so, after `init_method`.
    group = "expert_tensor_parallel" if getattr(weight, "allreduce", True) is False else "tensor_model_parallel"
    return getattr(state, f"get_{group}_rank")(), getattr(state, f"get_{group}_world_size")()


def deepspeed(parameter: Tensor, rank: int | None = None) -> Target:
    """A parameter of DeepSpeed's ZeRO-3: its `ds_tensor` is a stretch of the tensor's row-major order.

    As it is where ZeRO-3 has not taken it. `rank`: in the group that it is cut over; None asks the parameter. What the
    last rank has beyond the tensor's end stays as it is.
    """
    local = getattr(parameter, "ds_tensor", None)
    if local is None:
        return parameter
    if rank is None:
        rank = torch.distributed.get_rank(group=parameter.ds_process_group)  # type: ignore[attr-defined]
    shape = tuple(map(int, parameter.ds_shape))  # type: ignore[attr-defined]
    return stretch(local, shape, rank * local.numel())


def stretch(local: Tensor, shape: Sequence[int], begin: int) -> Shard:
    """A contiguous `local` as the elements from `begin` on of a global tensor in row-major order, up to its end."""
    end = min(operator.index(begin) + local.numel(), math.prod(shape))
    if begin < 0 or not local.is_contiguous():
        raise ValueError(f"a stretch begins at 0 or later and is contiguous, got {begin} and strides {local.stride()}")
    found, at = [], 0
    for offset, size in between(shape, begin, end):
        found.append(Box(at, size, row_major(size), offset))
        at += math.prod(size)
    return of_boxes(local, shape, found)


def nanotron(parameter: Any) -> Target:
    """A `NanotronParameter`: its `get_sharded_info()` has pairs of slices. As it is where it is not sharded."""
    if not getattr(parameter, "is_sharded", False):
        return parameter  # type: ignore[no-any-return]
    info = parameter.get_sharded_info()
    pairs = [(pair.local_slices, pair.global_slices) for pair in info.local_global_slices_pairs]
    return boxes(parameter, tuple(info.unsharded_shape), pairs)


def experts(local: Tensor, rank: int, world_size: int) -> Shard:
    """Experts' weights [experts, ...] of which each of `world_size` ranks has as many, one after the other."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank lies in [0, world_size), got {rank} of {world_size}")
    count = len(local)
    return shard(local, (count * world_size, *local.shape[1:]), (rank * count, *[0] * (local.dim() - 1)))
