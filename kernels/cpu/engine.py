"""The CPU engine: kernels that write blocks of samples with vector stores, compiled once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..contract import Draw, block_size, stored_as, width_of
from ..dtypes import uncovered
from ..runs import is_dense, is_shared, parts, row_major, runs_of
from . import jobs, loading
from .forms import EACH
from .jobs import Job, Plan, constant, pattern_of, plan
from .rows import address_of

STAGING = 1 << 20  # elements whose parameters are laid out anew at a time, where they do not lie in a row


class CpuEngine:
    """Compiled kernels for CPU tensors, shared out over torch's number of threads."""

    name = "cpu"
    compiled = True

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"it writes to memory of the CPU, not of {device.type}"
        return uncovered(dtype)

    def plan(self, dtype: torch.dtype, law: tuple[str, tuple[float, ...]]) -> Plan:
        return plan(Draw(*law, 0, 0), dtype)

    def again_and_again(
        self, out: Tensor, law: tuple[str, tuple[float, ...]], first: int, steps: Sequence[int]
    ) -> Callable[[int, int, int], None]:
        """What fills a part of a tensor that is laid out as `out`, from its address, a seed and a stream's id."""
        return jobs.again_and_again(out, Draw(*law, 0, 0), first, steps)

    def plan_each(self, kind: str, dtype: torch.dtype, parameters: int) -> Plan:
        """For so many float32 parameters a sample; their places stand behind the pattern, for the caller to fill in."""
        return plan(Draw(kind, (0,) * (2 * parameters), 0, 0), dtype, "each32")

    def constant(self, element: bytes) -> Plan:
        return constant(element)

    def job(self) -> Job:
        return Job()

    def fill(self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        dtype, count = out.dtype, out.numel()
        if steps is None and count < jobs.THREADS_FROM and out.is_contiguous():
            # One kernel for all sizes, also where "rows" would do: compiling a second costs half a second.
            pattern = pattern_of(draw, dtype, first)
            loading.entry("fill")(address_of(pattern), out.data_ptr(), count, draw.seed, draw.stream_id)
            return
        job = Job()
        job.add_fill(out, draw, first, steps)
        job.do()

    def permute(self, out: Tensor, seed: int, stream_id: int) -> bool:
        from . import choices

        return choices.permute(out, seed, stream_id)

    def choose(self, out: Tensor, sums: Tensor, seed: int, stream_id: int) -> bool:
        from . import choices

        return choices.choose(out, sums, seed, stream_id)

    @torch.no_grad()
    def fill_each(
        self, out: Tensor, draw: Draw, first: int, steps: Sequence[int] | None, parameters: Sequence[Tensor]
    ) -> None:
        stored = stored_as(draw.kind, out.dtype, parameters)
        loading.kernel(draw.kind, out.dtype, EACH[stored], len(parameters))  # before anything is written
        steps = row_major(out.shape) if steps is None else steps
        in_place = all(is_dense(tensor) and tensor.dtype is stored for tensor in parameters)
        block = block_size(width_of(draw.kind, out.dtype))
        for part, start, given in parts(out, first, steps, out.numel() if in_place else STAGING, parameters):
            rows = [in_memory(tensor, stored, block) for tensor in given]
            places = tuple(number for tensor, step in rows for number in (tensor.data_ptr(), step))
            runs = runs_of(part.shape, part.stride(), part.dtype.itemsize, steps)
            job = Job()
            job.add(EACH[stored], part, runs, draw._replace(parameters=places), start)
            job.do()


def in_memory(parameter: Tensor, stored: torch.dtype, block: int) -> tuple[Tensor, int]:
    """Elements' parameters as `each.each_kernel` reads them, and the bytes from one to the next.

    One that all share is repeated as often as a block has elements, and 0 bytes lead on.
    """
    if is_shared(parameter):
        return parameter.as_strided((block,), (0,)).to(stored).contiguous(), 0
    return parameter.to(stored).contiguous(), stored.itemsize
