"""The README's code runs, and its commands and table are the project's own."""

from __future__ import annotations

import re
from pathlib import Path

import benches
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
    """The README's numbers come from the report: same cases, in the same order."""
    wanted = [(case.shown, case.dtype_name) for case in benches.load("cases").TABLE]
    assert re.findall(r"^\| (\w+\(.*?\)) \| (\w+) \|", README, re.M) == wanted


def test_the_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(pictures) == 3
    assert all((Path(__file__).parents[1] / picture).read_bytes()[:4] == b"\x89PNG" for picture in pictures)
