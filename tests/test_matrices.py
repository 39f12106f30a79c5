"""orthogonal_, sparse_, dirac_ and eye_ against their definitions and torch's."""

from __future__ import annotations

import math

import pytest
import torch
from common import FLOAT8, FLOATS, name_of, same_bits
from scipy import stats

import fastinit
from fastinit import Stream
from fastinit.initialisers import matrices
from fastinit.initialisers.matrices import reflections
from fastinit.kernels.dtypes import FORMATS

ALPHA = 1e-4


def off_orthogonal(matrix: torch.Tensor) -> float:
    rows, columns = matrix.shape
    gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    return (gram - torch.eye(gram.shape[0], dtype=matrix.dtype)).abs().max().item()


@pytest.mark.parametrize("shape", [(50, 50), (80, 30), (30, 80), (20, 5, 7), (1, 1), (1, 9)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_orthogonal_is_orthogonal(shape, dtype):
    tensor = fastinit.orthogonal_(torch.empty(shape, dtype=dtype), gain=2.0, stream=Stream(1))
    matrix = tensor.double().view(shape[0], -1) / 2
    # Rounding moves unit columns by 2^-precision of their length, so their products by twice that.
    assert off_orthogonal(matrix) < {torch.float64: 1e-13, torch.float32: 3e-6}.get(
        dtype, 2.5 * 2.0 ** -FORMATS[dtype].precision
    )
    if FORMATS[dtype].rounding is not None:
        full = fastinit.orthogonal_(torch.empty(shape), gain=2.0, stream=Stream(1))
        assert same_bits(tensor, full.to(dtype))


@pytest.mark.parametrize("shape", [(500, 500), (1000, 1000), (1000, 300), (300, 1000)], ids=str)
def test_orthogonal_is_as_accurate_as_torchs(shape):
    ours = off_orthogonal(fastinit.orthogonal_(torch.empty(shape)).double())
    theirs = off_orthogonal(torch.nn.init.orthogonal_(torch.empty(shape)).double())
    assert ours < 2 * theirs


@pytest.fixture
def one_thread():
    """For thousands of small matrices: on a busy machine torch's threads wait for each other 10 ms a call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


HAAR_SHAPES = [(20, 20), (20, 6), (6, 20)]


def haar_p_values(orthogonal, shape=(20, 20)) -> list[float]:
    """How likely matrices of `shape` are so far from Haar's measure: four tests, so ALPHA is for each of them."""
    matrices = torch.stack([orthogonal(torch.empty(shape)) for _ in range(2000)]).double()
    long, short = max(shape), min(shape)
    # Traces are nearly normal, with a variance of short / long.
    traces = matrices.diagonal(dim1=1, dim2=2).sum(1) / math.sqrt(short / long)
    # Of a unit vector of n elements each is 2 x - 1, with x from Beta((n - 1) / 2, (n - 1) / 2).
    beta = stats.beta((long - 1) / 2, (long - 1) / 2).cdf
    p_values = [stats.kstest(traces.numpy(), "norm").pvalue]
    p_values += [
        stats.kstest(((1 + entry) / 2).numpy(), beta).pvalue for entry in (matrices[:, 0, 0], matrices[:, -1, -1])
    ]
    if long == short:  # as many reflections as rotations
        p_values.append(fair(matrices.det() > 0))
    return p_values


def fair(heads: torch.Tensor) -> float:
    return stats.binomtest(int(heads.sum()), heads.numel()).pvalue


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("shape", HAAR_SHAPES, ids=str)
def test_orthogonal_is_haar_distributed(shape):
    assert min(haar_p_values(fastinit.orthogonal_, shape)) > ALPHA


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("shape", HAAR_SHAPES, ids=str)
def test_the_haar_test_sees_missing_signs(shape, monkeypatch):
    """The twin: reflections without the signs that make the distribution Haar's."""
    monkeypatch.setattr(matrices, "reflections", lambda vectors: without_signs(reflections(vectors)))
    assert min(haar_p_values(fastinit.orthogonal_, shape)) < ALPHA


def without_signs(found: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones_like(found[0]), found[1]


@pytest.mark.usefixtures("one_thread")
def test_the_haar_test_sees_a_last_column_without_a_sign_of_its_own():
    """The other twin: the last reflection of a square matrix left out, so that every matrix is a rotation."""

    def rotation(tensor):
        matrix = fastinit.orthogonal_(tensor)
        matrix[:, -1] *= matrix.det().sign()
        return matrix

    assert haar_p_values(rotation)[-1] < ALPHA


@pytest.mark.usefixtures("one_thread")
def test_small_orthogonal_matrices_are_exactly_haar_distributed():
    """Of O(1) both elements are equally likely; O(2) has a uniform angle and, independent of it, a fair determinant."""
    assert fair(torch.stack([fastinit.orthogonal_(torch.empty(1, 1)) for _ in range(2000)]) > 0) > ALPHA
    matrices = torch.stack([fastinit.orthogonal_(torch.empty(2, 2)) for _ in range(4000)]).double()
    angles = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]) / (2 * math.pi) + 0.5
    turns = matrices.det() > 0
    assert fair(turns) > ALPHA
    for part in (angles[turns], angles[~turns]):
        assert stats.kstest(part.numpy(), "uniform").pvalue > ALPHA


@pytest.mark.parametrize("shape", [(7, 7), (4, 9), (1, 1), (1, 5)], ids=str)
def test_reflections_take_each_vector_to_its_unit_vector(shape):
    vectors = fastinit.normal_(torch.empty(shape, dtype=torch.float64), stream=Stream(2))
    made = vectors.clone()
    signs, scales = reflections(made)
    product = torch.eye(shape[1], dtype=torch.float64)
    for k in range(shape[0]):
        v = torch.cat([torch.zeros(k), torch.ones(1), made[k, k + 1 :]])
        reflection = torch.eye(shape[1], dtype=torch.float64) - scales[k] * torch.outer(v, v)
        expected = torch.zeros(shape[1], dtype=torch.float64)
        expected[k] = signs[k] * vectors[k, k:].norm()
        assert torch.allclose(reflection @ vectors[k].index_fill(0, torch.arange(k), 0), expected, atol=1e-14)
        product = product @ reflection
    ours = fastinit.orthogonal_(torch.empty(shape, dtype=torch.float64), stream=Stream(2))
    assert torch.allclose(ours, (product[:, : shape[0]] * signs).T, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 5), (4, 7), (7, 4)], ids=str)
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_vectors_of_zeros_reflect_nothing(shape, kept, monkeypatch):
    """Samples may be 0. All that are not in the first `kept` columns are 0 here; no sign changes then."""
    monkeypatch.setattr(matrices, "fill", lambda vectors, *_, **__: vectors.zero_()[:, :kept].fill_(-0.5))
    tensor = fastinit.orthogonal_(torch.empty(shape))
    assert off_orthogonal(tensor) < 1e-6
    if kept == 0:
        assert torch.equal(tensor, torch.eye(*shape))


def test_orthogonal_in_other_layouts():
    turned = torch.empty(30, 20).t()
    assert torch.equal(fastinit.orthogonal_(turned, stream=Stream(1)), orthogonal_20_30())
    last = torch.empty(4, 3, 2, 2, memory_format=torch.channels_last)
    fastinit.orthogonal_(last, stream=Stream(1))
    assert off_orthogonal(last.reshape(4, -1)) < 1e-5


def orthogonal_20_30():
    return fastinit.orthogonal_(torch.empty(20, 30), stream=Stream(1))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8, 3, 5), (4, 8, 3, 3), (8, 2, 2, 4, 3), (4, 0, 3)], ids=str)
def test_dirac_equals_torchs(shape, groups):
    ours, theirs = torch.full(shape, 7.0), torch.full(shape, 7.0)
    assert torch.equal(fastinit.dirac_(ours, groups), torch.nn.init.dirac_(theirs, groups))
    turned = torch.full(tuple(reversed(shape)), 7.0).permute(*reversed(range(len(shape))))
    assert torch.equal(fastinit.dirac_(turned, groups), theirs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float16, *FLOAT8], ids=str)
def test_dirac_and_eye_in_any_dtype(dtype):
    assert same_bits(
        fastinit.dirac_(torch.ones(4, 4, 3).to(dtype)), torch.nn.init.dirac_(torch.ones(4, 4, 3).to(dtype))
    )
    whole = torch.nn.init.eye_(torch.ones(3, 5).to(dtype))
    assert same_bits(fastinit.eye_(torch.ones(3, 5).to(dtype)), whole)
    part = fastinit.eye_(fastinit.shard(torch.ones(2, 3).to(dtype), (3, 5), (1, 1))).local
    assert same_bits(part, whole[1:, 1:4])


def test_no_loop_over_columns_or_elements():
    """Twice the columns or channels must not mean twice the torch calls."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    def calls(function) -> int:
        with Count() as count:
            function()
        return count.calls

    def sparse(columns):
        return lambda: matrices.sparse(torch.empty(9, columns), 0.3, 1.0, None, Stream(1), False)

    sparse(10)()  # loads the engine, which tries it
    assert calls(sparse(10)) == calls(sparse(400))  # by NumPy
    assert calls(sparse(500)) == calls(sparse(5000))  # by kernels
    small, large = ((lambda n=n: matrices.dirac(torch.empty(n, n, 3), 2)) for n in (4, 400))
    assert calls(small) == calls(large) < 60


def test_gain_and_standard_deviation():
    sparse = fastinit.sparse_(torch.empty(400, 400), 0.5, std=3.0)
    assert math.isclose(sparse[sparse != 0].std(), 3.0, rel_tol=0.02)
    assert math.isclose(fastinit.orthogonal_(torch.empty(30, 30), gain=-1.5).norm(), 1.5 * math.sqrt(30), rel_tol=1e-5)
