"""torch.nn.init against fastinit on a module's own parameters: how long, how much memory, and is it the right law?

`compare` records what the module's construction calls, and replays the last call of each parameter with both, in
place, in turns, on memory that no cache holds: call by call, and fastinit's once more in one batch. Samples are judged
by the law that the call promises, never by each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.init
from torch import Tensor

from .. import init
from ..drawing.batch import batch
from ..drawing.fill import fill
from ..drawing.route import outside_contract
from ..drawing.streams import Stream
from ..drawing.tell import bar, quiet
from ..initialisers import table
from ..kernels.dtypes import FORMATS
from ..laws import Law, Normal
from ..laws.judge import Observed, ks_distance, moments
from ..models.record import Call, record
from . import limit

SIDES: dict[str, Any] = {"torch": torch.nn.init, "fastinit": init}
SAMPLE = 1_000_000  # elements of a group that the check looks at
PASSES = (3, 25)  # at least, at most
LONG_ENOUGH = 1.0  # seconds of replaying that make a stable median
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, eq=False)
class Group:
    """Calls of one initialiser that give one law, in one dtype. `law` is None where elements have no law to judge by:
    matrices with a structure, and constants, whose value is `constant`."""

    initialiser: str
    law: Law | None
    constant: float | None
    calls: tuple[Call, ...]

    @property
    def elements(self) -> int:
        return sum(call.tensor.numel() for call in self.calls)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(call.tensor.numel() * call.tensor.element_size() for call in self.calls)


@dataclass(frozen=True, eq=False)
class Row:
    """A group with what each side took (seconds, the median of the passes) and drew."""

    group: Group
    seconds: dict[str, float]
    observed: dict[str, Observed]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The whole comparison.

    `batch` is the seconds of all of it in one batch of fastinit's, `stores` those of non-temporal stores alone, the
    limit of the machine (None where they cannot be timed). `memory` is each side's peak above what was in use before,
    in bytes, None if unknown.
    """

    rows: tuple[Row, ...]
    batch: float
    stores: float | None
    preparation: float
    memory: dict[str, int | None]
    passes: int
    without_law: int

    def total(self, side: str) -> float:
        return sum(row.seconds[side] for row in self.rows)

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row.observed["fastinit"].passes]


def compare(make: Callable[[], torch.nn.Module], *, seed: int = 0, repeat: int | None = None) -> Comparison:
    """Record what `make` does, replay it on the module that it returns, and judge.

    `repeat` is the number of timed passes, by default as many as a stable median takes. Before them one pass of
    each side, not timed, is watched for its memory and judged. Raises what `make` raises.
    """
    torch.manual_seed(seed)
    with quiet():  # what there is to say about engines, the report says
        module, calls = record(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, which the recording has shown
        groups = grouped(calls.values())
    with torch.no_grad(), warnings.catch_warnings(), bar(2 * len(groups), "measuring") as shown:
        warnings.simplefilter("ignore")
        preparation = prepare(groups)
        memory, observed = {}, {}
        for side in SIDES:
            memory[side], observed[side] = watched(groups, side, seed, shown.update)
        seconds, together = timed(groups, seed, repeat, shown)
    rows = tuple(
        Row(
            group,
            {side: statistics.median(taken[number] for taken in seconds[side]) for side in SIDES},
            {side: observed[side][number] for side in SIDES},
        )
        for number, group in enumerate(groups)
    )
    without_law = sum(1 for _ in module.parameters()) - len(calls)
    stores = statistics.median(together["stores"]) if together["stores"] else None
    in_batch = statistics.median(together["batch"])
    return Comparison(rows, in_batch, stores, preparation, memory, len(seconds["torch"]), without_law)


# --- groups and their laws ---------------------------------------------------------------------


def grouped(calls: Iterable[Call]) -> list[Group]:
    """Calls with the same initialiser, dtype and law together, the greatest group first."""
    found: dict[Any, list[Call]] = {}
    for call in calls:
        law = law_of(call)
        promised = law or repr(call.arguments)
        found.setdefault((call.initialiser, call.tensor.dtype, promised), []).append(call)
    groups = [
        Group(initialiser, law_of(together[0]), constant_of(together[0]), tuple(together))
        for (initialiser, _, _), together in found.items()
    ]
    return sorted(groups, key=lambda group: group.elements, reverse=True)


def law_of(call: Call) -> Law | None:
    """The law that the call promises for each element; None without one, or where it is a single point."""
    if call.initialiser not in (*table.OF_NUMBERS, *table.OF_SHAPES) or call.tensor.dtype not in FORMATS:
        return None
    law = table.law_of(call.initialiser, call.tensor.dtype, call.tensor.shape, **call.arguments)
    return law if law is not None and 0 < law.std < math.inf else None


def constant_of(call: Call) -> float | None:
    if call.initialiser == "constant_":
        value = call.arguments["val"]
        return None if isinstance(value, complex) else float(value)
    return float(table.VALUES[call.initialiser]) if call.initialiser in table.VALUES else None


# --- replaying ---------------------------------------------------------------------------------


def prepare(groups: Sequence[Group]) -> float:
    """Have every kernel that the groups need compiled, or loaded; returns the seconds that this took."""
    begin = time.perf_counter()
    for group in groups:
        law = Normal(0.0, 1.0) if group.initialiser in table.MATRICES else group.law
        for call in group.calls:
            if law is not None and outside_contract(call.tensor) is None:
                corner = call.tensor[(slice(0, 2),) * call.tensor.dim()]  # lies in memory as the whole does
                fill(corner, law, stream=Stream(0))
    return time.perf_counter() - begin


def timed(
    groups: Sequence[Group], seed: int, repeat: int | None, shown: Any
) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    """The seconds of every group, in every pass of each side; and of all groups in one batch, and by stores alone.

    All take turns, each on memory that no cache holds.
    """
    times: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    together: dict[str, list[float]] = {"batch": [], "stores": []}
    cool, alone = limit.cooler(), limit.stores([call.tensor for group in groups for call in group.calls])
    passes, done = repeat or 1, 0
    while done < passes:
        shown.total += 2 * len(groups)
        if alone is not None:
            cool()
            together["stores"].append(once(alone, []))
        for side in SIDES:
            cool()
            times[side].append(replay(groups, side, seed + done, shown.update))
        torch.manual_seed(seed + done)
        cool()
        together["batch"].append(once(functools.partial(draw_together, groups), groups))
        done += 1
        if done == 1 and repeat is None:
            passes = passes_for(sum(sum(times[side][0]) for side in SIDES))
    return times, together


def passes_for(seconds: float) -> int:
    """How many passes, of this many seconds each, make a stable median."""
    least, most = PASSES
    return max(least, min(most, math.ceil(LONG_ENOUGH / seconds))) if seconds > 0 else most


def drawn_by_torch(function: Callable[..., Any], tensor: Any, **arguments: Any) -> Any:
    """A call of torch.nn.init's; where torch has no kernel for the dtype (float8), for a float32 twin, then rounded."""
    try:
        return function(tensor, **arguments)
    except NotImplementedError:
        if not isinstance(tensor, Tensor) or tensor.dtype not in FORMATS:
            raise
    return tensor.copy_(function(torch.empty_like(tensor, dtype=torch.float32), **arguments))


def draw(group: Group, side: str) -> None:
    function = getattr(SIDES[side], group.initialiser)
    if side == "torch":
        function = functools.partial(drawn_by_torch, function)
    for call in group.calls:
        function(call.tensor, **call.arguments)


def draw_together(groups: Sequence[Group]) -> None:
    with batch():
        for group in groups:
            draw(group, "fastinit")


def replay(groups: Sequence[Group], side: str, seed: int, tick: Callable[[], object]) -> list[float]:
    """One timed pass over all groups; the seconds of each."""
    torch.manual_seed(seed)
    seconds = []
    for group in groups:
        seconds.append(once(functools.partial(draw, group, side), [group]))
        tick()
    return seconds


def once(work: Callable[[], None], groups: Sequence[Group]) -> float:
    """The seconds of work on these groups."""
    devices = {call.tensor.device for group in groups for call in group.calls if not call.tensor.is_cpu}
    wait_for(devices)
    begin = time.perf_counter()
    work()
    wait_for(devices)
    return time.perf_counter() - begin


def watched(
    groups: Sequence[Group], side: str, seed: int, tick: Callable[[], object]
) -> tuple[int | None, list[Observed]]:
    """One pass into poisoned memory: the peak of memory above what was in use, and what was drawn."""
    for group in groups:
        for call in group.calls:
            poison(call.tensor)
    torch.manual_seed(seed)
    before = forget_peak()
    for group in groups:
        draw(group, side)
        tick()
    peak = None if before is None else resident("VmHWM")
    extra = None if peak is None or before is None else max(peak - before, 0)
    return extra, [observe(group) for group in groups]


def poison(tensor: Tensor) -> None:
    """Fill with nan, so that elements that are not overwritten show."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(math.nan)


def wait_for(devices: Iterable[torch.device]) -> None:
    """Other devices than the CPU work asynchronously."""
    for device in devices:
        torch.get_device_module(device).synchronize(device)


def forget_peak() -> int | None:
    """Reset Linux's peak of this process's memory; returns the bytes in use now, None where it cannot."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else temporaries would hide in what the allocator kept
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return resident("VmRSS")


def resident(field: str) -> int | None:
    """A line of Linux's account of this process's memory, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) << 10 if field in lines else None


def observe(group: Group) -> Observed:
    """Moments over all elements of the group, and the distance of at most `SAMPLE` of them from the law."""
    tensors = [call.tensor for call in group.calls]
    step = -(-group.elements // SAMPLE) | 1  # odd, so that no column of the kernels' blocks is left out
    sample = torch.cat([tensor.reshape(-1)[::step] for tensor in tensors]).cpu()
    distance = None if group.law is None else ks_distance(sample, group.law)
    return Observed(*moments(tensors), sample, distance)
