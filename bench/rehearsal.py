"""A model of 405 billion parameters on 1,024 ranks, rehearsed on one machine.

    python -m bench.rehearsal                # all 1,024 places, and a dozen ranks, a process each: minutes, 5 GB
    python -m bench.rehearsal --layers 4

Llama 3.1 405B's shapes on a mesh of (128, 8): tensor parallelism over 8, FSDP2 over 128. For every distinct shape and
placement, what each of the 1,024 places holds is asked; together these have to be every element once. Then some ranks
are played, each in a process of its own on torch's fake process group: a model on the meta device, parallelised, fully
sharded, initialised by rules. Of its values samples are compared with those of the reference engine at their places
in the whole tensors. Its time and memory are measured; the table says what of a real job they leave out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import rich
import torch
from rich.table import Table
from torch import nn

MESH = (128, 8)
HIDDEN, FORWARD, VOCABULARY, HEADS, KEYS = 16384, 53248, 128256, 128, 8
SEED = 405
SAMPLES = 8  # windows of each tensor


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = HIDDEN // HEADS
        self.wq = nn.Linear(HIDDEN, HEADS * width, bias=False)
        self.wk = nn.Linear(HIDDEN, KEYS * width, bias=False)
        self.wv = nn.Linear(HIDDEN, KEYS * width, bias=False)
        self.wo = nn.Linear(HEADS * width, HIDDEN, bias=False)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(HIDDEN, FORWARD, bias=False)
        self.w2 = nn.Linear(FORWARD, HIDDEN, bias=False)
        self.w3 = nn.Linear(HIDDEN, FORWARD, bias=False)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)


class Llama(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.RMSNorm(HIDDEN)
        self.output = nn.Linear(HIDDEN, VOCABULARY, bias=False)


def rules() -> dict[Any, Any]:
    """torchtitan's: normal with 0.02, cut at two and three of these, down by depth."""
    from fastinit.initialisers import normal, ones, trunc_normal

    deep = trunc_normal(std=0.02 / math.sqrt(2 * 126), bounds="sigma")
    return {
        nn.RMSNorm: ones(),
        nn.Embedding: normal(),
        "*.wo.weight": deep,
        "*.w2.weight": deep,
        "output.weight": trunc_normal(std=HIDDEN**-0.5, a=-3.0, b=3.0, bounds="sigma"),
        "*": trunc_normal(std=0.02, bounds="sigma"),
    }


def sharded(layers: int) -> nn.Module:
    """The model on the meta device: tensor parallel in every block, then FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", MESH, mesh_dim_names=("dp", "tp"))
    with torch.device("meta"):
        model = Llama(layers)
    columns, rows = ColwiseParallel(), RowwiseParallel()
    plan: dict[str, Any] = dict.fromkeys(
        ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3"), columns
    )
    plan |= dict.fromkeys(("attention.wo", "feed_forward.w2"), rows)
    outside: dict[str, Any] = {"tok_embeddings": rows, "output": columns}
    parallelize_module(model, mesh["tp"], outside)
    block: Any
    for block in model.layers:
        parallelize_module(block, mesh["tp"], plan)
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return model


# --- every place -------------------------------------------------------------------------------------


def tiles(shape: tuple[int, ...], mesh: tuple[int, ...], placements: Any) -> int:
    """How often every element is held. Raises `AssertionError` where some are held more often than others."""
    from fastinit.drawing.dtensor import indices

    held = []
    for place in itertools.product(*map(range, mesh)):
        both = {indices(shape, mesh, place, placements, as_fully_shard) for as_fully_shard in (True, False)}
        held.append(both.pop())
        assert not both, "lengths divide, so the two orders agree"
    bounds = [sorted({0, size}) for size in shape]
    for dimension, ends in enumerate(bounds):
        seen = {end for runs in held for run in runs[dimension] for end in (run.begin, run.begin + run.length)}
        ends[:] = sorted(seen.union(ends))
    count = np.zeros([len(ends) - 1 for ends in bounds], np.int64)  # of each cell between these
    for runs in held:
        for box in itertools.product(*runs):
            cells = [
                slice(ends.index(run.begin), ends.index(run.begin + run.length))
                for ends, run in zip(bounds, box, strict=True)
            ]
            count[tuple(cells)] += 1
    assert count.min() == count.max(), (shape, placements)
    return int(count.max())


# --- one rank ----------------------------------------------------------------------------------------


def play(rank: int, layers: int) -> dict[str, Any]:
    """A rank's model, initialised: its seconds and memory, and how many samples were compared."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    import fastinit

    dist.init_process_group("fake", rank=rank, world_size=math.prod(MESH), store=FakeStore())
    fastinit.initialize(nn.Linear(300, 300), {"*": rules()["*"]}, seed=0)  # what is compiled, is now
    begin = time.perf_counter()
    model: Any = sharded(layers)
    made, before = time.perf_counter(), peak()
    model.to_empty(device="cpu")
    empty = time.perf_counter()
    fastinit.initialize(model, rules(), seed=SEED)
    done, after = time.perf_counter(), peak()
    elements = sum(parameter.to_local().numel() for parameter in model.parameters())
    kinds = {
        (tuple(one.shape), tuple(map(str, one.placements))): str(tuple(one.placements)) for one in model.parameters()
    }
    return {
        "rank": rank, "seconds": done - made, "making": made - begin, "allocating": empty - made, "elements": elements,
        "memory": after - before, "compared": sum(compare(name, one, rank) for name, one in model.named_parameters()),
        "kinds": len(kinds),
    }  # fmt: skip


def peak() -> int:
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compare(name: str, tensor: Any, rank: int) -> int:
    """Windows of what a rank holds of a tensor, beside what the reference engine draws in the whole one."""
    import fastinit
    from fastinit.drawing.dtensor import placed
    from fastinit.drawing.regions import parts_of

    chosen, compared = random.Random(f"{rank} {name}"), 0
    for memory, offset in parts_of(placed(tensor)):
        for _ in range(SAMPLES if memory.dim() > 1 else 1):
            at = [chosen.randrange(size) for size in memory.shape]
            window = memory[tuple(slice(here, here + 5) for here in at)].detach()
            again = torch.empty_like(window)
            start = [here + there for here, there in zip(at, offset, strict=True)]
            value = next(what for where, what in rules().items() if is_for(where, name))
            with fastinit.use_engine("reference"):
                target = fastinit.shard(again, tensor.shape, start)
                value.fill(target, stream=fastinit.Stream.named(name, SEED))
            assert torch.equal(window, again), (rank, name, at)
            compared += window.numel()
    return compared


def is_for(where: Any, name: str) -> bool:
    """Whether one of `rules` is for a tensor of this name; as far as they need it."""
    import fnmatch

    if isinstance(where, str):
        return fnmatch.fnmatchcase(name, where)
    return ("norm" in name) if where is nn.RMSNorm else ("embeddings" in name)


def played(ranks: list[int], layers: int) -> Iterator[dict[str, Any]]:
    for rank in ranks:
        command = [sys.executable, "-m", "bench.rehearsal", "--rank", str(rank), "--layers", str(layers)]
        yield json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


# --- all of it ---------------------------------------------------------------------------------------


def every_place() -> Table:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    columns, rows = (_StridedShard(0, split_factor=MESH[1]), Shard(0)), (Shard(0), Shard(1))
    width = HIDDEN // HEADS
    kinds = {
        ("wq, wo's shape", columns): (HIDDEN, HEADS * width), ("wk, wv", columns): (KEYS * width, HIDDEN),
        ("wo", rows): (HIDDEN, HEADS * width), ("w1, w3", columns): (FORWARD, HIDDEN), ("w2", rows): (HIDDEN, FORWARD),
        ("embedding", columns): (VOCABULARY, HIDDEN), ("output", columns): (VOCABULARY, HIDDEN),
    }  # fmt: skip
    table = Table("weight", "shape", "placements", "places", "each element held", "seconds")
    for (name, placements), shape in kinds.items():
        begin = time.perf_counter()
        held = tiles(shape, MESH, placements)
        seconds = time.perf_counter() - begin
        table.add_row(name, str(shape), str(placements), f"{math.prod(MESH):,}", f"{held} time", f"{seconds:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=126)
    parser.add_argument("--ranks", type=int, default=12, help="how many are played")
    parser.add_argument("--rank", type=int, help="play this one, in this process")
    arguments = parser.parse_args()
    if arguments.rank is not None:
        print(json.dumps(play(arguments.rank, arguments.layers)))
        return
    rich.print(every_place())
    last = math.prod(MESH) - 1
    ranks = [last * number // (arguments.ranks - 1) for number in range(arguments.ranks)]
    table = Table("rank", "elements", "seconds", "of them new memory", "ns an element", "memory / shards", "compared")
    for one in played(ranks, arguments.layers):
        table.add_row(
            str(one["rank"]), f"{one['elements']:,}", f"{one['seconds']:.2f}", f"{one['allocating']:.2f}",
            f"{1e9 * one['seconds'] / one['elements']:.2f}", f"{one['memory'] / 4 / one['elements']:.3f}",
            f"{one['compared']:,}",
        )  # fmt: skip
    rich.print(table)


if __name__ == "__main__":
    main()
