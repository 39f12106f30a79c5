"""The command: what it prints, its exit codes, and one clear line for whatever it cannot do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import FLOAT8, name_of

import fastinit
from fastinit.commands import doctor
from fastinit.commands.cli import main
from fastinit.drawing import engines, flags

LINEAR = ["compare", "torch.nn:Linear", "--set", "in_features=64", "out_features=96", "--repeat", "1"]
MODULE = """
import fastinit
import torch
from torch import nn
from torch.nn.init import trunc_normal_

class Block(nn.Module):
    def __init__(self, width, dtype=torch.float32, name="none"):
        super().__init__()
        self.name = name
        self.table = nn.Embedding(100, width, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(width, 500, dtype=dtype))
        self.turn = nn.Parameter(torch.empty(8, 8))
        self.left = nn.Parameter(torch.full((3,), 5.0))
        trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.orthogonal_(self.turn)

class Narrow(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(300, 200, dtype=dtype))
        self.scale = nn.Parameter(torch.empty(200, dtype=dtype))
        fastinit.xavier_normal_(self.weight)
        nn.init.ones_(self.scale)

class Zoo:
    block = staticmethod(lambda **settings: Block(**settings))
"""


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def module_here(tmp_path, monkeypatch):
    """A module in the current folder; its name."""
    name = "fastinit_cli_case"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield name
    sys.modules.pop(name, None)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
    command = (sys.executable, "-m", "fastinit", *command)
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=surroundings)


# --- compare -----------------------------------------------------------------------------------


def test_compare_prints_a_row_a_group_and_the_totals(capsys):
    assert main(LINEAR) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"torch.nn:Linear: torch.nn.init against fastinit; torch {torch.__version__}, ")
    row = re.search(r"kaiming_uniform_ +1 x \(96, 64\) .* ([\d.]+)x +[\d.]+ +0 +\S+ +0\.\d+ ✓ +0\.\d+ ✓", shown)
    assert row, shown
    assert re.search(r"6,144 elements +0\.0722 +0\.07", shown)  # 1 / sqrt(3 * 64)
    assert re.search(r"uniform_ +1 x \(96,\)", shown)
    assert re.search(
        r"^2 parameters, 6,240 elements: torch [\d.]+ [mu]?s, fastinit [\d.]+ [mu]?s, [\d.]+ times (faster|slower); "
        r"in one batch [\d.]+ [mu]?s, [\d.]+ times (faster|slower); stores alone [\d.]+ [mu]?s; "
        r"peak extra memory: torch ([\d.]+ MiB|n/a), fastinit ([\d.]+ MiB|n/a)$", shown, re.MULTILINE,
    )  # fmt: skip
    assert "left as constructed" not in shown
    assert "float8" not in shown


def test_compare_on_a_narrow_terminal_has_two_tables_and_loses_no_number(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(LINEAR) == 0
    shown = capsys.readouterr().out
    assert shown.count("kaiming_uniform_") == 2
    assert "…" not in shown
    table = shown.partition("initialiser")[2].partition("2 parameters,")[0]
    assert max(map(len, table.splitlines())) <= 80


def test_compare_of_a_module_in_the_current_folder(capsys, module_here):
    """A name imported into it, a dotted callable, a dtype, a plain string, structure, and a parameter without a law."""
    command = ["compare", f"{module_here}:Zoo.block", "--set", "width=40", "--set", "dtype=torch.bfloat16", "name=a=b"]
    assert main([*command, "--repeat", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"trunc_normal_ +1 x \(40, 500\).*\n bfloat16 +20,000 elements +0\.0176 ", shown)
    assert re.search(r"normal_ +1 x \(100, 40\)", shown)
    assert re.search(r"orthogonal_ +1 x \(8, 8\) .* - +-\s*\n", shown)
    assert "1 parameter is not what a single call of an initialiser made: left as constructed" in shown


@pytest.mark.parametrize("dtype", FLOAT8, ids=name_of)
def test_compare_of_float8_puts_rounded_float32_on_torchs_side(capsys, module_here, dtype):
    command = ["compare", f"{module_here}:Narrow", "--set", f"dtype={dtype}", "--repeat", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"xavier_normal_ +1 x \(300, 200\) .* 0\.00\d+ ✓ +0\.00\d+ ✓ *\n {name_of(dtype)} +60,000", shown)
    assert re.search(rf"ones_ +1 x \(200,\) .* - +- *\n {name_of(dtype)} +200 elements +0 +0 ", shown)
    assert "torch draws no float8: its samples there are float32 ones, rounded by a copy" in shown


def test_compare_fails_with_a_wrong_law(capsys, monkeypatch):
    draw = fastinit.init.normal_
    monkeypatch.setattr(fastinit.init, "normal_", lambda tensor, mean, std: draw(tensor, mean + 0.1, std))
    assert main(["compare", "torch.nn:Embedding", "--set", "num_embeddings=500", "embedding_dim=64"]) == 1
    assert re.search(r"✗ +0\.\d+ ✓", capsys.readouterr().out)


def test_compare_says_that_the_slow_engine_draws(capsys, monkeypatch):
    real = engines.load
    monkeypatch.setattr(engines, "load", lambda name: "no [numba] today" if name == "cpu" else real(name))
    engines.substitute.cache_clear()
    try:
        assert main(LINEAR) == 0
    finally:
        engines.substitute.cache_clear()
    assert "its CPU engine does not work here, plain torch operations draw: no [numba] today" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["torch.nn"], r"expected MODULE:CALLABLE, .* got 'torch.nn'"),
        ([":Linear"], r"expected MODULE:CALLABLE"),
        (["no.such.module:Linear"], r"cannot import 'no.such.module' \(ModuleNotFoundError: .*expected the name of"),
        (["torch.nn:Nope"], r"'torch.nn' has no 'Nope'; expected a callable"),
        (["torch.nn:init"], r"torch.nn:init is not callable but module"),
        (["torch.nn:Linear"], r"torch.nn:Linear\(\) raised TypeError: .*--set"),
        (["torch.nn:Linear", "--set", "in_features"], r"--set takes name=value, .* got 'in_features'"),
        (["torch.nn:Linear", "--set", "2x=3"], r"--set takes name=value"),
        (["torch.nn:Linear", "--set", "in_features=2", "out_features=wide"], r"out_features='wide'\) raised TypeError"),
        (["torch:tensor", "--set", "data=[1]"], r"tensor\(data=\[1\]\) must return a torch.nn.Module, got Tensor"),
        (["torch.nn:ReLU"], r"torch.nn:ReLU: none of its parameters is what a single call of an initialiser made it"),
        ([*LINEAR[1:], "--plot", "report.nope"], r"--plot report.nope: matplotlib writes no .nope; expected .png"),
        ([*LINEAR[1:], "--plot", "no/such/folder/report.png"], r"its folder does not exist"),
    ],
)
def test_compare_of_nonsense_is_one_clear_line(capsys, command, words):
    assert main(["compare", *command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fastinit compare: ")
    assert re.search(words, captured.err), captured.err


@pytest.mark.parametrize("command", [[], ["nope"], [*LINEAR[:2], "--repeat", "0"], [*LINEAR[:2], "--seed", "x"]])
def test_argparse_refuses_the_rest(capsys, command):
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    assert "usage: fastinit" in capsys.readouterr().err


def test_plot_writes_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.png"
    assert main([*LINEAR, "--plot", str(path)]) == 0
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width > height > 500
    assert len(content) > 30_000  # more than empty axes


def test_plot_without_random_groups(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.svg"
    command = ["compare", "torch.nn:LayerNorm", "--set", "normalized_shape=64", "--repeat", "1", "--plot", str(path)]
    assert main(command) == 0
    assert "</svg>" in path.read_text()


def test_plot_without_matplotlib_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "fastinit.commands.plot", raising=False)
    monkeypatch.delattr(fastinit.commands, "plot", raising=False)
    assert main([*LINEAR, "--plot", str(tmp_path / "report.png")]) == 2
    captured = capsys.readouterr()
    assert captured.err == "fastinit compare: --plot needs matplotlib: pip install 'torch-fastinit[plot]'\n"
    assert captured.out == ""


# --- doctor ------------------------------------------------------------------------------------


def test_doctor_tells_what_is_there(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for words in (
        rf"fastinit +{re.escape(fastinit.__version__)} \(stream contract {fastinit.CONTRACT}\)",
        rf"torch +{re.escape(torch.__version__)}",
        r"numba +\d+\.\d+",
        r"reference +works", r"cpu +works", r"eager +works", r"CPU tensors +drawn by the cpu engine",
        r"kernels' vectors +.*(bits|SVE).*, read in the assembly",
        rf"threads +{torch.get_num_threads()} used by torch",
        r"kernel cache +.*: \d+ kernels, [\d,]+ bytes", r"new kernels +kept in ", r"executable memory +allowed",
        rf"kernels +\d+ of {len(engines.every_kernel())} on disk; a model of .* takes 8",
        r"FASTINIT +not set", r"writing memory +[\d.]+ GB/s by non-temporal stores",
    ):  # fmt: skip
        assert re.search(words, shown), words
    assert shown.rstrip().count("\nhints\n") == 1


def test_doctor_works_with_a_broken_numba(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise RuntimeError('broken [on] purpose')")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = run("doctor", PYTHONPATH=path, FASTINIT_CACHE_DIR=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"numba +does not work: RuntimeError: broken \[on\] purpose", done.stdout)
    assert re.search(r"CPU tensors +drawn by the eager engine", done.stdout)
    assert "the CPU engine does not work, so plain torch operations draw" in done.stdout


CPU = doctor.Processor("cpu", ("fma",), True)
FULL = doctor.Cache((Path("cache"),), Path("cache"), {}, 3, 1000)


@pytest.mark.parametrize(
    ("problem", "processor", "cache", "hint"),
    [
        ("ImportError: numba", CPU, None, "pip install --force-reinstall numba"),
        (None, CPU._replace(fused=False), FULL, "no fused multiply-add"),
        (None, CPU, FULL._replace(writing=None), "set FASTINIT_CACHE_DIR"),
        (None, CPU, FULL._replace(files=0), "run fastinit warmup"),
    ],
)
def test_doctor_hints(monkeypatch, problem, processor, cache, hint):
    monkeypatch.setattr(doctor, "processors", torch.get_num_threads)
    monkeypatch.setattr(doctor.pages, "setting", lambda: "madvise")
    assert doctor.hints(None, CPU, FULL) == []
    (found,) = doctor.hints(problem, processor, cache)
    assert hint in found


def test_doctor_says_which_folders_are_not_used_and_why(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTINIT_CACHE_DIR", str(tmp_path))
    cache = FULL._replace(refused={tmp_path: "it is full of eels", Path("other"): "no"})
    facts = doctor.cache_facts(cache)
    assert facts[2:] == [("not used", f"{tmp_path}: it is full of eels"), ("not used", "other: no")]
    assert doctor.cache_hints(cache) == ["FASTINIT_CACHE_DIR is not used: it is full of eels"]
    monkeypatch.delenv("FASTINIT_CACHE_DIR")
    assert doctor.cache_hints(cache) == []


def test_doctor_hints_at_settings(monkeypatch):
    monkeypatch.setattr(doctor, "processors", lambda: 8)
    monkeypatch.setattr(doctor.pages, "setting", lambda: "never")
    monkeypatch.setattr(flags, "default", False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found = " / ".join(doctor.hints(None, CPU, FULL))
    assert re.search(r"FASTINIT=0 .* one thread on 8 processors: .*set_num_threads\(8\).* huge pages are off", found)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert "16 threads on 8 processors" in " ".join(doctor.hints(None, CPU, FULL))
    assert doctor.who_serves() == "torch.nn.init, because FASTINIT=0"


@pytest.mark.parametrize(
    ("assembly", "width"),
    [
        ("vaddps %zmm1, %zmm2, %zmm3\nmovq %xmm0, %rax", "512 bits (AVX-512)"),
        ("vaddps %ymm1, %ymm2, %ymm3", "256 bits (AVX)"),
        ("fmla v0.4s, v1.4s, v2.4s\nret", "128 bits (NEON)"),
        ("fmla z0.s, p0/m, z1.s, z2.s", "scalable (SVE)"),
        ("ret", "none found"),
    ],
)
def test_doctor_reads_assembly(assembly, width):
    assert doctor.widest(assembly).startswith(width)


# --- the command itself ------------------------------------------------------------------------


def test_python_m_fastinit_is_the_command():
    done = run(*LINEAR)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 parameters, 6,240 elements: torch " in done.stdout
    failed = run("compare", "torch.nn:Nope")
    assert failed.returncode == 2
    assert failed.stderr == "fastinit compare: 'torch.nn' has no 'Nope'; expected a callable of that module\n"


def test_a_narrow_code_page_loses_no_report():
    done = run(*LINEAR, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok" in done.stdout


def test_importing_fastinit_imports_nothing_for_the_command():
    code = (
        "import sys, torch; before = set(sys.modules); import fastinit; "
        "print(sorted(set(sys.modules) - before), sorted(fastinit.__dict__))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("rich", "tqdm", "matplotlib", "numba", "llvmlite", "triton"):
        assert f"'{name}'" not in shown
    assert "'fastinit.laws'" in shown  # as it would be written
    for name in ("commands", "models.record", "models.show", "laws.judge"):
        assert f"'fastinit.{name}" not in shown
