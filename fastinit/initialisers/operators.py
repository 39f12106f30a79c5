"""What a call becomes inside torch.compile and torch.export: operators of torch's that draw when the graph runs.

`fastinit::initialise_` draws what the eager call draws, from the tensor that it finds then: its shape may be known only
then, and so the scale of its law. It is a function of its arguments alone, so compilers may merge, move and repeat it.
`fastinit::next_seed` is what it draws from where a call names no stream: one number of the default CPU generator. These
calls keep their number and their order, because each writes one tensor that all of them share, `ORDER`. Their tag
alone does not make compilers do so: Inductor sorts a graph by its peak memory, and AOTAutograd drops random numbers
that nobody uses; torch 2.8 to 2.14 do the same to operators that are registered as having effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..drawing import torch_private as private
from ..drawing.batch import at_once, settle, watched
from ..drawing.deferred import Source
from ..drawing.fill import note_write
from ..drawing.regions import Shard, Target, local_of, shard
from ..drawing.route import COMPILED, KERNELS, TORCH, Way, outside_contract, refuse_inference_write
from ..drawing.streams import MASK, Stream, default_generator, drawn_seed, source
from ..kernels.contract import Engine
from ..kernels.dtypes import FORMATS
from . import matrices
from .fans import Axes, Layout
from .table import DTYPES, OF_SHAPES, draw

T = TypeVar("T", bound=Target)
SIGN = 1 << 63  # torch's whole numbers are signed
INITIALISE, SEED, NEXT_SEED = "fastinit::initialise_", "fastinit::seed", "fastinit::next_seed"
SCHEMAS = {
    INITIALISE: "(Tensor(a!) tensor, str name, Scalar[] numbers, str[] words, *, Tensor? drawn, SymInt seed, "
    "SymInt stream_id, bool compiled, str? layout, SymInt? fan_in, SymInt? fan_out, SymInt groups, SymInt[]? shape, "
    "SymInt[]? offset) -> ()",
    SEED: "(Tensor order, *, Device device, bool shared) -> Tensor",
    NEXT_SEED: "(Tensor(a!) order, *, Device device, bool shared) -> Tensor",
}
with torch.inference_mode(False):
    ORDER = torch.zeros(1, dtype=torch.int64, device="cpu")
# What is no law of independent elements: by its name, (target, *values, generator, stream, compiled) -> target.
whole: dict[str, Callable[..., Any]] = {"orthogonal_": matrices.orthogonal, "sparse_": matrices.sparse}


def record(
    name: str,
    by: Way,
    target: T,
    values: tuple[Any, ...],
    generator: torch.Generator | None,
    stream: Stream | None,
    layout: Layout = None,
    instead: Callable[[], T] | None = None,
) -> tuple[T, Any, Engine | None]:
    """`table.draw`, later: have the call served when the graph runs that is being made.

    Raises `RuntimeError` (Dynamo an error of its own with the same text) for a generator, which torch cannot put into a
    graph, and for what torch.utils.checkpoint runs twice, where no stream makes it the same.
    """
    if by is TORCH:
        return draw(name, TORCH, target, values, generator, stream, layout, instead)
    if any(isinstance(value, Tensor) and value.dim() > 0 for value in values):  # a number for each element is torch's
        if stream is not None or isinstance(target, Shard):
            refuse(f"{name} takes one number for all elements, where a stream or a shard is given; got a tensor")
        return draw(name, TORCH, target, values, generator, stream, layout, instead)
    refuse_in_graphs(name, generator, stream)
    if isinstance(target, Shard) and (len(target.boxes) != 1 or not target.is_all_of_local):
        refuse(f"{name} inside torch.compile takes shards of one box, and this one has {len(target.boxes)}")
    local, given = local_of(target), layout if isinstance(layout, Axes) else Axes(layout, None, None, 1)
    drawn = None
    if stream is None and not is_passed(name, target):
        drawn = record_seed(local.device, isinstance(target, Shard))
    torch.ops.fastinit.initialise_(
        # Not `torch.no_grad()`: an error inside a graph would leave it on.
        local.detach() if local.requires_grad else local,
        name,
        [number_of(name, value) for value in values if not (value is None or isinstance(value, str))],
        [value for value in values if isinstance(value, str)],
        drawn=drawn,
        seed=0 if stream is None else signed(stream.seed),
        stream_id=0 if stream is None else signed(stream.id),
        compiled=by is COMPILED,
        layout=given.layout,
        fan_in=given.fan_in,
        fan_out=given.fan_out,
        groups=given.groups,
        shape=list(target.shape) if isinstance(target, Shard) else None,
        offset=list(target.boxes[0].offset) if isinstance(target, Shard) else None,
    )
    return target, None, None


def draw_whole(
    name: str,
    by: Way,
    target: T,
    values: tuple[Any, ...],
    generator: torch.Generator | None,
    stream: Stream | None,
) -> T:
    """Have an engine draw a call of an initialiser in `whole`, now or when the graph runs."""
    if private.in_graph():
        record(name, by, target, values, generator, stream)
    elif not target.is_meta and (deferred := watched()) is not None:
        settle(*values)
        if isinstance(target, Shard) and not target.is_all_of_local:
            settle(target)  # before autograd hears of a write
        given = source(target, generator, stream)
        write = partial(write_whole, name, values, by is COMPILED)
        note_write(target)
        deferred.source = Source(name, values, generator is None and stream is None)
        if isinstance(target, Shard):
            deferred.add_shard(target, write, given)
        else:
            deferred.add(target, write, given.seed, given.id)
    else:
        settle(target, *values)
        if not target.is_meta:
            note_write(target)
        at_once(whole[name], target, *values, generator, stream, by is COMPILED)
    return target


def write_whole(name: str, values: tuple[Any, ...], compiled: bool, target: Target, stream: Stream) -> None:
    whole[name](target, *values, None, stream, compiled)


def refuse_in_graphs(name: str, generator: torch.Generator | None, stream: Stream | None) -> None:
    """Raises for what has no place in a graph, or would mean something else there."""
    if generator is not None:
        refuse(
            f"{name} takes no generator= inside torch.compile and torch.export, which cannot pass one to an operator; "
            "use stream=fastinit.Stream(seed), or seed the default generator with torch.manual_seed"
        )
    if stream is None and private.is_recomputed():
        refuse(
            f"{name} inside torch.utils.checkpoint inside torch.compile would draw other numbers when it is run "
            "again for the backward pass; use stream=fastinit.Stream(seed)"
        )


@private.constant_in_graphs
def refuse(message: str) -> None:
    """Stop the compiler. An error in a traced function may be no more than a graph break to it."""
    raise RuntimeError(message)


def is_passed(name: str, target: Target) -> bool:
    """Whether nothing is drawn for want of elements, and so no number taken from the generator."""
    return (name in whole or (name in OF_SHAPES and OF_SHAPES[name].passes_empty)) and 0 in target.shape


def number_of(name: str, value: Any) -> Any:
    """A number as the operator takes it: random_'s whole ones and truth values (which some refuse) as they are."""
    return value if name == "random_" or isinstance(value, bool) else float(value)


def signed(number: int) -> int:
    """64 bits as a signed number."""
    return number - 2 * SIGN if number >= SIGN else number


def values_of(name: str, numbers: Sequence[Any], words: Sequence[str]) -> tuple[Any, ...]:
    """The arguments of which `record` made these."""
    if name == "random_":
        return (*numbers, None, None)[:2]
    return *numbers, *words


def initialise(
    tensor: Tensor,
    name: str,
    numbers: Sequence[Any],
    words: Sequence[str],
    *,
    drawn: Tensor | None,
    seed: int,
    stream_id: int,
    compiled: bool,
    layout: str | None,
    fan_in: int | None,
    fan_out: int | None,
    groups: int,
    shape: Sequence[int] | None,
    offset: Sequence[int] | None,
) -> None:
    """Serve the call that was recorded. Who serves it was decided then; what only memory tells is asked now."""
    if (reason := outside_contract(tensor, DTYPES.get(name, FORMATS))) is not None:
        raise RuntimeError(f"{name} was compiled for fastinit, which cannot draw here: {reason}")
    refuse_inference_write(tensor)
    stream = Stream(seed & MASK, stream_id & MASK) if drawn is None else Stream(int(drawn.item()) & MASK)
    target = tensor if shape is None or offset is None else shard(tensor, shape, offset)
    values = values_of(name, numbers, words)
    settle(target)
    if name in whole:
        at_once(whole[name], target, *values, None, stream, compiled)
        return
    axes = layout if fan_in is fan_out is None and groups == 1 else Axes(layout, fan_in, fan_out, groups)
    at_once(draw, name, COMPILED if compiled else KERNELS, target, values, None, stream, axes)


@private.constant_in_graphs
def constant_order() -> Tensor:
    """`ORDER` as what a program may keep; torch 2.8 exports no tensor that is neither input nor parameter."""
    return ORDER


def record_seed(device: torch.device, shared: bool) -> Tensor:
    """64 bits of the default generator for a tensor there, or for a part of a `shared` one: see `streams.source`.

    A program that is exported must not write a constant, and keeps its order as it is: it has `fastinit::seed`.
    """
    seed: Tensor
    if private.is_exporting():
        seed = torch.ops.fastinit.seed(constant_order(), device=device, shared=shared)
    else:
        seed = torch.ops.fastinit.next_seed(ORDER, device=device, shared=shared)
    return seed


def draw_seed(order: Tensor, *, device: torch.device, shared: bool) -> Tensor:
    """A number of the default generator, as the operators give it: signed, in a tensor."""
    number = drawn_seed(None if shared else default_generator(device))
    return torch.tensor(signed(number), dtype=torch.int64, device="cpu")


def meta_seed(order: Tensor, *, device: torch.device, shared: bool) -> Tensor:
    """The shape of a number, for graphs that do not run yet."""
    return torch.empty((), dtype=torch.int64, device="meta")


def register() -> None:
    """Make the operators known to torch, unless an earlier import of this module did."""
    if hasattr(torch.ops.fastinit, "next_seed"):
        return
    random = (torch.Tag.nondeterministic_seeded,)
    for name, function, meta, tags in (
        (INITIALISE, initialise, lambda *_, **__: None, ()),
        (SEED, draw_seed, meta_seed, random),
        (NEXT_SEED, draw_seed, meta_seed, random),
    ):
        torch.library.define(name, SCHEMAS[name], tags=tags)
        torch.library.impl(name, "default", function)
        torch.library.impl(name, "Meta", meta)  # `register_fake` looks for its caller's source, which takes 7 ms
    private.has_side_effect(torch.ops.fastinit.seed.default)  # or exported programs lose those that nobody uses


register()
