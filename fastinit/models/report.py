"""What happened in a block of `accelerate`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Assignment(NamedTuple):
    """A parameter, how it was initialised, and by which rule."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    initialiser: str
    rule: str


@dataclass
class Report:
    """What happened in a block of `accelerate`, complete when the block has ended; or in `initialize`.

    `drawn`: how many draws were made. `replaced`: how many were not, because a later one wrote the same memory, or
    nobody kept it. `early`: the operations for which something was drawn before the end, because they needed it, and
    how often. `escaped`: the operations by which torch drew itself, and how often: what they drew has torch's numbers.
    `foreign`: tensors that somebody wrote unseen after they had been initialised; they were left as they are.
    `assigned`: what `initialize` did with each parameter.
    """

    drawn: int = 0
    replaced: int = 0
    early: Counter[str] = field(default_factory=Counter)
    escaped: Counter[str] = field(default_factory=Counter)
    foreign: list[Tensor] = field(default_factory=list)
    assigned: tuple[Assignment, ...] = ()

    def __repr__(self) -> str:
        counts = [f"{name}={dict(getattr(self, name))}" for name in ("early", "escaped") if getattr(self, name)]
        foreign = [f"foreign={[tuple(tensor.shape) for tensor in self.foreign]}"] if self.foreign else []
        rules = [f"assigned={len(self.assigned)} parameters"] if self.assigned else []
        return f"Report({', '.join([f'drawn={self.drawn}', f'replaced={self.replaced}', *counts, *foreign, *rules])})"

    def __rich__(self) -> Any:
        from .show import assignments

        return assignments(self) if self.assigned else repr(self)
