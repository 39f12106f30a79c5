"""Kernels of the CPU engine, compiled: Numba source to object code that needs neither Numba nor the sources again.

A kernel's object has one symbol, a C function (see `rows`); an entry's is a function that CPython can call as it stands
(METH_FASTCALL): it reads Python's whole numbers, lets other threads run, calls. Nothing in either refers to Numba's
runtime. Importing this file imports Numba (0.3 s), so only a process that must compile does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from . import native
from .blocks import target
from .each import each_kernel
from .forms import CONSTANT, EACH, STEPS, Form, kernel_name
from .loops import build_kernel, constant
from .team import ENTRIES, Entry
from .word_loops import step_kernel

__all__ = ["assembly", "compile_kernel", "target"]

native.hold_over_forks(global_compiler_lock._lock)  # the lock itself, which `with` takes in one step

# --- entries -----------------------------------------------------------------------------------

POINTER, LONG = ir.IntType(8).as_pointer(), ir.IntType(64)
SIZE = ir.IntType(types.intp.bitwidth)
KERNEL_TAKES = 3  # row, start, stop
# An entry lets other threads run Python where it writes more elements than this: longer than some 50 us. Whoever wants
# the lock back while another thread computes may wait for it: 131072 normals take 93 us, and then 395.
LOCKED_UP_TO = 1 << 16
# What entries call of Python's C API, all of it in the stable ABI.
C_API = {
    "PyLong_AsUnsignedLongLongMask": ir.FunctionType(LONG, [POINTER]),
    "PyErr_Occurred": ir.FunctionType(POINTER, []),
    "PyErr_BadArgument": ir.FunctionType(ir.IntType(32), []),
    "PyEval_SaveThread": ir.FunctionType(POINTER, []),
    "PyEval_RestoreThread": ir.FunctionType(ir.VoidType(), [POINTER]),
    "Py_IncRef": ir.FunctionType(ir.VoidType(), [POINTER]),
}


class EntryBuilder:
    """Builds the function that CPython calls: `PyObject *entry(PyObject *self, PyObject *const *arguments, Py_ssize_t
    count)`. Its `self` is None, which it returns. What is no whole number, or too many or few, ends in a TypeError."""

    def __init__(self, module: ir.Module, symbol: str) -> None:
        signature = ir.FunctionType(POINTER, [POINTER, POINTER.as_pointer(), SIZE])
        self.function = ir.Function(module, signature, symbol)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.failed = self.function.append_basic_block("failed")
        ir.IRBuilder(self.failed).ret(ir.Constant(POINTER, None))

    def call(self, name: str, *arguments: ir.Value) -> ir.Value:
        function = self.builder.module.globals.get(name) or ir.Function(self.builder.module, C_API[name], name)
        return self.builder.call(function, arguments)

    def arguments(self, number: int) -> list[ir.Value]:
        """The arguments, so many, modulo 2^64, so that seeds need no sign."""
        _, items, count = self.function.args
        with self.builder.if_then(self.builder.icmp_signed("!=", count, SIZE(number)), likely=False):
            self.call("PyErr_BadArgument")
            self.builder.branch(self.failed)
        return [self.number(self.builder.load(self.builder.gep(items, [SIZE(k)]))) for k in range(number)]

    def number(self, item: ir.Value) -> ir.Value:
        value = self.call("PyLong_AsUnsignedLongLongMask", item)
        suspect = self.builder.icmp_unsigned("==", value, LONG(-1))
        with self.builder.if_then(suspect, likely=False):
            raised = self.call("PyErr_Occurred")
            with self.builder.if_then(cgutils.is_not_null(self.builder, raised)):
                self.builder.branch(self.failed)
        return value

    def writes_many(self, given: list[ir.Value], elements: tuple[int, ...]) -> ir.Value:
        """Whether so many elements are written that other threads should run meanwhile; see `team.Entry`."""
        if not elements:
            return ir.Constant(ir.IntType(1), 1)
        count = given[elements[0]]
        for place in elements[1:]:
            count = self.builder.sub(count, given[place])
        return self.builder.icmp_signed(">", count, LONG(LOCKED_UP_TO))

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


def outer_module(context: Any, described: Any, symbol: str, entry: Entry | None) -> ir.Module:
    """The module of the symbol that others call, to be linked with the function that Numba describes."""
    module = context.create_module(f"{symbol}.entry")
    inner = ir.Function(
        module, context.call_conv.get_function_type(described.restype, described.argtypes), described.llvm_func_name
    )

    def call(builder: ir.IRBuilder, given: list[ir.Value]) -> None:
        # Never inlined: Numba keeps the function itself too, and would compile its code twice.
        context.call_conv.call_function(
            builder, inner, described.restype, described.argtypes, given, attrs=("noinline",)
        )

    if entry is None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [LONG] * KERNEL_TAKES), symbol)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        call(builder, list(function.args))
        builder.ret_void()
    else:
        made = EntryBuilder(module, symbol)
        given = made.arguments(entry.arguments)
        made.without_lock(made.writes_many(given, entry.elements), lambda: call(made.builder, given))
        made.return_none()
    return module


# --- compiling ---------------------------------------------------------------------------------


def source_of(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> Callable[..., None]:
    """The Python source of a kernel or an entry."""
    for stored, each in EACH.items():
        if form == each:
            return each_kernel(kind, dtype, stored, parameters)
    if form in ENTRIES:
        return ENTRIES[form].function
    if form == CONSTANT:
        return constant
    return step_kernel(form) if form in STEPS else build_kernel(kind, dtype, form, parameters)


def compiled_library(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> Any:
    """Numba's library of a kernel or an entry, with the symbol that others call."""
    if config.DISABLE_JIT:  # Numba's own error is about a missing attribute
        raise RuntimeError("NUMBA_DISABLE_JIT=1 turns off the compiler: unset it")
    flags = Flags()
    flags.error_model = "numpy"
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    entry, name = ENTRIES.get(form), kernel_name(kind, dtype, form)
    source = source_of(kind, dtype, form, parameters)
    source.__name__ = source.__qualname__ = name
    arguments = (types.int64,) * (KERNEL_TAKES if entry is None else entry.arguments)
    context = cpu_target.target_context
    library = context.codegen().create_library(name)
    library.enable_object_caching()
    with global_compiler_lock:
        result = compile_extra(cpu_target.typing_context, context, source, arguments, types.none, flags, {}, library)
        library.add_ir_module(outer_module(context, result.fndesc, native.symbol(name), entry))
        library.finalize()
    return library


def compile_kernel(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> bytes:
    """The object code of a kernel or an entry; `parameters` is how many numbers a law has.

    Raises `RuntimeError` where the code would need more than Python and C's library: LLVM would end the process that
    loads it.
    """
    library = compiled_library(kind, dtype, form, parameters)
    functions = binding.parse_assembly(library.get_llvm_str()).functions
    outside = {function.name for function in functions if function.is_declaration} - set(native.C_API)
    if foreign := sorted(name for name in outside if not name.startswith("llvm.")):
        raise RuntimeError(f"the kernel {library.name} calls {', '.join(foreign)}, which its users may not have")
    object_code: bytes = library.serialize_using_object_code()[2][0]
    return object_code


def assembly(kind: str, dtype: torch.dtype, form: Form, parameters: int) -> str:
    """A kernel's assembly, compiled anew: object code does not tell it."""
    return str(compiled_library(kind, dtype, form, parameters).get_asm_str())
