"""The limit of a machine: memory written by the CPU engine's stores alone, which are non-temporal in large jobs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels.contract import KernelMissing

CACHES = 128 << 20  # bytes, more than most caches hold


def stores(tensors: Sequence[Tensor]) -> Callable[[], None] | None:
    """What writes zeros into tensors that share no memory, with all threads; None where the CPU engine cannot."""
    if not tensors or not all(one.is_cpu and one.is_contiguous() and one.itemsize <= 8 for one in tensors):
        return None
    try:
        from ..kernels.cpu import jobs

        job = jobs.Job()
        for tensor in tensors:
            job.add_constant(tensor, bytes(tensor.itemsize))
    except (ImportError, KernelMissing):
        return None
    run = jobs.runner(job.table().rows)  # now, so that it is not timed

    def store(kept: object = job) -> None:
        run()

    return store


def cooler() -> Callable[[], object]:
    """What fills the caches with something else; by one thread: torch's would go on looking for work for a while."""
    other = np.ones(CACHES // 8, np.uint64)  # read, not written: what is written has to go back to memory some time
    return other.max


def bandwidth() -> str:
    """How fast memory is written here, by stores alone and through the cache."""
    tensor = torch.zeros(CACHES, dtype=torch.uint8, device="cpu")
    around, through = stores([tensor]), functools.partial(tensor.fill_, 1)
    if around is None:
        return "unknown: the CPU engine does not work"
    rates = [CACHES / best_of(call) / 1e9 for call in (around, through)]
    return f"{rates[0]:.1f} GB/s by non-temporal stores, the limit of large fills; {rates[1]:.1f} by torch's fill_"


def best_of(call: Callable[[], object]) -> float:
    """The shortest of some runs, in seconds, each after a rest: other threads may still look for work."""
    taken = []
    for _ in range(5):
        time.sleep(0.01)
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)
