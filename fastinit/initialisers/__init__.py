"""Initialisers as values, by name; and what torch.nn.init's functions compute before they draw.

`normal(std=0.02)`, `get("he_normal")`: every public function of fastinit that fills a tensor, without its underscore.
Call the value with a shape for a tensor, or have it fill one: see `Initializer`.
"""

from collections.abc import Callable

from .values import Initializer, get, names

__all__ = ["Initializer", "get", "names"]


def __getattr__(name: str) -> Callable[..., Initializer]:
    from .values import factory

    if name in names():
        return factory(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *names()]
