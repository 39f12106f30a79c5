"""Whole models that are sharded: the bits of the single process, by rules, by `accelerate` and by `build`."""

from __future__ import annotations

import functools

import pytest
import torch
from common import python, same_bits
from ranks import GATHERS_UNEVEN, group
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fastinit
from fastinit import regenerate, write_checkpoint
from fastinit.drawing.dtensor import placed
from fastinit.drawing.regions import parts_of
from fastinit.initialisers import gates, normal, ones, orthogonal, trunc_normal, xavier_uniform, zeros

SEED = 5


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, width: int = 10 if GATHERS_UNEVEN else 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(23, width, padding_idx=4)
        self.layers = nn.ModuleList([Layer(width) for _ in range(2)])
        self.cell = nn.LSTMCell(width, width)
        self.head = nn.Linear(width, 23, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def init_weights(self):
        """As libraries do it: twice, by functions and by methods."""
        for _ in range(2):
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        module.bias.data.zero_()
                elif isinstance(module, nn.Embedding):
                    module.weight.data.normal_(0, 0.5)
                    nn.init.zeros_(module.weight[module.padding_idx])
                elif isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
                elif isinstance(module, nn.LSTMCell):
                    nn.init.orthogonal_(module.weight_ih)
                    nn.init.kaiming_uniform_(module.weight_hh, a=2.0)
                    nn.init.xavier_normal_(module.weight_hh)
                    for bias in (module.bias_ih, module.bias_hh):
                        nn.init.uniform_(bias, -0.1, 0.1)


RULES = {
    nn.LayerNorm: ones(),
    "*.up.weight": trunc_normal(std=0.02, bounds="sigma"),
    "*.bias": zeros(),
    "cell.weight_*": gates("ifgo", orthogonal(), f=normal(std=0.1)),
    "cell.bias_*": gates("ifgo", normal(), f=ones()),
    "*.down.weight": xavier_uniform(),
    "*": normal(std=0.02),
}


@functools.cache
def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp")[: len(shape)])


def sharded(how: str, world: int, model: nn.Module) -> nn.Module:
    """A model sharded over all ranks."""
    mesh = mesh_of((world,) if how == "fsdp" else (2, world // 2))
    if how == "both":
        for layer in model.layers:
            plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(layer, mesh["tp"], plan)
    over = mesh["dp"] if how == "both" else mesh
    for part in (*model.layers, model):
        fully_shard(part, mesh=over)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def whole_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}


def expected(how: str) -> dict[str, torch.Tensor]:
    model = Model()
    if how == "rules":
        fastinit.initialize(model, RULES, seed=SEED)
    else:
        with fastinit.accelerate(model, seed=SEED):
            model.init_weights()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def check(found: dict[str, torch.Tensor], how: str) -> None:
    alone = expected(how)
    assert found.keys() == alone.keys()
    wrong = [name for name in alone if not same_bits(found[name], alone[name])]
    assert not wrong, wrong


def by_rules(way: str, world: int) -> None:
    with torch.device("meta"):
        model = Model()
    model = sharded(way, world, model)
    groups = [mesh_of(shape).get_group(d) for shape in ((world,), (2, world // 2)) for d in range(len(shape))]
    before = [group._get_sequence_number_for_group() for group in groups]
    fastinit.initialize(model, RULES, seed=SEED, device="cpu")
    assert [group._get_sequence_number_for_group() for group in groups] == before  # no collective
    check(whole_of(model), "rules")


def by_the_library(way: str, world: int) -> None:
    with torch.device("meta"):
        model = Model()
    model = sharded(way, world, model)
    model.to_empty(device="cpu")
    with fastinit.accelerate(model, seed=SEED) as report:
        model.init_weights()
    check(whole_of(model), "accelerate")
    assert not report.escaped


PARTS = [
    lambda w: nn.init.normal_(w[3]),
    lambda w: nn.init.normal_(w[-1]),
    lambda w: nn.init.normal_(w.select(0, 3)),
    lambda w: nn.init.trunc_normal_(w[1:4]),
    lambda w: nn.init.orthogonal_(w[0:4]),
    lambda w: nn.init.eye_(w[0:4]),
    lambda w: w[3, :].zero_(),
    lambda w: w[:, 2].zero_(),
    lambda w: nn.init.normal_(w[:, 1:5]),
    lambda w: nn.init.normal_(w[..., 2]),
    lambda w: nn.init.normal_(w.narrow(0, 1, 3)),
    lambda w: nn.init.normal_(w.narrow(1, 3, 4)),
    lambda w: nn.init.normal_(w.chunk(2)[1]),
    lambda w: [nn.init.xavier_normal_(one) for one in w.chunk(3, 0)],
    lambda w: [nn.init.uniform_(one) for one in torch.split(w, 2, 1)],
    lambda w: w[1].mul_(1.0),  # which torch does to a copy
]


def parts(world: int) -> list[str]:
    """What is done to parts of a parameter, after it was drawn as a whole and before."""
    mesh, wrong = mesh_of((world,)), []
    for placement in (Shard(0), Shard(1)):
        for number, act in enumerate(PARTS):
            for defer in (True, False):
                models = [nn.Linear(8, 6, bias=False) for _ in range(2)]
                for model in models:
                    model.weight.data.fill_(7.0)
                    if model is models[0]:
                        fully_shard(model, mesh=mesh, shard_placement_fn=lambda _, placement=placement: placement)
                    with fastinit.accelerate(model, seed=2, defer=defer), torch.no_grad():
                        nn.init.normal_(model.weight)
                        act(model.weight)
                if not same_bits(models[0].weight.full_tensor().detach(), models[1].weight.detach()):
                    wrong.append(f"{number} {placement} {defer}")
    embeddings = [nn.Embedding(23, 10, padding_idx=4) for _ in range(2)]
    fully_shard(embeddings[0], mesh=mesh)
    for model in embeddings:
        with fastinit.accelerate(model, seed=2) as report:
            model.reset_parameters()
        assert not report.foreign
    if not same_bits(embeddings[0].weight.full_tensor().detach(), embeddings[1].weight.detach()):
        wrong.append("embedding")
    return wrong


def test_parts_of_parameters_are_written_where_they_are(ranks):
    assert ranks(parts, ranks.world) == [[]] * ranks.world


def in_another_dtype(world: int) -> None:
    for way in ("fsdp", "both"):
        model, alone = sharded(way, world, Model()), Model()
        before = dict(model.named_parameters())
        fastinit.initialize(model, RULES, seed=SEED, dtype="bfloat16")
        fastinit.initialize(alone, RULES, seed=SEED, dtype="bfloat16")
        for name, parameter in model.named_parameters():
            assert before[name] is parameter
            assert parameter.dtype is parameter.to_local().dtype is torch.bfloat16
            assert same_bits(parameter.full_tensor().detach(), alone.get_parameter(name).detach()), name
        kept = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}

        def fails(tensor):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fastinit.initialize(model, {"head.weight": fails, **RULES}, seed=3, dtype="float32")
        for name, parameter in model.named_parameters():
            assert before[name] is parameter
            assert same_bits(parameter.full_tensor().detach(), kept[name].detach()), name


def test_another_dtype(ranks):
    ranks(in_another_dtype, ranks.world)


def by_constructor(way: str, world: int) -> None:
    def make() -> nn.Module:
        with torch.device("meta"):
            model = Model()
        model = sharded(way, world, model) if way else model
        model.to_empty(device="cpu").init_weights()
        return model

    found = whole_of(fastinit.build(make, seed=SEED))
    way = ""
    alone = fastinit.build(make, seed=SEED)
    assert found.keys() == dict(alone.named_parameters()).keys()
    assert all(same_bits(found[name], parameter.detach()) for name, parameter in alone.named_parameters())


def again_from_names(way: str, world: int, folder: str) -> None:
    """A running job's parts, and a checkpoint, without its memory or other ranks."""
    with torch.device("meta"):
        model = sharded(way, world, Model())
        plain = Model()
    rank = torch.distributed.get_rank()
    if rank == world - 1:
        alone = expected("rules")
        write_checkpoint(model, RULES, f"{folder}/{way}", seed=SEED)
        saved = load_file(f"{folder}/{way}/model.safetensors")
        assert saved.keys() == alone.keys()
        assert all(same_bits(saved[name], alone[name]) for name in alone)
    assert all(parameter.is_meta for parameter in model.parameters())
    fastinit.initialize(model, RULES, seed=SEED, device="cpu")
    for name, parameter in model.named_parameters():
        for part in parts_of(placed(parameter)):
            assert same_bits(part.memory, regenerate(plain, name, part.where, rules=RULES, seed=SEED)), name
            assert same_bits(part.memory, regenerate(model, name, part.where, rules=RULES, seed=SEED)), name


@pytest.mark.parametrize("way", ["fsdp", "both"])
def test_any_part_is_made_again(ranks, way, tmp_path):
    ranks(again_from_names, way, ranks.world, str(tmp_path))


def test_pipeline_stages_draw_by_the_names_of_the_model():
    """Each stage is the model without the others' modules, as torch.distributed.pipelining and torchtitan make them."""
    alone, seen = expected("rules"), []
    optional = [fastinit.Rule(where, what, optional=True) for where, what in RULES.items()]
    for own in (("embedding", "layers.0"), ("layers.1", "cell", "head")):
        stage = Model()
        for name in ("embedding", "layers.0", "layers.1", "cell", "head"):
            if name not in own:
                above, _, key = name.rpartition(".")
                stage.get_submodule(above)._modules[key] = None
        fastinit.initialize(stage, optional, seed=SEED)
        for name, parameter in stage.named_parameters():
            assert same_bits(parameter.detach(), alone[name]), name
            seen.append(name)
    assert sorted(seen) == sorted(alone)


OFFLOADED = """
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.testing._internal.distributed.fake_pg import FakeStore
import fastinit

dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())

class Generator:
    def __getattr__(self, name):
        raise AssertionError(f"a CUDA generator was asked for its {name}")

torch.cuda.default_generators = (Generator(),)
mesh = DeviceMesh("cuda", torch.arange(4), _init_backend=False)
spec = DTensorSpec(mesh, (Shard(0),), TensorMeta(torch.Size((8, 6)), (6, 1), torch.float32))
weight = DTensor(torch.empty(2, 6), spec, requires_grad=False)
assert weight.device_mesh.device_type == "cuda" and weight.to_local().is_cpu
for name in ("normal_", "orthogonal_", "sparse_", "kaiming_uniform_"):
    given = (0.5,) if name == "sparse_" else ()
    torch.manual_seed(1)
    getattr(fastinit, name)(weight, *given)
    torch.manual_seed(1)
    assert torch.equal(weight.to_local(), getattr(fastinit, name)(torch.empty(8, 6), *given)[2:4]), name
print("well")
"""


def test_shards_that_are_offloaded_to_the_cpu_touch_no_generator_of_the_devices():
    """A mesh of CUDA devices, which this machine need not have: the DTensor is made as FSDP2's offloading makes it."""
    assert python(OFFLOADED).strip() == "well"


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    with group(request.param) as ranks:
        ranks.world = request.param
        yield ranks


def first_loss(way: str, world: int) -> tuple[float, float]:
    with torch.device("meta"):
        model = sharded(way, world, Model())
    fastinit.initialize(model, RULES, seed=SEED, device="cpu")
    alone = Model()
    fastinit.initialize(alone, RULES, seed=SEED)
    tokens = torch.arange(40).view(4, 10) % 23
    losses = [nn.functional.cross_entropy(one(tokens).flatten(0, 1), tokens.flatten()) for one in (model, alone)]
    losses[0].backward()
    return losses[0].item(), losses[1].item()


@pytest.mark.parametrize("way", ["fsdp", "hybrid"])
def test_the_first_loss_is_the_single_processs(ranks, way):
    found = ranks(first_loss, way, ranks.world)
    assert all(on_mesh == alone for on_mesh, alone in found)
    assert len({alone for _, alone in found}) == 1


WAYS = ("fsdp", "hybrid", "both")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("do", [by_rules, by_the_library, by_constructor], ids=lambda do: do.__name__)
def test_a_model_that_is_sharded(ranks, do, way):
    ranks(do, way, ranks.world)
