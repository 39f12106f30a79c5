"""The command `fastinit warmup`: which kernels it makes, and where it keeps them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastinit.commands.cli import main
from fastinit.drawing import engines
from fastinit.kernels.contract import SAMPLERS
from fastinit.kernels.cpu import trust
from fastinit.kernels.cpu.forms import CONSTANT, EACH, ENTRIES, FORMS, STEPS
from fastinit.kernels.cpu.trust import Folder
from fastinit.kernels.dtypes import FORMATS
from fastinit.laws import BY_NAME, Normal, Words
from fastinit.laws.law import COUNTED, Example


def test_warmup_covers_every_kind_of_the_arithmetic():
    kernels = engines.every_kernel()
    assert len(kernels) == len(set(kernels))
    assert {kind for kind, *_ in kernels} == SAMPLERS.keys()
    # Each kind in each dtype where a law comes to it, in each form. In 24-bit floats no bound needs uniform_inside.
    counting = {"words", "bernoulli", "geometric", "integers", "integers_long", "integers_bits"}
    everywhere = {(kind, dtype) for kind in SAMPLERS.keys() - counting for dtype in FORMATS} | {("words", torch.int32)}
    everywhere |= {(kind, dtype) for kind in ("bernoulli", "geometric", "integers") for dtype in COUNTED}
    everywhere |= {("integers_bits", dtype) for dtype in (torch.float64, torch.int64)}
    everywhere |= {("integers_long", dtype) for dtype in (torch.float64, torch.int32, torch.int64)}
    missing = everywhere - {(kind, dtype) for kind, dtype, *_ in kernels}
    assert {kind for kind, _ in missing} == {"uniform_inside"}
    # With parameters by element: read in float32, and where the law computes in float64 in that, too.
    by_element = len(FORMATS) + 1 + 2 * len(COUNTED)
    assert len(kernels) == len(everywhere - missing) * len(FORMS) + by_element + len(STEPS) + len(ENTRIES) + 1


def test_warmup_of_some_laws():
    kernels = engines.every_kernel(["normal"])
    assert {kind for kind, *_ in kernels} == {"normal", "words"}
    assert {form for kind, _, form, _ in kernels if kind == "normal"} == {*FORMS, *EACH.values()}
    assert {form for kind, _, form, _ in kernels if kind == "words"} == {*ENTRIES, CONSTANT}
    assert {form for *_, form, _ in engines.every_kernel(["words"])} == {*FORMS, *STEPS, *ENTRIES, CONSTANT}
    named = {kernel for law in BY_NAME for kernel in engines.every_kernel([law])}
    assert named == {*engines.every_kernel()}


def test_warmup_of_no_law_says_which_there_are(capsys):
    assert main(["warmup", "normal", "normale"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastinit warmup: there is no law normale; expected some of words, uniform, normal, ")


@pytest.fixture
def few(monkeypatch):
    """Only the kernels of one law in one dtype; returns the names that their files begin with."""
    laws = {
        "normal": Example(Normal(0.0, 1.0), (torch.float32,), Normal(0.0, 1.0)),
        "words": Example(Words(), (torch.int32,)),
    }
    monkeypatch.setattr(engines, "BY_NAME", {name: SimpleNamespace(EXAMPLES={name: e}) for name, e in laws.items()})
    names = {f"{law}_{form}" for law in ("normal_float32", "words_int32") for form in FORMS}
    names.add("normal_float32_each32")
    return names | {f"words_int64_{form}" for form in (*STEPS, *ENTRIES, CONSTANT)}


def kept(folder: Path) -> set[str]:
    return {path.name.rsplit("-", 1)[0] for path in folder.iterdir()}


@pytest.fixture
def two(monkeypatch):
    wanted = [("words", torch.int32, "long", 0), ("normal", torch.float32, "long", 2)]
    monkeypatch.setattr(engines, "every_kernel", lambda laws: wanted)
    return {"words_int32_long", "normal_float32_long"}


def test_warmup_compiles_and_keeps(tmp_path, capsys, monkeypatch, few):
    from fastinit.kernels.cpu import cache, loading as cpu

    folder = Folder(tmp_path)
    monkeypatch.setattr(cache, "places", lambda: cache.Places((folder,), folder, {}))
    monkeypatch.setattr(cpu, "kernel", cpu.kernel.__wrapped__)  # not those that this process has already
    assert main(["warmup"]) == 0
    assert re.fullmatch(rf"20 kernels ready in [\d.]+ s, kept in {re.escape(str(tmp_path))}\n", capsys.readouterr().out)
    assert kept(tmp_path) == few


def test_warmup_into_a_folder_that_everybody_can_read(tmp_path, capsys, two):
    place = tmp_path / "new" / "folder"
    before = os.umask(0o077)
    try:
        assert main(["warmup", "--into", str(place)]) == 0
    finally:
        os.umask(before)
    said = capsys.readouterr().out
    assert said.endswith(f"kept in {place}; to use them there, set FASTINIT_CACHE_DIR={place}\n")
    assert kept(place) == two
    if hasattr(os, "geteuid"):
        assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o644}
        assert place.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777 == 0o755
    assert main(["warmup", "--into", str(place)]) == 0
    assert kept(place) == two


def test_warmup_into_a_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert main(["warmup", "--into", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastinit warmup: --into {tmp_path / 'file'}: ")
    assert said.endswith("expected a folder that only you or root can write\n")
    monkeypatch.setattr(trust, "can_write", lambda folder: False)
    assert main(["warmup", "--into", str(tmp_path)]) == 2
    assert "it cannot be written; expected a folder" in capsys.readouterr().err


def test_warmup_that_runs_out_of_room_says_so(tmp_path, capsys, monkeypatch, two):
    def write(self: Folder, name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write", write)
    assert main(["warmup", "--into", str(tmp_path)]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_warmup_without_a_folder_says_that_it_was_in_vain(capsys, monkeypatch):
    from fastinit.kernels.cpu import cache

    monkeypatch.setattr(engines, "every_kernel", lambda laws: [("normal", torch.float32, "long", 2)])
    monkeypatch.setattr(cache, "places", lambda: cache.Places((), None, {}))
    assert main(["warmup"]) == 1
    assert "in vain: no cache folder can be written" in capsys.readouterr().err


def test_warmup_without_an_engine_says_why(capsys, monkeypatch):
    monkeypatch.setattr(engines, "load", lambda name: "ImportError: no numba")
    assert main(["warmup"]) == 1
    assert "the CPU engine does not work here: ImportError: no numba" in capsys.readouterr().err
