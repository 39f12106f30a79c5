"""What the GPU engine's primitives do otherwise than the arithmetic says, shown to come to the same."""

from __future__ import annotations

import types

import numpy as np
import pytest

primitives = pytest.importorskip("fastinit.kernels.gpu.primitives", reason="needs Triton")

from fastinit.kernels.plain.reference import fma_32  # noqa: E402

# Relative; the PTX ISA's figures for rsqrt.approx.f32 and rcp.approx.f32.
RSQRT_ERROR, RCP_ERROR = 2.0**-22.9, 2.0**-23


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


def wrong_quotients(divide) -> tuple[int, int]:
    """How many of many (x, y, start) give another number than the quotient, and how many there are.

    Every y of a binade, over x with a quotient next to a tie or to a number of float32; all starts within the
    documented error.
    """
    generator = np.random.default_rng(1)
    wrong = tried = 0
    for patterns in np.arange(0x3F800000, 0x40000000, dtype=np.int32).reshape(32, -1):
        y = patterns.view(np.float32)
        quotient = generator.integers(1 << 23, 1 << 24, y.shape) + generator.choice([0.0, 0.5], y.shape)
        x = (y.astype(np.float64) * quotient * 2.0**-23).astype(np.float32)
        x = (x.view(np.int32) + generator.integers(-1, 2, y.shape, np.int32)).view(np.float32)
        inverse = 1 / y.astype(np.float64)
        for steps in range(-2, 3):
            start = (inverse.astype(np.float32).view(np.int32) + np.int32(steps)).view(np.float32)
            allowed = np.abs(start / inverse - 1) <= RCP_ERROR
            if allowed.any():
                got = divide(x[allowed], y[allowed], start[allowed])
                wrong += int((got != x[allowed] / y[allowed]).sum())
                tried += got.size
    return wrong, tried


def test_quotients_are_correctly_rounded_for_every_divisor_and_every_start():
    wrong, tried = wrong_quotients(in_numpy(primitives.corrected_quotient))
    assert wrong == 0
    assert tried > 2 * 2**23


def test_quotients_without_a_correction_would_be_seen():
    """The twin. (One correction would do for all that is tried here; there are too many pairs to try all.)"""
    wrong, _ = wrong_quotients(lambda x, y, inverse: x * inverse)
    assert wrong > 1_000_000
