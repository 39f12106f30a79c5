"""The forms that the CPU engine's kernels come in, and which of a law's writes which memory."""

from __future__ import annotations

from typing import Literal

import torch

from .engine import Runs, block_size
from .formats import WIDTHS

Form = Literal["long", "rows", "strided", "turned", "selection"]
Kernel = tuple[str, torch.dtype, Form, int]
FORMS: tuple[Form, ...] = ("long", "rows", "strided", "turned")  # of a law
# Integers of each size in bytes: what stands for an element where only zero or its bits matter.
SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What else sparse_ needs: kind, dtype, form and number of parameters, as of a law's kernel.
COLLECT: Kernel = ("collect", torch.int32, "selection", 0)
CLEAR: dict[int, Kernel] = {size: ("clear", dtype, "selection", 0) for size, dtype in SAME_SIZE.items()}
SELECTIONS = (COLLECT, *CLEAR.values())
ABREAST = 64  # words that these take at a time
BLOCKS_AT_ONCE = 4  # at most, in the form "long"; see `blocks.at_once`
AT_MOST_IN_ONE_GO = 1 << 26  # elements; some 0.1 s
LINE = 64  # bytes: a cache line, and the widest vector store


def form_of(runs: Runs, dtype: torch.dtype) -> Form:
    """Which form writes these runs.

    Long runs of neighbours are drawn some blocks at a time; short ones would waste them. What is no neighbour in
    memory is written element by element, many runs side by side where neighbours in memory stand in different runs.
    """
    length, stride, outer = runs
    block = block_size(WIDTHS[dtype])
    if stride == dtype.itemsize:
        return "long" if length >= BLOCKS_AT_ONCE * block else "rows"
    side_by_side = LINE // dtype.itemsize
    turned = outer and length >= block and outer[-1][0] >= side_by_side and abs(outer[-1][2]) < abs(stride)
    # Runs side by side are written in one go, which nothing can interrupt.
    return "turned" if turned and length * side_by_side <= AT_MOST_IN_ONE_GO else "strided"


def kernel_name(kind: str, dtype: torch.dtype, form: Form) -> str:
    return f"{kind}_{str(dtype).removeprefix('torch.')}_{form}"
