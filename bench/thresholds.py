"""Where the CPU engine's thresholds come from: `python -m bench.thresholds`.

For sizes around each threshold, a fill below it and above it, interleaved; medians, so only the ratios count. A
threshold belongs where the ratio passes 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastinit.kernels.contract import Draw
from fastinit.kernels.cpu import engine as cpu
from fastinit.laws import Normal, Uniform

from .timing import medians

NORMAL = Draw(*Normal(0.0, 1.0).parameters(torch.float32), 1, 1)
UNIFORM = Draw(*Uniform(0.0, 1.0).parameters(torch.float32), 1, 1)
NEVER = 1 << 62


def filler(out: torch.Tensor, draw: Draw, **thresholds: int) -> Callable[[], None]:
    """A fill of `out` with some of the engine's thresholds replaced."""
    engine = cpu.CpuEngine()

    def fill() -> None:
        before = {name: getattr(cpu, name) for name in thresholds}
        for name, value in thresholds.items():
            setattr(cpu, name, value)
        try:
            engine.fill(out, draw, 0, None)
        finally:
            for name, value in before.items():
                setattr(cpu, name, value)

    return fill


def row(label: str, first: float, second: float) -> None:
    print(f"{label:>12}  {first * 1e6:10.1f} us  {second * 1e6:10.1f} us  {first / second:6.2f}x")


def main() -> None:
    print(f"threads: {torch.get_num_threads()}")
    print("\nTHREADS_FROM: one thread, all threads")
    for draw in (UNIFORM, NORMAL):
        for shift in range(16, 24):
            out = torch.empty((1 << shift) // 4)
            one, all_ = medians(filler(out, draw, THREADS_FROM=NEVER), filler(out, draw, THREADS_FROM=0))
            row(f"{draw.kind} 2^{shift} B", one, all_)
    print("\nSTREAMING_FROM: stores through the cache, around it")
    for shift in range(20, 30):
        out = torch.empty((1 << shift) // 4)
        variants = (
            filler(out, UNIFORM, THREADS_FROM=0, STREAMING_FROM=NEVER),
            filler(out, UNIFORM, THREADS_FROM=0, STREAMING_FROM=0),
        )
        through, around = medians(*variants)
        row(f"2^{shift} B", through, around)
    print("\nHUGE_PAGES_FROM: fresh memory without advice, with advice")
    for shift in range(21, 30, 2):

        def fresh(threshold: int, count: int = (1 << shift) // 4) -> Callable[[], None]:
            return lambda: filler(torch.empty(count), UNIFORM, HUGE_PAGES_FROM=threshold)()

        without, advised = medians(fresh(NEVER), fresh(0))
        row(f"2^{shift} B", without, advised)


if __name__ == "__main__":
    main()
