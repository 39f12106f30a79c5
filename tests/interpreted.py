"""Runs the GPU engine in Triton's interpreter: `TRITON_INTERPRET=1 python tests/interpreted.py float32`.

Prints each law and layout with how many elements were compared with the reference engine, and `differ` or `same`.
tests/test_gpu_interpreted.py reads that. A process of its own, because Triton decides at import how its functions run.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import torch
from common import CASES, FLOATS, name_of, same_bits
from ptx_opcodes import fma_32, fma_64
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import fastinit
from fastinit.drawing import engines
from fastinit.kernels.contract import Draw, has_each
from fastinit.kernels.gpu import engine as gpu
from fastinit.kernels.runs import row_major
from fastinit.laws import Normal

# Layouts do not depend on the law, and the interpreter is slow: these see all of them, the others the first few.
THOROUGH = {
    ("uniform", torch.float32),
    ("normal", torch.float64),
}
FEW, ALL = 3, 10
SEED, STREAM = 2**64 - 59, 2**63 + 11


def pretend(multiprocessors: int) -> None:
    """As if on an sm_90 with so few multiprocessors that a program has several tiles to write."""
    device = gpu.Device("cpu", 0, GPUTarget("cuda", 90, 32), multiprocessors)
    gpu.device_of = lambda kind, index: device  # type: ignore[assignment]
    gpu.LAUNCHES = {place: launch._replace(programs=1) for place, launch in gpu.LAUNCHES.items()}
    gpu.TILES_FROM = 0


def rounded_once(_: InterpreterBuilder, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    """An fma. Before 3.9 the interpreter's own rounds twice."""
    compute = fma_64 if z.data.dtype == np.float64 else fma_32
    return TensorHandle(compute(x.data, y.data, z.data), z.dtype.scalar)


def layouts(dtype: torch.dtype, tile: int):
    """(name, memory to write, its first element's number, steps): whole tiles with ragged ends, far out, scattered."""
    lead = 16 // dtype.itemsize * 3
    memory = torch.zeros(3 * tile + 101, dtype=dtype)
    yield "tiles, ragged ends", memory, 2 * tile - lead, None
    yield "odd first element", memory[:300], 2**40 + 1, None
    yield "last tile below 2^62", memory[:tile], 2**62 - tile, None
    yield "tiles beyond 2^32 counters", memory[: 2 * tile], 2**40 * tile, None
    yield "odd address", memory[1:300], 64, None
    yield "one element", memory[:1], 77, None
    yield "transposed", memory[: 40 * 33].view(33, 40).t(), 5, None
    yield "box of a larger tensor", memory[: 6 * 50].view(6, 50), 37, (1000, 1)
    yield "four dimensions", memory[: 2 * 3 * 4 * 5].view(2, 3, 4, 5).permute(3, 1, 0, 2), 9, (1000, 200, 50, 7)
    wide = memory[: 2**5].view(2, 2, 2, 2, 2)
    yield "five dimensions", wide.permute(4, 0, 3, 1, 2), 0, (700, 300, 101, 41, 3)


def compare(name: str, law, dtype: torch.dtype) -> None:
    draw = Draw(*law.parameters(dtype), SEED, STREAM)
    engine, reference = gpu.GpuEngine(), engines.load("reference")
    tile = gpu.Filling(gpu.device_of("cpu", 0), dtype, draw).tile
    thorough = (name, dtype) in THOROUGH
    for layout, out, first, steps in itertools.islice(layouts(dtype, tile), ALL if thorough else FEW):
        out.view(torch.uint8 if dtype.itemsize == 1 else dtype).zero_()
        expected = torch.empty(out.shape, dtype=dtype)
        engine.fill(out, draw, first, steps)
        reference.fill(expected, draw, first, row_major(out.shape) if steps is None else steps)
        print(name, layout, out.numel(), "same" if same_bits(out, expected) else "differ", sep="|", flush=True)
    if not thorough:
        return
    if has_each(draw.kind):
        for layout, out, start, steps in itertools.islice(layouts(dtype, 512), FEW, 2 * FEW):
            given = [torch.linspace(0.5, 2, out.numel(), dtype=dtype).view(out.shape) for _ in draw.parameters]
            own, expected = draw._replace(parameters=()), torch.empty(out.shape, dtype=dtype)
            engine.fill_each(out, own, start, steps, given)
            reference.fill_each(expected, own, start, steps, given)
            same = "same" if same_bits(out, expected) else "differ"
            print(name, f"by element: {layout}", out.numel(), same, sep="|", flush=True)
    sample, first = engine.sample(torch.device("cpu"), dtype, draw)
    expected = torch.empty(sample.shape, dtype=dtype)
    reference.fill(expected, draw, first, None)
    print(name, "trial", sample.numel(), "same" if same_bits(sample, expected) else "differ", sep="|", flush=True)


def public(dtype: torch.dtype) -> None:
    """Through the public function, and a twin: another seed gives other bits."""
    stream, other = fastinit.Stream(3), fastinit.Stream(4)
    results = []
    for engine, source in (("gpu", stream), ("reference", stream), ("reference", other)):
        with fastinit.use_engine(engine):
            results.append(fastinit.normal_(torch.empty(70, 11, dtype=dtype), stream=source))
    same = same_bits(results[0], results[1]) and not same_bits(results[0], results[2])
    print("public", str(Normal(0.0, 1.0)), 770, "same" if same else "differ", sep="|")


if __name__ == "__main__":
    pretend(1)
    InterpreterBuilder.create_fma = rounded_once
    wanted, *laws = sys.argv[1:]
    for name, law, dtype in CASES:
        if name_of(dtype) == wanted and (not laws or name in laws):
            compare(name, law, dtype)
    if getattr(torch, wanted) in FLOATS:
        public(getattr(torch, wanted))
