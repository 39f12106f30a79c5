"""Laws, dtypes and small helpers that several test files use."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from scipy import stats

import fastinit.init
from fastinit.initialisers import quick
from fastinit.kernels.dtypes import FORMATS
from fastinit.laws import (
    EXAMPLES,
    Bernoulli,
    Cauchy,
    Exponential,
    Geometric,
    Integers,
    Law,
    LogNormal,
    Normal,
    TruncNormal,
    Uniform,
    examples,
)

ENGINES = ("reference", "cpu", "eager")
FLOATS = tuple(FORMATS)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
WITH_FANS = ("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_")
DRAWING = ("uniform_", "normal_", "trunc_normal_", *WITH_FANS, "orthogonal_", "sparse_")
INITIALISERS = (*DRAWING, "constant_", "ones_", "zeros_", "eye_", "dirac_")
ARGUMENTS = {"constant_": (0.5,), "sparse_": (0.5,)}  # that must be given
# Every example; but not lengths below 2e-292, for which the reference engine is not exact (README, Limits).
CASES = [(name, law, dtype) for name, law, dtype in examples() if name != "uniform_tiniest"]
LAWS = {name: example.law for name, example in EXAMPLES.items() if set(example.dtypes) >= set(FLOATS)}


def slow_unless(usual: Callable[[Any], bool], cases: Sequence[Any]) -> list[Any]:
    """Cases for a test that takes long: those that are `usual` as they are, the others for `-m slow`."""
    return [case if usual(case) else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def scipys(law: Law) -> Any:
    """The same distribution, by SciPy."""
    if isinstance(law, Uniform):
        return stats.uniform(law.a, law.b - law.a)
    if isinstance(law, Normal):
        return stats.norm(law.mean, law.std)
    if isinstance(law, Exponential):
        return stats.expon(scale=1 / law.rate)
    if isinstance(law, LogNormal):
        return stats.lognorm(law.log_std, scale=math.exp(law.log_mean))
    if isinstance(law, Cauchy):
        return stats.cauchy(law.median, law.sigma)
    if isinstance(law, Bernoulli):
        return stats.bernoulli(law.p)
    if isinstance(law, Geometric):
        return stats.geom(law.p)
    if isinstance(law, Integers):
        return stats.randint(law.start, law.stop)
    assert isinstance(law, TruncNormal)
    low, high = ((bound - law.centre) / law.scale for bound in (law.a, law.b))
    return stats.truncnorm(low, high, law.centre, law.scale)


# For what takes long: the cases in float32, and every fifth of the others (so every dtype); the rest with `-m slow`.
FEWER_CASES = slow_unless(lambda case: case[2] is torch.float32 or case in CASES[::5], CASES)
# For what runs in every engine: where laws share their conversions with others, the rest is left to `-m slow`.
ALIKE = ("log_normal", "cauchy", "bernoulli", "geometric", "integers", "integers_long")
CHOSEN = (torch.float32, torch.float64, torch.uint8, torch.int64)
USUAL_CASES = slow_unless(lambda case: case[0] not in ALIKE or case[2] in CHOSEN, CASES)
# Of laws that are drawn in every floating-point dtype: all in float32, and in the others one of a kind.
LAW_DTYPES = slow_unless(
    lambda case: case[1] is torch.float32 or case[0] in ("uniform", "normal", "central"),
    [(name, dtype) for name in LAWS for dtype in FLOATS],
)
CASE_IDS = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, _, dtype in CASES]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor, so that equality means equality, of nan and negative zero too."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(whole)


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All finite numbers of a dtype of one or two bytes, both zeros too, as float64."""
    whole = torch.uint8 if dtype.itemsize == 1 else torch.int16
    numbers = torch.arange(256**dtype.itemsize, dtype=torch.int32).to(whole).view(dtype).double()
    return numbers[numbers.isfinite()]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def call(function: Any, name: str, tensor: Any) -> Any:
    return function(tensor, *ARGUMENTS.get(name.rstrip("_") + "_", ()))


def outcome(function: Any, tensor: torch.Tensor, *arguments: Any, **keywords: Any) -> tuple[Any, list[Any]]:
    """What a call does: exception type and text, warnings; and that an error left the tensor alone."""
    before = tensor.detach().clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function(tensor, *arguments, **keywords)
            error = None
        except Exception as raised:
            error = (type(raised), str(raised))
            assert same_bits(before, tensor.detach()), "changed by a call that failed"
    return error, [(w.category, str(w.message)) for w in caught]


def error_of(function: Any, *arguments: Any) -> tuple[type[Exception], str]:
    """The error of a call that must fail."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  (whatever torch raises)
        function(*arguments)
    return type(raised.value), str(raised.value)


# Releases that draw truncated normals by the inverse distribution function write before they find out what is wrong.
BY_INVERSE = "erfinv" in inspect.getsource(torch.nn.init._no_grad_trunc_normal_)


def refuse_bounds(tensor: torch.Tensor, mean: float, std: float, a: float, b: float) -> torch.Tensor:
    """torch's trunc_normal_ with bounds that it refuses, in words that older releases do not have yet."""
    if BY_INVERSE:
        if mean < a - 2 * std or mean > b + 2 * std:
            warnings.warn(
                "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
                "The distribution of values may be incorrect.",
                stacklevel=2,
            )
        return torch.nn.init.uniform_(tensor, a, b)
    return torch.nn.init.trunc_normal_(tensor, mean, std, a, b)


def fresh_python(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh Python prints for `code`; warnings are printed, not raised."""
    command = [sys.executable, *arguments, "-c", code]
    variables = {**os.environ, **environment}
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def python(code: str, **environment: str) -> str:
    """The same of a Python that has imported torch: for all that needs no switches of Python's own."""
    assert not any(name.startswith("PYTHON") for name in environment)
    status, printed, errors = forked.run(code, {**os.environ, **environment})
    assert status == 0, errors
    return printed


def watch_quick_fills(monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> list[str]:
    """The names of calls that take the fast path there from now on: they return, and `table.draw` was not needed."""
    quick_fills, careful = [], []
    serve, draw = quick.serve, quick.draw

    def drawn(name: str, *arguments: Any) -> Any:
        careful.append(name)
        return draw(name, *arguments)

    def served(name: str, target: Any, *arguments: Any, **keywords: Any) -> Any:
        before = len(careful)
        result = serve(name, target, *arguments, **keywords)
        quick_fills.extend([name] * (len(careful) == before and target.device.type == device))
        return result

    monkeypatch.setattr(quick, "draw", drawn)
    monkeypatch.setattr(fastinit.init, "serve", served)
    return quick_fills


class FakeCudaGenerator:
    """What torch's CUDA generator offers, on a machine that has none: a seed and an offset."""

    device = torch.device("cuda", 0)

    def __init__(self, seed: int, offset: int = 0) -> None:
        self.seed, self.offset = seed, offset

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


def digests(folder: Path) -> dict[str, str]:
    """Of the files in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def index_of(shard: Any) -> tuple[slice, ...]:
    """The box that a `fastinit.shard` is of its global tensor."""
    (box,) = shard.boxes
    return tuple(slice(at, at + size) for at, size in zip(box.offset, box.shape, strict=True))
