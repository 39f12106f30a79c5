"""Which engine a GPU's tensors get, and the trial that it stands first. Devices are stand-ins: there is none here."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

import fastinit
from fastinit.commands import doctor
from fastinit.drawing import engines, tell
from fastinit.laws import Normal

CUDA = torch.device("cuda", 0)
LAW = Normal(0.0, 1.0).parameters(torch.float32)


class Gpu:
    """A GPU engine that draws with the reference, wrongly if told to; its device's memory is the CPU's."""

    name, compiled = "gpu", True

    def __init__(self, fault: str | None = None) -> None:
        self.fault, self.samples = fault, 0

    def why_not(self, device, dtype):
        return None

    def sample(self, device, dtype, draw, by_element):
        self.samples += 1
        self.by_element = by_element
        if self.fault == "compiler":
            raise RuntimeError("ptxas died")
        out = torch.empty(3000, dtype=dtype)
        engines.load("reference").fill(out, draw, 48, None)
        if self.fault == "bits":
            out.view(torch.uint8)[7000] ^= 1
        return out, 48


@pytest.fixture
def gpu(monkeypatch):
    """Installs a stand-in engine for CUDA and hands it out; call it with a fault."""

    def install(fault: str | None = None, without: str | None = None):
        engine, real = Gpu(fault), engines.load
        monkeypatch.setattr(engines, "load", lambda name: (without or engine) if name == "gpu" else real(name))
        return engine

    monkeypatch.setattr(engines, "trials", {})
    monkeypatch.setattr(tell, "told", set())
    monkeypatch.setattr(engines, "capturing", lambda device: False)
    return install


def test_a_gpu_that_draws_the_right_bits_is_trusted_after_one_trial(gpu):
    engine = gpu()
    for _ in range(3):
        assert engines.choose(CUDA, torch.float32, None, LAW) is engine
        assert engines.choose(CUDA, torch.float32, True, LAW) is engine
    assert engine.samples == 1
    assert engines.choose(CUDA, torch.float16, None, LAW) is engine
    assert engines.choose(torch.device("cuda", 1), torch.float32, None, LAW) is engine
    assert engine.samples == 3  # each dtype and each device has its own
    assert set(engines.trials.values()) == {None}


@pytest.mark.parametrize(
    ("fault", "words"), [("bits", "gave other bits on cuda:0 .* please report this"), ("compiler", "ptxas died")]
)
def test_a_gpu_that_fails_its_trial_leaves_the_work_to_plain_torch(gpu, fault, words):
    """One wrong bit in three thousand elements is seen."""
    engine = gpu(fault)
    with pytest.warns(RuntimeWarning, match=f"its GPU engine does not work here: .*{words}"):
        assert engines.choose(CUDA, torch.float32, None, LAW).name == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second one would be raised
        assert engines.choose(CUDA, torch.float32, None, LAW).name == "eager"
    with pytest.raises(RuntimeError, match=f"fast=True needs a compiled engine: .*{words}"):
        engines.choose(CUDA, torch.float32, True, LAW)
    assert engine.samples == 1


def test_a_trial_is_put_off_while_a_graph_is_captured(gpu, monkeypatch):
    engine = gpu("bits")
    monkeypatch.setattr(engines, "capturing", lambda device: True)
    assert engines.choose(CUDA, torch.float32, None, LAW) is engine
    assert engine.samples == 0
    monkeypatch.setattr(engines, "capturing", lambda device: False)
    with pytest.warns(RuntimeWarning, match="other bits"):
        assert engines.choose(CUDA, torch.float32, None, LAW).name == "eager"


def test_without_triton_a_gpu_has_plain_torch_operations(gpu):
    gpu(without="ImportError: no triton")
    with pytest.warns(RuntimeWarning, match="its GPU engine does not work here: ImportError: no triton"):
        assert engines.choose(CUDA, torch.float32, None, LAW).name == "eager"
    with pytest.raises(RuntimeError, match="fast=True needs a compiled engine: ImportError: no triton; leave"):
        engines.choose(CUDA, torch.float32, True)


def test_a_device_without_an_engine_is_staged(gpu):
    gpu()
    engine = engines.choose(torch.device("mps"), torch.float32, None, LAW)
    assert type(engine) is engines.StagedEngine
    assert not engine.compiled
    with pytest.raises(RuntimeError, match="there is no compiled engine for mps tensors"):
        engines.choose(torch.device("mps"), torch.float32, True, LAW)


def test_fill_tells_the_choice_which_law_it_is(gpu, monkeypatch):
    """Not before the generator would be asked: a refused call draws nothing from it."""
    seen = []
    choose = engines.choose
    monkeypatch.setattr(engines, "choose", lambda *given, **how: seen.append((given[2:], how)) or choose(*given, **how))
    fastinit.normal_(torch.empty(4), std=2.0, fast=True)
    assert seen == [((True, ("normal", (0.0, 2.0))), {"by_element": False})]
    p = torch.rand(4, dtype=torch.float64)
    fastinit.bernoulli_(torch.empty(4), p)
    assert seen[-1] == ((False, ("bernoulli", (0.25,))), {"by_element": True})


def test_parameters_by_element_are_tried_on_their_own(gpu):
    engine = gpu()
    assert engines.choose(CUDA, torch.float32, None, LAW) is engine
    assert not engine.by_element
    for _ in range(2):
        assert engines.choose(CUDA, torch.float32, None, LAW, by_element=True) is engine
        assert engine.by_element
    assert engine.samples == 2


def test_the_gpu_engine_refuses_memory_of_the_cpu():
    pytest.importorskip("triton", reason="needs Triton")
    with fastinit.use_engine("gpu"), pytest.raises(RuntimeError, match="it writes to memory of a GPU, not of cpu"):
        fastinit.normal_(torch.empty(4))


def test_the_doctor_shows_the_trials(gpu, monkeypatch):
    monkeypatch.setattr(doctor, "gpus", lambda: [CUDA])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Stand-in 9000")
    gpu()
    assert doctor.gpu_facts() == [("cuda:0", "Stand-in 9000: all laws give the right bits")]
    assert len(engines.trials) > 40
    engines.trials.clear()
    gpu("compiler")
    assert doctor.gpu_facts() == [("cuda:0", "Stand-in 9000: RuntimeError: ptxas died")]
    monkeypatch.undo()
    assert doctor.gpu_facts() == [("none", "torch sees no GPU")]


WITHOUT_TRITON = """
import sys, warnings
warnings.simplefilter("error")
sys.modules["triton"] = None
import torch, fastinit
fastinit.normal_(torch.empty(3))
from fastinit.drawing import engines; from fastinit.commands import doctor
assert "triton" in engines.load("gpu"), engines.load("gpu")
assert dict(doctor.engine_facts())["gpu"].startswith("does not work: ModuleNotFoundError")
"""


def test_a_machine_without_triton_hears_nothing_of_it():
    run = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_importing_the_engine_without_a_driver_is_silent():
    pytest.importorskip("triton", reason="needs Triton")
    code = "import fastinit.kernels.gpu.engine, sys; assert 'fastinit.kernels.gpu.tiles' in sys.modules"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("captures", [True, False])
def test_a_stream_that_captures_is_asked_for(monkeypatch, captures):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    assert engines.capturing(CUDA) is captures


def test_memory_runs_out_for_one_trial_only(gpu, monkeypatch):
    engine = gpu()
    sample = engine.sample

    def once(*arguments):
        engine.sample = sample
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine.sample = once
    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert engines.choose(CUDA, torch.float32, None, LAW).name == "eager"
    assert engines.choose(CUDA, torch.float32, None, LAW) is engine


@pytest.mark.parametrize("by", ["argument", "flag"])
def test_who_insists_hears_of_a_failed_trial(monkeypatch, by):
    """The flag and the environment insist as `fast=True` does: the law is tried after the flag was looked at."""
    monkeypatch.setattr(engines, "load", lambda name: "broken" if name == "cpu" else Gpu())
    monkeypatch.setattr(engines, "problem", lambda d, t, law, each: "other bits" if law else None)
    tensor = torch.empty(4)
    if by == "flag":
        fastinit.flag(tensor, True)
    for function in (fastinit.normal_, fastinit.uniform_):
        with pytest.raises(RuntimeError, match="fast=True needs a compiled engine: other bits"):
            function(tensor, **({"fast": True} if by == "argument" else {}))
    matrix = torch.empty(4, 4)
    fastinit.flag(matrix, True)
    with pytest.raises(RuntimeError, match="other bits"):
        fastinit.orthogonal_(matrix)


def test_the_interpreter_is_kept_from_a_devices_memory(gpu):
    engine = gpu()
    engine.why_not = lambda device, dtype: "it writes to memory of the CPU (TRITON_INTERPRET=1), not of cuda"
    with pytest.warns(RuntimeWarning, match="TRITON_INTERPRET"):
        assert engines.choose(CUDA, torch.float32, None, LAW).name == "eager"
    assert engine.samples == 0


def test_a_sick_device_does_not_fell_the_doctor(monkeypatch):
    monkeypatch.setattr(doctor, "gpus", lambda: [CUDA])

    def name(device):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    assert doctor.gpu_facts() == [("cuda:0", "does not answer: RuntimeError: CUDA error: out of memory")]
