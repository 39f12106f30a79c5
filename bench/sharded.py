"""Initialising DTensors on real processes, beside torch's own and beside plain tensors of the shard's size.

    python -m bench.sharded --ranks 4 --elements 2**24

Every rank has one thread; all fill at the same time, call after call, in turns: a DTensor by fastinit and by
torch.nn.init, a plain tensor of the shard's size by both. The table has medians over all turns and ranks, and the
gain that sharding leaves: the ratio on the mesh, as a part of the ratio of plain tensors. 0.8 is promised, and
that no DTensor takes longer than torch's own. Before it: columns of a matrix, of 8192 x 8192 over 8 ranks, beside as
many contiguous elements, for which 1.3 is promised.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich
import torch
import torch.distributed as dist
from rich.table import Table

import fastinit

PROMISED, COLUMNS = 0.8, 1.3
CALLS = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "zeros_")


def placements(world: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    found: dict[str, tuple[tuple[int, ...], Any]] = {
        "Shard(0)": ((world,), [Shard(0)]),
        "Shard(1)": ((world,), [Shard(1)]),
    }
    if world >= 4:
        pair = (2, world // 2)
        found |= {
            "FSDP2 over TP": (pair, [_StridedShard(0, split_factor=world // 2), Shard(0)]),
            "HSDP": (pair, [Replicate(), Shard(0)]),
            "(Shard(0), Shard(1))": (pair, [Shard(0), Shard(1)]),
        }
    return found


def measure(rank: int, world: int, store: str, elements: int, turns: int, answers: Any) -> None:
    """A rank: seconds of every call, of each of the four ways."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    side = 1 << (elements.bit_length() - 1) // 2
    shape = (elements // side, side)
    seen: dict[tuple[str, str], list[list[float]]] = {}
    for label, (mesh_shape, placement) in placements(world).items():
        mesh = init_device_mesh("cpu", mesh_shape)
        sharded = distribute_tensor(torch.empty(shape), mesh, placement, src_data_rank=None)
        plain = torch.empty_like(sharded.to_local())
        for name in CALLS:
            ours, theirs = getattr(fastinit, name), getattr(torch.nn.init, name)
            ways = [(ours, sharded), (theirs, sharded), (ours, plain), (theirs, plain)]
            seen[label, name] = [[] for _ in ways]
            for turn in range(turns + 1):
                for number, (call, tensor) in enumerate(ways):
                    dist.barrier()
                    seconds = timed(call, tensor)
                    if turn:
                        seen[label, name][number].append(seconds)
    answers.put(seen)
    dist.barrier()
    dist.destroy_process_group()


def timed(call: Callable[[Any], Any], tensor: Any) -> float:
    begin = time.perf_counter()
    call(tensor)
    return time.perf_counter() - begin


def together(ranks: list[dict[Any, list[list[float]]]]) -> Table:
    table = Table("placement", "call", "fastinit ms", "torch ms", "ratio", "plain tensors", "part kept")
    for key in ranks[0]:
        on_mesh, torchs, plain, torchs_plain = (
            statistics.median(second for rank in ranks for second in rank[key][number]) for number in range(4)
        )
        ratio, alone = torchs / on_mesh, torchs_plain / plain
        kept = ratio / alone
        colour = "green" if kept >= PROMISED and ratio >= 1 else "red"
        table.add_row(
            *key, f"{1e3 * on_mesh:.2f}", f"{1e3 * torchs:.2f}", f"{ratio:.1f}", f"{alone:.1f}",
            f"[{colour}]{kept:.2f}[/]",
        )  # fmt: skip
    return table


def columns(turns: int) -> str:
    """How much longer `Shard(1)` takes than a row of as many elements."""
    stream, whole = fastinit.Stream(0), (8192, 8192)
    row, part = torch.empty(8192 * 1024), torch.empty(8192, 1024)
    shard = fastinit.shard(part, whole, (0, 1024))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns + 2):
        for target, seconds in zip((row, shard), taken, strict=True):
            seconds.append(timed(lambda target: fastinit.normal_(target, stream=stream), target))
    ratio = statistics.median(taken[1][2:]) / statistics.median(taken[0][2:])
    colour = "green" if ratio <= COLUMNS else "red"
    return (
        f"Shard(1) of 8192 x 8192 over 8, normal_: [{colour}]{ratio:.2f}[/] times as long as a row of as many elements"
    )


def number(text: str) -> int:
    """A whole number, also as a power."""
    base, _, power = text.partition("**")
    return int(math.pow(int(base), int(power or 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--elements", type=number, default=2**24, help="of the whole tensor")
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    rich.print(columns(arguments.turns))
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        given = (arguments.ranks, store, arguments.elements, arguments.turns, answers)
        processes = [context.Process(target=measure, args=(rank, *given)) for rank in range(arguments.ranks)]
        for process in processes:
            process.start()
        ranks = [answers.get() for _ in processes]
        for process in processes:
            process.join()
    rich.print(together(ranks))
    rich.print(f"{arguments.ranks} ranks of one thread on {os.cpu_count()} cores, {arguments.elements:,} elements")


if __name__ == "__main__":
    main()
