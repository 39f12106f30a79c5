"""Where every call of an initialiser begins: the fast path, where one like it was made before.

torch fills a few elements in 2.4 us, so here every look at the tensor (some 50 ns each) and every call of a function
counts. There a call is a look-up and the kernel's call. Whatever is new or large is drawn by `table.draw`, and small
tensors' kernels are remembered; who draws into what is out of the ordinary, `route.way` decides. Same bits everywhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from ..drawing import batch, engines, flags, originals
from ..drawing.deferred import Source
from ..drawing.dtensor import is_dtensor, placed
from ..drawing.flags import forced_engine
from ..drawing.ranks import checking
from ..drawing.regions import Shard, first_of
from ..drawing.route import KERNELS, TORCH, way
from ..drawing.streams import LOWEST, Stream, default_generator, drawn, drawn_seed, drawn_seeds
from ..drawing.torch_private import (
    dispatch_modes,
    forward,
    function_modes,
    in_graph,
    increment_version,
    tracing,
    transform,
)  # fmt: skip
from ..kernels.contract import Engine, Job
from ..kernels.dtypes import FORMATS, drawn_as
from ..laws import Law
from .fans import Axes, Layout
from .lists import LISTS, Targets, each_of, streams_of
from .operators import record
from .table import DTYPES, draw
from .together import FAR, NOTES, TYPES, fill_together, ordinary_ones

if TYPE_CHECKING:
    from ..kernels.cpu.engine import CpuEngine
    from ..kernels.cpu.jobs import Plan
    from ..kernels.gpu.engine import GpuEngine, Plan as GpuPlan

T = TypeVar("T", bound=Targets)
# Types of arguments by which a call is looked up. Values of other types may equal these, and mean something else.
PLAIN = {float, int, str, NoneType}
blocks = batch.blocks
standing, torchs, ours = originals.standing, originals.originals, originals.ours
is_dynamo_compiling = torch.compiler.is_dynamo_compiling

SHAPE = operator.attrgetter("shape")
with torch.inference_mode(False):
    PROBE = torch.empty(1, dtype=torch.float32, device="cpu")  # an ordinary tensor

# By call: how contiguous tensors of the CPU below 16 MiB are filled.
plans: dict[tuple[Any, ...], Plan] = {}
# The same and the number of a GPU, to what fills a tensor of any size there.
gpu_plans: dict[tuple[tuple[Any, ...], int], GpuPlan] = {}
# By call, the whole shape and what is held of it, of small DTensors: what fills each box, and where that begins.
part_writes: dict[tuple[Any, ...], list[tuple[Callable[[int, int, int], None], int]]] = {}
SMALL = 1 << 14  # elements that one thread draws: `THREADS_FROM` of kernels/cpu/jobs.py
MOST_PLANS = 1024  # as many as the laws' own caches hold


def ordinary_address(
    tensor: Any,
    generator: torch.Generator | None,
    fast: bool | None,
    stream: Stream | None,
    name: str | None = "normal_",
    dtypes: Collection[torch.dtype] = FORMATS,
) -> int:
    """Where the tensor's memory is, if nothing about this call of an initialiser needs a second look, else 0.

    Nobody has replaced torch.nn.init's function `name`, if there is one to obey; `dtypes` are those that it draws in.
    `route.way` would say KERNELS then. No tensor without elements is ordinary.
    """
    address: int
    try:
        if (
            not is_dynamo_compiling()  # first: Dynamo need not trace the rest
            and fast is None
            and (generator is None or (type(generator) is torch.Generator and generator.device.type == "cpu"))
            and (stream is None or (type(stream) is Stream and generator is None))
            and type(tensor) in TYPES  # before anything else is asked of it
            and NOTES.isdisjoint(tensor.__dict__)  # a flag may have come with a file
            and (name is None or standing[name] is torchs[name] or standing[name] is ours[name])
            and not function_modes()
            and not dispatch_modes()
            and transform() is None
            and not tracing()
            and forward._current_level < 0
            and (tensor.is_cpu or tensor.is_cuda)
            and tensor.dtype in dtypes
            and not tensor.is_nested
            and tensor.is_contiguous()
            and not tensor.is_neg()
            and tensor._version >= 0  # inference tensors have none, which is an error
            # See `route.outside_contract`.
            and ((address := tensor.data_ptr()) > FAR or address > 8 * tensor.storage_offset())
            and not (flags.in_use and flags.is_spoken_for(tensor))
        ):
            return address
    except RuntimeError:  # torch's, for an address, strides or a version that this tensor does not have
        return 0
    except KeyError:  # torch.nn.init has lost the function
        return 0
    return 0


class Elsewhere(NamedTuple):
    """Who makes what torch.nn.init has no function of its own for."""

    obeys: str | None = None  # the function of torch.nn.init that would, whose replacement is obeyed
    torchs: Callable[[], Any] | None = None  # torch's call, where that is no function or method of that name


METHOD = Elsewhere()  # torch's tensors, which have a method of the name


def serve(
    name: str,
    target: T,
    values: tuple[Any, ...],
    generator: torch.Generator | None,
    fast: bool | None,
    stream: Any,  # `lists.Streams`
    layout: Layout = None,
    shaped: bool = False,
    elsewhere: Elsewhere | None = None,
) -> T:
    """Serve a call of the initialiser `name` with the arguments `values`; where `shaped`, its law depends on the shape.

    All of a small tensor's way is in this one function: another call would be 3 % of it.
    """
    obeyed, instead = elsewhere or (name, None)
    dtypes = FORMATS if elsewhere is None else DTYPES.get(name, FORMATS)
    address = ordinary_address(target, generator, fast, stream, obeyed, dtypes)
    tensor: Any = target
    key: tuple[Any, ...] | None = None
    if address and forced_engine.get() is None and (not shaped or has_known_shape_rules(layout)):
        key = (name, tensor.dtype, values, tensor.shape, layout) if shaped else (name, tensor.dtype, values)
        for value in values:  # 50 ns, where `all` takes 200
            if type(value) not in PLAIN:
                key = None
    if key is not None:
        if tensor.is_cuda:
            if not (blocks.get() and batch.watched()) and fill_gpu(tensor, key, address, generator, stream):
                return target
        elif (plan := plans.get(key)) is not None and (count := tensor.numel()) <= plan.most:
            if stream is not None:
                seed, stream_id = stream.seed, stream.id
            elif generator is not None:
                seed, stream_id = drawn_seed(generator), 0
            else:
                drawn.draw(LOWEST, None)  # without `generator=`, which costs 70 ns
                seed, stream_id = drawn.bits.value, 0
            increment_version((tensor,))  # before the write: an interruption may come between
            if count <= plan.alone and not blocks.get():
                plan.fill(plan.pattern, address, count, seed, stream_id)
            else:
                batch.fill(plan, tensor, address, count, seed, stream_id)
            return target
    if not address:
        return serve_carefully(name, target, values, generator, fast, stream, layout, shaped, elsewhere)
    result, law, engine = draw(name, KERNELS, tensor, values, generator, stream, layout, instead)
    remember(key, tensor, law, engine)
    return cast("T", result)


def serve_carefully(
    name: str,
    target: T,
    values: tuple[Any, ...],
    generator: torch.Generator | None,
    fast: bool | None,
    stream: Any,
    layout: Layout,
    shaped: bool,
    elsewhere: Elsewhere | None,
) -> T:
    """Serve a call about which something needs a second look."""
    result: Any
    if (block := batch.seeing()) is not None:
        block.deferred.source = Source(name, values, generator is None and stream is None, layout)
        result = block.off(serve, name, target, values, generator, fast, stream, layout, shaped, elsewhere)
    elif isinstance(target, LISTS):
        result = serve_list(name, target, values, generator, fast, stream, layout, shaped, elsewhere)
    else:
        obeyed, instead = elsewhere or (name, None)
        dtypes = FORMATS if elsewhere is None else DTYPES.get(name, FORMATS)
        tensor: Any = target if in_graph() else placed(target, fast)
        part = None
        if fast is None and is_dtensor(tensor.owner if isinstance(tensor, Shard) else None):
            key = (name, tensor.dtype, values, tensor.shape, layout if shaped else None, tensor.boxes)
            known = {*map(type, values)} <= PLAIN and (not shaped or has_known_shape_rules(layout))
            address = part_address(tensor, generator, stream, obeyed, dtypes) if known else 0
            part = SmallPart(tensor, address, key) if address else None
        if part is not None and part.fill(generator, stream):
            return target
        by = way(tensor, generator, fast, stream, obeyed, layout, dtypes)
        act = record if in_graph() else draw
        result, law, engine = act(name, by, tensor, values, generator, stream, layout, instead)
        if part is not None and law is not None and engine is not None:
            part.remember(law, engine)
        if tensor is not target and by is not TORCH:
            return target
    return cast("T", result)


class SmallPart(NamedTuple):
    """The boxes that a rank holds of a DTensor, of a few elements, and the key of a call."""

    held: Shard
    address: int
    key: tuple[Any, ...]

    def fill(self, generator: torch.Generator | None, stream: Stream | None) -> bool:
        """Fill them, if a call with this key was made before: torch fills a few elements in 20 us."""
        writes = part_writes.get(self.key)
        if writes is None:
            return False
        seed, stream_id = (drawn_seed(generator), 0) if stream is None else (stream.seed, stream.id)
        increment_version((self.held.local, cast("Tensor", self.held.owner)))
        for write, begin in writes:
            write(self.address + begin, seed, stream_id)
        return True

    def remember(self, law: Law, engine: Engine) -> None:
        if engine.name != "cpu":
            return
        local, found = self.held.local, []
        kind, dtype = law.parameters(local.dtype), drawn_as(local.dtype)
        for box in self.held.boxes:
            first, steps = first_of(box.offset, self.held.shape)
            write = cast("CpuEngine", engine).again_and_again(box.of(local).view(dtype), kind, first, steps)
            found.append((write, box.begin * local.itemsize))
        make_room(part_writes)
        part_writes[self.key] = found


def part_address(
    held: Shard,
    generator: torch.Generator | None,
    stream: Stream | None,
    obeyed: str | None,
    dtypes: Collection[torch.dtype],
) -> int:
    """Where what is held of a DTensor begins; 0 if that is not small, or the call needs a third look."""
    given: Any = held.owner
    flagged = not NOTES.isdisjoint(given.__dict__) or (flags.in_use and flags.flag_of(given) is not None)
    if flagged or blocks.get() or checking.get() or forced_engine.get() is not None:
        return 0
    if not held.local.is_cpu or held.local.numel() >= SMALL or not held.is_all_of_local:
        return 0
    return ordinary_address(held.local, generator, None, stream, obeyed, dtypes)


def serve_list(
    name: str,
    listed: T,
    values: tuple[Any, ...],
    generator: torch.Generator | None,
    fast: bool | None,
    stream: Any,
    layout: Layout,
    shaped: bool,
    elsewhere: Elsewhere | None,
) -> T:
    """Serve a call with a list of tensors: ordinary ones many at a time, others one by one. See `lists`."""
    targets = cast("Sequence[Any]", listed)
    streams, obeyed = streams_of(targets, stream), name if elsewhere is None else elsewhere.obeys
    # Dynamo of torch 2.8 compares no sets.
    usual = not in_graph() and {*map(type, values)} <= PLAIN and (stream is None or generator is None)

    def many(part: slice, own: list[Job]) -> bool:
        moment = ordinary_address(PROBE, generator, fast, None, obeyed) and forced_engine.get() is None
        known = not shaped or has_known_shape_rules(layout)
        looked = ordinary_ones(targets[part]) if usual and moment and known else None
        if looked is None:
            return False
        kinds = [*zip(looked.dtypes, map(SHAPE, targets[part]), strict=True)] if shaped else looked.dtypes
        keys = {kind: (name, kind[0], values, kind[1], layout) if shaped else (name, kind, values) for kind in {*kinds}}
        found = {kind: plans.get(key) for kind, key in keys.items()}
        return fill_together(looked, kinds, found, lambda: seeds_of(streams[part], generator), own)

    def one(number: int) -> None:
        serve(name, targets[number], values, generator, fast, streams[number], layout, shaped, elsewhere)

    each_of(targets, many, one)
    return listed


def seeds_of(streams: Sequence[Stream | None], generator: torch.Generator | None) -> tuple[Any, Any]:
    """Seeds and ids of these streams; where there are none, numbers of the generator, and 0."""
    given = [stream for stream in streams if stream is not None]
    if not given:
        return drawn_seeds(generator, len(streams)), 0
    return [stream.seed for stream in given], [stream.id for stream in given]


def fill_gpu(
    tensor: Tensor, key: tuple[Any, ...], address: int, generator: torch.Generator | None, stream: Stream | None
) -> bool:
    """Fill a tensor of a GPU, of any size, if a call with this key was made before: finding the launch takes long."""
    write = gpu_plans.get((key, tensor.get_device()))
    if write is None:
        return False
    if stream is not None:
        seed, stream_id = stream.seed, stream.id
    else:
        seed, stream_id = drawn_seed(default_generator(tensor.device) if generator is None else generator), 0
    increment_version((tensor,))
    write(address, tensor.numel(), seed, stream_id)
    return True


def has_known_shape_rules(layout: Any) -> bool:
    """Whether a shape and this layout tell a law's scale. Somebody else's `calculate_gain` may change its mind."""
    gain_of = standing.get("calculate_gain")
    known = type(layout) in PLAIN or type(layout) is Axes
    return known and (gain_of is torchs["calculate_gain"] or gain_of is ours["calculate_gain"])


def remember(key: tuple[Any, ...] | None, tensor: Tensor, law: Law | None, engine: Engine | None) -> None:
    """From now on calls with this key, if there is one, take the fast path to this law."""
    if key is None or law is None or engine is None:
        return
    if key in plans and tensor.is_cpu:  # this tensor was too large for it
        return
    parameters, dtype = law.parameters(tensor.dtype), drawn_as(tensor.dtype)
    if tensor.is_cpu and engine.name == "cpu":
        make_room(plans)
        plans[key] = cast("CpuEngine", engine).plan(dtype, parameters)
    elif tensor.is_cuda and engine.name == "gpu" and engines.was_found_right(tensor.device, dtype, parameters):
        make_room(gpu_plans)
        gpu_plans[key, tensor.get_device()] = cast("GpuEngine", engine).plan(tensor.device, dtype, parameters)


def make_room(remembered: dict[Any, Any]) -> None:
    if len(remembered) >= MOST_PLANS:
        remembered.clear()
