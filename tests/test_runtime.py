"""What a user's process sees: imports, caches, threads, forks, memory, broken installations."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from common import fresh_python, python, same_bits

import fastinit
from fastinit import Stream
from fastinit.drawing import engines
from fastinit.kernels import staged as staged_module
from fastinit.kernels.contract import Draw
from fastinit.kernels.cpu import engine as cpu, pool as threads
from fastinit.kernels.cpu.pages import advise_huge_pages, setting

PACKAGE = Path(fastinit.__file__).parent
KERNELS = Path(fastinit.kernels.__file__).parent


def test_import_is_light():
    """Neither numba nor triton, and a tenth of the work of importing torch, or less (the median of three)."""
    code = """
import json, sys, time
start = time.process_time()
import torch
imported = time.process_time()
before = set(sys.modules)
import fastinit
share = (time.process_time() - imported) / (imported - start)
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps([share, sorted(new & {"numba", "llvmlite", "triton", "rich", "tqdm", "matplotlib", "scipy"})]))
"""
    # With bytecode on disk, as installed packages have it.
    runs = [json.loads(fresh_python(code, PYTHONDONTWRITEBYTECODE="")) for _ in range(3)]
    assert all(heavy == [] for _, heavy in runs)
    assert sorted(share for share, _ in runs)[1] < 0.1


def broken_numba(tmp_path: Path, text: str) -> dict[str, str]:
    """The environment of a process whose Numba is broken, without kernels on disk."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(text)
    return {"PYTHONPATH": str(tmp_path), "FASTINIT_CACHE_DIR": str(tmp_path / "cache")}


FALLBACK = """
import sys, warnings, torch, fastinit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        drawn = fastinit.normal_(torch.empty(100), stream=fastinit.Stream(5))
print(len(caught), caught[0].category.__name__, caught[0].message)
print(drawn.tolist())
try:
    fastinit.normal_(torch.empty(3), fast=True)
except RuntimeError as error:
    print(error)
"""


def test_the_eager_engine_works_where_warnings_are_errors(tmp_path):
    environment = broken_numba(tmp_path, "raise ImportError")
    code = """
import torch, fastinit
for _ in range(2):
    try:
        fastinit.normal_(torch.empty(3))
        print("drawn")
    except RuntimeWarning:
        print("warned")
"""
    assert fresh_python(code, "-W", "error::RuntimeWarning", **environment).split() == ["warned", "drawn"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('no numba here')", "ImportError: no numba here"),
        ("raise SystemError('numpy is too new')", "SystemError: numpy is too new"),
        ("", "ImportError"),
    ],
)
def test_without_numba_the_eager_engine_draws_the_same_bits(tmp_path, text, reason):
    environment = broken_numba(tmp_path, text)
    warning, values, error = fresh_python(FALLBACK, **environment).splitlines()
    assert warning.startswith("1 RuntimeWarning fastinit draws with plain torch operations")
    assert reason in warning
    expected = fastinit.normal_(torch.empty(100), stream=Stream(5))
    assert torch.tensor(json.loads(values)).equal(expected)
    assert error.startswith("fast=True needs a compiled engine")


def test_numba_told_not_to_compile_says_so(tmp_path):
    """Its own error is about a missing attribute."""
    off = {"NUMBA_DISABLE_JIT": "1", "FASTINIT_CACHE_DIR": str(tmp_path)}
    warning, values, error = python(FALLBACK, **off).splitlines()
    expected = fastinit.normal_(torch.empty(100), stream=Stream(5))
    assert torch.tensor(json.loads(values)).equal(expected)
    for words in (warning, error):
        assert "NUMBA_DISABLE_JIT=1 turns off the compiler: unset it" in words
        assert "get_call_template" not in words
    hints = "doctor.hints(doctor.processor_problem(), doctor.processor_found(), None)"
    found = python(f"from fastinit.commands import doctor; print({hints})", **off)
    assert "NUMBA_DISABLE_JIT=1 turns off the compiler" in found
    assert "reinstall" not in found


def test_kernels_on_disk_need_no_compiler():
    fastinit.uniform_(torch.empty(3))
    fastinit.bits_(torch.empty(3, dtype=torch.int32))
    code = """
import torch, fastinit
from fastinit.kernels.cpu import loading as cpu
print(fastinit.uniform_(torch.empty(5), fast=True, stream=fastinit.Stream(5)).tolist(), dict(cpu.origins))
"""
    expected = fastinit.uniform_(torch.empty(5), stream=Stream(5)).tolist()
    assert python(code, NUMBA_DISABLE_JIT="1").strip() == f"{expected} {{'loaded': 3}}"


def test_an_engine_that_draws_wrong_words_is_not_used(monkeypatch):
    class Wrong(cpu.CpuEngine):
        def fill(self, out, draw, first, steps):
            super().fill(out, draw, first, steps)
            out[0] += 1

    engines.load.cache_clear()
    monkeypatch.setattr(cpu, "CpuEngine", Wrong)
    assert "not the known answer" in engines.load("cpu")
    monkeypatch.undo()
    engines.load.cache_clear()
    assert engines.load("cpu").name == "cpu"


@pytest.mark.parametrize("steps", [None, (90, 1)], ids=str)
def test_staging_for_a_device_without_an_engine(monkeypatch, steps):
    """Drawn on the CPU part by part, then copied: rehearsed with CPU memory in the device's place."""
    monkeypatch.setattr(staged_module, "STAGING", 700)
    staged = staged_module.StagedEngine(engines.load("cpu"))
    draw = Draw("normal", (0.0, 1.0), 1, 2)
    out, expected = torch.empty(60, 80).t().t(), torch.empty(60, 80)
    staged.fill(out, draw, 5, steps)
    engines.load("cpu").fill(expected, draw, 5, steps)
    assert same_bits(out, expected)
    turned = torch.empty(80, 60).t()
    staged.fill(turned, draw, 5, steps)
    assert same_bits(turned, expected)


def test_eager_is_refused_where_float64_is_missing():
    assert "float64" in engines.load("eager").why_not(torch.device("mps"), torch.float32)


def resident_peak(code: str) -> int:
    """Bytes by which a statement raises the peak of resident memory, in a process of its own."""
    template = """
import torch, fastinit
from fastinit.laws import *
stream = fastinit.Stream(1)
{prepare}
def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
{code}
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
{code}
print(status("VmHWM") - before)
"""
    prepare, _, statement = code.partition("\n")
    return int(python(template.format(prepare=prepare, code=statement)))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "call",
    ["trunc_normal_(out, stream=stream)", "normal_(out.t(), stream=stream)", "xavier_uniform_(half, stream=stream)"],
)
def test_one_pass_and_no_scratch(call):
    """Peak memory during a fill of 256 MiB: below 1 MiB + 1 % of the tensor."""
    size = 256 << 20
    half = "dtype=torch.bfloat16"
    out = f"out = torch.zeros(8192, {size >> 15}); half = torch.zeros(8192, {size >> 14}, {half})"
    assert resident_peak(f"{out}\nfastinit.{call}") < (1 << 20) + size // 100


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_the_memory_test_sees_a_temporary():
    size = 256 << 20
    assert resident_peak(f"out = torch.zeros({size // 4})\nout.copy_(out * 2)") > size // 2


def test_threads_grow_to_what_is_asked_and_errors_come_home():
    done = []
    threads.run(done.append, 100, 3)
    assert sorted(done) == list(range(100))

    def fail(piece: int) -> None:
        if piece == 7:
            raise KeyError("piece 7")

    with pytest.raises(KeyError, match="piece 7"):
        threads.run(fail, 50, 3)
    threads.run(done.append, 3, 8)
    assert len(done) == 103


@pytest.mark.parametrize("where", ["main", "helper"])
def test_no_piece_runs_after_the_call_returned(where):
    """An error or an interruption in any thread: what runs is waited for, what has not begun never begins."""
    ended: list[float] = []
    main = threading.current_thread()

    def piece(number: int) -> None:
        if (threading.current_thread() is main) == (where == "main") and number > 3:
            raise KeyboardInterrupt
        time.sleep(0.01)
        ended.append(time.perf_counter())

    with pytest.raises(KeyboardInterrupt):
        threads.run(piece, 200, 4)
    returned, count = time.perf_counter(), len(ended)
    time.sleep(0.1)
    assert len(ended) == count < 200
    assert max(ended) <= returned


def test_fewer_threads_than_asked_for_are_enough(monkeypatch):
    def refuse(self) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", threads.Pool())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    threads.run(done.append, 20, 4)
    assert sorted(done) == list(range(20))
    assert threads._pool.size == 0


# JAX's, in every process that collects tests/test_jax.py; the child uses no JAX.
@pytest.mark.filterwarnings("ignore:os.fork.. was called.*JAX is multithreaded:RuntimeWarning")
def test_a_forked_child_draws(two_threads):
    """Helpers do not live in the child; it makes its own.

    Compared without torch, whose OpenMP threads hang in a forked child.
    """
    expected = fastinit.normal_(torch.empty(1 << 20), stream=Stream(1)).numpy().tobytes()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)  # ends a child that hangs
            drawn = fastinit.normal_(torch.empty(1 << 20), stream=Stream(1)).numpy().tobytes()
            os.write(writing, b"same" if drawn == expected else b"else")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert os.read(reading, 4) == b"same"
    os.close(reading)


@pytest.mark.parametrize("imported", [True, False], ids=["compiling", "importing"])
def test_a_fork_while_another_thread_compiles(tmp_path, imported):
    """The child must not wait for a lock that a thread of its parent holds, nor find half of Numba imported."""
    words = "import torch, fastinit; fastinit.bits_(torch.empty(4, dtype=torch.int32))"
    python(words, FASTINIT_CACHE_DIR=str(tmp_path))
    code = """
import os, signal, threading, torch, fastinit
fastinit.bits_(torch.empty(4, dtype=torch.int32))
thread = threading.Thread(target=lambda: fastinit.uniform_(torch.empty(4)))
thread.start()
child = os.fork()
if child == 0:
    signal.alarm(60)
    fastinit.trunc_normal_(torch.empty(4))
    os._exit(7)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    code = "import numba\n" * imported + code
    assert fresh_python(code, "-W", "ignore", FASTINIT_CACHE_DIR=str(tmp_path)).split() == ["7"]


def test_compiling_in_many_threads_at_once(tmp_path):
    code = """
import threading, torch, fastinit
results = []
def work():
    results.append(fastinit.trunc_normal_(torch.empty(500), stream=fastinit.Stream(1)))
workers = [threading.Thread(target=work) for _ in range(8)]
for w in workers: w.start()
for w in workers: w.join()
print(len(results), all(torch.equal(r, results[0]) for r in results))
"""
    assert python(code, FASTINIT_CACHE_DIR=str(tmp_path)).split() == ["8", "True"]


def test_huge_page_advice_is_harmless():
    out = torch.full((1 << 22,), 7.0)
    advise_huge_pages(out.data_ptr(), out.numel() * 4)
    assert (out == 7).all()
    assert setting()


def test_the_kernels_folder_is_importable_only_inside_the_package():
    code = f"import sys; sys.path.insert(0, {str(KERNELS.parent)!r}); import kernels"
    if KERNELS.name != "kernels" or KERNELS.parent == PACKAGE:
        pytest.skip("installed: there is no top-level kernels folder")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "shipped as fastinit.kernels" in run.stderr


def test_public_names_and_version():
    assert all(hasattr(fastinit, name) for name in fastinit.__all__)
    assert fastinit.CONTRACT == 1
    assert importlib.metadata.version("torch-fastinit") == fastinit.__version__
