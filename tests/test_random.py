"""fastinit.random: torch's functions that make random tensors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from common import error_of, name_of, same_bits
from scipy import stats

import fastinit
from fastinit import random
from fastinit.drawing import engines
from fastinit.initialisers import categories
from fastinit.kernels.contract import Draw, KernelMissing
from fastinit.kernels.cpu import choices
from fastinit.laws import Exponential, Integers

ALPHA = 1e-4  # the false-alarm rate of each statistical test; seeds are fixed
STREAM = fastinit.Stream(0x243F6A8885A308D3, 7)
WORDS = Integers(-(1 << 63), 1 << 63)


def words(count: int, first: int = 0) -> list[int]:
    """The 64-bit words of the stream's elements, by the reference engine."""
    out = torch.empty(count, dtype=torch.int64)
    engines.load("reference").fill(out, Draw(*WORDS.parameters(torch.int64), STREAM.seed, STREAM.id), first, None)
    return [word + (1 << 63) for word in out.tolist()]


# --- as the in-place samplers, in torch's forms ------------------------------------------------

LIKE = torch.zeros(3, 5, dtype=torch.float64).t()
CALLS = [
    ("rand", (3, 5), {}, ("uniform_", 0.0, 1.0)),
    ("rand", ((3, 5),), {"dtype": torch.bfloat16}, ("uniform_", 0.0, 1.0)),
    ("rand", (), {"size": (3, 5)}, ("uniform_", 0.0, 1.0)),
    ("randn", (3, 5), {"dtype": torch.float64, "requires_grad": True}, ("normal_", 0.0, 1.0)),
    ("randn", ([3, 5],), {}, ("normal_", 0.0, 1.0)),
    ("rand_like", (LIKE,), {}, ("uniform_", 0.0, 1.0)),
    ("rand_like", (LIKE,), {"dtype": torch.float16}, ("uniform_", 0.0, 1.0)),
    ("randn_like", (LIKE,), {"memory_format": torch.contiguous_format}, ("normal_", 0.0, 1.0)),
    ("randint", (9, (3, 5)), {}, ("random_", 0, 9)),
    ("randint", (-3, 9, (3, 5)), {"dtype": torch.int32}, ("random_", -3, 9)),
    ("randint", (9,), {"size": (3, 5), "dtype": torch.float32}, ("random_", 0, 9)),
    ("randint", (), {"low": 4, "high": 9, "size": [3, 5]}, ("random_", 4, 9)),
    ("randint", (4,), {"high": 9, "size": [3, 5]}, ("random_", 4, 9)),
    ("randint_like", (LIKE, 9), {}, ("random_", 0, 9)),
    ("randint_like", (LIKE, 2, 9), {"dtype": torch.uint8}, ("random_", 2, 9)),
    ("randint_like", (LIKE,), {"low": 2, "high": 9}, ("random_", 2, 9)),
    ("normal", (0.5, 2.0, (3, 5)), {}, ("normal_", 0.5, 2.0)),
    ("normal", (1, 2), {"size": (3, 5), "dtype": torch.float64}, ("normal_", 1, 2)),
    ("bernoulli", (LIKE, 0.3), {}, ("bernoulli_", 0.3)),
    ("bernoulli", (torch.zeros(3, 5, dtype=torch.int64), 0.3), {}, ("bernoulli_", 0.3)),
]
every_call = pytest.mark.parametrize(("name", "arguments", "options", "sampler"), CALLS, ids=lambda v: str(v)[:40])


@every_call
def test_results_are_those_of_the_in_place_sampler(name, arguments, options, sampler):
    """In torch's shape, dtype, strides and with its flag; by a generator, the default one and a stream."""
    theirs = getattr(torch, name)(*arguments, **options)
    function, *numbers = sampler
    expected = getattr(fastinit, function)(torch.empty(theirs.shape, dtype=theirs.dtype), *numbers, stream=STREAM)
    ours = getattr(random, name)(*arguments, **options, stream=STREAM)
    assert same_bits(ours.detach(), expected)
    assert (ours.stride(), ours.requires_grad) == (theirs.stride(), theirs.requires_grad)
    torch.manual_seed(5)
    drawn = getattr(random, name)(*arguments, **options)
    again = getattr(random, name)(*arguments, **options, generator=torch.Generator().manual_seed(5))
    assert same_bits(drawn.detach(), again.detach())
    assert not same_bits(drawn.detach(), ours.detach())


@every_call
def test_torch_makes_what_it_is_asked_to(name, arguments, options, sampler):
    torch.manual_seed(3)
    theirs = getattr(torch, name)(*arguments, **options)
    torch.manual_seed(3)
    assert same_bits(getattr(random, name)(*arguments, **options, fast=False).detach(), theirs.detach())


@pytest.mark.parametrize("name", ["rand", "randn", "randint", "normal", "randperm"])
def test_results_may_go_to_a_tensor(name):
    arguments = {"rand": ((3, 5),), "randn": (3, 5), "randint": (9, (3, 5)), "normal": (0.0, 1.0, (3, 5))}
    given = arguments.get(name, (15,))
    out = torch.zeros(15 if name == "randperm" else (3, 5), dtype=torch.float64)
    result = getattr(random, name)(*given, out=out, stream=STREAM)
    assert result is out
    assert same_bits(out, getattr(random, name)(*given, dtype=torch.float64, stream=STREAM))


def test_means_and_deviations_broadcast():
    mean, std = torch.randn(4, 1, dtype=torch.bfloat16), torch.rand(3)
    for given in ((mean, std), (mean, 2.0), (0.5, std), (mean, torch.tensor(2.0))):
        theirs, ours = torch.normal(*given), random.normal(*given, stream=STREAM)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        full = [torch.as_tensor(number, dtype=torch.float32).expand(ours.shape) for number in given]
        expected = random.normal(*(number.contiguous() for number in full), stream=STREAM).to(ours.dtype)
        assert same_bits(ours, expected)
    out = torch.empty(4, 3, dtype=torch.float64)
    assert random.normal(mean, std, out=out, stream=STREAM) is out


ODD = [
    ("rand", (-1,), {}), ("rand", ("a",), {}), ("rand", (2.0,), {}), ("rand", (3,), {"dtype": torch.int64}),
    ("rand", (3,), {"color": 1}), ("randn", (), {}), ("randn", (3,), {"device": "nowhere"}),
    ("rand_like", (3,), {}), ("randint", (5, 3, (2,)), {}), ("randint", (3,), {}), ("randint", (3.5,), {"size": (2,)}),
    ("randint", (3, 2), {}), ("randint", (1, 2, 3, (2,)), {}), ("randint", (300, (2,)), {"dtype": torch.uint8}),
    ("randint", (0, (2,)), {}), ("randint", (3, (2,)), {"dtype": torch.complex64}), ("randint_like", (LIKE,), {}),
    ("randint_like", (LIKE, 1, 2, 3), {}), ("normal", (0.0, 1.0), {}), ("normal", (0.0, -1.0, (2,)), {}),
    ("normal", (torch.zeros(2), 1.0, (2,)), {}), ("normal", (torch.zeros(2), 1.0), {"dtype": torch.float32}),
    ("normal", ("a", 1.0), {}), ("normal", (torch.zeros(3, dtype=torch.int64), 1.0), {}),
    ("bernoulli", (torch.tensor([0.5, 2.0]),), {}), ("bernoulli", (torch.ones(2, dtype=torch.int64),), {}),
    ("bernoulli", (torch.zeros(2), 1.5), {}), ("bernoulli", (torch.zeros(2), torch.ones(2)), {}),
    ("randperm", (-1,), {}), ("randperm", (5.0,), {}), ("randperm", (3000,), {"dtype": torch.float16}),
    ("randperm", (257,), {"dtype": torch.uint8}), ("randperm", (2,), {"dtype": torch.bool}),
    ("randperm", (3,), {"dtype": torch.complex64}), ("randperm", (3,), {"requires_grad": True}),
    ("multinomial", (torch.ones(4), 5), {}), ("multinomial", (torch.ones(4), 0), {}),
    ("multinomial", (torch.ones(4), -1, True), {}), ("multinomial", (torch.zeros(4), 1), {}),
    ("multinomial", (torch.zeros(4), 1, True), {}), ("multinomial", (-torch.ones(4), 1), {}),
    ("multinomial", (torch.full((4,), math.inf), 1), {}), ("multinomial", (torch.full((4,), math.nan), 1, True), {}),
    ("multinomial", (torch.ones(1, 2, 3), 1), {}), ("multinomial", (torch.ones(3).long(), 1), {}),
    ("multinomial", (torch.ones(0), 1), {}), ("multinomial", (torch.tensor([[1.0, 0], [0, 0]]), 1), {}),
    ("multinomial", (torch.ones(4), 2), {"out": torch.zeros(2)}), ("multinomial", (torch.ones(4), 1.5), {}),
    ("multinomial", (torch.ones(4).to(torch.float8_e5m2), 2), {}), ("randint", (0, 10, (-1,)), {}),
    ("randint", (10, (2,)), {"device": "nope"}), ("normal", (0.0, 1.0, (-1,)), {}),
    ("rand", (3,), {"memory_format": torch.contiguous_format}), ("normal", (0.0, 1.0, 3), {}),
    ("multinomial", (torch.ones(4), 2, "no"), {}), ("multinomial", (torch.ones(0, 3), 4), {}),
    ("randint_like", (LIKE, 0, 3), {"foo": 1}), ("normal", (torch.zeros(2), "a"), {}), ("normal", (0.0, "a", (2,)), {}),
    ("normal", (torch.zeros(2), 1.0), {"out": torch.zeros(2, requires_grad=True)}),
    ("rand", (2,), {"out": torch.zeros(2, requires_grad=True)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "options"), ODD, ids=lambda v: str(v)[:40])
def test_errors_are_torchs(name, arguments, options):
    """With a stream too, which torch knows nothing of."""
    theirs = error_of(lambda: getattr(torch, name)(*arguments, **options))
    ours = error_of(lambda: getattr(random, name)(*arguments, **options))
    assert ours[0] is theirs[0]
    assert ours[1].splitlines()[0] == theirs[1].splitlines()[0]
    with pytest.raises((theirs[0], RuntimeError)):
        getattr(random, name)(*arguments, **options, stream=STREAM)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("rand", (3,)), ("randn", (3,)), ("normal", (0.0, 1.0, (3,))), ("rand_like", (torch.zeros(3),))],
)
def test_what_torch_makes_has_no_stream(name, arguments):
    options = {"dtype": torch.complex64}
    assert getattr(random, name)(*arguments, **options).dtype is torch.complex64
    out = torch.zeros(3, dtype=torch.complex64)
    for refused in ({"stream": STREAM}, {"fast": True}):
        with pytest.raises(RuntimeError, match="no stream"):
            getattr(random, name)(*arguments, **options, **refused)
    if name != "rand_like":
        with pytest.raises(RuntimeError, match="no stream"):
            getattr(random, name)(*arguments, out=out, stream=STREAM)
        assert not out.any()


# --- permutations ------------------------------------------------------------------------------

SIZES = [0, 1, 2, 3, 31, 32, 33, 64, 1000, 4097, 8192, 8193, 20_000, 70_000]
PERMUTATION = [2, 9, 3, 5, 6, 7, 0, 1, 8, 4]  # of Stream(7)


@pytest.mark.parametrize("count", [*SIZES, pytest.param((1 << 22) + 5, marks=pytest.mark.slow)])
def test_a_permutation_is_the_order_of_words(count):
    drawn = words(count) if count else []
    expected = sorted(range(count), key=drawn.__getitem__)
    assert random.randperm(count, stream=STREAM).tolist() == expected
    with fastinit.use_engine("eager"):
        assert random.randperm(count, stream=STREAM).tolist() == expected


def test_permutations_are_frozen():
    assert random.randperm(10, stream=fastinit.Stream(7)).tolist() == PERMUTATION


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_do_not_show_in_a_permutation(threads, monkeypatch):
    expected = random.randperm(150_000, stream=STREAM)
    monkeypatch.setattr(choices, "threads_for", lambda count: threads)
    assert torch.equal(random.randperm(150_000, stream=STREAM), expected)


def test_words_that_agree_in_what_is_sorted_are_told_apart(monkeypatch):
    """Their first 32 bits are sorted; here a few bits of them, so that almost all entries tie."""
    from fastinit.kernels.cpu import word_loops

    count = 3000
    kernels = {}
    monkeypatch.setattr(word_loops, "HALF_MASK", np.uint64(0xFF00000000000000))
    monkeypatch.setattr(choices.loading, "kernel", lambda *wanted: kernels.setdefault(wanted, compiled(*wanted)))
    drawn = words(count)
    out = torch.empty(count, dtype=torch.int64)
    choices.permute(out, STREAM.seed, STREAM.id)
    assert out.tolist() == sorted(range(count), key=drawn.__getitem__)


def compiled(kind, dtype, form, parameters):
    """A kernel compiled anew, from the sources as they are now."""
    from fastinit.kernels.cpu import compile as compiling, native
    from fastinit.kernels.cpu.forms import kernel_name

    return native.load(compiling.compile_kernel(kind, dtype, form, parameters), kernel_name(kind, dtype, form))


def test_a_permutation_without_kernels(monkeypatch):
    expected, chosen = random.randperm(500, stream=STREAM), random.multinomial(WEIGHTS, 50, True, stream=STREAM)

    def missing(*_):
        raise KernelMissing("none")

    monkeypatch.setattr(choices, "permute", missing)
    monkeypatch.setattr(choices, "choose", missing)
    assert torch.equal(random.randperm(500, stream=STREAM), expected)
    assert torch.equal(random.multinomial(WEIGHTS, 50, True, stream=STREAM), chosen)


def test_every_permutation_is_as_likely():
    """Of four numbers there are 24: chi-square; and the twin, which swaps two of them too often."""
    counts, swapped = np.zeros(24), np.zeros(24)
    number = {p: k for k, p in enumerate(itertools.permutations(range(4)))}
    for k in range(12_000):
        p = random.randperm(4, stream=fastinit.Stream(1, k)).tolist()
        counts[number[tuple(p)]] += 1
        if k % 8 == 0 and p[0] > p[1]:
            p[0], p[1] = p[1], p[0]
        swapped[number[tuple(p)]] += 1
    assert stats.chisquare(counts).pvalue > ALPHA
    assert stats.chisquare(swapped).pvalue < ALPHA


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32, torch.float16, torch.bfloat16], ids=name_of)
def test_permutations_of_other_dtypes(dtype):
    drawn = random.randperm(200, dtype=dtype, stream=STREAM)
    assert drawn.dtype is dtype
    assert drawn.long().tolist() == random.randperm(200, stream=STREAM).tolist()


# --- categories --------------------------------------------------------------------------------

CHOSEN = {True: [2, 2, 0, 1, 3, 1, 2, 2], False: [1, 0, 2, 3]}  # of these weights, from Stream(7)
WEIGHTS = torch.tensor([1.0, 2.0, 4.0, 1.0])


@pytest.mark.parametrize("replacement", [True, False])
def test_categories_are_frozen(replacement):
    drawn = random.multinomial(WEIGHTS, len(CHOSEN[replacement]), replacement, stream=fastinit.Stream(7))
    assert drawn.tolist() == CHOSEN[replacement]


@pytest.mark.parametrize("count", [1, 2, 5, 64, 1000, 4097])
@pytest.mark.parametrize("rows", [None, 3])
def test_categories_by_whole_numbers_of_python(count, rows):
    """With replacement: floor(word * total / 2^64) among sums of weights, in exact arithmetic."""
    shape = (count,) if rows is None else (rows, count)
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(count))
    weights[..., ::3] = 0 if count > 2 else 1
    samples = 300
    drawn = random.multinomial(weights, samples, True, stream=STREAM).view(-1, samples).tolist()
    with fastinit.use_engine("eager"):
        plain = random.multinomial(weights, samples, True, stream=STREAM).view(-1, samples).tolist()
    scale = 2 ** (62 - count.bit_length())
    for row, one in enumerate(weights.double().view(-1, count).tolist()):
        whole = [round(weight / max(one) * scale) for weight in one]
        sums = np.cumsum(np.array(whole, dtype=object))
        expected = [
            int(np.searchsorted(sums, word * sums[-1] >> 64, side="right")) for word in words(samples, row * samples)
        ]
        assert drawn[row] == expected
        assert plain[row] == expected
    assert (weights.view(-1, count).gather(1, torch.tensor(drawn)) > 0).all()


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (300,), (3, 50)])
def test_categories_without_replacement_are_those_that_come_first(shape):
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    times = fastinit.exponential_(torch.empty(shape, dtype=torch.float64), stream=STREAM) / weights
    for samples in {1, shape[-1] // 2 or 1, shape[-1]}:
        drawn = random.multinomial(weights, samples, stream=STREAM)
        assert torch.equal(drawn, torch.sort(times, stable=True).indices[..., :samples])
        with fastinit.use_engine("eager"):
            assert torch.equal(drawn, random.multinomial(weights, samples, stream=STREAM))


def test_equal_times_are_in_order(monkeypatch):
    def all_alike(out, law, *_, **__):
        assert law == Exponential(1.0)
        out.fill_(1.0)

    monkeypatch.setattr(categories, "fill", all_alike)
    assert random.multinomial(torch.ones(100), 40).tolist() == list(range(40))
    assert random.multinomial(torch.tensor([1.0, 0, 0, 1, 0]), 5).tolist() == [0, 3, 1, 2, 4]


def test_categories_of_weight_zero_are_in_order():
    """Of many, where topk has an order of its own; and those whose time is too great to be a number."""
    weights = torch.zeros(1000)
    weights[500] = 1
    assert random.multinomial(weights, 50, stream=STREAM).tolist() == [500, *range(49)]
    tiny = torch.full((1000,), 5e-324, dtype=torch.float64)
    tiny[7] = 1
    assert random.multinomial(tiny, 20, stream=STREAM).tolist() == [7, *(k for k in range(20) if k != 7)]
    rows = torch.zeros(3, 64).index_fill_(1, torch.tensor(9), 1.0)
    assert random.multinomial(rows, 4, stream=STREAM).tolist() == [[9, 0, 1, 2]] * 3


@pytest.mark.parametrize("samples", [1, 3, 40])
def test_many_rows_are_drawn_as_one(samples):
    weights = torch.rand(700, 11)
    drawn = random.multinomial(weights, samples, True, stream=STREAM)
    with fastinit.use_engine("eager"):
        assert torch.equal(random.multinomial(weights, samples, True, stream=STREAM), drawn)
    assert (weights.gather(1, drawn) > 0).all()


@pytest.mark.parametrize("replacement", [True, False])
def test_signs_and_sizes_of_weights_are_no_matter(replacement):
    """A negative zero is a zero; numbers near the least that float64 has are as good as any; no row is no error."""
    weights = torch.tensor([-0.0, 2, 3, 0], dtype=torch.float64)
    for scale in (1.0, 2.0**-1040, 2.0**900):
        drawn = random.multinomial(weights * scale, 2, replacement, stream=STREAM)
        assert torch.equal(drawn, random.multinomial(weights.abs(), 2, replacement, stream=STREAM))
        assert set(drawn.tolist()) <= {1, 2}
    assert random.multinomial(torch.ones(0, 5), 2, replacement, stream=STREAM).shape == (0, 2)


def test_numbers_of_numpy_are_numbers():
    assert torch.equal(random.randperm(np.int64(9), stream=STREAM), random.randperm(9, stream=STREAM))
    drawn = random.multinomial(WEIGHTS, np.int64(2), stream=STREAM)
    assert torch.equal(drawn, random.multinomial(WEIGHTS, 2, stream=STREAM))
    whole = random.randint(np.int64(9), (5,), stream=STREAM)
    assert torch.equal(whole, random.randint(9, (5,), stream=STREAM))


@pytest.mark.parametrize("replacement", [True, False])
def test_categories_come_as_often_as_they_ought_to(replacement):
    """Chi-square of the first one drawn; and the twin, with a weight a tenth greater."""
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    drawn = random.multinomial(weights.expand(40_000, 4), 2, replacement, stream=STREAM)[:, 0]
    counts = torch.bincount(drawn, minlength=4).numpy()
    for weight, fits in ((1.0, True), (1.1, False)):
        expected = weights.numpy() * [weight, 1, 1, 1]
        assert (stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > ALPHA) is np.bool_(fits)


def test_a_weight_of_zero_is_never_drawn_and_a_tiny_one_is_as_rare():
    weights = torch.tensor([0.0, 1.0, 1e-30, 0.0])
    assert set(random.multinomial(weights, 10_000, True, stream=STREAM).tolist()) == {1}
    whole = categories.whole_weights(torch.tensor([[3e38, 3e38, 1e-45, 0.0]]))
    assert whole.tolist() == [[1 << 59, 1 << 59, 0, 0]]


def test_threads_do_not_show_in_categories(monkeypatch):
    expected = random.multinomial(WEIGHTS, 100_000, True, stream=STREAM)
    monkeypatch.setattr(choices, "threads_for", lambda count: 3)
    monkeypatch.setattr(choices, "A_THREAD", 1001)
    assert torch.equal(random.multinomial(WEIGHTS, 100_000, True, stream=STREAM), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=name_of)
def test_weights_of_other_dtypes(dtype):
    for replacement in (True, False):
        drawn = random.multinomial(WEIGHTS.to(dtype), 4, replacement, stream=STREAM)
        assert torch.equal(drawn, random.multinomial(WEIGHTS, 4, replacement, stream=STREAM))


def test_results_are_laid_out_as_torchs():
    for weights in (WEIGHTS, WEIGHTS.expand(3, 4)):
        for replacement in (True, False):
            theirs = torch.multinomial(weights, 2, replacement)
            ours = random.multinomial(weights, 2, replacement)
            assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
            out = torch.zeros(theirs.shape, dtype=torch.int64)
            assert random.multinomial(weights, 2, replacement, out=out, stream=STREAM) is out
            assert torch.equal(out, random.multinomial(weights, 2, replacement, stream=STREAM))


# --- what others do to torch.nn.init -----------------------------------------------------------

EVERY = {name: (arguments, options) for name, arguments, options, _ in CALLS} | {
    "randperm": ((20,), {}), "multinomial": ((torch.ones(9), 3), {}), "bernoulli": ((torch.full((4,), 0.5),), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_nobody_who_replaces_torch_nn_inits_functions_is_asked(name, monkeypatch):
    """They are other functions than these, of which torch's are called as they were."""
    arguments, options = EVERY[name]
    expected = getattr(random, name)(*arguments, **options, stream=STREAM)
    torch.manual_seed(1)
    torchs = getattr(torch, name)(*arguments, **options)
    for function in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, function, lambda *_, **__: None)
    assert same_bits(getattr(random, name)(*arguments, **options, stream=STREAM).detach(), expected.detach())
    assert getattr(random, name)(*arguments, **options).shape == expected.shape
    torch.manual_seed(1)
    assert same_bits(getattr(random, name)(*arguments, **options, fast=False).detach(), torchs.detach())


@pytest.mark.parametrize("name", EVERY)
def test_a_mode_sees_torchs_own_call(name):
    from torch.overrides import TorchFunctionMode

    class Seen(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    arguments, options = EVERY[name]
    with Seen() as seen:
        getattr(random, name)(*arguments, **options)
    assert name in seen.names


@pytest.mark.parametrize("name", EVERY)
def test_a_generator_advances_by_one_number_a_call(name):
    arguments, options = EVERY[name]
    ours, expected = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    getattr(random, name)(*arguments, **options, generator=ours)
    torch.empty((), dtype=torch.int64).random_(generator=expected)
    assert torch.equal(ours.get_state(), expected.get_state())


def test_who_insists_by_the_environment_is_told(monkeypatch):
    monkeypatch.setattr(fastinit.drawing.flags, "default", True)
    for refused in (
        lambda: random.randn(2, dtype=torch.complex64),
        lambda: random.normal(torch.zeros(3), torch.ones(3, dtype=torch.int64)),
    ):
        with pytest.raises(RuntimeError):
            refused()
    assert random.randn(2).shape == (2,)


def test_under_vmap_torch_draws():
    for function in (lambda w: w + random.rand(5), lambda w: random.multinomial(w, 2), lambda w: random.normal(w, w)):
        assert len(torch.vmap(function, randomness="different")(torch.ones(3, 5))) == 3


def test_what_is_refused_draws_nothing():
    before = torch.get_rng_state()
    for refused in (lambda: random.rand(3, dtype=torch.complex64, stream=STREAM), lambda: random.rand(-1)):
        with pytest.raises(RuntimeError):
            refused()
    assert torch.equal(torch.get_rng_state(), before)
