"""The forms that the CPU engine's kernels come in, and which of a law's writes which memory."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from .engine import Runs, block_size
from .formats import WIDTHS, name_of

LawForm = Literal["long", "rows", "strided", "turned"]
FORMS: tuple[LawForm, ...] = get_args(LawForm)
Form = LawForm | Literal["selection"]
Kernel = tuple[str, torch.dtype, Form, int]  # kind, dtype, form, number of numbers in the tuple that it takes
# Integers of each size in bytes: what stands for an element where only zero or its bits matter.
SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What sparse_ needs beside laws; see `selection`.
COLLECT: Kernel = ("collect", torch.int32, "selection", 6)
CLEAR: dict[int, Kernel] = {size: ("clear", dtype, "selection", 4) for size, dtype in SAME_SIZE.items()}
SELECTIONS = (COLLECT, *CLEAR.values())
ABREAST = 64  # words that these take at a time
BLOCKS_AT_ONCE = 4  # at most, in the form "long"; see `blocks.at_once`
AT_MOST_IN_ONE_GO = 1 << 26  # elements; some 0.1 s
LINE = 64  # bytes: a cache line, and the widest vector store


def form_of(runs: Runs, dtype: torch.dtype) -> LawForm:
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
    return f"{kind}_{name_of(dtype)}_{form}"
