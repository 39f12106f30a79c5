"""torch.nn.init's own functions, and what stands in their places now.

Others replace functions of torch.nn.init: to skip or to count the calls, to keep what was loaded (transformers), or to
put fastinit's there. What stands there now decides about a call of ours of the same name:

* torch's own function, and fastinit's: nothing changes.
* transformers' guard: a parameter that it marked as loaded stays as it is; nothing else changes.
* Any other: it is called, and what it does is the result.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import weakref
from collections.abc import Callable
from types import CellType, CodeType, FrameType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, TypeVar, cast

import torch.nn.init
from torch import Tensor

from .batch import settle
from .regions import Shard, Target, given_as

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)
T = TypeVar("T", bound=Target)

MODULE = "torch.nn.init"
MARK = "_is_hf_initialized"
standing: dict[str, Any] = vars(torch.nn.init)  # what stands in torch's places now
NAMES = (
    *("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_"),
    *("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "sparse_"),
    *("calculate_gain", "_calculate_fan_in_and_fan_out", "_calculate_correct_fan", "_make_deprecate"),
    *("_no_grad_uniform_", "_no_grad_normal_", "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_"),
)
# Which of its names a function of torch's looks up, that leads to its numbers; besides itself.
HELPERS = {
    "uniform_": "_no_grad_uniform_",
    "normal_": "_no_grad_normal_",
    "trunc_normal_": "_no_grad_trunc_normal_",
    "xavier_uniform_": "_no_grad_uniform_",
    "xavier_normal_": "_no_grad_normal_",
}
ours: dict[str, Function] = {}  # fastinit's functions by their names; init.py enters them
wrappers: weakref.WeakSet[Function] = weakref.WeakSet()  # fastinit's around torch's own, which change nothing


@functools.cache
def private_copy() -> ModuleType:
    """torch.nn.init executed once more, as a module that nobody else knows and so nobody changes."""
    spec = torch.nn.init.__spec__
    if spec is None or spec.loader is None:
        raise ImportError(f"{MODULE} has functions that are not torch's, and no loader to read torch's own again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_torchs(name: str, function: Any) -> bool:
    """Whether `function` is the one that torch.nn.init defines by this name.

    A wrapper made with `functools.wraps` names torch's module, too, but its code is not the code there.
    """
    if type(function) is FunctionType and function.__globals__ is standing:
        return function.__name__ == name
    if getattr(function, "__module__", None) != MODULE:
        return False
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and code == getattr(private_copy(), name).__code__


def found(name: str) -> Function:
    """torch's function of this name, from a private copy of the module where another stands in its place."""
    if name not in standing and name.startswith("_"):
        return gone(name)
    function: Function = standing[name]
    return function if is_torchs(name, function) else getattr(private_copy(), name)


# The samplers that torch has as methods of its tensors alone, and how many numbers each takes.
METHODS = {"bernoulli_": 1, "cauchy_": 2, "exponential_": 1, "geometric_": 1, "log_normal_": 2, "random_": 2}


def method(name: str) -> Function:
    """torch's method as a function of the tensor, its numbers and a generator, that autograd does not hear of."""
    own, count = getattr(Tensor, name), METHODS[name]

    @torch.no_grad()
    def function(tensor: Tensor, *values: Any) -> Any:
        numbers, generator = values[:count], values[count:]
        if name == "random_" and numbers == (None, None):
            numbers = ()
        if not generator or generator[0] is None:  # not mentioned, for the error of what is wrong with the numbers
            return own(tensor, *numbers)
        return own(tensor, *numbers, generator=generator[0])

    function.__name__ = name
    return function


def gone(name: str) -> Function:
    """What stands for a private function that torch does not have any more."""

    def function(*_: Any, **__: Any) -> Any:
        raise AttributeError(f"module '{MODULE}' has no attribute '{name}'")

    function.__name__ = name
    return function


originals: dict[str, Function] = {name: found(name) for name in NAMES} | {name: method(name) for name in METHODS}
torch_init: Any = SimpleNamespace(**originals)


def is_guard(name: str, function: Any) -> bool:
    """Whether this is transformers' function of that name, which leaves marked parameters alone."""
    module = getattr(function, "__module__", None)
    return (
        isinstance(module, str)
        and module.partition(".")[0] == "transformers"
        and getattr(function, "__name__", None) == name
    )


def is_kept(name: str, tensor: Any) -> bool:
    """Whether transformers' guard stands in this place and has marked `tensor` as loaded."""
    return (
        standing.get(name) is not originals[name]
        and is_guard(name, standing.get(name))
        and issubclass(type(tensor), Tensor)
        and bool(getattr(tensor, MARK, False))
    )


def unwrapped(function: Any) -> Any:
    """What a `functools.partial` calls, which leaves no frame of its own on the stack."""
    while type(function) is functools.partial:
        function = function.func
    return function


def replacement(name: str) -> Function | None:
    """Somebody else's function that stands in torch's place; None where none does, or where it is it that calls."""
    function: Any = standing.get(name)
    if function is originals[name] or function is ours.get(name) or function is None or is_wrapper(function):
        return None
    if is_torchs(name, function):  # what stood there during our import has gone
        originals[name] = function
        setattr(torch_init, name, function)
        return None
    return None if is_guard(name, function) or is_running(function) else function


def is_wrapper(function: Any) -> bool:
    """Whether this is fastinit's wrapper around torch's own function; see `models/functions.py`."""
    return type(function) is FunctionType and function in wrappers


def is_running(function: Any) -> bool:
    """Whether this thread is in the middle of `function`, so that calling it would come back here for ever.

    Wrappers from one decorator share their code, and differ in the variables that they enclose; methods in their self.
    """
    replaced, function = function, unwrapped(function)
    method: Any = function if hasattr(function, "__code__") or not callable(function) else type(function).__call__
    code: CodeType | None = getattr(method, "__code__", None)
    if replaced is not function and any(function is own for own in ours.values()):
        code = None  # it always runs: it is what asks
    expected = {}
    if code is not None:
        cells = getattr(method, "__closure__", None) or ()
        pairs = zip(code.co_freevars, cells, strict=True)
        expected = {name: cell.cell_contents for name, cell in pairs if cell != CellType()}  # which is empty
        if method is not function or hasattr(function, "__self__"):
            expected[code.co_varnames[0]] = getattr(function, "__self__", function)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is obey.__code__ and frame.f_locals["function"] is replaced:
            return True
        if frame.f_code is code and all(frame.f_locals.get(name) is value for name, value in expected.items()):
            return True
        frame = frame.f_back
    return False


def obey(function: Function, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return function(*arguments, **keywords)


def obedient(function: F) -> F:
    """`function`, unless somebody else's function stands in torch's place of the same name: that is called then."""
    name = function.__name__

    @functools.wraps(function)
    def served(*arguments: Any, **keywords: Any) -> Any:
        other = replacement(name)
        return function(*arguments, **keywords) if other is None else obey(other, arguments, keywords)

    return cast("F", served)


def told(name: str, function: Function) -> str:
    """Why a call of ours goes to `function`."""
    label = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    return f"torch.nn.init.{name} was replaced by {label}, which decides what is done until torch's own is put back"


def as_given(name: str, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as the caller of our function may have written them: without those that are the very defaults.

    A replacement may have defaults of its own, or no such parameters.
    """
    function: Any = getattr(ours[name], "__wrapped__", ours[name])
    parameters, defaults = function.__code__.co_varnames, function.__defaults__ or ()
    required = function.__code__.co_argcount - len(defaults)
    given = [at < required or value is not defaults[at - required] for at, value in enumerate(values)]
    first = given.index(False) if False in given else len(values)
    return values[:first], {parameters[at]: values[at] for at in range(first, len(values)) if given[at]}


def torchs_own(name: str) -> Function:
    """torch's function of this name, whatever stands in its place.

    Where it would look up one of torch's names and find fastinit's function or a guard, which may lead back to where
    it was called, the private copy's is given.
    """
    if name in METHODS:
        return originals[name]
    for needed in (name, HELPERS.get(name, name)):
        if standing.get(needed) is not originals[needed] and (needed == name or replacement(needed) is None):
            copied: Function = getattr(private_copy(), name)
            return copied
    return originals[name]


def call(name: str, target: T, *values: Any) -> T:
    """A call of torch.nn.init's function of this name, or of whoever's function stands in its place."""
    settle(target, *values)
    if isinstance(target, Shard) and target.owner is not None:
        return call(name, target.owner, *values)  # type: ignore[return-value]
    torchs, helper = originals[name], HELPERS.get(name)
    if standing.get(name) is torchs and (helper is None or standing.get(helper) is originals[helper]):
        result: T = torchs(target, *values)
        return result
    return call_carefully(name, target, *values)


def call_carefully(name: str, target: T, *values: Any) -> T:
    if is_kept(name, given_as(target)):
        return target
    function = replacement(name)
    result: T = (
        torchs_own(name)(target, *values) if function is None else obey(function, *as_given(name, (target, *values)))
    )
    return result
