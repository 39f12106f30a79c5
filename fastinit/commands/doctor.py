"""What fastinit finds on this machine: `fastinit doctor`.

Nothing here may fail because something is missing or broken: that is why it is run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import CONTRACT, __version__
from ..drawing import engines, flags
from ..kernels.contract import GPUS, Engine
from ..kernels.cpu import pages
from ..laws import examples

if TYPE_CHECKING:
    from rich.console import Console

# Of the CPU engine's kernels; a test checks it.
DEFAULT_MODEL = "a model of torch's layers in float32 takes 8: uniform, normal, words as a check, and what calls them"
# What of a processor's features the kernels can tell apart, by LLVM's names.
FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "neon", "sve")
# Vector registers by their names in assembly, the widest first; the last two are those of ARM.
REGISTERS = {
    "zmm": (r"%zmm\d+", "512 bits (AVX-512)"),
    "ymm": (r"%ymm\d+", "256 bits (AVX)"),
    "xmm": (r"%xmm\d+", "128 bits (SSE)"),
    "z": (r"\bz\d+\.[bhsd]", "scalable (SVE)"),
    "v": (r"\bv\d+\.\d*[bhsd]", "128 bits (NEON)"),
}


class Processor(NamedTuple):
    """A CPU as LLVM sees it; `fused` is whether it multiplies and adds in one step, None if unknown."""

    name: str
    features: tuple[str, ...]
    fused: bool | None


class Cache(NamedTuple):
    """The folders that compiled kernels are read from, the one of them that new ones are written to (None where none
    can be), why others are not used, and what lies in those that are read."""

    reading: tuple[Path, ...]
    writing: Path | None
    refused: dict[Path, str]
    files: int
    size: int


Facts = list[tuple[str, str]]


def examine(console: Console) -> None:
    """Print everything; hints on what makes drawing slow come last."""
    cpu, processor = processor_problem(), processor_found()
    cache = cache_found() if cpu is None else None
    section(console, "versions", versions())
    section(console, "engines", engine_facts())
    section(console, "GPUs", gpu_facts())
    section(console, "processor", processor_facts(processor, cpu))
    section(console, "memory and settings", setting_facts(cache))
    found = hints(cpu, processor, cache)
    console.print("[bold]hints[/bold]")
    for hint in found or ["nothing here slows fastinit down"]:
        console.print(f"  [{'yellow' if found else 'green'}]*[/] {hint}", highlight=False)


def section(console: Console, title: str, facts: Facts) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{title}[/bold]")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=20, style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(f"  {name}", escape(value))
    console.print(table)
    console.print()


# --- facts -------------------------------------------------------------------------------------


def versions() -> Facts:
    return [
        ("fastinit", f"{__version__} (stream contract {CONTRACT})"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("numba", numba_version()),
        ("triton", installed("triton") or "none"),
    ]


def numba_version() -> str:
    """Numba's version, or why it cannot be imported."""
    try:
        return str(importlib.import_module("numba").__version__)
    except Exception as error:  # a broken installation can raise anything
        return f"does not work: {type(error).__name__}: {error}"


def compiler_off() -> bool:
    """Whether Numba is there, and told to compile nothing."""
    try:
        return bool(importlib.import_module("numba").config.DISABLE_JIT)
    except Exception:  # a broken installation can raise anything
        return False


def installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine_facts() -> Facts:
    facts = [(name, state(engines.load(name))) for name in flags.ENGINES]
    return [*facts, ("CPU tensors", who_serves())]


def state(engine: Engine | str) -> str:
    if isinstance(engine, str):
        return f"does not work: {engine}"
    return "loads; there is no GPU here to run it" if engine.name == "gpu" and not gpus() else "works"


def gpus() -> list[torch.device]:
    return [
        torch.device(device_type, index)
        for device_type in GPUS
        if (module := getattr(torch, device_type, None)) is not None and module.is_available()
        for index in range(module.device_count())
    ]


def gpu_facts() -> Facts:
    """What each GPU is, and what the engine's trial found there: every law in every dtype against the reference.

    Takes a minute the first time, for the kernels to be compiled.
    """
    facts = []
    for device in gpus():
        try:
            name = getattr(torch, device.type).get_device_name(device)
            wanted = [(dtype, law.parameters(dtype)) for _, law, dtype in examples()]
            found = {why for dtype, law in wanted if (why := engines.problem(device, dtype, law))}
            facts.append((str(device), f"{name}: {'; '.join(sorted(found)) or 'all laws give the right bits'}"))
        except Exception as error:  # a broken device can raise anything
            facts.append((str(device), f"does not answer: {type(error).__name__}: {error}"))
    return facts or [("none", "torch sees no GPU")]


def who_serves() -> str:
    """Who draws into a CPU tensor when a call says nothing about it."""
    if flags.default is False:
        return "torch.nn.init, because FASTINIT=0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the eager engine is slow: a hint says so
            return f"drawn by the {engines.choose(torch.device('cpu'), torch.float32, False).name} engine"
    except RuntimeError as error:
        return f"nobody: {error}"


def processor_problem() -> str | None:
    """Why the CPU engine does not work; None if it does."""
    engine = engines.load("cpu")
    return engine if isinstance(engine, str) else None


def processor_found() -> Processor:
    """LLVM's opinion of this CPU, or, without LLVM, no more than its name."""
    machine = platform.machine().lower()
    arm = machine in ("arm64", "aarch64")
    try:
        from llvmlite import binding

        features = binding.get_host_cpu_features()
        known = tuple(name for name in FEATURES if features.get(name))
        return Processor(binding.get_host_cpu_name(), known, arm or bool(features.get("fma")))
    except Exception:  # LLVM missing or broken, or a CPU that it has no list for
        return Processor(platform.processor() or machine, (), True if arm else None)


def processor_facts(processor: Processor, problem: str | None) -> Facts:
    return [
        ("name", processor.name),
        ("features", " ".join(processor.features) or "unknown"),
        ("kernels' vectors", vector_width() if problem is None else "none: the CPU engine does not work"),
        ("threads", f"{torch.get_num_threads()} used by torch and fastinit, {processors()} processors"),
    ]


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def vector_width() -> str:
    """The vector registers that the float32 normal kernel uses, read in its assembly.

    Object code tells no assembly, so the kernel is compiled anew (some 0.5 s).
    """
    try:
        from ..kernels.cpu.compile import assembly

        return widest(assembly("normal", torch.float32, "long", 2))
    except Exception as error:  # the report goes on
        return f"unknown: {type(error).__name__}: {error}"


def widest(assembly: str) -> str:
    """The kind of vector register that most of the code works in."""
    uses = Counter({register: len(re.findall(pattern, assembly)) for register, (pattern, _) in REGISTERS.items()})
    register, count = uses.most_common(1)[0]
    if count == 0:
        return "none found in the assembly of the float32 normal kernel"
    return f"{REGISTERS[register][1]}, read in the assembly of the float32 normal kernel"


def cache_found() -> Cache:
    """Only with a CPU engine that works: the cache's module needs LLVM."""
    from ..kernels.cpu.cache import places

    reading, writing, refused = places()
    sizes = []
    for folder in reading:
        with contextlib.suppress(OSError):
            sizes += [(folder.path / name).stat().st_size for name in folder.names() if name.endswith(".kernel")]
    written = None if writing is None else writing.path
    return Cache(tuple(folder.path for folder in reading), written, refused, len(sizes), sum(sizes))


def kernels_on_disk() -> str:
    """How many of the kernels of this version, for this CPU, need no compiling."""
    from ..kernels.cpu.loading import on_disk

    wanted = engines.every_kernel()
    ready = sum(on_disk(kernel) is not None for kernel in wanted)
    return f"{ready} of {len(wanted)} on disk; {DEFAULT_MODEL}"


def setting_facts(cache: Cache | None) -> Facts:
    environment = os.environ.get("FASTINIT")
    refusal = execution_refused()
    return [
        *cache_facts(cache),
        ("kernels", "none" if cache is None else kernels_on_disk()),
        ("writing memory", writing_speed()),
        ("executable memory", "allowed" if refusal is None else f"refused: {refusal}"),
        ("huge pages", pages.setting()),
        ("FASTINIT", "not set" if environment is None else repr(environment)),
    ]


def cache_facts(cache: Cache | None) -> Facts:
    if cache is None:
        return [("kernel cache", "not used: the CPU engine does not work")]
    read = f"{', '.join(map(str, cache.reading))}: {cache.files} kernels, {cache.size:,} bytes"
    written = "not kept: they are compiled in each process" if cache.writing is None else f"kept in {cache.writing}"
    return [
        ("kernel cache", read if cache.reading else "no folder can be used"),
        ("new kernels", written),
        *(("not used", f"{path}: {reason}") for path, reason in cache.refused.items()),
    ]


def writing_speed() -> str:
    try:
        from .limit import bandwidth

        return bandwidth()
    except Exception as error:  # LLVM missing or broken, or too little memory
        return f"unknown: {type(error).__name__}: {error}"


def execution_refused() -> str | None:
    """What the system says where this process may not execute what it writes to memory; None where it may."""
    try:
        from llvmlite.binding import check_jit_execution

        check_jit_execution()
    except OSError as error:
        return str(error)
    except Exception:  # LLVM missing or broken: that is said elsewhere
        return None
    return None


# --- hints -------------------------------------------------------------------------------------


def hints(problem: str | None, processor: Processor, cache: Cache | None) -> list[str]:
    """What makes drawing slow here, and what to do about it."""
    threads, available = torch.get_num_threads(), processors()
    found = []
    if flags.default is False:
        found.append("FASTINIT=0 leaves everything to torch.nn.init: unset it")
    if compiler_off():
        found.append(
            "NUMBA_DISABLE_JIT=1 turns off the compiler: where a kernel is not on disk, plain torch operations draw, "
            "the same bits far slower; unset it"
        )
    elif problem is not None:
        cure = "pip install --force-reinstall numba"
        if execution_refused() is not None:
            cure = "let the process execute what it writes to memory (in a systemd unit: MemoryDenyWriteExecute=no)"
        found.append(f"the CPU engine does not work, so plain torch operations draw, the same bits far slower: {cure}")
    if gpus() and isinstance(gpu := engines.load("gpu"), str):
        found.append(f"the GPU engine does not work, so plain torch operations draw there: {gpu}")
    if processor.fused is False:
        found.append("the processor has no fused multiply-add (FMA): each one becomes a call of a library")
    if threads == 1 < available:
        found.append(f"one thread on {available} processors: torch.set_num_threads({available}), or OMP_NUM_THREADS")
    if threads > available:
        found.append(
            f"{threads} threads on {available} processors get in each other's way: torch.set_num_threads({available})"
        )
    if cache is not None:
        found += cache_hints(cache)
    if pages.setting() == "never":
        found.append(
            "huge pages are off: filling fresh memory costs several times as much as drawing; "
            f"write madvise to {pages.SETTING}"
        )
    return found


def cache_hints(cache: Cache) -> list[str]:
    found = []
    chosen = os.environ.get("FASTINIT_CACHE_DIR")
    if chosen and (reason := cache.refused.get(Path(os.path.realpath(chosen)))):
        found.append(f"FASTINIT_CACHE_DIR is not used: {reason}")
    if cache.writing is None:
        found.append(
            "no cache folder can be written: each process spends some 0.5 s on each kernel that is not there yet; "
            "set FASTINIT_CACHE_DIR to a folder that only you can write"
        )
    elif cache.files == 0:
        found.append(
            "the kernel cache is empty: the first call of each law compiles for some 0.5 s; run fastinit warmup"
        )
    return found
