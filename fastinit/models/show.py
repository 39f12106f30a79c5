"""An audit, and what rules did, in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .audit import MOST_Z, SAME, Audit, Finding, Row

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from .report import Assignment, Report

DASH = "-"


def number(value: float, scale: float = 0.0) -> str:
    """Three digits; beside a `scale`, none finer than a millionth of it."""
    if abs(value) < 1e-6 * scale:
        return "0"
    return DASH if math.isnan(value) else f"{value:.3g}"


def plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def columns(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table without rows, with columns of these headers."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for header in texts:
        shown.add_column(header, overflow="fold")
    for header in numbers:
        shown.add_column(header, justify="right")
    return shown


def table(audit: Audit) -> Table:
    """A row for each parameter, two lines a row."""
    from rich.markup import escape

    shown = columns(("parameter", "law\ndrawn by"), ("expected\nmean, std", "observed\nmean, std", "min\nmax", "z"))
    for row in audit.rows:
        name = escape(row.name) if not row.findings else f"[{colour(row)}]{escape(row.name)}[/]"
        shown.add_row(
            f"{name}\n{shape_of(row)}", escape(f"{row.law or DASH}\n{row.by or DASH}"), expected(row), *observed(row),
            DASH if row.z is None else f"{row.z:.1f}" if row.z <= MOST_Z else f"[bold red]{row.z:.3g}[/]",
        )  # fmt: skip
    return shown


def shape_of(row: Row) -> str:
    dtype = "" if row.dtype in ("float32", "") else f" {row.dtype}"
    return f"{row.shape}{dtype}" if row.dtype else ""


def expected(row: Row) -> str:
    if row.expected is None:
        return f"{DASH}\n{DASH}"
    mean, std = row.expected
    return f"{number(mean, std)}\n{number(std)}"


def observed(row: Row) -> tuple[str, str]:
    if row.seen is None:
        return f"{DASH}\n{DASH}", f"{DASH}\n{DASH}"
    seen = row.seen
    return f"{number(seen.mean, seen.std)}\n{number(seen.std)}", f"{number(seen.low)}\n{number(seen.high)}"


def colour(row: Row) -> str:
    return "bold red" if any(finding.error for finding in row.findings) else "yellow"


def report(audit: Audit) -> Group:
    """The table, a line that sums it up, and the findings, those that are alike together."""
    from rich.console import Group

    return Group(table(audit), summary(audit), *lines(audit))


def summary(audit: Audit) -> str:
    elements = sum(math.prod(row.shape) for row in audit.rows)
    known = sum(row.law is not None for row in audit.rows)
    errors, notes = len(audit.errors), len(audit.findings) - len(audit.errors)
    return (
        f"{audit.model}: {plural(len(audit.rows), 'parameter')}, {elements:,} elements, the law of {known:,} known; "
        f"{plural(errors, 'error')}, {plural(notes, 'note')}"
    )


def lines(audit: Audit) -> list[Text]:
    """A line for each kind of finding: for which parameters, what, and what to do."""
    from rich.text import Text

    kinds: dict[Finding, list[str]] = {}
    twins = {row.name: row.same_as for row in audit.rows}
    for name, finding in sorted(audit.findings, key=lambda found: not found[1].error):
        twin = f" (= {twins[name]})" if twins[name] and finding.text == SAME else ""
        kinds.setdefault(finding, []).append(name + twin)
    shown = []
    for finding, names in kinds.items():
        whose = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        style = "bold red" if finding.error else "yellow"
        word = "error" if finding.error else "note"
        shown.append(Text.assemble((word, style), f": {whose}: {finding.text}", (f" ({finding.hint})", "dim")))
    return shown


def assignments(report: Report) -> Table:
    """A row for each rule: what it says, for how many parameters and elements, and for which first."""
    from rich.markup import escape

    shown = columns(("rule", "first parameter"), ("parameters", "elements"))
    rules: dict[str, list[Assignment]] = {}
    for one in report.assigned:
        rules.setdefault(one.rule, []).append(one)
    for rule, ones in rules.items():
        elements = sum(math.prod(one.shape) for one in ones)
        shown.add_row(escape(rule), escape(ones[0].name), f"{len(ones):,}", f"{elements:,}")
    return shown
