"""Kernels of the CPU engine, compiled: Numba source to object code that needs neither Numba nor the sources again.

The object has one entry, a function that CPython can call as it stands (METH_FASTCALL): it reads Python's numbers, lets
other threads run, calls the kernel. Nothing in it refers to Numba's runtime. Importing this file imports Numba (0.3 s),
so only a process that must compile does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from . import native, simd
from .arithmetic import bind
from .engine import COLUMNS, WHOLE_NUMBER_FIRST, block_size, sample_lanes
from .formats import FORMATS, WIDTHS
from .simd import Counters, Lanes

native.hold_over_forks(global_compiler_lock)

ARITHMETIC = {width: bind(simd.primitives(width), width) for width in (32, 64)}
SCRATCH_ALIGNMENT = 64  # a cache line, and the widest vector store


def target() -> tuple[str, str]:
    """The name and the features of the CPU that Numba compiles for."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name, features


def at_once() -> int:
    """How many counters to draw from at a time where there are neighbours enough.

    Two blocks hide each other's latencies (normals: 0.47 against 0.60 ns on one thread), where the CPU has the
    registers for it: with the sixteen of AVX2 they gain nothing.
    """
    return 2 * COLUMNS if "+avx512f" in target()[1].split(",") else COLUMNS


def converts_to_float16() -> bool:
    """Whether the CPU rounds to float16 itself, in all cases as the arithmetic does (0.33 against 0.49 ns, uniform)."""
    return "+f16c" in target()[1].split(",") or platform.machine().lower() in ("aarch64", "arm64")


def samples(
    builder: ir.IRBuilder,
    law: tuple[str, torch.dtype],
    columns: int,
    number: Any,
    stream: Sequence[Any],
    values: Sequence[Any],
) -> list[ir.Value]:
    """Instructions for all samples of `columns` counters: vectors of sixteen neighbours, in order.

    `number` counts such groups of counters, `stream` is seed and id, `values` the law's parameters.
    """
    kind, dtype = law
    width = WIDTHS[dtype]

    def word(value: Any, shift: int) -> Lanes:
        return (Lanes(builder, "u64", value) >> shift).cast("u32", "trunc")

    def parameter(value: Any) -> Lanes:
        if isinstance(value.type, ir.IntType):
            return word(value, 0)
        number = Lanes(builder, "f64", value)
        return number if width == 64 else number.cast("f32", "fptrunc")

    seed, id = stream
    first = builder.mul(number, ir.Constant(number.type, columns))
    outputs = ARITHMETIC[32].philox(
        Counters(word(first, 0), columns), word(first, 32), word(id, 0), word(id, 32), word(seed, 0), word(seed, 32)
    )
    words = [output.packed() for output in outputs]
    lanes = sample_lanes(ARITHMETIC[width], width, kind, words, [parameter(value) for value in values])
    done = [rounded(lane.spread(columns), dtype) for lane in lanes]
    return [lane.part(start, COLUMNS).value for start in range(0, columns, COLUMNS) for lane in done]


def rounded(lane: Lanes, dtype: torch.dtype) -> Lanes:
    """Samples of the working precision in the output dtype: as its bits, where LLVM does not know it."""
    rounding = FORMATS[dtype].rounding if dtype in FORMATS else None
    if rounding is None:
        return lane
    if dtype is torch.float16 and converts_to_float16():
        return lane.cast("f16", "fptrunc")
    whole: Lanes = getattr(ARITHMETIC[32], rounding)(lane)
    return whole.cast(f"u{8 * dtype.itemsize}", "trunc")


def block_writer(kind: str, dtype: torch.dtype, columns: int) -> Any:
    """A Numba intrinsic that writes all that `columns` counters draw to an address."""

    @intrinsic
    def write_block(context, address, block, seed, stream, streaming, parameters):
        def build(context, builder, signature, arguments):
            address, block, seed, stream, streaming, parameters = arguments
            unpacked = cgutils.unpack_tuple(builder, parameters)
            vectors = samples(builder, (kind, dtype), columns, block, (seed, stream), unpacked)

            def store(align: int, nontemporal: bool) -> None:
                for k, vector in enumerate(vectors):
                    place = builder.add(address, ir.Constant(address.type, k * COLUMNS * dtype.itemsize))
                    written = builder.store(vector, builder.inttoptr(place, vector.type.as_pointer()), align=align)
                    if nontemporal:
                        one = ir.Constant(ir.IntType(32), 1)
                        written.set_metadata("nontemporal", builder.module.add_metadata([one]))

            with builder.if_else(builder.trunc(streaming, ir.IntType(1))) as (around, through):
                with around:
                    store(min(SCRATCH_ALIGNMENT, COLUMNS * dtype.itemsize), nontemporal=True)
                with through:
                    store(dtype.itemsize, nontemporal=False)
            return context.get_dummy_value()

        return types.void(address, block, seed, stream, streaming, parameters), build

    return write_block


@intrinsic(prefer_literal=True)
def scratch(context, size):
    """The address of `size` (a literal) bytes on the stack."""

    def build(context, builder, signature, arguments):
        place = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), size.literal_value))
        place.align = SCRATCH_ALIGNMENT
        return builder.ptrtoint(place, ir.IntType(64))

    return types.int64(size), build


@intrinsic
def load_int64(context, address):
    def build(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.int64(address), build


@intrinsic
def copy_bytes(context, target, source, count):
    def build(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        target, source, count = arguments
        cgutils.raw_memcpy(builder, builder.inttoptr(target, byte), builder.inttoptr(source, byte), count, 1)
        return context.get_dummy_value()

    return types.void(target, source, count), build


@intrinsic(prefer_literal=True)
def copy_element(context, target, source, size):
    """One element of `size` (a literal) bytes."""
    element = ir.IntType(8 * size.literal_value)

    def build(context, builder, signature, arguments):
        target, source, _ = arguments
        value = builder.load(builder.inttoptr(source, element.as_pointer()), align=1)
        builder.store(value, builder.inttoptr(target, element.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(target, source, size), build


@intrinsic
def fence(context):
    """Makes non-temporal stores visible to other threads before whatever comes next."""

    def build(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


# Every kernel's arguments before the law's parameters; see `build_kernel`.
HEAD = (types.int64,) * 11


def build_kernel(kind: str, dtype: torch.dtype, form: str) -> Callable[..., None]:
    """The Python source of a kernel, still to be compiled.

    The elements to write are `runs`: stretches of `length` neighbours in the global tensor, `stride` bytes apart
    in memory. Positions count along all runs; a call fills those in [start, stop), so that threads can
    share a tensor at any cut. Where each run lies is told by a table of (size, index step, byte step) for each of
    the `outer` dimensions around it. `streaming` asks for stores that go around the cache.
    For `form` see `cpu.form_of`.
    """
    contiguous = form != "strided"
    columns = at_once() if form == "long" else COLUMNS
    write_block = block_writer(kind, dtype, columns)
    block_elements = block_size(WIDTHS[dtype]) * columns // COLUMNS  # of one or two blocks, that is
    size = dtype.itemsize
    scratch_bytes = block_elements * size

    def kernel(address, first, length, start, stop, stride, outer, table, seed, stream, streaming, parameters):
        spare = scratch(scratch_bytes)
        kept = -1  # the block that the scratch holds: short runs often share one
        position = start
        while position < stop:
            run = position // length
            offset = position - run * length
            left = min(length - offset, stop - position)
            position += left
            index = first + offset
            target = address + offset * stride
            for dimension in range(outer - 1, -1, -1):
                entry = table + 24 * dimension
                around = run // load_int64(entry)
                along = run - around * load_int64(entry)
                index += along * load_int64(entry + 8)
                target += along * load_int64(entry + 16)
                run = around
            block = index // block_elements
            skip = index - block * block_elements
            target -= skip * stride  # where the block's first element would lie
            aligned = streaming if target % SCRATCH_ALIGNMENT == 0 else 0
            while left > 0:
                count = min(block_elements - skip, left)
                # One call for both cases: the arithmetic stands in the machine code once.
                whole = contiguous and count == block_elements
                if whole or block != kept:
                    write_block(target if whole else spare, block, seed, stream, aligned if whole else 0, parameters)
                if not whole:
                    kept = block
                if contiguous:
                    if not whole:
                        copy_bytes(target + skip * size, spare + skip * size, count * size)
                else:
                    for k in range(skip, skip + count):
                        copy_element(target + k * stride, spare + k * size, size)
                target += block_elements * stride
                block += 1
                left -= count
                skip = 0
        if streaming:
            fence()

    kernel.__name__ = kernel.__qualname__ = native.kernel_name(kind, dtype, form)
    return kernel


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
        kind = ir.FunctionType(POINTER, [POINTER, POINTER.as_pointer(), SIZE])
        self.function = ir.Function(module, kind, symbol)
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

    def number(self, item: ir.Value, kind: Any) -> ir.Value:
        """A Python number as `kind`; whole ones modulo 2^64, so that seeds need no sign."""
        if kind == types.float64:
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

    def arguments(self, kinds: Sequence[Any]) -> list[ir.Value]:
        """The whole numbers of HEAD, then those of the tuple that follows them, of `kinds`."""
        _, items, count = self.function.args
        self.expect(count, len(HEAD) + 1)
        places = [self.builder.load(self.builder.gep(items, [SIZE(k)])) for k in range(len(HEAD) + 1)]
        self.expect(self.call("PyTuple_Size", places[-1]), len(kinds))
        places[-1:] = [self.call("PyTuple_GetItem", places[-1], SIZE(k)) for k in range(len(kinds))]
        return [self.number(item, kind) for item, kind in zip(places, (*HEAD, *kinds), strict=True)]

    def without_lock(self, wanted: ir.Value, emit: Callable[[], Any]) -> None:
        """What `emit` builds, with Python's global lock released around it where `wanted`."""
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


def entry_module(context: Any, described: Any, symbol: str, kinds: Sequence[Any]) -> ir.Module:
    """The module of a kernel's entry, to be linked with the kernel that Numba describes."""
    module = context.create_module(f"{symbol}.entry")
    kernel = ir.Function(
        module, context.call_conv.get_function_type(described.restype, described.argtypes), described.llvm_func_name
    )
    entry = Entry(module, symbol)
    values = entry.arguments(kinds)
    head, parameters = values[: len(HEAD)], values[len(HEAD) :]
    given = [*head, context.make_tuple(entry.builder, described.argtypes[-1], parameters)]
    start, stop = head[3:5]

    def draw() -> None:
        # Never inlined: Numba keeps the kernel itself too, and would compile its code twice.
        context.call_conv.call_function(
            entry.builder, kernel, described.restype, described.argtypes, given, attrs=("noinline",)
        )

    entry.without_lock(entry.builder.icmp_signed(">", entry.builder.sub(stop, start), LONG(LOCKED_UP_TO)), draw)
    entry.return_none()
    return module


# --- compiling ---------------------------------------------------------------------------------


def compiled_library(kind: str, dtype: torch.dtype, form: str, parameters: int) -> Any:
    """Numba's library of a kernel and its entry."""
    kinds = [types.int64 if k == 0 and kind in WHOLE_NUMBER_FIRST else types.float64 for k in range(parameters)]
    flags = Flags()
    flags.error_model = "numpy"
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    source = build_kernel(kind, dtype, form)
    context = cpu_target.target_context
    library = context.codegen().create_library(source.__name__)
    library.enable_object_caching()
    with global_compiler_lock:
        result = compile_extra(
            cpu_target.typing_context, context, source, (*HEAD, types.Tuple(kinds)), types.none, flags, {}, library
        )
        library.add_ir_module(entry_module(context, result.fndesc, native.symbol(source.__name__), kinds))
        library.finalize()
    return library


def compile_kernel(kind: str, dtype: torch.dtype, form: str, parameters: int) -> bytes:
    """A kernel's object code; `parameters` is how many the law takes.

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


def assembly(kind: str, dtype: torch.dtype, form: str, parameters: int) -> str:
    """A kernel's assembly, compiled anew: object code does not tell it."""
    return str(compiled_library(kind, dtype, form, parameters).get_asm_str())
