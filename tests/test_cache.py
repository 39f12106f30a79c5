"""Kernels on disk: which are found again, where they are kept, and what may become of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import fresh_python, python

import fastinit
from fastinit.kernels.cpu import cache, loading as cpu
from fastinit.kernels.cpu.trust import Folder

PACKAGE = Path(fastinit.__file__).parent
KERNELS = Path(fastinit.kernels.__file__).parent
WORDS, NORMAL = ("words", torch.int32, "long", 0), ("normal", torch.float32, "long", 2)
FILL = ("words", torch.int64, "fill", 0)

FIRST_CALL = """
import json, sys, time, warnings
start = time.process_time()
import torch
imported = time.process_time()
warnings.simplefilter("error")
import fastinit
drawn = fastinit.normal_(torch.empty(1000), stream=fastinit.Stream(5))
seconds = time.process_time() - imported
print(json.dumps([seconds / (imported - start), drawn[:4].tolist(), "numba" in sys.modules]))
"""


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    """Without Numba: from importing fastinit to the first tensor is a fifth of the work of importing torch, or less.

    The bound is a share, for machines of any speed; the milliseconds are a row of `bench.guard`.
    """
    # With bytecode on disk, as installed packages have it.
    environment = {"FASTINIT_CACHE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    first = json.loads(fresh_python(FIRST_CALL, **environment))
    files = sorted(path.name for path in tmp_path.iterdir())
    later = [json.loads(fresh_python(FIRST_CALL, **environment)) for _ in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert len(files) == 3  # the law's kernel, the words that check the engine, and what calls them
    assert min(share for share, *_ in later) < 0.2 < first[0]  # which compiled
    assert all(values == first[1] for _, values, _ in later)
    assert [numba for *_, numba in (first, *later)] == [True, False, False, False]


def test_a_cut_or_foreign_file_is_compiled_anew(tmp_path):
    expected = json.loads(python(FIRST_CALL, FASTINIT_CACHE_DIR=str(tmp_path)))[1]
    cut, empty, foreign = (lambda content: content[:-7]), (lambda content: b""), (lambda content: b"x" * 999)
    for damages in ((cut, empty, cut), (foreign,) * 3):
        for path, damage in zip(sorted(tmp_path.iterdir()), damages, strict=True):
            path.write_bytes(damage(path.read_bytes()))
        assert json.loads(python(FIRST_CALL, FASTINIT_CACHE_DIR=str(tmp_path)))[1] == expected


# --- folders -----------------------------------------------------------------------------------

WRITTEN = """
import os
from fastinit.kernels.cpu.cache import places
print(places().writing and places().writing.path)
"""


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path):
    place = tmp_path / "file"
    place.write_text("not a folder")
    environment = {"FASTINIT_CACHE_DIR": str(place), "XDG_CACHE_HOME": str(place), "HOME": str(place)}
    # Neither the folder that was chosen nor a home: the private folder in the temporary one serves.
    lines = python(FIRST_CALL + WRITTEN, **environment, TMPDIR=str(tmp_path)).splitlines()
    assert lines[1].startswith(str(tmp_path / "fastinit-"))
    # No folder at all.
    nowhere = f"import tempfile; tempfile.tempdir = {str(place)!r}\n"
    lines = python(nowhere + FIRST_CALL + WRITTEN, **environment).splitlines()
    assert lines[1] == "None"


def test_cache_folders_of_odd_users(tmp_path):
    """No home at all; a relative folder, which must not follow a change of directory."""
    code = WRITTEN + "os.chdir('/'); print(places().writing.path)"
    lines = python(f"import os; os.chdir({str(tmp_path)!r})\n" + code, FASTINIT_CACHE_DIR="kept").splitlines()
    assert lines == [str(tmp_path / "kept")] * 2
    homeless = "import pathlib\ndef home(): raise RuntimeError\npathlib.Path.home = staticmethod(home)\n"
    lines = python(homeless + code, FASTINIT_CACHE_DIR="", XDG_CACHE_HOME="", TMPDIR=str(tmp_path)).splitlines()
    assert Path(lines[0]).parent == tmp_path


TELL = """
import json, torch, warnings, fastinit
from fastinit.kernels.cpu import cache, loading as cpu
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    fastinit.normal_(torch.empty(9))
    fastinit.uniform_(torch.empty(9))
reading, writing, refused = cache.places()
print(json.dumps([cpu.origins["loaded"], cpu.origins["compiled"], [str(folder.path) for folder in reading],
    writing and str(writing.path), len(told)]))
"""
WITHOUT_NUMBA = "import sys; sys.modules['numba'] = None\n"
# Root may write everywhere, so it becomes somebody else, once all is imported (by compiling, too) and read for the
# digest that this user may not read.
AS_SOMEBODY = """
import os, torch, fastinit.drawing.engines
from fastinit.kernels.cpu import cache, compile, engine
cache.common_digest(), cache.maker()
compile.compile_kernel("words", torch.int32, "rows", 0)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.fixture
def image(place):
    """A folder that only its owner can write, with three kernels; and a home."""
    folder = Folder(place / "image", shared=True)
    folder.prepare()
    for wanted in (WORDS, NORMAL, FILL):
        cpu.keep(folder, wanted)
    folder.path.chmod(0o555)
    (place / "home").mkdir()
    (place / "home").chmod(0o700)
    if os.geteuid() == 0:
        os.chown(place / "home", 65534, 65534)
    yield folder.path
    folder.path.chmod(0o755)


def test_a_folder_that_can_only_be_read_is_read(image):
    home = image.parent / "home"
    environment = {"FASTINIT_CACHE_DIR": str(image), "HOME": str(home), "XDG_CACHE_HOME": ""}
    places = [[str(image), str(home / ".cache" / "fastinit")], str(home / ".cache" / "fastinit"), 0]
    assert json.loads(python(AS_SOMEBODY + TELL, **environment)) == [3, 1, *places]
    assert json.loads(python(AS_SOMEBODY + TELL, **environment)) == [4, 0, *places]
    assert len(list(image.iterdir())) == 3
    assert len(list((home / ".cache" / "fastinit").iterdir())) == 1


def test_kernels_on_disk_need_no_numba(image):
    """What is not there is drawn by the eager engine, with its one warning."""
    image.chmod(0o755)
    shown = json.loads(python(WITHOUT_NUMBA + TELL, FASTINIT_CACHE_DIR=str(image)))
    assert (shown[:2], shown[4]) == ([3, 0], 1)


def test_without_numba_and_kernels_there_is_no_cpu_engine(tmp_path):
    code = WITHOUT_NUMBA + "import fastinit; print(fastinit.drawing.engines.load('cpu'))"
    shown = python(code, FASTINIT_CACHE_DIR=str(tmp_path))
    assert shown.startswith("Numba cannot compile the kernel words_int32_long here")
    assert "numba" in shown.partition("here")[2]


def test_each_numba_has_kernels_of_its_own_and_no_numba_takes_any(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    monkeypatch.setattr(cache, "places", lambda: cache.Places((folder,), folder, {}))
    for made, code in (("bbbb", b"newer"), ("aaaa", b"older")):
        monkeypatch.setattr(cache, "maker", lambda made=made: made)
        assert cache.read("normal", "2") is None
        cache.write("normal", "2", code)
        assert cache.read("normal", "2") == code
    monkeypatch.setattr(cache, "maker", lambda: None)
    assert cache.read("normal", "2") == b"older"
    assert cache.read("normal", "3") is None
    (tmp_path / f"{cache.stem_of('normal', '2')}.aaaa.kernel").write_bytes(b"cut")
    assert cache.read("normal", "2") == b"newer"
    cache.write("normal", "9", b"code")  # whose maker is unknown
    assert len(list(tmp_path.iterdir())) == 2


# --- processes that may not execute what they write --------------------------------------------

LOCK_DOWN = """
import ctypes, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit("refused")
"""


@pytest.fixture
def can_lock_down():
    if not sys.platform.startswith("linux"):
        pytest.skip("PR_SET_MDWE is Linux's")
    if subprocess.run([sys.executable, "-c", LOCK_DOWN], capture_output=True, check=False).returncode:
        pytest.skip("this kernel does not know PR_SET_MDWE (Linux 6.3)")


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "later"])
def test_where_memory_may_not_be_made_executable_the_eager_engine_draws(image, can_lock_down, late):
    """Also where a process gives up that right once it has drawn."""
    draw = """
import json, warnings, torch, fastinit
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(2):
        drawn = fastinit.normal_(torch.empty(99), stream=fastinit.Stream(5))
print(json.dumps([drawn.tolist(), [str(w.message) for w in told], str(fastinit.drawing.engines.load("cpu"))]))
"""
    first = "import torch, fastinit; fastinit.bits_(torch.empty(9, dtype=torch.int32))\n" if late else ""
    shown, told, engine = json.loads(python(first + LOCK_DOWN + draw, FASTINIT_CACHE_DIR=str(image)))
    assert shown == fastinit.normal_(torch.empty(99), stream=fastinit.Stream(5)).tolist()
    assert len(told) == 1
    assert "does not let this process execute code that it has written" in told[0]
    assert ("PR_SET_MDWE" in engine) == (not late)


def test_doctor_says_that_memory_may_not_be_made_executable(can_lock_down):
    shown = " ".join(python(LOCK_DOWN + "from fastinit.commands.cli import main; main(['doctor'])").split())
    assert "executable memory refused: " in shown
    assert "in a systemd unit: MemoryDenyWriteExecute=no" in shown
    assert "force-reinstall" not in shown
