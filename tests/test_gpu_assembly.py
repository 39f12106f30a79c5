"""The GPU kernels' machine code: no spills, nothing shared, the widest stores, and no operation that nobody asked for.

Every kind in float32 for sm_90; a choice of them in other dtypes and for other targets. All in `slow` tests.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import benches
import pytest
import torch
from common import CASES, name_of

pytest.importorskip("triton.backends.nvidia", reason="needs Triton's compiler for CUDA")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from fastinit.kernels.arithmetic.bind import Arithmetic
from fastinit.kernels.contract import block_size, lanes_in_block, sample_lanes, width_of
from fastinit.kernels.dtypes import FORMATS
from fastinit.kernels.gpu import engine as gpu
from fastinit.kernels.gpu.engine import OUTER, Variant
from fastinit.laws import EXAMPLES, examples

sass = benches.load("sass")
if gpu.INTERPRETED:
    pytest.skip("Triton interprets: there is no machine code", allow_module_level=True)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KINDS = {(kind, dtype): len(p) for _, law, dtype in CASES for kind, p in [law.parameters(dtype)]}
VARIANTS = [Variant(kind, dtype, n, outer) for (kind, dtype), n in KINDS.items() for outer in (None, 0, OUTER)]
# A load for each parameter of an element is all that these may do besides.
EACH = [
    Variant(kind, dtype, len(values), 0, stored)
    for example in EXAMPLES.values()
    for dtype in example.dtypes
    for kind, values in [example.law.parameters(dtype)]
    for stored in (torch.float32, torch.float64)
    if example.by_element is not None and 8 * stored.itemsize <= width_of(kind, dtype)
]
VARIANTS += EACH
ONCE = Variant("truncated_central", torch.bfloat16, KINDS["truncated_central", torch.bfloat16], 3)
EVERYTHING = [(name, variant) for name in TARGETS for variant in VARIANTS]
# The usual kernel of each law, in the usual dtypes; a law of each group elsewhere, and in the other dtypes.
GROUPS = ("uniform", "normal", "truncated_wide")
USUAL = [
    (name, variant)
    for name, variant in EVERYTHING
    if variant == ONCE
    or (name == "sm_90" and variant.dtype is torch.float32 and variant.outer is None)
    or (name == "sm_90" and variant.dtype is torch.float32 and variant.outer == 0 and variant.kind in GROUPS)
    or (variant in EACH and name in ("sm_90", "gfx942") and variant.dtype is variant.stored is torch.float32)
    or (name == "sm_90" and variant.outer is None and variant.kind == "normal")
    or (variant.outer is None and variant.dtype is torch.bfloat16 and variant.kind in GROUPS)
]
# Memory of a block or of a thread's own, loads, and whatever lets threads wait for each other or pass values on.
FORBIDDEN = frozenset({
    "STL", "LDL", "STS", "LDS", "LDSM", "LDG", "LD", "BAR", "SHFL", "REDUX", "MATCH", "ATOM", "ATOMS", "ATOMG", "RED"
})  # fmt: skip
FORBIDDEN_AMD = re.compile(
    r"^\s+(s_barrier|scratch_|ds_|global_load|buffer_load|flat_|global_atomic|buffer_atomic)", re.M
)
# Scalars that gfx942 keeps in lanes of vector registers when it is out of scalar ones: no memory, one instruction each.
MOST_SCALAR_SPILLS = 128
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
# What a square root costs in fma: primitives.sqrt_32_cuda; an instruction of PTX; LLVM's expansions for AMD, of which
# the older one begins with v_rsq_f32, the newer one with v_sqrt_f32.
ROOT = {("cuda", 32): 5, ("cuda", 64): 0, ("hip", 32): 2 if VERSION >= (3, 7) else 5, ("hip", 64): 7}

# The same of a division: primitives.divide_32_cuda; an instruction of PTX; LLVM's expansions for AMD.
QUOTIENT = {("cuda", 32): 6, ("cuda", 64): 0, ("hip", 32): 5, ("hip", 64): 5}


def target_of(name: str) -> GPUTarget:
    """Skips the test where Triton cannot compile for it."""
    if name == "gfx942" and VERSION < (3, 5):
        pytest.skip("for AMD, Triton 3.4 needs ROCm's linker")
    return TARGETS[name]


def label(value: Any) -> str:
    return f"{value.kind}-{name_of(value.dtype)}-{value.outer}" if isinstance(value, Variant) else str(value)


def recompiled(variant: Variant, target: GPUTarget, **options: Any) -> CompiledKernel:
    """The kernel with other options than the engine's."""
    chosen = gpu.constants(variant, target)
    types = gpu.signature(variant) | dict.fromkeys(chosen, "constexpr")
    alignment = {(0,): [["tt.divisibility", gpu.STORE]]} if variant.outer is None else {}
    source = ASTSource(gpu.kernel_of(variant), types, chosen, alignment)
    own = {"num_warps": gpu.launch_of(target).warps, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=own | options)


# --- what the source asks for ------------------------------------------------------------------


class Node:
    """A value of the arithmetic that is only written down."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph


class Graph(dict[tuple[Any, ...], Node]):
    """The arithmetic's expressions, each of them once: as a compiler keeps them that computes nothing twice."""

    def node(self, *key: Any) -> Node:
        if key not in self:
            self[key] = Node(self)
        return self[key]

    def horner(self, x: Node, coefficients: Any) -> Node:
        total = self.node("fma", x, coefficients[0], coefficients[1])
        for coefficient in coefficients[2:]:
            total = self.node("fma", total, x, coefficient)
        return total

    def primitives(self) -> dict[str, Any]:
        names = ("u32", "i32", "real", "bits", "unbits", "negative", "fma", "sqrt", "where", "minimum", "maximum")
        names += ("divide", "ceil", "join")
        plain = {name: lambda *values, name=name: self.node(name, *values) for name in names}
        product = lambda *values: (self.node("high", *values), self.node("low", *values))  # noqa: E731
        return plain | {"horner": self.horner, "mulhilo": None, "product": product}


def operator(name: str) -> Any:
    return lambda self, other: self.graph.node(name, self, other)


for operation in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift"):
    setattr(Node, f"__{operation}__", operator(operation))
    setattr(Node, f"__r{operation}__", operator(f"r{operation}"))
for operation in ("lt", "le", "gt", "ge", "ne"):
    setattr(Node, f"__{operation}__", operator(operation))


def asked(variant: Variant, target: GPUTarget) -> int:
    """How many fma the arithmetic asks of a thread, square roots included."""
    graph, width = Graph(), width_of(variant.kind, variant.dtype)
    words = [graph.node("word", k) for k in range(4)]
    parameters = [graph.node("parameter", k) for k in range(variant.parameters)]
    sample_lanes(Arithmetic(graph.primitives(), width), variant.kind, words, parameters)
    operations = Counter(key[0] for key in graph)
    counters = elements(variant, target) // lanes_in_block(width)
    roots, quotients = ROOT[target.backend, width], QUOTIENT[target.backend, width]
    total = counters * (operations["fma"] + operations["sqrt"] * roots + operations["divide"] * quotients)
    # LLVM splits a float64 for AMD into two words of a whole number by one fma. (Of two constants it chooses itself.)
    splits = target.backend == "hip" and variant.kind == "geometric" and variant.dtype not in FORMATS
    return total + elements(variant, target) * splits


def elements(variant: Variant, target: GPUTarget) -> int:
    """How many elements a thread draws at a time."""
    threads = gpu.launch_of(target).warps * target.warp_size
    return gpu.tile_rows(variant, target) * block_size(width_of(variant.kind, variant.dtype)) // threads


# --- what the machine code does ----------------------------------------------------------------


def check_ptx(text: str, expected: int) -> None:
    """As many fma as asked for. All else says how it rounds, which forbids ptxas to contract it (PTX ISA, mul, add)."""
    arithmetic = re.findall(r"\b(?:fma|mad|mul|add|sub|div|sqrt)(?:\.\w+)*\.f(?:16|32|64)(?:x2)?\b", text)
    assert [operation for operation in arithmetic if ".rn" not in operation] == []
    assert packed(arithmetic, r"fma|mad", "x2") == expected


def packed(operations: list[str], names: str, twice: str) -> int:
    """How many of these operations there are, packed ones counted twice."""
    return sum(2 if twice in operation else 1 for operation in operations if re.match(names, operation))


def check_contraction(kernel: CompiledKernel, text: str, variant: Variant) -> None:
    """Neither LLVM nor ptxas made an fma, or unmade one; but ptxas expands divisions and float64's square roots."""
    if re.search(r"\b(?:div\.rn|sqrt\.rn\.f64)", kernel.asm["ptx"]) is None:
        opcodes = [instruction.name for instruction in sass.parse(text).instructions]
        ptx = re.findall(r"\b(?:fma|mul)\.rn\.f(?:32|64)(?:x2)?\b", kernel.asm["ptx"])
        for in_ptx, in_sass in (("fma", "FFMA|DFMA"), ("mul", "FMUL|DMUL")):
            assert packed(opcodes, in_sass, "2") == packed(ptx, in_ptx, "x2")


def check_resources(text: str, loads: bool = False) -> None:
    assert sass.resources(text)[1:] == (0, 0, 0)  # stack, shared, local
    names = {instruction.name for instruction in sass.parse(text).instructions}
    assert names & FORBIDDEN == ({"LDG"} if loads else set())


def check_stores(sizes: list[int], variant: Variant) -> None:
    """16 bytes a store; for eight bits 8, see `columns_a_thread`. They carry all that a thread draws."""
    assert set(sizes) == {8 if variant.dtype.itemsize == 1 else 16}


def check_cuda(kernel: CompiledKernel, variant: Variant, target: GPUTarget) -> None:
    text = sass.cuobjdump(kernel.asm["cubin"])
    check_resources(text, loads=variant in EACH)
    check_ptx(kernel.asm["ptx"], asked(variant, target))
    check_contraction(kernel, text, variant)
    sizes = sass.store_bytes(sass.parse(text).instructions)
    if variant.outer is None:
        check_stores(sizes, variant)
    assert sum(sizes) == elements(variant, target) * variant.dtype.itemsize


def check_amd_resources(text: str, loads: bool = False) -> None:
    found = dict(re.findall(r"^\s+\.(\w+(?:_fixed_size|_spill_count)): +(\d+)", text, re.M))
    scalars = int(found.pop("sgpr_spill_count"))
    assert found == {"group_segment_fixed_size": "0", "private_segment_fixed_size": "0", "vgpr_spill_count": "0"}
    assert scalars <= MOST_SCALAR_SPILLS
    assert set(FORBIDDEN_AMD.findall(text)) <= ({"global_load", "buffer_load"} if loads else set())


def check_amd_contraction(text: str, expected: int) -> None:
    """Packed ones count twice; v_mad and v_mac round twice or flush subnormals, and nobody asks for them."""
    operations = re.findall(r"^\s+(v_(?:pk_)?(?:fma|fmac|fmaak|fmamk|mad|mac)_f\w+)", text, re.M)
    assert [operation for operation in operations if re.match(r"v_ma[dc]_", operation)] == []
    assert packed(operations, "v_", "v_pk_") == expected


def amd_store_bytes(text: str) -> list[int]:
    widths = {"byte": 1, "byte_d16_hi": 1, "short": 2, "short_d16_hi": 2, "dword": 4, "dwordx2": 8, "dwordx4": 16}
    return [widths[width] for width in re.findall(r"^\s+(?:global|buffer)_store_(\w+)", text, re.M)]


def check_amd(kernel: CompiledKernel, variant: Variant, target: GPUTarget) -> None:
    text = kernel.asm["amdgcn"]
    check_amd_resources(text, loads=variant in EACH)
    check_amd_contraction(text, asked(variant, target))
    sizes = amd_store_bytes(text)
    if variant.outer is None:
        check_stores(sizes, variant)
    assert sum(sizes) == elements(variant, target) * variant.dtype.itemsize


def check(name: str, variant: Variant) -> None:
    target = target_of(name)
    kernel = gpu.compile_for(variant, target)
    assert kernel.metadata.shared == getattr(kernel.metadata, "global_scratch_size", 0) == 0  # AMD has none up to 3.6
    (check_cuda if target.backend == "cuda" else check_amd)(kernel, variant, target)


@pytest.mark.parametrize(("name", "variant"), USUAL, ids=label)
def test_machine_code(name, variant):
    check(name, variant)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), [case for case in EVERYTHING if case not in USUAL], ids=label)
def test_machine_code_of_all_the_rest(name, variant):
    check(name, variant)


def test_every_kind_is_compiled_in_every_dtype():
    kinds = {(law.parameters(dtype)[0], dtype) for _, law, dtype in examples()}
    assert kinds - {("uniform_tiny", torch.float64)} <= set(KINDS)  # which common.CASES says why it leaves out


# --- the checks can fail -----------------------------------------------------------------------

WIDE = Variant("truncated_wide", torch.float32, KINDS["truncated_wide", torch.float32], None)
WIDEST = WIDE._replace(dtype=torch.float8_e4m3fn)
NORMAL = Variant("normal", torch.float32, KINDS["normal", torch.float32], None)


@triton.jit
def product_and_sum(out, x):
    place = tl.arange(0, 128)
    tl.store(out + place, place.to(tl.float32) * x + 1.0)


@triton.jit
def sum_of_a_block(out, x):
    place = tl.arange(0, 128)
    tl.store(out, tl.sum(place.to(tl.float32) * x))


def compiled(function: Any, name: str, **options: Any) -> CompiledKernel:
    return triton.compile(ASTSource(function, {"out": "*fp32", "x": "fp32"}), target=target_of(name), options=options)


def test_a_spill_shows():
    kernel = recompiled(WIDE, TARGETS["sm_90"], maxnreg=32)
    text = sass.cuobjdump(kernel.asm["cubin"])
    assert sass.resources(text).local + sass.resources(text).stack > 0
    with pytest.raises(AssertionError):
        check_resources(text)


def test_a_spill_on_amd_shows():
    with pytest.raises(AssertionError):
        check_amd_resources(recompiled(WIDEST, target_of("gfx942"), waves_per_eu=8).asm["amdgcn"])


def test_narrow_stores_show():
    """The kernel that writes element by element, taken for the other one."""
    runs = NORMAL._replace(outer=0)
    kernel = gpu.compile_for(runs, TARGETS["sm_90"])
    sizes = sass.store_bytes(sass.parse(sass.cuobjdump(kernel.asm["cubin"])).instructions)
    assert set(sizes) == {4}
    with pytest.raises(AssertionError):
        check_stores(sizes, NORMAL)
    with pytest.raises(AssertionError):
        check_stores(amd_store_bytes(gpu.compile_for(runs, target_of("gfx942")).asm["amdgcn"]), NORMAL)


@pytest.mark.parametrize("name", TARGETS)
def test_a_contraction_shows(name):
    """x * y + 1, contracted where the compiler may, is an fma too many; and is none where it may not."""
    apart, fused = (compiled(product_and_sum, name, enable_fp_fusion=fusion) for fusion in (False, True))
    if name == "gfx942":
        check_amd_contraction(apart.asm["amdgcn"], 0)
        with pytest.raises(AssertionError):
            check_amd_contraction(fused.asm["amdgcn"], 0)
    else:
        check_ptx(apart.asm["ptx"], 0)
        with pytest.raises(AssertionError):
            check_ptx(fused.asm["ptx"], 0)


def test_leave_to_contract_shows():
    """The engine's own kernel, compiled with leave to contract: its products no longer say how they round."""
    target = TARGETS["sm_90"]
    with pytest.raises(AssertionError):
        check_ptx(recompiled(NORMAL, target, enable_fp_fusion=True).asm["ptx"], asked(NORMAL, target))


def test_a_contraction_by_ptxas_shows():
    """PTX of one kernel, machine code of another that has an fma more."""
    uniform = Variant("uniform", torch.float32, KINDS["uniform", torch.float32], 0)
    kernel, other = (gpu.compile_for(variant, TARGETS["sm_90"]) for variant in (uniform, NORMAL._replace(outer=0)))
    check_contraction(kernel, sass.cuobjdump(kernel.asm["cubin"]), uniform)
    with pytest.raises(AssertionError):
        check_contraction(kernel, sass.cuobjdump(other.asm["cubin"]), uniform)


def test_threads_that_share_show():
    with pytest.raises(AssertionError):
        check_resources(sass.cuobjdump(compiled(sum_of_a_block, "sm_90", enable_fp_fusion=False).asm["cubin"]))
    with pytest.raises(AssertionError):
        check_amd_resources(compiled(sum_of_a_block, "gfx942", enable_fp_fusion=False).asm["amdgcn"])


def test_the_graph_computes_nothing_twice():
    """What is asked for, by hand: Horner's rule with three coefficients is two; the same again is nothing more."""
    graph = Graph()
    x = graph.node("x")
    assert graph.horner(x, (1.0, 2.0, 3.0)) is graph.horner(x, (1.0, 2.0, 3.0))
    assert Counter(key[0] for key in graph) == {"x": 1, "fma": 2}
    assert (x * 2.0 + 1.0) is (x * 2.0 + 1.0)
    assert asked(Variant("uniform", torch.float32, 3, 0), TARGETS["sm_90"]) == 4
