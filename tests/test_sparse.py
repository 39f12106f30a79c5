"""sparse_: its definition, the way by torch's operations, the way by kernels, and each of these kernels alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from common import FLOATS, bits, name_of, same_bits
from hypothesis import given, settings, strategies as some
from scipy import stats

import fastinit
from fastinit import Stream, engines, sparsity
from fastinit.engines import load
from fastinit.kernels import cpu
from fastinit.kernels.cpu import kernel
from fastinit.kernels.forms import ABREAST, CLEAR, COLLECT, SAME_SIZE, SELECTIONS
from fastinit.sparsity import LAST, Choice, Drawn, new_words, unsigned

ALPHA = 1e-4


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
    assert same_bits(sparse[kept], full[kept])
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
        self.words = words
        self.rows, self.columns = words.shape

    def box(self, out, row, column):
        return out.copy_(self.words[row : row + out.shape[0], column : column + out.shape[1]])


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
    """All at once, and in pieces of so many words, of 64 columns."""
    if request.param is not None:
        monkeypatch.setattr(sparsity, "PIECE", request.param)
        monkeypatch.setattr(sparsity, "PART", request.param)
        monkeypatch.setattr(sparsity, "STRIP", 64)


@pytest.mark.parametrize("distinct", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_by_order_among_equal_words_the_first_rows_are_zeros(distinct, shape, pieces):
    rows, columns = shape
    for zeros in some_numbers_of_zeros(rows):
        words = tied_words(shape, distinct, seed=zeros)
        expected = smallest_by_definition(words, zeros)
        for top, left in {(0, 0), (rows // 3, columns // 2)}:
            local = torch.ones(rows - top - rows // 4, columns - left)
            sparsity.zero_by_order(local, top, left, zeros, Table(words))
            assert torch.equal(local == 0, expected[top : top + local.shape[0], left:])


def chosen_by_kernels(words: torch.Tensor, zeros: int, least: int, greatest: int, room: int) -> torch.Tensor:
    """What `Choice` makes of the lists that the kernel would give it."""
    numbers = unsigned(words)
    places = np.full((words.shape[1], room), LAST, np.uint32)
    inside = (least <= numbers) & (numbers <= greatest)
    for column, these in enumerate(inside.T):
        found = numbers[these, column]
        places[column, : len(found[:room])] = found[:room]
    choice = Choice(zeros, np.zeros(words.shape[1], np.uint32), lambda column: words[:, column])
    choice.settle(0, (numbers < least).sum(0), inside.sum(0), places)
    chosen = torch.from_numpy(numbers < choice.bounds)
    for row, column in choice.more:
        assert not chosen[row, column]
        chosen[row, column] = True
    return chosen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("distinct", [1, 2, 7, None])
def test_by_kernels_among_equal_words_the_first_rows_are_zeros(distinct, shape):
    """Whatever the window, also one that misses, or whose words need more room than there is."""
    rows, _ = shape
    for zeros in some_numbers_of_zeros(rows):
        words = tied_words(shape, distinct, seed=zeros) if distinct else torch.randint(-(2**31), 2**31, shape).int()
        expected = smallest_by_definition(words, zeros)
        right = sparsity.window(rows, zeros)
        for window in (right, (right.least, right.greatest, 2), (0, LAST - 1, rows + 1), (5, 5, 3), (1, 2**31, 9)):
            assert torch.equal(chosen_by_kernels(words, zeros, *window), expected), window


def test_the_definition_sees_the_last_of_equal_words_chosen():
    """The twin: the last rows in place of the first ones."""
    words = tied_words((64, 64), 2)
    assert not torch.equal(smallest_by_definition(words.flip(0), 30).flip(0), smallest_by_definition(words, 30))


# --- the way by kernels ------------------------------------------------------------------------


@pytest.fixture(params=["found", "missed", "no room"])
def windows(request, monkeypatch):
    """As they are, and such that each column's bound must be found in another way."""
    if request.param != "found":
        right = sparsity.window
        monkeypatch.setattr(
            sparsity,
            "window",
            lambda rows, zeros: (
                right(rows, zeros)._replace(least=7, greatest=9)
                if request.param == "missed"
                else right(rows, zeros)._replace(room=2)
            ),
        )


@pytest.mark.parametrize("rows", [1, 2, 30, 700])
@pytest.mark.parametrize(("columns", "left", "width"), [(1, 0, 1), (130, 0, 130), (131, 1, 129), (700, 65, 300)])
def test_kernels_choose_what_the_definition_does(rows, columns, left, width, pieces, windows):
    words = Drawn(load("cpu"), Stream(3, 4), rows, columns)
    for zeros in some_numbers_of_zeros(rows):
        for top, height in {(0, rows), (rows // 3, rows // 2)}:
            by_kernels, by_order = torch.ones(height, width), torch.ones(height, width)
            sparsity.zero_by_kernels(by_kernels, top, left, zeros, words)
            sparsity.zero_by_order(by_order, top, left, zeros, words)
            assert torch.equal(by_kernels, by_order)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_zeros_have_no_bits_in_any_dtype_and_layout(dtype, pieces):
    words = Drawn(load("cpu"), Stream(3, 4), 90, 70)
    expected = torch.ones(90, 70)
    sparsity.zero_by_order(expected, 0, 0, 40, words)
    for way, whole, view in itertools.product(
        (sparsity.zero_by_kernels, sparsity.zero_by_order),
        (torch.empty(90 * 70 * 2 * 3, dtype=dtype),),
        (
            lambda whole: whole[1:6301].view(90, 70),
            lambda whole: whole[1:6301].view(70, 90).t(),
            lambda whole: whole.view(180, 210)[::2, ::3],
            lambda whole: whole.view(90, 420)[:, 5:75],
        ),
    ):
        untouched = whole.copy_(torch.full(whole.shape, -1.5)).clone()
        local = view(whole)
        way(local, 0, 0, 40, words)
        assert torch.equal(bits(local) == 0, expected == 0)
        local.copy_(torch.full(local.shape, -1.5))
        assert same_bits(whole, untouched)


@pytest.mark.parametrize("engine", ["reference", "eager", "staged"])
def test_every_engine_chooses_the_same_zeros(engine, monkeypatch):
    expected = fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6))
    ways = []
    by_order = sparsity.zero_by_order
    monkeypatch.setattr(sparsity, "zero_by_order", lambda *arguments: ways.append(by_order(*arguments)))
    if engine == "staged":  # as for a device that has no engine of its own
        staged = engines.StagedEngine(load("cpu"))
        monkeypatch.setattr(engines, "choose", lambda *arguments: staged)
        assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)
    else:
        with fastinit.use_engine(engine):
            assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)
    assert len(ways) == 1


def test_without_its_kernels_it_goes_by_order(monkeypatch):
    """Where Numba is broken and only the laws' kernels are on disk; nothing is lost by having begun."""
    right, asked = cpu.kernel, []

    def only_laws(*wanted):
        asked.append(wanted)
        if wanted in SELECTIONS:
            raise ImportError("no such kernel")
        return right(*wanted)

    expected = fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6))
    monkeypatch.setattr(cpu, "kernel", only_laws)
    monkeypatch.setattr(engines, "_told", set())
    with pytest.warns(RuntimeWarning, match="no such kernel"):
        assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)
    assert COLLECT in asked
    with pytest.raises(RuntimeError, match="a kernel is missing, and it cannot be compiled: no such kernel"):
        fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6), fast=True)


def test_windows_hold_what_they_are_for():
    """Of 6000 columns one or none is missed; the twin: a narrower window misses many."""
    sizes = [(1, 1), (2, 1), (10, 1), (4096, 1), (4096, 410), (4096, 2048), (4096, 4095), (100_000, 20_000)]
    generator = np.random.default_rng(5)
    for rows, zeros in sizes:
        # The word number `zeros` of `rows` uniform ones, and how many lie in the window.
        words = generator.beta(zeros, rows - zeros + 1, 6000) * 2**32
        least, greatest, room = sparsity.window(rows, zeros)
        inside = generator.binomial(rows, (greatest - least) / 2**32, 6000)
        missed = (words < least) | (words > greatest) | (inside >= room)
        assert missed.sum() <= 4, (rows, zeros)
        if rows > 1000 and zeros > 1000:
            narrow = (least * 3 + greatest) // 4, (least + greatest * 3) // 4
            assert ((words < narrow[0]) | (words > narrow[1])).sum() > 100
            assert room < rows / 10


# --- the kernels alone -------------------------------------------------------------------------


def words_of(first, columns, rows, width) -> np.ndarray:
    out = torch.empty(rows, width, dtype=torch.int32)
    load("cpu").fill(out, fastinit.kernels.engine.Draw("words", (), 8, 9), first, (columns, 1))
    return unsigned(out)


boxes = some.tuples(some.integers(0, 2**40), some.integers(0, 300), some.integers(1, 9), some.integers(1, 600))
limits = some.one_of(some.integers(0, LAST), some.sampled_from([0, 1, LAST - 1, LAST]))


@given(boxes, limits, limits, some.integers(1, 12))
@settings(deadline=None)
def test_collect(box, one, other, room):
    first, more, rows, width = box
    columns, least, greatest = width + more, min(one, other), max(one, other)
    words = words_of(first, columns, rows, width)
    counts, places = new_words(2, width + 2 * ABREAST), new_words(width + 1, room)
    counts[1].fill_(3)
    unsigned(places).fill(77)
    counts[1, ABREAST:-ABREAST] = 0
    below, inside = (line[ABREAST:].data_ptr() for line in counts)
    head = (first, columns, rows, width, 8, 9)
    assert kernel(*COLLECT)(*head, least, greatest, below, inside, places.data_ptr(), room) is None
    between = (least <= words) & (words <= greatest)
    assert (counts[0, ABREAST:-ABREAST].numpy() == (words < least).sum(0)).all()
    assert (counts[1, ABREAST:-ABREAST].numpy() == between.sum(0)).all()
    assert (counts[1, :ABREAST] == 3).all()
    assert (counts[1, -ABREAST:] == 3).all()
    for column in range(width):
        found = words[between[:, column], column]
        kept = found if len(found) <= room else np.append(found[: room - 1], found[-1])
        assert (unsigned(places)[column, : len(kept)] == kept).all()
        assert (unsigned(places)[column, len(kept) :] == 77).all()
    assert (unsigned(places)[-1] == 77).all()


@given(boxes, some.sampled_from([1, 2, 4, 8]), some.booleans(), some.integers(0, 3), some.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_clear(box, size, turned, apart, seed):
    first, more, rows, width = box
    columns = width + more
    words = words_of(first, columns, rows, width)
    generator = np.random.default_rng(seed)
    bounds = new_words(width + 2 * ABREAST)
    limits = unsigned(bounds[ABREAST:-ABREAST])
    limits[:] = generator.integers(0, 2**32, width) * generator.integers(0, 2, width)
    limits[generator.integers(0, width)] = LAST
    whole = torch.full((rows + 2, width + 2 + apart), -1, dtype=SAME_SIZE[size])
    if turned:
        whole = whole.t().contiguous().t()
    step = 1 + (apart == 3)
    local = whole[1 : rows + 1, 1 : 1 + width : step]
    count = local.shape[1]
    down, across = (stride * size for stride in local.stride())
    place = (bounds[ABREAST:].data_ptr(), local.data_ptr(), down, across)
    assert kernel(*CLEAR[size])(first, columns, rows, count, 8, 9, *place) is None
    expected = np.where(words[:, :count] < limits[:count], 0, -1)
    assert (local.numpy() == expected).all()
    local.fill_(-1)
    assert (whole == -1).all()


def test_selection_kernels_refuse_what_is_no_number():
    for wanted, count in ((COLLECT, 12), (CLEAR[4], 10)):
        with pytest.raises(TypeError):
            kernel(*wanted)(*["1"] * count)
        with pytest.raises(TypeError):
            kernel(*wanted)(*[0] * (count - 1))
        with pytest.raises(TypeError):
            kernel(*wanted)(*[0] * count, ())
