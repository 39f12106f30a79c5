"""The fast path: a call like one that was made before is a look-up and the kernel's call.

torch fills a few elements in 2.4 us, so here every look at the tensor (some 50 ns each) and every call of a function
counts. Whatever is out of the ordinary, and whatever is new, takes the careful path: `initialisers.table.draw`, which
decides anew, and has the decision remembered. Both paths draw the same bits.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.parameter import Buffer, Parameter

from ..kernels.contract import Engine
from ..kernels.dtypes import FORMATS
from ..laws import Law
from . import engines, flags, originals
from .flags import forced_engine
from .streams import LOWEST, Stream, default_generator, drawn, drawn_seed
from .torch_private import (
    COMPLETE,
    dispatch_modes,
    forward,
    function_modes,
    increment_version,
    tracing,
    transform,
)  # fmt: skip

if TYPE_CHECKING:
    from ..kernels.cpu.engine import CpuEngine, Plan
    from ..kernels.gpu.engine import GpuEngine, Plan as GpuPlan

ORDINARY = {Tensor, Parameter, Buffer}
TYPES = ORDINARY if COMPLETE else set()  # `is_ordinary` asks torch for what may be missing
# Types of arguments by which a call is looked up. Values of other types may equal these, and mean something else.
PLAIN = {float, int, str, NoneType}
FLAG = flags.ATTRIBUTE
FAR = 1 << 40  # bytes: no view's offset reaches as far, and most addresses lie beyond
standing, torchs, ours = originals.standing, originals.originals, originals.ours
is_dynamo_compiling = torch.compiler.is_dynamo_compiling

# A call to the kernel with what it takes: for small tensors of the CPU.
plans: dict[tuple[Any, ...], Plan] = {}
# The same and the number of a GPU, to what fills a tensor of any size there.
gpu_plans: dict[tuple[tuple[Any, ...], int], GpuPlan] = {}
MOST_PLANS = 1024  # as many as the laws' own caches hold


def is_ordinary(
    tensor: Any, generator: torch.Generator | None, fast: bool | None, stream: Stream | None, name: str = "normal_"
) -> bool:
    """Whether nothing about this call of the initialiser `name` needs a second look: see `route.way`."""
    try:
        return (
            not is_dynamo_compiling()  # first: Dynamo need not trace the rest
            and fast is None
            and (generator is None or (type(generator) is torch.Generator and generator.device.type == "cpu"))
            and (stream is None or (type(stream) is Stream and generator is None))
            and type(tensor) in TYPES  # before anything else is asked of it
            and FLAG not in tensor.__dict__  # a flag may have come with a file
            and (standing[name] is torchs[name] or standing[name] is ours[name])
            and not function_modes()
            and not dispatch_modes()
            and transform() is None
            and not tracing()
            and forward._current_level < 0
            and (tensor.is_cpu or tensor.is_cuda)
            and tensor.dtype in FORMATS
            and not tensor.is_nested
            and tensor.is_contiguous()
            and not tensor.is_neg()
            and tensor._version >= 0  # inference tensors have none, which is an error
            # See `route.outside_contract`.
            and ((address := tensor.data_ptr()) > FAR or address > 8 * tensor.storage_offset())
            and not (flags.in_use and flags.is_spoken_for(tensor))
        )
    except RuntimeError:  # torch's, for an address, strides or a version that this tensor does not have
        return False
    except KeyError:  # torch.nn.init has lost the function
        return False


def fill(
    name: str,
    tensor: Any,
    values: tuple[Any, ...],
    generator: torch.Generator | None,
    fast: bool | None,
    stream: Stream | None,
    layout: str | None = None,
    shaped: bool = False,
) -> bool:
    """Serve a call of the initialiser `name` if the like of it was remembered; returns whether it was.

    `values` are its arguments; where `shaped`, its law depends on the tensor's shape. If it was not, nothing has
    happened.
    """
    if not is_ordinary(tensor, generator, fast, stream, name) or forced_engine.get() is not None:
        return False
    for value in values:  # 50 ns, where `all` takes 200
        if type(value) not in PLAIN:
            return False
    key: tuple[Any, ...] = (name, tensor.dtype, values)
    if shaped:
        if not has_known_shape_rules(layout):
            return False
        key = (*key, tensor.shape, layout)
    if tensor.is_cuda:
        return fill_gpu(tensor, key, generator, stream)
    plan = plans.get(key)
    if plan is None:
        return False
    write, parameters, most, size = plan
    count = tensor.numel()
    if count > most:
        return False
    if stream is not None:
        seed, word = stream.seed, stream.id
    elif generator is not None:
        seed, word = drawn_seed(generator), 0
    else:
        drawn.draw(LOWEST, None)  # without `generator=`, which costs 70 ns
        seed, word = drawn.room.value, 0
    increment_version((tensor,))  # before the write: an interruption may come between
    write(tensor.data_ptr(), 0, count, 0, count, size, 0, 0, seed, word, 0, parameters)
    return True


def fill_gpu(tensor: Tensor, key: tuple[Any, ...], generator: torch.Generator | None, stream: Stream | None) -> bool:
    """The same on a GPU, for a tensor of any size: what takes long there is to find out how to launch."""
    write = gpu_plans.get((key, tensor.get_device()))
    if write is None:
        return False
    if stream is not None:
        seed, word = stream.seed, stream.id
    else:
        seed, word = drawn_seed(default_generator(tensor) if generator is None else generator), 0
    increment_version((tensor,))
    if count := tensor.numel():
        write(tensor.data_ptr(), count, seed, word)
    return True


def has_known_shape_rules(layout: Any) -> bool:
    """Whether a shape and this layout tell a law's scale. Somebody else's `calculate_gain` may change its mind."""
    gain_of = standing.get("calculate_gain")
    return type(layout) in PLAIN and (gain_of is torchs["calculate_gain"] or gain_of is ours["calculate_gain"])


def remember(
    name: str, tensor: Tensor, values: tuple[Any, ...], layout: str | None, shaped: bool, law: Law, engine: Engine
) -> None:
    """From now on calls like this one take the fast path to this law."""
    if not PLAIN.issuperset(map(type, values)) or (shaped and not has_known_shape_rules(layout)):
        return
    key: tuple[Any, ...] = (name, tensor.dtype, values)
    if shaped:
        key = (*key, tensor.shape, layout)
    parameters = law.parameters(tensor.dtype)
    if tensor.is_cpu and engine.name == "cpu":
        if key not in plans:
            make_room(plans)
            plans[key] = cast("CpuEngine", engine).plan(tensor.dtype, parameters)
    elif tensor.is_cuda and engine.name == "gpu" and engines.was_found_right(tensor.device, tensor.dtype, parameters):
        place = key, tensor.get_device()
        if place not in gpu_plans:
            make_room(gpu_plans)
            gpu_plans[place] = cast("GpuEngine", engine).plan(tensor.device, tensor.dtype, parameters)


def make_room(remembered: dict[Any, Any]) -> None:
    if len(remembered) >= MOST_PLANS:
        remembered.clear()
