"""What filling costs on the GPU at hand: `python -m bench.gpu [--json file] [--picture file] [--most 30]`.

fastinit, torch.nn.init, `fill_` (the limit: writing the bytes) and `copy_` take turns on one stream, timed by the
device's own events; medians. Small fills are launched many at a time: what counts is how fast they follow each other.
Without a GPU there is nothing to do, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastinit

LAWS: dict[str, tuple[str, dict[str, float]]] = {
    "uniform": ("uniform_", {}),
    "normal": ("normal_", {}),
    "truncated": ("trunc_normal_", {}),
    "truncated wide": ("trunc_normal_", {"a": -4.0, "b": 5.0}),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LEAST, MOST = 10, 30  # log2 of the elements
SHOWN = (10, 16, 20, 24, 30)  # in the table, beside the largest; all of them are in the JSON
LAUNCHED = 1 << 26  # elements to a pair of events, whose clock ticks every half microsecond (CUDA runtime API)
MOST_LAUNCHES = 100
COLOURS = {"fastinit": "#2b6cb0", "torch": "#d9622b", "fill_": "#4a5568", "copy_": "#a0aec0"}
BUDGET, ROUNDS = 0.3, 15  # seconds for a case, and how often at least its calls take turns


class Measured(NamedTuple):
    """Median seconds of one fill, by whose it is; torch may be missing where it has no such kernel."""

    law: str
    dtype: str
    exponent: int
    seconds: dict[str, float]

    def ns(self, name: str) -> float:
        """Nanoseconds an element; nan where there was no such kernel."""
        return 1e9 * self.seconds.get(name, math.nan) / (1 << self.exponent)


def backend() -> Any:
    """torch.cuda (ROCm's, too) or torch.xpu, whichever has a device; None if neither."""
    return next((module for module in (torch.cuda, torch.xpu) if module.is_available()), None)


def driver() -> str:
    if (command := shutil.which("nvidia-smi")) is None:
        return "unknown"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split("\n")[0] or "unknown"


def circumstances(device: Any) -> dict[str, str]:
    import triton  # the engine for GPUs needs it, too

    platform = torch.version.cuda or torch.version.hip or "none"
    about = {"device": device.get_device_name(), "driver": driver(), "platform": platform}
    return about | {"torch": torch.__version__, "triton": triton.__version__, "fastinit": fastinit.__version__}


def words_of(about: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items())


def medians(device: Any, calls: Mapping[str, Callable[[], Any]], launches: int) -> dict[str, float]:
    """Median seconds of a call of each, taken in turns after each has run three times."""
    for call in calls.values():
        for _ in range(3):
            call()
    device.synchronize()
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + BUDGET
    while time.perf_counter() < stop or len(times["fastinit"]) < ROUNDS:
        marks = {}
        for name, call in calls.items():
            first, last = (device.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(launches):
                call()
            last.record()
            marks[name] = first, last
        device.synchronize()
        for name, (first, last) in marks.items():
            times[name].append(first.elapsed_time(last) / 1e3 / launches)  # from milliseconds
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def calls_of(law: str, out: torch.Tensor, source: torch.Tensor) -> dict[str, Callable[[], Any]]:
    function, keywords = LAWS[law]
    ours, theirs = getattr(fastinit, function), getattr(torch.nn.init, function)
    calls: dict[str, Callable[[], Any]] = {"fastinit": lambda: ours(out, **keywords)}
    try:
        theirs(out[:64], **keywords)
    except RuntimeError:  # not for this dtype
        pass
    else:
        calls["torch"] = lambda: theirs(out, **keywords)
    return calls | {"fill_": lambda: out.fill_(1.0), "copy_": lambda: out.copy_(source)}


def measure(device: Any, exponents: Sequence[int]) -> Iterator[Measured]:
    """All laws and dtypes, in all sizes that leave memory for a second tensor to copy from."""
    device_type = device.__name__.removeprefix("torch.")
    for dtype in DTYPES:
        for exponent in exponents:
            device.empty_cache()
            if 2.5 * dtype.itemsize * 2**exponent > device.mem_get_info()[0]:
                break
            out, source = (torch.zeros(2**exponent, dtype=dtype, device=device_type) for _ in range(2))
            launches = min(MOST_LAUNCHES, max(1, LAUNCHED >> exponent))
            for law, (function, keywords) in LAWS.items():
                getattr(fastinit, function)(out, fast=True, **keywords)  # raises where the GPU's engine does not draw
                seconds = medians(device, calls_of(law, out, source), launches)
                yield Measured(law, str(dtype).removeprefix("torch."), exponent, seconds)
            del out, source


def table(about: Mapping[str, str], measured: Sequence[Measured]) -> Any:
    from rich.table import Table

    made = Table(title=words_of(about), caption="ns an element; share: of the speed of fill_; times: as fast as torch")
    for header in ("law", "dtype", "elements", "torch.nn.init", "fastinit", "fill_", "copy_", "share", "times"):
        made.add_column(header, justify="left" if header in ("law", "dtype") else "right")
    largest = max((case.exponent for case in measured), default=0)
    for case in sorted(measured, key=lambda case: (case.dtype, case.law)):
        if case.exponent in (*SHOWN, largest):
            torchs, ours, fill, _ = times = [case.ns(name) for name in ("torch", "fastinit", "fill_", "copy_")]
            words = [*(f"{ns:.5f}" for ns in times), f"{fill / ours:.0%}", f"{torchs / ours:.1f}"]
            made.add_row(case.law, case.dtype, f"2^{case.exponent}", *("-" if w == "nan" else w for w in words))
    return made


def write_json(path: Path, about: Mapping[str, str], measured: Sequence[Measured]) -> None:
    cases = [
        {"law": case.law, "dtype": case.dtype, "elements": 2**case.exponent, "median_seconds": case.seconds}
        | {"ns_an_element": case.ns("fastinit"), "share_of_fill": case.ns("fill_") / case.ns("fastinit")}
        for case in measured
    ]
    path.write_text(json.dumps({"circumstances": dict(about), "measured": cases}, indent=1) + "\n")


def draw(path: Path, about: Mapping[str, str], measured: Sequence[Measured]) -> None:
    """A picture of every law and dtype: nanoseconds an element over the number of elements. Needs matplotlib."""
    from matplotlib.figure import Figure

    dtypes, laws = (list(dict.fromkeys(names)) for names in zip(*((c.dtype, c.law) for c in measured), strict=True))
    figure: Any = Figure(figsize=(4 * len(dtypes), 3 * len(laws)), layout="constrained", dpi=120)
    figure.suptitle(f"ns an element\n{words_of(about)}")
    axes = figure.subplots(len(laws), len(dtypes), squeeze=False, sharex=True, sharey=True)
    for row, law in enumerate(laws):
        for column, dtype in enumerate(dtypes):
            cases = [case for case in measured if (case.law, case.dtype) == (law, dtype)]
            sizes = [2.0**case.exponent for case in cases]
            for name, colour in COLOURS.items():
                axes[row, column].plot(sizes, [case.ns(name) for case in cases], color=colour, label=name)
            axes[row, column].set(title=f"{law}, {dtype}", xscale="log", yscale="log")
            axes[row, column].grid(True, color="#e2e8f0")
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(COLOURS), frameon=False)
    figure.savefig(path)


def main() -> int:
    from rich.console import Console
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Time fills on a GPU.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw them there (.png, .pdf or .svg)")
    parser.add_argument("--most", type=int, default=MOST, help=f"log2 of the greatest number of elements ({MOST})")
    arguments = parser.parse_args()
    if (device := backend()) is None:
        print("nothing measured: torch sees no GPU here (neither torch.cuda nor torch.xpu is available)")
        return 0
    about, exponents = circumstances(device), range(LEAST, arguments.most + 1, 2)
    total = len(exponents) * len(LAWS) * len(DTYPES)
    measured = list(tqdm(measure(device, exponents), total=total, disable=not sys.stderr.isatty()))
    Console(width=None if sys.stdout.isatty() else 120).print(table(about, measured))
    if arguments.json:
        write_json(arguments.json, about, measured)
    if arguments.picture:
        draw(arguments.picture, about, measured)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
