"""Which initialiser a call of torch's is: functions of torch.nn.init, however they were imported, and methods."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from .. import random
from ..drawing.deferred import Source
from ..drawing.dtensor import is_dtensor
from ..drawing.originals import originals
from ..samplers import as_whole
from .operations import tensors

if TYPE_CHECKING:
    from .block import Block


is_dynamo_compiling = torch.compiler.is_dynamo_compiling


class Call(NamedTuple):
    """A call of the initialiser `name`, with all arguments that say what to draw."""

    name: str
    tensor: Tensor
    values: tuple[Any, ...]
    generator: Generator | None


class Signature(NamedTuple):
    """The arguments of a method of tensors that say what to draw: their names, and defaults of the last ones."""

    names: tuple[str, ...]
    defaults: tuple[Any, ...]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The values of all of them; None for a call that torch has an error for."""
        left = self.names[len(args) :]
        if len(args) > len(self.names) or kwargs.keys() - {*left, "generator"}:
            return None
        values = dict(zip(self.names[len(self.names) - len(self.defaults) :], self.defaults, strict=True)) | {**kwargs}
        if not all(name in values for name in left):
            return None
        return (*args, *(values[name] for name in left))


# Methods of tensors. Those that have no namesake among the initialisers are another's.
METHODS = {
    "uniform_": Signature(("from", "to"), (0.0, 1.0)),
    "normal_": Signature(("mean", "std"), (0.0, 1.0)),
    "bernoulli_": Signature(("p",), (0.5,)),
    "cauchy_": Signature(("median", "sigma"), (0.0, 1.0)),
    "exponential_": Signature(("lambd",), (1.0,)),
    "geometric_": Signature(("p",), ()),
    "log_normal_": Signature(("mean", "std"), (1.0, 2.0)),
    "fill_": Signature(("value",), ()),
    "zero_": Signature((), ()),
}
INITIALISER = {"fill_": "constant_", "zero_": "zeros_"}
# Functions of torch.nn.init that tell a mode of themselves, with all arguments by name.
TELLING: dict[str, tuple[str, ...]] = {
    "uniform_": ("a", "b"),
    "normal_": ("mean", "std"),
    "constant_": ("val",),
    "kaiming_uniform_": ("a", "mode", "nonlinearity"),
}
# Functions of torch.nn.init that call a method of the tensor and nothing else: found by the frame that calls it, so
# that one formula of the standard deviation serves them and fastinit's own functions.
CALLING: dict[str, tuple[str, ...]] = {
    "xavier_uniform_": ("gain",),
    "xavier_normal_": ("gain",),
    "kaiming_normal_": ("a", "mode", "nonlinearity"),
    "ones_": (),
}
# Functions that do more: whoever imported one by name, before a wrapper stood in its place, runs torch's algorithm.
LONGER = ("orthogonal_", "sparse_")
CODES: dict[CodeType, str] = {originals[name].__code__: name for name in (*TELLING, *CALLING, *LONGER)}
HELPERS = {originals[name].__code__ for name in ("_no_grad_uniform_", "_no_grad_normal_", "_no_grad_fill_")}


def recognise(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType) -> Call | None:
    """The initialiser that a mode is told of; None where torch has to serve the call. `frame` is the caller's.

    A function of torch.nn.init tells of what stands in its place now, which may be anybody's wrapper (transformers'
    guard, for one); so it is known by its own frame, which is the one before that of `handle_torch_function`.
    """
    generator = kwargs.get("generator")
    if not args:
        name = CODES.get(frame.f_back.f_code) if frame.f_back is not None else None
        tensor = kwargs.get("tensor")
        if name not in TELLING or not isinstance(tensor, Tensor):
            return None
        return Call(name, tensor, tuple(kwargs[key] for key in TELLING[name]), generator)
    name = function.__name__
    if not isinstance(tensor := args[0], Tensor):
        return None
    if name == "random_":
        bounds = bounds_of(args[1:], kwargs)
        return None if bounds is None else Call(name, tensor, bounds, generator)
    if name in ("uniform_", "normal_", "fill_") and (caller := initialiser_of(frame)) is not None:
        found, variables = caller
        if found in CALLING and variables["tensor"] is tensor:
            return Call(found, tensor, tuple(variables[key] for key in CALLING[found]), generator)
    values = METHODS[name].bind(args[1:], kwargs)
    return None if values is None else Call(INITIALISER.get(name, name), tensor, values, generator)


def initialiser_of(frame: FrameType | None) -> tuple[str, dict[str, Any]] | None:
    """The function of torch.nn.init that this frame is of, and its variables."""
    if frame is not None and frame.f_code in HELPERS:
        frame = frame.f_back
    name = None if frame is None else CODES.get(frame.f_code)
    return None if frame is None or name is None else (name, frame.f_locals)


def bounds_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | None, int | None] | None:
    """The numbers between which `Tensor.random_` draws; None stands for an end that the dtype sets."""
    given = {key: value for key, value in kwargs.items() if key != "generator"}
    values = [*args, *(given.pop(name) for name in ("from", "to")[len(args) :] if name in given)]
    if given or len(values) > 2 or ("from" in kwargs and len(values) < 2):
        return None
    if not values:
        return None, None
    start, stop = map(as_whole, values if len(values) == 2 else (0, *values))
    fits = type(start) is int and (type(stop) is int or (stop is None and len(values) == 2))
    return (start, stop) if fits else None


@functools.cache
def signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def bound(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """A call of a function of `functions.PLACES`; None for one that it has an error for."""
    try:
        found = signature(function).bind(*args, **kwargs)
    except TypeError:
        return None
    found.apply_defaults()
    tensor, *values = found.arguments.values()
    generator = found.arguments.get("generator")
    if "generator" in found.arguments:
        values.pop()
    return Call(name, tensor, tuple(values), generator) if isinstance(tensor, Tensor) else None


# --- what a mode is told of --------------------------------------------------------------------

# Methods that give away where a tensor's memory is, or hand it on, without an operation of torch's.
GIVE_AWAY = (
    *("numpy", "__array__", "data_ptr", "const_data_ptr", "mutable_data_ptr", "untyped_storage", "storage"),
    *("_typed_storage", "__dlpack__", "share_memory_", "__reduce_ex__"),
)
# What reads without an operation, or with the modes off.
READ = (Tensor.tolist, Tensor.__repr__, Tensor.__format__, Tensor.new_tensor, Tensor.tensor_split)
READ_ANY = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.tensor_split)
# torch's functions that make random tensors, and ours that do it in their place.
MAKERS: dict[Any, Callable[..., Tensor]] = {
    **{getattr(torch, name): getattr(random, name) for name in random.__all__},
    **{getattr(Tensor, name): getattr(random, name) for name in ("bernoulli", "multinomial")},
}
# The initialisers that some of them are.
LAWS: dict[str, tuple[str, tuple[float, ...]]] = {
    **dict.fromkeys(("rand", "rand_like"), ("uniform_", (0.0, 1.0))),
    **dict.fromkeys(("randn", "randn_like"), ("normal_", (0.0, 1.0))),
}


class Recogniser(TorchFunctionMode):
    """Is told of the calls of torch's functions and methods, and has those that initialise served by its block."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_dynamo_compiling():  # first: Dynamo need not trace the rest
            return func(*args, **kwargs)
        act = ACTS.get(func, initialise if "tensor" in kwargs and not args else None)
        if act is None:
            return func(*args, **kwargs)
        return act(self.block, func, args, kwargs)


def initialise(block: Block, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    frame = sys._getframe(2)
    call, torchs = recognise(func, args, kwargs, frame), functools.partial(func, *args, **kwargs)
    if call is None or block.leaves(call.tensor):
        return torchs()
    if args and call.tensor.requires_grad and torch.is_grad_enabled():
        return torchs()  # an error, or a step of autograd's
    if call.name == "normal_" and args and (caller := initialiser_of(frame)) is not None and caller[0] in LONGER:
        block.watch.escaped[f"{caller[0]} imported by name: torch's algorithm, from fastinit's samples"] += 1
    return block.served(call, torchs)


def view(block: Block, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A part of a DTensor is a copy where that is sharded: what is written to it, as for padding, is lost.

    The block remembers of what it is one, and initialises that, too.
    """
    result = func(*args, **kwargs)
    if args and is_dtensor(args[0]) and args[0].dim():
        block.off(block.note_parts, result, func, args, kwargs)
    return result


def make(block: Block, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if block.opt_in:
        return func(*args, **kwargs)
    read(block, func, args, {key: value for key, value in kwargs.items() if key != "out"})
    name, values = LAWS.get(func.__name__, ("", ()))

    def made() -> Tensor:
        block.deferred.source = Source(name, values, kwargs.get("generator") is None)
        return MAKERS[func](*args, **kwargs)

    return block.off(made)


def give_away(block: Block, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    for tensor in tensors((args, kwargs)):
        block.off(block.watch.give_away, tensor, func.__name__)
    return func(*args, **kwargs)


def read(block: Block, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for tensor in tensors((args, kwargs)) if block.deferred.pending else ():
        block.off(block.watch.draw, tensor, func.__name__)


def read_first(block: Block, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    read(block, func, args, kwargs)
    return func(*args, **kwargs)


def known(owner: Any, names: Iterable[str]) -> list[Any]:
    """torch's functions of these names, as far as it has them."""
    return [getattr(owner, name) for name in names if hasattr(owner, name)]


VIEWED = ("select", "narrow", "chunk", "split")  # which give parts of a tensor, as views
VIEWS = [Tensor.__getitem__, *known(Tensor, VIEWED), *known(torch, VIEWED)]
Act = Callable[["Block", Any, tuple[Any, ...], dict[str, Any]], Any]
ACTS: dict[Any, Act] = {
    **dict.fromkeys((*READ, *READ_ANY), read_first),
    **dict.fromkeys(MAKERS, make),
    **dict.fromkeys(VIEWS, view),
    **dict.fromkeys(known(Tensor, GIVE_AWAY), give_away),
    **dict.fromkeys(known(Tensor, (*METHODS, "random_")), initialise),
    **dict.fromkeys(known(torch, ("fill_", "zero_")), initialise),
}
