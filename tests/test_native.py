"""Compiled functions that Python calls, and the object code on disk that kernels are made of."""

from __future__ import annotations

import itertools
import json
import platform
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import common
import pytest
import torch

import fastinit
from fastinit import Stream
from fastinit.drawing import engines
from fastinit.kernels.contract import SAMPLERS, Draw
from fastinit.kernels.cpu import cache, jobs, loading as cpu, native
from fastinit.kernels.cpu.forms import ENTRIES, FORMS
from fastinit.kernels.cpu.rows import WORDS, address_of
from fastinit.laws import EXAMPLES

COUNT = 100_000


def python(code: str, folder: Path, **environment: str) -> str:
    return common.python(code, FASTINIT_CACHE_DIR=str(folder), **environment)


def pattern(mean: float = 0.0, std: float = 1.0) -> array[int]:
    return jobs.pattern_of(Draw("normal", (mean, std), 0, 0), torch.float32)


NORMAL = pattern()


def arguments(out: torch.Tensor, seed: int = 5, row: array[int] = NORMAL) -> list[object]:
    return [address_of(row), out.data_ptr(), out.numel(), seed, 0]


@pytest.fixture(scope="module")
def fill():
    return cpu.entry("fill")


# --- the built-in function ---------------------------------------------------------------------


def test_an_entry_is_a_built_in_function(fill):
    out = torch.empty(200)
    assert fill(*arguments(out)) is None
    assert out.equal(fastinit.normal_(torch.empty(200), stream=Stream(5)))
    assert type(fill) is type(len)
    assert fill.__name__ == "words_int64_fill"


def test_calls_keep_no_references(fill):
    """Of None and of the arguments; when they succeed and when they fail."""
    out, seed = torch.empty(64), 2**63 + 12345
    good = arguments(out, seed=seed)
    bad = [arguments(out, seed="1"), arguments(out)[:-1]]
    watched = (None, seed, out, good[0], bad[0][-2])
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(COUNT):
        fill(*good)
    for wrong, _ in itertools.product(bad, range(1000)):
        with pytest.raises(TypeError):
            fill(*wrong)
    after = [sys.getrefcount(thing) for thing in watched]
    # What else runs in this process may take a None or give one back; a call that kept one would do so 10^5 times.
    assert all(abs(late - early) < COUNT // 10 for early, late in zip(before, after, strict=True))


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("wrong", [1.5, "1", None, [0.0, 1.0]], ids=repr)
def test_what_is_no_number_is_refused(fill, place, wrong):
    given = arguments(torch.empty(64))
    given[place] = wrong
    with pytest.raises(TypeError):
        fill(*given)


@pytest.mark.parametrize("change", [lambda given: given[:-1], lambda given: [*given, 0], lambda given: []])
def test_too_few_or_too_many_are_refused(fill, change):
    with pytest.raises(TypeError):
        fill(*change(arguments(torch.empty(64))))
    with pytest.raises(TypeError, match="keyword"):
        fill(*arguments(torch.empty(64)), seed=1)


def test_numbers_that_look_like_errors_are_numbers(fill):
    """-1 is what Python's functions return for an error; all 64 bits of a seed count, whatever its sign."""
    out, same = torch.empty(640), torch.empty(640)
    fill(*arguments(out, seed=2**64 - 1, row=(one := pattern(-1.0, 2))))
    fill(*arguments(same, seed=-1, row=(other := pattern(-1, 2.0))))
    assert one[WORDS:] == other[WORDS:]
    assert out.equal(same)
    assert out.equal(fastinit.normal_(torch.empty(640), -1.0, 2.0, stream=Stream(2**64 - 1)))
    assert not out.equal(fastinit.normal_(torch.empty(640), -1.0, 2.0, stream=Stream(2**63 - 1)))


def test_the_first_parameter_of_some_laws_is_whole():
    laws = dict(example.law.parameters(torch.float32) for example in EXAMPLES.values())
    whole = {kind: values for kind, values in laws.items() if SAMPLERS[kind].whole}
    assert whole.keys() == {"truncated_central", "truncated_wide", "integers", "integers_long", "integers_bits"}
    for kind, values in whole.items():
        with pytest.raises(TypeError, match="not whole numbers"):
            jobs.pattern_of(Draw(kind, (0.5, *values[1:]), 0, 0), torch.float32)


def ticks_during(call: Callable[[], object]) -> int:
    """How often another thread runs meanwhile, which would do so every half a millisecond."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    stop.set()
    thread.join()
    return sum(start < moment < end for moment in ticks)


def test_large_calls_let_other_threads_run(fill):
    """While one writes 2^26 elements."""
    out = torch.empty(1 << 26)
    assert ticks_during(lambda: fill(*arguments(out))) > 3


# --- object code -------------------------------------------------------------------------------


def undefined_symbols(object_code: bytes) -> set[str]:
    """Of a 64-bit ELF file: the names in its symbol table that belong to no section."""
    (sections,) = struct.unpack_from("<Q", object_code, 0x28)
    size, number = struct.unpack_from("<HH", object_code, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", object_code, sections + size * k) for k in range(number)]
    names = set()
    for _, kind, _, _, offset, length, link, *_ in headers:
        if kind == 2:
            for place in range(offset + 24, offset + length, 24):
                name, _, _, section = struct.unpack_from("<IBBH", object_code, place)
                if section == 0:
                    start = headers[link][4] + name
                    names.add(object_code[start : object_code.index(b"\0", start)].decode())
    return names


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
@pytest.mark.parametrize("kind", ["normal", "truncated_tail"])
def test_object_code_needs_nothing_but_python_and_the_c_library(kind):
    from fastinit.kernels.cpu.compile import compile_kernel

    wanted = next(k for k in engines.every_kernel() if k[0] == kind and k[1] is torch.float64)
    assert undefined_symbols(compile_kernel(*wanted)) <= {"memcpy", "memset", "memmove", "fma", "fmaf"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_entries_need_what_is_listed():
    from fastinit.kernels.cpu.compile import C_API, compile_kernel

    found = set().union(*(undefined_symbols(compile_kernel("words", torch.int64, form, 0)) for form in ENTRIES))
    assert found - {"memcpy", "memset", "memmove"} == set(native.C_API)
    assert set(C_API) <= set(native.C_API)


def test_code_that_calls_something_else_is_refused(monkeypatch):
    from fastinit.kernels.cpu import compile as compiling

    monkeypatch.setattr(compiling.EntryBuilder, "return_none", lambda entry: entry.builder.ret(entry.builder.call(
        compiling.ir.Function(entry.builder.module, compiling.C_API["PyErr_Occurred"], "getpid"), ())
    ))  # fmt: skip
    with pytest.raises(RuntimeError, match=r"words_int64_fill calls getpid"):
        compiling.compile_kernel("words", torch.int64, "fill", 0)


@pytest.mark.parametrize("form", ["long", *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[1:])])
def test_the_largest_kernel_compiles_nearly_as_fast_as_the_smallest(form):
    """Of each form, in the thread's own time: most of it is Numba's, whatever the law."""
    from fastinit.kernels.cpu.compile import compile_kernel

    def seconds(*wanted: object) -> float:
        """The lesser of two: a thread's time grows, too, where another one shares its core."""
        times = []
        for _ in range(2):
            start = time.thread_time()
            compile_kernel(*wanted)
            times.append(time.thread_time() - start)
        return min(times)

    compile_kernel("words", torch.int32, "rows", 0)  # Numba's own first steps are no part of it
    assert seconds("truncated_wide", torch.float8_e4m3fn, form, 8) < 4 * seconds("words", torch.int32, form, 0)


TELL = """
import json, sys, torch, fastinit
drawn = fastinit.normal_(torch.empty(1000), stream=fastinit.Stream(5))
from fastinit.kernels.cpu.loading import origins
print(json.dumps([origins["loaded"], origins["compiled"], "numba" in sys.modules, drawn.tolist()]))
"""


OTHERS = [{"NUMBA_CPU_NAME": "haswell"}, {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}]


def test_another_cpu_s_kernels_are_left_alone(tmp_path):
    """A cache made for other CPUs is not used here, and is found again there."""
    if "avx2" not in cache.target()[1]:
        pytest.skip("another kind of CPU")
    first, again = ([json.loads(python(TELL, tmp_path, **cpu)) for cpu in (*OTHERS, {})] for _ in range(2))
    assert [run[:3] for run in first] == [[0, 3, True]] * 3
    assert [run[:3] for run in again] == [[3, 0, False]] * 3
    assert all(run[3] == first[0][3] for run in (*first, *again))
    assert len(list(tmp_path.iterdir())) == 9


def test_numba_s_own_settings_file_keeps_nothing(tmp_path):
    """Where Numba compiles for another CPU than a kernel's name on disk would say, the kernel is not kept."""
    pytest.importorskip("yaml")
    (tmp_path / ".numba_config.yaml").write_text("cpu_name: haswell\n")
    assert json.loads(python(f"import os; os.chdir({str(tmp_path)!r})\n" + TELL, tmp_path / "cache"))[:2] == [0, 3]
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_target_is_numba_s_own():
    from fastinit.kernels.cpu import compile as compiling

    assert compiling.target() == cache.target()


BREAK = "import sys; sys.modules['numba.core'] = None\n"
MISSING = """
import torch, fastinit
from fastinit.kernels.contract import KernelMissing
from fastinit.kernels.cpu.loading import kernel
assert fastinit.drawing.engines.load("cpu").name == "cpu"
try:
    kernel("uniform", torch.float32, "long", 3)
except KernelMissing as error:
    print(error)
"""


def test_a_broken_numba_does_not_matter_to_kernels_in_the_cache(tmp_path):
    first = json.loads(python(TELL, tmp_path))
    again = json.loads(python(BREAK + TELL, tmp_path))
    assert again[:2] == [3, 0]
    assert again[3] == first[3]
    shown = python(BREAK + MISSING, tmp_path)
    assert shown.startswith("Numba cannot compile the kernel uniform_float32_long here: ")
    assert "numba.core" in shown


FALL_BACK = """
import hashlib, json, warnings, torch, fastinit
fastinit.normal_(torch.empty(9))
digests = []
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for shape in ((9,), (300, 7)):
        for _ in range(2):
            tensor = fastinit.uniform_(torch.empty(shape), stream=fastinit.Stream(1))
            digests.append(hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
try:
    fastinit.uniform_(torch.empty(9), fast=True)
    insisted = None
except RuntimeError as error:
    insisted = str(error)
print(json.dumps([digests, [str(w.message) for w in told], insisted]))
"""


def test_a_kernel_that_is_missing_and_cannot_be_compiled_is_drawn_by_the_eager_engine(tmp_path):
    python("import torch, fastinit; fastinit.normal_(torch.empty(9))", tmp_path)
    broken, told, insisted = json.loads(python(BREAK + FALL_BACK, tmp_path))
    assert len(told) == 1
    assert "draws with plain torch operations" in told[0]
    assert "cannot be compiled" in insisted
    sound, told, insisted = json.loads(python(FALL_BACK, tmp_path))
    assert (told, insisted) == ([], None)
    assert broken == sound


STALL = """
import json, threading, time, torch, fastinit
from fastinit.kernels.cpu import loading as cpu
small, done, took = torch.empty(1000), threading.Event(), []
fastinit.normal_(small)
def work():
    start = time.perf_counter()
    fastinit.trunc_normal_(torch.empty(9, dtype=torch.float64))
    took.append(time.perf_counter() - start)
    done.set()
threading.Thread(target=work).start()
waits, cached = [], [("uniform", torch.float32, "long", 3)]
while not done.is_set():
    start = time.perf_counter()
    fastinit.normal_(small)
    if len(waits) > 20 and cached:
        fastinit.uniform_(small)
        cached.pop()
    waits.append(time.perf_counter() - start)
print(json.dumps([took[0], max(waits), dict(cpu.origins)]))
"""


def test_who_compiles_keeps_nobody_waiting(tmp_path):
    """Fills with kernels that are loaded or in the cache go on; the longest wait is that for one of LLVM's passes."""
    python("import torch, fastinit; x = torch.empty(9); fastinit.normal_(x); fastinit.uniform_(x)", tmp_path)
    took, wait, origins = json.loads(python(STALL, tmp_path))
    assert origins == {"loaded": 4, "compiled": 1}
    assert wait < took / 2


OTHER_CPU = """
import hashlib, torch, fastinit
digest, stream = hashlib.sha256(), fastinit.Stream(3)
for call, dtype in (("uniform_", "float32"), ("normal_", "float32"), ("trunc_normal_", "bfloat16"),
                    ("normal_", "float16"), ("normal_", "float64")):
    tensor = getattr(fastinit, call)(torch.empty(1500, dtype=getattr(torch, dtype)), stream=stream)
    digest.update(tensor.view(torch.uint8).numpy().tobytes())
for dtype in (torch.float16, torch.float64):
    tensor = fastinit.sparse_(torch.empty((300, 131), dtype=dtype), 0.3, stream=stream)
    turned = fastinit.sparse_(torch.empty((131, 300), dtype=dtype).t(), 0.3, stream=stream)
    digest.update(tensor.view(torch.uint8).numpy().tobytes())
    assert turned.contiguous().view(torch.uint8).equal(tensor.view(torch.uint8))
from fastinit.kernels.cpu import loading as cpu
print(cpu.origins["compiled"], digest.hexdigest())
"""
OTHER_CPUS = {
    "AVX2": ("haswell", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2"),
    "128 bits, no fma": ("nehalem", "+sse4.2,+popcnt"),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="makes code for x86-64")
@pytest.mark.parametrize("name", [pytest.param("AVX2", marks=pytest.mark.slow), "128 bits, no fma"])
def test_code_for_other_cpus_draws_the_same_bits(name, tmp_path):
    processor, features = OTHER_CPUS[name]
    here = common.python(OTHER_CPU).split()
    there = python(OTHER_CPU, tmp_path, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES=features).split()
    assert here[1] == there[1]
    assert int(there[0]) >= 9  # its own kernels, not those of this CPU


DEFAULT = """
import torch, fastinit
from torch import nn
torch.set_num_threads(2)
layers = nn.TransformerEncoderLayer(8, 2), nn.TransformerEncoderLayer(8, 2)
model = nn.Sequential(nn.Linear(9, 9), nn.Conv2d(3, 4, 3), nn.Embedding(9, 9), *layers)
names = ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_", "xavier_normal_")
for name in names:
    setattr(torch.nn.init, name, getattr(fastinit, name))
for module in model.modules():
    for reset in ("reset_parameters", "_reset_parameters"):
        getattr(module, reset, lambda: None)()
fastinit.normal_(model[2].weight)
from fastinit.kernels.cpu import loading as cpu
print(cpu.origins["compiled"])
"""


def test_a_default_model_takes_as_few_kernels_as_doctor_says(tmp_path):
    from fastinit.commands import doctor

    assert f"takes {python(DEFAULT, tmp_path).strip()}:" in doctor.DEFAULT_MODEL


def test_a_kernel_under_another_s_name_is_compiled_anew(tmp_path):
    code = "import torch, fastinit; x = torch.empty(9); fastinit.normal_(x); fastinit.uniform_(x); print('done')"
    python(code, tmp_path)
    (normal,) = tmp_path.glob("normal_float32_long-*")
    (uniform,) = tmp_path.glob("uniform_float32_long-*")
    normal.write_bytes(uniform.read_bytes())
    assert python(code, tmp_path) == "done\n"
    with pytest.raises(ValueError, match="has no fastinit_other"):
        native.load(uniform.read_bytes()[32:], "other")


def test_settings_that_change_code_have_files_of_their_own(tmp_path):
    code = "import torch, fastinit; fastinit.normal_(torch.empty(9)); "
    code += "from fastinit.kernels.cpu.loading import origins; print(origins['compiled'])"
    assert [python(code, tmp_path, **settings).strip() for settings in ({"NUMBA_OPT": "1"}, {}, {})] == ["3", "3", "0"]
