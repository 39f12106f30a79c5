"""Samples whose law has parameters of its own for each element."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Generator, Tensor

from ..drawing import batch, engines, flags
from ..drawing.fill import ByElement, fill
from ..drawing.flags import forced_engine
from ..drawing.regions import Shard, Target, local_of
from ..drawing.route import COMPILED, TORCH, outside_contract, way
from ..drawing.streams import Stream, drawn_seed
from ..drawing.torch_private import increment_version
from ..kernels.contract import block_size
from ..kernels.cpu.rows import address_of, with_parameters
from ..kernels.dtypes import FORMATS, drawn_as
from ..kernels.runs import overlap
from ..laws import EXAMPLES, Law, working
from .quick import ordinary_address
from .table import DTYPES

if TYPE_CHECKING:
    from ..kernels.cpu.jobs import Plan

T = TypeVar("T", bound=Target)
Numbers = float | Tensor
READY = (torch.float32,)  # what the fast path reads
MOST_IN_BLOCK = block_size(32)  # elements
LIKE: dict[str, Law] = {f"{name}_": one.by_element for name, one in EXAMPLES.items() if one.by_element is not None}


def fill_each(
    name: str,
    target: T,
    numbers: tuple[Numbers, ...],
    generator: Generator | None,
    fast: bool | None,
    stream: Stream | None,
    by_torch: Callable[[], T],
) -> T:
    """Fill `target` with samples of the law `name`, whose numbers are tensors that broadcast to its (local) shape.

    `by_torch` is torch's call, which serves what the kernels do not: other dtypes, tensors of numbers that are not
    plain, numbers beyond the precision that the law computes in. Raises `RuntimeError` where it would have to serve and
    cannot (see `route.way`), and torch's errors for numbers out of range and for shapes that do not fit.
    """
    if fill_quickly(name, target, numbers, generator, fast, stream):
        return target
    batch.settle(target, *numbers)
    local = local_of(target)
    by = way(target, generator, fast, stream, None, None, DTYPES.get(name, FORMATS))
    reasons = [] if by is TORCH else [reason for one in numbers if (reason := not_read(one, local)) is not None]
    lacking = reasons[0] if reasons else None
    if by is TORCH or lacking is not None:
        asked = flags.flag_of(local) if fast is None else fast
        if lacking is not None and (asked or stream is not None or isinstance(target, Shard)):
            raise RuntimeError(f"{name} by element draws with plain tensors of numbers alone: {lacking}")
        return by_torch()
    check_range(name, numbers)
    given = tuple(as_read(number, local) for number in numbers)
    fill(target, ByElement(LIKE[name], given), generator, stream=stream, compiled=by is COMPILED)
    return target


def fill_quickly(
    name: str,
    target: Target,
    numbers: tuple[Numbers, ...],
    generator: Generator | None,
    fast: bool | None,
    stream: Stream | None,
) -> bool:
    """Fill a small tensor of the CPU, if nothing needs a second look and all numbers are ready to be read.

    Returns whether it did; see `fill_each`.
    """
    address = ordinary_address(target, generator, fast, stream, None, DTYPES.get(name, FORMATS))
    if not address or forced_engine.get() is not None:
        return False
    tensor, places, kept = cast("Tensor", target), [], []
    size, count = tensor.element_size(), tensor.numel()
    found = plan(name, tensor.dtype, len(numbers)) if tensor.is_cpu else None
    if found is None or count > found.alone or batch.is_open():
        return False
    for number in numbers:
        if not isinstance(number, Tensor):
            if tensor.dtype is torch.float64 or not is_held(number, tensor.dtype):  # the kernel reads float32
                return False
            kept.append(torch.full((MOST_IN_BLOCK,), number, dtype=torch.float32, device="cpu"))
            places += [kept[-1].data_ptr(), 0]
            continue
        place = ordinary_address(number, None, None, None, None, READY)
        apart = place >= address + size * count or address >= place + 4 * count
        if not (place and apart and number.is_cpu and number.shape == tensor.shape):
            return False
        places += [place, 4]
    check_range(name, numbers)
    seed, stream_id = (drawn_seed(generator), 0) if stream is None else (stream.seed, stream.id)
    increment_version((tensor,))  # before the write: an interruption may come between
    row = with_parameters(found.owned, places)
    found.fill(address_of(row), address, count, seed, stream_id)
    return True


plans: dict[tuple[str, torch.dtype, int], Plan] = {}  # as `plan` found them


def plan(name: str, dtype: torch.dtype, parameters: int) -> Plan | None:
    """The CPU engine's way to fill small tensors; None where another engine draws."""
    key = (name, dtype, parameters)
    if key not in plans:
        engine: Any = engines.choose(torch.device("cpu"), drawn_as(dtype), False)
        if engine.name != "cpu":
            return None
        plans[key] = engine.plan_each(LIKE[name].parameters(dtype)[0], drawn_as(dtype), parameters)
    return plans[key]


@functools.cache
def greatest(dtype: torch.dtype) -> float:
    """The greatest number of the precision that samples of `dtype` are computed in."""
    return FORMATS[working(dtype)].greatest


def is_held(number: float, dtype: torch.dtype) -> bool:
    return abs(number) <= greatest(dtype)  # not nan


def not_read(number: Numbers, local: Tensor) -> str | None:
    """Why the kernels cannot take these numbers; None if they can."""
    if not isinstance(number, Tensor):
        return None if is_held(number, local.dtype) else f"{number} is beyond the precision of the samples"
    if number.is_meta or (number.device != local.device and number.dim()):
        return f"numbers on {number.device} for a tensor on {local.device}"
    reason = outside_contract(number)
    return None if reason == "its elements may share memory" else reason  # they are only read


def as_read(number: Numbers, local: Tensor) -> Tensor:
    """Numbers as a tensor on the device that is written, apart from the memory that is."""
    if not isinstance(number, Tensor):
        return torch.tensor(number, dtype=working(local.dtype), device=local.device)
    if number.device != local.device or overlap(number, local):
        return number.detach().to(local.device, copy=True)
    return number.detach()


def check_range(name: str, numbers: tuple[Numbers, ...]) -> None:
    """Raises torch's error where a number is out of range, or none. Reads them all; on a GPU it waits for them."""
    number = numbers[-1]  # the standard deviation, or the probability
    if isinstance(number, Tensor) and number.numel() == 0:
        return
    if not isinstance(number, Tensor):
        low = high = float(number)
    elif name == "normal_" and number.dtype.itemsize > 1:
        low = high = number.min().item()
    else:  # float8 is not compared by torch
        low, high = (bound.item() for bound in torch.aminmax(number.float() if number.dtype.itemsize == 1 else number))
    if name == "normal_" and not low >= 0:
        if isinstance(number, Tensor):
            torch.normal(0.0, torch.tensor([-1.0], device="cpu"))
        torch.normal(0.0, low, (0,), device="cpu")
    if name == "bernoulli_" and not (low >= 0 and high <= 1):
        torch.empty(1, device="cpu").bernoulli_(torch.tensor([2.0], device="cpu"))
