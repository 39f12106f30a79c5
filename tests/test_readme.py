"""The README's code runs, and its commands and table are the project's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_blocks_run(number):
    exec(compile(BLOCKS[number], f"README.md block {number}", "exec"), {})


def test_there_are_two_commands():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.S)
    assert len(commands) == 2
    assert commands[0].endswith("fastinit compare torch.nn:Transformer --plot report.png")
    assert commands[1].endswith("pytest")


def test_the_table_has_the_benchmarks_rows():
    """The README's numbers are pasted from the benchmark: same cases, in the same order."""
    script = (Path(__file__).parents[1] / "bench" / "speed.py").read_text()
    calls = re.findall(r'^    \("(\w+)", (\{.*?\}), torch\.(\w+)', script, re.M)
    rows = re.findall(r"^\| (\w+)\((.*?)\) \| (\w+) \|", README, re.M)
    assert [(name, dtype) for name, _, dtype in calls] == [(name, dtype) for name, _, dtype in rows]
