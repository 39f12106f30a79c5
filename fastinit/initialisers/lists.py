"""Lists of tensors in place of a tensor: the same bits and errors as a loop, drawn in one job.

A list or tuple is served as a loop would serve its tensors (or lists of them), each from a number of its own, in order.
Outside of a `batch`, what a batch would put off is not drawn where one of them has an error. `stream` is a list, too,
of a stream for each tensor: one for all would give them the same numbers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ..drawing import batch
from ..drawing.regions import Target
from ..drawing.streams import Stream
from ..drawing.torch_private import in_graph

P = ParamSpec("P")
Targets = Target | list[Any] | tuple[Any, ...]
Streams = Stream | list[Stream] | tuple[Stream, ...] | None  # one for a tensor, or as many as a list has tensors
L = TypeVar("L", bound=Targets)
LISTS = (list, tuple)
MOST_TOGETHER = 512  # tensors: the L2 cache keeps their objects from one question to the next


class Initialiser(Protocol[P]):
    """A function that fills a tensor, a shard, or each of a list of them, and returns what it was given."""

    def __call__(self, tensor: L, *arguments: P.args, **named: P.kwargs) -> L: ...


def takes_lists(function: Callable[Concatenate[Any, P], Any]) -> Initialiser[P]:
    """Have an initialiser take lists, too; those that call `quick.serve` at once need not be told."""

    @functools.wraps(function)
    def call(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(tensor, LISTS):
            return function(tensor, *arguments, **named)
        streams = streams_of(tensor, named.get("stream"))

        def one(number: int) -> None:
            own = {} if streams[number] is None else {"stream": streams[number]}
            function(tensor[number], *arguments, **(named | own))

        each_of(tensor, None, one)
        return tensor

    return call


def streams_of(targets: Sequence[Any], stream: Any) -> Sequence[Stream | None]:
    """A stream for each, or None for each.

    Raises `TypeError` for one stream, and for what is none; `ValueError` for another number of them.
    """
    if stream is None:
        return [None] * len(targets)
    if not isinstance(stream, LISTS):
        raise TypeError(
            "with a list of tensors, stream is a list of a stream for each, such as [Stream.named(name) for name in "
            f"names]: one for all would give them the same numbers; got {type(stream).__name__}"
        )
    if len(stream) != len(targets):
        raise ValueError(f"stream has a stream for each of the {len(targets)} tensors; got {len(stream)}")
    for number, one in enumerate(stream):
        if not isinstance(one, Stream):
            raise TypeError(f"stream[{number}] is a fastinit.Stream, got {type(one).__name__}")
    return stream


def alone(stream: Streams) -> Stream | None:
    """The stream of a call with one tensor: `takes_lists` leaves no list."""
    return stream  # type: ignore[return-value]


def each_of(targets: Sequence[Any], many: Callable[[slice], bool] | None, one: Callable[[int], object]) -> None:
    """Serve all of a list together, at the end of this call or of the batch around it.

    `many` serves a part of them at once and returns whether it did; what it refuses `one` serves, by its number.
    """
    with contextlib.nullcontext() if in_graph() or batch.is_open() else batch.closed():
        begin, size = 0, MOST_TOGETHER
        while begin < len(targets):
            end = min(begin + size, len(targets))
            if many is not None and many(slice(begin, end)):
                begin, size = end, min(2 * size, MOST_TOGETHER)
            elif many is not None and size > 1:  # one of them is new, or not ordinary
                size = 1
            else:
                batch.watch()
                one(begin)
                begin += 1
