"""One model on 1, 2 and 4 processes: what its parameters are, as a hash.

    python -m bench.hashes              # a torchtitan-like model, and Llama of transformers if it is installed

Each model is made on the meta device, cut by tensor parallelism over two processes and by FSDP2 over the rest, given
memory, and initialised by its own `init_weights()`, inside `fastinit.accelerate(model, seed=0)` and without it. Then
its parameters are gathered and hashed.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich
import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn

import fastinit

ROOT = Path(__file__).parent.parent
WIDTH, LAYERS, WORDS = 96, 3, 2000
RANKS = (1, 2, 4)


class Layer(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.std = 0.02 / math.sqrt(2 * (depth + 1))
        self.norm = nn.RMSNorm(WIDTH)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.w2 = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def init_weights(self) -> None:
        self.norm.reset_parameters()
        for linear in (self.wq, self.wk, self.wv, self.w1):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        for linear in (self.wo, self.w2, self.w3):
            nn.init.trunc_normal_(linear.weight, std=self.std)


class Titan(nn.Module):
    """Initialised as torchtitan's Llama is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(map(Layer, range(LAYERS)))
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, WORDS, bias=False)

    def init_weights(self) -> None:
        nn.init.normal_(self.embedding.weight)
        layer: Any
        for layer in self.layers:
            layer.init_weights()
        self.norm.reset_parameters()
        cut = 3 * WIDTH**-0.5
        nn.init.trunc_normal_(self.output.weight, std=WIDTH**-0.5, a=-cut, b=cut)


def llama() -> Any:
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != ROOT]  # our kernels/ is not theirs
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=WORDS,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


# How to make each, where its layers are, and which of their weights are cut by columns and by rows.
MODELS: dict[str, tuple[Callable[[], Any], str, tuple[str, ...], tuple[str, ...]]] = {
    "torchtitan-like": (Titan, "layers", ("wq", "wk", "wv", "w1", "w3"), ("wo", "w2")),
    "transformers Llama": (
        llama,
        "model.layers",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
        ("self_attn.o_proj", "mlp.down_proj"),
    ),
}


def made(name: str, world: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    make, where, columns, rows = MODELS[name]
    with torch.device("meta"):
        model = make()
    if world > 1:
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        plan: dict[str, Any] = dict.fromkeys(columns, ColwiseParallel())
        plan |= dict.fromkeys(rows, RowwiseParallel())
        for layer in model.get_submodule(where):
            parallelize_module(layer, mesh["tp"], plan)
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    return model.to_empty(device="cpu")


def hash_of(model: Any) -> str:
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found.update(name.encode())
        found.update(whole.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def rank_of(rank: int, world: int, store: str, names: list[str], answers: Any) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    for name in names:
        for by in ("fastinit", "torch"):
            model = made(name, world)
            torch.manual_seed(0)
            if by == "torch":
                model.init_weights()
            else:
                with fastinit.accelerate(model, seed=0):
                    model.init_weights()
            found[name, by] = hash_of(model)
    if rank == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def hashes(world: int, names: list[str]) -> dict[tuple[str, str], str]:
    """For each model and way its hash, on so many processes."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (world, str(Path(folder) / "store"), names, answers)
        processes = [context.Process(target=rank_of, args=(rank, *given)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"a process of {world} failed")
    found: dict[tuple[str, str], str] = answers.get()
    return found


def installed() -> list[str]:
    import importlib.util

    return [name for name in MODELS if name != "transformers Llama" or importlib.util.find_spec("transformers")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=installed())
    names = parser.parse_args().models
    found = {world: hashes(world, names) for world in RANKS}
    table = Table("model", "initialised by", *(f"{world} process{'es' * (world > 1)}" for world in RANKS))
    for name in names:
        for by in ("fastinit", "torch"):
            table.add_row(name, by, *(found[world][name, by] for world in RANKS))
    rich.print(table)


if __name__ == "__main__":
    main()
