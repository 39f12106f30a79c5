"""A comparison as a picture: what was drawn against its law, and how long it took. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from ..laws import Law
from ..models.picture import why_not as why_not
from .compare import SIDES, Comparison, Row
from .table import circumstances, shapes, times

COLOURS = {"torch": "#d9622b", "fastinit": "#2b6cb0"}
LAW_COLOUR, TEXT, GRID = "#1a202c", "#2d3748", "#e2e8f0"
STYLE = {"color": TEXT, "fontsize": 9.5}
HISTOGRAMS = 4
FAR = 4.2  # standard deviations from the mean; what lies beyond would not be seen
MOST_BINS = 80
BARS = 9  # more would not be read
THICK = 0.38
TOGETHER, BATCH = "all together", "all together,\nfastinit in one batch"
LOGARITHMIC_FROM = 30.0  # times between the shortest and the longest bar


class Bar(NamedTuple):
    label: str
    seconds: dict[str, float]


def draw(path: str, comparison: Comparison, title: str) -> None:
    """Write the picture to `path`, in the format of its suffix."""
    random = [row for row in comparison.rows if row.group.law is not None][:HISTOGRAMS]
    tall = len(random) > 2 or len(comparison.rows) > 4
    figure: Any = Figure(figsize=(15 if random else 8, 8 if tall else 5), layout="constrained", dpi=120)
    figure.suptitle(f"{title}: torch.nn.init against fastinit", fontsize=15, fontweight="bold", color=TEXT)
    figure.supxlabel(circumstances(comparison), fontsize=9, color=TEXT)
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, 1)) if random else (None, figure)
    if left is not None:
        draw_histograms(left, random)
    draw_bars(right, bars_of(comparison))
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.03, hspace=0.04)
    figure.savefig(path)


def draw_histograms(figure: Any, rows: Sequence[Row]) -> None:
    columns = min(len(rows), 2)
    axes = figure.subplots(-(-len(rows) // columns), columns, squeeze=False).flatten()
    for ax, row in zip(axes, rows, strict=False):
        draw_histogram(ax, row)
    for ax in axes[len(rows) :]:
        ax.set_axis_off()
    legend(figure, axes[0])


def draw_histogram(ax: Any, row: Row) -> None:
    law, drawn = row.group.law, row.observed["fastinit"]
    if law is None:
        return
    low, high = support(law)
    bins = min(max(round(drawn.sample.numel() ** (1 / 3)), 8), MOST_BINS)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    heights = {side: density(row.observed[side].sample, edges) for side in SIDES}
    ax.stairs(heights["fastinit"], edges, fill=True, color=COLOURS["fastinit"], alpha=0.45, label="fastinit")
    ax.stairs(heights["torch"], edges, color=COLOURS["torch"], linewidth=1.3, label="torch")
    x, y = curve(law, low, high)
    ax.plot(x, y, color=LAW_COLOUR, linewidth=1.2, linestyle=(0, (4, 2)), label="the law")
    ax.set_title(f"{row.group.initialiser}  std {law.std:.4g}", fontsize=11.5, color=TEXT, loc="left")
    label = [shapes(row.group), f"observed std {drawn.std:.4g}", f"KS {drawn.distance:.2g}, bound {drawn.bound:.2g}"]
    ax.text(0.985, 0.97, "\n".join(label), transform=ax.transAxes, ha="right", va="top", color=TEXT, fontsize=9)
    margin = 0.06 * (high - low)
    ax.set_xlim(low - margin, high + margin)
    ax.set_ylim(0, 1.4 * max(y))  # room for the label
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel("value of an element", **STYLE)
    ax.set_ylabel("probability density", **STYLE)
    plain(ax)


def draw_bars(figure: Any, bars: Sequence[Bar]) -> None:
    ax = figure.subplots()
    rows = [number + (0.35 if bar.label in (TOGETHER, BATCH) else 0.0) for number, bar in enumerate(bars)]
    for offset, side in ((-0.5, "torch"), (0.5, "fastinit")):
        milliseconds = [bar.seconds[side] * 1e3 for bar in bars]
        ax.barh([row + offset * THICK for row in rows], milliseconds, THICK, color=COLOURS[side], label=side)
    ends = [max(bar.seconds.values()) * 1e3 for bar in bars]
    for row, bar, end in zip(rows, bars, ends, strict=True):
        label = times(bar.seconds["torch"], bar.seconds["fastinit"])
        style = {"va": "center", "fontsize": 10, "fontweight": "bold", "color": TEXT}
        ax.annotate(label, (end, row), (6, 0), textcoords="offset points", **style)
    shortest = min(min(bar.seconds.values()) for bar in bars) * 1e3
    logarithmic = max(ends) > LOGARITHMIC_FROM * shortest
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.minorticks_off()
        ax.set_xlim(shortest / 2, max(ends) * (max(ends) / shortest) ** 0.2)  # room for the label
    else:
        ax.set_xlim(0, max(ends) * 1.2)
    ax.set_yticks(rows, [bar.label for bar in bars])
    ax.invert_yaxis()
    ax.set_xlabel(f"milliseconds{', logarithmic' if logarithmic else ''}; less is better", **STYLE)
    ax.set_title("time, and how many times faster", fontsize=11.5, color=TEXT, loc="left")
    plain(ax, axis="x")
    legend(figure, ax)


def bars_of(comparison: Comparison) -> list[Bar]:
    """The groups that take torch longest, what is left of them, all together, and all in one batch of fastinit's."""
    ordered = sorted(comparison.rows, key=lambda row: row.seconds["torch"], reverse=True)
    shown, rest = (ordered, []) if len(ordered) <= BARS else (ordered[: BARS - 1], ordered[BARS - 1 :])
    bars = [Bar(f"{row.group.initialiser}\n{shapes(row.group)}", row.seconds) for row in shown]
    if rest:
        bars.append(Bar(f"{len(rest)} other groups", {side: sum(row.seconds[side] for row in rest) for side in SIDES}))
    if len(bars) > 1:
        bars.append(Bar(TOGETHER, {side: comparison.total(side) for side in SIDES}))
        bars.append(Bar(BATCH, {"torch": comparison.total("torch"), "fastinit": comparison.batch}))
    return bars


def support(law: Law) -> tuple[float, float]:
    """The part of the number line where the law's samples lie, far tails left out."""
    low, high = law.mean - FAR * law.std, law.mean + FAR * law.std
    return max(low, law.support[0]), min(high, law.support[1])


def density(sample: torch.Tensor, edges: torch.Tensor) -> Any:
    counts = torch.histogram(sample.double(), edges).hist
    return (counts / (sample.numel() * (edges[1] - edges[0]))).numpy()


def curve(law: Law, low: float, high: float) -> tuple[list[float], list[float]]:
    """The law's density between its ends, as the slope of its distribution function over steps too small to see."""
    edges = torch.linspace(low, high, 1201, dtype=torch.float64)
    slopes = law.cdf(edges).diff() / edges.diff()
    return [low, *((edges[1:] + edges[:-1]) / 2).tolist(), high], [0.0, *slopes.tolist(), 0.0]


def legend(figure: Any, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": len(labels)}
    figure.legend(handles, labels, frameon=False, labelcolor=TEXT, fontsize=10, **place)


def plain(ax: Any, axis: str = "both") -> None:
    """Light grid behind the data, no box around it."""
    ax.grid(True, axis=axis, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=TEXT, labelsize=8.5, length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GRID)
