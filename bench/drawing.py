"""The report's pictures, in blue and orange with markers and dashes: readable without colours. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from .cases import Case
from .measured import Measured, Report
from .timing import words_of

COLOURS = {"fastinit": "#2b6cb0", "torch": "#d9622b", "batch": "#2f855a", "stores": "#4a5568"}
LABELS = {
    "fastinit": "fastinit", "torch": "torch.nn.init", "batch": "fastinit, in one batch",
    "stores": "stores alone",
}  # fmt: skip
LINES: dict[str, dict[str, Any]] = {
    "fastinit": {"marker": "o", "linewidth": 2.0},
    "torch": {"marker": "s", "linewidth": 1.6},
    "batch": {"marker": "^", "linewidth": 1.6},
    "stores": {"linestyle": (0, (4, 2)), "linewidth": 1.4},
}
MARKERS = {"uniform_": "o", "normal_": "s", "trunc_normal_": "^"}
SHORT = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}
SIDES: dict[str, dict[str, Any]] = {
    "left": {"xytext": (-6, 0), "ha": "right", "va": "center"},
    "right": {"xytext": (6, 0), "ha": "left", "va": "center"},
    "above": {"xytext": (0, 5), "ha": "center", "va": "bottom"},
    "below": {"xytext": (0, -5), "ha": "center", "va": "top"},
}
TEXT, GRID = "#2d3748", "#e2e8f0"
DPI = 100


class Point(NamedTuple):
    """In the roofline: whose fill of a case it is."""

    x: float
    y: float
    who: str
    case: Case

    @property
    def words(self) -> str:
        return " ".join([SHORT[self.case.dtype_name], *(f"{k}={v}" for k, v in self.case.keywords.items())])


def canvas(title: str, report: Report, width: float, height: float) -> Any:
    """A figure that says what it shows, and on what machine."""
    figure: Any = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=TEXT)
    figure.supxlabel(words_of(report.about), fontsize=8, color=TEXT)
    return figure


def plain(ax: Any, axis: str = "both") -> None:
    """Light grid behind the data, no box around it."""
    ax.grid(True, axis=axis, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=TEXT, labelsize=8.5, length=0)
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GRID)


def sizes(report: Report, path: Path) -> None:
    """Nanoseconds an element over the number of elements, law by law: hot on the left, cold on the right."""
    figure = canvas("Filling float32 tensors: nanoseconds an element", report, 10, 2.7 * len(report.sizes) + 1)
    axes = figure.subplots(len(report.sizes), 2, sharey=True, width_ratios=(4, 3), squeeze=False)
    titles = ("hot: one tensor again", "cold: one tensor after the other")
    for line, pair in zip(axes, zip(report.sizes, report.cold, strict=True), strict=True):
        for ax, rows, title in zip(line, pair, titles, strict=True):
            draw_sizes(ax, rows)
            ax.set_title(f"{rows[0].case.shown}, {title}", fontsize=10, color=TEXT, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel("elements of a tensor", fontsize=9.5, color=TEXT)
    axes[0, 1].legend(frameon=False, labelcolor=TEXT, loc="upper right", fontsize=8.5)
    figure.savefig(path)


def draw_sizes(ax: Any, rows: Sequence[Measured]) -> None:
    elements = [math.prod(row.case.shape) for row in rows]
    for name, style in LINES.items():
        if name in rows[0].seconds:
            ns = [row.ns(name) for row in rows]
            ax.loglog(elements, ns, color=COLOURS[name], label=LABELS[name], markersize=4, **style)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(powers_of_two(elements))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    plain(ax)


def powers_of_two(elements: Sequence[int]) -> Any:
    most = max(elements).bit_length() - 1
    return FixedLocator([2.0**exponent for exponent in range(0, most + 1, 4)])


def speedup(report: Report, path: Path) -> None:
    """Bars of how many times as fast as torch."""
    rows = [*report.models, *report.table][::-1]
    figure = canvas("Times as fast as torch.nn.init", report, 8, 0.36 * len(rows) + 1.3)
    ax = figure.subplots()
    places = range(len(rows))
    ax.barh(places, [row.times for row in rows], 0.66, color=COLOURS["fastinit"])
    for place, row in zip(places, rows, strict=True):
        words = {"fontsize": 9.5, "fontweight": "bold", "color": TEXT, "va": "center"}
        ax.annotate(f"{row.times:.1f}x", (row.times, place), (5, 0), textcoords="offset points", **words)
    ax.axvline(1.0, color=COLOURS["torch"], linewidth=1.6)
    ax.set_xscale("log")
    ax.set_xlim(min(0.7, *(0.7 * row.times for row in rows)), 1.8 * max(row.times for row in rows))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ax.set_yticks(places, [f"{row.case.label}  {row.case.dtype_name}" for row in rows])
    ax.set_xlabel("logarithmic; the line is torch.nn.init", fontsize=9.5, color=TEXT)
    plain(ax, axis="x")
    figure.savefig(path)


def roofline(report: Report, path: Path) -> None:
    """Bytes a second over what the arithmetic of a byte takes one core in its cache.

    Under the flat roof the memory is the limit, under the slope the arithmetic of all threads.
    """
    figure = canvas("What limits a fill: writing to memory, or arithmetic", report, 8.5, 6)
    ax = figure.subplots()
    pairs = [pair for pair in zip(report.cached, report.table, strict=True) if pair[1].case.function in MARKERS]
    points = [
        Point(1e9 * cached.seconds[who] / cached.case.bytes, row.bandwidth(who) / 1e9, who, row.case)
        for who in ("fastinit", "torch")
        for cached, row in pairs
    ]
    draw_roofs(ax, report, [point.x for point in points])
    for point in points:
        ax.scatter(point.x, point.y, s=42, marker=MARKERS[point.case.function], color=COLOURS[point.who], zorder=3)
    ax.set_ylim(min(point.y for point in points) / 2.5, None)
    ax.set_xlabel("arithmetic: nanoseconds of one core a byte, measured in its cache", fontsize=9.5, color=TEXT)
    ax.set_ylabel("GB/s written to memory, all threads", fontsize=9.5, color=TEXT)
    for side in (ax.xaxis, ax.yaxis):
        side.set_major_formatter(lambda value, _: f"{value:g}")
    plain(ax)
    ax.legend(handles=keys(), loc="lower left", frameon=False, labelcolor=TEXT, fontsize=9)
    figure.canvas.draw()  # labels look for free space, so everything else has to be placed
    name_points(ax, points)
    figure.savefig(path)


def draw_roofs(ax: Any, report: Report, xs: Sequence[float]) -> None:
    """The greatest bandwidth that stores alone reached, and what all threads could write if memory cost nothing."""
    memory = max(row.bandwidth("stores") for row in report.table) / 1e9
    count = int(report.about["threads"])
    bend = count / memory
    low, high = min(*xs, bend) / 2.5, max(*xs, bend) * 2.5
    ax.loglog([low, bend, high], [memory, memory, count / high], color=COLOURS["stores"], linewidth=1.6)
    style = {"textcoords": "offset points", "fontsize": 8.5, "color": TEXT}
    ax.annotate(f"stores alone: {memory:.3g} GB/s", (low, memory), (4, 5), **style)
    middle = math.sqrt(bend * high)
    ax.annotate(f"arithmetic on {count} threads", (middle, count / middle), (8, 4), **style)
    ax.set_xlim(low, high)


def keys() -> list[Any]:
    """The legend: a colour for each side, a marker for each law."""
    empty: tuple[list[float], list[float]] = ([], [])
    sides = [
        Line2D(*empty, linestyle="", marker="o", color=COLOURS[who], label=LABELS[who]) for who in ("fastinit", "torch")
    ]
    laws = [
        Line2D(*empty, linestyle="", marker=marker, markerfacecolor="none", color=TEXT, label=law)
        for law, marker in MARKERS.items()
    ]
    return [*sides, *laws]


def name_points(ax: Any, points: Sequence[Point]) -> None:
    """Dtype and parameters beside each point, on that side of it where there is most room."""
    place = ax.transData.transform
    taken = [place((point.x, point.y)) for point in points]
    for point in points:
        x, y = place((point.x, point.y))
        where = {"left": (x - 30, y), "right": (x + 30, y), "above": (x, y + 15), "below": (x, y - 15)}
        others = [at for at in taken if tuple(at) != (x, y)]
        side = max(where, key=lambda side: min(distance(where[side], at) for at in others))
        taken.append(where[side])
        style = {"textcoords": "offset points", "fontsize": 7.5, "color": COLOURS[point.who]}
        ax.annotate(point.words, (point.x, point.y), **SIDES[side], **style)


def distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Words are wider than they are high."""
    return math.hypot((one[0] - other[0]) / 2, one[1] - other[1])
