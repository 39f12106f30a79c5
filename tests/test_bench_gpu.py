"""The GPU benchmark as far as no GPU is needed: its words, files and loops, over made-up times and a made-up clock."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import benches
import pytest
import torch

gpu = benches.load("gpu")
ABOUT = {"device": "A GPU", "driver": "1.2", "platform": "3.4", "torch": "5", "triton": "6", "fastinit": "7"}


def made_up(law="normal", dtype="float32", exponent=20, torchs=4.0) -> object:
    """fill_ takes a nanosecond an element, a copy two, fastinit one and a quarter."""
    ns = {"fastinit": 1.25, "torch": torchs, "fill_": 1.0, "copy_": 2.0}
    seconds = {name: value * 2**exponent / 1e9 for name, value in ns.items() if value is not None}
    return gpu.Measured(law, dtype, exponent, seconds)


MEASURED = [
    made_up(law, dtype, exponent)
    for law in gpu.LAWS
    for dtype in ("float32", "float64")
    for exponent in (10, 12, 20, 28)
] + [made_up("odd", "float16", 20, None)]


def printed(measured) -> str:
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as capture:
        console.print(gpu.table(ABOUT, measured))
    return capture.get()


def test_the_table_says_what_was_measured():
    words = printed(MEASURED)
    assert "device A GPU, driver 1.2" in words
    rows = [line for line in words.splitlines() if "│" in line]
    assert len(rows) == len(gpu.LAWS) * 2 * 3 + 1  # 2^12 is in the JSON only; 2^28 is the largest
    assert all("80%" in row and "1.25000" in row for row in rows)
    assert sum("3.2" in row for row in rows) == len(rows) - 1
    odd = next(row for row in rows if "odd" in row)
    assert odd.count(" - ") == 2
    assert "nan" not in words


def test_the_json_holds_everything(tmp_path):
    gpu.write_json(tmp_path / "times.json", ABOUT, MEASURED)
    found = json.loads((tmp_path / "times.json").read_text())
    assert found["circumstances"] == ABOUT
    assert len(found["measured"]) == len(MEASURED)
    case = found["measured"][0]
    assert math.isclose(case["ns_an_element"], 1.25)
    assert math.isclose(case["share_of_fill"], 0.8)
    assert case["elements"] == 1024
    assert set(case["median_seconds"]) == {"fastinit", "torch", "fill_", "copy_"}


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    gpu.draw(tmp_path / "times.png", ABOUT, MEASURED)
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_gpu_it_says_so():
    if gpu.backend() is not None:
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, cwd=benches.FOLDER.parent, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "no GPU" in done.stdout


class Clock:
    """A device whose every call takes as many milliseconds as its name says, and whose events read its clock."""

    __name__ = "torch.cpu"

    def __init__(self, free: int = 1 << 40) -> None:
        self.now, self.calls, self.free = 0.0, [], free

    def call(self, name: str, milliseconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += milliseconds

        return run

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda later: later.at - event.at
        return event

    def synchronize(self) -> None: ...

    def empty_cache(self) -> None: ...

    def mem_get_info(self) -> tuple[int, int]:
        return self.free, self.free


def test_calls_take_turns_and_medians_are_of_one_call(monkeypatch):
    monkeypatch.setattr(gpu, "BUDGET", 0.0)
    clock = Clock()
    calls = {"fastinit": clock.call("fastinit", 2.0), "fill_": clock.call("fill_", 1.0)}
    assert gpu.medians(clock, calls, launches=4) == {"fastinit": 2e-3, "fill_": 1e-3}
    turn = ["fastinit"] * 4 + ["fill_"] * 4
    assert clock.calls == ["fastinit"] * 3 + ["fill_"] * 3 + turn * gpu.ROUNDS


def test_every_law_and_size_is_measured_while_memory_lasts(monkeypatch):
    """On the CPU, with a clock that stands still; two and a half tensors must fit into what is free."""
    for name, value in {"BUDGET": 0.0, "ROUNDS": 1, "LAUNCHED": 1, "DTYPES": (torch.float32, torch.float64)}.items():
        monkeypatch.setattr(gpu, name, value)
    found = list(gpu.measure(Clock(free=10 << 14), [10, 12, 14]))
    sizes = {"float32": (10, 12, 14), "float64": (10, 12)}
    expected = [(law, dtype, e) for dtype, exponents in sizes.items() for e in exponents for law in gpu.LAWS]
    assert [case[:3] for case in found] == expected
    assert all(set(case.seconds) == set(gpu.COLOURS) for case in found)


def test_a_law_that_torch_does_not_have_is_left_out(monkeypatch):
    def refuse(tensor, **keywords):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.init, "normal_", refuse)
    tensor = torch.zeros(64)
    calls = gpu.calls_of("normal", tensor, torch.ones(64))
    assert set(calls) == {"fastinit", "fill_", "copy_"}
    calls["copy_"]()
    assert (tensor == 1).all()
    monkeypatch.undo()  # fastinit would obey the replacement
    calls["fastinit"]()
    assert not (tensor == 1).any()
