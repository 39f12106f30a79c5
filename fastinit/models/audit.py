"""What is in a model's parameters, beside what their laws promise, and what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..drawing.tell import bar
from ..initialisers.table import CONSTANTS
from ..kernels.dtypes import FORMATS, name_of
from .origins import Origin, origin_of
from .promise import Promise, promised
from .walk import has_memory, named_parameters

if TYPE_CHECKING:
    from rich.table import Table

CHUNK = 1 << 22  # elements that are looked at in float64 at a time
MOST_Z = 6.0  # standard errors; a true sample is as far away once in 5e8
FEW = 32  # elements below which a standard deviation says little
SAMPLE = 1 << 14  # elements that a picture shows, at most
HUGE = 1e6  # no initialiser writes such numbers; memory that nothing has written has them


class Finding(NamedTuple):
    """Something about a parameter, and what to do about it. `error`: it is wrong; else it may be meant."""

    error: bool
    text: str
    hint: str


class Seen(NamedTuple):
    """What is in a tensor. `error` is the standard error of its standard deviation."""

    mean: float
    std: float
    error: float
    low: float
    high: float
    non_finite: int
    dead_rows: int  # rows of zeros, of what has two dimensions or more


@dataclass(frozen=True)
class Row:
    """A parameter: what its law promises (None where that is not known), and what was seen (None without memory).

    `by` says from what it was drawn; `z` how many standard errors its mean or standard deviation is from the promise.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    law: str | None
    by: str | None
    expected: tuple[float, float] | None  # mean and standard deviation
    seen: Seen | None
    z: float | None
    same_as: str | None
    findings: tuple[Finding, ...]
    sample: Tensor | None = field(default=None, repr=False, compare=False)  # some of its elements


@dataclass(frozen=True)
class Audit:
    """A model's parameters, one row each: `rich.print` shows all of it; `table()`, `to_json()`, `plot(path)`."""

    model: str
    rows: tuple[Row, ...]

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """All findings, with the names of the parameters."""
        return [(row.name, finding) for row in self.rows for finding in row.findings]

    @property
    def errors(self) -> list[tuple[str, Finding]]:
        return [(name, finding) for name, finding in self.findings if finding.error]

    def table(self) -> Table:
        """A `rich.table.Table`."""
        from .show import table

        return table(self)

    def to_json(self) -> str:
        """All of it as JSON: a list of rows, with null for what is not known and for what is no number."""
        rows = []
        for row in self.rows:
            kept = {key: value for key, value in vars(row).items() if key != "sample"}
            kept["seen"] = None if row.seen is None else row.seen._asdict()
            kept["findings"] = [finding._asdict() for finding in row.findings]
            rows.append(plain(kept))
        return json.dumps({"model": self.model, "parameters": rows}, indent=1)

    def plot(self, path: str) -> None:
        """Write a picture of the parameters, a strip each, in the format of the path's suffix. Needs matplotlib.

        Raises `ValueError` for what matplotlib does not write, and where the folder does not exist.
        """
        from .picture import draw

        draw(path, self)

    def __rich__(self) -> Any:
        from .show import report

        return report(self)


def audit(model: torch.nn.Module, *, problems: Iterable[tuple[str, str]] = ()) -> Audit:
    """Look at every parameter of a model (not at buffers): its moments beside what its law promises, and what is odd.

    Laws are known of what `accelerate` and `build` drew and nobody has changed since; of any other model the moments
    are shown, and what can be seen without a law: numbers that are not finite, or as large as only unwritten memory is;
    rows of zeros; tensors with the same values as another one. `problems`: names, and what else is wrong with them.
    Reads the whole model once; on a terminal a bar shows what takes more than two seconds.
    """
    given = dict(problems)
    parameters = [*named_parameters(model)]
    rows: list[Row] = []
    total = sum(parameter.numel() for _, parameter in parameters)
    with bar(total, "looking") as shown:
        for name, parameter in parameters:
            rows.append(look(name, parameter, given.pop(name, None)))
            shown.update(parameter.numel())
    tensors = dict(parameters)
    rows = [*with_twins(rows, tensors)]
    missing = [
        Row(name, (), "", None, None, None, None, None, None, (Finding(True, what, WRITE),))
        for name, what in given.items()
    ]
    return Audit(type(model).__name__, (*rows, *missing))


SAME = "has the same values as another one"
WRITE = "initialise it in the constructor, or leave it out"


def look(name: str, parameter: Tensor, problem: str | None) -> Row:
    """A parameter's row, but for what others have in common with it."""
    shape = () if is_lazy(parameter) else tuple(parameter.shape)
    tensor = parameter if is_lazy(parameter) else parameter.detach()
    found = [] if problem is None else [Finding(True, problem, WRITE)]
    origin = origin_of(parameter)
    promise = None if origin is None else promised(origin, parameter)
    law, expected = (None, None) if promise is None else (promise.law, promise.moments)
    seen = see(tensor) if has_memory(tensor) and tensor.layout is torch.strided else None
    z = None if seen is None or expected is None else distance(seen, expected, tensor)
    if seen is not None:
        found += findings(seen, tensor, promise, z)
    elif problem is None and tensor.is_meta:
        found.append(
            Finding(True, "is on the meta device, without memory", "module.to_empty(device=...), then initialise")
        )
    by = None if origin is None else drawn_by(origin, name)
    if origin is not None and origin.computed:
        found.append(
            Finding(
                False,
                "was computed from what was drawn by its number in the constructor, not by its name",
                "an in-place call of an initialiser with that scale is drawn by name",
            )
        )
    step = -(-tensor.numel() // SAMPLE) | 1 if seen is not None else 1  # odd, so that no column is left out
    sample = None if seen is None or tensor.is_complex() else tensor.reshape(-1)[::step].clone()
    return Row(name, shape, name_of(parameter.dtype), law, by, expected, seen, z, None, tuple(found), sample)


def drawn_by(origin: Origin, name: str) -> str:
    """From what a parameter's numbers come."""
    if origin.computed:
        return "computed"
    fill = origin.fills[0]
    if fill.source.initialiser in CONSTANTS:
        return "constant"
    if fill.name:
        return "name" if fill.name == name else f"copy of {fill.name}"
    return "number" if fill.source.by_default else "given stream"


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        yield part.float() if part.dtype.itemsize == 1 and part.is_floating_point() else part


def see(tensor: Tensor) -> Seen:
    """The moments and bounds of a tensor's finite elements, and what is odd among them."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    count, sums, low, high, origin = 0, [0.0] * 4, math.inf, -math.inf, None
    for part in parts_of(tensor):
        values = part.double()
        finite = values.isfinite()
        values = values if bool(finite.all()) else values[finite]
        if not len(values):
            continue
        origin = values[0].item() if origin is None else origin  # near the mean, so that powers do not cancel
        low, high = min(low, values.min().item()), max(high, values.max().item())
        shifted = values - origin
        squares = shifted * shifted
        count += len(values)
        found = (shifted.sum(), squares.sum(), (squares * shifted).sum(), (squares * squares).sum())
        sums = [total + one.item() for total, one in zip(sums, found, strict=True)]
    dead = 0
    if tensor.dim() > 1 and tensor.numel():
        rows = tensor.reshape(len(tensor), -1)
        step = max(1, CHUNK // rows.shape[1])
        dead = sum(int((rows[k : k + step] == 0).all(1).sum()) for k in range(0, len(rows), step))
    if count == 0:
        return Seen(math.nan, math.nan, math.nan, math.nan, math.nan, tensor.numel(), dead)
    first, second, third, fourth = (total / count for total in sums)
    variance = max(second - first * first, 0.0)
    central = fourth - 4 * first * third + 6 * first * first * second - 3 * first**4
    std = math.sqrt(variance)
    error = math.sqrt(max(central - variance * variance, 0.0) / count) / (2 * std) if std else 0.0
    return Seen((origin or 0.0) + first, std, error, low, high, tensor.numel() - count, dead)


def distance(seen: Seen, expected: tuple[float, float], tensor: Tensor) -> float | None:
    """How many standard errors the moments are from what is expected, what the dtype's rounding adds left aside."""
    mean, std = expected
    if std == 0:
        return 0.0 if seen.low == seen.high == torch.tensor(mean, dtype=tensor.dtype).double().item() else math.inf
    if not (math.isfinite(mean) and math.isfinite(std)) or tensor.dtype not in FORMATS:
        return None
    form, count = FORMATS[tensor.dtype], tensor.numel()
    # Between the greatest numbers, which a bound may move samples by; the variance of a rounding is a twelfth of that.
    step = max(2.0 ** (1 - form.precision) * max(-seen.low, seen.high), 2.0**form.smallest)
    rounding = step * step / (2 * std)
    of_mean = max(abs(seen.mean - mean) - rounding, 0.0) / (std / math.sqrt(count))
    of_std = max(abs(seen.std - std) - rounding, 0.0) / seen.error if seen.error else 0.0
    return max(of_mean, of_std) if count >= FEW else of_mean


def findings(seen: Seen, tensor: Tensor, promise: Promise | None, z: float | None) -> Iterator[Finding]:
    """What can be seen of one tensor."""
    if seen.non_finite:
        yield Finding(
            True,
            f"{seen.non_finite:,} of {tensor.numel():,} values are not finite",
            "its scale is beyond its dtype, or nothing wrote it: fastinit.build checks that",
        )
    elif promise is None and max(-seen.low, seen.high) > HUGE:
        yield Finding(
            True,
            f"has values up to {max(-seen.low, seen.high):.3g}",
            "nothing may have written it: fastinit.build checks that",
        )
    if z is not None and z > MOST_Z:
        yield Finding(
            True,
            f"its mean or standard deviation is {z:.3g} standard errors from what its law promises",
            "something has changed it since it was drawn",
        )
    if tensor.dim() < 2 or tensor.numel() < FEW:
        return
    if seen.std == 0 and not seen.non_finite:
        value = f"{seen.mean:.3g}"
        hint = "right for a last projection into a residual stream; elsewhere units that are alike stay alike"
        yield Finding(False, f"all its elements are {value}", hint)
    elif seen.dead_rows:
        rows = f"{seen.dead_rows:,} of {len(tensor):,} rows"
        yield Finding(False, f"{rows} are zero", "right for an embedding's padding; elsewhere units that start dead")


def with_twins(rows: Sequence[Row], tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    """The rows, with the name of the first tensor that has the same values, where there is one."""
    firsts: dict[Any, list[str]] = {}
    for row in rows:
        if row.seen is None or row.seen.std == 0 or row.seen.non_finite:
            yield row
            continue
        alike = firsts.setdefault((row.shape, row.dtype, row.seen), [])
        twin = next((name for name in alike if torch.equal(tensors[name], tensors[row.name])), None)
        if twin is None:
            alike.append(row.name)
            yield row
            continue
        hint = "as the layers of torch.nn.TransformerEncoder, which are copies; initialise each, if they should differ"
        finding = Finding(False, SAME, hint)
        yield replace(row, same_as=twin, findings=(*row.findings, finding))


def plain(value: Any) -> Any:
    """What JSON holds: no numbers that are none."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [*map(plain, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
