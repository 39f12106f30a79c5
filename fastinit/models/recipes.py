"""Recipes: rules for whole kinds of models, as their libraries and papers initialise them.

A recipe has hyperparameters: `gpt2(n_layer=12, std=0.02)`. Those that are left out are read from the model's `config`.
It is called with a model for the rules, which `fastinit.initialize(model, recipe, seed=0)` does. Rules of one's own
come before: `lambda model: [(torch.nn.Embedding, normal(std=0.01)), *gpt2()(model)]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..initialisers import (
    constant,
    depth_scaled_normal,
    kaiming_normal,
    kaiming_uniform,
    mup_normal,
    normal,
    ones,
    trunc_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from ..initialisers.parts import Value
from .entries import Home, entries
from .recipe import hyperparameter, recipe
from .rules import Rule
from .walk import joined, parameters, walk

Module = nn.Module
__all__ = ["bert", "gpt2", "llama", "mup", "resnet", "t5", "torch_default", "vit"]


# --- where, for several recipes --------------------------------------------------------------------

TORCHS_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
# Of others, those that multiply by their weight; Gemma's, for one, multiply by 1 + weight.
THEIR_NORMS = {
    "LayerNorm", "LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm",
    "T5LayerNorm",
}  # fmt: skip


def is_norm(module: Module) -> bool:
    return isinstance(module, TORCHS_NORMS) or type(module).__name__ in THEIR_NORMS


def norm_weight(name: str, module: Module, parameter: Tensor) -> bool:
    """A scale of a normalisation."""
    return is_norm(module) and name.rpartition(".")[2] == "weight"


def norm_bias(name: str, module: Module, parameter: Tensor) -> bool:
    return is_norm(module) and name.rpartition(".")[2] == "bias"


def linear_weight(name: str, module: Module, parameter: Tensor) -> bool:
    """Of torch's Linear, and of transformers' Conv1D, which is one with the weight the other way round."""
    return (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and name.rpartition(".")[2] == "weight"


def is_bias(name: str, module: Module, parameter: Tensor) -> bool:
    return name.rpartition(".")[2] == "bias"


def norms() -> Iterator[Rule]:
    yield Rule(norm_weight, ones(), True)
    yield Rule(norm_bias, zeros(), True)


def plain_transformer(model: Module, recipe: str, std: float | None) -> Iterator[Rule]:
    """Matrices and embeddings normal, biases zeros, normalisations the identity."""
    value = normal(std=hyperparameter(std, model, recipe, "std", "initializer_range", default=0.02))
    yield from norms()
    yield Rule(linear_weight, value, True)
    yield Rule((nn.Embedding, "weight"), value, True)
    yield Rule(is_bias, zeros(), True)


# --- recipes -----------------------------------------------------------------------------------------


@recipe
def gpt2(model: Module, n_layer: int | None = None, std: float | None = None) -> Iterator[Rule]:
    """GPT-2: normal(std), what is added to the residual stream by std / sqrt(2 n_layer), biases zeros.

    Radford et al. 2019, section 2.3; `GPT2PreTrainedModel._init_weights` of transformers, `GPT._init_weights` of
    nanoGPT. From the config: n_layer or num_hidden_layers; initializer_range (0.02).
    """
    depth = hyperparameter(n_layer, model, "gpt2", "n_layer", "n_layer", "num_hidden_layers")
    std = hyperparameter(std, model, "gpt2", "std", "initializer_range", default=0.02)
    yield Rule("*c_proj.weight", depth_scaled_normal(std=std, depth=depth))
    yield from plain_transformer(model, "gpt2", std)


@recipe
def llama(model: Module, std: float | None = None) -> Iterator[Rule]:
    """Llama, Mistral, Qwen2 and Qwen3 in transformers: normal(std), norms ones, biases zeros.

    `PreTrainedModel._init_weights` of transformers. From the config: initializer_range (0.02).
    """
    yield from plain_transformer(model, "llama", std)


@recipe
def bert(model: Module, std: float | None = None) -> Iterator[Rule]:
    """BERT and RoBERTa in transformers: normal(std) for matrices and embeddings, biases zeros.

    Devlin et al. 2019; `PreTrainedModel._init_weights` of transformers. (Google's own code cuts at two standard
    deviations.) From the config: initializer_range (0.02).
    """
    yield from plain_transformer(model, "bert", std)


@recipe
def t5(
    model: Module,
    d_model: int | None = None,
    d_kv: int | None = None,
    d_ff: int | None = None,
    num_heads: int | None = None,
    factor: float | None = None,
) -> Iterator[Rule]:
    """T5: no scale in the attention, so queries are drawn smaller by sqrt(d_kv); embeddings by 1.

    Raffel et al. 2020; `T5PreTrainedModel._init_weights` of transformers, after Mesh TensorFlow. All from the config;
    factor is initializer_factor (1.0).
    """
    d_model = hyperparameter(d_model, model, "t5", "d_model", "d_model")
    d_kv = hyperparameter(d_kv, model, "t5", "d_kv", "d_kv")
    d_ff = hyperparameter(d_ff, model, "t5", "d_ff", "d_ff")
    num_heads = hyperparameter(num_heads, model, "t5", "num_heads", "num_heads")
    factor = hyperparameter(factor, model, "t5", "factor", "initializer_factor", default=1.0)
    of_inputs = normal(std=factor * d_model**-0.5)
    yield Rule("*.q.weight", normal(std=factor * (d_model * d_kv) ** -0.5))
    yield Rule("*.[kv].weight", of_inputs)
    yield Rule("*.o.weight", normal(std=factor * (num_heads * d_kv) ** -0.5))
    yield Rule("*.relative_attention_bias.weight", of_inputs, True)
    yield Rule("*.wi*.weight", of_inputs)
    yield Rule("*.wo.weight", normal(std=factor * d_ff**-0.5))
    yield Rule("*shared.weight", normal(std=factor))
    yield Rule("*embed_tokens.weight", normal(std=factor), True)
    yield Rule("*lm_head.weight", normal(std=factor), True)
    yield Rule(norm_weight, constant(factor), True)
    yield Rule("*qa_outputs.weight", of_inputs, True)
    yield Rule("*classification_head.*.weight", of_inputs, True)
    yield Rule("*classifier.weight", normal(std=factor), True)
    yield Rule(is_bias, zeros(), True)


@recipe
def vit(model: Module, std: float = 0.02) -> Iterator[Rule]:
    """timm's Vision Transformers: truncated normal of std 0.02, which is not cut within ±2; patches as torch has them.

    Dosovitskiy et al. 2021; `init_weights_vit_timm` and `VisionTransformer.init_weights` of timm. Layer scales keep
    the number that they were made with.
    """
    for (name, module, key), _ in owned(model):
        if type(module).__name__ == "LayerScale":
            yield Rule(exactly(name), constant(float(getattr(module, "init_values", 1e-5))))
        elif isinstance(module, nn.Conv2d):
            yield Rule(exactly(name), torch_values(module)[key])
    yield from norms()
    yield Rule("*pos_embed", trunc_normal(std=std), True)
    for token in ("*cls_token", "*reg_token", "*dist_token"):
        yield Rule(token, normal(std=1e-6), True)
    yield Rule((nn.Linear, "weight"), trunc_normal(std=std))
    yield Rule((nn.Linear, "bias"), zeros(), True)


@recipe
def resnet(model: Module, zero_last: bool = False) -> Iterator[Rule]:
    """Residual networks of torchvision: convolutions by kaiming_normal over fan_out, batch norms the identity.

    He et al. 2015 and 2016; `ResNet.__init__` of torchvision. The classifier is as torch initialises linear layers.
    `zero_last`: the last normalisation of each residual branch is zeros (Goyal et al. 2017), as `zero_init_residual` of
    torchvision and `zero_init_last` of timm, which has it by default.
    """
    for (name, module, key), _ in owned(model):
        if isinstance(module, nn.Linear):
            yield Rule(exactly(name), torch_values(module)[key])
    if zero_last:
        for prefix, module in walk(model):
            last = {"Bottleneck": "bn3", "BasicBlock": "bn2"}.get(type(module).__name__)
            if last is not None:
                yield Rule(exactly(f"{joined(prefix, last)}.weight"), zeros())
    yield from norms()
    yield Rule((nn.Conv2d, "weight"), kaiming_normal(mode="fan_out", nonlinearity="relu"))
    yield Rule((nn.Conv2d, "bias"), zeros(), True)


@recipe
def mup(model: Module, base: Any, std: float = 0.02) -> Iterator[Rule]:
    """muP: standard deviations that follow the width, so that learning rates of a narrow model stay right.

    Yang et al. 2022, Tensor Programs V, table 3. `base` is the narrow model (on the meta device, say), or the shapes
    of its parameters by name: what differs from it is width. With `std` that of the narrow model, matrices whose both
    sides grow are drawn by std / sqrt(width_mult), readouts by std / width_mult;
    embeddings, inputs and the readouts of the package mup, which scale their output themselves, by std. Biases are
    zeros, norms ones.
    """
    shapes = dict(base)
    yield from norms()
    for (name, module, _), tensor in owned(model):
        shape = tuple(tensor.shape)
        if is_norm(module):
            continue
        if len(shape) < 2:
            yield Rule(exactly(name), zeros())
            continue
        if len(shapes.get(name, ())) != len(shape):
            raise ValueError(f"the base model of recipe mup has no parameter {name} of {len(shape)} dimensions")
        yield Rule(exactly(name), by_width(module, shape, shapes[name], std))


def by_width(module: Module, shape: Sequence[int], base: Sequence[int], std: float) -> Any:
    """muP's law of a matrix; the base shape is that of the narrow model."""
    outputs, inputs = (shape[side] / base[side] for side in (0, 1))
    scales_itself = type(module).__name__ in ("MuReadout", "MuSharedReadout")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or inputs == 1 or scales_itself:
        return normal(std=std)
    if outputs == 1:
        return mup_normal(std=std, width_mult=inputs, role="output")
    return mup_normal(std=std, width_mult=inputs, role="hidden")


@recipe
def torch_default(model: Module) -> Iterator[Rule]:
    """What the constructors of torch's own modules draw: `reset_parameters` of each (torch 2.8 to 2.15).

    For a module that is none of torch's there is no rule: write one before it. (`nn.Transformer` copies its layers, so
    that they start alike, biases included; here each is drawn by its own name.)
    """
    whole = tuple(joined(prefix, "") for prefix, module in walk(model) if isinstance(module, nn.Transformer))
    for (name, module, key), tensor in owned(model):
        values = torch_values(module)
        if whole and name.startswith(whole) and tensor.dim() > 1:
            yield Rule(exactly(name), xavier_uniform())
        elif key in values:
            yield Rule(exactly(name), values[key])


def owned(model: Module) -> Iterator[tuple[Home, Tensor]]:
    """A model's parameters by every name that they have; computed weights in place of what they are computed from."""
    return ((home, entry.tensor) for entry in entries(model) if not entry.aside for home in entry.homes)


def exactly(name: str) -> str:
    """The pattern of one name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def torch_values(module: Module) -> dict[str, Value]:
    """What a module of torch's initialises its own parameters by."""
    own = dict(parameters(module))
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        bound = 1 / math.sqrt(max(1, math.prod(module.weight.shape[1:])))
        zero = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)  # of an attention
        return {"weight": kaiming_uniform(math.sqrt(5)), "bias": zeros() if zero else uniform(-bound, bound)}
    if isinstance(module, nn.Bilinear):
        bound = 1 / math.sqrt(module.weight.shape[1])
        return dict.fromkeys(own, uniform(-bound, bound))
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        bound = 1 / math.sqrt(module.hidden_size)
        return dict.fromkeys(own, uniform(-bound, bound))
    if isinstance(module, nn.MultiheadAttention):
        return {key: torchs_attention(key) for key in own}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"weight": normal()}
    if isinstance(module, nn.PReLU):
        return {"weight": constant(float(module.init))}
    return {"weight": ones(), "bias": zeros()} if isinstance(module, TORCHS_NORMS) else {}


def torchs_attention(key: str) -> Any:
    if key == "in_proj_bias":
        return zeros()
    return xavier_normal() if key in ("bias_k", "bias_v") else xavier_uniform()
