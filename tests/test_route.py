"""Who draws is decided once a call, whatever its arguments."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from common import ARGUMENTS, DRAWING

import fastinit
from fastinit import Stream
from fastinit.drawing import engines, flags, route
from fastinit.initialisers import quick

ROOT = Path(fastinit.__file__).parent

KEYWORDS = {
    "nothing": {},
    "fast": {"fast": True},
    "slow": {"fast": False},
    "stream": {"stream": Stream(1)},
    "generator": {"generator": torch.Generator().manual_seed(1)},
    "all": {"fast": True, "stream": Stream(1)},
}
# orthogonal_ and sparse_ draw into a second tensor, of another law or dtype.
# Where there is an address, and no tensor any more: compiled code.
COMPILED = ("kernels/cpu/loops.py", "kernels/cpu/blocks.py")
CHOICES = {"orthogonal_": 1, "sparse_": 2}


@pytest.fixture
def asked(monkeypatch):
    """How often each question is asked; nobody takes the fast path."""
    counts: Counter[str] = Counter()

    def count(owner, name):
        right = getattr(owner, name)

        def counted(*arguments, **keywords):
            counts[name] += 1
            return right(*arguments, **keywords)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in ((flags, "flag_of"), (engines, "choose"), (route, "outside_contract")):
        count(owner, name)
    monkeypatch.setattr(quick, "ordinary_address", lambda *arguments: 0)
    return counts


@pytest.mark.parametrize("flag", [None, True])
@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
@pytest.mark.parametrize("name", DRAWING)
def test_one_look_at_the_flags_and_one_choice_of_an_engine(name, keywords, flag, asked):
    tensor = torch.empty(12, 4)
    fastinit.flag(tensor, flag)
    call = getattr(fastinit, name)
    for target in (tensor, fastinit.shard(tensor, (24, 4), (12, 0))):
        if keywords.get("fast") is False and target is not tensor:
            continue
        asked.clear()
        call(target, *ARGUMENTS.get(name, ()), **keywords)
        serves = keywords.get("fast") is not False
        assert asked["flag_of"] == (keywords.get("fast") is None)
        assert asked["choose"] == (CHOICES.get(name, 1) if serves else 0)
        assert asked["outside_contract"] == serves


def walk(call, tensor) -> list[str]:
    """The files of the house that the tensor enters, one call after the other, from one file into another."""
    entered: list[str] = []
    # An installed package has kernels/ in it.
    folders = {str(Path(fastinit.kernels.__file__).parent): "kernels", str(ROOT): "fastinit"}

    def profile(frame, event, argument) -> None:
        if event != "call" or not any(value is tensor for value in list(frame.f_locals.values())):
            return
        here, caller = frame.f_code.co_filename, frame.f_back.f_code.co_filename
        folder = next((folder for folder in folders if here.startswith(folder + os.sep)), None)
        if folder is not None and here != caller:
            entered.append(folders[folder] + here.removeprefix(folder))

    sys.setprofile(profile)
    try:
        call(tensor)
    finally:
        sys.setprofile(None)
    return entered


def written_down(heading: str) -> list[str]:
    """The files of a numbered list of kernels/README.md: what its items begin with."""
    page = (Path(fastinit.kernels.__file__).parent / "README.md").read_text()
    section = page.split(heading)[1].split("\n#")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


@pytest.fixture
def nothing_flagged(monkeypatch):
    """As in a process that has never called `flag`."""
    monkeypatch.setattr(flags, "in_use", False)


def test_the_way_of_a_large_tensor_is_written_down(nothing_flagged):
    """Eight files or less, and none of them is called into twice."""
    files = written_down("### A large tensor")
    assert walk(fastinit.kaiming_normal_, torch.empty(1 << 20, 4)) == [file for file in files if file not in COMPILED]
    assert len(set(files)) == len(files) <= 8


def test_the_fast_path_is_written_down(nothing_flagged):
    files = written_down("### A small tensor")
    fastinit.kaiming_normal_(torch.empty(3, 4))
    assert walk(fastinit.kaiming_normal_, torch.empty(3, 4)) == [file for file in files if file not in COMPILED]
    assert len(set(files)) == len(files) <= 8
