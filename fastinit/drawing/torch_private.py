"""Names of torch that are not public: what each is for, and what serves where torch does not have it any more.

A missing name never stops the import. While one is missing the fast path stays off (`COMPLETE`), and the careful path
goes by the substitute given here, which is public where there is something public.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., Any])
names: dict[str, bool] = {}  # every name that was asked for, and whether torch has it
PROBE = torch.empty(0, device="cpu")


def find(path: str, substitute: Any) -> Any:
    """What torch has under this dotted name, or the substitute."""
    place, _, name = path.rpartition(".")
    found: Any = torch
    try:
        for part in place.split(".")[1:]:
            if not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)
        found = getattr(found, name)
    except (AttributeError, ImportError):
        names[path] = False
        return substitute
    names[path] = True
    return found


def nothing(*_: Any) -> Any:
    return None


def no(*_: Any) -> bool:
    return False


# --- the moment --------------------------------------------------------------------------------

# How many torch function modes are active. has_torch_function tells whether there is one, whatever the tensor.
function_modes: Callable[[], int] = find(
    "torch._C._len_torch_function_stack", lambda: int(torch.overrides.has_torch_function((PROBE,)))
)
# Which: `with torch.device(...)` is one that may be ignored. Without the list none may.
mode_stack: Callable[[], list[Any]] = find("torch.overrides._get_current_function_mode_stack", lambda: [None])
DeviceContext: type = find("torch.utils._device.DeviceContext", SimpleNamespace)
# How many torch dispatch modes are active. Nothing public tells; most make tensors of classes of their own, which are
# left to torch whatever this says.
dispatch_modes: Callable[[], int] = find("torch._C._len_torch_dispatch_stack", lambda: 0)


def in_graph() -> bool:
    """Whether torch.compile or torch.export is making a graph of what this thread does.

    What torch says of itself may be true of another thread.
    """
    return torch.compiler.is_dynamo_compiling() or (torch.compiler.is_compiling() and dispatch_modes() > 0)


# The level of functorch transforms, None outside. Without it, their tensors' data_ptr() raises torch's own error.
transform: Callable[[], int | None] = find("torch._C._functorch.maybe_current_level", nothing)
tracing: Callable[[], bool] = find("torch._C._is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]
# Has `_current_level`, of forward-mode differentiation, below 0 outside.
forward: Any = forward_ad
if find("torch.autograd.forward_ad._current_level", None) is None:
    forward = SimpleNamespace(_current_level=-1)

# --- tensors -----------------------------------------------------------------------------------

is_functional: Callable[[Tensor], bool] = find("torch._is_functional_tensor", no)
is_wrapped: Callable[[Tensor], bool] = find("torch._C._functorch.is_functorch_wrapped_tensor", no)
is_zero: Callable[[Tensor], bool] = find("torch.Tensor._is_zerotensor", no)
# What a class has for functions that it does not bring itself. Without them only torch's own classes are plain.
disabled_function: Any = find("torch._C._disabled_torch_function_impl", object())
disabled_dispatch: Any = find("torch._C._disabled_torch_dispatch_impl", object())
no_torch_function: Callable[[], Any] = find("torch._C.DisableTorchFunctionSubclass", contextlib.nullcontext)
# Of a tuple of tensors. torch's own wrapper around it costs as much again.
increment_version: Callable[[tuple[Tensor, ...]], None] = find(
    "torch._C._increment_version", torch.autograd.graph.increment_version
)
find("torch.Tensor._version", None)  # which inference tensors refuse to tell: only the fast path asks
# Keeps an operator in a graph that drops what nobody uses. Without it, exported programs may lose unused draws.
has_side_effect: Callable[[Any], Any] = find("torch.fx.node.has_side_effect", nothing)

QUICK = frozenset(names)  # what the fast path needs
COMPLETE = all(names.values())

# --- compilers -----------------------------------------------------------------------------------


def constant_in_graphs(function: F) -> F:
    """Have Dynamo call this function of constants, and take the result for a constant.

    As `torch.compiler.assume_constant_result`, which imports Dynamo: a second. If torch read another mark, Dynamo would
    stop with an error at what it cannot trace.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_decide = find("torch._C._dynamo.eval_frame.set_code_exec_strategy", None)
_strategy = find("torch._C._dynamo.eval_frame._FrameExecStrategy", None)
_action = find("torch._C._dynamo.eval_frame._FrameAction", None)


def skipped_by_dynamo(function: F) -> F:
    """Have Dynamo, while a compiled function runs, look neither into this function nor into what it calls.

    As `torch.compiler.disable`, which imports Dynamo and takes time in every call. Without these names Dynamo may stop
    with an error at what it cannot trace.
    """
    if _decide is not None and _strategy is not None and _action is not None:
        _decide(function.__code__, _strategy(_action.SKIP, _action.SKIP))
    return function


# --- memory and modes, for `models` ----------------------------------------------------------------

# Told of an operation below autograd; without it there is no `accelerate`.
DispatchMode: Any = find("torch.utils._python_dispatch.TorchDispatchMode", object)
# A weak reference to a tensor's memory, and the memory that it refers to, if it lives.
WeakMemory: Any = find("torch.multiprocessing.reductions.StorageWeakRef", None)
memory_of: Callable[[int], Any] = find("torch.UntypedStorage._new_with_weak_ptr", nothing)
find("torch.UntypedStorage._cdata", None)
# The stacks of modes, changed one by one.
push_function_mode: Callable[[Any], None] = find("torch.overrides._push_mode", nothing)
pop_function_mode: Callable[[], Any] = find("torch.overrides._pop_mode", nothing)
push_dispatch_mode: Callable[[Any], None] = find("torch._C._push_on_torch_dispatch_stack", nothing)
pop_dispatch_mode: Callable[[Any], Any] = find("torch._C._pop_torch_dispatch_stack", nothing)
# The innermost mode of each kind.
function_mode_at: Callable[[int], Any] = find("torch._C._get_function_stack_at", nothing)
dispatch_mode_at: Callable[[int], Any] = find("torch._C._get_dispatch_stack_at", nothing)
# As `no_torch_function`, and for modes too.
no_torch_functions: Callable[[], Any] = find("torch._C.DisableTorchFunction", contextlib.nullcontext)


def lacking() -> list[str]:
    """The names without which nothing can be deferred."""
    needed = ("UntypedStorage", "WeakRef", "_mode", "stack", "TorchDispatchMode", "DisableTorchFunction", "_version")
    return [path for path, there in names.items() if not there and any(word in path for word in needed)]


@constant_in_graphs
def is_transforming() -> bool:
    """Whether a functorch transform is active."""
    return transform() is not None


@constant_in_graphs
def is_exporting() -> bool:
    """Whether torch.export is at work. Traced by torch 2.8, its own function says so inside torch.compile, too."""
    return torch.compiler.is_exporting()


@constant_in_graphs
def is_recomputed() -> bool:
    """Whether Dynamo is tracing what torch.utils.checkpoint runs once more. No, where torch does not tell."""
    translator = getattr(sys.modules.get("torch._dynamo.symbolic_convert"), "InstructionTranslator", None)
    try:
        tracer = translator.current_tx().output.current_tracer  # type: ignore[union-attr]
        while tracer is not None:
            if "checkpoint" in str(tracer.source_target):
                return True
            tracer = tracer.parent
    except AttributeError:
        return False
    return False
