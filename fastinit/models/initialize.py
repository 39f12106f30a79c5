"""A whole model initialised by rules, each parameter from the stream of its name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..drawing import flags
from ..drawing.batch import within
from ..drawing.dtensor import is_dtensor
from ..drawing.regions import Shard, Target, local_of, rows, shard as region
from ..drawing.route import may_overlap
from ..drawing.streams import Stream, has_other_ranks
from ..drawing.tell import bar, quiet
from ..init import zeros_
from ..initialisers.parts import Gates, Keep
from ..initialisers.values import Initializer, as_dtype
from ..kernels.dtypes import FORMATS
from ..shards import megatron_place
from . import origins
from .block import Block
from .coverage import Coverage
from .entries import Entry
from .memory import changed, laid_out
from .overlaps import overlaps
from .report import Assignment, Report
from .rules import Match, Matched, Rule, Rules, RulesError, check, described, matched, shown
from .walk import has_memory

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
    dtype: torch.dtype | str | None = None,
    progress: bool | None = None,
    only: Iterable[str] | None = None,
    shard: Callable[[Tensor], Target] | None = None,
) -> Report:
    """Initialise every parameter of a model by the first rule that is for it, from `Stream.named(its name, seed)`.

    `rules`: pairs (where, initialiser), see `fastinit.Rule`; or a recipe, `fastinit.recipes.gpt2(n_layer=12)` or its
    name. Rows of zeros that stand for padding (`padding_idx`) stay zeros. A weight that is computed by a
    parametrisation or weight norm is set as a whole, and what it is computed from follows. Buffers, and the parameters
    that a computed weight comes from, are left to rules that name them. Names are those without the prefixes of DDP,
    FSDP and torch.compile.

    `device`: where parameters get new memory, as for a model on the meta device; tied ones stay tied. `dtype`: what
    floating-point parameters become. `only`: names, such as `missing_keys` of `load_state_dict`; nothing else is
    touched, and a tensor with several names only if all of them are given. DTensors are filled without a collective,
    each rank's part of them. `shard` is called with every other tensor, and says what of a global one that holds, such
    as `fastinit.shards.megatron`. `fast` as everywhere: with False torch draws, from generators seeded by name.
    `progress`: whether to show a bar; None: on a terminal, for what takes more than two seconds.

    Raises `RulesError` before anything is written, with all that is wrong: parameters without a rule, rules that match
    nothing, two parameters in the same memory, initialisers that do not suit a shape or dtype, parameters that are
    lazy, sparse, quantised, without elements or without memory; `TypeError`, `ValueError` for what are not rules.
    An exception of a rule's function leaves the model as it was, but for what the function wrote itself, other than by
    initialisers. Other threads had better not use torch's default generator meanwhile: it is seeded, and put back.
    """
    seed, kind, place = Stream(seed).seed, floating(dtype), memory_on(device)
    found = matched(model, rules, only)
    for entry in found.entries:
        entry.cut = None if is_dtensor(entry.tensor) or is_lazy(entry.tensor) else shard
    judge(model, found, place, kind, fast)
    written = [one for one in found.assigned if not isinstance(one.what, Keep)]
    with laid_out(found, place, kind), drawing(model, seed) as (block, report):
        draw(block, written, seed, fast, progress)
    for one in written:
        if has_memory(one.entry.tensor):
            origins.keep(one.entry.tensor, computed=False)
    report.assigned = tuple(assignment(one, found.rules) for one in found.assigned)
    return report


def assignment(one: Match, rules: Sequence[Rule]) -> Assignment:
    entry = one.entry
    return Assignment(entry.name, entry.shape, entry.tensor.dtype, shown(one.what), repr(rules[one.rule]))


# --- before anything is written ------------------------------------------------------------------


def floating(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype for parameters. Raises `ValueError` for one of whole or complex numbers, `TypeError` for none."""
    found = as_dtype(dtype)
    if found is not None and not found.is_floating_point:
        raise ValueError(f"dtype is what floating-point parameters become, so one of these; got {found}")
    return found


def memory_on(device: torch.device | str | None) -> torch.device | None:
    """A device for parameters. Raises `ValueError` for the meta device, torch's error for what is none."""
    found = None if device is None else torch.device(device)
    if found is not None and found.type == "meta":
        raise ValueError("device is where parameters get memory, and the meta device has none")
    return found


def judge(
    model: Module,
    found: Matched,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    fast: bool | None = None,
) -> None:
    """Raise `RulesError` for all that is wrong."""
    problems = found.problems
    for one in found.assigned:
        problem = None if isinstance(one.what, Keep) else unfit(one.entry, device) or refused(one, dtype, fast)
        if problem is None and isinstance(one.what, Keep) and device is not None and one.entry.tensor.is_meta:
            problem = "is on the meta device, so there is nothing to keep"
        if problem is not None:
            problems.append(f"{described(one.entry)} {problem}")
    problems += overlaps(found.entries, {id(one.entry) for one in found.assigned if not isinstance(one.what, Keep)})
    check(model, problems)


def unfit(entry: Entry, device: torch.device | None) -> str | None:
    """Why a tensor cannot be initialised, whatever the rule says."""
    tensor = entry.tensor
    if is_lazy(tensor):
        return f"is lazy, and gets its shape from the first batch: run one{WAY_OUT}"
    try:
        target = entry.target()
    except ValueError as error:
        return f"cannot be initialised: {error}"
    local = local_of(target)
    if entry.cut is None and is_megatrons_part(tensor):
        return f"is a part of a weight of Megatron-LM's: give shard=fastinit.shards.megatron{WAY_OUT}"
    if tensor.layout is not torch.strided:
        return f"has the layout {tensor.layout}, and initialisers fill dense tensors{WAY_OUT}"
    if tensor.is_quantized:
        return f"is quantised: initialise it before quantising it{WAY_OUT}"
    if not target.numel():
        emptied = "has no elements here: DeepSpeed ZeRO-3 has taken them; give shard=fastinit.shards.deepspeed"
        return (emptied if getattr(tensor, "ds_numel", None) else "has no elements") + WAY_OUT
    if entry.assign is not None and entry.padding() is not None:
        return "is computed, and has a row for padding, which may not be zeros then: rules may name what it is from"
    if entry.assign is not None and any(is_dtensor(part.tensor) for part in entry.parts):
        return "is computed from DTensors, which hold parts of it: rules may name what it is from"
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return f"is an inference tensor, which nothing may write outside torch.inference_mode(){WAY_OUT}"
    if local.is_meta and device is None:
        return "is on the meta device, without memory: give device="
    if may_overlap(local):
        return f"has elements that share memory, as expand() makes them: give it memory of its own, by clone(){WAY_OUT}"
    return None


def is_megatrons_part(tensor: Tensor) -> bool:
    """Whether a weight of Megatron-LM's is cut over several ranks; its mark alone says that it may be."""
    if not getattr(tensor, "tensor_model_parallel", False):
        return False
    try:
        return megatron_place(tensor)[1] > 1
    except (AssertionError, ValueError):  # megatron.core is not in use here, or has no groups
        return has_other_ranks()


def is_torchs(tensor: Tensor, dtype: torch.dtype, fast: bool | None) -> bool:
    """Whether torch is to draw it, by its flag or because no engine does."""
    return (flags.flag_of(tensor) if fast is None else fast) is False or dtype not in FORMATS


def refused(one: Match, dtype: torch.dtype | None, fast: bool | None) -> str | None:
    """What an initialiser says of a tensor's shape and dtype, which is tried on one without memory."""
    if not isinstance(one.what, (Initializer, Gates)):
        raw = is_raw(one.entry.target())
        return f"holds a part of a tensor, and {shown(one.what)} of a rule fills whole ones{WAY_OUT}" if raw else None
    tensor, kind, shape = one.entry.tensor, changed(one.entry.tensor, dtype), one.entry.shape
    trial: Any = torch.empty(shape, dtype=kind, device="meta")
    by_torch = is_torchs(tensor, kind, fast)
    if by_torch and isinstance(one.what, Gates) and is_dtensor(tensor):
        return "is torch's to draw, by fast=, its flag or its dtype, and torch draws no gates of a DTensor"
    if by_torch and is_raw(one.entry.target()):
        return "is torch's to draw, by fast=, its flag or its dtype, and torch cannot draw a part of a tensor"
    if not by_torch:
        trial = region(trial, shape, (0,) * len(shape))  # of which the arguments are judged, too
    try:
        with quiet():
            one.what.fill(trial, fast=False if by_torch else None)
    except Exception as error:
        return f"{said_by(one.what, error)}; put a rule for it before rule {one.rule}"
    return None


def said_by(value: Initializer | Gates, error: Exception) -> str:
    return f"cannot be initialised by {value!r}: {' '.join(str(error).split())}"


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


def draw(block: Block, written: Sequence[Match], seed: int, fast: bool | None, progress: bool | None) -> None:
    """Fill these tensors, at the end of the block at the latest. First what can fail: other people's functions.

    torch's default CPU generator is seeded for each tensor by its name, for what torch draws itself.
    """
    values = [(one.entry, one.what) for one in written if isinstance(one.what, (Initializer, Gates))]
    hows = [one.entry.how for one in written if one.entry.how is not None]
    own = {id(parameter) for how in hows for parameter in how.parameters()}  # which come first
    with restored(hows):
        for entry, value in values:
            if id(entry.tensor) in own:
                block.off(within, (), fill, entry, value, seed, fast)
        for one in written:
            if not isinstance(one.what, (Initializer, Gates, Keep)):
                by_function(block, one.entry, one.what, seed)
        for entry, value in values:
            if entry.assign is not None:
                block.off(within, (), fill, entry, value, seed, fast)
    values = [(entry, value) for entry, value in values if entry.assign is None and id(entry.tensor) not in own]
    sizes = {id(entry): local_of(entry.target()).numel() for entry, _ in values}
    with bar(sum(sizes.values()), "drawing", progress) as meter:
        size = 0
        for entry, value in values:
            fill(entry, value, seed, fast)
            size += sizes[id(entry)]
            if size >= GROUP or entry is values[-1][0]:
                block.off(within, (), block.deferred.do)
                meter.update(size)
                size = 0


def seeded_by(entry: Entry, seed: int) -> Stream:
    """The stream of a tensor's name, which torch's generator is seeded by, too."""
    stream = Stream.named(entry.name, seed)
    torch.default_generator.manual_seed(stream.id)
    return stream


def fill(entry: Entry, value: Initializer | Gates, seed: int, fast: bool | None) -> None:
    """By a value. Its stream is chosen by name when it is drawn, as that of whatever a block draws into the model."""
    stream = seeded_by(entry, seed)

    def by_value(tensor: Target) -> None:
        by_torch = not is_raw(tensor) and is_torchs(local_of(tensor), tensor.dtype, fast)
        generator = torch.Generator(tensor.device).manual_seed(stream.id) if by_torch else None
        # A part of a tensor; a weight that is not the model's yet, and has no name.
        new = is_raw(tensor) or (entry.assign is not None and not by_torch)
        try:
            value.fill(tensor, generator=generator, fast=fast, stream=stream if new else None)
        except (RuntimeError, TypeError, ValueError) as error:  # what torch says only of memory
            raise RulesError(f"{described(entry)} {said_by(value, error)}") from error

    write(entry, by_value)


def is_raw(target: Target) -> bool:
    """Whether it is a part of a tensor of which only the caller knows."""
    return isinstance(target, Shard) and target.owner is None


def by_function(block: Block, entry: Entry, function: Callable[[Tensor], object], seed: int) -> None:
    """By a function of the user's, which has to write all of the tensor."""
    seeded_by(entry, seed)

    def checked(tensor: Tensor) -> None:
        coverage = Coverage()
        with block.covered(coverage):
            block.off(functools.partial(coverage.made, tensor))  # `off` takes tensors among arguments for written
            function(tensor)
            missed = block.off(functools.partial(coverage.misses, tensor))
        if missed:
            what = f"{shown(function)} returned without having written all of it, in place"
            raise RulesError(f"{described(entry)}: {what}")

    write(entry, checked)


def write(entry: Entry, fill_in: Callable[[Any], object]) -> None:
    """Have a tensor filled, but for zeros that stand for padding; or a new weight, to which a computed one is set."""
    with torch.no_grad():
        if entry.assign is None:
            target = entry.target()
            fill_in(target if is_raw(target) else entry.tensor)
            pad(entry, target)
        else:
            part = entry.parts[0].tensor
            weight = torch.empty(entry.tensor.shape, dtype=part.dtype, device=part.device)
            fill_in(weight)
            entry.assign(weight)


def pad(entry: Entry, target: Target) -> None:
    """Write the zeros that stand for padding, into a tensor of the entry's or a part of one."""
    row = entry.padding()
    if row is not None:
        with torch.no_grad():
            zeros_(rows(target, row, row + 1))


@contextlib.contextmanager
def restored(modules: Sequence[Module]) -> Iterator[None]:
    """Modules whose parameters and buffers are as they were where an exception leaves the context."""
    before = [
        (own, name, tensor, tensor.detach().clone())
        for module in modules
        for one in module.modules()
        for own in (one._parameters, one._buffers)
        for name, tensor in own.items()
        if tensor is not None
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for own, name, tensor, old in before:
                own[name] = tensor  # type: ignore[assignment]
                tensor.copy_(old)
        raise
