"""An audit as a picture: a strip for each parameter, beside what its law promises. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .audit import MOST_Z, Audit, Row

MOST_STRIPS = 60
BINS, FAR = 72, 4.5  # of a strip; standard deviations to each side
SEEN, PROMISED, WRONG, TEXT, GRID = "#2b6cb0", "#d9622b", "#c53030", "#2d3748", "#e2e8f0"


def why_not(path: str) -> str | None:
    """Why no picture can be written there; None if it can."""
    suffix = Path(path).suffix
    if suffix.removeprefix(".").lower() not in Figure().canvas.get_supported_filetypes():
        return f"matplotlib writes no {suffix or 'files without a suffix'}; expected .png, .pdf or .svg"
    if not Path(path).absolute().parent.is_dir():
        return "its folder does not exist"
    return "it is a folder" if Path(path).is_dir() else None


def draw(path: str, audit: Audit) -> None:
    """Write the picture to `path`. Raises `ValueError` where that cannot be."""
    if (reason := why_not(path)) is not None:
        raise ValueError(f"{path}: {reason}")
    random = [row for row in audit.rows if row.seen is not None and row.seen.std > 0 and row.sample is not None]
    step = -(-len(random) // MOST_STRIPS) or 1
    rows = random[::step]
    height = 1.6 + 0.22 * max(len(rows), 4)
    figure: Any = Figure(figsize=(14, height), layout="constrained", dpi=120)
    every = "" if step == 1 else f", one in {step} shown"
    figure.suptitle(
        f"{audit.model}: {len(audit.rows):,} parameters, {len(random):,} with random values{every}",
        fontsize=14, fontweight="bold", color=TEXT,
    )  # fmt: skip
    strips, scales, distances = figure.subplots(1, 3, sharey=True, width_ratios=(5, 2, 1))
    draw_strips(strips, rows)
    draw_scales(scales, rows)
    draw_distances(distances, rows)
    for axes in (strips, scales, distances):
        axes.tick_params(labelsize=8.5, colors=TEXT, length=0)
        axes.spines[:].set_visible(False)
    for label, row in zip(strips.get_yticklabels(), rows, strict=True):
        label.set_color(WRONG if any(finding.error for finding in row.findings) else TEXT)
    figure.savefig(path)


def draw_strips(axes: Any, rows: Sequence[Row]) -> None:
    """How often which value comes, in standard deviations of the law (of the sample, where no law is known)."""
    density = torch.stack([histogram(row) for row in rows]) if rows else torch.zeros(1, BINS)
    axes.imshow(density.numpy(), aspect="auto", cmap="Blues", extent=(-FAR, FAR, max(len(rows), 1) - 0.5, -0.5), vmin=0)
    axes.set_yticks(range(len(rows)), [shortened(row.name) for row in rows])
    for number in range(1, len(rows)):
        axes.axhline(number - 0.5, color="white", linewidth=1.5)
    for number, row in enumerate(rows):  # what the law is, within its strip
        if row.law is not None:
            text = row.law if len(row.law) < 46 else row.law[:45] + "…"
            axes.text(FAR - 0.05, number, text, ha="right", va="center", fontsize=6.5, color=TEXT)
    axes.set_xlabel("value, in standard deviations from the mean that the law promises", color=TEXT, fontsize=9)


def histogram(row: Row) -> torch.Tensor:
    assert row.seen is not None
    assert row.sample is not None
    mean, std = row.expected if row.expected is not None and row.expected[1] > 0 else (row.seen.mean, row.seen.std)
    values = ((row.sample.detach().double().cpu() - mean) / std).nan_to_num()
    # Wide bins for few values, or a strip would show nothing but noise.
    width = next((width for width in (1, 2, 3, 4, 6, 8, 12) if len(values) * width >= 40 * BINS), 12)
    counts = torch.histc(values, BINS // width, -FAR, FAR).repeat_interleave(width)
    return counts / max(counts.max().item(), 1.0)


def draw_scales(axes: Any, rows: Sequence[Row]) -> None:
    """Standard deviations: seen, and promised."""
    axes.scatter(
        [row.expected[1] if row.expected is not None else math.nan for row in rows], range(len(rows)),
        marker="|", s=110, linewidths=2, color=PROMISED, label="promised", zorder=2,
    )  # fmt: skip
    axes.scatter(
        [row.seen.std if row.seen is not None else math.nan for row in rows], range(len(rows)),
        s=22, color=SEEN, label="seen", zorder=3,
    )  # fmt: skip
    if rows:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 2, high * 2)  # or the ticks of stds that are much alike would overlap
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8.5, frameon=False)
    axes.grid(axis="both", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("standard deviation", color=TEXT, fontsize=9)


def draw_distances(axes: Any, rows: Sequence[Row]) -> None:
    """How far the moments are from what is promised."""
    values = [math.nan if row.z is None else min(row.z, 2 * MOST_Z) for row in rows]
    colours = [WRONG if row.z is not None and row.z > MOST_Z else SEEN for row in rows]
    axes.barh(range(len(rows)), values, height=0.55, color=colours)
    axes.axvline(MOST_Z, color=WRONG, linewidth=1, linestyle="--")
    axes.set_xlim(0, 2 * MOST_Z)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("z, standard errors", color=TEXT, fontsize=9)


def shortened(name: str) -> str:
    return name if len(name) <= 44 else "…" + name[-43:]
