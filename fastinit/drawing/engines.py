"""The engines that work here, loaded when they are first asked for, and which of them draws into a tensor."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

import torch

from ..kernels.contract import GPUS, Draw, Engine, KernelMissing, setting_up, width_of
from ..kernels.cpu.forms import CONSTANT, EACH, ENTRIES, FORMS, STEPS, Kernel
from ..kernels.dtypes import name_of
from ..kernels.staged import StagedEngine
from ..laws import BY_NAME, Parameters
from .flags import forced_engine
from .tell import PACKAGE, warn_once

if TYPE_CHECKING:
    from ..kernels.gpu.engine import GpuEngine

# The module of `fastinit.kernels` that each engine is in, and its class.
CLASSES = {
    "reference": ("plain.reference", "ReferenceEngine"),
    "cpu": ("cpu.engine", "CpuEngine"),
    "gpu": ("gpu.engine", "GpuEngine"),
    "eager": ("plain.eager", "EagerEngine"),
}
# What an engine must draw before it is trusted: Philox of counter 0 and key 0 (Random123's known answers).
KNOWN_WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@functools.cache
def load(name: str) -> Engine | str:
    """The engine, or the reason why it does not work here."""
    try:
        module, made = CLASSES[name]
        with setting_up.lock:
            engine: Engine = getattr(importlib.import_module(f"{PACKAGE}.kernels.{module}"), made)()
        if engine.why_not(torch.device("cpu"), torch.int32) is None:
            words = torch.empty(64, dtype=torch.int32, device="cpu")
            engine.fill(words, Draw("words", (), 0, 0), 0, None)
            drawn = tuple(word & 0xFFFFFFFF for word in words[::16].tolist())
            if drawn != KNOWN_WORDS:
                return f"its generator gave {drawn}, not the known answer {KNOWN_WORDS}"
        return engine
    except KernelMissing as error:
        return str(error)
    except Exception as error:  # a broken installation can raise anything
        return f"{type(error).__name__}: {error}"


def every_kernel(laws: Collection[str] | None = None) -> list[Kernel]:
    """Kind, output dtype, form and number of parameters of the kernels that these laws, or all, can ask for on the CPU.

    With those that Python calls; under `words` those that make permutations and categories, too.
    """
    laws = laws or BY_NAME
    wanted: dict[Kernel, None] = {}  # in order, each once
    for example in (one for law in laws for one in BY_NAME[law].EXAMPLES.values()):
        for dtype in example.dtypes:
            kind, values = example.law.parameters(dtype)
            each = [form for stored, form in EACH.items() if stored.itemsize * 8 <= width_of(kind, dtype)]
            forms = [*FORMS, *(each if example.by_element else ())]
            wanted |= {(kind, dtype, form, len(values)): None for form in forms}
    others = (*ENTRIES, CONSTANT, *STEPS) if "words" in laws else (*ENTRIES, CONSTANT)
    return [*wanted, *(("words", torch.int64, form, 0) for form in others)]


# What the GPU engine was found to do, by device, law and dtype: why it must not be trusted, or None.
trials: dict[tuple[str, str, torch.dtype, bool], str | None] = {}


def trial(
    engine: Engine, device: torch.device, dtype: torch.dtype, law: Parameters, by_element: bool = False
) -> str | None:
    """Why the GPU engine must not draw this law on this device, found out once: it is compared with the reference.

    Nobody has run its kernels on every GPU. A few thousand elements, some milliseconds after the kernels are
    compiled; it waits for the device, and so is put off while a graph is being captured.
    """
    kind, parameters = law
    place = (str(device), kind, dtype, by_element)
    if place in trials:
        return trials[place]
    reference = load("reference")
    if isinstance(reference, str):
        return reference
    draw = Draw(kind, parameters, 0x243F6A8885A308D3, 0x13198A2E03707344)
    try:
        if capturing(device):
            return None
        drawn, first = cast("GpuEngine", engine).sample(device, dtype, draw, by_element)
        expected = torch.empty(drawn.shape, dtype=dtype, device="cpu")
        reference.fill(expected, draw, first, None)
        same = torch.equal(drawn.cpu().view(torch.uint8), expected.view(torch.uint8))
        form = "kernel by element" if by_element else "kernel"
        wrong = f"its {kind} {form} for {name_of(dtype)} gave other bits on {device} than the reference; "
        trials[place] = None if same else wrong + "please report this with what `fastinit doctor` prints"
    except torch.OutOfMemoryError as error:  # the next time there may be room
        return str(error)
    except Exception as error:  # a compiler or a driver can raise anything
        trials[place] = f"{type(error).__name__}: {error}"
    return trials[place]


def was_found_right(device: torch.device, dtype: torch.dtype, law: Parameters) -> bool:
    """Whether a trial of this law on this device is over, and went well."""
    return trials.get((str(device), law[0], dtype, False), "no trial yet") is None


def capturing(device: torch.device) -> bool:
    """Whether the device's current stream records a graph instead of running."""
    module: Any = getattr(torch, device.type)
    return hasattr(module, "is_current_stream_capturing") and bool(module.is_current_stream_capturing())


def problem(device: torch.device, dtype: torch.dtype, law: Parameters | None, by_element: bool = False) -> str | None:
    """Why no compiled engine draws on this device; None if one does."""
    if device.type not in ("cpu", *GPUS):
        return f"there is no compiled engine for {device.type} tensors"
    engine = load("cpu" if device.type == "cpu" else "gpu")
    if isinstance(engine, str):
        return engine
    if (reason := engine.why_not(device, dtype)) is not None:
        return reason
    return None if law is None or device.type == "cpu" else trial(engine, device, dtype, law, by_element)


@functools.cache
def substitute(device_type: str) -> Engine:
    """Who draws where no compiled engine does: the same bits, slower."""
    eager, cpu = load("eager"), load("cpu")
    if device_type not in ("cpu", *GPUS) and not isinstance(cpu, str):
        return StagedEngine(cpu)
    if isinstance(eager, str):
        raise RuntimeError(f"no engine works: {eager}")
    return where_it_can(eager, torch.device(device_type), torch.float32)


def where_it_can(eager: Engine, device: torch.device, dtype: torch.dtype) -> Engine:
    """The eager engine on the device itself, or on the CPU for a device that lacks what it needs."""
    return eager if eager.why_not(device, dtype) is None else StagedEngine(eager)


def without_kernel(device: torch.device, dtype: torch.dtype, compiled: bool, error: KernelMissing) -> Engine:
    """Who draws where the CPU engine works, by kernels that it once compiled, and Numba does not: the eager engine.

    Raises `RuntimeError` where a compiled or a named engine was asked for.
    """
    eager = load("eager")
    if compiled or forced_engine.get() is not None or isinstance(eager, str):
        raise RuntimeError(f"a kernel is missing, and it cannot be compiled: {error}") from error
    tell_once(device.type, str(error))
    return where_it_can(eager, device, dtype)


def tell_once(device_type: str, reason: str) -> None:
    """The one warning of a process that draws without a compiled engine, on the CPU or on a GPU."""
    which = "GPU" if device_type in GPUS else "CPU"
    warn_once(
        f"eager {which}",
        "fastinit draws with plain torch operations (same bits, slower): "
        f"its {which} engine does not work here: {reason}",
    )


def choose(
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    law: Parameters | None = None,
    *,
    by_element: bool = False,
) -> Engine:
    """The engine that draws into a tensor there: the one that `use_engine` names, else the device's own.

    On a GPU a law is tried before it is trusted, in the form that is asked for, if the caller knows it already. Raises
    `RuntimeError` where a named engine, or any compiled one where `compiled` insists on one, cannot.
    """
    name = forced_engine.get()
    if name is None:
        return choose_by_device(device, dtype, compiled, law, by_element)
    found = load(name)
    if isinstance(found, str) or (reason := found.why_not(device, dtype)) is not None:
        raise RuntimeError(f"use_engine({name!r}): it cannot draw here: {found if isinstance(found, str) else reason}")
    if compiled and not found.compiled:
        raise RuntimeError(f"fast=True needs a compiled engine, and use_engine({name!r}) asks for one that is not")
    return found


def choose_by_device(
    device: torch.device, dtype: torch.dtype, compiled: bool, law: Parameters | None, by_element: bool
) -> Engine:
    if setting_up.is_on:
        return meanwhile(device, dtype, compiled)
    if device.type == "cpu" and not isinstance(cpu := load("cpu"), str):  # first, and without asking anything else
        return cpu
    lacking = problem(device, dtype, law, by_element)
    if lacking is None:
        engine = load("gpu")
        assert not isinstance(engine, str), "problem() has seen it work"
        return engine
    if compiled:
        raise RuntimeError(
            f"fast=True needs a compiled engine: {lacking}; leave fast=True out to have the same bits, slower"
        )
    engine = substitute(device.type)
    if engine.name == "eager":
        reason = load("cpu")
        tell_once(device.type, lacking if device.type in ("cpu", *GPUS) else str(reason))
    return engine


def meanwhile(device: torch.device, dtype: torch.dtype, compiled: bool) -> Engine:
    """Who draws for a call in the middle of another one that sets up an engine on this thread: the eager engine."""
    if compiled:
        raise RuntimeError(
            "fast=True needs a compiled engine, and this thread is in the middle of setting one up; leave fast=True "
            "out to have the same bits, slower"
        )
    eager = load("eager")
    if isinstance(eager, str):
        raise RuntimeError(f"this thread is in the middle of setting up an engine, and no other works: {eager}")
    return where_it_can(eager, device, dtype)
