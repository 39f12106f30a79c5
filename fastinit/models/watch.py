"""The safety net of deferred draws: every operation that needs memory in which something is pending draws it first."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..drawing import torch_private as private
from ..drawing.batch import within
from ..drawing.deferred import NOBODY, Deferred, Pending, key_of
from ..drawing.route import plain
from .coverage import Coverage, in_memory, tensors

P = ParamSpec("P")
R = TypeVar("R")
aten = torch.ops.aten

# Operations that ask no more of their tensors than shapes and dtypes, and give new memory.
NO_LOOK = (
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full"),
    *("is_same_size", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "size", "stride"),
)
# Operations that write all of their first tensor, whatever was in it.
OVERWRITES = ("zero_", "fill_", "copy_", "uniform_", "normal_", "bernoulli_", "random_", "exponential_", "log_normal_",
              "cauchy_", "geometric_")  # fmt: skip


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation: draws what is pending in its tensors, and counts what torch draws itself.

    It stays on the stack from the beginning of a block to its end, though it is only needed while something is pending:
    torch.inference_mode and backward passes put back what a thread was told of its modes, and would forget one that
    came meanwhile.
    """

    def __init__(self, deferred: Deferred) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.deferred = deferred
        self.early: Counter[str] = Counter()  # operations for which something was drawn before the end
        self.escaped: Counter[str] = Counter()  # operations by which torch drew
        self.coverage: Coverage | None = None  # is told what is done

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not by torch, which would import its compiler for it (a second): see `hide_from_dynamo`."""
        return False

    @classmethod
    def hide_from_dynamo(cls) -> None:
        """Have torch's compiler, once it is there, not look into what is called while a compiled function runs."""
        dynamo: Any = sys.modules.get("torch._dynamo")
        told = cls.__dict__["__torch_dispatch__"]
        if dynamo is not None and told is cls.told:
            cls.__torch_dispatch__ = dynamo.disable(told)  # type: ignore[method-assign]

    def off(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function whose operations are our own business."""
        depth = private.dispatch_modes()  # without this one, while it is being told of an operation
        top = depth > 0 and private.dispatch_mode_at(depth - 1) is self
        if top:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            result = function(*args, **kwargs)
            if self.coverage is not None:
                for tensor in in_memory((args, kwargs)):
                    self.coverage.wrote(tensor)
            return result
        finally:
            self.deferred.source = NOBODY
            if top:
                self.__enter__()  # type: ignore[no-untyped-call]

    def counting(self, name: str, function: Callable[[], R], surely: bool = False) -> R:
        """Call a function of torch's that is not seen, and count under that name what it draws."""
        before = torch.default_generator.get_state()
        try:
            return function()
        finally:
            if surely or has_moved(before):
                self.escaped[name] += 1

    def give_away(self, tensor: Tensor, name: str, kept: bool = True) -> None:
        """Draw what is pending in memory that is about to be read or (if `kept`) known where nobody can see."""
        try:
            if self.deferred.touches(tensor):
                self.early[name] += 1
                within((), self.deferred.settle, tensor)
            if kept:
                self.deferred.keep_known(tensor)
                if self.coverage is not None:  # whoever has the address may write
                    self.coverage.wrote(tensor)
        except (NotImplementedError, RuntimeError):  # it has no memory
            return

    # --- what it sees ------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = KINDS.get(func)
        if kind is None:
            kind = KINDS[func] = kind_of(func)
        if not (self.deferred.pending or kind.draws or self.coverage is not None):
            return func(*args, **kwargs)
        overwritten: dict[int, Pending] = {}
        if self.deferred.pending and kind.looks:
            with private.no_torch_functions():
                if kind.copies and (made := self.copied(func, args, kwargs)) is not None:
                    return made
                overwritten = self.before(func, kind, args, kwargs)
        try:
            result = self.counted(func, args, kwargs) if kind.draws else func(*args, **kwargs)
        except BaseException:
            self.deferred.pending |= overwritten  # it was not
            raise
        self.deferred.replaced += sum(len(forgotten.fills) for forgotten in overwritten.values())
        if self.coverage is not None:
            with private.no_torch_functions():
                self.coverage.did(func, kind.name, args, kwargs, result)
        return result

    told = __torch_dispatch__

    def counted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = torch.default_generator.get_state()
        result = func(*args, **kwargs)
        if kwargs.get("generator") is not None or has_moved(before):
            self.escaped[name_of(func)] += 1
        return result

    def before(self, func: Any, kind: Kind, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Pending]:
        """Draw what an operation needs; returns what was pending in memory that it overwrites."""
        pending, overwritten = self.deferred.pending, {}
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            return {}
        for number, tensor in enumerate(tensors((args, kwargs))):
            if not plain(type(tensor)):  # who knows what it holds
                self.early[name_of(func)] += 1
                within((), self.deferred.do)
                break
            if not self.deferred.touches(tensor):
                continue
            if number == 0 and kind.overwrites and is_whole(tensor) and not overlaps(tensor, args[1:], kwargs):
                overwritten[key_of(tensor)] = pending.pop(key_of(tensor))
                continue
            self.early[name_of(func)] += 1
            within((), self.deferred.settle, tensor)
        return overwritten

    def copied(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """A copy of all of what is pending somewhere is pending, too: the result, or None where it has to be made."""
        tensor = args[-1]
        if not is_plain_whole(tensor) or not self.deferred.touches(tensor):
            return None
        made: Tensor = torch.empty_like(tensor, **kwargs) if func is aten.clone.default else args[0]
        alike = (made.shape, made.stride(), made.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        apart = is_plain_whole(made) and key_of(made) != key_of(tensor)
        if not (alike and apart and self.deferred.copy(tensor, made)):
            return None
        if self.coverage is not None:
            self.coverage.wrote(made)
        return made


class Kind:
    """What an operation does, as far as it matters here."""

    def __init__(self, func: Any) -> None:
        self.name = name = name_of(func)
        self.looks = not (func.is_view or name in NO_LOOK) if func.namespace == "aten" else True
        self.overwrites = func.namespace == "aten" and name in OVERWRITES
        self.copies = func is aten.clone.default or func is aten.copy_.default
        self.draws = torch.Tag.nondeterministic_seeded in func.tags


KINDS: dict[Any, Kind] = {}
kind_of = Kind


def has_moved(before: Tensor) -> bool:
    """Whether torch's default CPU generator has given numbers since its state was this."""
    with private.no_torch_functions():
        return not torch.equal(before, torch.default_generator.get_state())


def name_of(func: Any) -> str:
    return str(func.overloadpacket.__name__)


def is_plain_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and plain(type(value)) and not value.is_meta and is_whole(value)


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor shows all of its memory, each place once."""
    return tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()


def overlaps(tensor: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation that overwrites a tensor reads its memory, too."""
    own = tensor.untyped_storage()._cdata
    return any(other.untyped_storage()._cdata == own for other in tensors((args, kwargs)))
