"""A comparison in a terminal: a table with a row for each group, a total, and what the marks mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..drawing import engines
from ..kernels.dtypes import name_of
from ..laws.judge import ALPHA, Observed
from ..models.show import DASH, number, plural
from .compare import SAMPLE, SIDES, Comparison, Group, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 132  # of a report that goes to a file


class Column(NamedTuple):
    header: str
    footer: str
    cells: list[str]


def new_console() -> Console:
    """A rich console on stdout, wide enough for a table where no terminal sets a width."""
    from rich.console import Console

    free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=WIDTH if free else None, highlight=False, emoji=False)


def show(comparison: Comparison, title: str, console: Console) -> None:
    """Print the whole report."""
    from rich.markup import escape

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, soft_wrap=True)

    line(f"[bold]{escape(title)}[/bold]: torch.nn.init against fastinit; {circumstances(comparison)}")
    if isinstance(problem := engines.load("cpu"), str):
        line(f"its CPU engine does not work here, plain torch operations draw: {escape(problem)}", "red")
    line(f"kernels ready in {seconds(comparison.preparation)}, compiled or from the cache; not timed below")
    for part in tables(comparison, console):
        console.print(part)
    line(summary(comparison))
    if any(row.group.law is not None and row.group.calls[0].tensor.dtype.itemsize == 1 for row in comparison.rows):
        line("torch draws no float8: its samples there are float32 ones, rounded by a copy", "dim")
    if comparison.without_law:
        one = comparison.without_law == 1
        line(
            f"{plural(comparison.without_law, 'parameter')} {'is' if one else 'are'} not what a single call of an "
            "initialiser made: left as constructed"
        )
    line(
        f"KS: greatest distance from the law's distribution function, of at most {SAMPLE:,} elements; "
        f"each fails for one true sample in {1 / ALPHA:,.0f}",
        "dim",
    )


def circumstances(comparison: Comparison) -> str:
    """What the times depend on."""
    return (
        f"torch {torch.__version__}, {plural(torch.get_num_threads(), 'thread')}, "
        f"cold memory, median of {plural(comparison.passes, 'pass', 'passes')}"
    )


def tables(comparison: Comparison, console: Console) -> list[Table]:
    """A row a group, two lines a row; on a narrow terminal times and laws apart."""
    columns = columns_of(comparison, console)
    whole = table(columns, gap=2)
    if console.measure(whole, options=console.options.update(max_width=10 * WIDTH)).maximum <= console.width:
        return [whole]
    named, times_, laws = columns[:2], columns[2:6], columns[6:]
    return [table([*named, *times_], gap=1), table([*named, *laws], gap=1)]


def table(columns: Sequence[Column], gap: int) -> Table:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), show_footer=True, footer_style="bold")
    for place, column in enumerate(columns):
        shown.add_column(column.header, column.footer, justify="left" if place < 2 else "right")
    for cells in zip(*(column.cells for column in columns), strict=True):
        shown.add_row(*cells)
    return shown


def columns_of(comparison: Comparison, console: Console) -> list[Column]:
    """Whose and how many, then four columns of time, then four of laws."""
    rows, (parameters, elements) = comparison.rows, count(comparison)
    torch_total, fastinit_total = (comparison.total(side) for side in SIDES)
    size = sum(row.group.size for row in rows)

    def column(header: str, footer: str, cell: Callable[[Row], str]) -> Column:
        return Column(header, footer, [cell(row) for row in rows])

    return [
        column("initialiser", "total", lambda row: row.group.initialiser + precision(row.group)),
        column("parameters", f"{parameters}\n{elements:,} elements", lambda row: shapes_and_elements(row.group)),
        column("torch\ntime", seconds(torch_total), lambda row: seconds(row.seconds["torch"])),
        column("fastinit\ntime", seconds(fastinit_total), lambda row: seconds(row.seconds["fastinit"])),
        column("speed-up", times(torch_total, fastinit_total), lambda row: times(*row.seconds.values())),
        column("fastinit\nGB/s", rate(size, fastinit_total), lambda row: rate(row.group.size, row.seconds["fastinit"])),
        column("expected\nmean, std", "", lambda row: expected(row.group)),
        column("observed\nmean, std", "", lambda row: observed(row.observed["fastinit"])),
        column("fastinit\nKS", "", lambda row: verdict(row.observed["fastinit"], console)),
        column("torch\nKS", "", lambda row: verdict(row.observed["torch"], console)),
    ]


def summary(comparison: Comparison) -> str:
    """The report in one line."""
    parameters, elements = count(comparison)
    torch_total, fastinit_total = (comparison.total(side) for side in SIDES)
    peaks = ", ".join(f"{side} {memory(comparison.memory[side])}" for side in SIDES)
    faster = how_much_faster(torch_total, fastinit_total)
    together = f"in one batch {seconds(comparison.batch)}, {how_much_faster(torch_total, comparison.batch)}"
    alone = "" if comparison.stores is None else f"; stores alone {seconds(comparison.stores)}"
    return (
        f"{plural(parameters, 'parameter')}, {elements:,} elements: torch {seconds(torch_total)}, fastinit "
        f"{seconds(fastinit_total)}, {faster}; {together}{alone}; peak extra memory: {peaks}"
    )


def count(comparison: Comparison) -> tuple[int, int]:
    """How many parameters and elements have a law."""
    return sum(len(row.group.calls) for row in comparison.rows), sum(row.group.elements for row in comparison.rows)


def shapes(group: Group) -> str:
    """`12 x (512, 512)`; the shape only if all tensors share it."""
    number, found = len(group.calls), {tuple(call.tensor.shape) for call in group.calls}
    return f"{number} x {found.pop()}" if len(found) == 1 else f"{number} tensors, {len(found)} shapes"


def shapes_and_elements(group: Group) -> str:
    return f"{shapes(group)}\n{group.elements:,} elements"


def precision(group: Group) -> str:
    dtype = group.calls[0].tensor.dtype
    return "" if dtype is torch.float32 else f"\n{name_of(dtype)}"


def expected(group: Group) -> str:
    if group.law is not None:
        return f"{number(group.law.mean, group.law.std)}\n{number(group.law.std)}"
    return f"{DASH}\n{DASH}" if group.constant is None else f"{number(group.constant)}\n0"


def observed(drawn: Observed) -> str:
    return f"{number(drawn.mean, drawn.std)}\n{number(drawn.std)}"


def verdict(drawn: Observed, console: Console) -> str:
    if drawn.distance is None:
        return DASH
    plain = not console.encoding.lower().startswith("utf")
    mark = ("ok" if plain else "✓") if drawn.passes else ("FAILS" if plain else "✗")
    return f"{drawn.distance:.2g} [{'green' if drawn.passes else 'bold red'}]{mark}[/]"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def times(slow: float, fast: float) -> str:
    ratio = slow / fast
    return f"{ratio:.1f}x" if ratio >= 0.95 else f"{ratio:.2g}x"


def how_much_faster(slow: float, fast: float) -> str:
    return f"{slow / fast:.1f} times faster" if fast <= slow else f"{fast / slow:.1f} times slower"


def rate(size: int, time: float) -> str:
    return f"{size / time / 1e9:.1f}"


def memory(size: int | None) -> str:
    return "n/a" if size is None else f"{size / 2**20:.1f} MiB"
