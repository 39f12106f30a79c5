"""The engines that work here, loaded when they are first asked for."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .flags import forced_engine
from .kernels.engine import Draw, Engine, parts, row_major

# What an engine must draw before it is trusted: Philox of counter 0 and key 0 (Random123's known answers).
KNOWN_WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
STAGING = 1 << 22  # elements that the CPU draws at a time for a device without an engine


@functools.cache
def load(name: str) -> Engine | str:
    """The engine, or the reason why it does not work here."""
    try:
        engine = _imported(name)
        if engine.why_not(torch.device("cpu"), torch.int32) is None:
            words = torch.empty(64, dtype=torch.int32, device="cpu")
            engine.fill(words, Draw("words", (), 0, 0), 0, None)
            drawn = tuple(word & 0xFFFFFFFF for word in words[::16].tolist())
            if drawn != KNOWN_WORDS:
                return f"its generator gave {drawn}, not the known answer {KNOWN_WORDS}"
        return engine
    except Exception as error:  # a broken installation can raise anything
        return f"{type(error).__name__}: {error}"


def _imported(name: str) -> Engine:
    if name == "reference":
        from .kernels.reference import ReferenceEngine

        return ReferenceEngine()
    if name == "cpu":
        from .kernels.cpu import CpuEngine

        return CpuEngine()
    if name == "eager":
        from .kernels.eager import EagerEngine

        return EagerEngine()
    raise NotImplementedError(f"this version has no {name} engine")


class StagedEngine:
    """The CPU engine for a device that has none: drawn part by part in a buffer, then copied."""

    name = "cpu"
    compiled = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return self.engine.why_not(torch.device("cpu"), dtype)

    @torch.no_grad()
    def fill(self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        steps = row_major(out.shape) if steps is None else steps
        for part, start in parts(out, first, steps, STAGING):
            buffer = torch.empty(part.shape, dtype=out.dtype, device="cpu")
            self.engine.fill(buffer, draw, start, steps)
            part.copy_(buffer)


@functools.cache
def _default(device_type: str) -> Engine:
    """The engine for a device when nobody asks for one by name."""
    cpu = load("cpu")
    if not isinstance(cpu, str):
        return cpu if device_type == "cpu" else StagedEngine(cpu)
    eager = load("eager")
    if isinstance(eager, str):
        raise RuntimeError(f"no engine works: {eager}")
    return eager if eager.why_not(torch.device(device_type), torch.float32) is None else StagedEngine(eager)


_told = False


def tell_once(reason: str) -> None:
    """The one warning of a process that draws without a compiled engine."""
    global _told
    if not _told:
        _told = True  # before the warning, which may be made an error: the next call shall work
        warnings.warn(
            "fastinit draws with plain torch operations (same bits, slower): "
            f"its CPU engine does not work here: {reason}",
            RuntimeWarning,
            stacklevel=6,  # past choose, fill and the two functions of init
        )


def choose(tensor: Tensor, fast: bool | None) -> Engine:
    """The engine that draws into `tensor`: the one that `use_engine` names, else the device's own.

    Raises `RuntimeError` where a named engine, or with `fast=True` any compiled one, cannot.
    """
    name = forced_engine.get()
    if name is None:
        engine = _default("cpu" if tensor.is_cpu else tensor.device.type)
        if not fast and isinstance(cpu := load("cpu"), str):
            tell_once(cpu)
        if fast and not engine.compiled:
            why = load("cpu") if tensor.is_cpu else f"there is no compiled engine for {tensor.device.type} tensors"
            raise RuntimeError(
                f"fast=True needs a compiled engine: {why}; leave fast=True out to have the same bits, slower"
            )
        return engine
    found = load(name)
    if isinstance(found, str) or (reason := found.why_not(tensor.device, tensor.dtype)) is not None:
        raise RuntimeError(f"use_engine({name!r}): it cannot draw here: {found if isinstance(found, str) else reason}")
    if fast and not found.compiled:
        raise RuntimeError(f"fast=True needs a compiled engine, and use_engine({name!r}) asks for one that is not")
    return found
