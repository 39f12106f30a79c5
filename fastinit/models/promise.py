"""What a parameter's fills promise of its elements: mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..drawing.deferred import Fill
from ..drawing.tell import quiet
from ..initialisers.table import OF_NUMBERS, OF_SHAPES, VALUES, as_numbers
from .origins import Origin

Moments = tuple[float, float]


class Promise(NamedTuple):
    """A law as it is written, and the mean and standard deviation that it promises; None where nobody can tell."""

    law: str
    moments: Moments | None


def promised(origin: Origin, tensor: Tensor) -> Promise | None:
    """What the fills of a tensor's memory promise of it; None where none is of all of it, or another tensor's too."""
    if not origin.fills:
        return None
    first, *parts = origin.fills
    begin, end = int(tensor.storage_offset()), int(tensor.storage_offset()) + tensor.numel()
    if not all(begin <= fill.offset and fill.offset + fill.reach <= end for fill in origin.fills):
        return None
    text = written(first) + "".join(f", {written(part)} in {[*part.shape]}" for part in parts[:1])
    text += f" and {len(parts) - 1} parts more" if len(parts) > 1 else ""
    if first.elements != tensor.numel():
        return Promise(text, None)
    shares = [tensor.numel() - sum(part.elements for part in parts), *(part.elements for part in parts)]
    moments = [moments_of(fill) for fill in origin.fills]
    if shares[0] < 0 or None in moments:
        return Promise(text, None)
    return Promise(text, mixed(shares, [one for one in moments if one is not None]))


def mixed(shares: Sequence[int], moments: Sequence[Moments]) -> Moments:
    """The moments of elements of which so many have these."""
    total = sum(shares)
    mean = sum(share * mean for share, (mean, _) in zip(shares, moments, strict=True)) / total
    square = sum(share * (std * std + m * m) for share, (m, std) in zip(shares, moments, strict=True)) / total
    return mean, math.sqrt(max(square - mean * mean, 0.0)) if len(shares) > 1 else moments[0][1]


def written(fill: Fill) -> str:
    """A fill as a call: `normal_(0, 0.02)`."""
    name, values, layout = fill.source.initialiser, fill.source.values, fill.source.layout
    if not name:
        return "?"
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    return f"{name}({', '.join(shown + [f'layout={layout!r}'] * (layout is not None))})"


def moments_of(fill: Fill) -> Moments | None:
    """The mean and standard deviation that a fill promises, if it has them."""
    name, values, layout = fill.source.initialiser, fill.source.values, fill.source.layout
    try:
        with quiet():
            return found(name, values, layout, fill.dtype, fill.source.shape or fill.shape)
    except (ArithmeticError, ValueError, TypeError, RuntimeError, KeyError):  # odd arguments, which torch took
        return None


def found(name: str, values: Sequence[Any], layout: Any, dtype: torch.dtype, shape: Sequence[int]) -> Moments | None:
    if name in VALUES:
        return float(VALUES[name]), 0.0
    if name == "constant_":
        return float(values[0]), 0.0
    if name == "orthogonal_":
        rows = shape[0]
        return 0.0, abs(float(values[0])) / math.sqrt(max(rows, math.prod(shape) // rows))
    if name == "sparse_":
        kept = 1 - min(math.ceil(values[0] * shape[0]), shape[0]) / shape[0]
        return 0.0, float(values[1]) * math.sqrt(kept)
    if name in OF_SHAPES:
        scaled = OF_SHAPES[name]
        name, values = scaled.function, scaled.values_of(scaled.std(shape, *values, layout))
    numbers = as_numbers(name, *values) if name in OF_NUMBERS else None
    law = None if numbers is None else OF_NUMBERS[name](dtype, *numbers)
    return None if law is None else (law.mean, law.std)
