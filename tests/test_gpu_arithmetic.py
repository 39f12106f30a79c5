"""What the GPU engine's primitives do otherwise than the arithmetic says, shown to come to the same."""

from __future__ import annotations

import types

import numpy as np
import pytest

primitives = pytest.importorskip("fastinit.kernels.gpu.primitives", reason="needs Triton")

from fastinit.kernels.plain.reference import fma_32  # noqa: E402

RSQRT_ERROR = 2.0**-22.9  # relative; the PTX ISA's figure for rsqrt.approx.f32


def in_numpy(function, **names):
    """A Triton function of floats run in NumPy, its own source."""
    scope = {"tl": types.SimpleNamespace(fma=fma_32), "negative_32": np.negative} | names
    return types.FunctionType(function.fn.__code__, scope)


def wrong_roots(root) -> tuple[int, int]:
    """How many of all (x, start) give another number than the root, and how many there are.

    x goes over two binades, which is all there is: others differ by powers of 4. Starts are the numbers
    within the documented error; 2^-22.9 is 2.1 units in the last place of a number just below 1.
    """
    wrong = tried = 0
    for patterns in np.arange(0x3F800000, 0x40800000, dtype=np.int32).reshape(32, -1):
        x = patterns.view(np.float32)
        exact = 1 / np.sqrt(x.astype(np.float64))
        for steps in range(-3, 4):
            start = (exact.astype(np.float32).view(np.int32) + np.int32(steps)).view(np.float32)
            allowed = np.abs(start / exact - 1) <= RSQRT_ERROR
            if allowed.any():
                got = root(x[allowed], start[allowed])
                wrong += int((got != np.sqrt(x[allowed])).sum())
                tried += got.size
    return wrong, tried


def test_root_is_correctly_rounded_for_every_number_and_every_start():
    wrong, tried = wrong_roots(in_numpy(primitives.corrected_root))
    assert wrong == 0
    assert tried > 3 * 2**24


def test_root_with_one_step_less_would_be_seen():
    """The twin: the textbook's single correction misses for two starts in fifty million."""

    def root(x, start):
        near = x * start
        return fma_32(fma_32(-near, near, x), start * np.float32(0.5), near)

    wrong, _ = wrong_roots(root)
    assert 0 < wrong < 10
