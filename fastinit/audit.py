"""torch.nn.init against fastinit on a module's own parameters: how long, how much memory, and is it the right law?

`compare` records what the module's `reset_parameters` calls, and replays the last call of each parameter with both, in
place, in turns. Samples are judged by the law that the call promises, never by each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.init
from torch import Tensor

from . import init
from .fill import fill, outside_contract
from .floats import FORMATS, at_least, at_most, below
from .laws import Law, Normal, TruncNormal, Uniform
from .recorder import Call, record
from .streams import Stream

SIDES: dict[str, Any] = {"torch": torch.nn.init, "fastinit": init}
ALPHA = 1e-4  # how often a true sample of a group fails its check
SAMPLE = 1_000_000  # elements of a group that the check looks at
CHUNK = 1 << 22  # elements that are held in float64 at a time
PASSES = (3, 25)  # at least, at most
LONG_ENOUGH = 1.0  # seconds of replaying that make a stable median
DRAW_NORMALS = ("orthogonal_", "sparse_")  # no law of the elements, and yet a kernel's work
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
class Observed:
    """What one side drew for a group: moments of all elements, `sample` of some, and its distance from the law.

    `distance` is the Kolmogorov-Smirnov one, None without a law.
    """

    mean: float
    std: float
    sample: Tensor
    distance: float | None

    @property
    def bound(self) -> float:
        return ks_bound(self.sample.numel())

    @property
    def passes(self) -> bool:
        return self.distance is None or self.distance <= self.bound


@dataclass(frozen=True, eq=False)
class Row:
    """A group with what each side took (seconds, the median of the passes) and drew."""

    group: Group
    seconds: dict[str, float]
    observed: dict[str, Observed]


@dataclass(frozen=True, eq=False)
class Audit:
    """The whole comparison. `memory` is each side's peak above what was in use before, in bytes, None if unknown."""

    rows: tuple[Row, ...]
    preparation: float
    memory: dict[str, int | None]
    passes: int
    without_law: int

    def total(self, side: str) -> float:
        return sum(row.seconds[side] for row in self.rows)

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row.observed["fastinit"].passes]


def compare(module: torch.nn.Module, *, seed: int = 0, repeat: int | None = None) -> Audit:
    """Record, replay and judge. The module's parameters are overwritten.

    `repeat` is the number of timed passes, by default as many as a stable median takes. Before them one pass of
    each side, not timed, is watched for its memory and judged. Raises `recorder.ResetError`.
    """
    torch.manual_seed(seed)
    calls = record(module)
    groups = grouped(calls.values())
    with torch.no_grad(), warnings.catch_warnings(), progress(2 * len(groups)) as bar:
        warnings.simplefilter("ignore")  # the recording has shown them all
        preparation = prepare(groups)
        memory, observed = {}, {}
        begin = time.perf_counter()
        for side in SIDES:
            memory[side], observed[side] = watched(groups, side, seed, bar.update)
        passes = repeat or passes_for(time.perf_counter() - begin)
        bar.total += 2 * passes * len(groups)
        times: dict[str, list[list[float]]] = {side: [] for side in SIDES}
        for number in range(passes):
            for side in SIDES:
                times[side].append(replay(groups, side, seed + number, bar.update))
    rows = []
    for number, group in enumerate(groups):
        seconds = {side: statistics.median(times[number] for times in times[side]) for side in SIDES}
        rows.append(Row(group, seconds, {side: observed[side][number] for side in SIDES}))
    return Audit(tuple(rows), preparation, memory, passes, len(dict(module.named_parameters())) - len(calls))


# --- groups and their laws ---------------------------------------------------------------------


def grouped(calls: Iterator[Call] | Sequence[Call] | Any) -> list[Group]:
    """Calls with the same initialiser, dtype and law together, the greatest group first."""
    found: dict[Any, list[Call]] = {}
    for call in calls:
        law = law_of(call)
        kind = law or repr(call.arguments)
        found.setdefault((call.initialiser, call.tensor.dtype, kind), []).append(call)
    groups = [Group(together[0].initialiser, law_of(together[0]), constant_of(together[0]), tuple(together))
              for together in found.values()]
    return sorted(groups, key=lambda group: group.elements, reverse=True)


def law_of(call: Call) -> Law | None:
    """The law that the call promises for each element; None without one, or where it is a single point."""
    if call.initialiser not in LAWS or call.tensor.dtype not in FORMATS:
        return None
    law = LAWS[call.initialiser](call.tensor, **call.arguments)
    return law if 0 < law.std < math.inf else None


def constant_of(call: Call) -> float | None:
    if call.initialiser == "constant_":
        return float(call.arguments["val"])
    return {"zeros_": 0.0, "ones_": 1.0}.get(call.initialiser)


def symmetric(std: float) -> Uniform:
    bound = math.sqrt(3.0) * std
    return Uniform(-bound, bound)


def kaiming(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    return init._kaiming_std(tensor, a, mode, nonlinearity, None)


def xavier(tensor: Tensor, gain: float) -> float:
    return init._xavier_std("xavier", tensor, gain, None)


LAWS: dict[str, Callable[..., Law]] = {
    "uniform_": lambda tensor, a=0.0, b=1.0: Uniform(float(a), float(b)),
    "normal_": lambda tensor, mean=0.0, std=1.0: Normal(float(mean), float(std)),
    "trunc_normal_": lambda tensor, mean, std, a, b: TruncNormal(float(mean), float(std), float(a), float(b)),
    "xavier_uniform_": lambda tensor, gain: symmetric(xavier(tensor, gain)),
    "xavier_normal_": lambda tensor, gain: Normal(0.0, xavier(tensor, gain)),
    "kaiming_uniform_": lambda tensor, **arguments: symmetric(kaiming(tensor, **arguments)),
    "kaiming_normal_": lambda tensor, **arguments: Normal(0.0, kaiming(tensor, **arguments)),
}


# --- replaying ---------------------------------------------------------------------------------


def prepare(groups: Sequence[Group]) -> float:
    """Have every kernel that the groups need compiled, or loaded; returns the seconds that this took."""
    begin = time.perf_counter()
    for group in groups:
        law = Normal(0.0, 1.0) if group.initialiser in DRAW_NORMALS else group.law
        for call in group.calls:
            if law is not None and outside_contract(call.tensor) is None:
                corner = call.tensor[(slice(0, 2),) * call.tensor.dim()]  # lies in memory as the whole does
                fill(corner, law, stream=Stream(0))
    return time.perf_counter() - begin


def passes_for(seconds: float) -> int:
    """How many passes, of this many seconds each, make a stable median."""
    least, most = PASSES
    return min(max(math.ceil(LONG_ENOUGH / seconds), least), most)


def draw(group: Group, side: str) -> None:
    function = getattr(SIDES[side], group.initialiser)
    for call in group.calls:
        function(call.tensor, **call.arguments)


def replay(groups: Sequence[Group], side: str, seed: int, tick: Callable[[], object]) -> list[float]:
    """One timed pass over all groups; the seconds of each."""
    torch.manual_seed(seed)
    seconds = []
    for group in groups:
        wait_for(group)
        begin = time.perf_counter()
        draw(group, side)
        wait_for(group)
        seconds.append(time.perf_counter() - begin)
        tick()
    return seconds


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
    """What is not overwritten shall be seen."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(math.nan)


def wait_for(group: Group) -> None:
    """Other devices than the CPU work behind the program's back."""
    for device in {call.tensor.device for call in group.calls if not call.tensor.is_cpu}:
        torch.get_device_module(device).synchronize(device)


def forget_peak() -> int | None:
    """Let Linux count the peak of this process's memory anew; returns the bytes in use now, None where it cannot."""
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


@contextlib.contextmanager
def progress(total: int) -> Iterator[Any]:
    """A bar on a terminal's stderr, for work that takes more than two seconds."""
    from tqdm import tqdm

    with tqdm(total=total, delay=2, disable=None, leave=False, unit="group") as bar:
        yield bar


# --- judging -----------------------------------------------------------------------------------


def observe(group: Group) -> Observed:
    """Moments over all elements of the group, and the distance of at most `SAMPLE` of them from the law."""
    tensors = [call.tensor for call in group.calls]
    step = -(-group.elements // SAMPLE) | 1  # odd, so that no column of the kernels' blocks is left out
    sample = torch.cat([tensor.reshape(-1)[::step] for tensor in tensors]).cpu()
    distance = None if group.law is None else ks_distance(sample, group.law)
    return Observed(*moments(tensors), sample, distance)


def moments(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all elements together; nan for what is no real number."""
    if not tensors[0].is_floating_point():
        return math.nan, math.nan
    origin = tensors[0].reshape(-1)[0].item()  # near the mean, so that squares do not cancel
    count, total, squares = 0, 0.0, 0.0
    for tensor in tensors:
        for part in tensor.reshape(-1).split(CHUNK):
            shifted = part.double().sub_(origin)
            count += part.numel()
            total += shifted.sum().item()
            squares += shifted.square_().sum().item()
    return origin + total / count, math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def ks_bound(count: int) -> float:
    """The distance that a true sample of `count` exceeds with a probability of at most `ALPHA` (Massart 1990)."""
    return math.sqrt(math.log(2 / ALPHA) / (2 * count))


def ks_distance(sample: Tensor, law: Law) -> float:
    """The greatest distance between the sample's distribution function and that of the law, as the dtype rounds it.

    A number that the dtype holds stands for everything up to the middle between it and its neighbours, and the
    outermost within the law's bounds for everything beyond. nan if a nan is among the sample.
    """
    held, counts = torch.unique(sample, return_counts=True)
    exact, share = held.double(), counts.cumsum(0).double() / sample.numel()
    share_below = share - counts.double() / sample.numel()
    lowest, highest = held_bounds(law, sample.dtype)
    upper, lower = (
        (exact + torch.nextafter(held, torch.full_like(held, towards)).double()) / 2 for towards in (math.inf, -math.inf)
    )
    up_to = torch.where(exact >= highest, 1.0, cdf(law, upper))
    before = torch.where(exact <= lowest, 0.0, cdf(law, lower))
    return torch.stack([(share - up_to).abs(), (share_below - before).abs()]).max().item()


def held_bounds(law: Law, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of `dtype` that a sample of the law can be."""
    if isinstance(law, Uniform):
        return at_least(law.a, dtype), below(law.b, dtype)
    if isinstance(law, TruncNormal):
        return at_least(law.a, dtype), at_most(law.b, dtype)
    return -math.inf, math.inf


def cdf(law: Law, x: Tensor) -> Tensor:
    """`law.cdf` of every element of a float64 tensor."""
    if isinstance(law, Uniform):
        return ((x - law.a) / (law.b - law.a)).clamp(0.0, 1.0)
    if isinstance(law, Normal):
        return torch.special.ndtr((x - law.mean) / law.std)
    if not isinstance(law, TruncNormal):
        raise TypeError(f"no distribution function for tensors is known for {law}")
    low, high = map(float, law.bounds)
    z = ((x - law.centre) / law.scale).clamp(low, high)
    if low + high < 0:  # count from the thinner tail, whose masses are small numbers and so precise ones
        return 1.0 - share_of_mass(-high, -low, -z)
    return share_of_mass(low, high, z)


def share_of_mass(low: float, high: float, z: Tensor) -> Tensor:
    """The share of the standard normal's mass in [low, high] that lies below z, by logarithms of upper tails."""
    log_low, log_high, log_z = (
        torch.special.log_ndtr(-torch.as_tensor(point, dtype=torch.float64)) for point in (low, high, z)
    )
    return torch.expm1(log_z - log_low) / torch.expm1(log_high - log_low)
