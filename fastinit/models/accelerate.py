"""What a block of code initialises through torch, drawn by fastinit: each tensor once, all together when it ends."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from ..drawing.streams import Stream
from .block import Block
from .report import Report

P = ParamSpec("P")
R = TypeVar("R")


class accelerate:
    """`with fastinit.accelerate():` has fastinit draw what the block initialises through torch, at its end.

    Every function of torch.nn.init, however it was imported, `weight.data.normal_()` and the other samplers of tensors,
    `torch.randn` and its like: a call is recognised, checked and given its number of the generator when it is made, and
    drawn when the block ends, the last one of each tensor alone, all together. Any other operation that needs the
    memory meanwhile finds it drawn; copies of it are put off, too. Bits are those of fastinit's calls in the same
    places.

    The block's value is a `Report`; `report.escaped` names what torch drew nevertheless. Also a decorator. Other
    threads are not concerned, and must not use the block's tensors before it ends. An exception that leaves the block
    changes nothing: what was initialised before it is drawn.

    `model` and `seed` around a model's own initialisation (`model.init_weights()`): each of its parameters and buffers
    is drawn from `Stream.named(its name, seed)`, so that values depend neither on the order of calls nor on what else
    is initialised; torch's default CPU generator is seeded for the block, and is afterwards as it was before.
    `opt_in`: only tensors whose flag is True (see `fastinit.flag`). `defer=False`: the same draws, each at once.

    Raises `ValueError` for a seed without a model (`fastinit.build` takes one) and for a seed that is no stream's,
    `RuntimeError` where the same object is entered twice at a time.
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
        seed = None if seed is None else Stream(seed).seed
        self._block = functools.partial(Block, model, seed, opt_in, defer)
        self._open: AbstractContextManager[Report] | None = None

    def __enter__(self) -> Report:
        if self._open is not None:
            raise RuntimeError("this block is open already: make another one")
        block = self._block().opened()
        report = block.__enter__()
        self._open = block
        return report

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        block, self._open = self._open, None
        if block is not None:
            block.__exit__(kind, error, at)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """As a decorator: each call of the function is in a block of its own.

        Raises `TypeError` for a coroutine or a generator function, whose calls do not do their work.
        """
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__} runs after its call: write `with accelerate():` inside it")

        @functools.wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._block().opened():
                return function(*args, **kwargs)

        return inside
