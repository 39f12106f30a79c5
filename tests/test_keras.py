"""Initialisers in Keras: torch's bits with each backend, Keras's meaning of a seed, fans and laws; models keep them."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from common import fresh_python, same_bits
from scipy import stats

from fastinit import Stream, initialisers

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="needs Keras")
    from fastinit.frameworks.keras import Initializer

ALPHA = 1e-4  # the false-alarm rate of each statistical test; seeds are fixed
SHAPE = (64, 48)

# --- every backend -----------------------------------------------------------------------------

BACKEND = """
import sys
import keras, numpy, torch
from fastinit import Stream, initialisers
from fastinit.frameworks.keras import Initializer

def floats(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))

assert keras.backend.backend() == sys.argv[1]
value, init = initialisers.he_normal(layout="io"), Initializer("he_normal", seed=7)
for dtype in ("float32", "bfloat16", "float16", None):
    expected = value((64, 48), dtype or "float32", stream=Stream(7)).float().numpy()
    drawn = init((64, 48), dtype)
    assert keras.backend.standardize_dtype(drawn.dtype) == (dtype or "float32")
    assert (floats(drawn) == expected).all(), dtype
generated = Initializer("normal", seed=keras.random.SeedGenerator(3))
for count in range(3):
    assert (floats(generated((9,))) == initialisers.normal()(9, stream=Stream(3, count)).numpy()).all()
layers = keras.layers
model = keras.Sequential([
    keras.Input((9, 9, 6)),
    layers.Conv2D(8, 3, kernel_initializer=init, bias_initializer=Initializer("normal", seed=2)),
    layers.Flatten(),
    layers.Dense(5, kernel_initializer=Initializer(initialisers.orthogonal(2.0))),
])
assert (floats(model.layers[0].kernel) == floats(init((3, 3, 6, 8)))).all()
model.save(sys.argv[2])
loaded = keras.models.load_model(sys.argv[2])
assert loaded.layers[0].kernel_initializer.get_config() == init.get_config()
assert loaded.layers[2].kernel_initializer.value == initialisers.orthogonal(2.0)
assert (floats(loaded.layers[0].kernel) == floats(init((3, 3, 6, 8)))).all()
print("right")
"""


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_backends(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}, which is not installed here")
    code = f"import sys; sys.argv = {['', backend, str(tmp_path / 'model.keras')]!r}\n{BACKEND}"
    assert fresh_python(code, KERAS_BACKEND=backend).endswith("right\n")


# --- seeds -------------------------------------------------------------------------------------


def test_seeds_mean_what_they_mean_in_keras():
    init = Initializer("normal", seed=7)
    assert same_bits(init(SHAPE), init(SHAPE))
    assert same_bits(init(SHAPE), initialisers.normal()(SHAPE, stream=Stream(7)))
    unseeded = Initializer("normal")
    assert same_bits(unseeded(SHAPE), unseeded(SHAPE))
    assert not same_bits(unseeded(SHAPE), Initializer("normal")(SHAPE))
    assert not same_bits(unseeded(SHAPE), unseeded.clone()(SHAPE))
    drawn = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        drawn.append(Initializer("normal")(SHAPE))
    assert same_bits(*drawn)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (2**64, ValueError), ("a", TypeError), (1.5, TypeError)])
def test_seeds_that_are_none(seed, error):
    with pytest.raises(error):
        Initializer("normal", seed=seed)
    with pytest.raises(ValueError, match="no initialiser 'nrmal'"):
        Initializer("nrmal")


def test_configurations():
    for init in (Initializer(initialisers.he_normal(fan_in=3), seed=2**64 - 1), Initializer("HeNormal")):
        saved = json.loads(json.dumps(keras.saving.serialize_keras_object(init)))
        assert saved["registered_name"] == "fastinit>Initializer"
        for other in (keras.saving.deserialize_keras_object(saved), init.clone(), keras.initializers.get(saved)):
            assert type(other) is Initializer
            assert other.get_config() == init.get_config()
    generator = Initializer("normal", seed=keras.random.SeedGenerator(3))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(generator))
    assert same_bits(again((5,)), generator((5,)))
    assert repr(init) == "Initializer(he_normal(), seed=None)"


# --- laws --------------------------------------------------------------------------------------

THEIRS = keras.initializers
PAIRS = {
    "he_normal": THEIRS.HeNormal(1),
    "glorot_uniform": THEIRS.GlorotUniform(1),
    "lecun_normal": THEIRS.LecunNormal(1),
    "variance_scaling": THEIRS.VarianceScaling(1.0, "fan_in", "truncated_normal", 1),
}


@pytest.mark.parametrize("shape", [(3, 3, 60, 80), (300, 200), (30_000,)])
@pytest.mark.parametrize("name", PAIRS)
def test_laws_and_fans_are_keras_s(name, shape):
    sample, theirs = (init(shape).double().flatten().numpy() for init in (Initializer(name, seed=1), PAIRS[name]))
    assert stats.ks_2samp(sample, theirs).pvalue > ALPHA
    assert stats.ks_2samp(1.1 * sample, theirs).pvalue < ALPHA  # the twin: 10 % wider


def test_orthogonal_and_scalars():
    kernel = Initializer("orthogonal", seed=1)((3, 3, 4, 8)).double().reshape(-1, 8)
    assert torch.allclose(kernel.t() @ kernel, torch.eye(8).double(), atol=1e-5)
    assert Initializer("he_normal", seed=1)(()).shape == ()
    assert Initializer("identity")((3, 3), "bfloat16").float().trace() == 3
