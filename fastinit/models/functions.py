"""Functions that no mode is told of by their names: wrappers that hand them to the block that is open, if one is.

While a block is open in any thread, wrappers stand in the places of these functions. In a thread without a block they
call what they stand for, so that whoever gets hold of one meanwhile (by importing it) may keep it for ever.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..drawing import originals

Function = Callable[..., Any]
# Where each lives, and what it is called here.
PLACES = {
    (
        "torch.nn.init",
        "_no_grad_trunc_normal_",
    ): "trunc_normal_",  # which trunc_normal_ looks up, however it was imported
    ("torch.nn.init", "orthogonal_"): "orthogonal_",
    ("torch.nn.init", "sparse_"): "sparse_",
    ("torch.nn.init", "eye_"): "eye_",
    ("torch.nn.init", "dirac_"): "dirac_",
    ("timm.layers.weight_init", "_trunc_normal_"): "trunc_normal_",
    ("torch", "compile"): "compile",  # after which torch's compiler looks into whatever is called
    ("torch.utils.dlpack", "to_dlpack"): "to_dlpack",  # gives away a tensor's address, and tells nobody
    ("torch", "to_dlpack"): "to_dlpack",
}
lock = threading.Lock()
in_use = 0  # blocks that are open, in all threads
replaced: list[tuple[Any, str, Function, Function]] = []  # module, name, what stood there, and its wrapper


@contextmanager
def wrapped(serve: Callable[[str, Function, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Within the context the functions' calls are given to `serve`, with the name and the function that was called."""
    enter(serve)
    try:
        yield
    finally:
        leave()


def enter(serve: Callable[..., Any]) -> None:
    global in_use
    with lock:
        in_use += 1
        if in_use > 1:
            return
        for (where, name), called in PLACES.items():
            module = sys.modules.get(where)
            function = getattr(module, name, None)
            # Somebody else's function stays where it is: what it does is what is wanted.
            if callable(function) and (where != torch.nn.init.__name__ or originals.is_torchs(name, function)):
                wrapper = wrap(called, function, serve)
                replaced.append((module, name, function, wrapper))
                setattr(module, name, wrapper)


def leave() -> None:
    global in_use
    with lock:
        in_use -= 1
        if in_use:
            return
        for module, name, function, wrapper in replaced:
            if getattr(module, name, None) is wrapper:
                setattr(module, name, function)
        replaced.clear()


def wrap(called: str, function: Function, serve: Callable[..., Any]) -> Function:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return serve(called, function, args, kwargs)

    originals.wrappers.add(wrapper)
    return wrapper
