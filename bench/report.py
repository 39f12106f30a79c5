"""How fast is it here? `python -m bench.report [--quick] [--out FOLDER] [--pages]`: minutes, with a progress bar.

Measures fastinit, torch.nn.init, non-temporal stores alone (the limit) and installed peers in turns, and writes
report.json, report.md and pictures into the folder. `--pages` replaces the tables between the markers in README.md (its
first rows) and bench/README.md (all).
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

from . import cases, cold
from .cases import Case
from .measured import Measured, Report
from .peers import PEERS, call_of
from .timing import machine, medians, words_of

FOLDER = Path(__file__).parent / "results"
# The pages with the table, and how many single tensors each shows.
PAGES = {FOLDER.parents[1] / "README.md": 4, FOLDER.parent / "README.md": len(cases.TABLE)}
BEGIN, END = "<!-- bench.report: begin -->", "<!-- bench.report: end -->"
COLUMNS = ("torch", "fastinit", "batch", "stores")
LAWS = cases.ELEMENTWISE[:4]  # the others are these, with other parameters


class Sweep(NamedTuple):
    """Which sizes (log2 of the elements) are measured, and for how long each call."""

    sizes: tuple[int, ...]
    cold: tuple[int, ...]
    ring: int  # bytes of cold tensors, one after the other
    table: int
    peers: int | None
    cached: int  # in the second-level cache in every dtype, and large enough that the call itself does not count
    budget: float
    least: int


FULL = Sweep(
    sizes=tuple(range(0, 27, 2)),
    cold=tuple(range(12, 23, 2)),
    ring=cold.COLD,
    table=26,
    peers=24,
    cached=17,
    budget=0.3,
    least=3,
)
QUICK = Sweep(sizes=(0, 4, 8, 12), cold=(8, 10), ring=1 << 16, table=12, peers=None, cached=12, budget=0.005, least=3)


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


class Sections(NamedTuple):
    """The cases of a report, in its order; a case may be in several."""

    models: list[Case]
    sizes: list[list[Case]]
    cold: list[list[Case]]
    table: list[Case]
    other_memory: list[Case]
    cached: list[Case]
    drawn: list[Case]

    @property
    def without_peers(self) -> list[Case]:
        """All but the last, once each."""
        laws = (case for law in (*self.sizes, *self.cold) for case in law)
        every = (*self.models, *laws, *self.table, *self.other_memory, *self.cached)
        return list({case.name: case for case in every}.values())


def cases_of(sweep: Sweep) -> Sections:
    sizes = [
        [replace(cases.fill(function, exponent=e), keywords=given) for e in sweep.sizes] for function, given in LAWS
    ]
    rings: list[list[Case]] = [
        [replace(cold.ring(function, e), keywords=given, size=sweep.ring) for e in sweep.cold]
        for function, given in LAWS
    ]
    models: list[Case] = [cold.parameters(), cases.model()] if sweep.table >= 24 else [cases.model(1, 256, 64)]
    table = [replace(case, shape=cases.square(sweep.table)) for case in cases.TABLE]
    cached = [cases.one_thread(replace(case, shape=cases.square(sweep.cached))) for case in table]
    pairs = itertools.product(cases.DTYPES, ("uniform_", "normal_"))
    drawn = [] if sweep.peers is None else [cases.fill(function, dtype, sweep.peers) for dtype, function in pairs]
    return Sections(models, sizes, rings, table, list(cases.other_memory(sweep.table)), cached, drawn)


def make(sweep: Sweep, progress: Progress) -> Report:
    sections = cases_of(sweep)
    task = progress.add_task("measuring", total=len(sections.without_peers) + len(sections.drawn))

    def measured(several: Sequence[Case], peers: bool) -> Iterator[Measured]:
        for case in several:
            progress.update(task, description=f"{case.name:<40}")
            yield measure(case, sweep, peers)
            progress.advance(task)

    found = {row.case.name: row for row in measured(sections.without_peers, False)}
    # Last, because libraries that are imported stay, with their threads.
    peers = list(measured(sections.drawn, True))

    def look_up(several: Sequence[Case]) -> list[Measured]:
        return [found[case.name] for case in several]

    hot, rings = ([look_up(law) for law in laws] for laws in (sections.sizes, sections.cold))
    models, table, others, cached = map(
        look_up, (sections.models, sections.table, sections.other_memory, sections.cached)
    )
    return Report(machine(), models, hot, rings, table, others, cached, peers)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def nanoseconds(row: Measured, names: Sequence[str] = ("torch", "fastinit", "stores")) -> list[str]:
    return [number(row.ns(name)) for name in names]


def page_table(report: Report, most: int = len(cases.TABLE)) -> str:
    """The models and the first rows of the table, with the sentence that says where it is from."""
    size = cases.power(report.table[0].case.shape).replace("^0", "^")
    where = f"{words_of(report.about)}; medians of calls that take turns. Single tensors have {size} elements."
    rows = [
        [row.case.label, row.case.dtype_name, *nanoseconds(row, COLUMNS), f"**{row.times:.1f}x**"]
        for row in (*report.models, *report.table[:most])
    ]
    headers = ("ns an element", "dtype", "torch.nn.init", "fastinit", "in one batch", "stores alone", "speed-up")
    return f"{BEGIN}\n{where}\n\n{markdown(headers, rows)}\n{END}"


def other_memory_table(report: Report) -> str:
    headers = ("milliseconds", "torch.nn.init", "fastinit", "stores alone", "fastinit's GB/s", "speed-up")
    rows = []
    for row in report.other_memory:
        milliseconds = (f"{row.seconds[name] * 1e3:.4g}" for name in ("torch", "fastinit", "stores"))
        rows.append([row.case.name, *milliseconds, number(row.bandwidth("fastinit") / 1e9), f"{row.times:.1f}x"])
    return f"## Other memory, other initialisers\n\n{markdown(headers, rows)}"


def peers_table(report: Report) -> str:
    names = ["fastinit", "torch", "stores", *(peer.name for peer in PEERS)]
    rows = [[row.case.name, *nanoseconds(row, names)] for row in report.peers]
    reasons = sorted({f"* {name}: {why}" for row in report.peers for name, why in row.missing.items()})
    return "\n\n".join(["## Peers", markdown(["ns an element", *names], rows), *["\n".join(reasons)] * bool(reasons)])


def sizes_table(report: Report) -> str:
    headers = ("ns an element", "torch.nn.init", "fastinit", "in one batch", "stores alone", "speed-up")
    rows = [
        [row.case.name, *nanoseconds(row, COLUMNS), f"{row.times:.1f}x"]
        for rows in (*report.sizes, *report.cold)
        for row in rows
    ]
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
    "sizes.png": "nanoseconds an element over the number of elements, in hot and in cold memory",
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
