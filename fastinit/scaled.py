"""Initialisers that scale a variance by a weight's fans, as JAX, Keras and TensorFlow have them.

Each fills `tensor`, of two or more dimensions or with both fans given, or a `fastinit.shard`, and returns it. Fans are
computed as torch does it: dimension 0 is output features, 1 input features, the rest the receptive field. Weights as
JAX and Keras shape them say so: layout="io" for a dense kernel, "sio" ("ssio") for a convolution's, "bio" for experts.
`fan_in`, `fan_out`, `groups` as in `fastinit.init`, and so are `generator`, `fast`, `stream` and the guarantee.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Generator

from .init import normal_
from .initialisers.fans import axes
from .initialisers.lists import Streams, Targets
from .initialisers.quick import Elsewhere, serve

T = TypeVar("T", bound=Targets)
F = TypeVar("F", bound=Callable[..., Any])
# The distributions, and who draws each in torch.nn.init.
DISTRIBUTIONS = {
    "truncated_normal": Elsewhere("trunc_normal_"),
    "untruncated_normal": Elsewhere("normal_"),
    "uniform": Elsewhere("uniform_"),
}


def variance_scaling_(
    tensor: T,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
    layout: str | None = None,
    fan_in: int | None = None,
    fan_out: int | None = None,
    groups: int = 1,
) -> T:
    """Samples of mean 0 and variance scale / fan, as `jax.nn.initializers.variance_scaling` and Keras's
    `VarianceScaling`.

    `mode` names the fan: "fan_in", "fan_out", their mean "fan_avg" or geometric mean "fan_geo_avg". `distribution` is
    "truncated_normal" (at two standard deviations of a normal law that is as much wider as the cut takes away),
    "untruncated_normal" (JAX's "normal") or "uniform". Raises `ValueError` for others and for a scale that is not
    above 0, `ZeroDivisionError` where the fan is 0.
    """
    if distribution not in DISTRIBUTIONS:
        hint = "; JAX's normal is untruncated_normal, Keras's truncated_normal" if distribution == "normal" else ""
        raise ValueError(f"distribution is one of {', '.join(DISTRIBUTIONS)}; got {distribution!r}{hint}")
    given = layout if fan_in is fan_out is None and groups == 1 else axes(layout, fan_in, fan_out, groups)
    name, torchs = f"variance_scaling_ {distribution}", DISTRIBUTIONS[distribution]
    return serve(name, tensor, (scale, mode), generator, fast, stream, given, shaped=True, elsewhere=torchs)


OPTIONS = [p for p in inspect.signature(variance_scaling_).parameters.values() if p.kind is p.KEYWORD_ONLY]


def with_options(function: F) -> F:
    """Give a function the signature that its `**options` stand for: with the keywords of `variance_scaling_`."""
    own = inspect.signature(function)
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = own.replace(parameters=[*kept, *OPTIONS])  # type: ignore[attr-defined]
    return function


@with_options
def lecun_normal_(tensor: T, generator: Generator | None = None, **options: Any) -> T:
    """Truncated normal of variance 1 / fan_in (LeCun et al. 1998); options as in `variance_scaling_`."""
    return variance_scaling_(tensor, 1.0, "fan_in", "truncated_normal", generator, **options)


@with_options
def lecun_uniform_(tensor: T, generator: Generator | None = None, **options: Any) -> T:
    """Uniform of variance 1 / fan_in (LeCun et al. 1998); options as in `variance_scaling_`."""
    return variance_scaling_(tensor, 1.0, "fan_in", "uniform", generator, **options)


@with_options
def glorot_normal_(tensor: T, generator: Generator | None = None, **options: Any) -> T:
    """Truncated normal of variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010); `xavier_normal_` is not cut."""
    return variance_scaling_(tensor, 1.0, "fan_avg", "truncated_normal", generator, **options)


@with_options
def glorot_uniform_(tensor: T, generator: Generator | None = None, **options: Any) -> T:
    """Uniform of variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010), the law of `xavier_uniform_`."""
    return variance_scaling_(tensor, 1.0, "fan_avg", "uniform", generator, **options)


@with_options
def he_normal_(tensor: T, generator: Generator | None = None, **options: Any) -> T:
    """Truncated normal of variance 2 / fan_in (He et al. 2015); `kaiming_normal_` is not cut."""
    return variance_scaling_(tensor, 2.0, "fan_in", "truncated_normal", generator, **options)


@with_options
def he_uniform_(tensor: T, generator: Generator | None = None, **options: Any) -> T:
    """Uniform of variance 2 / fan_in (He et al. 2015), the law of `kaiming_uniform_` for ReLU."""
    return variance_scaling_(tensor, 2.0, "fan_in", "uniform", generator, **options)


@with_options
def uniform_unit_scaling_(tensor: T, factor: float = 1.0, generator: Generator | None = None, **options: Any) -> T:
    """Uniform on [-b, b) with b = factor sqrt(3 / fan_in), as TensorFlow 1's `uniform_unit_scaling_initializer`."""
    return variance_scaling_(tensor, factor * factor, "fan_in", "uniform", generator, **options)


def depth_scaled_normal_(
    tensor: T,
    std: float = 0.02,
    depth: int = 1,
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """Normal with standard deviation std / sqrt(2 depth), for what is added to a residual stream of that many layers.

    `depth` is the number of layers in GPT-2 (Radford et al. 2019) and in Megatron's `scaled_init_method_normal`, and
    the layer's own number, from 1 on, in torchtitan. Raises `ValueError` for what is no whole number above 0.
    """
    if type(depth) is not int or depth < 1:
        raise ValueError(f"depth is a whole number of layers above 0, got {depth!r}")
    return normal_(tensor, 0.0, std / math.sqrt(2 * depth), generator, fast=fast, stream=stream)


# What divides the standard deviation of each weight (Yang et al. 2022, Tensor Programs V, table 3).
ROLES: dict[str, Callable[[float], float]] = {"input": lambda width: 1.0, "hidden": math.sqrt, "output": float}


def mup_normal_(
    tensor: T,
    std: float = 0.02,
    width_mult: float = 1.0,
    role: str = "hidden",
    generator: Generator | None = None,
    *,
    fast: bool | None = None,
    stream: Streams = None,
) -> T:
    """Normal whose standard deviation follows a model's width, so that a narrow one's hyperparameters stay right (muP).

    `std` is that of the narrow model, `width_mult` how many times as wide this one is. The `role` of a weight is
    "input" (embeddings, biases: std), "hidden" (std / sqrt(width_mult)) or "output" (std / width_mult). Raises
    `ValueError` for another role, or a width that is not above 0.
    """
    if role not in ROLES:
        raise ValueError(f"a weight's role is one of {', '.join(ROLES)}; got {role!r}")
    if not width_mult > 0:
        raise ValueError(f"width_mult is a number above 0, got {width_mult!r}")
    return normal_(tensor, 0.0, std / ROLES[role](width_mult), generator, fast=fast, stream=stream)
