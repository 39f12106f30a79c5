"""Constants inside a batch: put off with the draws around them, which they may stand before or behind."""

from __future__ import annotations

from typing import Any

import torch

from ..drawing import batch, engines
from ..drawing.originals import originals, standing
from ..drawing.regions import Target, local_of
from ..drawing.route import outside_contract
from ..drawing.torch_private import in_graph, increment_version
from ..kernels.contract import JobEngine, KernelMissing


def fill_later(name: str, target: Target, value: Any) -> bool:
    """Put off a call of torch.nn.init's function `name`, which fills with `value`; False where it must be made now."""
    local = local_of(target)
    replaced = any(standing.get(one) is not originals[one] for one in (name, "_no_grad_fill_", "_no_grad_zero_"))
    if replaced or type(value) not in (int, float) or in_graph():
        return False
    if outside_contract(local, (local.dtype,)) is not None or not (local.is_cpu and local.is_contiguous()):
        return False
    if local.is_inference() or local.numel() == 0 or local.dtype.itemsize > 8:
        return False
    engine = engines.choose(local.device, torch.int32, False)
    if not isinstance(engine, JobEngine):
        return False
    try:
        element = torch.full((1,), value, dtype=local.dtype, device="cpu").view(torch.uint8)
        batch.add_constant(engine, local, bytes(element.tolist()))
    except (RuntimeError, OverflowError, KernelMissing):
        return False  # torch has a word for it
    increment_version((local,))
    return True
