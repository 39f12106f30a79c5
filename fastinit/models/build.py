"""A model from its constructor, every parameter drawn once, by its name."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from ..drawing.deferred import key_of
from ..drawing.ranks import agree_on_seed
from ..drawing.streams import Stream
from . import origins
from .block import Block, seeded
from .coverage import Coverage, check as check_coverage
from .names import Names
from .report import Report
from .walk import has_memory, named_tensors

M = TypeVar("M", bound=torch.nn.Module)
Problems = list[tuple[str, str]]  # names of tensors, and what is wrong with each


def build(
    make: Callable[..., M],
    *args: Any,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    check: bool = True,
    **kwargs: Any,
) -> M:
    """The model that `make(*args, **kwargs)` constructs, every parameter and buffer drawn once, by its name.

    `make` is a module's class or a function that returns a module. It runs inside `accelerate`: what it initialises
    through torch is drawn when it is done, each tensor from `Stream.named(its qualified name, seed)`, whatever the
    order of modules, and whatever else the model has. Tied parameters are drawn once, by their first name. Copies
    (`nn.TransformerEncoder` copies its layer) stay copies. What is used before it has a name
    (`Parameter(torch.randn(n) * 0.02)`) is drawn by its number among the constructor's draws instead: `audit` lists it.

    `device`, `dtype`: where and as what tensors are made that do not say so; None leaves torch's defaults. torch's
    default CPU generator is seeded for the constructor, and is afterwards as it was before.

    Raises `CoverageError`, with names, where nothing has written a parameter or buffer, or it has no memory (on the
    meta device, lazy, emptied by DeepSpeed); not if `check` is false. Raises `ValueError` for a model that existed
    before, `TypeError` for what is no module, and whatever `make` raises.
    """
    place, seed = None if device is None else torch.device(device), Stream(seed).seed

    def judge(model: M, problems: Problems) -> None:
        if check:
            check_coverage(model, problems)

    with ExitStack() as stack:
        if dtype is not None:
            stack.enter_context(default_dtype(dtype))
        if place is not None:
            stack.enter_context(place)
        model, _, _ = constructed_by_name(functools.partial(make, *args, **kwargs), seed, place, judge)
    return model


def constructed_by_name(
    make: Callable[[], M],
    seed: int,
    device: torch.device | None = None,
    judge: Callable[[M, Problems], None] = lambda *_: None,
) -> tuple[M, Problems, Report]:
    """What `make` returns, drawn by name; what is not initialised of it, which `judge` hears before; and a report."""
    problems: Problems = []

    def finish(model: M, block: Block, coverage: Coverage) -> None:
        check_model(model, new)
        problems.extend(coverage.problems(model, device))
        judge(model, problems)
        block.deferred.renamed = Names(model, seed, coverage.drawn)

    agree_on_seed(seed)
    with seeded(seed), registering() as new:
        model, _, report = constructed(make, finish)
    return model, problems, report


def constructed(
    make: Callable[[], M], finish: Callable[[M, Block, Coverage], None] = lambda *_: None
) -> tuple[M, Coverage, Report]:
    """What `make` returns, drawn by fastinit at its end, and all that was seen on the way. `finish` comes before."""
    block, coverage = Block(None, None, opt_in=False, defer=True), Coverage()
    with block.opened() as report, block.covered(coverage):
        model = make()
        block.off(finish, model, block, coverage)
    for _, tensor in named_tensors(model):
        if has_memory(tensor):
            origins.keep(tensor, computed=key_of(tensor) in coverage.numbered)
    return model, coverage, report


@contextmanager
def registering() -> Iterator[weakref.WeakSet[torch.nn.Module]]:
    """Within the context, the modules that get a parameter, a buffer or a module (in any thread) are in the set."""
    found: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def note(module: torch.nn.Module, _: str, __: Any) -> None:
        found.add(module)

    hooks = (
        torch.nn.modules.module.register_module_parameter_registration_hook,
        torch.nn.modules.module.register_module_buffer_registration_hook,
        torch.nn.modules.module.register_module_module_registration_hook,
    )
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook(note).remove)
        yield found


def check_model(model: Any, new: weakref.WeakSet[torch.nn.Module]) -> None:
    """Raise what `build` raises of what is no new model; `new` are the modules that were filled meanwhile."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"build takes what makes a torch.nn.Module, got {type(model).__name__} from it")
    if any(True for _ in model.parameters()) and new.isdisjoint(model.modules()):
        raise ValueError(
            f"this {type(model).__name__} existed before build was called: give build what makes it (its class, not an "
            "object); or initialise it anew, by with fastinit.accelerate(model, seed=seed): model.init_weights()"
        )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within the context tensors are made with this dtype where nothing says another (in all threads)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
