"""A whole model initialised by rules, each parameter from the stream of its name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..drawing.batch import within
from ..drawing.regions import rows, shard
from ..drawing.streams import Stream
from ..drawing.tell import quiet
from ..init import zeros_
from ..initialisers.parts import Gates, Keep
from ..initialisers.values import Initializer
from ..kernels.dtypes import FORMATS
from . import origins
from .block import Block
from .coverage import Coverage
from .entries import Entry
from .names import has_memory, reach
from .overlaps import overlaps
from .report import Assignment, Report
from .rules import Assigned, Matched, Rule, Rules, RulesError, check, described, matched, shown

Module = torch.nn.Module
GROUP = 1 << 28  # elements that are drawn together: long enough for all threads, short enough for a bar
WAY_OUT = "; keep() leaves it as it is"


def initialize(
    model: Module,
    rules: Rules,
    *,
    seed: int,
    fast: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | None = None,
    only: Iterable[str] | None = None,
) -> Report:
    """Initialise every parameter of a model by the first rule that is for it, from `Stream.named(its name, seed)`.

    `rules`: pairs (where, initialiser), see `fastinit.Rule`; or a recipe, `fastinit.recipes.gpt2(n_layer=12)` or its
    name. Rows of zeros that stand for padding (`padding_idx`) stay zeros. A weight that is computed by a
    parametrisation or weight norm is set as a whole, and what it is computed from follows. Buffers, and the parameters
    that a computed weight comes from, are left to rules that name them. Names are those without the prefixes of DDP,
    FSDP and torch.compile.

    `device`: where parameters get new memory, as for a model on the meta device; tied ones stay tied. `dtype`: what
    floating-point parameters become. `only`: names, such as `missing_keys` of `load_state_dict`; nothing else is
    touched. `fast` as everywhere: with False torch draws, from generators seeded by name. `progress`: whether to show
    a bar; None: on a terminal, for what takes more than two seconds.

    Raises `RulesError` before anything is written, with all that is wrong: parameters without a rule, rules that match
    nothing, two parameters in the same memory, initialisers that do not suit a shape or dtype, parameters that are
    lazy, sparse, quantised, without elements or without memory. `TypeError`, `ValueError` for rules that are none.
    """
    seed, place = Stream(seed).seed, None if device is None else torch.device(device)
    found = matched(model, rules, only)
    judge(model, found, place, dtype)
    written = [one for one in found.assigned if not isinstance(one.what, Keep)]
    lay_out(found, place, dtype)
    with drawing(model, seed) as (block, report):
        draw(block, written, seed, fast, progress)
    for one in written:
        if has_memory(one.entry.tensor):
            origins.keep(one.entry.tensor, computed=False)
    report.assigned = tuple(assignment(one, found.rules) for one in found.assigned)
    return report


def assignment(one: Assigned, rules: Sequence[Rule]) -> Assignment:
    tensor = one.entry.tensor
    shape = () if is_lazy(tensor) else tuple(tensor.shape)
    return Assignment(one.entry.name, shape, tensor.dtype, shown(one.what), repr(rules[one.rule]))


# --- before anything is written ------------------------------------------------------------------


def judge(model: Module, found: Matched, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Raise `RulesError` for all that is wrong."""
    problems = found.problems
    for one in found.assigned:
        problem = None if isinstance(one.what, Keep) else unfit(one.entry, device) or refused(one, dtype)
        if problem is None and isinstance(one.what, Keep) and device is not None and one.entry.tensor.is_meta:
            problem = "is on the meta device, so there is nothing to keep"
        if problem is not None:
            problems.append(f"{described(one.entry)} {problem}")
    kept = {id(one.entry) for one in found.assigned if isinstance(one.what, Keep)}
    problems += overlaps(found.entries, {id(one.entry) for one in found.assigned} - kept)
    check(model, problems)


def unfit(entry: Entry, device: torch.device | None) -> str | None:
    """Why a tensor cannot be initialised, whatever the rule says."""
    tensor = entry.tensor
    if is_lazy(tensor):
        return f"is lazy, and gets its shape from the first batch: run one{WAY_OUT}"
    if hasattr(tensor, "device_mesh"):
        return f"is a DTensor, whose parts would be drawn apart: initialise the model before it is sharded{WAY_OUT}"
    if tensor.layout is not torch.strided:
        return f"has the layout {tensor.layout}, and initialisers fill dense tensors{WAY_OUT}"
    if tensor.is_quantized:
        return f"is quantised: initialise it before it is{WAY_OUT}"
    if not tensor.numel():
        emptied = (
            "has no elements here: DeepSpeed ZeRO-3 has taken them; initialise inside deepspeed.zero.GatheredParameters"
        )
        return (emptied if getattr(tensor, "ds_numel", None) else "has no elements") + WAY_OUT
    if tensor.is_meta and device is None:
        return "is on the meta device, without memory: give device="
    if reach(tensor) < tensor.numel():
        return f"has elements that share memory, as expand() makes them: give it memory of its own, by clone(){WAY_OUT}"
    return None


def refused(one: Assigned, dtype: torch.dtype | None) -> str | None:
    """What an initialiser says of a tensor's shape and dtype, which is tried on one without memory."""
    if not isinstance(one.what, (Initializer, Gates)):
        return None
    tensor = one.entry.tensor
    shape = tuple(tensor.shape)
    trial: Any = torch.empty(shape, dtype=changed(tensor, dtype), device="meta")
    if trial.dtype in FORMATS:
        trial = shard(trial, shape, (0,) * len(shape))  # for the arguments are judged of shards, too
    try:
        with quiet():
            one.what.fill(trial)
    except Exception as error:
        said = " ".join(str(error).split())
        return f"cannot be initialised by {one.what!r}: {said}; put a rule for it before rule {one.rule}"
    return None


def changed(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


# --- memory --------------------------------------------------------------------------------------


def lay_out(found: Matched, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Give parameters memory on this device, of this dtype: all of it before any parameter gets its new one.

    What is to be written gets new memory, the rest of the model is copied; with `only`, what that names alone.
    """
    if device is None and dtype is None:
        return
    anew = {id(one.entry) for one in found.assigned if not isinstance(one.what, Keep)}
    anew |= {id(part) for one in found.assigned for part in one.entry.parts}
    concerned = found.entries if found.only is None else [one.entry for one in found.assigned]
    made = []
    for entry in concerned:
        for one in entry.parts if entry.assign is not None else [entry]:
            old = one.tensor.detach()
            place = old.device if device is None else device
            kind = changed(old, dtype) if one.is_parameter else old.dtype
            if place != old.device or kind is not old.dtype:
                empty = functools.partial(torch.empty_strided, old.shape, old.stride(), device=place, dtype=kind)
                new = empty() if id(one) in anew else old.to(place, kind)
                made.append((one, new))
    for one, new in made:
        exchange(one, new)


def exchange(entry: Entry, new: Tensor) -> None:
    """Put a tensor in an entry's place, wherever it is registered; a parameter stays the same object if it can."""
    old = entry.tensor
    if entry.is_parameter and not old.is_meta:
        old.data = new
        return
    if entry.is_parameter:
        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
        new.__dict__.update(vars(old))
    place(entry, new)


def place(entry: Entry, tensor: Tensor) -> None:
    """Register a tensor in an entry's place."""
    for _, module, key in entry.homes:
        own: Any = module._parameters if key in module._parameters else module._buffers
        own[key] = tensor
    entry.tensor = tensor


# --- drawing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def drawing(model: Module, seed: int) -> Iterator[tuple[Block, Report]]:
    """Within the context what is drawn into a model's tensors is put off, by their names; an exception drops it."""
    block = Block(model, seed, opt_in=False, defer=True)
    with block.opened() as report:
        try:
            yield block, report
        except BaseException:
            block.deferred.pending.clear()
            raise


def draw(block: Block, written: Sequence[Assigned], seed: int, fast: bool | None, progress: bool | None) -> None:
    """Fill these tensors, at the end of the block at the latest. First what can fail: other people's functions.

    torch's default CPU generator is seeded for each tensor by its name, for what torch draws itself.
    """
    from tqdm import tqdm

    values = [(one.entry, one.what) for one in written if isinstance(one.what, (Initializer, Gates))]
    with restored([part.tensor for one in written for part in one.entry.parts]):
        for one in written:
            if not isinstance(one.what, (Initializer, Gates, Keep)):
                by_function(block, one.entry, one.what, seed)
        for entry, value in values:
            if entry.assign is not None:
                block.off(within, (), set_computed, entry, value, seed, fast)
    values = [pair for pair in values if pair[0].assign is None]
    total = sum(entry.tensor.numel() for entry, _ in values)
    disable = None if progress is None else not progress
    with tqdm(total=total, delay=2, disable=disable, leave=False, unit="", unit_scale=True, desc="drawing") as bar:
        size = 0
        for entry, value in values:
            fill(entry, value, seed, fast)
            size += entry.tensor.numel()
            if size >= GROUP:
                block.off(within, (), block.deferred.do)
                bar.update(size)
                size = 0


def seeded_by(entry: Entry, seed: int) -> Stream:
    """The stream of a tensor's name, which torch's generator is seeded by, too."""
    stream = Stream.named(entry.name, seed)
    torch.default_generator.manual_seed(stream.id)
    return stream


def fill(entry: Entry, value: Initializer | Gates, seed: int, fast: bool | None) -> None:
    """By a value. The stream is chosen by name when it is drawn, as that of whatever a block draws into the model."""
    stream, tensor, generator = seeded_by(entry, seed), entry.tensor, None
    if tensor.device.type != "cpu" and (fast is False or tensor.dtype not in FORMATS):
        generator = torch.Generator(tensor.device).manual_seed(stream.id)
    value.fill(tensor, generator=generator, fast=fast)
    pad(entry)


def pad(entry: Entry) -> None:
    """Write the zeros that stand for padding."""
    row = entry.padding()
    if row is not None:
        with torch.no_grad():
            zeros_(rows(entry.tensor, row, row + 1))


def by_function(block: Block, entry: Entry, function: Callable[[Tensor], object], seed: int) -> None:
    """By a function of the user's, which has to write all of the tensor."""
    coverage, tensor = Coverage(), entry.tensor
    seeded_by(entry, seed)
    with block.covered(coverage), torch.no_grad():
        if entry.assign is not None:
            tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=entry.parts[0].tensor.device)
        block.off(functools.partial(coverage.made, tensor))  # `off` takes tensors among arguments for written
        function(tensor)
        missed = block.off(functools.partial(coverage.misses, tensor))
    if missed:
        raise RulesError(f"{described(entry)}: {shown(function)} returned without having written all of it, in place")
    if entry.assign is not None:
        with torch.no_grad():
            entry.assign(tensor)
    pad(entry)


def set_computed(entry: Entry, value: Initializer | Gates, seed: int, fast: bool | None) -> None:
    """Set a weight that is computed from other parameters."""
    stream, part = seeded_by(entry, seed), entry.parts[0].tensor
    weight = torch.empty(entry.tensor.shape, dtype=part.dtype, device=part.device)
    value.fill(weight, fast=fast, stream=None if fast is False else stream)
    if entry.assign is not None:
        with torch.no_grad():
            entry.assign(weight)


@contextlib.contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Tensors that are as they were where an exception leaves the context."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
        raise
