"""How the CPU benchmarks measure: calls that take turns, medians, and what is said about the machine.

Turns, because a machine's clock and its neighbours change within seconds: what changes then changes for all, and the
ratios stay. That is what pytest-benchmark cannot do, which measures one call after the other.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

import fastinit
from fastinit.commands import doctor

Call = Callable[[], Any]

LEAST = 5  # timings of each call, however long it takes
MOST = 1000
# Seconds between calls, where all that are compared take two milliseconds or more. The threads of GNU OpenMP, which
# torch's fill_ uses, spin for milliseconds after their work; on two cores whatever comes next would share one with them
# (uniform_ of 2^26 elements after fill_: 0.217 ns, 5 ms later 0.195). Shorter calls would wait for cores that sleep.
REST, REST_FROM = 5e-3, 2e-3
TICK = 1e-4  # seconds; calls shorter than this are timed many at a time, so that reading the clock (60 ns) is no part


def once(call: Call, calls: int = 1) -> float:
    """Seconds of one call, `calls` of them timed together."""
    if calls == 1:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start = time.perf_counter()
    for _ in repeat(None, calls):
        call()
    return (time.perf_counter() - start) / calls


def estimate(call: Call) -> float:
    """Seconds of one call, after one that may still compile something or touch memory for the first time."""
    once(call)
    calls, seconds = 1, once(call)
    while seconds * calls < TICK / 4:
        calls *= 4
        seconds = once(call, calls)
    return seconds


def medians(*variants: Call, budget: float = 0.4, least: int = LEAST, settle: bool = False) -> list[float]:
    """Median seconds of each variant, taken in turns, in a new order each round.

    Each gets about `budget` seconds and at least `least` timings; where one is much slower than the others, it sits
    rounds out, evenly. Nothing is collected meanwhile; before long calls there is a rest. With `settle`, each timing
    follows a call that is not timed.
    """
    with no_collection():
        expected = [estimate(variant) for variant in variants]
        calls = [max(1, math.ceil(TICK / seconds)) for seconds in expected]
        rest = REST if min(expected) >= REST_FROM else 0.0
        wanted = [min(MOST, max(least, int(budget / (s * n + rest)))) for s, n in zip(expected, calls, strict=True)]
        times: list[list[float]] = [[] for _ in variants]
        rounds = max(wanted)
        for turn in range(rounds):
            for place in range(len(variants)):
                which = (place + turn) % len(variants)
                if (turn + 1) * wanted[which] // rounds > turn * wanted[which] // rounds:
                    if rest:
                        time.sleep(rest)
                    if settle:
                        variants[which]()
                    times[which].append(once(variants[which], calls[which]))
    return [statistics.median(seconds) for seconds in times]


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """What is garbage goes before, and none is looked for within."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch's number of threads, which is fastinit's too; None leaves it."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Another process that keeps one of this process's cores busy."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    code = (  # it ends with its parent, however that ends
        f"import os\nif {cores}: os.sched_setaffinity(0, {cores[-1:]})\n"
        f"print(flush=True)\nwhile os.getppid() == {os.getpid()}: pass"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()  # type: ignore[union-attr]
            yield
        finally:
            process.kill()


def machine() -> dict[str, str]:
    """Where the numbers come from: processor, threads and versions."""
    found = doctor.processor_found()
    return {
        "processor": f"{model_name()} ({found.name})",
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": str(doctor.processors()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": metadata.version("numba"),
        "fastinit": fastinit.__version__,
    }


def model_name() -> str:
    """The processor's name as it is sold, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def words_of(about: dict[str, str]) -> str:
    """The machine in one line, for titles."""
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "numba", "fastinit"))
    return f"{about['processor']}, {about['vectors']}, {about['threads']} of {about['cores']} cores; {versions}"
