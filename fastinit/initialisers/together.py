"""Many tensors of a list at once: each question that the fast path asks is asked of all of them, and their fills are
added to a batch together.

A question costs some 50 ns a tensor, and the first one several times that, because its object comes out of memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..drawing import batch, flags
from ..drawing.dtensor import BOXES
from ..drawing.route import ORDINARY
from ..drawing.torch_private import COMPLETE, increment_version
from ..kernels.contract import Job, KernelMissing

if TYPE_CHECKING:
    from ..kernels.cpu.jobs import Plan

TYPES = ORDINARY if COMPLETE else set()  # the fast path asks torch for what may be missing
NOTES = frozenset({flags.ATTRIBUTE, BOXES[0]})  # attributes that make a tensor special
FAR = 1 << 40  # bytes: no view's offset reaches as far, and most addresses lie beyond
ATTRIBUTES, DTYPE = operator.attrgetter("__dict__"), operator.attrgetter("dtype")
IS_CPU, IS_NESTED = operator.attrgetter("is_cpu"), operator.attrgetter("is_nested")


class Looked(NamedTuple):
    """Contiguous tensors of the CPU, about which nothing needs a second look."""

    tensors: Sequence[Tensor]
    dtypes: list[torch.dtype]
    addresses: NDArray[np.uint64]
    counts: NDArray[np.uint64]


def ordinary_ones(tensors: Sequence[Any]) -> Looked | None:
    """What `quick.ordinary_address` asks of a tensor, asked of all; None where one is not ordinary, or on a GPU."""
    try:
        if not (
            {*map(type, tensors)} <= TYPES
            and not (any(map(ATTRIBUTES, tensors)) and not all(map(NOTES.isdisjoint, map(ATTRIBUTES, tensors))))
            and all(map(IS_CPU, tensors))
            and not any(map(IS_NESTED, tensors))
            and all(map(Tensor.is_contiguous, tensors))
            and not any(map(Tensor.is_neg, tensors))
            and not (flags.in_use and any(map(flags.is_spoken_for, tensors)))
        ):
            return None
        addresses = np.fromiter(map(Tensor.data_ptr, tensors), np.uint64)
        counts = np.fromiter(map(Tensor.numel, tensors), np.uint64)
        return Looked(tensors, [*map(DTYPE, tensors)], addresses, counts) if addresses.min() > FAR else None
    except RuntimeError:  # torch's, for an address or strides that a tensor does not have
        return None


def fill_together(
    looked: Looked,
    kinds: Sequence[Hashable],
    found: Mapping[Any, Plan | None],
    seeds: Callable[[], tuple[Any, Any]],
    own: list[Job],
) -> bool:
    """Put off the tensors' fills until the batch around ends, or the job in `own` is done.

    Each is filled by the plan that is `found` for its kind. `seeds` draws seeds and streams' ids, or one for all.

    Returns whether it did: not where a plan is missing, or a tensor too large for it.
    """
    plans = [plan for plan in found.values() if plan is not None]
    if len(plans) < len(found) or looked.counts.max() > min(plan.most for plan in plans):
        return False
    patterns = {kind: plan.pattern for kind, plan in found.items() if plan is not None}
    each: Any = plans[0].pattern if len(plans) == 1 else [*map(patterns.__getitem__, kinds)]
    try:
        if not own:
            own.append(plans[0].job())
        increment_version(tuple(looked.tensors))  # inference tensors have none, which is an error
    except (RuntimeError, KernelMissing):
        return False
    given = (plans, looked.tensors, each, looked.addresses, looked.counts, *seeds())
    if not batch.put_off(plans[0], lambda job: job.add_plans(*given)):
        own[0].add_plans(*given)
    return True
