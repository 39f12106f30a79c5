"""One line in each library: what `fastinit/models/README.md` writes, run with the library, where it is installed.

`.ci/libraries` installs them all and runs this file: there nothing is skipped.
"""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from common import python, same_bits
from moments import FAULTS, MOST_Z, SEED, by_torch, distance, follows, is_found, worst
from torch import nn

from fastinit import accelerate, audit, build, initialize, recipes
from fastinit.models.report import Report
from fastinit.models.walk import named_tensors

pytestmark = pytest.mark.usefixtures("their_imports")


def needed(name: str):
    """The library, or a skip that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed ({error}): .ci/libraries installs all libraries")


def agree(make, ours, least=2):
    """That each parameter has the moments that torch's own draws give it."""
    theirs = by_torch(make)
    found, where = worst(ours, theirs)
    assert found < MOST_Z, where
    assert len([*ours.parameters()]) >= least


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "regnetx_002"])
def test_timm(name):
    timm = needed("timm")
    make = lambda: timm.create_model(name)  # noqa: E731
    torch.manual_seed(SEED)
    with accelerate() as report:
        model = make()
    agree(make, model)
    assert not report.escaped
    torch.manual_seed(SEED)
    with accelerate(defer=False):
        immediate = make()
    for ours, same in zip(named_tensors(model), named_tensors(immediate), strict=True):
        assert same_bits(ours[1].detach(), same[1].detach()), ours[0]
    built = build(timm.create_model, name, seed=SEED)
    agree(make, built)
    judged = audit(built)
    assert not judged.errors
    # ConvNeXt multiplies its head by a scale, after it was drawn.
    assert {row.name for row in judged.rows if row.by in ("number", "computed")} <= {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_timm_by_recipe(name):
    timm = needed("timm")
    follows(lambda: timm.create_model(name), recipes.vit())
    for fault in FAULTS:
        is_found(fault, lambda: timm.create_model(name), recipes.vit())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timm_resnets_by_recipe(name):
    timm = needed("timm")
    follows(lambda: timm.create_model(name), recipes.resnet(zero_last=True))


@pytest.mark.parametrize("zero_last", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_by_recipe(name, zero_last):
    models = needed("torchvision.models")
    follows(lambda: getattr(models, name)(zero_init_residual=zero_last), recipes.resnet(zero_last=zero_last))


def test_mup_by_recipe():
    """Its own initialisers on its own base shapes: the same standard deviations."""
    mup = needed("mup")

    def made(wide: int) -> nn.Module:
        return nn.Sequential(nn.Linear(40, wide), nn.ReLU(), nn.Linear(wide, 4 * wide), mup.MuReadout(4 * wide, 30))

    def theirs() -> nn.Module:
        model = made(256)
        mup.set_base_shapes(model, made(64), delta=made(128))
        for layer in (model[0], model[2], model[3]):
            mup.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)
        return model

    ours = made(256)
    initialize(ours, recipes.mup(base=made(64), std=0.1), seed=SEED)
    agree(theirs, ours)


def test_timm_s_truncated_normal_is_one_draw():
    layers = needed("timm.layers")
    with accelerate() as report:
        tensor = layers.trunc_normal_(torch.empty(300, 200), std=0.02)
    assert (report.drawn, report.early.total(), report.escaped.total()) == (1, 0, 0)
    assert distance(tensor, layers.trunc_normal_(torch.empty(300, 200), std=0.02)) < MOST_Z


def test_lightning():
    fabric = needed("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    for order in ((fabric.init_module(), accelerate()), (accelerate(), fabric.init_module())):
        with order[0] as first, order[1] as second:
            model = nn.Linear(300, 200)
        report = first if isinstance(first, Report) else second
        assert report.drawn == 2
        assert not report.escaped
        assert distance(model.weight, nn.Linear(300, 200).weight) < MOST_Z
    with fabric.init_module(empty_init=True), accelerate() as report:
        nn.Linear(30, 40)
    assert report.drawn == 0


def test_litgpt():
    litgpt = needed("litgpt")
    config = litgpt.Config(n_layer=2, n_head=4, n_embd=64, padded_vocab_size=500, block_size=32)

    def make():
        model = litgpt.GPT(config)
        model.apply(model._init_weights)
        return model

    agree(make, build(make, seed=SEED))
    with accelerate() as report:
        make()
    assert not report.escaped


def test_huggingface_accelerate():
    hugging = needed("accelerate")
    with hugging.init_empty_weights(), accelerate() as report:
        model = nn.Linear(300, 200)
    assert model.weight.is_meta
    model.to_empty(device="cpu")
    with accelerate(model, seed=SEED):
        model.reset_parameters()
    assert not report.escaped
    assert same_bits(model.weight.detach(), build(nn.Linear, 300, 200, seed=SEED).weight.detach())


def test_peft():
    peft = needed("peft")
    config = peft.LoraConfig(target_modules=["0", "1"], r=16)
    base = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 300))
    before = base[0].weight.detach().clone()
    with accelerate() as report:
        model = peft.get_peft_model(base, config)
    assert not report.escaped
    assert same_bits(base[0].base_layer.weight.detach(), before)
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 300)), config)
    for (name, ours), (_, their) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        if "lora" in name:
            assert distance(ours, their) < MOST_Z, name


def test_diffusers():
    diffusers = needed("diffusers")
    make = lambda: diffusers.UNet2DModel(  # noqa: E731
        sample_size=8, block_out_channels=(32, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
    )  # fmt: skip
    with accelerate() as report:
        model = make()
    assert not report.escaped
    agree(make, model)
    agree(make, build(make, seed=SEED))


def test_torchtitan():
    """On meta, then to_empty, then `init_states`, by name; its fused projection is drawn in three and joined."""
    configs = needed("torchtitan.models.llama3").llama3_configs

    def make(**settings):
        with torch.device("meta"):
            model = configs["debugmodel"](attn_backend="flex").build()
        model.to_empty(device="cpu")
        return model

    def initialise(model):
        model.init_states(buffer_device=torch.device("cpu"))
        return model

    model = make()
    with accelerate(model, seed=SEED) as report:
        initialise(model)
    assert not report.escaped
    agree(lambda: initialise(make()), model)
    assert {row.by for row in audit(model).rows} == {"name", "constant", None}
    assert all("wqkv" in row.name for row in audit(model).rows if row.by is None)


def test_olmo_core():
    """Its own generator decides: what is given is kept."""
    config = needed("olmo_core.nn.transformer").TransformerConfig.llama_like(
        d_model=64, vocab_size=500, n_layers=2, n_heads=4
    )

    def make():
        model = config.build(init_device="meta")
        model.init_weights(device=torch.device("cpu"))
        return model

    with accelerate() as report:
        model = make()
    assert not report.escaped
    agree(make, model)


MEGATRON = """
import os, socket, sys, warnings
warnings.simplefilter("ignore")
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
import torch, fastinit
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
from megatron.core import parallel_state
parallel_state.initialize_model_parallel(1, 1)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
config = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, use_cpu_initialization=True,
                           pipeline_dtype=torch.float32)
def make():
    return GPTModel(config=config, transformer_layer_spec=get_gpt_layer_local_spec(), vocab_size=500,
                    max_sequence_length=32)
with fastinit.accelerate() as report:
    model = make()
theirs = make()
assert not report.escaped, report
for (name, ours), (_, their) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
    assert abs(ours.std() - their.std()) <= 0.1 * their.std() + 1e-9, name
fastinit.build(make)
torch.distributed.destroy_process_group()
"""

DEEPSPEED = """
import os, socket, sys, warnings
warnings.simplefilter("ignore")
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
os.environ["DS_ACCELERATOR"] = "cpu"
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
import torch, fastinit, deepspeed
deepspeed.init_distributed("gloo")
settings = {"train_batch_size": 1, "zero_optimization": {"stage": 3}}
def make():
    with deepspeed.zero.Init(config_dict_or_path=settings):
        return torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Linear(200, 300))
with fastinit.accelerate() as report:
    model = make()
assert report.drawn == 4 and not report.escaped, report
with deepspeed.zero.GatheredParameters([*model.parameters()]):
    assert abs(model[0].weight.std().item() - 1 / (3 * 300) ** 0.5) < 0.001
try:
    fastinit.build(make)
except fastinit.models.coverage.CoverageError as error:
    assert "0.weight has no elements here: DeepSpeed ZeRO-3" in str(error), error
else:
    raise AssertionError("emptied parameters were taken for initialised ones")
torch.distributed.destroy_process_group()
"""


def test_megatron_core():
    needed("megatron.core.models.gpt")
    python(MEGATRON)


def test_deepspeed():
    needed("deepspeed")
    python(DEEPSPEED)


def on_two_ranks(code: str, tmp_path) -> None:
    """Run a program as two processes in a group, each with its rank and where they meet."""
    programs = [f"RANK, STORE = {rank}, 'file://{tmp_path / 'store'}'\n{code}" for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(python, programs))


MEGATRON_TWO = """
import os, sys, warnings
warnings.simplefilter("ignore")
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
import torch, fastinit
from fastinit import Stream, shards
from fastinit.initialisers import normal, ones, zeros
torch.distributed.init_process_group("gloo", init_method=STORE, rank=RANK, world_size=2)
from megatron.core import parallel_state
from megatron.core.tensor_parallel import layers
parallel_state.initialize_model_parallel(2, 1)

# What Megatron cuts of a whole weight, and what a part is filled with: each partition_dim and partition_stride.
for dim, stride in ((0, 1), (1, 1), (0, 2), (1, 3)):
    theirs = torch.nn.Parameter(torch.empty((12, 24) if dim == 0 else (24, 12)))
    ours = torch.nn.Parameter(torch.empty_like(theirs))
    whole = lambda weight: fastinit.xavier_normal_(weight, stream=Stream(3))
    layers._initialize_affine_weight_cpu(theirs, 24, 24, 12, dim, whole, stride=stride, rank=RANK, world_size=2)
    layers.set_tensor_model_parallel_attributes(ours, True, dim, stride)
    fastinit.xavier_normal_(shards.megatron(ours), stream=Stream(3))
    assert torch.equal(ours, theirs), (dim, stride)

from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
config = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, use_cpu_initialization=True,
                           pipeline_dtype=torch.float32, tensor_model_parallel_size=2)
model = GPTModel(config=config, transformer_layer_spec=get_gpt_layer_local_spec(), vocab_size=500,
                 max_sequence_length=32)
rules = {"*layernorm*": ones(), "*bias": zeros(), "*": normal(std=0.02)}
try:
    fastinit.initialize(model, rules, seed=5)
except fastinit.RulesError as error:
    assert "give shard=fastinit.shards.megatron" in str(error)
else:
    raise AssertionError("parts were taken for wholes")
report = fastinit.initialize(model, rules, seed=5, shard=shards.megatron)
cut = 0
for one in report.assigned:
    part = model.get_parameter(one.name)
    expected = {"normal(std=0.02)": lambda w, name: fastinit.normal_(w, std=0.02, stream=Stream.named(name, 5)),
                "ones()": lambda w, name: w.fill_(1), "zeros()": lambda w, name: w.fill_(0)}[one.initialiser]
    whole = expected(torch.empty(one.shape), one.name)
    if getattr(part, "tensor_model_parallel", False):
        whole = whole.chunk(2, part.partition_dim)[RANK]
        cut += 1
    assert torch.equal(part, whole), one.name
assert cut >= 9, cut
torch.distributed.destroy_process_group()
"""

DEEPSPEED_TWO = """
import os, sys, warnings
warnings.simplefilter("ignore")
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.update(RANK=str(RANK), WORLD_SIZE="2", LOCAL_RANK=str(RANK))
import torch, fastinit
torch.distributed.init_process_group("gloo", init_method=STORE, rank=RANK, world_size=2)
import deepspeed
from fastinit.initialisers import kaiming_normal, orthogonal, uniform
deepspeed.init_distributed("gloo")
def make():
    model = torch.nn.Sequential(torch.nn.Linear(31, 21), torch.nn.Linear(21, 31), torch.nn.Embedding(7, 5))
    model[2].padding_idx = 4
    return model
settings = {"train_batch_size": 2, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
with deepspeed.zero.Init(config_dict_or_path=settings):
    model = make()
rules = {"0.weight": kaiming_normal(), "1.weight": orthogonal(), "*.bias": uniform(), "2.weight": uniform()}
fastinit.initialize(model, rules, seed=5, shard=fastinit.shards.deepspeed)
alone = make()
fastinit.initialize(alone, rules, seed=5)
with deepspeed.zero.GatheredParameters([*model.parameters()]):
    for (name, ours), expected in zip(model.named_parameters(), alone.parameters()):
        assert ours.shape == expected.shape and torch.equal(ours, expected), name
torch.distributed.destroy_process_group()
"""

NANOTRON = """
import os, sys, warnings
warnings.simplefilter("ignore")
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
import torch, fastinit
from fastinit import Stream, shards
from nanotron.parallel.parameters import NanotronParameter, SlicesPair
whole = fastinit.xavier_uniform_(torch.empty(24, 6), stream=Stream(3))
for rank in range(2):
    parameter = NanotronParameter(torch.empty(12, 6))
    assert shards.nanotron(parameter) is parameter
    pairs = tuple(
        SlicesPair((slice(4 * k, 4 * k + 4), slice(None)), (slice(8 * k + 4 * rank, 8 * k + 4 * rank + 4), slice(None)))
        for k in range(3)
    )
    parameter.mark_as_sharded(global_ranks=(0, 1), local_global_slices_pairs=pairs, unsharded_shape=(24, 6))
    fastinit.xavier_uniform_(shards.nanotron(parameter), stream=Stream(3))
    expected = torch.cat([whole[8 * k + 4 * rank : 8 * k + 4 * rank + 4] for k in range(3)])
    assert torch.equal(parameter, expected)
"""


def test_megatron_core_on_two_ranks(tmp_path):
    needed("megatron.core.models.gpt")
    on_two_ranks(MEGATRON_TWO, tmp_path)


def test_deepspeed_on_two_ranks(tmp_path):
    needed("deepspeed")
    on_two_ranks(DEEPSPEED_TWO, tmp_path)


def test_nanotron():
    needed("nanotron.parallel.parameters")
    python(NANOTRON)
