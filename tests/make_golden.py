"""Writes tests/golden.json from the reference engine: `python tests/make_golden.py`.

Only a new version of the stream contract may change what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import CASE_IDS, CASES, bits

from fastinit import engines
from fastinit.kernels.engine import Draw

FIRST = 2**40 + 61  # a number of block, lane and column in which every part differs
golden = {}
for case, (_, law, dtype) in zip(CASE_IDS, CASES, strict=True):
    kind, parameters = law.parameters(dtype)
    out = torch.empty(8, dtype=dtype)
    engines.load("reference").fill(out, Draw(kind, parameters, 1, 2), FIRST, None)
    shown = [format(value & (1 << 8 * dtype.itemsize) - 1, "x") for value in bits(out).tolist()]
    golden[case] = {"kind": kind, "first": FIRST, "bits": shown}
text = json.dumps(golden, indent=1)
Path(__file__).with_name("golden.json").write_text(text + "\n")
