"""TensorFlow 1's initialisers: its names, signatures, laws and fans, torch's bits; with TensorFlow and without."""

from __future__ import annotations

import importlib.util
import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import fresh_python
from scipy import stats

from fastinit import Stream, initialisers
from fastinit.frameworks import tensorflow as ours

ALPHA = 1e-4  # the false-alarm rate of each statistical test; seeds are fixed
SHAPE = (64, 48)
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow, whose wheel of 270 MB no extra brings"
)
# Each with its signature in TensorFlow 1.15 and 2.21 (compat.v1), and the value that it means.
CASES = {
    "zeros_initializer": ("(dtype)", initialisers.zeros()),
    "ones_initializer": ("(dtype)", initialisers.ones()),
    "constant_initializer": ("(value=0, dtype, verify_shape=False)", initialisers.constant(0)),
    "random_uniform_initializer": ("(minval=0.0, maxval=None, seed=None, dtype)", initialisers.uniform()),
    "random_normal_initializer": ("(mean=0.0, stddev=1.0, seed=None, dtype)", initialisers.normal()),
    "truncated_normal_initializer": (
        "(mean=0.0, stddev=1.0, seed=None, dtype)",
        initialisers.trunc_normal(bounds="sigma"),
    ),
    "uniform_unit_scaling_initializer": (
        "(factor=1.0, seed=None, dtype)",
        initialisers.uniform_unit_scaling(layout="io"),
    ),
    "variance_scaling_initializer": (
        "(scale=1.0, mode='fan_in', distribution='truncated_normal', seed=None, dtype)",
        initialisers.variance_scaling(layout="io"),
    ),
    "orthogonal_initializer": ("(gain=1.0, seed=None, dtype)", initialisers.orthogonal(column_axis=-1)),
    "glorot_uniform_initializer": ("(seed=None, dtype)", initialisers.glorot_uniform(layout="io")),
    "glorot_normal_initializer": ("(seed=None, dtype)", initialisers.glorot_normal(layout="io")),
}


def numbers(drawn) -> np.ndarray:
    return np.asarray(drawn.numpy() if hasattr(drawn, "numpy") else drawn)


def seeded(name: str, seed: int):
    made = getattr(ours, name)
    return made(seed=seed) if "seed" in inspect.signature(made).parameters else made()


@pytest.mark.parametrize("name", CASES)
def test_an_initializer_has_the_bits_of_a_value(name):
    value = CASES[name][1]
    for dtype in ("float32", "float64", "float16"):
        expected = value(SHAPE, dtype, stream=Stream(7)).numpy()
        for _ in range(2):
            drawn = numbers(seeded(name, 7)(SHAPE, dtype))
            assert drawn.dtype == dtype
            assert drawn.tobytes() == expected.tobytes()
    assert numbers(seeded(name, 7)(SHAPE)).dtype == "float32"


@pytest.mark.parametrize("name", CASES)
def test_signatures_are_tensorflow_s(name):
    parameters = inspect.signature(getattr(ours, name)).parameters.values()
    shown = [p.name if p.name == "dtype" else f"{p.name}={p.default!r}" for p in parameters]
    assert f"({', '.join(shown)})" == CASES[name][0]
    assert inspect.signature(getattr(ours, name)).parameters["dtype"].default == "float32"


@pytest.mark.parametrize("name", [*CASES, "he_normal", "he_uniform", "lecun_normal", "lecun_uniform"])
def test_configurations(name):
    init = seeded(name, 2**64 - 1)
    again = type(init).from_config(json.loads(json.dumps(init.get_config())))
    assert again == init
    assert numbers(again(SHAPE)).tobytes() == numbers(init(SHAPE)).tobytes()
    assert init.get_config()["dtype"] == "float32"


def test_each_class_is_its_own():
    names = ["glorot_uniform_initializer", "glorot_normal_initializer", "he_uniform", "he_normal", "lecun_uniform"]
    classes = [getattr(ours, name) for name in (*names, "lecun_normal")]
    assert len({init(7) for init in classes}) == len({init.__doc__ for init in classes}) == len(classes)
    assert repr(ours.he_normal(7)) == "he_normal(seed=7, dtype='float32')"
    with pytest.raises(TypeError, match=r"he_normal\.__init__"):
        ours.he_normal(scale=2.0)

    class Mine(ours.he_normal):
        pass

    assert numbers(Mine(7)(SHAPE)).tobytes() == numbers(ours.he_normal(7)(SHAPE)).tobytes()


def test_constants():
    assert ours.constant_initializer(np.arange(3.0)).get_config()["value"] == [0.0, 1.0, 2.0]
    assert numbers(ours.constant_initializer([1, 2, 3])((2, 2))).tolist() == [[1, 2], [3, 3]]
    checked = ours.constant_initializer([1, 2], verify_shape=True)
    assert numbers(checked((2,))).tolist() == [1, 2]
    with pytest.raises(TypeError, match=r"has a value of shape \(2,\), not \(3,\)"):
        checked((3,))


def test_whole_numbers():
    drawn = numbers(ours.random_uniform_initializer(3, 7, seed=1)((500,), "int32"))
    assert drawn.dtype == "int32"
    assert set(drawn.tolist()) == {3, 4, 5, 6}
    assert ours.random_uniform_initializer(0, 5, dtype="int64").get_config()["dtype"] == "int64"
    with pytest.raises(ValueError, match="needs maxval in int32"):
        ours.random_uniform_initializer(dtype="int32")


def test_seeds():
    init = ours.random_normal_initializer()
    assert numbers(init(SHAPE)).tobytes() != numbers(init(SHAPE)).tobytes()
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed lies in"):
            ours.random_normal_initializer(seed=seed)


@pytest.mark.parametrize("name", ["glorot_uniform_initializer", "random_normal_initializer", "orthogonal_initializer"])
def test_a_variable_s_parts_are_parts_of_the_whole(name):
    init = seeded(name, 3)
    whole = numbers(init((12, 10)))
    part = SimpleNamespace(full_shape=[12, 10], var_offset=[4, 0])
    assert (numbers(init((5, 10), partition_info=part)) == whole[4:9]).all()


def test_vectors_have_fans():
    drawn = torch.from_numpy(numbers(ours.glorot_uniform_initializer(seed=1)((500,))))
    assert 0.95 < drawn.max() / (3 / 500) ** 0.5 <= 1


def test_without_tensorflow_arrays_are_numpy_s():
    code = """
import sys
from fastinit.frameworks.tensorflow import glorot_normal_initializer
print(type(glorot_normal_initializer(seed=1)((3, 4))), "tensorflow" in sys.modules)
"""
    assert fresh_python(code) == "<class 'numpy.ndarray'> False\n"


# --- with TensorFlow itself --------------------------------------------------------------------

GRAPHS = """
import numpy, tensorflow as tf
from fastinit import Stream, initialisers
from fastinit.frameworks import tensorflow as ours

v1, init = tf.compat.v1, ours.glorot_uniform_initializer(seed=7)
for dtype in (tf.float32, tf.bfloat16):
    value = initialisers.glorot_uniform(layout="io")((64, 48), dtype, stream=Stream(7)).float().numpy()
    drawn = init((64, 48), dtype)
    assert tf.is_tensor(drawn) and drawn.dtype == dtype
    traced = tf.function(lambda: init((64, 48), dtype))()
    assert traced.dtype == dtype
    for tensor in (drawn, traced):
        assert (tf.cast(tensor, tf.float32).numpy() == value).all()
value = init((64, 48)).numpy()
with tf.Graph().as_default(), v1.Session() as session:
    plain = v1.get_variable("plain", (64, 48), initializer=init)
    parts = v1.get_variable("parts", (64, 48), initializer=init, partitioner=v1.fixed_size_partitioner(4))
    unseeded = v1.get_variable("unseeded", (64, 48), initializer=ours.random_normal_initializer())
    assert plain.shape == (64, 48)
    seen = []
    for _ in range(2):
        session.run(v1.global_variables_initializer())
        assert (session.run(plain) == value).all()
        assert (session.run(tf.convert_to_tensor(parts)) == value).all()
        seen.append(session.run(unseeded))
    assert (seen[0] != seen[1]).any()
runs = []
for _ in range(2):
    tf.random.set_seed(1)
    runs.append([ours.random_normal_initializer()((9,)).numpy() for _ in range(2)])
assert (runs[0][0] == runs[1][0]).all() and (runs[0][1] == runs[1][1]).all() and (runs[0][0] != runs[0][1]).any()
layer = tf.keras.layers.Dense(3, kernel_initializer=init)
layer.build((None, 5))
assert (layer.kernel.numpy() == init((5, 3)).numpy()).all()
print("right")
"""


@needs_tensorflow
def test_graphs_functions_and_variables():
    assert fresh_python(GRAPHS).endswith("right\n")


SAMPLES = """
import sys
import numpy, tensorflow as tf
tf.random.set_seed(1)
for name in sys.argv[2:]:
    numpy.save(f"{sys.argv[1]}/{name}.npy", getattr(tf.compat.v1, name)()((3, 3, 60, 80)).numpy())
"""


@needs_tensorflow
def test_laws_and_fans_are_tensorflow_s(tmp_path):
    names = [name for name in CASES if "seed" in inspect.signature(getattr(ours, name)).parameters]
    fresh_python(f"import sys; sys.argv = {['', str(tmp_path), *names]!r}\n{SAMPLES}")
    for name in names:
        sample = numbers(seeded(name, 1)((3, 3, 60, 80))).ravel()
        theirs = np.load(tmp_path / f"{name}.npy").ravel()
        assert stats.ks_2samp(sample, theirs).pvalue > ALPHA, name
        assert stats.ks_2samp(1.1 * sample, theirs).pvalue < ALPHA, name  # the twin: 10 % wider
