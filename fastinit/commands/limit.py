"""The limit of a machine: its memory written by non-temporal stores, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ..kernels.contract import KernelMissing

CACHES = 128 << 20  # bytes, more than most caches hold


def stores(tensors: Sequence[Tensor]) -> Callable[[], None] | None:
    """What writes zeros into these tensors with all threads; None where the CPU engine cannot."""
    try:
        from ..kernels.cpu import jobs

        if not all(tensor.is_cpu and tensor.is_contiguous() and tensor.itemsize <= 8 for tensor in tensors):
            return None
        job = jobs.Job()
        for tensor in tensors:
            job.add_constant(tensor, bytes(tensor.itemsize))
    except (ImportError, KernelMissing):
        return None
    job.table()  # now, so that it is not timed
    return job.do


def cooler() -> Callable[[], None]:
    """What fills the caches with something else; by one thread: torch's would go on looking for work for a while."""
    other = np.zeros(CACHES, np.uint8)
    return lambda: other.fill(0)
