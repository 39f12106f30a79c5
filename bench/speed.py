"""The README's table: `python -m bench.speed [log2 of the elements]`.

fastinit, torch.nn.init and `fill_` (the limit: writing the bytes) take turns in one process; medians. Prints
Markdown. The last column is the floor that the project sets itself; a missed one is marked.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

import fastinit

from .thresholds import medians

# Call, keyword arguments, dtype, and the least times as fast as torch that will do.
CASES: list[tuple[str, dict[str, Any], torch.dtype, float | None]] = [
    ("uniform_", {}, torch.float32, 8.0),
    ("normal_", {}, torch.float32, 6.0),
    ("trunc_normal_", {}, torch.float32, 60.0),
    ("trunc_normal_", {"std": 0.02}, torch.float32, None),
    ("kaiming_normal_", {}, torch.float32, None),
    ("xavier_uniform_", {}, torch.float32, None),
    ("uniform_", {}, torch.bfloat16, None),
    ("normal_", {}, torch.bfloat16, 8.0),
    ("trunc_normal_", {}, torch.bfloat16, None),
    ("normal_", {}, torch.float16, None),
    ("normal_", {}, torch.float64, None),
]


def caller(function: Callable[..., Any], tensor: torch.Tensor, keywords: dict[str, Any]) -> Callable[[], None]:
    return lambda: function(tensor, **keywords)


def main() -> int:
    exponent = int(sys.argv[1]) if len(sys.argv) > 1 else 26
    rows, missed = [], 0
    for name, keywords, dtype, floor in tqdm(CASES, delay=2, disable=not sys.stderr.isatty()):
        tensor = torch.zeros(1 << exponent // 2, 1 << (exponent - exponent // 2), dtype=dtype)
        ours, theirs = getattr(fastinit, name), getattr(torch.nn.init, name)
        ours(tensor, **keywords)
        variants = [caller(function, tensor, keywords) for function in (ours, theirs)]
        seconds = medians(*variants, caller(torch.Tensor.fill_, tensor, {"value": 1.0}), budget=1.0)
        fast, slow, fill = (1e9 * s / tensor.numel() for s in seconds)
        met = floor is None or slow / fast >= floor
        missed += not met
        call = f"{name}({', '.join(f'{k}={v}' for k, v in keywords.items())})"
        goal = "" if floor is None else f"{floor:g}x{'' if met else ' **missed**'}"
        cells = (call, str(dtype)[6:], f"{slow:.2f}", f"{fast:.2f}", f"{fill:.2f}", f"**{slow / fast:.1f}x**", goal)
        rows.append("| " + " | ".join(cells) + " |")
    print(
        f"2^{exponent} elements, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}\n"
    )
    print("| ns an element | dtype | torch.nn.init | fastinit | `fill_` | speed-up | floor |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
