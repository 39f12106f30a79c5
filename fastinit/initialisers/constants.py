"""Constants: by a kernel that stores, so that they keep their place in a batch; large ones by non-temporal stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from ..drawing import batch, engines
from ..drawing.deferred import Source
from ..drawing.dtensor import is_dtensor, memory_of, placed
from ..drawing.flags import forced_engine
from ..drawing.originals import call, originals, ours, standing
from ..drawing.regions import Shard, parts_of
from ..drawing.route import decided_by_others, outside_contract
from ..drawing.torch_private import in_graph, increment_version
from ..kernels.contract import Job, KernelMissing, setting_up
from ..kernels.dtypes import FORMATS, WHOLE
from .lists import LISTS, Targets, each_of
from .quick import PROBE, make_room, ordinary_address
from .together import fill_together, ordinary_ones

if TYPE_CHECKING:
    from ..kernels.cpu.engine import CpuEngine
    from ..kernels.cpu.jobs import Plan

T = TypeVar("T", bound=Targets)
TINY = 2.0**-125
LARGE = 1 << 20  # bytes of a DTensor's local tensor
# What of torch.nn.init's private functions each calls there.
HELPERS = {"constant_": "_no_grad_fill_", "ones_": "_no_grad_fill_", "zeros_": "_no_grad_zero_"}
DTYPES = frozenset({*FORMATS, *WHOLE, torch.complex64, torch.uint16, torch.uint32, torch.uint64})
blocks = batch.blocks
Key = tuple[torch.dtype, int | str]  # a float as it is written in hexadecimal: 0.0 and -0.0 are equal
plans: dict[Key, Plan | None] = {}  # how contiguous tensors of the CPU are filled with a value


def fill(name: str | None, target: Any, value: Any) -> bool:
    """Fill as torch.nn.init's function `name` does, with `value`; False where torch has to, or has a word for it.

    Without a name as a tensor's method does. In a batch memory is written at its end.
    """
    address = ordinary_address(target, None, None, None, name, DTYPES)
    if not address:
        if is_dtensor(target) and not blocks.get() and memory_of(target).nbytes < LARGE:
            return False  # torch's own way to fill one with a number is right, and faster
        if (block := batch.seeing()) is not None:
            block.deferred.source = Source(name or "constant_", (value,), False)
            return block.off(fill, name, target, value)  # type: ignore[no-any-return]
        held = shard_of(target)
        if held is not None:
            return fill_shard(name, held, value)
        if not is_put_off(name, target):
            return False
        address = target.data_ptr()
    tensor: Tensor = target
    if not is_served(name, value) or not tensor.is_cpu or (tensor.dtype.is_complex and tensor.is_conj()):
        return False
    plan = plan_for(tensor.dtype, value)
    if plan is None:
        return False
    increment_version((tensor,))  # before the write: an interruption may come between
    count = tensor.numel()
    if blocks.get():
        batch.fill(plan, tensor, address, count, 0, 0)
    elif count <= plan.most or not fill_large(plan, tensor, address, count):
        plan.draw(address, count, 0, 0)
    return True


def shard_of(target: Any) -> Shard | None:
    """What a target holds of a global tensor, if it is part of one; None for a DTensor that only torch can fill."""
    if in_graph():
        return target if isinstance(target, Shard) else None
    try:
        held = placed(target)
    except ValueError:
        if is_dtensor(target):  # `Partial`, whose summands may well be zero
            return None
        raise
    return held if isinstance(held, Shard) else None


def fill_shard(name: str | None, target: Shard, value: Any) -> bool:
    """The same of the boxes that a local tensor holds."""
    raw = target.owner is None
    if not target.local.is_cpu or (not raw and name is not None and decided_by_others(name, target)):
        return False
    whole = target.is_all_of_local and target.local.numel() > 0
    parts = [target.local] if whole else [part.memory for part in parts_of(target)]
    done = [fill(name if raw else None, part, value) for part in parts]
    if target.owner is not None and parts and all(done):
        increment_version((target.owner,))
    return all(done)


def is_put_off(name: str | None, target: Any) -> bool:
    """Whether a constant keeps its place among draws that are put off, though a second look at the tensor is needed."""
    return (
        batch.watched() is not None
        and (name is None or not decided_by_others(name, target))
        and outside_contract(target, DTYPES) is None
        and not target.is_meta
        and not target.is_inference()
        and bool(target.is_contiguous())
    )


def fill_large(plan: Plan, tensor: Tensor, address: int, count: int) -> bool:
    """In huge pages, in goes that can be interrupted; returns whether there is the code for it."""
    try:
        job = plan.job()
    except KernelMissing:
        return False
    job.add_plan(plan, tensor, address, count, 0, 0)
    job.do()
    return True


def serve(name: str, target: T, value: Any, *arguments: Any) -> T:
    """Serve a call of torch.nn.init's function `name`, which fills with `value`."""
    if fill(name, target, value):
        return target
    if isinstance(target, LISTS):
        return serve_list(name, target, value, arguments)
    held = shard_of(target)
    if held is not None and held.owner is None:
        for part in parts_of(held):
            call(name, part.memory, *arguments)
        return target
    made: Any = call(name, target, *arguments)
    return made  # type: ignore[no-any-return]


def serve_list(name: str, listed: T, value: Any, arguments: tuple[Any, ...]) -> T:
    targets = cast("Sequence[Any]", listed)

    def many(part: slice, own: list[Job]) -> bool:
        usual = is_served(name, value) and ordinary_address(PROBE, None, None, None, name, DTYPES)
        looked = ordinary_ones(targets[part]) if usual else None
        if looked is None or not DTYPES.issuperset(looked.dtypes) or any(one.is_complex for one in {*looked.dtypes}):
            return False
        found = {dtype: plan_for(dtype, value) for dtype in {*looked.dtypes}}
        return fill_together(looked, looked.dtypes, found, lambda: (0, 0), own)

    each_of(targets, many, lambda number: serve(name, targets[number], value, *arguments))
    return listed


def is_served(name: str | None, value: Any) -> bool:
    """Whether a call with this value is not torch's, whatever the tensor."""
    helper = None if name is None else HELPERS[name]
    stands = None if helper is None else standing.get(helper)
    return (
        type(value) in (int, float)
        and value == value  # of nan, torch keeps the sign
        and not 0 < abs(value) < TINY  # of these, a setting of the CPU decides
        and (helper is None or stands is originals[helper] or stands is ours[helper])
        and forced_engine.get() in (None, "cpu")
    )


def plan_for(dtype: torch.dtype, value: int | float) -> Plan | None:
    key: Key = dtype, value.hex() if isinstance(value, float) else value
    return plans[key] if key in plans else planned(key, value)


def planned(key: Key, value: float) -> Plan | None:
    """How to fill with a value, for `plans`; None where it is beyond the dtype, or the CPU engine cannot."""
    if setting_up.is_on:
        return None
    engine = engines.load("cpu")
    if isinstance(engine, str):
        return None
    plan = None
    try:
        # Of two elements: torch lets one pass that is beyond the dtype.
        both = torch.full((2,), value, dtype=key[0], device="cpu").view(torch.uint8).tolist()
        plan = cast("CpuEngine", engine).constant(bytes(both[: key[0].itemsize]))
    except (RuntimeError, OverflowError):  # beyond the dtype
        pass
    except KernelMissing:
        return None
    make_room(plans)
    plans[key] = plan
    return plan
