"""What is expected of each row of fastinit/initialisers/README.md: the law of its samples by SciPy, or a property that
its matrix has exactly. By the papers and the other libraries' sources, not by fastinit's formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy import stats

MATRIX, CONVOLUTION = (96, 192), (64, 32, 3, 3)
SMALL = (16, 12, 3, 3)  # for what holds exactly
FAN_IN, FAN_OUT = 32 * 9, 64 * 9  # of CONVOLUTION
WITHIN_TWO = stats.truncnorm(-2, 2).std()


# --- laws --------------------------------------------------------------------------------------


def normal(std: float) -> Any:
    return stats.norm(0, std)


def within(bound: float) -> Any:
    """Uniform on ±bound."""
    return stats.uniform(-bound, 2 * bound)


def cut(std: float, low: float = -2.0, high: float = 2.0) -> Any:
    """A normal law cut at its own standard deviations, and not corrected."""
    return stats.truncnorm(low, high, 0, std)


def scaled(variance: float, distribution: str = "truncated") -> Any:
    std = math.sqrt(variance)
    return {"truncated": cut(std / WITHIN_TWO), "normal": normal(std), "uniform": within(math.sqrt(3) * std)}[
        distribution
    ]


Exact = Callable[[torch.Tensor], float]  # how far a weight is from having a property


def constant(value: float | list[float]) -> Exact:
    return lambda w: (w - torch.tensor(value)).abs().max().item()


def identity(gain: float) -> Exact:
    return lambda w: (w - gain * torch.eye(*w.shape)).abs().max().item()


def orthogonal(gain: float, column_axis: int = 0) -> Exact:
    """Relative to gain^2, as all of these."""

    def error(w: torch.Tensor) -> float:
        matrix = w.movedim(column_axis, 0).flatten(1)
        gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
        return (gram / gain**2 - torch.eye(len(gram))).abs().max().item()

    return error


def delta_orthogonal(gain: float) -> Exact:
    def error(w: torch.Tensor) -> float:
        middle = (..., *((size - 1) // 2 for size in w.shape[2:]))
        around = w.clone()
        around[middle] = 0
        return max(orthogonal(gain)(w[middle]), around.abs().max().item())

    return error


def convolution_orthogonal(gain: float) -> Exact:
    """At every frequency of a circular convolution over 5 places in each dimension: 2 more than any field here."""

    def error(w: torch.Tensor) -> float:
        field = tuple(range(2, w.ndim))
        at = torch.fft.fftn(w, (5,) * len(field), field).flatten(2).permute(2, 0, 1)
        gram = at.mH @ at
        return (gram / gain**2 - torch.eye(gram.shape[-1])).abs().max().item()

    return error


# --- what is expected of each row ---------------------------------------------------------------


class Expected(NamedTuple):
    """The law of `w` (or its property) in this shape, and of `b`. A `native` shape is theirs as it is."""

    law: Any
    shape: tuple[int, ...] = MATRIX
    bias: Any = None
    native: bool = False


def conv(law: Any, bias: Any = None) -> Expected:
    return Expected(law, CONVOLUTION, bias)


ZERO, ONE, HALF = constant(0.0), constant(1.0), constant(0.5)
GPT2, RESIDUAL = normal(0.02), normal(0.02 / math.sqrt(6))
MSRA, CAFFE2_XAVIER = normal(math.sqrt(2 / FAN_OUT)), within(math.sqrt(3 / FAN_IN))
GLOROT, HE, LECUN = 2 / (FAN_IN + FAN_OUT), 2 / FAN_IN, 1 / FAN_IN

EXPECTED: dict[str, dict[str, Expected]] = {
    "PyTorch": {
        "w.uniform_(-1.0, 1.0)": Expected(within(1.0)),
        "w.normal_(0.0, 0.02)": Expected(normal(0.02)),
        "torch.rand_like(w)": Expected(stats.uniform()),
        "torch.randn_like(w)": Expected(normal(1.0)),
        "w.bernoulli_(0.3)": Expected(stats.bernoulli(0.3)),
        "w.cauchy_(3.0, 1.0)": Expected(stats.cauchy(3, 1)),
        "w.exponential_(2.0)": Expected(stats.expon(scale=0.5)),
        "w.geometric_(0.3)": Expected(stats.geom(0.3)),
        "w.log_normal_(1.0, 0.5)": Expected(stats.lognorm(0.5, scale=math.e)),
        "w.random_(-5, 10)": Expected(stats.randint(-5, 10)),
        "w.fill_(0.5)": Expected(HALF),
        "w.zero_()": Expected(ZERO),
        "m.reset_parameters()": conv(within(FAN_IN**-0.5), within(FAN_IN**-0.5)),
        "nn.Embedding(*w.shape).weight": Expected(normal(1.0)),
        "nn.LSTM(w.shape[1], w.shape[1]).weight_hh_l0": Expected(within(96**-0.5), (384, 96)),
        "nn.MultiheadAttention(w.shape[1], 4).in_proj_weight": Expected(within(math.sqrt(6 / (96 + 288))), (288, 96)),
    },
    "TensorFlow 1": {
        "tf.zeros_initializer()": Expected(ZERO),
        "tf.ones_initializer()": Expected(ONE),
        "tf.constant_initializer(0.5)": Expected(HALF),
        "tf.constant_initializer([1.0, 2.0, 3.0])": Expected(None, (5,), constant([1.0, 2.0, 3.0, 3.0, 3.0])),
        "tf.random_uniform_initializer(-0.1, 0.1)": Expected(within(0.1)),
        "tf.random_normal_initializer(0.0, 0.02)": Expected(normal(0.02)),
        "tf.truncated_normal_initializer(0.0, 0.02)": Expected(cut(0.02)),
        "tf.uniform_unit_scaling_initializer(1.43)": conv(within(1.43 * math.sqrt(3 / FAN_IN))),
        'tf.variance_scaling_initializer(2.0, "fan_out")': conv(scaled(2 / FAN_OUT)),
        'tf.variance_scaling_initializer(1.0, "fan_in", "normal")': conv(scaled(LECUN)),
        'tf.variance_scaling_initializer(1.0, "fan_avg", "untruncated_normal")': conv(scaled(GLOROT, "normal")),
        'tf.variance_scaling_initializer(1.0, "fan_in", "uniform")': conv(scaled(LECUN, "uniform")),
        "tf.glorot_uniform_initializer()": conv(scaled(GLOROT, "uniform")),
        "tf.initializers.glorot_uniform()": Expected(None, (20_000,), scaled(1 / 20_000, "uniform")),
        "tf.glorot_normal_initializer()": conv(scaled(GLOROT)),
        "tf.initializers.he_normal()": conv(scaled(HE)),
        "tf.initializers.he_uniform()": conv(scaled(HE, "uniform")),
        "tf.initializers.lecun_normal()": conv(scaled(LECUN)),
        "tf.initializers.lecun_uniform()": conv(scaled(LECUN, "uniform")),
        "tf.orthogonal_initializer(1.5)": Expected(orthogonal(1.5), SMALL),
        "tf.initializers.identity(1.5)": Expected(identity(1.5)),
        "init_ops.convolutional_delta_orthogonal(1.5)": Expected(delta_orthogonal(1.5), SMALL),
        "init_ops.convolutional_orthogonal_1d(1.5)": Expected(convolution_orthogonal(1.5), (16, 12, 3)),
        "init_ops.convolutional_orthogonal_2d(1.5)": Expected(convolution_orthogonal(1.5), SMALL),
        "init_ops.convolutional_orthogonal_3d(1.5)": Expected(convolution_orthogonal(1.5), (8, 6, 2, 2, 2)),
    },
    "Keras": {
        "initializers.Zeros()": Expected(ZERO),
        "initializers.Ones()": Expected(ONE),
        "initializers.Constant(0.5)": Expected(HALF),
        "initializers.RandomUniform()": Expected(within(0.05)),
        "initializers.RandomNormal()": Expected(normal(0.05)),
        "initializers.TruncatedNormal()": Expected(cut(0.05)),
        'initializers.VarianceScaling(2.0, "fan_out")': conv(scaled(2 / FAN_OUT)),
        'initializers.VarianceScaling(1.0, "fan_avg", "untruncated_normal")': conv(scaled(GLOROT, "normal")),
        'initializers.VarianceScaling(1.0, "fan_in", "uniform")': conv(scaled(LECUN, "uniform")),
        'initializers.VarianceScaling(1.0, "fan_in", "uniform", input_axes=[0], output_axes=[1, 2])': Expected(
            scaled(1 / 96, "uniform"), (96, 4, 48), native=True
        ),
        "initializers.GlorotUniform()": conv(scaled(GLOROT, "uniform")),
        'initializers.get("glorot_uniform")': Expected(None, (20_000,), scaled(1 / 20_000, "uniform")),
        "initializers.GlorotNormal()": conv(scaled(GLOROT)),
        "initializers.HeNormal()": conv(scaled(HE)),
        "initializers.HeUniform()": conv(scaled(HE, "uniform")),
        "initializers.LecunNormal()": conv(scaled(LECUN)),
        "initializers.LecunUniform()": conv(scaled(LECUN, "uniform")),
        "initializers.Orthogonal(1.5)": Expected(orthogonal(1.5), SMALL),
        "initializers.Identity(1.5)": Expected(identity(1.5)),
    },
    "JAX": {
        "initializers.zeros": Expected(ZERO),
        "initializers.ones": Expected(ONE),
        "initializers.constant(0.5)": Expected(HALF),
        "initializers.uniform(0.1)": Expected(stats.uniform(0, 0.1)),
        "initializers.normal(0.02)": Expected(normal(0.02)),
        "initializers.truncated_normal(0.02)": Expected(cut(0.02)),
        "initializers.truncated_normal(0.02, lower=-3.0, upper=1.0)": Expected(cut(0.02, -3.0, 1.0)),
        'initializers.variance_scaling(2.0, "fan_out", "truncated_normal")': conv(scaled(2 / FAN_OUT)),
        'initializers.variance_scaling(1.0, "fan_avg", "normal")': conv(scaled(GLOROT, "normal")),
        'initializers.variance_scaling(1.0, "fan_in", "uniform")': conv(scaled(LECUN, "uniform")),
        'initializers.variance_scaling(1.0, "fan_geo_avg", "uniform")': conv(
            scaled(1 / math.sqrt(FAN_IN * FAN_OUT), "uniform")
        ),
        'initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0)': Expected(
            normal(48**-0.5), (6, 48, 64), native=True
        ),
        'initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)': Expected(normal(192**-0.5), native=True),
        "initializers.glorot_uniform()": conv(scaled(GLOROT, "uniform")),
        "initializers.glorot_normal()": conv(scaled(GLOROT)),
        "initializers.he_uniform()": conv(scaled(HE, "uniform")),
        "initializers.he_normal()": conv(scaled(HE)),
        "initializers.he_normal(in_axis=(0, 1), out_axis=2)": Expected(scaled(2 / 192), (4, 48, 96), native=True),
        "initializers.lecun_uniform()": conv(scaled(LECUN, "uniform")),
        "initializers.lecun_normal()": conv(scaled(LECUN)),
        "initializers.orthogonal(1.5)": Expected(orthogonal(1.5), SMALL),
        "initializers.orthogonal(1.5, column_axis=0)": Expected(orthogonal(1.5), (3, 3, 12, 16), native=True),
        "initializers.delta_orthogonal(1.5)": Expected(delta_orthogonal(1.5), SMALL),
    },
    "timm": {
        "trunc_normal_(w, std=0.02)": Expected(normal(0.02)),
        "trunc_normal_tf_(w, std=0.02)": Expected(cut(0.02)),
        'variance_scaling_(w, 2.0, "fan_out", "truncated_normal")': conv(scaled(2 / FAN_OUT)),
        "variance_scaling_(w)": conv(scaled(LECUN, "normal")),
        'variance_scaling_(w, 1.0, "fan_avg", "uniform")': conv(scaled(GLOROT, "uniform")),
        "lecun_normal_(w)": conv(scaled(LECUN)),
        'init_weight_vit(m, "blocks.0.mlp.fc1")': Expected(normal(0.02), bias=constant(0.02)),
        'init_weight_vit(m, "head")': Expected(ZERO, bias=ZERO),
        'init_weight_jax(m, "blocks.0.mlp.fc1")': Expected(within(math.sqrt(6 / 288)), bias=normal(1e-6)),
        'init_weight_jax(m, "blocks.0.attn.qkv")': Expected(within(math.sqrt(6 / 288)), bias=ZERO),
        'init_weight_jax(m, "patch_embed.proj")': conv(scaled(LECUN), ZERO),
    },
    "Transformers": {
        "GPT2Model(config).wte.weight": Expected(GPT2, (200, 96)),
        "GPT2Model(config).h[0].mlp.c_fc.weight": Expected(GPT2, (96, 384)),
        "GPT2Model(config).h[0].mlp.c_proj.weight": Expected(RESIDUAL, (384, 96)),
        "BertModel(config).encoder.layer[0].output.dense.weight": Expected(GPT2),
        "BertModel(config).embeddings.position_embeddings.weight": Expected(GPT2, (512, 96)),
        "BertModel(config).embeddings.LayerNorm.weight": Expected(ONE, (96,)),
        "T5Model(config).shared.weight": Expected(normal(1.0), (200, 128)),
        "T5Model(config).encoder.block[0].layer[0].SelfAttention.q.weight": Expected(normal(4096**-0.5), (128, 128)),
        "T5Model(config).encoder.block[0].layer[0].SelfAttention.k.weight": Expected(normal(128**-0.5), (128, 128)),
        "T5Model(config).encoder.block[0].layer[0].SelfAttention.o.weight": Expected(normal(128**-0.5), (128, 128)),
        "T5Model(config).encoder.block[0].layer[1].DenseReluDense.wi.weight": Expected(normal(128**-0.5), (256, 128)),
        "T5Model(config).encoder.block[0].layer[1].DenseReluDense.wo.weight": Expected(normal(256**-0.5), (128, 256)),
        "LlamaModel(config).layers[0].mlp.gate_proj.weight": Expected(GPT2, (192, 96)),
        "LlamaModel(config).norm.weight": Expected(ONE, (96,)),
        "ViTModel(config).layers[0].mlp.fc1.weight": Expected(GPT2, (192, 96)),
        "ViTModel(config).embeddings.position_embeddings": Expected(GPT2, (1, 197, 96)),
    },
    "Megatron-LM": {
        "init_method_normal(0.02)(w)": Expected(GPT2),
        "scaled_init_method_normal(0.02, layers)(w)": Expected(RESIDUAL),
        "scaled_init_method_normal(0.02, layers, multiplier=1.0)(w)": Expected(normal(0.02 / math.sqrt(3))),
    },
    "torchtitan": {
        "partial(nn.init.trunc_normal_, std=0.02)(w)": Expected(GPT2),
        "partial(nn.init.trunc_normal_, std=depth_scaled_std(0.02, layer_id))(w)": Expected(RESIDUAL),
        "partial(nn.init.trunc_normal_, std=dim**-0.5, a=-3 * dim**-0.5, b=3 * dim**-0.5)(w)": Expected(
            cut(192**-0.5, -3.0, 3.0)
        ),
    },
    "mup": {
        "normal_(hidden, std=0.02)": Expected(normal(0.01)),
        "normal_(embedding, std=0.02)": Expected(normal(0.02)),
        "uniform_(hidden, -0.02, 0.02)": Expected(within(0.01)),
    },
    "mmcv and MMEngine": {
        "kaiming_init(m)": conv(MSRA, ZERO),
        'kaiming_init(m, a=1, mode="fan_in", nonlinearity="leaky_relu", distribution="uniform")': conv(
            CAFFE2_XAVIER, ZERO
        ),
        "xavier_init(m)": conv(scaled(GLOROT, "normal"), ZERO),
        'xavier_init(m, gain=2, distribution="uniform")': conv(scaled(4 * GLOROT, "uniform"), ZERO),
        "caffe2_xavier_init(m)": conv(CAFFE2_XAVIER, ZERO),
        "normal_init(m, std=0.01)": conv(normal(0.01), ZERO),
        "normal_init(m, std=0.01, bias=bias_init_with_prob(0.01))": conv(normal(0.01), constant(math.log(0.01 / 0.99))),
        "uniform_init(m, -0.1, 0.1)": conv(within(0.1), ZERO),
        "trunc_normal_init(m, std=0.02)": conv(normal(0.02), ZERO),
        "constant_init(m, 1.0)": conv(ONE, ZERO),
    },
    "fvcore and Detectron2": {"c2_msra_fill(m)": conv(MSRA, ZERO), "c2_xavier_fill(m)": conv(CAFFE2_XAVIER, ZERO)},
    "Stable-Baselines3": {
        "ActorCriticPolicy.init_weights(m, gain=2**0.5)": conv(orthogonal(2**0.5), ZERO),
        "policy.mlp_extractor.policy_net[0].weight": Expected(orthogonal(2**0.5), (64, 48)),
        "policy.action_net.weight": Expected(orthogonal(0.01), (6, 64)),
        "policy.value_net.weight": Expected(orthogonal(1.0), (1, 64)),
    },
}
