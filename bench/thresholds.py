"""Where the CPU engine's thresholds come from: `python -m bench.thresholds`.

For sizes around each threshold, a fill below it and above it, in turns; medians, so only the ratios count. Hot: one
tensor again and again, which the caches hold if they can. Cold: tensors one after the other, 256 MiB of them. A
threshold belongs where the ratio passes 1; where hot and cold disagree, cold wins down to what the L2 cache holds,
because a model's tensors are cold.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch

import fastinit
from fastinit.commands import doctor
from fastinit.initialisers import lists
from fastinit.kernels.contract import Draw
from fastinit.kernels.cpu import helpers, jobs, loading
from fastinit.kernels.cpu.engine import CpuEngine
from fastinit.kernels.cpu.forms import LINE
from fastinit.laws import Normal, Uniform

from .cold import COLD
from .timing import medians, once

NORMAL = Draw(*Normal(0.0, 1.0).parameters(torch.float32), 1, 1)
UNIFORM = Draw(*Uniform(0.0, 1.0).parameters(torch.float32), 1, 1)
NEVER = 1 << 62


def filler(draw: Draw, size: int, cold: bool, alone: int, streaming_from: int) -> Callable[[], None]:
    """Fills of tensors of so many bytes, by one thread up to `alone` elements."""
    count, plan = size // 4, jobs.plan(draw, torch.float32)._replace(alone=alone)
    tensors = [torch.zeros(count) for _ in range(max(COLD // size, 2) if cold else 1)]
    addresses = itertools.cycle([tensor.data_ptr() for tensor in tensors])

    def fill(kept: object = tensors) -> None:
        before, jobs.STREAMING_FROM = jobs.STREAMING_FROM, streaming_from
        try:
            plan.draw(next(addresses), count, 1, 1)
        finally:
            jobs.STREAMING_FROM = before

    return fill


def compare(title: str, sizes: range, first: tuple[int, int], second: tuple[int, int]) -> None:
    """Two ways to fill, as `filler` takes them."""
    print(f"\n{title}")
    for cold, draw, shift in itertools.product((False, True), (UNIFORM, NORMAL), sizes):
        size = 1 << shift
        one, other = medians(filler(draw, size, cold, *first), filler(draw, size, cold, *second))
        where = "cold" if cold else "hot"
        print(f"{where:>5} {draw.kind:8} 2^{shift} B  {one * 1e6:9.1f} us  {other * 1e6:9.1f} us  {one / other:5.2f}x")


def fresh(size: int, threshold: int) -> Callable[[], None]:
    def fill() -> None:
        before, jobs.HUGE_PAGES_FROM = jobs.HUGE_PAGES_FROM, threshold
        try:
            CpuEngine().fill(torch.empty(size // 4), UNIFORM, 0, None)
        finally:
            jobs.HUGE_PAGES_FROM = before

    return fill


def hand_over(threads: int) -> Callable[[], None]:
    """A job of a row for each thread, each a cache line long: what handing over costs, and nothing else."""
    job = jobs.Job()
    for tensor in torch.zeros(threads, LINE // 4):
        job.add_constant(tensor, bytes(4))
    run_apart, team, rows = loading.entry("run_apart"), helpers.team(threads), job.table().rows
    address = rows.ctypes.data

    def call(kept: object = (job, rows)) -> None:
        run_apart(address, threads, threads, team)

    return call


def after_a_nap(call: Callable[[], None]) -> float:
    """Median seconds of a call when all helpers sleep, which this call leaves asleep."""
    taken = []
    for _ in range(30):
        time.sleep(0.005)
        taken.append(once(call))
    return statistics.median(taken)


def listed(together: int) -> Callable[[], None]:
    """Ten thousand small tensors as one list, so many of them asked at a time."""
    tensors = [torch.ones(64) for _ in range(10_000)]

    def fill() -> None:
        with mock.patch.object(lists, "ASKED_TOGETHER", together):
            fastinit.normal_(tensors)

    return fill


def main() -> None:
    print(f"threads: {torch.get_num_threads()}")
    compare("THREADS_FROM: one thread, all threads", range(14, 23), (NEVER, NEVER), (0, NEVER))
    compare("STREAMING_FROM: stores through the cache, around it", range(17, 25), (0, NEVER), (0, 0))
    print("\nASKED_TOGETHER: 10,000 tensors of 64 elements as one list")
    counts = (32, 128, 512, 2048, 10_000)
    for count, seconds in zip(counts, medians(*map(listed, counts)), strict=True):
        print(f"{count:6} at a time  {seconds * 1e3:6.2f} ms")
    print(f"\nhanding over on {doctor.processors()} cores: helpers that are awake, helpers that are left asleep")
    for count in (1, 2, 4, 8, 16, 32, 64):
        call = hand_over(count)
        print(f"{count:5} threads  {medians(call)[0] * 1e6:9.2f} us  {after_a_nap(call) * 1e6:9.2f} us")
    print("\nHUGE_PAGES_FROM: fresh memory without advice, with advice")
    for shift in range(21, 29):
        without, advised = medians(fresh(1 << shift, NEVER), fresh(1 << shift, 0))
        print(f"2^{shift} B  {without * 1e6:9.1f} us  {advised * 1e6:9.1f} us  {without / advised:5.2f}x")


if __name__ == "__main__":
    main()
