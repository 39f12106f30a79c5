"""How fast is it here? `python -m bench.report [--quick] [--out FOLDER] [--pages]`: minutes, with a progress bar.

Measures fastinit, torch.nn.init, `fill_` (the limit: writing the bytes) and installed peers in turns, and writes
report.json, report.md and pictures into the folder. `--pages` replaces the tables between the markers in README.md (its
first rows) and bench/README.md (all of them).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

from . import cases
from .cases import Case
from .measured import Measured, Report
from .peers import PEERS, call_of
from .timing import machine, medians, words_of

FOLDER = Path(__file__).parent / "results"
# The pages with the table, and how many of its rows each shows.
PAGES = {FOLDER.parents[1] / "README.md": 4, FOLDER.parent / "README.md": len(cases.TABLE)}
BEGIN, END = "<!-- bench.report: begin -->", "<!-- bench.report: end -->"
LAWS = cases.ELEMENTWISE[:4]  # the others are these, with other parameters


class Sweep(NamedTuple):
    """Which sizes (log2 of the elements) are measured, and for how long each call."""

    sizes: tuple[int, ...]
    table: int
    peers: int | None
    cached: int  # in the second-level cache in every dtype, and large enough that the call itself does not count
    budget: float
    least: int


FULL = Sweep(sizes=tuple(range(0, 27, 2)), table=26, peers=24, cached=17, budget=0.3, least=3)
QUICK = Sweep(sizes=(0, 4, 8, 12), table=12, peers=None, cached=12, budget=0.005, least=3)


def measure(case: Case, sweep: Sweep, peers: bool = False) -> Measured:
    missing = {}
    with case.held():
        calls = case.calls()
        for peer in PEERS if peers else ():
            if peer.draws(case):
                call = call_of(peer, case.function, case.tensor())
                if isinstance(call, str):
                    missing[peer.name] = call
                else:
                    calls[peer.name] = call
        seconds = medians(*calls.values(), budget=sweep.budget, least=sweep.least, settle=case.settle)
    return Measured(case, dict(zip(calls, seconds, strict=True)), missing)


def cases_of(sweep: Sweep) -> tuple[list[list[Case]], list[Case], list[Case], list[Case], list[Case]]:
    """The cases of a report's sections, in its order; a case may be in several."""
    sizes = [
        [replace(cases.fill(function, exponent=e), keywords=given) for e in sweep.sizes] for function, given in LAWS
    ]
    table = [replace(case, shape=cases.square(sweep.table)) for case in cases.TABLE]
    cached = [cases.one_thread(replace(case, shape=cases.square(sweep.cached))) for case in table]
    pairs = itertools.product(cases.DTYPES, ("uniform_", "normal_"))
    drawn = [] if sweep.peers is None else [cases.fill(function, dtype, sweep.peers) for dtype, function in pairs]
    return sizes, table, list(cases.other_memory(sweep.table)), cached, drawn


def make(sweep: Sweep, progress: Progress) -> Report:
    sizes, table, others, cached, drawn = cases_of(sweep)
    alone = {case.name: case for case in (*(case for law in sizes for case in law), *table, *others, *cached)}
    task = progress.add_task("measuring", total=len(alone) + len(drawn))

    def measured(several: Sequence[Case], peers: bool) -> Iterator[Measured]:
        for case in several:
            progress.update(task, description=f"{case.name:<40}")
            yield measure(case, sweep, peers)
            progress.advance(task)

    found = {row.case.name: row for row in measured(list(alone.values()), False)}
    # Last, because libraries that are imported stay, with their threads.
    peers = list(measured(drawn, True))

    def look_up(several: Sequence[Case]) -> list[Measured]:
        return [found[case.name] for case in several]

    return Report(machine(), [look_up(law) for law in sizes], look_up(table), look_up(others), look_up(cached), peers)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def nanoseconds(row: Measured, names: Sequence[str] = ("torch", "fastinit", "fill_")) -> list[str]:
    return [number(row.ns(name)) for name in names]


def page_table(report: Report, most: int = len(cases.TABLE)) -> str:
    """The first rows of the table, with the sentence that says where it is from."""
    size = cases.power(report.table[0].case.shape).replace("^0", "^")
    where = f"{size} elements on {words_of(report.about)}; medians of calls that take turns."
    rows = [
        [row.case.shown, row.case.dtype_name, *nanoseconds(row), f"**{row.times:.1f}x**"] for row in report.table[:most]
    ]
    headers = ("ns an element", "dtype", "torch.nn.init", "fastinit", "`fill_`", "speed-up")
    return f"{BEGIN}\n{where}\n\n{markdown(headers, rows)}\n{END}"


def other_memory_table(report: Report) -> str:
    headers = ("milliseconds", "torch.nn.init", "fastinit", "`fill_`", "fastinit's GB/s", "speed-up")
    rows = []
    for row in report.other_memory:
        milliseconds = (f"{row.seconds[name] * 1e3:.4g}" for name in ("torch", "fastinit", "fill_"))
        rows.append([row.case.name, *milliseconds, number(row.bandwidth("fastinit") / 1e9), f"{row.times:.1f}x"])
    return f"## Other memory, other initialisers\n\n{markdown(headers, rows)}"


def peers_table(report: Report) -> str:
    names = ["fastinit", "torch", "fill_", *(peer.name for peer in PEERS)]
    rows = [[row.case.name, *nanoseconds(row, names)] for row in report.peers]
    reasons = sorted({f"* {name}: {why}" for row in report.peers for name, why in row.missing.items()})
    return "\n\n".join(["## Peers", markdown(["ns an element", *names], rows), *["\n".join(reasons)] * bool(reasons)])


def sizes_table(report: Report) -> str:
    headers = ("ns an element", "torch.nn.init", "fastinit", "`fill_`", "speed-up")
    rows = [[row.case.name, *nanoseconds(row), f"{row.times:.1f}x"] for rows in report.sizes for row in rows]
    return f"## Sizes\n\n{markdown(headers, rows)}"


def words(report: Report) -> str:
    """report.md."""
    top = f"# fastinit, measured\n\n{markdown(('where', 'with what'), list(report.about.items()))}"
    pictures = (f"![{title}]({name})" for name, title in PICTURES.items())
    sections = [top, page_table(report), *pictures, other_memory_table(report), sizes_table(report)]
    return "\n\n".join([*sections, peers_table(report)] if report.peers else sections) + "\n"


def as_json(report: Report) -> str:
    measured = [
        {
            "case": row.case.name,
            "call": row.case.call,
            "dtype": row.case.dtype_name,
            "elements": row.case.elements,
            "threads": row.case.threads or int(report.about["threads"]),
            "median_seconds": dict(row.seconds),
            "ns_an_element": {name: row.ns(name) for name in row.seconds},
            "bytes_a_second": {name: row.bandwidth(name) for name in row.seconds},
            "missing": dict(row.missing),
        }
        for row in report.unique
    ]
    return json.dumps({"machine": report.about, "measured": measured}, indent=1) + "\n"


PICTURES = {
    "sizes.png": "nanoseconds an element over the number of elements",
    "speedup.png": "times as fast as torch.nn.init",
    "roofline.png": "bytes a second over arithmetic a byte, under the roofs of memory and arithmetic",
}


def write(report: Report, folder: Path) -> None:
    from . import drawing

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(as_json(report))
    (folder / "report.md").write_text(words(report))
    drawing.sizes(report, folder / "sizes.png")
    drawing.speedup(report, folder / "speedup.png")
    drawing.roofline(report, folder / "roofline.png")


def into_page(path: Path, table: str) -> None:
    """Raises `ValueError` where there are no markers to put it between."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no place for the table; it belongs between {BEGIN} and {END}")
    path.write_text(before + table + after)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds: small sizes, and rough")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help=f"default: {FOLDER.name}/")
    parser.add_argument("--pages", action="store_true", help="put the table into README.md and bench/README.md")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        report = make(QUICK if options.quick else FULL, progress)
    write(report, options.out)
    for page, most in PAGES.items() if options.pages else ():
        into_page(page, page_table(report, most))
    print(page_table(report))
    print(f"\nwritten to {options.out}: report.json, report.md, {', '.join(PICTURES)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
