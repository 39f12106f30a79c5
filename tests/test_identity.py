"""What a kernel was made from: no edit leaves a stale one, however the package is shipped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from common import fresh_python, python

import fastinit
from fastinit.kernels.cpu import cache, identity

PACKAGE = Path(fastinit.__file__).parent
KERNELS = Path(fastinit.kernels.__file__).parent
DRAWN = """
import json, torch, fastinit
print(json.dumps(fastinit.normal_(torch.empty(9), stream=fastinit.Stream(5)).tolist()))
print(fastinit.__file__)
"""


def copied_package(root: Path) -> Path:
    shutil.copytree(PACKAGE, root / "fastinit", ignore=shutil.ignore_patterns("kernels", "__pycache__"))
    shutil.copytree(KERNELS, root / "fastinit" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_an_edit_of_the_arithmetic_leaves_no_stale_kernel(tmp_path):
    root, place = copied_package(tmp_path / "copy"), tmp_path / "cache"
    code = f"import sys; sys.path.insert(0, {str(root)!r})\n" + DRAWN
    before, file = python(code, FASTINIT_CACHE_DIR=str(place)).splitlines()
    assert Path(file).is_relative_to(root)
    arithmetic = root / "fastinit" / "kernels" / "arithmetic" / "transforms.py"
    text = arithmetic.read_text()
    edited = text.replace("return where(swap, s, c), where(swap, c, s)", "return where(swap, c, s), where(swap, s, c)")
    assert edited != text
    arithmetic.write_text(edited)
    after = python(code, FASTINIT_CACHE_DIR=str(place)).splitlines()[0]
    assert json.loads(before) != json.loads(after)


def test_an_edit_of_a_law_s_helper_compiles_that_law_s_kernels_anew(tmp_path):
    root, place = copied_package(tmp_path / "copy"), tmp_path / "cache"
    code = f"""
import sys; sys.path.insert(0, {str(root)!r})
import json, torch, fastinit
from fastinit.kernels.cpu.loading import origins
counts = []
for draw in (fastinit.normal_, fastinit.uniform_, fastinit.trunc_normal_):
    draw(torch.empty(999))
    counts.append(origins["compiled"])
print(json.dumps(counts))
"""
    first = json.loads(python(code, FASTINIT_CACHE_DIR=str(place)))
    assert first == [3, 4, 5]  # the words that check the engine, what calls kernels, and one kernel each
    law = root / "fastinit" / "laws" / "truncated_normal.py"
    edited = law.read_text().replace("left = high <= split", "left = high < split")
    assert edited != law.read_text()
    law.write_text(edited)
    again = json.loads(python(code, FASTINIT_CACHE_DIR=str(place)))
    assert again == [0, 0, 1]


def compiled_to(root: Path) -> Path:
    # Without the path of this folder in the files, so that equal ones are equal.
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", "-s", str(root), str(root)], check=True)
    for source in root.rglob("*.py"):
        source.unlink()
    return root


def zipped(root: Path) -> Path:
    file = root.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*.py*")):
            archive.write(path, path.relative_to(root))
    return file


SHIPMENTS = {
    "pyc": compiled_to,
    "zip": zipped,
    "zip of pyc": lambda root: zipped(compiled_to(root)),
}


@pytest.mark.parametrize("ship", [
    SHIPMENTS["zip of pyc"],
    *(pytest.param(SHIPMENTS[name], marks=pytest.mark.slow) for name in ("pyc", "zip")),
])  # fmt: skip
def test_packages_without_sources_keep_kernels(tmp_path, ship):
    shipped = ship(copied_package(tmp_path / "copy"))
    code = f"import sys; sys.path.insert(0, {str(shipped)!r})\n" + DRAWN
    code += "from fastinit.kernels.cpu.loading import origins; print(fastinit.__file__, dict(origins))"
    place = str(tmp_path / "cache")
    assert python(code, FASTINIT_CACHE_DIR=place).endswith("{'compiled': 3}\n")
    last = python(code, FASTINIT_CACHE_DIR=place).splitlines()[-1]
    assert last.startswith(str(shipped))
    assert last.endswith("{'loaded': 3}")


PROGRAM = """
import sys
import torch
import fastinit

weight = fastinit.normal_(torch.empty(4), stream=fastinit.Stream(5), fast=True)
names = [fastinit.drawing.engines.load(name).name for name in ("cpu", "eager", "reference")]
print(sys.frozen, names, weight.tolist())
"""


@pytest.mark.slow
def test_a_program_frozen_by_pyinstaller_has_the_cpu_engine(tmp_path):
    """Some minutes and gigabytes. Modules that torch only names are left out: the program is the same without them."""
    pytest.importorskip("PyInstaller", reason="PyInstaller is not installed")
    if not any(point.name == "hook-dirs" for point in importlib.metadata.entry_points(module="fastinit.pyinstaller")):
        pytest.skip("fastinit is not installed with its entry point for PyInstaller")
    (tmp_path / "program.py").write_text(PROGRAM)
    without = [f"--exclude-module={name}" for name in ("triton", "scipy", "matplotlib", "jax", "transformers")]
    places = [f"--{name}path={tmp_path / name}" for name in ("work", "spec", "dist")]
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR", *without, *places]
    paths = {**os.environ, "PYTHONPATH": str(copied_package(tmp_path / "copy"))}
    subprocess.run([*command, str(tmp_path / "program.py")], env=paths, cwd=tmp_path, check=True, timeout=1800)
    environment = {**os.environ, "FASTINIT_CACHE_DIR": str(tmp_path / "cache")}
    drawn = fastinit.normal_(torch.empty(4), stream=fastinit.Stream(5)).tolist()
    try:
        for _ in range(2):
            shown = subprocess.run([tmp_path / "dist" / "program" / "program"], env=environment, capture_output=True,
                                   text=True, check=True)  # fmt: skip
            assert shown.stdout == f"True ['cpu', 'eager', 'reference'] {drawn}\n"
            assert len(list((tmp_path / "cache").iterdir())) == 3  # words, the law's, and what calls them
    finally:  # pytest would keep them
        shutil.rmtree(tmp_path / "dist")
        shutil.rmtree(tmp_path / "work")


def digest_of(shipped: Path) -> bytes:
    sys.path_importer_cache.pop(str(shipped), None)
    finder = identity.pkgutil.get_importer(str(shipped))
    package = identity.spec_in(finder, "made")
    found = identity.package_digest(package)
    assert found is not None
    return found


@pytest.mark.parametrize("ship", [lambda root: root, *SHIPMENTS.values()], ids=["sources", *SHIPMENTS])
def test_an_edit_of_any_module_is_seen(tmp_path, ship):
    files = ["__init__.py", "one.py", "inner/__init__.py", "inner/two.py", "inner/most/__init__.py"]
    digests = []
    for number, edited in enumerate([None, None, *files, "inner/new.py"]):
        root = tmp_path / str(number)
        for file in [*files, *([edited] if edited else [])]:
            (root / "made" / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "made" / file).write_text(f"x = {1 if file == edited else 0}\n")
            os.utime(root / "made" / file, (10**9, 10**9))
        digests.append(digest_of(ship(root)))
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(files) + 2


def test_the_digest_covers_every_module_of_the_package():
    package = fastinit.kernels.__spec__
    names = {spec.name for spec in identity.specs_in(package)}
    files = {path.relative_to(KERNELS).with_suffix("") for path in KERNELS.rglob("*.py")}
    assert names == {".".join((package.name, *(part for part in path.parts if part != "__init__"))) for path in files}


FROZEN = """
from importlib.machinery import ModuleSpec
from fastinit.kernels.cpu import identity
class Frozen:
    def __init__(self, text): self.text = text
    def get_code(self, name): return compile(self.text, "here", "exec")
def content(text): return identity.content_of(ModuleSpec("made", Frozen(text)))
"""
SAMPLE = """
def f(x, *, y=0.0):
    try:
        return x in {"a", "b", "c", 1, (2, None)}
    except OSError:
        ...
"""


def test_code_without_a_file_is_told_apart_by_what_it_does():
    code = FROZEN + f"import hashlib; print(hashlib.sha256(content({SAMPLE!r})).hexdigest())"
    assert len({fresh_python(code, PYTHONHASHSEED=seed) for seed in ("1", "2")}) == 1
    scope: dict = {}
    exec(FROZEN, scope)
    content = scope["content"]
    edits = [("0.0", "-0.0"), ("0.0", "0"), ('"a"', '"d"'), ("x,", "x, z,"), ("OSError", "KeyError"), ("...", "x += 1"),
             ("1,", "True,"), ("def f", "def g"), ("return", "yield")]  # fmt: skip
    texts = [SAMPLE.replace(*edit) for edit in edits]
    assert len({content(text) for text in (SAMPLE, *texts)}) == len(texts) + 1
    assert content("# a comment\n" * 3 + SAMPLE) == content(SAMPLE)


def test_a_module_whose_code_cannot_be_had_keeps_nothing(monkeypatch):
    assert identity.module_content("no_such_package", "_version") is None
    assert identity.module_content("json", "no_such_module") is None
    assert identity.module_content("json", "decoder") == Path(json.decoder.__file__).read_bytes()
    assert identity.package_digest(importlib.util.spec_from_loader("made", None)) is None
    monkeypatch.setattr(cache, "package_digest", lambda package: None)
    assert cache.common_digest.__wrapped__() is None
