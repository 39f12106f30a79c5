"""Initialisers as values, by name; and what torch.nn.init's functions compute before they draw.

`normal(std=0.02)`, `get("he_normal")`: every public function of fastinit that fills a tensor, without its underscore.
Call the value with a shape for a tensor, or have it fill one: see `Initializer`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .parts import gates, get, keep
    from .values import Initializer, names

__all__ = ["Initializer", "gates", "get", "keep", "names"]

# The public in-place functions by their names; fastinit's __init__ enters them.
functions: dict[str, Callable[..., Any]] = {}


def __getattr__(name: str) -> Any:
    if name not in __all__ and f"{name}_" not in functions:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import parts, values  # imported on first use

    if name in __all__:
        return getattr(parts if name in ("gates", "get", "keep") else values, name)
    return values.factory(name)


def __dir__() -> list[str]:
    return [*__all__, *(name.removesuffix("_") for name in functions)]
