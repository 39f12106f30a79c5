"""The CPU draws for a device that has no engine of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contract import Draw, Engine
from .runs import parts, row_major

STAGING = 1 << 22  # elements that are drawn at a time


class StagedEngine:
    """An engine of the CPU for a device that has none: drawn part by part in a buffer, then copied."""

    compiled = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.name

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return self.engine.why_not(torch.device("cpu"), dtype)

    @torch.no_grad()
    def fill(self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        steps = row_major(out.shape) if steps is None else steps
        for part, start, _ in parts(out, first, steps, STAGING):
            buffer = torch.empty(part.shape, dtype=out.dtype, device="cpu")
            self.engine.fill(buffer, draw, start, steps)
            part.copy_(buffer)

    @torch.no_grad()
    def fill_each(
        self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None, parameters: Sequence[Tensor]
    ) -> None:
        steps = row_major(out.shape) if steps is None else steps
        for part, start, given in parts(out, first, steps, STAGING, parameters):
            buffer = torch.empty(part.shape, dtype=out.dtype, device="cpu")
            self.engine.fill_each(buffer, draw, start, steps, [tensor.cpu() for tensor in given])
            part.copy_(buffer)
