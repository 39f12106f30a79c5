"""Functions that no mode is told of: wrappers that hand their calls to the block that is open, if one is.

While a block is open in any thread, wrappers stand in the places of these functions. In a thread without a block they
call what they stand for, so that whoever gets hold of one meanwhile (by importing it) may keep it for ever.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch.nn.init

from ..drawing import originals

Function = Callable[..., Any]
SETTLE = "settle"  # needs what is pending in its tensors
EVERYTHING = "everything"  # needs all that is pending
# Where each lives, and what it is: an initialiser, or what it needs.
PLACES = {
    # Which trunc_normal_ looks up, however that was imported.
    ("torch.nn.init", "_no_grad_trunc_normal_"): "trunc_normal_",
    ("torch.nn.init", "orthogonal_"): "orthogonal_",
    ("torch.nn.init", "sparse_"): "sparse_",
    ("torch.nn.init", "eye_"): "eye_",
    ("torch.nn.init", "dirac_"): "dirac_",
    ("timm.layers.weight_init", "_trunc_normal_"): "trunc_normal_",
    ("torch.utils.dlpack", "to_dlpack"): "to_dlpack",  # gives away a tensor's address
    ("torch", "to_dlpack"): "to_dlpack",
    ("torch.utils", "swap_tensors"): SETTLE,  # refuses what somebody refers to weakly
    ("torch.autograd.graph", "increment_version"): SETTLE,  # or it would look like somebody's write
    ("torch.jit", "save"): EVERYTHING,  # reads memory without an operation
    ("torch.jit._script", "RecursiveScriptModule.save"): EVERYTHING,
    ("torch.jit._script", "RecursiveScriptModule.save_to_buffer"): EVERYTHING,
}
Serve = Callable[[str, Function, tuple[Any, ...], dict[str, Any]], Any]
lock = threading.RLock()  # which a signal handler may take once more
wrappers: dict[tuple[str, Function], Function] = {}  # that were made already
users: set[Any] = set()  # blocks that are open, in all threads
replaced: dict[tuple[str, str], tuple[Any, str, Function, Function]] = {}  # owner, name, what stood there, its wrapper


def enter(user: Any, serve: Serve) -> None:
    """From now on calls of these functions are given to `serve`: what each is, and the function itself."""
    with lock:
        users.add(user)
        install(serve)


def leave(user: Any) -> None:
    """Put back what stood there, if nobody else has use for the wrappers."""
    with lock:
        users.discard(user)
        if not users:
            remove()


def install(serve: Serve) -> None:
    """Put wrappers where none is yet: modules may have been imported since."""
    for place, what in PLACES.items():
        if place in replaced or place[0] not in sys.modules:
            continue
        *path, name = place[1].split(".")
        owner: Any = sys.modules[place[0]]
        for part in path:
            owner = getattr(owner, part, None)
        function = getattr(owner, name, None)
        # Somebody else's function stays where it is: what it does is what is wanted.
        if callable(function) and (place[0] != torch.nn.init.__name__ or originals.is_torchs(name, function)):
            wrapper = wrappers.get((what, function)) or wrap(what, function, serve)
            replaced[place] = owner, name, function, wrapper
            setattr(owner, name, wrapper)


def remove() -> None:
    while replaced:
        place, (owner, name, function, wrapper) = next(iter(replaced.items()))
        if getattr(owner, name, None) is wrapper:
            setattr(owner, name, function)
        del replaced[place]


def wrap(what: str, function: Function, serve: Serve) -> Function:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return serve(what, function, args, kwargs)

    originals.wrappers.add(wrapper)
    wrappers[what, function] = wrapper
    return wrapper
