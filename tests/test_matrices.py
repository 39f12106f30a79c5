"""orthogonal_, sparse_, dirac_ and eye_ against their definitions and torch's."""

from __future__ import annotations

import math

import pytest
import torch
from common import FLOAT8, FLOATS, bits, name_of, same_bits
from scipy import stats

import fastinit
from fastinit import Stream
from fastinit.kernels.formats import FORMATS

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


def test_orthogonal_is_as_accurate_as_torchs():
    ours = off_orthogonal(fastinit.orthogonal_(torch.empty(500, 500)).double())
    theirs = off_orthogonal(torch.nn.init.orthogonal_(torch.empty(500, 500)).double())
    assert ours < 2 * theirs


def haar_p_values(orthogonal) -> tuple[float, float]:
    """Traces of Haar-distributed 20 x 20 matrices are nearly N(0, 1); first entries follow a beta law."""
    matrices = [orthogonal() for _ in range(2000)]
    traces = torch.stack([torch.trace(m) for m in matrices]).numpy()
    entries = torch.stack([m[0, 0] for m in matrices]).double().numpy()
    by_trace = stats.kstest(traces, "norm").pvalue
    # For n dimensions (1 + x) / 2 is Beta((n - 1) / 2, (n - 1) / 2).
    by_entry = stats.kstest((1 + entries) / 2, stats.beta(9.5, 9.5).cdf).pvalue
    return by_trace, by_entry


def test_orthogonal_is_haar_distributed():
    for p_value in haar_p_values(lambda: fastinit.orthogonal_(torch.empty(20, 20))):
        assert p_value > ALPHA


def test_the_haar_test_sees_missing_signs():
    """The twin: QR without the signs that make it unique."""
    assert min(haar_p_values(lambda: torch.linalg.qr(torch.randn(20, 20))[0])) < ALPHA


def test_orthogonal_in_other_layouts():
    turned = torch.empty(30, 20).t()
    assert torch.equal(fastinit.orthogonal_(turned, stream=Stream(1)), orthogonal_20_30())
    last = torch.empty(4, 3, 2, 2, memory_format=torch.channels_last)
    fastinit.orthogonal_(last, stream=Stream(1))
    assert off_orthogonal(last.reshape(4, -1)) < 1e-5


def orthogonal_20_30():
    return fastinit.orthogonal_(torch.empty(20, 30), stream=Stream(1))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.999, 1.0, 1.5, -0.2])
def test_sparse_has_torchs_number_of_zeros(sparsity):
    ours = fastinit.sparse_(torch.empty(37, 50), sparsity)
    theirs = torch.nn.init.sparse_(torch.empty(37, 50), sparsity)
    assert ((ours == 0).sum(0) == (theirs == 0).sum(0)).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_sparse_keeps_the_normal_samples_elsewhere(dtype):
    stream = Stream(4)
    full = fastinit.normal_(torch.empty(64, 30, dtype=dtype), 0.0, 0.01, stream=stream)
    sparse = fastinit.sparse_(torch.empty(64, 30, dtype=dtype), 0.25, stream=stream)
    # The same places in every dtype: told by float32, where no sample rounds to zero as some of float8's do.
    kept = fastinit.sparse_(torch.empty(64, 30), 0.25, stream=stream) != 0
    assert (~kept).sum(0).unique().tolist() == [16]
    assert (bits(sparse)[~kept] == 0).all()
    assert same_bits(sparse[kept], full[kept])
    assert (full.double()[kept] != 0).any()
    turned = fastinit.sparse_(torch.empty(30, 64, dtype=dtype).t(), 0.25, stream=stream)
    assert same_bits(turned, sparse)


def test_sparse_zeros_are_the_smallest_words_of_the_child_stream():
    stream = Stream(4, 5)
    words = fastinit.bits_(torch.empty(40, 7, dtype=torch.int32), stream=stream.child("zeros")).long() & 0xFFFFFFFF
    sparse = fastinit.sparse_(torch.empty(40, 7), 0.3, stream=stream)
    for column in range(7):
        smallest = set(words[:, column].argsort()[:12].tolist())
        assert set((sparse[:, column] == 0).nonzero().flatten().tolist()) == smallest


def test_sparse_zeros_are_uniform_over_rows():
    zeros = (fastinit.sparse_(torch.empty(20, 20_000), 0.5) == 0).sum(1)
    # Each row's count has variance n/4 * (1 - 1/20)/(1 - 1/20): hypergeometric columns, independent of each other.
    chi_square = ((zeros - 10_000).double() ** 2 / 5_000).sum().item() * 19 / 20
    assert ALPHA / 2 < stats.chi2.sf(chi_square, 19) < 1 - ALPHA / 2


def test_sparse_goes_through_parts(monkeypatch):
    expected = fastinit.sparse_(torch.empty(50, 40), 0.5, stream=Stream(1))
    monkeypatch.setattr("fastinit.matrices.SPARSE_PART", 130)
    assert same_bits(fastinit.sparse_(torch.empty(50, 40), 0.5, stream=Stream(1)), expected)


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

    from fastinit import matrices
    from fastinit.laws import Normal

    def calls(function) -> int:
        with Count() as count:
            function()
        return count.calls

    def sparse(columns):
        return lambda: matrices.sparse(torch.empty(9, columns), 3, Normal(0, 1), None, None, Stream(1))

    assert calls(sparse(10)) == calls(sparse(500))
    small, large = ((lambda n=n: matrices.dirac(torch.empty(n, n, 3), 2)) for n in (4, 400))
    assert calls(small) == calls(large) < 60


def test_gain_and_standard_deviation():
    sparse = fastinit.sparse_(torch.empty(400, 400), 0.5, std=3.0)
    assert math.isclose(sparse[sparse != 0].std(), 3.0, rel_tol=0.02)
    assert math.isclose(fastinit.orthogonal_(torch.empty(30, 30), gain=-1.5).norm(), 1.5 * math.sqrt(30), rel_tol=1e-5)
