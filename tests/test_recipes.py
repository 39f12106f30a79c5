"""Recipes: each draws what the library's own code draws, parameter by parameter; holes and dead rules are found."""

from __future__ import annotations

import math

import pytest
import torch
from common import same_bits
from moments import FAULTS, MOST_Z, SEED, by_torch, follows, is_found, worst
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import fastinit
from fastinit import RulesError, build, initialize, recipes
from fastinit.initialisers import keep
from fastinit.models.recipe import RECIPES, named

# --- models of one's own -----------------------------------------------------------------------


class GPT(nn.Module):
    """As nanoGPT: Linear layers, a head tied to the embedding, and `_init_weights` with a second pass by name."""

    class Config:
        n_layer, n_embd, vocab_size, block_size = 3, 64, 200, 32

    def __init__(self) -> None:
        super().__init__()
        config = self.config = self.Config()
        wide = config.n_embd
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, wide),
                "wpe": nn.Embedding(config.block_size, wide),
                "h": nn.ModuleList(self.block(wide) for _ in range(config.n_layer)),
                "ln_f": LayerNorm(wide),
            }
        )
        self.lm_head = nn.Linear(wide, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def block(wide: int) -> nn.Module:
        attention = {"c_attn": nn.Linear(wide, 3 * wide), "c_proj": nn.Linear(wide, wide)}
        mlp = {"c_fc": nn.Linear(wide, 4 * wide), "c_proj": nn.Linear(4 * wide, wide)}
        norms = {"ln_1": LayerNorm(wide), "ln_2": LayerNorm(wide)}
        return nn.ModuleDict({**norms, "attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)})

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


class LayerNorm(nn.Module):
    """As nanoGPT's: one of its own."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(wide)), nn.Parameter(torch.zeros(wide))

    def forward(self, x):
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """As torchvision's, with its loops over the modules."""

    def __init__(self, zero_init_residual: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2 = nn.Sequential(BasicBlock(16, 16)), nn.Sequential(BasicBlock(16, 32))
        self.fc = nn.Linear(32, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.constant_(m.weight, 1)
                nn.init.constant_(m.bias, 0)
        if zero_init_residual:
            for m in self.modules():
                if isinstance(m, BasicBlock):
                    nn.init.constant_(m.bn2.weight, 0)


def zoo() -> nn.Module:
    """Every module of torch's that has parameters of its own."""
    return nn.ModuleList(
        [
            nn.Linear(30, 40), nn.Linear(30, 40, bias=False), nn.Bilinear(8, 9, 10), nn.Conv1d(8, 12, 3, groups=2),
            nn.Conv2d(8, 9, 3), nn.Conv3d(4, 5, 2), nn.ConvTranspose1d(8, 12, 3, groups=2), nn.ConvTranspose2d(8, 9, 3),
            nn.ConvTranspose3d(4, 5, 2), nn.Embedding(30, 8, padding_idx=2), nn.EmbeddingBag(30, 8),
            nn.LSTM(8, 12, 2, bidirectional=True, proj_size=3), nn.GRU(8, 12), nn.RNN(8, 12), nn.LSTMCell(8, 12),
            nn.GRUCell(8, 12), nn.RNNCell(8, 12), nn.LayerNorm(5), nn.GroupNorm(2, 4), nn.RMSNorm(4),
            nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3),
            nn.InstanceNorm1d(3, affine=True), nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm3d(3, affine=True),
            nn.MultiheadAttention(24, 4), nn.MultiheadAttention(24, 4, kdim=16, vdim=8, add_bias_kv=True),
            nn.PReLU(3, 0.3), nn.AdaptiveLogSoftmaxWithLoss(64, 20, [5, 10]),
        ]
    )  # fmt: skip


OWN = {
    "nanoGPT": (GPT, recipes.gpt2()),
    "ResNet": (ResNet, recipes.resnet()),
    "ResNet, zeros": (lambda: ResNet(True), recipes.resnet(zero_last=True)),
    "torch": (zoo, recipes.torch_default()),
    "LSTM": (lambda: nn.LSTM(16, 24, 2), recipes.torch_default()),
}

# --- transformers' -------------------------------------------------------------------------------

try:
    from test_models import SIZES, hf
except pytest.skip.Exception:
    THEIRS = {}
else:
    T5 = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 500}
    THEIRS = {
        "GPT-2": (hf("GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4, vocab_size=500), recipes.gpt2()),
        "Llama": (hf("LlamaForCausalLM", "LlamaConfig", **SIZES, vocab_size=500, pad_token_id=3), recipes.llama()),
        "Llama, another std": (
            hf("LlamaForCausalLM", "LlamaConfig", **SIZES, vocab_size=500, initializer_range=0.05), recipes.llama(),
        ),
        "Qwen2": (hf("Qwen2ForCausalLM", "Qwen2Config", **SIZES, vocab_size=500), recipes.llama()),
        "BERT": (hf("BertForMaskedLM", "BertConfig", **SIZES, vocab_size=500), recipes.bert()),
        "T5": (hf("T5ForConditionalGeneration", "T5Config", **T5), recipes.t5()),
        "T5, gated, not tied": (
            hf(
                "T5ForConditionalGeneration", "T5Config", **T5, feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            ),
            recipes.t5(),
        ),
    }  # fmt: skip
ALL = {**OWN, **THEIRS}
pytestmark = pytest.mark.usefixtures("their_imports")


def test_there_are_models_of_transformers():
    pytest.importorskip("transformers", minversion="5", reason="pip install -e '.[libraries]'")
    assert len(THEIRS) == 7


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_draws_what_the_library_draws(name):
    """The same laws as by torch, tested by moments; and the very bits of the library's own code by `build`."""
    make, recipe = ALL[name]
    assert not follows(make, recipe).escaped


def test_a_recipe_s_wrong_std_is_found():
    """The twin: five per cent."""
    theirs, model = by_torch(GPT), GPT()
    initialize(model, recipes.gpt2(std=0.021), seed=SEED)
    found, where = worst(model, theirs)
    assert found > MOST_Z
    assert where.endswith("weight")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_before_anything_is_written(name, fault):
    is_found(fault, *ALL[name])


def test_a_whole_transformer():
    """torch copies its layers, biases included, so that they start alike; a recipe draws each by its name."""
    make = lambda: nn.Transformer(64, 4, 2, 2, 128, batch_first=True)  # noqa: E731
    model = make()
    initialize(model, recipes.torch_default(), seed=SEED)
    assert worst(model, by_torch(make))[0] < MOST_Z
    layers = model.encoder.layers
    assert not torch.equal(layers[0].linear1.bias, layers[1].linear1.bias)


# --- muP -------------------------------------------------------------------------------------------


class MLP(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, wide)
        self.into, self.norm = nn.Linear(40, wide), nn.LayerNorm(wide)
        self.hidden = nn.Linear(wide, 4 * wide)
        self.out = nn.Linear(4 * wide, 30)


def test_mup_follows_the_width():
    with torch.device("meta"):
        base = MLP(64)
    stds = {}
    for wide in (64, 256):
        model = MLP(wide)
        initialize(model, recipes.mup(base=base, std=0.1), seed=SEED)
        stds[wide] = {name: p.std().item() for name, p in model.named_parameters() if p.dim() > 1}
        assert not any(bias.any() for name, bias in model.named_parameters() if name.endswith("bias"))
        assert (model.norm.weight == 1).all()
    assert stds[64] == pytest.approx(dict.fromkeys(stds[64], 0.1), rel=0.05)
    assert stds[256]["tokens.weight"] == pytest.approx(0.1, rel=0.05)
    assert stds[256]["into.weight"] == pytest.approx(0.1, rel=0.05)
    assert stds[256]["hidden.weight"] == pytest.approx(0.1 / 2, rel=0.05)
    assert stds[256]["out.weight"] == pytest.approx(0.1 / 4, rel=0.05)
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    again = MLP(256)
    initialize(again, recipes.mup(shapes, 0.1), seed=SEED)
    assert torch.equal(again.hidden.weight, model.hidden.weight)


def test_mup_is_a_value_too():
    recipe = recipes.mup(base=MLP(64))
    assert recipe == named(str(recipe)) == recipes.mup({name: one.shape for name, one in MLP(64).named_parameters()})
    assert hash(recipe) == hash(named(str(recipe)))


def test_mup_needs_a_base_with_the_same_parameters():
    model = MLP(64)
    with pytest.raises(ValueError, match=r"the base model of recipe mup has no parameter tokens\.weight"):
        initialize(model, recipes.mup(base=nn.Linear(3, 3)), seed=SEED)


# --- recipes as values -----------------------------------------------------------------------------


def test_recipes_are_values():
    recipe = recipes.gpt2(n_layer=12, std=0.01)
    assert recipe == named(str(recipe)) == named("gpt2(12, std=0.01)") == recipes.gpt2(12, 0.01)
    assert str(recipe) == "gpt2(n_layer=12, std=0.01)"
    assert hash(recipe) == hash(recipes.gpt2(12, 0.01))
    assert named("gpt2") == recipes.gpt2()
    assert set(RECIPES) == {"gpt2", "llama", "bert", "t5", "vit", "resnet", "mup", "torch_default"}
    for name, function in RECIPES.items():
        assert function.__doc__
        assert getattr(recipes, name).__doc__ == function.__doc__
    with pytest.raises(TypeError, match="n_layers"):
        recipes.gpt2(n_layers=3)
    assert {*recipes.__all__} == {*RECIPES}


@pytest.mark.parametrize("text", ["gpt2(", "gpt2(n_layer=x)", "gpt2(1, 2, 3)", "gpt2(n=1)", "gpt2(1)(2)", "gpt2() + 1"])
def test_bad_texts(text):
    with pytest.raises(ValueError, match=r"a recipe is written as gpt2\(n_layer=12\)"):
        named(text)


def test_hyperparameters_come_from_the_config_or_are_asked_for():
    model = GPT()
    ours = GPT()
    initialize(model, "gpt2", seed=SEED)
    initialize(ours, recipes.gpt2(n_layer=3, std=0.02), seed=SEED)
    assert all(map(torch.equal, model.parameters(), ours.parameters()))
    del model.config
    model.config = {"n_layer": 3}
    initialize(model, "gpt2", seed=SEED)
    assert all(map(torch.equal, model.parameters(), ours.parameters()))
    model.config = {}
    with pytest.raises(ValueError, match=r"the recipe gpt2 needs n_layer, and the model has no config that says"):
        initialize(model, "gpt2", seed=SEED)


def test_rules_before_a_recipe():
    model = GPT()
    before = model.transformer.wpe.weight.detach().clone()
    initialize(model, lambda model: [("*wpe.weight", keep()), *recipes.gpt2()(model)], seed=SEED)
    assert torch.equal(model.transformer.wpe.weight, before)


def test_recipes_work_under_wrappers():
    model, expected = GPT(), GPT()
    initialize(expected, "gpt2", seed=SEED)
    initialize(nn.DataParallel(model), "gpt2", seed=SEED)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))
    convolutions, plain = ResNet(), ResNet()
    initialize(plain, "resnet", seed=SEED)
    convolutions.layer1 = nn.DataParallel(convolutions.layer1)
    initialize(convolutions, "resnet", seed=SEED)
    assert all(map(torch.equal, convolutions.parameters(), plain.parameters()))


def test_names_with_brackets():
    model = nn.ModuleDict({"a[0]": nn.Linear(3, 3), "b*": nn.Linear(3, 3)})
    fastinit.initialize(model, "torch_default", seed=SEED)


def test_a_recipe_without_its_call():
    model, expected = GPT(), GPT()
    initialize(model, recipes.gpt2, seed=SEED)
    initialize(expected, recipes.gpt2(), seed=SEED)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


def test_computed_weights_of_torch_s_modules():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(30, 40)), parametrizations.weight_norm(nn.Conv1d(3, 4, 2))
    )
    initialize(model, "torch_default", seed=SEED)
    expected = build(lambda: nn.Sequential(nn.Linear(30, 40), nn.Conv1d(3, 4, 2)), seed=SEED)
    for ours, theirs in zip(model, expected, strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight)
        assert same_bits(ours.bias.detach(), theirs.bias.detach())


class GemmaRMSNorm(nn.Module):
    """Multiplies by 1 + weight: ones would be another law."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))


def test_norms_that_a_recipe_does_not_know_are_holes():
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "norm": GemmaRMSNorm()})
    with pytest.raises(RulesError, match=r"norm\.weight \(4,\): no rule matches it"):
        initialize(model, recipes.llama(), seed=SEED)
