"""Lists of tensors in place of a tensor: the same bits and errors as a loop, drawn in one job.

A list or tuple is served as a loop would serve its tensors, each from a number of its own, in order; but what a batch
puts off is not drawn where one of them has an error. `stream` is a list, too, of a stream for each tensor: one for all
would give them the same numbers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ..drawing import batch
from ..drawing.regions import Target
from ..drawing.streams import Stream, check_source
from ..drawing.torch_private import in_graph

P = ParamSpec("P")
Targets = Target | Sequence[Target]
Streams = Stream | Sequence[Stream] | None  # one for a tensor, or as many as a list has tensors
L = TypeVar("L", bound=Targets)
LISTS = (list, tuple)


class Initialiser(Protocol[P]):
    """A function that fills a tensor, a shard, or each of a list of them, and returns what it was given."""

    def __call__(self, tensor: L, *arguments: P.args, **named: P.kwargs) -> L: ...


def takes_lists(function: Callable[Concatenate[Any, P], Any]) -> Initialiser[P]:
    """Have an initialiser take lists, too; those that call `quick.serve` at once need not be told."""

    @functools.wraps(function)
    def call(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if type(tensor) not in LISTS:
            return function(tensor, *arguments, **named)
        streams = streams_of(tensor, named.get("stream"))
        with together():
            for one, stream in zip(tensor, streams, strict=True):
                function(one, *arguments, **(named if stream is None else named | {"stream": stream}))
        return tensor

    return call


def streams_of(targets: Sequence[Any], stream: Any) -> Sequence[Stream | None]:
    """A stream for each, or None for each.

    Raises `TypeError` for one stream, and for what is none; `ValueError` for another number of them.
    """
    if stream is None:
        return [None] * len(targets)
    if type(stream) not in LISTS:
        raise TypeError(
            "with a list of tensors, stream is a list of a stream for each, such as [Stream.named(name) for name in "
            f"names]: one for all would give them the same numbers; got {type(stream).__name__}"
        )
    if len(stream) != len(targets) or None in stream:
        raise ValueError(f"stream is a stream for each of the {len(targets)} tensors, got {len(stream)}")
    for one in stream:
        check_source(None, one)
    return stream  # type: ignore[no-any-return]


def together() -> AbstractContextManager[None]:
    """Within it calls are drawn together: at its end, or at that of the batch around it."""
    return contextlib.nullcontext() if in_graph() or batch.is_open() else batch.closed()
