"""Compiled kernels on disk.

Numba's own cache watches the file that a function stands in; these kernels are made from several, so a kernel's file
is named after a digest of everything that it was compiled from and for: the sources here, the versions of Numba, LLVM
and Python, the CPU and its features. Nothing is ever stale, only unused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import stat
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult

SOURCES = ("arithmetic.py", "cache.py", "coefficients.py", "cpu.py", "engine.py", "formats.py", "simd.py")


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
def source_digest() -> bytes:
    here = Path(__file__).parent
    versions = f"{numba.__version__} {llvmlite.__version__} {sys.version}"
    return hashlib.sha256(versions.encode() + b"".join((here / name).read_bytes() for name in SOURCES)).digest()


class KernelCache(_Cache):  # type: ignore[misc]
    """What a Numba dispatcher asks for compiled code, and gives it to keep."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel

    @property
    def cache_path(self) -> str:
        return str(folder())

    def path(self, signature: Any, codegen: Any) -> Path | None:
        place = folder()
        if place is None:
            return None
        made_for = repr((self.kernel, signature, codegen.magic_tuple())).encode()
        return place / f"{self.kernel}-{hashlib.sha256(source_digest() + made_for).hexdigest()[:24]}.kernel"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Without Numba's own `target_context.refresh()`: it loads what compiling needs, 0.25 s, and running does not.
        path = self.path(sig, target_context.codegen())
        # A file that is missing, cut short, not ours to read or foreign to this Numba only costs a compilation.
        with contextlib.suppress(Exception):
            if path is not None:
                content = path.read_bytes()
                digest, payload = content[:32], content[32:]
                if hashlib.sha256(payload).digest() == digest:
                    return CompileResult._rebuild(target_context, *pickle.loads(payload))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        path = self.path(sig, data.codegen)
        if path is None:
            return
        payload = numba.core.serialize.dumps(data._reduce())
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            try:
                draft.write_bytes(hashlib.sha256(payload).digest() + payload)
                draft.replace(path)  # atomic: no other process sees half a file
            finally:
                draft.unlink(missing_ok=True)

    def enable(self) -> None:
        pass

    def disable(self) -> None:
        pass

    def flush(self) -> None:
        pass
