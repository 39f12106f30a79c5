"""A block in which torch's initialisers are served by fastinit, and deferred: how its parts work together."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, UntypedStorage
from torch.utils.weak import WeakIdKeyDictionary

from ..drawing import flags, torch_private as private
from ..drawing.batch import Watched, blocks, settle, within
from ..drawing.deferred import Deferred, Fill, Source, key_of
from ..drawing.dtensor import placed
from ..drawing.ranks import agree_on_seed
from ..drawing.regions import Shard, part_of, parts_of
from ..drawing.route import TORCH, changes_nothing, decided_by_others, outside_contract, way
from ..init import dirac_, eye_, orthogonal_, sparse_
from ..initialisers import constants
from ..initialisers.quick import Elsewhere, serve
from ..initialisers.table import CONSTANTS, OF_SHAPES, VALUES
from ..kernels.runs import row_major, unravelled
from ..samplers import bernoulli_
from . import functions
from .coverage import Coverage
from .names import Names, subsequence
from .operations import tensors
from .origins import drew, forget_dead
from .recognise import Call, Recogniser, bound
from .report import Report
from .watch import Watch

P = ParamSpec("P")
R = TypeVar("R")
MATRICES: dict[str, Callable[..., Tensor]] = {"orthogonal_": orthogonal_, "sparse_": sparse_}
PATTERNS: dict[str, Callable[..., Tensor]] = {"eye_": eye_, "dirac_": dirac_}  # which draw nothing


class _Here(threading.local):
    """The blocks that are open in this thread, the innermost last."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []


here = _Here()


class Block:
    """The innards of an `accelerate` block. One inside another has the same `Watch` and the same deferred draws."""

    def __init__(self, model: torch.nn.Module | None, seed: int | None, opt_in: bool, defer: bool) -> None:
        self.model, self.seed, self.opt_in, self.defer = model, seed, opt_in, defer
        self.outer = here.blocks[-1] if here.blocks else None
        self.watch: Watch = Watch(Deferred()) if self.outer is None else self.outer.watch
        self.deferred = self.watch.deferred
        self.watched = Watched(self.deferred, self.off, is_seen, self.watch.escaped)
        self.recogniser = Recogniser(self)
        self.report = Report()
        self.parts: Any = WeakIdKeyDictionary()  # copies of parts of DTensors, and of what they are

    @contextmanager
    def opened(self) -> Iterator[Report]:
        """Within the context calls are recognised; at its end what is pending is drawn.

        An interruption while it ends skips what is pending, and leaves nothing behind: `close` is called twice.
        """
        if lacking := private.lacking():
            raise RuntimeError(f"this release of torch lacks {', '.join(lacking)}, without which nothing is deferred")
        self.off(within, (), self.deferred.do)  # by the names of the block around this one
        with ExitStack() as stack:
            stack.callback(self.close)
            stack.callback(self.close)
            if self.seed is not None:
                agree_on_seed(self.seed)
                stack.enter_context(seeded(self.seed))
            stack.enter_context(self.counted())
            here.blocks.append(self)
            functions.enter(self, dispatch)
            stack.enter_context(self.drawing())
            stack.callback(self.clear)
            if self.outer is None:
                self.watch.__enter__()
            private.push_function_mode(self.recogniser)
            yield self.report

    def close(self) -> None:
        """Take this block's modes, its wrappers and itself out of everything; what is done already is left."""
        self.clear()
        self.watched.over = True
        functions.leave(self)
        here.blocks[:] = [block for block in here.blocks if block is not self]

    def clear(self) -> None:
        """Take this block's modes off their stacks, whatever lies above them."""
        modes = [private.function_mode_at(place) for place in range(private.function_modes())]
        if self.recogniser in modes:
            with_modes([mode for mode in modes if mode is not self.recogniser])
        if self.outer is None:
            self.watch.leave()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """The report: what has been counted since."""
        deferred, watch, report = self.deferred, self.watch, self.report
        before = deferred.drawn, deferred.replaced, len(deferred.foreign), watch.early.copy(), watch.escaped.copy()
        try:
            yield
        finally:
            report.drawn, report.replaced = deferred.drawn - before[0], deferred.replaced - before[1]
            report.foreign = deferred.foreign[before[2] :]
            report.early, report.escaped = watch.early - before[3], watch.escaped - before[4]

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within the context draws are put off; at its end they are made, by the names of this block."""
        deferred = self.deferred
        before = deferred.defer, deferred.renamed, deferred.noted
        try:
            deferred.defer = self.defer
            if self.outer is None:
                deferred.noted = drew
            if self.model is not None and self.seed is not None:
                deferred.renamed = Names(self.model, self.seed)
            self.watched.__enter__()
            try:
                yield
            finally:
                self.off(self.watched.__exit__, None, None, None)
        finally:
            deferred.defer, deferred.renamed, deferred.noted = before
            forget_dead()

    @contextmanager
    def covered(self, coverage: Coverage) -> Iterator[None]:
        """Within the context everything that is done is told to `coverage`."""
        deferred, watch = self.deferred, self.watch
        before = watch.coverages, deferred.noted

        def noted(fill: Fill, storage: UntypedStorage, owner: Tensor | None) -> None:
            before[1](fill, storage, owner)
            coverage.drew(fill, storage)

        try:
            watch.coverages, deferred.noted = (*before[0], coverage), noted
            yield
        finally:
            watch.coverages, deferred.noted = before

    # --- calls ---------------------------------------------------------------------------------------

    def off(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of our own, which may put off draws in this block, with our modes off."""
        call = functools.partial(self.watch.off, functools.partial(self.in_block, function), *args, **kwargs)
        if not is_seen():
            return call()
        modes = [private.function_mode_at(place) for place in range(private.function_modes())]
        try:
            with_modes([mode for mode in modes if not isinstance(mode, Recogniser)])
            return call()
        finally:
            with_modes(modes)

    def is_innermost(self, found: Sequence[weakref.ref[Any]]) -> bool:
        return bool(found) and found[-1]() is self.watched

    def served(self, call: Call, torchs: Callable[[], Any]) -> Any:
        """Have a call served that a mode was told of."""
        if private.function_modes() or not self.is_innermost(blocks.get()):
            return self.off(self.serve, call, torchs)
        return self.watch.off(self.serve, call, torchs)  # the usual case: no other mode, task or batch

    def in_block(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Modes are a thread's, blocks are a context's: another task of asyncio's does not know of this one."""
        found = blocks.get()
        if self.is_innermost(found) or self.watched.over or any(ref() is self.watched for ref in found):
            return function(*args, **kwargs)
        return within((*found, weakref.ref(self.watched)), function, *args, **kwargs)

    def leaves(self, tensor: Tensor) -> bool:
        """Whether a call with this tensor is not fastinit's to serve, as far as the block tells."""
        return tensor.is_meta or (self.opt_in and flags.flag_of(tensor) is not True)

    def note_parts(self, result: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember of which parts of a DTensor `result`, of a function that gives views, has copies."""
        tensor, *rest = args
        results = result if isinstance(result, (list, tuple)) else [result]
        if all(key_of(one) == key_of(tensor) for one in results):
            return
        try:
            made = func(torch.empty(tensor.shape, device="meta"), *rest, **kwargs)
            held = placed(tensor, True)
        except (RuntimeError, TypeError, ValueError):  # an index that has a device, placements that are not known
            return
        steps = row_major(tensor.shape)
        for one, seen in zip(results, made if isinstance(made, (list, tuple)) else [made], strict=True):
            kept = subsequence(seen.stride(), steps)
            if seen._is_view() and kept is not None and key_of(one) != key_of(tensor):
                begins, sizes = unravelled(int(seen.storage_offset()), steps), dict(zip(kept, seen.shape, strict=True))
                self.parts[one] = part_of(held, [(at, at + sizes.get(d, 1)) for d, at in enumerate(begins)], kept)

    def write_part(self, part: Shard, name: str, values: tuple[Any, ...]) -> Shard:
        """Have torch write a constant to a part of a DTensor; of draws, which it would lose, the report tells."""
        if not is_number(name):
            self.watch.escaped[f"{name} of a part of a DTensor: lost"] += 1
            return part
        for memory, _ in parts_of(part):
            memory.fill_(VALUES.get(name, values[0] if values else 0))
        return part

    def by_torch(self, call: Call, function: Callable[[], Any]) -> Any:
        """Call torch's function, which may draw; count it if it does."""
        settle(call.tensor, *call.values)
        surely = call.name not in CONSTANTS and not (call.tensor.is_cpu and call.generator is None)
        return self.watch.counting(call.name, function, surely)

    def serve(self, call: Call, torchs: Callable[[], Any]) -> Any:
        """Have a call served, by torch's function where fastinit does not."""
        name, tensor, values, generator = call
        if self.parts and (part := self.parts.get(tensor)) is not None:
            self.serve(call._replace(tensor=part), functools.partial(self.write_part, part, name, values))
            return torchs() if is_number(name) else tensor
        self.deferred.source = Source(name, values, generator is None)
        by_torch = functools.partial(self.by_torch, call, torchs)
        if is_number(name):
            value = VALUES.get(name, values[0] if values else None)
            done = type(value) in (int, float) and constants.fill(None, tensor, value)
            return tensor if done else by_torch()
        if name in MATRICES:
            by = way(placed(tensor), generator, None, None, name)
            return by_torch() if by is TORCH else MATRICES[name](tensor, *values, generator)
        if name in PATTERNS:
            return self.serve_pattern(call)
        if name == "bernoulli_" and isinstance(values[0], Tensor):
            return bernoulli_(tensor, values[0], generator)
        return serve(name, tensor, values, generator, None, None, None, name in OF_SHAPES, Elsewhere(None, by_torch))

    def serve_pattern(self, call: Call) -> Tensor:
        """Have a pattern written later; what is out of the ordinary at once."""
        name, tensor, values, _ = call
        write = PATTERNS[name]
        if decided_by_others(name, tensor) or outside_contract(tensor, (tensor.dtype,)) or tensor.is_inference():
            return write(tensor, *values)
        write(torch.empty_like(tensor, device="meta"), *values)  # for torch's errors
        private.increment_version((tensor,))
        self.deferred.add(tensor, lambda out, _: write(out, *values), 0, 0)
        return tensor


def is_number(name: str) -> bool:
    """Whether an initialiser writes one number everywhere."""
    return name in VALUES or name == "constant_"


def is_seen() -> bool:
    """Whether a block's modes see what this thread does; they can be turned off where none lies above that matters."""
    for place in reversed(range(private.function_modes())):
        mode = private.function_mode_at(place)
        if isinstance(mode, Recogniser):
            return True
        if not changes_nothing(mode):
            return False
    return False


def with_modes(modes: Sequence[Any]) -> None:
    """Make these the torch function modes of this thread, the innermost last."""
    while private.function_modes():
        private.pop_function_mode()
    for mode in modes:
        private.push_function_mode(mode)


def dispatch(what: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of one of `functions.PLACES`."""
    block = here.blocks[-1] if here.blocks and is_seen() else None
    torchs = functools.partial(function, *args, **kwargs)
    if block is None:
        return torchs()
    if what == functions.EVERYTHING:
        block.off(within, (), block.deferred.do)
        return torchs()
    if what in (functions.SETTLE, "to_dlpack"):
        act = block.watch.draw if what == functions.SETTLE else block.watch.give_away
        for tensor in tensors((args, kwargs)):
            block.off(act, tensor, function.__name__)
        return torchs()
    call = bound(what, function, args, kwargs)
    return torchs() if call is None or block.leaves(call.tensor) else block.off(block.serve, call, torchs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's default CPU generator begins at `seed`, and is afterwards as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def draw_at_once() -> None:
    """In a child process, as a DataLoader's worker: what it makes goes out by ways that nobody sees."""
    for block in here.blocks:
        block.deferred.defer = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=draw_at_once)
