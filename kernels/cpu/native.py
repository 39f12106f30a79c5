"""Object code to addresses, and to functions that Python can call, by LLVM's run-time linker alone: without Numba, in a
millisecond.

An entry is written in CPython's own calling convention and becomes a built-in function, which starts to draw after
0.06 us; Numba's dispatcher takes 0.33.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from llvmlite import binding

# Re-entrant, because a signal handler may fill a tensor. A thread that needs both takes them in this order: compiling
# must not hold up threads that only load.
compiling, loading = threading.RLock(), threading.RLock()

# --- forks -------------------------------------------------------------------------------------

# Locks that a child must find free: one that another thread holds during a fork stays locked in the child for ever.
_locks: list[Any] = [compiling, loading]
_held: dict[int, Generator[None, None, None]] = {}  # what releases them, by the thread that is forking


def hold_over_forks(lock: Any) -> None:
    """Have forks wait for an RLock that is only taken by threads that hold `compiling`, or none of these."""
    _locks.insert(1, lock)


def holding(locks: Sequence[Any]) -> Generator[None, None, None]:
    """Holds all of them between its first step and its end. By `with`, so that an interruption releases each."""
    if locks:
        with locks[0]:
            yield from holding(locks[1:])
    else:
        yield


def _hold() -> None:
    held = _held.get(threading.get_ident())
    if held is None or inspect.getgeneratorstate(held) == inspect.GEN_CLOSED:  # an interruption ended it
        held = _held[threading.get_ident()] = holding(tuple(_locks))
        next(held)


def _release() -> None:
    if (held := _held.get(threading.get_ident())) is not None:
        held.close()
        del _held[threading.get_ident()]


def _free_in_child() -> None:
    _release()
    for lock in _locks:
        if not lock._is_owned():  # a thread that the child does not have may hold it, where `_hold` failed
            lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    # An exception in a hook (a signal handler's) is printed, and the fork goes on: the next one makes up for it.
    for _ in range(3):
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_free_in_child)

# --- loading -----------------------------------------------------------------------------------

# What compiled code calls of Python: the one place that lists it; `compile` and `team` know the types.
C_API = (
    "PyLong_AsUnsignedLongLongMask", "PyErr_Occurred", "PyErr_BadArgument", "PyEval_SaveThread", "PyEval_RestoreThread",
    "Py_IncRef", "PyThread_acquire_lock", "PyThread_acquire_lock_timed", "PyThread_release_lock",
)  # fmt: skip
METH_FASTCALL = 0x80
_new_function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)
_kept: list[Any] = []  # engines own the code, definitions are read at each call: neither may ever go


class MethodDefinition(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def symbol(name: str) -> str:
    """A kernel's entry in its object code."""
    return f"fastinit_{name}"


def new_engine() -> Any:
    """A linker of its own for each kernel: names in one kernel's code cannot meet those in another's."""
    with contextlib.suppress(RuntimeError):  # from llvmlite 0.45 on there is nothing to do, and asking is an error
        binding.initialize()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly("", binding.create_context()), machine)
    for name in C_API:  # on Windows, and in a static Python, the system's linker may not know them
        if binding.address_of_symbol(name) is None:
            address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
            binding.add_symbol(name, address)
    return engine


def load(object_code: bytes, name: str) -> int:
    """The address of the function `name`.

    LLVM ends the process where the code is damaged or calls what it cannot find; see `cache.read` and `compile`.
    """
    with loading:
        engine = new_engine()
        engine.add_object_file(binding.ObjectFileRef.from_data(object_code))
        engine.finalize_object()
        address: int = engine.get_function_address(symbol(name))
    if not address:
        raise ValueError(f"the object code has no {symbol(name)}")
    _kept.append(engine)
    return address


def built_in(address: int, name: str) -> Callable[..., None]:
    """An entry as a function that Python calls."""
    definition = MethodDefinition(name.encode(), address, METH_FASTCALL, None)
    _kept.append(definition)
    function: Callable[..., None] = _new_function(ctypes.addressof(definition), None, None)
    return function
