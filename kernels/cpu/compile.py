"""Kernels of the CPU engine, compiled: Numba source to object code that needs neither Numba nor the sources again.

The object has one entry, a function that CPython can call as it stands (METH_FASTCALL): it reads Python's numbers, lets
other threads run, calls the kernel. Nothing in it refers to Numba's runtime. Importing this file imports Numba (0.3 s),
so only a process that must compile does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from ..contract import SAMPLERS
from . import native
from .blocks import target
from .each import each_kernel
from .forms import EACH, STEPS, Form, kernel_name
from .loops import build_kernel
from .word_loops import step_kernel

__all__ = ["assembly", "compile_kernel", "target"]

native.hold_over_forks(global_compiler_lock._lock)  # the lock itself, which `with` takes in one step

HEAD = 11  # whole numbers that a kernel takes before its tuple; see `loops.build_kernel`


# --- the entry ---------------------------------------------------------------------------------

POINTER, DOUBLE, LONG = ir.IntType(8).as_pointer(), ir.DoubleType(), ir.IntType(64)
SIZE = ir.IntType(types.intp.bitwidth)
# What an entry calls of Python's C API, all of it in the stable ABI.
C_API = {
    "PyLong_AsUnsignedLongLongMask": ir.FunctionType(LONG, [POINTER]),
    "PyFloat_AsDouble": ir.FunctionType(DOUBLE, [POINTER]),
    "PyTuple_Size": ir.FunctionType(SIZE, [POINTER]),
    "PyTuple_GetItem": ir.FunctionType(POINTER, [POINTER, SIZE]),
    "PyErr_Occurred": ir.FunctionType(POINTER, []),
    "PyErr_BadArgument": ir.FunctionType(ir.IntType(32), []),
    "PyEval_SaveThread": ir.FunctionType(POINTER, []),
    "PyEval_RestoreThread": ir.FunctionType(ir.VoidType(), [POINTER]),
    "Py_IncRef": ir.FunctionType(ir.VoidType(), [POINTER]),
}


class Entry:
    """The function that CPython calls: `PyObject *entry(PyObject *self, PyObject *const *arguments, Py_ssize_t count)`.

    Its `self` is None, which it returns. What is not a number, or too many or few, ends in a TypeError.
    """

    def __init__(self, module: ir.Module, symbol: str) -> None:
        signature = ir.FunctionType(POINTER, [POINTER, POINTER.as_pointer(), SIZE])
        self.function = ir.Function(module, signature, symbol)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.failed = self.function.append_basic_block("failed")
        ir.IRBuilder(self.failed).ret(ir.Constant(POINTER, None))

    def call(self, name: str, *arguments: ir.Value) -> ir.Value:
        function = self.builder.module.globals.get(name) or ir.Function(self.builder.module, C_API[name], name)
        return self.builder.call(function, arguments)

    def expect(self, count: ir.Value, number: int) -> None:
        with self.builder.if_then(self.builder.icmp_signed("!=", count, SIZE(number)), likely=False):
            self.call("PyErr_BadArgument")
            self.builder.branch(self.failed)

    def number(self, item: ir.Value, wanted: Any) -> ir.Value:
        """A Python number as `wanted`, a type of Numba's; whole ones modulo 2^64, so that seeds need no sign."""
        if wanted == types.float64:
            value = self.call("PyFloat_AsDouble", item)
            suspect = self.builder.fcmp_ordered("==", value, DOUBLE(-1.0))
        else:
            value = self.call("PyLong_AsUnsignedLongLongMask", item)
            suspect = self.builder.icmp_unsigned("==", value, LONG(-1))
        with self.builder.if_then(suspect, likely=False):
            raised = self.call("PyErr_Occurred")
            with self.builder.if_then(cgutils.is_not_null(self.builder, raised)):
                self.builder.branch(self.failed)
        return value

    def arguments(self, wanted: Sequence[Any]) -> list[ir.Value]:
        """The arguments, of these types, the last of which is a tuple; its numbers in its place."""
        _, items, count = self.function.args
        *singles, numbers = wanted
        self.expect(count, len(singles) + 1)
        places = [self.builder.load(self.builder.gep(items, [SIZE(k)])) for k in range(len(singles) + 1)]
        self.expect(self.call("PyTuple_Size", places[-1]), len(numbers))
        places[-1:] = [self.call("PyTuple_GetItem", places[-1], SIZE(k)) for k in range(len(numbers))]
        return [self.number(item, one) for item, one in zip(places, (*singles, *numbers), strict=True)]

    def without_lock(self, wanted: ir.Value, emit: Callable[[], Any]) -> None:
        """What `emit` builds, with the GIL released around it where `wanted`."""
        thread = cgutils.alloca_once(self.builder, POINTER)
        with self.builder.if_then(wanted):
            self.builder.store(self.call("PyEval_SaveThread"), thread)
        emit()
        with self.builder.if_then(wanted):
            self.call("PyEval_RestoreThread", self.builder.load(thread))

    def return_none(self) -> None:
        self.call("Py_IncRef", self.function.args[0])
        self.builder.ret(self.function.args[0])


# A kernel lets other threads run Python where it writes more elements than this: longer than some 50 us. Whoever wants
# the lock back while another thread computes may wait for it: 131072 normals take 93 us, and then 395.
LOCKED_UP_TO = 1 << 16


def entry_module(context: Any, described: Any, symbol: str) -> ir.Module:
    """The module of a kernel's entry, to be linked with the kernel that Numba describes."""
    module = context.create_module(f"{symbol}.entry")
    kernel = ir.Function(
        module, context.call_conv.get_function_type(described.restype, described.argtypes), described.llvm_func_name
    )
    entry = Entry(module, symbol)
    values, head = entry.arguments(described.argtypes), len(described.argtypes) - 1
    given = [*values[:head], context.make_tuple(entry.builder, described.argtypes[-1], values[head:])]
    start, stop = given[3:5]
    elements = entry.builder.sub(stop, start)

    def draw() -> None:
        # Never inlined: Numba keeps the kernel itself too, and would compile its code twice.
        context.call_conv.call_function(
            entry.builder, kernel, described.restype, described.argtypes, given, attrs=("noinline",)
        )

    entry.without_lock(entry.builder.icmp_signed(">", elements, LONG(LOCKED_UP_TO)), draw)
    entry.return_none()
    return module


# --- compiling ---------------------------------------------------------------------------------


def source_of(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> tuple[Callable[..., None], Sequence[Any]]:
    """A kernel's Python source and the types of its arguments."""
    head = (types.int64,) * HEAD
    for stored, each in EACH.items():
        if form == each:
            return each_kernel(kind, dtype, stored, parameters), (*head, types.UniTuple(types.int64, 2 * parameters))
    if form in STEPS:
        return step_kernel(form), (*head, types.Tuple(()))
    kinds = [types.int64 if k < SAMPLERS[kind].whole else types.float64 for k in range(parameters)]
    return build_kernel(kind, dtype, form), (*head, types.Tuple(kinds))


def compiled_library(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> Any:
    """Numba's library of a kernel and its entry."""
    if config.DISABLE_JIT:  # Numba's own error is about a missing attribute
        raise RuntimeError("NUMBA_DISABLE_JIT=1 turns off the compiler: unset it")
    flags = Flags()
    flags.error_model = "numpy"
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    source, arguments = source_of(kind, dtype, form, parameters)
    source.__name__ = source.__qualname__ = kernel_name(kind, dtype, form)
    context = cpu_target.target_context
    library = context.codegen().create_library(source.__name__)
    library.enable_object_caching()
    with global_compiler_lock:
        result = compile_extra(cpu_target.typing_context, context, source, arguments, types.none, flags, {}, library)
        library.add_ir_module(entry_module(context, result.fndesc, native.symbol(source.__name__)))
        library.finalize()
    return library


def compile_kernel(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> bytes:
    """A kernel's object code; `parameters` is how many numbers its tuple has, those of a law.

    Raises `RuntimeError` where the code would need more than Python and C's library: LLVM would end the process that
    loads it.
    """
    library = compiled_library(kind, dtype, form, parameters)
    functions = binding.parse_assembly(library.get_llvm_str()).functions
    outside = {function.name for function in functions if function.is_declaration} - set(C_API)
    if foreign := sorted(name for name in outside if not name.startswith("llvm.")):
        raise RuntimeError(f"the kernel {library.name} calls {', '.join(foreign)}, which its users may not have")
    object_code: bytes = library.serialize_using_object_code()[2][0]
    return object_code


def assembly(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> str:
    """A kernel's assembly, compiled anew: object code does not tell it."""
    return str(compiled_library(kind, dtype, form, parameters).get_asm_str())
