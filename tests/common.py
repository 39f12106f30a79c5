"""Laws, dtypes and small helpers that several test files use."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch

from fastinit.kernels.formats import FORMATS
from fastinit.laws import Law, Normal, TruncNormal, Uniform, Words

ENGINES = ("reference", "cpu", "eager")
FLOATS = tuple(FORMATS)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
WITH_FANS = ("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_")
DRAWING = ("uniform_", "normal_", "trunc_normal_", *WITH_FANS, "orthogonal_", "sparse_")
INITIALISERS = (*DRAWING, "constant_", "ones_", "zeros_", "eye_", "dirac_")
ARGUMENTS = {"constant_": (0.5,), "sparse_": (0.5,)}  # that must be given
# One law for each way through the arithmetic, and one for each side where there are two.
LAWS: dict[str, Law] = {
    "uniform": Uniform(-0.5, 1.5),
    "uniform_inside": Uniform(-0.1, 0.3),  # where the dtype does not hold -0.1
    "normal": Normal(0.25, 2.0),
    "central": TruncNormal(0.0, 1.0, -2.0, 2.0),
    "central_right": TruncNormal(0.5, 2.0, 1.5, 5.0),
    "wide": TruncNormal(0.0, 0.02, -0.08, 0.1),
    "wide_left": TruncNormal(0.0, 1.0, -math.inf, 0.5),
    "wide_right": TruncNormal(1.0, 1.0, 4.5, 9.0),
    "narrow": TruncNormal(0.0, 100.0, -2.0, 2.0),
    "narrow_left": TruncNormal(0.0, 1.0, -3.02, -3.0),
    "tail": TruncNormal(0.0, 1.0, 5.0, 6.0),
    "tail_left": TruncNormal(0.0, 1.0, -math.inf, -4.5),
}
CASES = [(name, law, dtype) for name, law in LAWS.items() for dtype in FLOATS] + [
    ("words", Words(), torch.int32),
    ("narrower", TruncNormal(0.0, 1000.0, -2.0, 2.0), torch.float64),  # whose narrow intervals are narrower ones
    # In float64 this kind is for lengths below 2e-292, where the reference engine is not exact (README, Limits).
    *(("uniform_tiny", Uniform(0.0, 1e-38), dtype) for dtype in FLOATS if dtype is not torch.float64),
]
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


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh Python prints for `code`; warnings are printed, not raised."""
    variables = {**os.environ, **environment}
    command = [sys.executable, *arguments, "-c", code]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


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
