"""sparse_: its definition, the way by torch's operations, the way by kernels, and each of these kernels alone."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from common import FLOATS, bits, name_of, python, same_bits
from hypothesis import given, settings, strategies as some
from scipy import stats

import fastinit
from fastinit import Stream, engines, sparsity
from fastinit.engines import load
from fastinit.kernels import smallest, threads
from fastinit.kernels.cpu import kernel
from fastinit.kernels.engine import Draw
from fastinit.kernels.forms import ABREAST, CLEAR, COLLECT, SAME_SIZE, SELECTIONS
from fastinit.kernels.smallest import LAST, Lists, Smallest, Window, padded
from fastinit.sparsity import Drawn

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
        self.words = words
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
    """All at once, and in pieces of so many words, of 64 columns."""
    if request.param is not None:
        monkeypatch.setattr(sparsity, "PART", request.param)
        monkeypatch.setattr(smallest, "PIECE", request.param)
        monkeypatch.setattr(smallest, "STRIP", 64)
        monkeypatch.setattr(smallest, "WIDE_STRIP", 64)


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


def chosen_by_kernels(words: torch.Tensor, zeros: int, window: Window) -> torch.Tensor:
    """What `Smallest` makes of the lists that its kernel would give it."""
    numbers = unsigned(words)
    inside = (window.least <= numbers) & (numbers <= window.greatest)
    places = np.full((words.shape[1], window.room), LAST, np.uint32)
    for column, these in enumerate(inside.T):
        found = numbers[these, column]
        places[column, : len(found[: window.room])] = found[: window.room]
    job = Smallest(ones(*words.shape), zeros, *words.shape, 0, 0, 0, 0)
    job.column = lambda number: numbers[:, number].copy()
    counts = ((numbers < window.least).sum(0), inside.sum(0))
    job.settle(0, *(count.astype(np.uint32) for count in counts), places)
    chosen = torch.from_numpy(numbers < job.bounds)
    for row, column in job.more:
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
        right = smallest.window(rows, zeros)
        others = (right._replace(room=2), Window(0, LAST - 1, rows + 1), Window(5, 5, 3), Window(1, 2**31, 9))
        for window in (right, *others):
            assert torch.equal(chosen_by_kernels(words, zeros, window), expected), window


def test_the_definition_sees_the_last_of_equal_words_chosen():
    """The twin: the last rows in place of the first ones."""
    words = tied_words((64, 64), 2)
    assert not torch.equal(smallest_by_definition(words.flip(0), 30).flip(0), smallest_by_definition(words, 30))


# --- the way by kernels ------------------------------------------------------------------------


@pytest.fixture(params=["found", "missed", "no room"])
def windows(request, monkeypatch):
    """As they are, and such that each column's bound must be found in another way."""
    right = smallest.window
    changes = {"found": {}, "missed": {"least": 7, "greatest": 9}, "no room": {"room": 2}}[request.param]
    monkeypatch.setattr(smallest, "window", lambda rows, zeros: right(rows, zeros)._replace(**changes))


@pytest.mark.parametrize("rows", [2, 30, 700])
@pytest.mark.parametrize(("columns", "left", "width"), [(1, 0, 1), (130, 0, 130), (131, 1, 129), (700, 65, 300)])
def test_every_way_chooses_what_the_definition_does(rows, columns, left, width, pieces, windows):
    for zeros, (top, height) in itertools.product(some_numbers_of_zeros(rows), {(0, rows), (rows // 3, rows // 2)}):
        drawn = []
        for way in (sparsity.zero_by_kernels, sparsity.zero_by_partition, sparsity.zero_by_order):
            drawn.append(ones(height, width))
            way(drawn[-1], top, left, zeros, Drawn(load("cpu"), Stream(3, 4), rows, columns))
        assert torch.equal(drawn[0], drawn[2])
        assert torch.equal(drawn[1], drawn[2])


VIEWS = {
    "whole": lambda whole: whole[1:6301].view(90, 70),
    "transposed": lambda whole: whole[1:6301].view(70, 90).t(),
    "strided": lambda whole: whole.view(180, 210)[::2, ::3],
    "columns": lambda whole: whole.view(90, 420)[:, 5:75],
}


@pytest.mark.parametrize("way", ["zero_by_kernels", "zero_by_partition", "zero_by_order"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", SAME_SIZE.values(), ids=str)
def test_only_what_is_chosen_is_cleared(way, view, dtype, pieces):
    words = Drawn(load("cpu"), Stream(3, 4), 90, 70)
    expected = ones(90, 70)
    sparsity.zero_by_order(expected, 0, 0, 40, words)
    whole = torch.full((90 * 70 * 6,), -1, dtype=dtype)
    bits = VIEWS[view](whole)
    getattr(sparsity, way)(bits, 0, 0, 40, words)
    assert torch.equal(bits, torch.where(expected == 0, 0, -1).to(dtype))
    bits.fill_(-1)
    assert (whole == -1).all()


@pytest.mark.parametrize("count", [1, 3])
def test_threads_share_the_work_and_change_nothing(count, monkeypatch):
    expected = fastinit.sparse_(torch.empty(2000, 1500), 0.3, stream=Stream(6))
    seen, run = [], threads.run
    monkeypatch.setattr(
        smallest, "run", lambda task, pieces, most: seen.append((pieces, most)) or run(task, pieces, most)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert same_bits(fastinit.sparse_(torch.empty(2000, 1500), 0.3, stream=Stream(6)), expected)
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 2
    assert all(pieces >= 2 * count and most == count for pieces, most in seen)


def test_hardly_any_column_is_looked_at_again(monkeypatch):
    """Else the bits are right all the same, and the time is another."""
    again, exactly = [], Smallest.settle_exactly
    monkeypatch.setattr(Smallest, "settle_exactly", lambda job, column: again.append(column) or exactly(job, column))
    fastinit.sparse_(torch.empty(3000, 3000), 0.1, stream=Stream(7))
    assert len(again) <= 4  # 0.2 are expected, so a stream in 10^5 has more


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
    assert python(code, "-W", "ignore").split() == ["7"]


@pytest.mark.parametrize("engine", ["reference", "eager", "staged"])
def test_every_engine_chooses_the_same_zeros(engine, monkeypatch):
    expected = fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6))
    monkeypatch.setattr(smallest, "Smallest", None)
    if engine == "staged":  # as for a device that has no engine of its own
        staged = engines.StagedEngine(load("cpu"))
        monkeypatch.setattr(engines, "choose", lambda *arguments: staged)
        assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)
    else:
        with fastinit.use_engine(engine):
            assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)


@pytest.mark.parametrize("shape", [(2, 3), (50, 50), (70, 70), (5000, 1), (5000, 3)], ids=str)
def test_which_way_is_taken_changes_nothing(shape, monkeypatch):
    drawn = []
    for few in (0, 1 << 30):
        monkeypatch.setattr(sparsity, "FEW", few)
        monkeypatch.setattr(sparsity, "FEW_COLUMNS", 0)
        drawn.append(fastinit.sparse_(torch.empty(shape), 0.4, stream=Stream(6)))
    monkeypatch.undo()
    assert same_bits(*drawn)
    assert same_bits(fastinit.sparse_(torch.empty(shape), 0.4, stream=Stream(6)), drawn[0])


def test_without_its_kernels_it_goes_another_way(monkeypatch):
    """Where Numba is broken and only the laws' kernels are on disk."""
    right, asked = smallest.kernel, []

    def only_laws(*wanted):
        asked.append(wanted)
        if wanted in SELECTIONS:
            raise ImportError("no such kernel")
        return right(*wanted)

    expected = fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6))
    monkeypatch.setattr(smallest, "kernel", only_laws)
    monkeypatch.setattr(engines, "_told", set())
    with pytest.warns(RuntimeWarning, match="no such kernel"):
        assert same_bits(fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6)), expected)
    assert COLLECT in asked
    with pytest.raises(RuntimeError, match="a kernel is missing, and it cannot be compiled: no such kernel"):
        fastinit.sparse_(torch.empty(300, 70), 0.2, stream=Stream(6), fast=True)


def test_windows_hold_what_they_are_for():
    """Of 6000 columns 0.4 are missed, more than 5 once in 10^5 times; the twin: a narrower window misses many."""
    sizes = [(1, 1), (2, 1), (10, 1), (4096, 1), (4096, 410), (4096, 2048), (4096, 4095), (100_000, 20_000)]
    generator = np.random.default_rng(5)
    for rows, zeros in sizes:
        # The word number `zeros` of `rows` uniform ones, and how many lie in the window.
        words = generator.beta(zeros, rows - zeros + 1, 6000) * 2**32
        least, greatest, room = smallest.window(rows, zeros)
        inside = generator.binomial(rows, (greatest - least) / 2**32, 6000)
        missed = (words < least) | (words > greatest) | (inside >= room)
        assert missed.sum() <= 5, (rows, zeros)
        if rows > 1000 and zeros > 1000:
            narrow = (least * 3 + greatest) // 4, (least + greatest * 3) // 4
            assert ((words < narrow[0]) | (words > narrow[1])).sum() > 100
            assert room < rows / 10


# --- the kernels alone -------------------------------------------------------------------------


def words_of(first, columns, rows, width) -> np.ndarray:
    out = torch.empty(rows, width, dtype=torch.int32)
    load("cpu").fill(out, Draw("words", (), 8, 9), first, (columns, 1))
    return unsigned(out)


boxes = some.tuples(some.integers(0, 2**40), some.integers(0, 300), some.integers(1, 9), some.integers(1, 600))
limits = some.one_of(some.integers(0, LAST), some.sampled_from([0, 1, LAST - 1, LAST]))


@given(boxes, limits, limits, some.integers(1, 12))
@settings(deadline=None)
def test_collect(box, one, other, room):
    first, more, rows, width = box
    columns, least, greatest = width + more, min(one, other), max(one, other)
    words = words_of(first, columns, rows, width)
    lists = Lists(width, room)
    lists.empty()
    places = np.full((width + 1, room), 77, np.uint32)
    surroundings = (lists.inside.base[:ABREAST], lists.inside.base[-ABREAST:])
    addresses = (part.ctypes.data for part in (lists.below, lists.inside, places))
    head = (first, columns, rows, width, 8, 9)
    assert kernel(*COLLECT)(*head, (least, greatest, *addresses, room)) is None
    between = (least <= words) & (words <= greatest)
    assert (lists.below == (words < least).sum(0)).all()
    assert (lists.inside == between.sum(0)).all()
    assert all((around == 0).all() for around in surroundings)
    for column in range(width):
        found = words[between[:, column], column]
        kept = found if len(found) <= room else np.append(found[: room - 1], found[-1])
        assert (places[column, : len(kept)] == kept).all()
        assert (places[column, len(kept) :] == 77).all()
    assert (places[-1] == 77).all()


@given(boxes, some.sampled_from([1, 2, 4, 8]), some.booleans(), some.integers(0, 3), some.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_clear(box, size, turned, apart, seed):
    first, more, rows, width = box
    columns = width + more
    words = words_of(first, columns, rows, width)
    generator = np.random.default_rng(seed)
    bounds = padded(width)
    bounds[:] = generator.integers(0, 2**32, width) * generator.integers(0, 2, width)
    bounds[generator.integers(0, width)] = LAST
    bounds.base[:ABREAST] = bounds.base[-ABREAST:] = LAST  # which must clear nothing
    whole = torch.full((rows + 2, width + 2 + apart), -1, dtype=SAME_SIZE[size])
    if turned:
        whole = whole.t().contiguous().t()
    step = 1 + (apart == 3)
    local = whole[1 : rows + 1, 1 : 1 + width : step]
    count = local.shape[1]
    down, across = (stride * size for stride in local.stride())
    others = (bounds.ctypes.data, local.data_ptr(), down, across)
    assert kernel(*CLEAR[size])(first, columns, rows, count, 8, 9, others) is None
    assert (local.numpy() == np.where(words[:, :count] < bounds[:count], 0, -1)).all()
    local.fill_(-1)
    assert (whole == -1).all()


def test_memory_goes_on_beside_bounds_and_counts():
    """As far as the kernels read in one go."""
    inner = padded(5)
    assert (inner == 0).all()
    assert inner.ctypes.data - inner.base.ctypes.data == inner.base.nbytes - inner.nbytes - 4 * ABREAST == 4 * ABREAST
    assert Lists(5, 1).below.base.nbytes == inner.base.nbytes


def test_selection_kernels_refuse_what_is_no_number():
    for wanted in (COLLECT, CLEAR[4]):
        others = (0,) * wanted[3]
        for arguments in ([*["1"] * 6, others], [0] * 6, [*[0] * 6, others[1:]], [*[0] * 6, others, 0], [*[0] * 6, 0]):
            with pytest.raises(TypeError):
                kernel(*wanted)(*arguments)
