"""Kernels by name: from the cache on disk, or compiled and kept there; loaded once."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable

import torch
from llvmlite import binding

from ..contract import SAMPLERS, KernelMissing, setting_up
from . import cache, native
from .forms import Form, Kernel, kernel_name
from .identity import arithmetic_text
from .trust import Folder

# How many kernels this process has "loaded" from disk, and how many it has "compiled": tests ask.
origins: Counter[str] = Counter()
# Kernels that could not be compiled: a broken Numba takes its time to say so.
failures: dict[str, str] = {}


@functools.cache
def kernel(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> int:
    """The address of a kernel (see `rows`) or an entry (see `team`), from disk where it can be.

    `parameters` is how many the law takes.
    Raises `KernelMissing` where it would have to be compiled and Numba cannot, and where the system lets no kernel run.
    """
    require_executable_memory()
    wanted = (kind, dtype, form, parameters)
    if (found := loaded(wanted)) is not None:
        return found
    with native.compiling, setting_up.lock:
        # Another thread may just have compiled it.
        return loaded(wanted) or compiled(wanted)


@functools.cache
def entry(form: Form) -> Callable[..., None]:
    """One of the functions of `team` that Python calls. Raises `KernelMissing` as `kernel` does."""
    wanted: Kernel = ("words", torch.int64, form, 0)
    return native.built_in(kernel(*wanted), kernel_name(*wanted[:3]))


def require_executable_memory() -> None:
    """Raise `KernelMissing` where the process may not execute what it has written: there LLVM's linker crashes.

    Asked before each kernel (20 us, against 1 ms for loading it), because a process can lock itself down at any time.
    """
    try:
        binding.check_jit_execution()
    except OSError as error:
        raise KernelMissing(
            "the system does not let this process execute code that it has written to memory, which compiled kernels "
            "need (MemoryDenyWriteExecute of systemd, execmem of SELinux, prctl(PR_SET_MDWE))"
        ) from error


@functools.cache
def source_of(kind: str, parameters: int) -> str:
    """What a kernel is made from besides this package: how many parameters, and a sampler, which may lie anywhere."""
    function, *facts = SAMPLERS[kind]
    return f"{parameters} {facts} {hashlib.sha256(arithmetic_text(function).encode()).hexdigest()}"


def on_disk(wanted: Kernel, *before: Folder) -> bytes | None:
    """A kernel's object code, from the folders `before` the usual ones if it is there; None where it is nowhere."""
    kind, dtype, form, parameters = wanted
    return cache.read(kernel_name(kind, dtype, form), source_of(kind, parameters), *before)


def loaded(wanted: Kernel) -> int | None:
    object_code = on_disk(wanted)
    if object_code is None:
        return None
    address = native.load(object_code, kernel_name(*wanted[:3]))
    origins["loaded"] += 1
    return address


def compiled(wanted: Kernel) -> int:
    kind, dtype, form, parameters = wanted
    name, (object_code, kept) = kernel_name(kind, dtype, form), compiled_code(wanted)
    if kept:
        cache.write(name, source_of(kind, parameters), object_code)
    address = native.load(object_code, name)
    origins["compiled"] += 1
    return address


def compiled_code(wanted: Kernel) -> tuple[bytes, bool]:
    """A kernel's object code, and whether it is what its name says. Raises `KernelMissing` where Numba cannot."""
    kind, dtype, form, _ = wanted
    name = kernel_name(kind, dtype, form)
    try:
        if name in failures:
            raise KernelMissing(failures[name])
        from . import compile as compiling

        # A file in the working directory can have Numba compile for another CPU than its environment and this CPU say.
        return compiling.compile_kernel(*wanted), compiling.target() == cache.target()
    except Exception as error:  # a broken installation can raise anything
        reason = failures.get(name, f"Numba cannot compile the kernel {name} here: {type(error).__name__}: {error}")
        if not isinstance(error, (MemoryError, OSError)):  # these may pass
            failures[name] = reason
        raise KernelMissing(reason) from error


def keep(folder: Folder, wanted: Kernel) -> None:
    """Have a kernel in `folder`, from another folder or compiled.

    Raises `OSError` where it cannot be written, `KernelMissing` where it cannot be compiled or not be named.
    """
    kind, dtype, form, parameters = wanted
    name, source = kernel_name(kind, dtype, form), source_of(kind, parameters)
    object_code, kept = on_disk(wanted, folder), True
    if object_code is None:
        object_code, kept = compiled_code(wanted)
    if not kept or not cache.write_to(folder, name, source, object_code):
        raise KernelMissing(f"what the kernel {name} was compiled from and for cannot be told here, so it is not kept")
