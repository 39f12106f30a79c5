"""The forms that the CPU engine's kernels come in, and which of a law's writes which memory."""

from __future__ import annotations

from typing import Literal

import torch

from ..contract import block_size, width_of
from ..dtypes import name_of
from ..runs import Runs

Form = Literal[
    "long", "rows", "strided", "turned", "each32", "each64", "count", "scatter", "settle", "choose",
    "constant", "run", "run_apart", "lay_out", "fill", "share", "serve",
]  # fmt: skip
STEPS: tuple[Form, ...] = ("count", "scatter", "settle", "choose")  # what is done to words, see `word_loops`
ENTRIES: tuple[Form, ...] = ("run", "run_apart", "lay_out", "fill", "share", "serve")  # what Python calls, see `team`
CONSTANT: Form = "constant"  # which draws nothing
FORMS: tuple[Form, ...] = ("long", "rows", "strided", "turned")
EACH: dict[torch.dtype, Form] = {torch.float32: "each32", torch.float64: "each64"}  # by what parameters are stored in
Kernel = tuple[str, torch.dtype, Form, int]  # kind, dtype, form, number of parameters
BLOCKS_AT_ONCE = 4  # at most, in the form "long"; see `blocks.at_once`
AT_MOST_IN_ONE_GO = 1 << 26  # elements; some 0.1 s
LINE = 64  # bytes: a cache line, and the widest vector store


def form_of(runs: Runs, kind: str, dtype: torch.dtype) -> Form:
    """Which form of a law's kernel writes these runs.

    Long runs of neighbours are drawn some blocks at a time; short ones would waste them. What is no neighbour in
    memory is written element by element, many runs side by side where neighbours in memory stand in different runs.
    """
    length, stride, outer = runs
    block = block_size(width_of(kind, dtype))
    if stride == dtype.itemsize:
        return "long" if length >= BLOCKS_AT_ONCE * block else "rows"
    side_by_side = LINE // dtype.itemsize
    turned = outer and length >= block and outer[-1][0] >= side_by_side and abs(outer[-1][2]) < abs(stride)
    # Runs side by side are written in one go, which nothing can interrupt.
    return "turned" if turned and length * side_by_side <= AT_MOST_IN_ONE_GO else "strided"


def kernel_name(kind: str, dtype: torch.dtype, form: Form) -> str:
    return f"{kind}_{name_of(dtype)}_{form}"
