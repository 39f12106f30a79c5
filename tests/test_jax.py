"""Initialisers in JAX: torch's bits of the key's stream, in every transformation, with JAX's fans and laws."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from common import fresh_python, name_of
from scipy import stats

from fastinit import Stream, initialisers

jax = pytest.importorskip("jax", reason="needs JAX")
from fastinit.frameworks import jax as ours  # noqa: E402

ALPHA = 1e-4  # the false-alarm rate of each statistical test; seeds are fixed
KEY = jax.random.key(7)
SHAPE = (64, 48)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int32]


def raw(array) -> bytes:
    if torch.is_tensor(array):
        return array.reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.asarray(array).tobytes()


def same(array, tensor: torch.Tensor) -> bool:
    """The same shape, dtype and bits."""
    kind = np.asarray(array).dtype.name == name_of(tensor.dtype)
    return kind and tuple(array.shape) == tuple(tensor.shape) and raw(array) == raw(tensor)


# --- bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("jit", [False, True])
def test_an_array_has_the_bits_of_a_tensor(dtype, jit):
    value = initialisers.random(0, 100) if dtype is torch.int32 else initialisers.he_normal(layout="io")
    array = ours.initializer(value)
    drawn = (jax.jit(array, static_argnums=(1, 2)) if jit else array)(KEY, SHAPE, name_of(dtype))
    assert same(drawn, value(SHAPE, dtype, stream=Stream(7)))


def test_float64_where_jax_has_it():
    value = initialisers.normal(std=0.02)
    array = ours.initializer(value)
    assert array(KEY, (5,), "float64").dtype == "float32"  # as everywhere in JAX
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        expected = value(SHAPE, torch.float64, stream=Stream(7))
        assert same(array(KEY, SHAPE), expected)
        assert same(jax.jit(array, static_argnums=1)(KEY, SHAPE), expected)


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (2, 3, 4)])
def test_shapes(shape):
    assert same(ours.normal()(KEY, shape), initialisers.normal()(shape, stream=Stream(7)))
    assert ours.zeros()(KEY, shape).sum() == 0


def wrapped(*words: int, implementation: str):
    return jax.random.wrap_key_data(np.array(words, np.uint32), impl=implementation)


@pytest.mark.parametrize(
    ("key", "stream"),
    [
        (lambda: jax.random.key(7), Stream(7)),
        (lambda: jax.random.PRNGKey(7), Stream(7)),
        (lambda: np.array([1, 2], np.uint32), Stream(1 << 32 | 2)),
        (lambda: wrapped(0x01234567, 0x89ABCDEF, implementation="threefry2x32"), Stream(0x0123456789ABCDEF)),
        (lambda: jax.random.key(7, impl="rbg"), Stream(7, 7)),
        (lambda: jax.random.PRNGKey(9, impl="unsafe_rbg"), Stream(9, 9)),
        (lambda: wrapped(1, 2, 0xFFFFFFFF, 4, implementation="rbg"), Stream(1 << 32 | 2, 0xFFFFFFFF << 32 | 4)),
    ],
)
def test_a_key_s_stream_never_changes(key, stream):
    assert same(ours.normal()(key(), (70,)), initialisers.normal()(70, stream=stream))
    assert same(jax.jit(lambda key: ours.normal()(key, (70,)))(key()), initialisers.normal()(70, stream=stream))


def test_golden_values():
    key = wrapped(0x01234567, 0x89ABCDEF, implementation="threefry2x32")
    assert np.asarray(ours.normal()(key, (4,))).view(np.uint32).tolist() == [
        3197218270,
        3208985528,
        1044068377,
        1059124830,
    ]


# --- transformations ---------------------------------------------------------------------------


def test_vmap_draws_each_key_s_own():
    array, keys = ours.he_normal(), jax.random.split(KEY, 6).reshape(2, 3)
    drawn = jax.jit(jax.vmap(jax.vmap(lambda key: array(key, (5, 4)))))(keys)
    assert all((drawn[i, j] == array(keys[i, j], (5, 4))).all() for i in range(2) for j in range(3))
    legacy = jax.vmap(lambda key: array(key, (5, 4)))(jax.random.key_data(keys[0]))
    assert (legacy == drawn[0]).all()
    beside = jax.vmap(lambda key, x: array(key, (5, 4)) + x, in_axes=(None, 0))(keys[0, 0], np.zeros(3, np.float32))
    assert (beside == drawn[0, 0]).all()


def test_other_transformations():
    array = ours.he_normal()
    assert jax.eval_shape(lambda key: array(key, SHAPE, "bfloat16"), KEY) == jax.ShapeDtypeStruct(SHAPE, "bfloat16")
    keys = jax.random.split(KEY, 3)
    _, scanned = jax.lax.scan(lambda carry, key: (carry, array(key, SHAPE)), 0, keys)
    assert (scanned == np.stack([array(key, SHAPE) for key in keys])).all()
    gradient = jax.grad(lambda x: (x * array(KEY, (3, 3))).sum())(1.0)
    assert gradient == pytest.approx(float(array(KEY, (3, 3)).sum()), rel=1e-5)
    closed = jax.jit(lambda: array(KEY, SHAPE))()  # a key that is no argument
    assert (closed == array(KEY, SHAPE)).all()


def test_an_initializer_is_a_value():
    made = ours.he_normal(in_axis=[0, 1], out_axis=-1)
    assert made == ours.initializer("HeNormal", in_axis=(0, 1)) != ours.he_normal()
    assert pickle.loads(pickle.dumps(made)) == made
    assert hash(made) == hash(ours.initializer(initialisers.he_normal(), in_axis=(0, 1)))


def test_each_device_draws_its_part():
    code = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from fastinit.frameworks import jax as ours
sharding = NamedSharding(Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b")), PartitionSpec("b", "a"))
for init in (ours.he_normal(), ours.orthogonal()):
    key, whole = jax.random.key(7), init(jax.random.key(7), (6, 10))
    traced = jax.jit(lambda key: init(key, (6, 10), None, sharding))
    for drawn in (init(key, (6, 10), out_sharding=sharding), traced(key)):
        parts = [part.data.shape for part in drawn.addressable_shards]
        print(drawn.sharding == sharding, parts, (drawn == whole).all())
"""
    printed = fresh_python(code, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu")
    assert printed.splitlines() == ["True [(3, 5), (3, 5), (3, 5), (3, 5)] True"] * 4


# --- laws --------------------------------------------------------------------------------------

INITIALIZERS = jax.nn.initializers
PAIRS = {
    "he_normal": (ours.he_normal(), INITIALIZERS.he_normal()),
    "glorot_uniform": (ours.glorot_uniform(), INITIALIZERS.glorot_uniform()),
    "lecun_normal": (ours.lecun_normal(), INITIALIZERS.lecun_normal()),
    "he_uniform of other axes": (
        ours.he_uniform(in_axis=0, out_axis=(1, 3), batch_axis=2),
        INITIALIZERS.he_uniform(in_axis=0, out_axis=(1, 3), batch_axis=2),
    ),
    "variance_scaling": (
        ours.variance_scaling(0.5, "fan_avg", "untruncated_normal"),
        INITIALIZERS.variance_scaling(0.5, "fan_avg", "normal"),
    ),
    "normal": (ours.normal(std=0.02), INITIALIZERS.normal(0.02)),
    "truncated": (ours.trunc_normal(std=0.02, bounds="sigma"), INITIALIZERS.truncated_normal(0.02)),
    "uniform": (ours.uniform(b=0.01), INITIALIZERS.uniform(0.01)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_laws_and_fans_are_jax_s(name):
    sample, theirs = (np.asarray(init(KEY, (3, 3, 96, 160)), np.float64).ravel() for init in PAIRS[name])
    assert stats.ks_2samp(sample, theirs).pvalue > ALPHA
    assert stats.ks_2samp(1.05 * sample, theirs).pvalue < ALPHA  # the twin: 5 % wider
    assert sample.std() == pytest.approx(theirs.std(), rel=0.02)


@pytest.mark.parametrize("shape", [(4, 6), (3, 3, 4, 8), (2, 8)])
def test_orthogonal_columns_are_jax_s(shape):
    for init in (ours.orthogonal(2.0), INITIALIZERS.orthogonal(2.0)):
        matrix = np.asarray(init(KEY, shape), np.float64).reshape(-1, shape[-1])
        gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
        assert np.abs(gram - 4 * np.eye(len(gram))).max() < 1e-5
    kernel = np.asarray(ours.delta_orthogonal()(KEY, (3, 3, 4, 8)))
    assert not kernel[0].any()
    assert np.abs(kernel[1, 1] @ kernel[1, 1].T - np.eye(4)).max() < 1e-5


# --- Flax --------------------------------------------------------------------------------------


def test_flax_linen():
    linen = pytest.importorskip("flax.linen", reason="needs Flax")
    array = ours.he_normal()
    layers = (
        (linen.Dense(8, kernel_init=array, bias_init=ours.normal(std=0.1)), (1, 6), (6, 8)),
        (linen.Conv(8, (3, 3), kernel_init=array, param_dtype="bfloat16"), (1, 9, 9, 6), (3, 3, 6, 8)),
    )
    for layer, inputs, shape in layers:
        seen = []
        watched = layer.clone(kernel_init=lambda *given, seen=seen: seen.append(given) or array(*given))
        inputs = np.ones(inputs, np.float32)
        kernel = watched.init(KEY, inputs)["params"]["kernel"]
        assert kernel.shape == shape
        assert (kernel == array(*seen[0])).all()
        assert (jax.jit(layer.init)(KEY, inputs)["params"]["kernel"] == kernel).all()


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx", reason="needs Flax")
    make = lambda: nnx.Linear(6, 8, kernel_init=ours.he_normal(), rngs=nnx.Rngs(3))  # noqa: E731
    kernel = make().kernel[...]
    assert (kernel == ours.he_normal()(nnx.Rngs(3).params(), (6, 8))).all()
    assert (nnx.jit(make)().kernel[...] == kernel).all()
    assert nnx.eval_shape(make).kernel.shape == (6, 8)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        (lambda: 7, TypeError, "a key is made by jax.random.key"),
        (lambda: None, TypeError, "a key is made by jax.random.key"),
        (lambda: np.zeros(2), TypeError, "a key is made by jax.random.key"),
        (lambda: jax.random.split(KEY, 3), ValueError, r"takes one key, got keys of shape \(3,\)"),
        (lambda: np.zeros(3, np.uint32), ValueError, "keys of 2 and 4 words have a stream, got one of 3"),
    ],
)
def test_what_is_no_key(key, error, words):
    with pytest.raises(error, match=words):
        ours.normal()(key(), (3,))


def test_other_errors():
    with pytest.raises(AttributeError, match="no attribute 'he_nromal'"):
        ours.he_nromal  # noqa: B018
    with pytest.raises(TypeError, match="unexpected keyword argument 'stdev'"):
        ours.normal(stdev=1)
    with pytest.raises(ValueError, match="a weight of 2 axes has none numbered -3"):
        ours.he_normal(in_axis=-3)(KEY, SHAPE)
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        ours.he_normal()(KEY, (5,))
    with pytest.raises(RuntimeError, match="does not cover complex64"):
        ours.normal()(KEY, SHAPE, "complex64")


def test_torchs_and_jax_s_arguments_are_not_mixed_up():
    """JAX's first argument is the standard deviation; torch's default axis of columns is another than JAX's."""
    for make in (ours.normal, ours.uniform):
        with pytest.raises(TypeError, match="by keyword here"):
            make(0.02)
    with pytest.raises(ValueError, match="say -rank"):
        ours.orthogonal(column_axis=0)
    first, last = (np.asarray(ours.orthogonal(column_axis=axis)(KEY, (6, 3))) for axis in (-2, -1))
    assert np.allclose(last.T @ last, np.eye(3), atol=1e-5)
    assert np.allclose(first.T @ first, np.eye(3), atol=1e-5)
