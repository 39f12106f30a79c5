"""Constants: by a kernel that stores, so that they keep their place in a batch, and large ones go around the cache."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..drawing import batch, engines
from ..drawing.flags import forced_engine
from ..drawing.originals import originals, ours, standing
from ..drawing.regions import Shard
from ..drawing.torch_private import increment_version
from ..kernels.contract import KernelMissing, setting_up
from ..kernels.dtypes import FORMATS, WHOLE
from .quick import MOST_PLANS, ordinary_address

if TYPE_CHECKING:
    from ..kernels.cpu.engine import CpuEngine
    from ..kernels.cpu.jobs import Plan

# What of torch.nn.init's private functions each calls there.
HELPERS = {"constant_": "_no_grad_fill_", "ones_": "_no_grad_fill_", "zeros_": "_no_grad_zero_"}
DTYPES = frozenset({*FORMATS, *WHOLE, torch.complex64, torch.uint16, torch.uint32, torch.uint64})
blocks = batch.blocks
# By dtype and what the value looks like (0.0 and -0.0 are equal): how contiguous tensors of the CPU are filled with it.
plans: dict[tuple[torch.dtype, str], Plan | None] = {}


def fill(name: str, target: Any, value: Any) -> bool:
    """Fill as torch.nn.init's function `name` does, with `value`; False where torch has to, or has a word for it.

    In a batch memory is written at its end.
    """
    address = ordinary_address(target, None, None, None, name, DTYPES)
    if not address:
        return isinstance(target, Shard) and fill(name, target.local, value)
    tensor: Tensor = target
    helper = standing.get(HELPERS[name])
    if (
        type(value) not in (int, float)
        or not tensor.is_cpu
        or (helper is not originals[HELPERS[name]] and helper is not ours[HELPERS[name]])
        or forced_engine.get() not in (None, "cpu")
        or (tensor.dtype.is_complex and tensor.is_conj())
    ):
        return False
    key = tensor.dtype, repr(value)
    plan = plans[key] if key in plans else planned(key, value)
    if plan is None:
        return False
    increment_version((tensor,))  # before the write: an interruption may come between
    count = tensor.numel()
    if blocks.get():
        batch.fill(plan, tensor, address, count, 0, 0)
    elif count <= plan.most:
        plan.draw(address, count, 0, 0)
    else:
        job = plan.job()
        job.add_plan(plan, tensor, address, count, 0, 0)
        job.do()
    return True


def planned(key: tuple[torch.dtype, str], value: float) -> Plan | None:
    """How to fill with a value, for `plans`; None where it is beyond the dtype, or the CPU engine cannot."""
    if setting_up.is_on:
        return None
    engine, plan, dtype = engines.load("cpu"), None, key[0]
    if not isinstance(engine, str):
        with contextlib.suppress(RuntimeError, OverflowError, KernelMissing):
            # Of two elements: torch lets one pass that is beyond the dtype.
            both = torch.full((2,), value, dtype=dtype, device="cpu").view(torch.uint8).tolist()
            plan = cast("CpuEngine", engine).constant(bytes(both[: dtype.itemsize]))
    if len(plans) >= MOST_PLANS:
        plans.clear()
    plans[key] = plan
    return plan
