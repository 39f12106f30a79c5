"""The GPU engine's kernels run by Triton's interpreter, against the reference, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import CASES, FLOATS, name_of

pytest.importorskip("triton", minversion="3.7", reason="older interpreters cannot loop with NumPy 2.4")
SCRIPT = Path(__file__).with_name("interpreted.py")
# How many layouts the script writes: all, and a trial, for one law or two of these dtypes, and else a few.
LAYOUTS, FEW = 14, 3  # all of them, the trial, and some with parameters for each element
THOROUGH = {torch.float32: 1, torch.float64: 1}


# All layouts in each width, and what is drawn in float32, rounded to fewer bits; all laws and dtypes take minutes.
SAMPLE = {
    torch.float32: ["uniform", "normal"],
    torch.float64: ["normal"],
    torch.bfloat16: ["central"],
    torch.float8_e4m3fn: ["tail"],
}
EVERY = {
    dtype: [name for name, _, other in CASES if other is dtype] for dtype in dict.fromkeys(case[2] for case in CASES)
}
WANTED = [
    pytest.param(dtype, laws, id=f"sample-{name_of(dtype)}", marks=[pytest.mark.slow] * (dtype is torch.float64))
    for dtype, laws in SAMPLE.items()
]
WANTED += [pytest.param(*item, id=name_of(item[0]), marks=pytest.mark.slow) for item in EVERY.items()]


@pytest.mark.parametrize(("dtype", "laws"), WANTED)
def test_interpreted_kernels_equal_the_reference(dtype, laws):
    """Whole tiles, several a program, tails, odd firsts and addresses, strides, elements up to 2^62."""
    surroundings = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, str(SCRIPT), name_of(dtype), *laws]
    run = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.split("|") for line in run.stdout.splitlines()]
    assert [name for name in dict.fromkeys(line[0] for line in lines) if name != "public"] == laws
    thorough = THOROUGH.get(dtype, 0)
    assert len(lines) == thorough * LAYOUTS + (len(laws) - thorough) * FEW + (dtype in FLOATS)
    assert [line for line in lines if line[3] != "same"] == []
