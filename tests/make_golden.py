"""Writes tests/golden.json from the reference engine: `python tests/make_golden.py`.

Only a new version of the stream contract may change what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import CASE_IDS, CASES, bits

from fastinit.drawing import engines
from fastinit.kernels.contract import Draw

# Ends of every lane of a block and of the next, in the first blocks and far out.
OFFSETS = [0, 15, 16, 31, 32, 47, 48, 63, 64, 79]
FIRSTS = [0, 2**40 + 64 * 5]
golden = {}
for case, (_, law, dtype) in zip(CASE_IDS, CASES, strict=True):
    kind, parameters = law.parameters(dtype)
    shown = {}
    for first in FIRSTS:
        out = torch.empty(80, dtype=dtype)
        engines.load("reference").fill(out, Draw(kind, parameters, 1, 2), first, None)
        patterns = bits(out)[OFFSETS].tolist()
        shown[str(first)] = [format(value & (1 << 8 * dtype.itemsize) - 1, "x") for value in patterns]
    numbers = [p if isinstance(p, int) else p.hex() for p in parameters]
    golden[case] = {"kind": kind, "parameters": numbers, "offsets": OFFSETS, "bits": shown}
rows = [f"{json.dumps(case)}: {json.dumps(row)}" for case, row in golden.items()]
Path(__file__).with_name("golden.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
