"""`fastinit init`: a checkpoint from the command line."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from common import digests, same_bits
from safetensors.torch import load_file
from torch import nn

import fastinit
from fastinit.commands.cli import main

MODULE = """
import torch
from torch import nn
from fastinit import recipes
from fastinit.initialisers import normal, zeros

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, 3)
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("noise", torch.randn(1000))

class Hole(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("empty", torch.empty(4))

class Own(Net):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.empty(3))

rules = [((nn.Linear, "weight"), normal(std=0.02)), ("*.bias", zeros())]

def made(model):
    return rules

number = 3

def broken(model):
    raise KeyError("mine")
"""
NAME = "fastinit_init_case"


@pytest.fixture(autouse=True)
def _module_here(tmp_path, monkeypatch):
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(NAME, None)


def net(width: int = 8) -> nn.Module:
    return sys.modules[NAME].Net(width)


@pytest.mark.parametrize(
    "how", [["--recipe", "torch_default"], ["--rules", f"{NAME}:rules"], ["--rules", f"{NAME}:made"]], ids=range(3)
)
def test_it_writes_what_initialize_makes(tmp_path, capsys, how):
    command = ["init", f"{NAME}:Net", "--set", "width=16", *how, "--seed", "3", "--dtype", "bfloat16", "--out", "out"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("1 file, 0.00 GB, in ")
    found = load_file(tmp_path / "out" / "model.safetensors")
    model = fastinit.build(net, 16, seed=3)
    rules = how[1] if how[0] == "--recipe" else sys.modules[NAME].rules
    fastinit.initialize(model, rules, seed=3, dtype=torch.bfloat16)
    assert found.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert same_bits(found[name], tensor), name
    assert found["noise"].std().item() == pytest.approx(1, abs=0.2)  # what a constructor draws, by name, too
    assert main(command) == 0  # all is there


def test_another_seed_is_not_written_over_it(capsys):
    command = ["init", f"{NAME}:Net", "--recipe", "torch_default", "--out", "out"]
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 1
    assert "move it, or write to another folder" in capsys.readouterr().err


def test_shards(tmp_path):
    assert main(["init", f"{NAME}:Net", "--recipe", "torch_default", "--out", "out", "--shard-size", "300B"]) == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"into.weight", "into.bias", "out.weight", "out.bias", "table", "noise"}
    assert len({*index["weight_map"].values()}) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["Own", "--recipe", "torch_default"], 1, "own (3,): no rule matches it"),
        (["Hole", "--recipe", "torch_default"], 2, "empty was written by nothing"),
        (["Net", "--recipe", "gpt5"], 2, "there is no recipe 'gpt5'; near it: gpt2"),
        (["Net", "--recipe", "torch_default", "--dtype", "bfloat"], 2, "torch has no dtype 'bfloat'"),
        (["Net", "--recipe", "torch_default", "--dtype", "int8"], 2, "dtype is what floating-point parameters become"),
        (["Net", "--rules", f"{NAME}:broken"], 1, "KeyError: 'mine'"),
        (["Net", "--recipe", "torch_default", "--shard-size", "x"], 2, "a shard's size is a number of bytes"),
        (
            ["Net", "--rules", f"{NAME}:number"],
            1,
            "rules are a list of pairs (where, initialiser), or a recipe; got int",
        ),
        (["Net", "--rules", f"{NAME}:nothing"], 2, f"'{NAME}' has no 'nothing'"),
        (["Net", "--rules", "rules"], 2, "expected MODULE:"),
        (["nothing", "--recipe", "torch_default"], 2, f"'{NAME}' has no 'nothing'"),
        (["rules", "--recipe", "torch_default"], 2, "is not callable but list"),
    ],
    ids=range(12),
)
def test_what_cannot_be(tmp_path, capsys, arguments, code, text):
    target, *rest = arguments
    assert main(["init", f"{NAME}:{target}", *rest, "--out", "out"]) == code
    assert text in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--recipe", "a", "--rules", "b:c"], ["--recipe", "a"]])
def test_recipe_or_rules_and_a_folder(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["init", f"{NAME}:Net", *arguments])
    assert caught.value.code == 2
    assert "usage: fastinit init" in capsys.readouterr().err


LARGE = ["init", "torch.nn:Linear", "--set", "in_features=16384", "out_features=16384", "--recipe", "torch_default"]


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    """The command itself, on a gigabyte: killed at a random moment of its writing, and started again."""
    run = [sys.executable, "-m", "fastinit", *LARGE, "--shard-size", "200MB", "--set", "bias=True", "--out"]
    begin = time.perf_counter()
    subprocess.run([*run, "whole"], check=True, capture_output=True)
    taken = time.perf_counter() - begin
    moments, kills = random.Random(3), 0
    for _ in range(20):
        process = subprocess.Popen([*run, "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "killed").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, taken / 3))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    subprocess.run([*run, "killed"], check=True, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert kills >= 5


@pytest.mark.slow
def test_memory_stays_below_a_gibibyte(tmp_path):
    """Of the whole process, with torch: a tensor of 4 GiB."""
    code = """
import sys
from fastinit.commands.cli import main
from fastinit.commands.compare import resident
code = main(sys.argv[1:])
print(resident("VmHWM"))
sys.exit(code)
"""
    sizes = ["in_features=32768", "out_features=32768"]
    command = [sys.executable, "-c", code, *LARGE[:3], *sizes, *LARGE[5:], "--out", "large"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 1 << 30
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 4 << 30
