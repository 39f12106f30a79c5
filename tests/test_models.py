"""Whole models, of torch and transformers: their constructors' own laws, every draw once, deferred = immediate."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from common import same_bits
from moments import MOST_Z, SEED, by_torch, worst
from torch import nn

from fastinit import accelerate, audit, build
from fastinit.models.coverage import CoverageError
from fastinit.models.walk import named_tensors

ROOT = Path(__file__).parent.parent

with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
    warnings.simplefilter("ignore")
    # transformers would take our folder kernels/ for the package of that name.
    patch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() != ROOT])
    transformers = pytest.importorskip("transformers", minversion="5", reason="pip install -e '.[libraries]'")


def hf(model, config, **settings):
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**settings))


SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "Transformer": lambda: nn.Transformer(64, 4, 2, 2, 128, batch_first=True),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2, enable_nested_tensor=False
    ),
    "LSTM": lambda: nn.LSTM(64, 96, 2, bidirectional=True, proj_size=32),
    "MultiheadAttention": lambda: nn.MultiheadAttention(96, 4, kdim=64, vdim=32, add_bias_kv=True),
    "GPT2": hf("GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4, vocab_size=500),
    "Llama": hf("LlamaForCausalLM", "LlamaConfig", **SIZES, vocab_size=500, pad_token_id=3),
    "BERT": hf("BertModel", "BertConfig", **SIZES, vocab_size=500),
    "T5": hf("T5Model", "T5Config", d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=500),
    "ViT": hf("ViTModel", "ViTConfig", **SIZES, image_size=32, patch_size=8),
    "Mixtral": hf(
        "MixtralForCausalLM", "MixtralConfig", **SIZES, vocab_size=500, num_local_experts=4, num_key_value_heads=2
    ),
    "Whisper": hf(
        "WhisperForConditionalGeneration", "WhisperConfig", d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=500,
        pad_token_id=1, bos_token_id=2, eos_token_id=2, decoder_start_token_id=2,
    ),
    "Mamba": hf("MambaForCausalLM", "MambaConfig", hidden_size=64, num_hidden_layers=2, vocab_size=500, state_size=8),
    "CLIP": hf(
        "CLIPModel", "CLIPConfig",
        text_config={**SIZES, "vocab_size": 500}, vision_config={**SIZES, "image_size": 32, "patch_size": 8},
    ),
    "Wav2Vec2": hf(
        "Wav2Vec2Model", "Wav2Vec2Config", **SIZES, conv_dim=(32, 32), conv_stride=(5, 2), conv_kernel=(10, 3),
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    ),
}  # fmt: skip
# What of a model is drawn by its number: it is used before it has a name.
BY_NUMBER = {"Mamba": {"dt_proj.bias"}, "Wav2Vec2": {"parametrizations.weight"}}


pytestmark = pytest.mark.usefixtures("their_imports")


@pytest.mark.parametrize("name", MODELS)
def test_under_accelerate_it_has_the_laws_of_its_constructor(name):
    theirs = by_torch(MODELS[name])
    torch.manual_seed(SEED)
    with accelerate() as report:
        model = MODELS[name]()
    found, where = worst(model, theirs)
    assert found < MOST_Z, where
    assert not report.escaped
    assert not report.foreign
    torch.manual_seed(SEED)
    with accelerate(defer=False):
        immediate = MODELS[name]()
    for ours, same in zip(named_tensors(model), named_tensors(immediate), strict=True):
        assert same_bits(ours[1].detach(), same[1].detach()), ours[0]
    paddings = sum(getattr(module, "padding_idx", None) is not None for module in model.modules())
    assert report.drawn <= len([*named_tensors(model)]) + paddings + report.early.total()  # each once


@pytest.mark.parametrize("name", MODELS)
def test_by_build_it_has_the_laws_of_its_constructor(name):
    theirs, model = by_torch(MODELS[name]), build(MODELS[name], seed=SEED)
    found, where = worst(model, theirs)
    assert found < MOST_Z, where
    again = build(MODELS[name], seed=SEED)
    for ours, same in zip(named_tensors(model), named_tensors(again), strict=True):
        assert same_bits(ours[1].detach(), same[1].detach()), ours[0]
    judged = audit(model)
    assert not judged.errors
    unnamed = {row.name for row in judged.rows if row.by in ("number", "computed")}
    assert all(any(known in each for known in BY_NUMBER.get(name, ())) for each in unnamed), unnamed


def test_a_wrong_law_is_found():
    """The twin: a standard deviation that is 5 % off, in one matrix of the model."""
    theirs, model = by_torch(MODELS["GPT2"]), build(MODELS["GPT2"], seed=SEED)
    assert worst(model, theirs)[0] < MOST_Z
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.05)
    found, where = worst(model, theirs)
    assert found > MOST_Z
    assert where == "transformer.wte.weight"


def test_what_was_loaded_stays(tmp_path):
    """from_pretrained inside a block: what is in the file is loaded, the rest is drawn, by the same law."""
    source = build(MODELS["Llama"], seed=SEED)
    source.save_pretrained(tmp_path)
    with accelerate() as report:
        loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    for ours, same in zip(named_tensors(loaded), named_tensors(source), strict=True):
        assert same_bits(ours[1].detach(), same[1].detach()), ours[0]
    assert not report.foreign
    with accelerate():
        headed = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=7)
    assert same_bits(headed.model.norm.weight.detach(), source.model.norm.weight.detach())
    assert headed.score.weight.std().item() == pytest.approx(0.02, rel=0.25)


def test_a_model_on_meta_is_initialised_by_its_own_method():
    """As for sharded set-ups: constructed without memory, then `init_weights`, drawn by name."""
    with torch.device("meta"):
        model = MODELS["GPT2"]()
    model.to_empty(device="cpu")
    model.tie_weights()
    with accelerate(model, seed=SEED) as report:
        model.init_weights()
    expected = dict(named_tensors(build(MODELS["GPT2"], seed=SEED)))
    for name, parameter in model.named_parameters():
        assert same_bits(parameter.detach(), expected[name].detach()), name
    assert not report.escaped


@pytest.mark.parametrize(("name", "hole"), [("CLIP", "logit_scale"), ("Wav2Vec2", "weight.original0")])
def test_what_a_meta_model_s_own_method_leaves_out_is_named(name, hole):
    """Parameters that only the constructor writes."""

    def make():
        with torch.device("meta"):
            model = MODELS[name]()
        model.to_empty(device="cpu")
        model.init_weights()
        return model

    with pytest.raises(CoverageError, match=rf"{re.escape(hole)} was written by nothing"):
        build(make)
