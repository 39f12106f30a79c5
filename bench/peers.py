"""Other libraries that draw the same laws, where they are installed.

Each is given its best case: generators made once, compiled once. Those that cannot write into a given tensor return
memory of their own, which is said in their names.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cases import Case
from .timing import Call

UNIFORM, NORMAL, TRUNCATED = "uniform_", "normal_", "trunc_normal_"
BOTH = (UNIFORM, NORMAL)
ANY = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDE = (torch.float32, torch.float64)
DOUBLE = (torch.float64,)


class Peer(NamedTuple):
    """`make` gives the call that draws `function` into a tensor; it raises where the library does not work here."""

    name: str
    functions: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    make: Callable[[str, Tensor], Call]

    def draws(self, case: Case) -> bool:
        """Whether the library has that law in that dtype at all."""
        plain = type(case) is Case and not (case.keywords or case.conditions)
        return plain and case.function in self.functions and case.dtype in self.dtypes


def numpy_into(bits: str, function: str, tensor: Tensor) -> Call:
    import numpy

    generator = numpy.random.Generator(getattr(numpy.random, bits)(0))
    out = tensor.view(-1).numpy()
    draw = generator.random if function == UNIFORM else generator.standard_normal
    return functools.partial(draw, dtype=out.dtype, out=out)


def mkl(function: str, tensor: Tensor) -> Call:
    import mkl_random

    state = mkl_random.MKLRandomState(0, brng="PHILOX4X32X10")
    draw = state.random_sample if function == UNIFORM else state.standard_normal
    return functools.partial(draw, tensor.numel())


def jax(implementation: str, function: str, tensor: Tensor) -> Call:
    import jax

    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    draws: Mapping[str, Callable[[Any], Any]] = {
        UNIFORM: lambda key: jax.random.uniform(key, shape, dtype),
        NORMAL: lambda key: jax.random.normal(key, shape, dtype),
        TRUNCATED: lambda key: jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype),
    }
    with jax.enable_x64(dtype == "float64"):
        key = jax.random.key(0, impl=implementation)
        compiled = jax.jit(draws[function]).lower(key).compile()
    return lambda: compiled(key).block_until_ready()


def torch_compiled(function: str, tensor: Tensor) -> Call:
    """Inductor's own generator (Philox, too), fused into the loop that writes; needs a C++ compiler."""
    torch.compiler.reset()  # one function's code is compiled for no more than eight kinds of tensor
    like = torch.rand_like if function == UNIFORM else torch.randn_like
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = torch.compile(lambda out: out.copy_(like(out)))
        call(tensor)
    return functools.partial(call, tensor)


def torch_keyed(function: str, tensor: Tensor) -> Call:
    """Torch's stateless generator, which is private and experimental still."""
    from torch.func import _random

    key = _random.key(0)
    call = functools.partial(_random.uniform_ if function == UNIFORM else _random.normal_, key, tensor)
    call()
    return call


PEERS = (
    Peer("torch.compile", BOTH, ANY, torch_compiled),
    Peer("torch.func._random", BOTH, ANY, torch_keyed),
    Peer("numpy Philox", BOTH, WIDE, functools.partial(numpy_into, "Philox")),
    Peer("numpy SFC64", BOTH, WIDE, functools.partial(numpy_into, "SFC64")),
    Peer("mkl_random new array", BOTH, DOUBLE, mkl),
    Peer("jax threefry new array", (*BOTH, TRUNCATED), ANY, functools.partial(jax, "threefry2x32")),
    Peer("jax rbg new array", (*BOTH, TRUNCATED), ANY, functools.partial(jax, "rbg")),
)


def call_of(peer: Peer, function: str, tensor: Tensor) -> Call | str:
    """The peer's call, or why there is none here."""
    try:
        return peer.make(function, tensor)
    except ImportError as error:
        return f"not installed: {error}"
    except Exception as error:  # a compiler that is missing, an operator without a kernel: each has its own
        first_sentence = re.split(r"\n|\. ", str(error).strip())[0]
        return f"does not work here: {type(error).__name__}: {first_sentence[:160]}"
