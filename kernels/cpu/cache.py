"""Compiled kernels on disk.

A kernel's file is named after a digest of everything that it was compiled from and for (the modules of this package,
the arithmetic of its sampler, the versions of LLVM and Python, the CPU and its features), and after the version of
Numba that compiled it. Nothing is ever stale, only unused. Reading it needs no Numba: where there is none, any
version's kernel serves.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import llvmlite
from llvmlite import binding

from .identity import module_content, package_digest
from .trust import Folder

# Of Numba's settings those that change the code it makes.
CODE_SETTINGS = (
    "NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "NUMBA_ENABLE_AVX", "NUMBA_DISABLE_INTEL_SVML",
    "NUMBA_DEBUGINFO", "NUMBA_DEBUG",
)  # fmt: skip

# --- folders -----------------------------------------------------------------------------------


class Places(NamedTuple):
    """The folders that kernels are read from, in order; the one of them that new ones are written to, if any can be;
    and why others are not used."""

    reading: tuple[Folder, ...]
    writing: Folder | None
    refused: dict[Path, str]


@functools.cache
def places() -> Places:
    """$FASTINIT_CACHE_DIR, the user's cache folder, a private folder in the temporary one: up to the first of them
    that can be written. Those before it are only read, such as one in a container image."""
    chosen = os.environ.get("FASTINIT_CACHE_DIR")
    reading, refused = [], {}
    for path in [*([Path(chosen)] if chosen else []), *default_folders()]:
        folder = Folder(path)
        try:
            writable = folder.prepare()
        except OSError as error:
            refused[folder.path] = str(error)
            continue
        reading.append(folder)
        if writable:
            return Places(tuple(reading), folder, refused)
    return Places(tuple(reading), None, refused)


def default_folders() -> list[Path]:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    folders = [Path(tempfile.gettempdir()) / f"fastinit-{user}"]
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.insert(0, (configured if configured.is_absolute() else Path.home() / ".cache") / "fastinit")
    return folders


# --- names -------------------------------------------------------------------------------------


@functools.cache
def target() -> tuple[str, str]:
    """The name and the features of the CPU that Numba compiles for here, by its rules, without asking it."""
    name = os.environ.get("NUMBA_CPU_NAME", binding.get_host_cpu_name())
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name.lower() == "generic" else binding.get_host_cpu_features().flatten()
    return name, features


@functools.cache
def maker() -> str | None:
    """The Numba that would compile here, by a digest of what it says about its version; None where there is none."""
    version = module_content("numba", "_version")
    return None if version is None else hashlib.sha256(version).hexdigest()[:8]


@functools.cache
def common_digest() -> bytes | None:
    """Of what all kernels are made from and for; None where this package's code is not available: nothing is kept."""
    package = sys.modules[__package__.rpartition(".")[0]].__spec__  # of all kernels
    code = None if package is None else package_digest(package)
    settings = [os.environ.get(name) for name in CODE_SETTINGS]
    made_for = repr((llvmlite.__version__, sys.version, sys.platform, target(), settings)).encode()
    return None if code is None else hashlib.sha256(code + made_for).digest()


def stem_of(name: str, source: str) -> str | None:
    """A file's name without the Numba that made it; `source` says what a kernel is made from besides this package."""
    common = common_digest()
    if common is None:
        return None
    return f"{name}-{hashlib.sha256(common + f'{name} {source}'.encode()).hexdigest()[:24]}"


def files_of(folder: Folder, stem: str) -> list[str]:
    """The files that may hold a kernel: Numba's own, or, without Numba, all that any Numba has made."""
    if (made := maker()) is not None:
        return [f"{stem}.{made}.kernel"]
    with contextlib.suppress(OSError):
        return sorted(name for name in folder.names() if name.startswith(f"{stem}.") and name.endswith(".kernel"))
    return []


# --- files -------------------------------------------------------------------------------------


def seal(file: str, object_code: bytes) -> bytes:
    """What stands before the code in its file: a digest, of the name too, so that no kernel passes for another."""
    return hashlib.sha256(file.encode() + object_code).digest()


def read(name: str, source: str, *before: Folder) -> bytes | None:
    """A kernel's object code, from the folders `before` the usual ones if it is there.

    A file that is missing, cut short or not to be trusted only costs a compilation.
    """
    stem = stem_of(name, source)
    if stem is None:
        return None
    for folder in (*before, *places().reading):
        for file in files_of(folder, stem):
            with contextlib.suppress(OSError):
                content = folder.read(file)
                digest, object_code = content[:32], content[32:]
                if seal(file, object_code) == digest:
                    return object_code
    return None


def write(name: str, source: str, object_code: bytes) -> None:
    """Keep a kernel where that is possible."""
    folder = places().writing
    with contextlib.suppress(OSError):
        if folder is not None:
            write_to(folder, name, source, object_code)


def write_to(folder: Folder, name: str, source: str, object_code: bytes) -> bool:
    """Keep a kernel in `folder`; whether it has a name. Raises `OSError` where it cannot be written."""
    stem, made = stem_of(name, source), maker()
    if stem is None or made is None:
        return False
    file = f"{stem}.{made}.kernel"
    folder.write(file, seal(file, object_code) + object_code)
    return True
