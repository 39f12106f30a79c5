"""What a block of code initialises through torch, drawn by fastinit: each tensor once, all together when it ends."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, UntypedStorage

from ..drawing import flags, torch_private as private
from ..drawing.batch import Watched, settle, within
from ..drawing.deferred import Deferred, Fill, Source
from ..drawing.route import TORCH, decided_by_others, outside_contract, way
from ..drawing.streams import Stream
from ..init import dirac_, eye_, orthogonal_, sparse_
from ..initialisers import constants
from ..initialisers.quick import Elsewhere, serve
from ..initialisers.table import CONSTANTS, OF_SHAPES
from ..samplers import bernoulli_
from . import functions
from .coverage import Coverage
from .names import Names
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
        self.blocks: list[accelerate] = []


here = _Here()


class accelerate:
    """`with fastinit.accelerate():` has fastinit draw what the block initialises through torch, at its end.

    Every function of torch.nn.init, however it was imported, `weight.data.normal_()` and the other samplers of tensors,
    `torch.randn` and its like: a call is recognised, checked and given its number of the generator when it is made, and
    drawn when the block ends, the last one of each tensor alone, all together. What else needs the memory meanwhile
    (a clone, a sum, a part that is written) finds it drawn. Bits are those of fastinit's calls in the same places.

    The block's value is a `Report`; `report.escaped` names what torch drew nevertheless. Also a decorator. Other
    threads are not concerned, and must not use the block's tensors before it ends. An exception that leaves the block
    changes nothing: what was initialised before it is drawn.

    `model` and `seed` around a model's own initialisation (`model.init_weights()`): each of its parameters and buffers
    is drawn from `Stream.named(its name, seed)`, so that values depend neither on the order of calls nor on what else
    is initialised; torch's default CPU generator is seeded for the block, and is afterwards as it was before.
    `opt_in`: only tensors whose flag is True (see `fastinit.flag`). `defer=False`: the same draws, each at once.

    Raises `ValueError` for a seed without a model (`fastinit.build` takes one), `RuntimeError` where the same object is
    entered twice at a time.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        seed: int | None = None,
        opt_in: bool = False,
        defer: bool = True,
    ) -> None:
        if (model is None) != (seed is None):
            raise ValueError(
                "accelerate takes a model and a seed, or neither: accelerate(model, seed=0) around the model's own "
                "initialisation draws by the names of its parameters; fastinit.build(make, seed=0) does so from the "
                "constructor on"
            )
        self.model, self.seed = model, None if seed is None else Stream(seed).seed
        self.opt_in, self.defer = opt_in, defer
        self.report = Report()
        self.watch: Watch
        self.open: ExitStack | None = None

    def __enter__(self) -> Report:
        if self.open is not None:
            raise RuntimeError("this block is open already: make another one")
        outer = here.blocks[-1] if here.blocks else None
        self.report = Report()
        self.watch = Watch(Deferred()) if outer is None else outer.watch
        self.watch.hide_from_dynamo()
        self.deferred = self.watch.deferred
        (self.off if outer is None else outer.off)(within, (), self.deferred.do)  # by the names of the block around
        with ExitStack() as stack:
            if self.seed is not None:
                stack.enter_context(seeded(self.seed))
            stack.enter_context(self.counted())
            here.blocks.append(self)
            stack.callback(here.blocks.remove, self)
            stack.enter_context(functions.wrapped(dispatch))
            stack.enter_context(self.drawing(outer))
            if outer is None:
                stack.enter_context(self.watch)
            stack.enter_context(Recogniser(self))
            self.open = stack.pop_all()
        return self.report

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stack, self.open = self.open, None
        if stack is not None:
            stack.__exit__(kind, error, at)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """As a decorator: each call of the function is in a block of its own."""

        @functools.wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            with accelerate(self.model, seed=self.seed, opt_in=self.opt_in, defer=self.defer):
                return function(*args, **kwargs)

        return inside

    @contextmanager
    def drawing(self, outer: accelerate | None) -> Iterator[None]:
        """Within the context draws are put off, and what is pending in a block around this one is drawn before."""
        deferred, block = self.deferred, Watched(self.deferred, self.off, is_seen, self.watch.escaped)
        off = self.off if outer is None else outer.off
        before = deferred.defer, deferred.renamed
        deferred.noted = drew
        deferred.defer = self.defer
        if self.model is not None and self.seed is not None:
            deferred.renamed = Names(self.model, self.seed)
        block.__enter__()
        try:
            yield
        finally:
            try:
                off(block.__exit__, None, None, None)
            finally:
                deferred.defer, deferred.renamed = before
                forget_dead()

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
    def covered(self, coverage: Coverage) -> Iterator[None]:
        """Within the context everything that is done is told to `coverage`."""
        deferred, watch = self.deferred, self.watch
        before = watch.coverage, deferred.noted
        watch.coverage = coverage

        def noted(fill: Fill, storage: UntypedStorage, owner: Tensor | None) -> None:
            drew(fill, storage, owner)
            coverage.drew(fill, storage)

        deferred.noted = noted
        try:
            yield
        finally:
            watch.coverage, deferred.noted = before

    # --- calls ---------------------------------------------------------------------------------------

    def off(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of our own, with our modes off."""
        modes = []
        while is_seen():
            modes.append(private.function_mode_at(private.function_modes() - 1))
            modes[-1].__exit__(None, None, None)
        try:
            return self.watch.off(function, *args, **kwargs)
        finally:
            for mode in reversed(modes):
                mode.__enter__()

    def leaves(self, tensor: Tensor) -> bool:
        """Whether a call with this tensor is not fastinit's to serve, as far as the block tells."""
        return tensor.is_meta or (self.opt_in and flags.flag_of(tensor) is not True)

    def by_torch(self, call: Call, function: Callable[[], Any]) -> Any:
        """Call torch's function, which may draw; count it if it does."""
        name, tensor, _, generator = call
        settle(tensor)
        surely = name not in CONSTANTS and not (tensor.is_cpu and generator is None)
        return self.watch.counting(name, function, surely)

    def serve(self, call: Call, torchs: Callable[[], Any]) -> Any:
        """Have a call served, by torch's function where fastinit does not."""
        name, tensor, values, generator = call
        self.deferred.source = Source(name, values, generator is None)
        by_torch = functools.partial(self.by_torch, call, torchs)
        if name in ("constant_", "ones_", "zeros_"):
            value = values[0] if values else int(name == "ones_")
            done = type(value) in (int, float) and constants.fill(None, tensor, value)
            return tensor if done else by_torch()
        if name in MATRICES:
            if way(tensor, generator, None, None, name) is TORCH:
                return by_torch()
            return MATRICES[name](tensor, *values, generator)
        if name in PATTERNS:
            self.write_pattern(call)
            return tensor
        if name == "bernoulli_" and isinstance(values[0], Tensor):
            return bernoulli_(tensor, values[0], generator)
        return serve(name, tensor, values, generator, None, None, None, name in OF_SHAPES, Elsewhere(None, by_torch))

    def write_pattern(self, call: Call) -> None:
        """Have a pattern written later; what is out of the ordinary at once."""
        name, tensor, values, _ = call
        write = PATTERNS[name]
        if decided_by_others(name, tensor) or outside_contract(tensor, (tensor.dtype,)) or tensor.is_inference():
            write(tensor, *values)
            return
        write(torch.empty_like(tensor, device="meta"), *values)  # for torch's errors
        private.increment_version((tensor,))
        self.deferred.add(tensor, lambda out, _: write(out, *values), 0, 0)


def is_seen() -> bool:
    """Whether what this thread does is seen by a block's modes, and they can be turned off: none lies above them."""
    depth = private.function_modes()
    return depth > 0 and isinstance(private.function_mode_at(depth - 1), Recogniser)


def dispatch(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of one of `functions.PLACES`."""
    block = here.blocks[-1] if here.blocks and is_seen() else None
    torchs = functools.partial(function, *args, **kwargs)
    if block is None:
        return torchs()
    if name == "compile":
        compiled = torchs()
        block.watch.hide_from_dynamo()
        return compiled
    if name == "to_dlpack":
        for tensor in args:
            block.off(block.watch.give_away, tensor, name)
        return torchs()
    call = bound(name, function, args, kwargs)
    return torchs() if call is None or block.leaves(call.tensor) else block.off(block.serve, call, torchs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's default CPU generator begins at `seed`, a stream's, and is afterwards as it was before."""
    seed = Stream(seed).seed
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
