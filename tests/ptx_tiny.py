"""Kernels of a few instructions, for the tests of the PTX machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import ptx

FILES = {"pred": "%p", 16: "%rs", 32: "%r", 64: "%rd"}  # registers' names by their width
DECLARED = ".reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>;"
ADDRESS = 4096  # of the output


def module(body: str, parameters: Iterable[str] = (), threads: str = "1") -> str:
    """A kernel with the address of its output in %rd0, and parameters p0, p1 and so on of these types."""
    listed = "".join(f", .param .{kind} p{number}" for number, kind in enumerate(parameters))
    return f"""
        .version 9.0
        .target sm_90
        .address_size 64
        .visible .entry tiny(.param .u64 out{listed})
        .reqntid {threads}
        {{
            {DECLARED}
            ld.param.u64 %rd0, [out];
            {body}
            ret;
        }}"""


def ran(
    body: str,
    size: int = 64,
    parameters: Sequence[str] = (),
    arguments: Sequence[bytes | float] = (),
    threads: str = "1",
    grid: tuple[int, int, int] = (1, 1, 1),
    blocks: Iterable[int] | None = None,
    before: bytes | None = None,
) -> bytes:
    """What a kernel makes of an output of zeros, or of what was there before."""
    data, memory = np.zeros(size, np.uint8) if before is None else np.frombuffer(before, np.uint8).copy(), ptx.Memory()
    memory.add(data, ADDRESS)
    kernel = ptx.parse(module(body, parameters, threads))
    ptx.run(kernel, grid, [ADDRESS, *arguments], memory, np.random.default_rng(0), blocks)
    return data.tobytes()
