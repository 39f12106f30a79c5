"""The safety net of deferred draws: every operation that needs memory in which something is pending draws it first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..drawing import torch_private as private
from ..drawing.batch import within
from ..drawing.deferred import NOBODY, Deferred, Pending, key_of
from ..drawing.route import may_overlap, plain
from .coverage import Coverage, in_memory
from .operations import Operation, operation, tensors

P = ParamSpec("P")
R = TypeVar("R")


class Watch(private.DispatchMode):  # type: ignore[misc]
    """Sees every operation: draws what is pending in its tensors, and counts what torch draws itself.

    It stays on the stack from the beginning of a block to its end, though it is only needed while something is pending:
    torch.inference_mode and backward passes put back what a thread was told of its modes, and would forget one that
    came meanwhile.
    """

    def __init__(self, deferred: Deferred) -> None:
        super().__init__()
        self.deferred = deferred
        self.early: Counter[str] = Counter()  # operations for which something was drawn before the end
        self.escaped: Counter[str] = Counter()  # operations by which torch drew
        self.coverages: tuple[Coverage, ...] = ()  # are told what is done

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch hides it from its compiler, for which it imports that: a second. See `skipped_by_dynamo`."""
        return False

    def off(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function whose operations are our own business, and which writes its tensors."""
        depth = private.dispatch_modes()  # without this one, while it is being told of an operation
        top = depth > 0 and private.dispatch_mode_at(depth - 1) is self
        if top:
            private.pop_dispatch_mode(None)  # not `__exit__`, which takes three times as long
        try:
            result = function(*args, **kwargs)
            for coverage in self.coverages:
                for tensor in in_memory((args, kwargs)):
                    coverage.wrote(tensor)
            return result
        finally:
            self.deferred.source = NOBODY
            if top:
                private.push_dispatch_mode(self)

    def leave(self) -> None:
        """Leave the stack of modes, if no other lies above."""
        depth = private.dispatch_modes()
        if depth > 0 and private.dispatch_mode_at(depth - 1) is self:
            self.__exit__(None, None, None)

    def counting(self, name: str, function: Callable[[], R], surely: bool = False) -> R:
        """Call a function of torch's with the watch off, and count under that name what it draws."""
        before = torch.default_generator.get_state()
        try:
            return function()
        finally:
            if surely or has_moved(before):
                self.escaped[name] += 1

    def draw(self, tensor: Tensor, name: str) -> None:
        """Draw what is pending in the tensor's memory, for an operation of this name."""
        if self.deferred.touches(tensor):
            self.early[name] += 1
            within((), self.deferred.settle, tensor)

    def give_away(self, tensor: Tensor, name: str) -> None:
        """Draw what is pending in memory whose address is about to be known where nobody can see."""
        self.draw(tensor, name)
        if in_memory(tensor):
            self.deferred.keep_known(tensor)
            for coverage in self.coverages:  # whoever has the address may write
                coverage.wrote(tensor)

    # --- what it sees ------------------------------------------------------------------------------

    @private.skipped_by_dynamo
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        done = operation(func)
        if not (self.deferred.pending or done.draws or self.coverages):
            return func(*args, **kwargs)
        overwritten: dict[int, Pending] = {}
        if self.deferred.pending and done.looks:
            with private.no_torch_functions():
                if done.copies and (made := self.copied(done, args, kwargs)) is not None:
                    return made
                overwritten = self.before(done, args, kwargs)
        room = args[0].untyped_storage().nbytes() if self.coverages and done.name == "resize_" else 0
        try:
            result = self.counted(func, args, kwargs) if done.draws else func(*args, **kwargs)
        except BaseException:
            self.deferred.pending = overwritten | self.deferred.pending  # it was not
            raise
        self.deferred.replaced += sum(len(forgotten.fills) for forgotten in overwritten.values())
        with private.no_torch_functions():
            for coverage in self.coverages:
                coverage.did(done, args, kwargs, result, room)
        return result

    def counted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = torch.default_generator.get_state()
        result = func(*args, **kwargs)
        elsewhere = any(not (tensor.is_cpu or tensor.is_meta) for tensor in tensors((args, kwargs, result)))
        if elsewhere or kwargs.get("generator") is not None or has_moved(before):
            self.escaped[operation(func).name] += 1
        return result

    def before(self, done: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Pending]:
        """Draw what an operation needs; returns what was pending in memory that it overwrites."""
        pending, overwritten = self.deferred.pending, {}
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            return {}
        for number, tensor in enumerate(tensors((args, kwargs))):
            if not plain(type(tensor)):  # who knows what it holds
                self.early[done.name] += 1
                within((), self.deferred.do)
                break
            if not self.deferred.touches(tensor):
                continue
            if number == 0 and done.overwrites and is_whole(tensor) and not shares(tensor, (args[1:], kwargs)):
                overwritten[key_of(tensor)] = pending.pop(key_of(tensor))
            else:
                self.draw(tensor, done.name)
        return overwritten

    def copied(self, done: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """A copy of all of what is pending somewhere is pending, too: the result, or None where it has to be made."""
        source = args[-1]
        if not is_usual(source) or not self.deferred.touches(source):
            return None
        made: Tensor = torch.empty_like(source, **kwargs) if done.name == "clone" else args[0]
        alike = (made.shape, made.stride(), made.dtype) == (source.shape, source.stride(), source.dtype)
        if not (alike and is_usual(made) and key_of(made) != key_of(source) and self.deferred.copy(source, made)):
            return None
        for coverage in self.coverages:
            coverage.wrote(made)
        return made


def has_moved(before: Tensor) -> bool:
    """Whether torch's default CPU generator has given numbers since its state was this."""
    with private.no_torch_functions():
        return not torch.equal(before, torch.default_generator.get_state())


def is_usual(value: Any) -> bool:
    """Whether this is a tensor of a usual class that shows all of its memory, as it is."""
    if not isinstance(value, Tensor) or not plain(type(value)) or value.is_meta or value.is_conj() or value.is_neg():
        return False
    return is_whole(value)


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor shows all of its memory, each place once."""
    return tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes() and not may_overlap(tensor)


def shares(tensor: Tensor, arguments: Any) -> bool:
    """Whether one of these has the tensor's memory, too."""
    own = key_of(tensor)
    return any(key_of(other) == own for other in in_memory(arguments))
