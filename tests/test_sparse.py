"""sparse_: its definition, and both ways to it."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from common import FLOATS, bits, fresh_python, name_of, same_bits
from scipy import stats

import fastinit
from fastinit import Stream
from fastinit.drawing import engines, tell
from fastinit.drawing.engines import load
from fastinit.initialisers import columns as sparsity
from fastinit.initialisers.columns import SAME_SIZE, Drawn
from fastinit.kernels.contract import KernelMissing
from fastinit.kernels.cpu import loading as cpu

ALPHA = 1e-4
LAST = 2**32 - 1  # the greatest word


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.999, 1.0, 1.5, -0.2])
def test_sparse_has_torchs_number_of_zeros(ratio):
    ours = fastinit.sparse_(torch.empty(37, 50), ratio)
    theirs = torch.nn.init.sparse_(torch.empty(37, 50), ratio)
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
    assert torch.equal(bits(sparse)[kept], bits(full)[kept])
    assert (full.double()[kept] != 0).any()
    turned = fastinit.sparse_(torch.empty(30, 64, dtype=dtype).t(), 0.25, stream=stream)
    assert same_bits(turned, sparse)


def test_sparse_zeros_are_the_smallest_words_of_the_child_stream():
    stream = Stream(4, 5)
    words = fastinit.bits_(torch.empty(40, 7, dtype=torch.int32), stream=stream.child("zeros")).long() & LAST
    sparse = fastinit.sparse_(torch.empty(40, 7), 0.3, stream=stream)
    for column in range(7):
        smallest = set(words[:, column].argsort()[:12].tolist())
        assert set((sparse[:, column] == 0).nonzero().flatten().tolist()) == smallest


def off_uniform(zeros: torch.Tensor) -> float:
    """The p-value of the zeros of 20 rows being spread evenly over them, ten in each column."""
    counts = zeros.sum(1).double()
    expected = counts.sum() / 20
    # Their sum is fixed: the sum of squares is 20/19 chi-square with 19.
    return float(stats.chi2.sf(((counts - expected) ** 2 / (expected / 2)).sum().item() * 19 / 20, 19))


def test_sparse_zeros_are_uniform_over_rows():
    zeros = fastinit.sparse_(torch.empty(20, 20_000), 0.5) == 0
    assert (zeros.sum(0) == 10).all()
    assert ALPHA / 2 < off_uniform(zeros) < 1 - ALPHA / 2


def test_zeros_that_prefer_a_row_are_seen():
    """The twin: in one column of ten the first row's element is a zero in place of another."""
    zeros = torch.rand(20, 20_000, generator=torch.Generator().manual_seed(1)).argsort(0) < 10
    assert ALPHA / 2 < off_uniform(zeros) < 1 - ALPHA / 2
    preferred = zeros.clone()
    moved = torch.arange(0, 20_000, 10)[~zeros[0, ::10]]
    preferred[0, moved] = True
    preferred[zeros.int().argmax(0)[moved], moved] = False
    assert (preferred.sum(0) == 10).all()
    assert off_uniform(preferred) < ALPHA / 2


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 4), (6, 4)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_sparse_with_no_kept_or_no_elements(shape, dtype):
    tensor = fastinit.sparse_(torch.ones(shape, dtype=dtype), 1.0)
    assert (bits(tensor) == 0).all()
    if 0 not in shape:
        box = fastinit.shard(torch.ones(0, shape[1], dtype=dtype), shape, (1, 0))
        assert fastinit.sparse_(box, 0.5) is box


# --- equal words -------------------------------------------------------------------------------

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (64, 64), (130, 70), (300, 9), (33, 200)]


class Table:
    """Words that a test has made, in place of a stream's."""

    def __init__(self, words: torch.Tensor) -> None:
        self.words, self.engine = words, load("cpu")
        self.rows, self.columns = words.shape

    def box(self, out, row, column):
        return out.copy_(self.words[row : row + out.shape[0], column : column + out.shape[1]])


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int32)


def unsigned(words: torch.Tensor) -> np.ndarray:
    return words.numpy().view(np.uint32)


def tied_words(shape, distinct, seed=0) -> torch.Tensor:
    """Words of which only a few are distinct; the least and the greatest unsigned numbers among them."""
    values = torch.tensor([0, -1, 1, -(1 << 31), (1 << 31) - 1, -2, 5])[:distinct]
    drawn = torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))
    return values[drawn].int()


def smallest_by_definition(words: torch.Tensor, zeros: int) -> torch.Tensor:
    order = (words.long() & LAST).sort(dim=0, stable=True).indices
    return torch.zeros(words.shape, dtype=torch.bool).scatter_(0, order[:zeros], True)


def some_numbers_of_zeros(rows: int) -> list[int]:
    return sorted({1, rows // 10, rows // 2, rows - 1} - {0, rows})


@pytest.fixture(params=[None, 1000, 130])
def pieces(request, monkeypatch):
    """All at once, and in pieces of so many words."""
    if request.param is not None:
        monkeypatch.setattr(sparsity, "PART", request.param)


BY_ENGINES = {"partition": sparsity.zero_by_partition, "order": sparsity.zero_by_order}


@pytest.mark.parametrize("way", BY_ENGINES)
@pytest.mark.parametrize("distinct", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_among_equal_words_the_first_rows_are_zeros(way, distinct, shape, pieces):
    rows, columns = shape
    for zeros in some_numbers_of_zeros(rows):
        words = tied_words(shape, distinct, seed=zeros)
        expected = smallest_by_definition(words, zeros)
        for top, left in {(0, 0), (rows // 3, columns // 2)}:
            bits = ones(rows - top - rows // 4, columns - left)
            BY_ENGINES[way](bits, top, left, zeros, Table(words))
            assert torch.equal(bits == 0, expected[top : top + bits.shape[0], left:])


def test_the_definition_sees_the_last_of_equal_words_chosen():
    """The twin: the last rows in place of the first ones."""
    words = tied_words((64, 64), 2)
    assert not torch.equal(smallest_by_definition(words.flip(0), 30).flip(0), smallest_by_definition(words, 30))


# --- both ways ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 30, 700])
@pytest.mark.parametrize(("columns", "left", "width"), [(1, 0, 1), (130, 0, 130), (131, 1, 129), (700, 65, 300)])
def test_every_way_chooses_what_the_definition_does(rows, columns, left, width, pieces):
    for zeros, (top, height) in itertools.product(some_numbers_of_zeros(rows), {(0, rows), (rows // 3, rows // 2)}):
        drawn = []
        for way in BY_ENGINES.values():
            drawn.append(ones(height, width))
            way(drawn[-1], top, left, zeros, Drawn(load("cpu"), Stream(3, 4), rows, columns))
        assert torch.equal(*drawn)


VIEWS = {
    "whole": lambda whole: whole[1:6301].view(90, 70),
    "transposed": lambda whole: whole[1:6301].view(70, 90).t(),
    "strided": lambda whole: whole.view(180, 210)[::2, ::3],
    "columns": lambda whole: whole.view(90, 420)[:, 5:75],
}


@pytest.mark.parametrize("way", BY_ENGINES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", SAME_SIZE.values(), ids=str)
def test_only_what_is_chosen_is_cleared(way, view, dtype, pieces):
    words = Drawn(load("cpu"), Stream(3, 4), 90, 70)
    expected = ones(90, 70)
    sparsity.zero_by_order(expected, 0, 0, 40, words)
    whole = torch.full((90 * 70 * 6,), -1, dtype=dtype)
    bits = VIEWS[view](whole)
    BY_ENGINES[way](bits, 0, 0, 40, words)
    assert torch.equal(bits, torch.where(expected == 0, 0, -1).to(dtype))
    bits.fill_(-1)
    assert (whole == -1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_forked_child_can_draw():
    """Torch's OpenMP threads are gone there, and whoever calls on them waits for ever."""
    code = """
import os, signal, torch, fastinit
torch.empty(10**7).fill_(1.0)
tensors = [torch.empty(shape) for shape in ((784, 500), (2, 40000), (10**5, 1), (10**5, 4))]
if (child := os.fork()) == 0:
    signal.alarm(60)
    for tensor in tensors:
        fastinit.sparse_(tensor, 0.3)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert fresh_python(code, "-W", "ignore").split() == ["7"]


@pytest.mark.parametrize("engine", ["reference", "eager", "staged"])
def test_every_engine_chooses_the_same_zeros(engine, monkeypatch):
    expected = fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6))
    if engine == "staged":  # as for a device that has no engine of its own
        staged = engines.StagedEngine(load("cpu"))
        monkeypatch.setattr(engines, "choose", lambda *arguments, **_: staged)
        assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)
    else:
        with fastinit.use_engine(engine):
            assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)


def test_where_a_kernel_is_missing_it_goes_on_without(monkeypatch):
    """Where Numba is broken, and the words' kernel is not on disk."""
    right, asked = cpu.kernel, []

    def no_words(*wanted):
        asked.append(wanted)
        if wanted[0] == "words":
            raise KernelMissing("no such kernel")
        return right(*wanted)

    expected = fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6))
    monkeypatch.setattr(cpu, "kernel", no_words)
    monkeypatch.setattr(tell, "told", set())
    with pytest.warns(RuntimeWarning, match="no such kernel"):
        assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)
    assert "words" in {kind for kind, *_ in asked}
    with pytest.raises(RuntimeError, match="a kernel is missing, and it cannot be compiled: no such kernel"):
        fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6), fast=True)
