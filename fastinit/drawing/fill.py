"""Law x stream x region -> tensor: the drawing."""

from __future__ import annotations

from typing import TypeVar

import torch

from ..kernels.contract import Draw, Engine
from ..laws import Law
from . import engines
from .regions import Target, local_of, region
from .streams import Stream, source
from .torch_private import increment_version

T = TypeVar("T", bound=Target)


def fill(
    target: T,
    law: Law,
    generator: torch.Generator | None = None,
    *,
    stream: Stream | None = None,
    compiled: bool = False,
) -> T:
    """Fill `target` in place with samples of `law`; returns `target`.

    The bits depend on the law, the stream and each element's index in the global tensor. Without a stream
    one is drawn from the generator (see `streams.default_generator`): one 64-bit number, whatever the size. A meta
    tensor stays as it is. Raises `RuntimeError` where `compiled` insists on a compiled engine and there is none.
    """
    write(target, law, generator, stream, compiled)
    return target


def write(
    target: Target, law: Law, generator: torch.Generator | None, stream: Stream | None, compiled: bool
) -> Engine | None:
    """The same; returns who drew, None for a meta tensor."""
    local, boxes = local_of(target), region(target)
    if local.is_meta:
        return None
    kind, parameters = law.parameters(local.dtype)
    engine = engines.choose(local, compiled, (kind, parameters))
    words = source(target, generator, stream)  # once it is known that something can draw
    draw = Draw(kind, parameters, words.seed, words.id)
    try:
        for part, first, steps in boxes:
            if part.numel():
                engine = engines.draw_into(engine, part, compiled, draw, first, steps)
    finally:  # autograd must hear of writes that go around torch, interrupted ones too
        if not local.is_inference():
            increment_version((local,))
    return engine
