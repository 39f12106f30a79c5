"""Lists of tensors in place of a tensor: the same bits and errors as a loop, ordinary tensors in one job.

A list or tuple is served as a loop would serve its tensors (or lists of them), each from a number of its own, in order.
`stream` is a list, too, of a stream for each tensor: one for all would give them the same numbers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ..drawing.batch import seeing
from ..drawing.deferred import NOBODY, Source
from ..drawing.dtensor import placed
from ..drawing.regions import Target
from ..drawing.streams import Stream
from ..drawing.torch_private import in_graph
from ..kernels.contract import ASKED_TOGETHER, Job

P = ParamSpec("P")
Many = Callable[[slice, list[Job]], bool]
Targets = Target | list[Any] | tuple[Any, ...]
Streams = Stream | list[Stream] | tuple[Stream, ...] | None  # one for a tensor, or as many as a list has tensors
L = TypeVar("L", bound=Targets)
LISTS = (list, tuple)
HOW = ("generator", "fast", "stream")  # what says how to draw, and not what


class Initialiser(Protocol[P]):
    """A function that fills a tensor, a shard, or each of a list of them, and returns what it was given."""

    def __call__(self, tensor: L, *arguments: P.args, **named: P.kwargs) -> L: ...


def takes_lists(function: Callable[Concatenate[Any, P], Any]) -> Initialiser[P]:
    """Have an initialiser take lists, too; those that call `quick.serve` at once need not be told."""

    @functools.wraps(function)
    def call(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if (block := seeing()) is None:
            return served(tensor, *arguments, **named)
        block.deferred.source = source_of(function, tensor, *arguments, **named)
        return block.off(served, tensor, *arguments, **named)

    def served(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(tensor, LISTS):
            target = tensor if in_graph() else placed(tensor, named.get("fast"))
            result = function(target, *arguments, **named)
            return tensor if result is target else result
        streams = streams_of(tensor, named.get("stream"))

        def one(number: int) -> None:
            own = {} if streams[number] is None else {"stream": streams[number]}
            served(tensor[number], *arguments, **(named | own))

        each_of(tensor, None, one)
        return tensor

    return call


def source_of(function: Callable[..., Any], *arguments: Any, **named: Any) -> Source:
    """What a call says of its draws; nothing, if it is none that the function takes."""
    try:
        _, *given = signature_of(function).bind(*arguments, **named).arguments.items()
    except TypeError:
        return NOBODY
    values = tuple(value for key, value in given if key not in HOW)
    return Source(function.__name__, values, dict(given).get("generator") is None and dict(given).get("stream") is None)


signature_of = functools.cache(inspect.signature)


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


def each_of(targets: Sequence[Any], many: Many | None, one: Callable[[int], object]) -> None:
    """Serve all of a list, in order, with the outcome of a loop.

    `many` puts off a part of them, adding to a job, and returns whether it could. What it refuses `one` serves, by its
    number; what was put off is done before, and at the end. (In a batch `many` adds to that one's job.)
    """
    own: list[Job] = []
    begin, size = 0, ASKED_TOGETHER
    while begin < len(targets):
        end = min(begin + size, len(targets))
        if many is not None and many(slice(begin, end), own):
            begin, size = end, min(2 * size, ASKED_TOGETHER)
        elif many is not None and size > 1:  # one of them is new, or not ordinary
            size = 1
        else:
            do(own)
            one(begin)
            begin += 1
    do(own)


def do(own: list[Job]) -> None:
    while own:
        own.pop().do()
