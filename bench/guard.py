"""Are the promised speeds kept? `python -m bench.guard [--generous] [--only PATTERN]`; exit status 1 if not.

Ratios only, in one process, of calls that take turns (bench.floors, bench.timing). A row that misses is measured again
for longer, and the median of all its attempts decides.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastinit.commands import doctor

from .floors import FIRST_USE, FIRST_USE_ROUGH, FIRST_USE_WISH, FLOORS, Bound, Floor
from .timing import machine, medians, words_of

ATTEMPTS = 3
LONGER = 1.5  # times the budget of the attempt before
LEAST = 3
STARTS = 5
FIRST_USE_NAME = "first use in a new process"
FIRST_USE_CODE = """
import time, torch
tensor = torch.empty(1000, 1000)
start = time.perf_counter()
import fastinit
fastinit.normal_(tensor)
print(1e3 * (time.perf_counter() - start))
"""


class Verdict(NamedTuple):
    """A row of the table: one bound of a floor, as measured."""

    name: str
    measured: str
    target: str
    met: bool
    attempts: int


Measure = Callable[[Floor, float], dict[str, float]]


def measure(floor: Floor, budget: float) -> dict[str, float]:
    """Median seconds of what the floor's bounds compare."""
    names = ["fastinit", *(bound.against for bound in floor.bounds)]
    with floor.case.held():
        calls = floor.case.calls()
        chosen = [calls[name] for name in names]
        return dict(zip(names, medians(*chosen, budget=budget, least=LEAST, settle=floor.case.settle), strict=True))


def judge(floor: Floor, bounds: Sequence[Bound], measured_by: Measure) -> list[Verdict]:
    """Measure until every bound is met by the median of the attempts, or one is hopeless, or there have been enough."""
    budget, attempts = floor.budget, []
    while True:
        attempts.append(measured_by(floor, budget))
        found = [statistics.median(bound.measured(seconds) for seconds in attempts) for bound in bounds]
        met = [bound.met(value) for bound, value in zip(bounds, found, strict=True)]
        hopeless = any(bound.hopeless(value) for bound, value in zip(bounds, found, strict=True))
        if all(met) or hopeless or len(attempts) == ATTEMPTS:
            break
        budget *= LONGER
    return [
        Verdict(floor.case.name, f"{value:.3g}x", bound.words, good, len(attempts))
        for bound, value, good in zip(bounds, found, met, strict=True)
    ]


def start_up() -> float:
    """Milliseconds to the first tensor: the median of a few new processes, after one that compiled the kernel."""
    with tempfile.TemporaryDirectory(prefix="fastinit-guard-") as folder:
        command = [sys.executable, "-c", FIRST_USE_CODE]
        environment = os.environ | {"FASTINIT_CACHE_DIR": folder}
        runs = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300).stdout
            for _ in range(1 + STARTS)
        ]
    return statistics.median(map(float, runs[1:]))


def first_use(milliseconds: float, most: float) -> Verdict:
    target = f"≤ {most:g} ms (wish: {FIRST_USE_WISH:g})"
    return Verdict(FIRST_USE_NAME, f"{milliseconds:.0f} ms", target, milliseconds <= most, STARTS)


def verdicts(floors: Sequence[Floor], generous: bool, measured_by: Measure) -> Iterator[list[Verdict]]:
    for floor in floors:
        bounds = [bound.roughly for bound in floor.bounds] if generous else floor.bounds
        yield judge(floor, bounds, measured_by)


def table(about: str, found: Sequence[Verdict]) -> Table:
    made = Table(title=about, caption="medians of calls that took turns; a row that misses is measured again")
    for header in ("case", "measured", "target", "", "times measured"):
        made.add_column(header, justify="left" if header in ("case", "") else "right")
    for verdict in found:
        word = "met" if verdict.met else "[bold red]missed[/]"
        made.add_row(verdict.name, verdict.measured, verdict.target, word, str(verdict.attempts))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--generous", action="store_true", help="wide bounds and fewer rows, for machines of any kind")
    parser.add_argument("--only", type=re.compile, default="", metavar="PATTERN", help="rows whose name matches it")
    parser.add_argument("--list", action="store_true", help="name the rows and measure nothing")
    options = parser.parse_args(arguments)
    floors = [floor for floor in FLOORS if re.search(options.only, floor.case.name) and floor.ci >= options.generous]
    start = bool(re.search(options.only, FIRST_USE_NAME))
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.list:
        console.print("\n".join([floor.case.name for floor in floors] + [FIRST_USE_NAME] * start), highlight=False)
        return 0
    if (problem := doctor.processor_problem()) is not None:
        console.print(f"[bold red]missed[/]: the CPU engine does not work here, nothing to measure: {problem}")
        return 1
    found: list[Verdict] = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        rows = verdicts(floors, options.generous, measure)
        for several in progress.track(rows, total=len(floors), description="measuring"):
            found += several
    if start:
        found.append(first_use(start_up(), FIRST_USE_ROUGH if options.generous else FIRST_USE))
    console.print(table(words_of(machine()), found))
    missed = sum(not verdict.met for verdict in found)
    console.print(f"{len(found) - missed} met, {missed} missed", highlight=False)
    return 1 if missed or not found else 0


if __name__ == "__main__":
    raise SystemExit(main())
