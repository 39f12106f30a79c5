"""Compiled kernels on disk.

A kernel's file is named after a digest of everything that it was compiled from and for: the sources here, the versions
of Numba, LLVM and Python, the CPU and its features. Nothing is ever stale, only unused. Reading it needs no Numba.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import stat
import sys
import tempfile
import uuid
from pathlib import Path

import llvmlite
from llvmlite import binding

SOURCES = (
    "arithmetic.py", "blocks.py", "cache.py", "coefficients.py", "compiling.py", "cpu.py", "engine.py", "formats.py",
    "forms.py", "loops.py", "native.py", "selection.py", "simd.py",
)  # fmt: skip

# Of Numba's settings those that change the code it makes.
CODE_SETTINGS = (
    "NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "NUMBA_ENABLE_AVX", "NUMBA_DISABLE_INTEL_SVML",
    "NUMBA_DEBUGINFO", "NUMBA_DEBUG",
)  # fmt: skip


@functools.cache
def folder() -> Path | None:
    """The first of these that can be written: $FASTINIT_CACHE_DIR, the user's cache folder, a private folder in
    the temporary one. None where none can: kernels are then compiled in every process."""
    chosen = os.environ.get("FASTINIT_CACHE_DIR")
    # Absolute, so that a change of the working directory does not lead to another folder, which nobody has looked at.
    candidates = [Path(chosen).absolute()] if chosen else default_folders()
    return next((path for path in candidates if is_ours(path)), None)


def default_folders() -> list[Path]:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    folders = [Path(tempfile.gettempdir()).absolute() / f"fastinit-{user}"]
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.insert(0, (configured if configured.is_absolute() else Path.home() / ".cache") / "fastinit")
    return folders


def is_ours(path: Path) -> bool:
    """Whether `path` is, or can be made, a folder that only we can write: what lies there is executed."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return False
        with tempfile.TemporaryFile(dir=path):
            return stat.S_ISDIR(status.st_mode)
    except OSError:
        return False


@functools.cache
def target() -> tuple[str, str]:
    """The name and the features of the CPU that Numba compiles for here, by its rules, without asking it."""
    name = os.environ.get("NUMBA_CPU_NAME", binding.get_host_cpu_name())
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name.lower() == "generic" else binding.get_host_cpu_features().flatten()
    return name, features


@functools.cache
def numba_version() -> bytes | None:
    """What the Numba that would be imported writes about its version; None where it cannot be found out."""
    spec = importlib.util.find_spec("numba")
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(OSError):
        return Path(spec.origin).with_name("_version.py").read_bytes()
    return None


@functools.cache
def common_digest() -> bytes | None:
    """Of what all kernels are made from and for; None where nothing may be kept, as Numba's version is unknown."""
    version = numba_version()
    if version is None:
        return None
    here = Path(__file__).parent
    settings = [os.environ.get(name) for name in CODE_SETTINGS]
    made_for = repr((llvmlite.__version__, sys.version, sys.platform, target(), settings)).encode()
    return hashlib.sha256(version + made_for + b"".join((here / name).read_bytes() for name in SOURCES)).digest()


def path_of(name: str, parameters: int) -> Path | None:
    place, common = folder(), common_digest()
    if place is None or common is None:
        return None
    digest = hashlib.sha256(common + f"{name} {parameters}".encode()).hexdigest()
    return place / f"{name}-{digest[:24]}.kernel"


def seal(path: Path, object_code: bytes) -> bytes:
    """What stands before the code in its file: a digest, of the name too, so that no kernel passes for another."""
    return hashlib.sha256(path.name.encode() + object_code).digest()


def read(path: Path) -> bytes | None:
    """The object code in a file. One that is missing, cut short or not ours to read only costs a compilation."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        digest, object_code = content[:32], content[32:]
        if seal(path, object_code) == digest:
            return object_code
    return None


def write(path: Path, object_code: bytes) -> None:
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        try:
            draft.write_bytes(seal(path, object_code) + object_code)
            draft.replace(path)  # atomic: no other process sees half a file
        finally:
            draft.unlink(missing_ok=True)
