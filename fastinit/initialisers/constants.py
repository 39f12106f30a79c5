"""Constants inside a batch: put off, so that they keep their place among the draws around them."""

from __future__ import annotations

from typing import Any

import torch

from ..drawing import batch, engines
from ..drawing.flags import forced_engine
from ..drawing.originals import originals, standing
from ..drawing.regions import Target, local_of
from ..drawing.route import outside_contract
from ..drawing.torch_private import in_graph, increment_version
from ..kernels.contract import JobEngine, KernelMissing, setting_up


def fill_later(name: str, target: Target, value: Any) -> bool:
    """Put off a call of torch.nn.init's function `name`, which fills with `value`; False where it must be made now."""
    local = local_of(target)
    replaced = any(standing.get(one) is not originals[one] for one in (name, "_no_grad_fill_", "_no_grad_zero_"))
    if replaced or type(value) not in (int, float) or not isinstance(local, torch.Tensor) or in_graph():
        return False
    if outside_contract(local, (local.dtype,)) is not None or not (local.is_cpu and local.is_contiguous()):
        return False
    if local.is_inference() or local.numel() == 0 or local.dtype is torch.complex128:  # the kernel repeats 8 bytes
        return False
    engine = None if setting_up.is_on or forced_engine.get() not in (None, "cpu") else engines.load("cpu")
    if not isinstance(engine, JobEngine):
        return False
    try:
        # Of two elements: torch lets one pass that is beyond the dtype.
        both = torch.full((min(2, local.numel()),), value, dtype=local.dtype, device="cpu").view(torch.uint8)
        job = batch.pending(engine)
        if job is None:
            return False
        job.add_constant(local, bytes(both[: local.dtype.itemsize].tolist()))
    except (RuntimeError, OverflowError, KernelMissing):
        return False  # torch has a word for it
    increment_version((local,))
    return True
