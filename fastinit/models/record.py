"""Which initialiser calls a module's own `reset_parameters` makes, and for which parameter.

Calls are seen in two ways, because modules make them in two ways. The functions of torch.nn.init are replaced, for
the time of the recording, in every module that holds one of them, so that `from torch.nn.init import normal_` hides
nothing; and a torch function mode sees what goes to the tensor itself (`weight.data.normal_()`). The outermost call
counts: kaiming_uniform_ is not uniform_.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.init
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ..initialisers.table import NAMES
from ..kernels.dtypes import FORMATS

# A tensor's own method: the initialiser that does the same, and its arguments by the method's names.
METHODS = {
    "uniform_": ("uniform_", {"from": "a", "to": "b"}),
    "normal_": ("normal_", {"mean": "mean", "std": "std"}),
    "fill_": ("constant_", {"value": "val"}),
    "zero_": ("zeros_", {}),
}
HARMLESS = {"requires_grad_", "detach_", "share_memory_"}  # in-place by name, values untouched
RESETS = ("reset_parameters", "_reset_parameters")
Place = tuple[int, int]


class ResetError(RuntimeError):
    """A module's `reset_parameters` raised, so nobody can say what it does."""


@dataclass(frozen=True, eq=False)
class Call:
    """One initialiser call: for which parameter, by which function, the tensor as given, and what followed it.

    `tensor` shares the parameter's memory; it may be a view of another shape, from which fans are then counted.
    """

    parameter: str
    initialiser: str
    tensor: Tensor
    arguments: dict[str, Any]


def record(module: torch.nn.Module) -> dict[str, Call]:
    """The last initialiser call that filled each parameter, by the parameter's name.

    Every submodule's `reset_parameters` and `_reset_parameters` are really called, children before their parents. A
    parameter is left out if no call filled it whole, or if something else changed it afterwards. Raises `ResetError`
    where one of them raises.
    """
    recorder = Recorder(module)
    with recorder.watching():
        module.apply(_reset)
    return recorder.laws(module)


def _reset(module: torch.nn.Module) -> None:
    for name in RESETS:
        method = getattr(module, name, None)
        if not callable(method):
            continue
        try:
            method()
        except Exception as error:  # somebody else's code can raise anything
            raise ResetError(f"{type(module).__name__}.{name}() raised {type(error).__name__}: {error}") from error


def place(tensor: Tensor) -> Place | None:
    """Where a tensor's elements lie and how many they are; None where it has no memory of its own."""
    if is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
        return None
    try:
        return tensor.data_ptr(), tensor.numel()
    except RuntimeError:  # a wrapper around other tensors
        return None


def places(module: torch.nn.Module) -> dict[Place, str]:
    """The parameters' names by place; of tied ones the first name."""
    found: dict[Place, str] = {}
    for name, parameter in module.named_parameters():
        where = place(parameter)
        if where is not None:
            found.setdefault(where, name)
    return found


class Recorder(TorchFunctionMode):
    """Notes the last call for each place in memory that is a parameter's."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.places = places(module)
        self.calls: dict[Place, Call] = {}
        self.inside = False  # an initialiser is at work: what it calls is its own business

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with torch.no_grad(), warnings.catch_warnings(), replaced(self.spy), self:
            warnings.simplefilter("ignore")  # the module's construction has shown them
            yield

    def laws(self, module: torch.nn.Module) -> dict[str, Call]:
        """The calls whose parameters still lie where they were filled, in the order of the parameters."""
        return {name: self.calls[where] for where, name in places(module).items() if where in self.calls}

    def note(self, initialiser: str, tensor: Any, arguments: dict[str, Any]) -> None:
        where = place(tensor) if isinstance(tensor, Tensor) else None
        if where in self.places:
            arguments.pop("generator", None)
            self.calls[where] = Call(self.places[where], initialiser, tensor.detach(), arguments)

    def forget(self, tensor: Any) -> None:
        where = place(tensor) if isinstance(tensor, Tensor) else None
        if where is not None:
            self.calls.pop(where, None)

    def spy(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A function of torch.nn.init that does the same and is noted."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            tensor, arguments = bound.arguments.pop("tensor"), dict(bound.arguments)
            self.inside = True
            try:
                result = drawn_by_torch(original, tensor, **arguments)
            finally:
                self.inside = False
            self.note(original.__name__, tensor, arguments)
            return result

        return noted

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if self.inside or not name.endswith("_") or name.endswith("__") or name in HARMLESS:
            return result
        if name in NAMES and getattr(func, "__module__", None) == "torch.nn.init":
            arguments = dict(kwargs)  # torch.nn.init hands its calls on with every argument named
            self.note(name, arguments.pop("tensor", None), arguments)
        elif name in METHODS and args:
            initialiser, names = METHODS[name]
            given = dict(zip(names, args[1:], strict=False)) | kwargs
            self.note(initialiser, args[0], {names[key]: value for key, value in given.items() if key in names})
        elif args:
            self.forget(args[0])
        return result


def drawn_by_torch(function: Callable[..., Any], tensor: Any, **arguments: Any) -> Any:
    """A call of torch.nn.init's; where torch has no kernel for the dtype (float8), for a float32 twin, then rounded."""
    try:
        return function(tensor, **arguments)
    except NotImplementedError:
        if not isinstance(tensor, Tensor) or tensor.dtype not in FORMATS:
            raise
    return tensor.copy_(function(torch.empty_like(tensor, dtype=torch.float32), **arguments))


@contextlib.contextmanager
def replaced(substitute: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within the context every module has `substitute(function)` where it had a function of torch.nn.init."""
    functions = [getattr(torch.nn.init, name) for name in NAMES]
    substitutes = {id(function): substitute(function) for function in functions}
    modules = [module for module in list(sys.modules.values()) if isinstance(module, types.ModuleType)]
    spots = [
        (vars(module), name, value)
        for module in modules
        for name, value in list(vars(module).items())
        if id(value) in substitutes
    ]
    for namespace, name, value in spots:
        namespace[name] = substitutes[id(value)]
    try:
        yield
    finally:
        for namespace, name, value in spots:
            namespace[name] = value
