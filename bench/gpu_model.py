"""What the GPU kernels should cost, by a static model: `python -m bench.gpu_model [--arch 80 90 100] [--json file]`.

**Modelled, not measured.** Compiles the kernel for whole tiles of each law and dtype, counts the instructions of its
loop by the pipe that executes them, and divides by what each pipe does in a clock. The slowest pipe, the issue of
instructions or the writing of memory is the bound. Latencies, register banks and what stands around the loop are left
out, so that a real device can only be slower. Ends with the project's own targets; exit status 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget

from fastinit.kernels.arithmetic.coefficients import FAR_BELOW
from fastinit.kernels.contract import block_size, width_of
from fastinit.kernels.gpu import engine as gpu
from fastinit.laws import Law, examples

from . import sass

# --- the machines ------------------------------------------------------------------------------
#
# Sources. Guide: CUDA C++ Programming Guide, "Arithmetic Instructions" (since release 13 in the Best Practices Guide,
# "Throughput of Native Arithmetic Instructions"), as others quote it. Nsight: Nsight Compute's Profiling Guide,
# "Pipelines". Bench: others' microbenchmarks on github.com, of sm_80 and sm_90 in cicuvc/nvidia-sass-document, of
# sm_103 in ademeure/QuickRunCUDA. Assumed: nobody's number. Where one architecture was measured, the others are
# assumed to be like it.

# Pipe -> opcodes, with as many modifiers as matter.
PIPES: dict[str, str] = {
    # Guide, Nsight. sm_90 has two such pipes (128 lanes), sm_80 one (64). HFMA2 and HADD2, on sm_80 elsewhere: assumed.
    "fma": "FFMA FMUL FADD HFMA2 HADD2 FSWZADD FFMA2 FMUL2 FADD2",
    # Guide, Nsight: integer products run on one of the two, at half rate.
    "imad": "IMAD IDP IMUL IMAD.WIDE IMAD.HI",
    # Guide, Nsight: logic, integer additions, shifts, comparisons. Bench (all): FMNMX, SEL, FSEL, PRMT, MOV, P2R;
    # (sm_80, sm_103) F2FP; (sm_103) I2FP. The Guide has FMNMX twice as fast on sm_100. Assumed: VIADD, R2UR, CS2R.
    "alu": """LOP3 LOP PLOP3 IADD IADD3 VIADD LEA SHF SHL SHR SGXT BMSK PRMT ISETP FSETP FSET SEL FSEL FMNMX FMNMX3
        IMNMX VIMNMX VIMNMX3 IABS MOV P2R R2P R2UR CS2R I2FP F2FP F2IP I2I I2IP VOTE VOTEU""",
    # Guide: 16 a clock for special functions and for conversions to and from 64 bits; Nsight. sm_80 has no I2FP, so
    # that every word costs an I2F here.
    "xu": "MUFU I2F F2I F2F FRND POPC FLO BREV",
    "fp64": "DFMA DADD DMUL DSETP DMNMX",  # Guide, Nsight
    "lsu": "STG ST LDG LD",  # Nsight
    # Nsight: one result for a warp. Bench (sm_103): two instructions of a warp in a clock; assumed for the others.
    "uniform": """UIADD3 UIMAD ULEA ULOP3 UMOV USEL USHF UISETP UPLOP3 USGXT UPRMT UIADD UVIADD UFLO UPOPC UP2UR
        UF2FP UCLEA""",
    "constant": "LDC ULDC LDCU S2R S2UR",  # Bench (sm_103): the address divergence unit, half an instruction a clock
    "control": "BRA EXIT BSSY BSYNC NOP CALL RET WARPSYNC JMP YIELD",  # assumed: nothing but their issue
}
# Opcodes that hold their pipe for longer than one pass.
PASSES: dict[str, int] = {
    # Two results each. Bench (sm_103): 64 instructions a clock, half of FFMA's.
    "FFMA2": 2, "FMUL2": 2, "FADD2": 2,
    # Products of 64 bits are not in the Guide. Bench (sm_80, sm_90; on sm_103 only IMAD.HI): 32 a clock, half as many
    # as IMAD.
    "IMAD.WIDE": 2, "IMAD.HI": 2,
}  # fmt: skip
# Results a clock and multiprocessor. Issue: four schedulers, an instruction of 32 threads each (whitepapers). `fma`
# is what float and integer products share. lsu: 128 bytes (A100 whitepaper, for loads from L1; assumed for stores).
EVERYWHERE = {"issue": 128, "imad": 64, "alu": 64, "xu": 16, "lsu": 32, "uniform": 64, "constant": 16}
RATES: dict[int, dict[str, int]] = {
    80: EVERYWHERE | {"fma": 64, "fp64": 32},
    90: EVERYWHERE | {"fma": 128, "fp64": 64},
    100: EVERYWHERE | {"fma": 128, "fp64": 64},
}
# Bench found that on these the integer pipes take turns, as if they were one of 64 lanes; NVIDIA's words are that they
# are two. The model believes NVIDIA, and says what the other would mean ("if shared").
SHARED = frozenset({90})
# Programming Guide, "Technical Specifications per Compute Capability": the same on all three.
REGISTERS, MOST_WARPS, MOST_BLOCKS, GRANULE = 65536, 64, 32, 256  # GRANULE: registers that a warp is given at a time


class Device(NamedTuple):
    name: str
    arch: int
    multiprocessors: int
    ghz: float
    gigabytes: float  # a second to and from memory: the data sheet's peak, which nothing quite reaches


# NVIDIA's data sheets; clocks are the greatest boost, which a power limit may not allow (H100, H200: 67 TFLOPS of
# float32 are 132 x 128 x 2 at 1.98 GHz). B200's multiprocessors and clock are those of OpenXLA's
# cuda_core_info_table.cc.
DEVICES = (
    Device("A100-80GB-SXM", 80, 108, 1.41, 2039),
    Device("H100-SXM", 90, 132, 1.98, 3350),
    Device("H200-SXM", 90, 132, 1.98, 4800),
    Device("B200", 100, 148, 1.965, 8000),
)

# --- what is modelled --------------------------------------------------------------------------

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64)
# The first law of each kind; where its dtype makes another kind of it, it is left out.
EVERY = {law.parameters(dtype)[0]: law for _, law, dtype in reversed([*examples()])}
WORDS = {"words": EVERY.pop("words")}
LAWS: dict[str, Law] = dict(reversed(EVERY.items()))
# Instructions an element at most, on sm_90 in float32: what an H100 has time for while it writes 4 bytes is 35 (128 a
# clock on 132 multiprocessors at 1.755 GHz, 3.35 TB/s); the other two are what a first version needed, less a tenth.
TARGETS = {"uniform": 15, "normal": 36, "truncated_central": 48}
TARGET_ARCH = 90
WIDTH = 160  # of a report that goes to a file


class Counts(NamedTuple):
    """The loop of one kernel. A thread draws `elements` in one turn of it; `opcodes` are one turn's."""

    variant: gpu.Variant
    target: GPUTarget
    elements: int
    opcodes: Counter[str]
    stores: tuple[int, ...]
    prologue: int
    resources: sass.Resources
    block_warps: int

    @property
    def instructions(self) -> float:
        """Issue slots an element."""
        return self.opcodes.total() / self.elements

    @property
    def pipes(self) -> dict[str, float]:
        """Passes an element through each pipe."""
        return {pipe: passes / self.elements for pipe, passes in usage(self.opcodes, self.stores).items()}

    @property
    def warps(self) -> int:
        """Resident on a multiprocessor."""
        granules = -(-self.resources.registers * self.target.warp_size // GRANULE)
        by_registers = REGISTERS // (granules * GRANULE * self.block_warps)
        return int(min(by_registers, MOST_WARPS // self.block_warps, MOST_BLOCKS) * self.block_warps)


class Prediction(NamedTuple):
    elements_per_ns: float
    bound: str  # memory, issue or a pipe
    share: float  # of the elements that could be written in the time


def place(opcode: str) -> tuple[str, str]:
    """The pipe of an opcode, and the entry that says so: the one with the most modifiers. `ValueError` without one."""
    parts = opcode.split(".")
    for length in range(len(parts), 0, -1):
        entry = ".".join(parts[:length])
        for pipe, opcodes in PIPES.items():
            if entry in opcodes.split():
                return pipe, entry
    raise ValueError(f"no pipe is known for {opcode}; see PIPES in bench/gpu_model.py")


def usage(opcodes: Mapping[str, int], stores: Sequence[int]) -> dict[str, float]:
    """Passes through each pipe; `fma` counts the integer products, which share it."""
    used: dict[str, float] = dict.fromkeys(("issue", *PIPES), 0.0)
    for opcode, times in opcodes.items():
        pipe, entry = place(opcode)
        used["issue"] += times
        used[pipe] += times * PASSES.get(entry, 1)
    used["fma"] += used["imad"]
    used["lsu"] = sum(max(1.0, size / 4) for size in stores)  # 32 threads' bytes, 128 at a time
    return used


def target_of(arch: int) -> GPUTarget:
    return GPUTarget("cuda", arch, 32)


def variants(dtype: torch.dtype) -> dict[str, gpu.Variant]:
    """The kernels for whole tiles of a dtype, by kind."""
    laws = LAWS if dtype is not torch.int32 else WORDS
    found = {kind: law.parameters(dtype) for kind, law in laws.items()}
    return {
        kind: gpu.Variant(kind, dtype, len(parameters), None)
        for kind, (made, parameters) in found.items()
        if made == kind
    }


def count(variant: gpu.Variant, target: GPUTarget) -> Counts:
    """Compile, disassemble and count; raises `ValueError` where the code is not what the model understands."""
    launch = gpu.launch_of(target)
    block = block_size(width_of(variant.kind, variant.dtype))
    elements = gpu.tile_rows(variant, target) * block // (launch.warps * target.warp_size)
    text = sass.cuobjdump(gpu.compile_for(variant, target).asm["cubin"])
    return count_text(text, variant, target, elements)


def count_text(text: str, variant: gpu.Variant, target: GPUTarget, elements: int) -> Counts:
    """The same from the disassembly. A turn of the loop must write what a thread draws, neither more nor less."""
    code = sass.parse(text)
    body = sass.loop(code)
    stores = tuple(sass.store_bytes(body))
    if sum(stores) != elements * variant.dtype.itemsize:
        raise ValueError(f"{elements} elements of {variant.dtype} a thread, but the loop writes {sum(stores)} bytes")
    opcodes = Counter(instruction.opcode for instruction in body)
    usage(opcodes, stores)  # raises for an unknown opcode
    prologue = sum(instruction.address < body[0].address for instruction in code.instructions)
    warps = gpu.launch_of(target).warps
    return Counts(variant, target, elements, opcodes, stores, prologue, sass.resources(text), warps)


def predict(counts: Counts, device: Device, shared: bool = False) -> Prediction:
    """How fast a device fills memory, if the slowest of its parts never waits; see SHARED."""
    rates, used = RATES[device.arch], counts.pipes
    clocks = {pipe: passes / rates[pipe] for pipe, passes in used.items() if pipe in rates}
    if shared:
        clocks["alu+imad"] = (used["alu"] + used["imad"]) / rates["alu"]
    slowest = max(clocks, key=clocks.__getitem__)
    computed = device.multiprocessors * device.ghz / clocks[slowest]
    written = device.gigabytes / counts.variant.dtype.itemsize
    return Prediction(
        min(computed, written), "memory" if written <= computed else slowest, min(1.0, computed / written)
    )


# --- the report --------------------------------------------------------------------------------


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").removesuffix("_e4m3fn")


def record(counts: Counts) -> dict[str, Any]:
    """One kernel, for --json."""
    devices, arch = {}, counts.target.arch
    for device in DEVICES:
        if device.arch == arch:
            made, least = predict(counts, device), predict(counts, device, shared=arch in SHARED)
            devices[device.name] = {
                "ns_an_element": 1 / made.elements_per_ns,
                "bound": made.bound,
                "share_of_write_bandwidth": made.share,
                "share_if_integer_pipes_are_shared": least.share,
            }
    return {
        "kind": counts.variant.kind,
        "dtype": name(counts.variant.dtype),
        "arch": arch,
        "instructions_an_element": counts.instructions,
        "passes_an_element": counts.pipes,
        "elements_a_turn": counts.elements,
        "opcodes_a_turn": dict(counts.opcodes.most_common()),
        "prologue": counts.prologue,
        "resources": counts.resources._asdict(),
        "resident_warps": counts.warps,
        "store_bytes": sorted(set(counts.stores)),
        "modelled": devices,
    }


def code_table(arch: int, all_counts: Sequence[Counts]) -> Any:
    from rich.table import Table

    table = Table(title=f"sm_{arch}: passes of the loop an element through each pipe, and what the kernel needs")
    table.add_column("law", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    columns = {"issue": "all", "fma": "fma+imad"} | {p: p for p in ("imad", "alu", "xu", "fp64", "lsu", "uniform")}
    for header in (*columns.values(), "other", "registers", "warps", "local", "prologue", "store"):
        table.add_column(header, justify="right")
    for counts in all_counts:
        used, needed = counts.pipes, counts.resources
        used["other"] = used["constant"] + used["control"]
        cells = [f"{used[pipe]:.1f}" if used[pipe] >= 0.05 else "" for pipe in (*columns, "other")]
        local = needed.stack + needed.local
        cells += [str(needed.registers), str(counts.warps), f"[red]{local}" if local else "0", str(counts.prologue)]
        cells.append(", ".join(f"{size} B" for size in sorted(set(counts.stores))))
        add_row(table, counts, all_counts, cells)
    return table


def speed_table(arch: int, all_counts: Sequence[Counts]) -> Any:
    from rich.table import Table

    table = Table(title=f"sm_{arch}: modelled, not measured")
    table.add_column("law", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    devices = [device for device in DEVICES if device.arch == arch]
    for device in devices:
        table.add_column(f"{device.name}\nns an element", justify="right")
        table.add_column("elements\na ns", justify="right")
        table.add_column("bound by")
        table.add_column("of write\nbandwidth", justify="right")
        if arch in SHARED:
            table.add_column("if\nshared", justify="right")
    for counts in all_counts:
        cells = []
        for device in devices:
            made = predict(counts, device)
            cells += [f"{1 / made.elements_per_ns:.5f}", f"{made.elements_per_ns:.0f}", made.bound, f"{made.share:.0%}"]
            if arch in SHARED:
                cells.append(f"{predict(counts, device, shared=True).share:.0%}")
        add_row(table, counts, all_counts, cells)
    return table


def add_row(table: Any, counts: Counts, all_counts: Sequence[Counts], cells: Sequence[str]) -> None:
    """A row, and a line below the last one of a dtype."""
    dtype = counts.variant.dtype
    last = [other for other in all_counts if other.variant.dtype is dtype][-1] is counts
    table.add_row(counts.variant.kind, name(dtype), *cells, end_section=last)


def most_used(opcodes: Mapping[str, float], least: float = 1.0) -> str:
    """The opcodes of which there are at least so many an element, without modifiers that change no pipe."""
    by_entry: Counter[str] = Counter()
    for opcode, times in opcodes.items():
        by_entry[place(opcode)[1]] += times  # type: ignore[assignment]
    return ", ".join(f"{times:.1f} {entry}" for entry, times in by_entry.most_common() if times >= least)


def an_element(counts: Counts) -> dict[str, float]:
    return {opcode: times / counts.elements for opcode, times in counts.opcodes.items()}


def explanations(found: Mapping[tuple[str, torch.dtype], Counts]) -> list[str]:
    """What stands in the way of the laws that have no target, told by their counts."""
    central, wide = (found[kind, torch.float32] for kind in ("truncated_central", "truncated_wide"))
    rounded, narrow = (found["uniform", dtype] for dtype in (torch.bfloat16, torch.float8_e4m3fn))
    far = 2 * FAR_BELOW
    more = Counter(an_element(narrow))
    more.subtract(an_element(rounded))
    beyond = (wide.instructions - central.instructions, narrow.instructions - rounded.instructions)
    return [
        f"truncated_wide, float32: {wide.instructions:.1f}, {beyond[0]:.1f} more than truncated_central. Every element "
        "pays for both polynomials of the quantile and both sums of the logarithm. Of a normal's draws "
        f"{far:.1%} need the far ones, of its warps {1 - (1 - far) ** 32:.0%}, but Triton branches on scalars alone "
        f"({most_used(an_element(wide))}).",
        f"uniform, float8: {narrow.instructions:.1f}, {beyond[1]:.1f} more than bfloat16, for which there is an "
        "instruction that rounds. Here integers do, and select among what is normal, subnormal, too great and nan "
        f"(more by {most_used(more, 0.4)}).",
    ]


def main() -> int:
    from rich.console import Console
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m bench.gpu_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(RATES), default=sorted(RATES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts and predictions there")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    wanted = [variant for dtype in (*DTYPES, torch.int32) for variant in variants(dtype).values()]
    jobs = [(arch, variant) for arch in sorted({*arguments.arch, TARGET_ARCH}) for variant in wanted]
    found: dict[int, list[Counts]] = {arch: [] for arch, _ in jobs}
    for arch, variant in tqdm(jobs, desc="compiling", delay=2, disable=not sys.stderr.isatty()):
        found[arch].append(count(variant, target_of(arch)))
    console.print("[bold]fastinit's GPU kernels: modelled from their machine code, not measured[/bold]\n")
    for arch in arguments.arch:
        console.print(code_table(arch, found[arch]), speed_table(arch, found[arch]), "", sep="\n")
    if arguments.json:
        chosen = [record(counts) for arch in arguments.arch for counts in found[arch]]
        arguments.json.write_text(json.dumps({"modelled, not measured": chosen}, indent=1) + "\n")
    by_name = {(counts.variant.kind, counts.variant.dtype): counts for counts in found[TARGET_ARCH]}
    missed = 0
    for kind, most in TARGETS.items():
        got = by_name[kind, torch.float32].instructions
        missed += got > most
        colour, verdict = ("red", "missed") if got > most else ("green", "met")
        console.print(
            f"[{colour}]{kind}, float32, sm_{TARGET_ARCH}: {got:.2f} instructions an element, at most {most}: {verdict}"
        )
    for line in explanations(by_name):
        console.print(line, style="dim", soft_wrap=True)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
