"""The samplers that torch has as methods of its tensors: their laws, torch's errors, dtypes, where they may write."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from common import bits, name_of, outcome, same_bits, scipys, watch_quick_fills
from scipy import stats

import fastinit
from fastinit.drawing import engines
from fastinit.initialisers.table import DTYPES, OF_NUMBERS
from fastinit.kernels.arithmetic.transforms import exp
from fastinit.kernels.contract import Draw
from fastinit.kernels.dtypes import FORMATS, WHOLE, drawn_as
from fastinit.kernels.plain.reference import ARITHMETIC
from fastinit.laws import Bernoulli, Geometric, Integers

ALPHA = 1e-4  # the false-alarm rate of each statistical test; seeds are fixed
# Arguments of each, and the law's numbers that they mean.
CALLS = {
    "bernoulli_": [(0.3,), (0,), (1,), (1e-3,)],
    "cauchy_": [(), (0.5, 2.0)],
    "exponential_": [(), (2.5,)],
    "geometric_": [(0.25,), (1 - 1e-9,)],
    "log_normal_": [(), (0.5, 0.75)],
    "random_": [(), (100,), (5, 60), (3, None)],
}
EVERY = [(name, arguments) for name, several in CALLS.items() for arguments in several]
every_call = pytest.mark.parametrize(("name", "arguments"), EVERY, ids=str)
every_sampler = pytest.mark.parametrize("name", CALLS)
DTYPES_TRIED = (*FORMATS, *WHOLE, torch.complex64, torch.uint16)
STREAM = fastinit.Stream(0x243F6A8885A308D3, 7)


def words_of(count: int, width: int) -> list[int]:
    """The random bits of the first elements of STREAM, as whole numbers; from the generator's own words."""
    drawn = torch.empty(count * width // 32, dtype=torch.int32)
    words = [word & 0xFFFFFFFF for word in fastinit.bits_(drawn, stream=STREAM).tolist()]
    if width == 32:
        return words
    # 32 elements a block of 64 words: words 2w (low) and 2w + 1 (high) of sixteen counters.
    places = [(i // 32 * 64 + i % 32 // 16 * 32 + i % 16) for i in range(count)]
    return [words[at + 16] << 32 | words[at] for at in places]


# --- what is drawn -----------------------------------------------------------------------------


@every_call
def test_arguments_mean_what_they_mean_in_torch(name, arguments):
    """Two samples of as many elements as show a difference of 1 %, in float64 and where the law allows in int64."""
    for dtype in (torch.float64, *((torch.int64,) if torch.int64 in DTYPES[name] else ())):
        ours, theirs = (torch.empty(1 << 17, dtype=dtype) for _ in range(2))
        getattr(fastinit, name)(ours, *arguments, stream=STREAM)
        getattr(theirs, name)(*arguments)
        assert distance(ours, theirs) < critical(1 << 16)
    if name not in ("bernoulli_", "geometric_"):  # the twin; these two have laws with a single value here
        assert distance(ours, theirs + theirs.double().quantile(0.7).to(dtype) // 20 + 1) > critical(1 << 16)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(stats.ks_2samp(a.double().numpy(), b.double().numpy()).statistic)


def critical(count: float) -> float:
    return math.sqrt(-math.log(ALPHA / 2) / (2 * count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64], ids=name_of)
@pytest.mark.parametrize("law", [Bernoulli(0.3), Geometric(0.25), Geometric(0.9), Integers(0, 97)], ids=str)
def test_counts_follow_the_probabilities(law, dtype):
    """Chi-square against SciPy's probabilities; the twin has a law whose first probability is a tenth greater."""
    kind, parameters = law.parameters(dtype)
    out = torch.empty(1 << 20, dtype=dtype)
    engines.load("cpu").fill(out, Draw(kind, parameters, 99, 0), 0, None)
    values, counts = out.double().unique(return_counts=True)
    expected = torch.from_numpy(scipys(law).pmf(values.numpy())) * out.numel()
    common = expected > 10
    rest = out.numel() - expected[common].sum().item()  # what is rare, in one
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    ideal = [*expected[common].tolist(), rest]
    if rest < 1:
        observed, ideal = observed[:-1], ideal[:-1]
    assert p_value(observed, ideal) > ALPHA
    shift = min(ideal[:2]) / 10
    assert p_value(observed, [ideal[0] + shift, ideal[1] - shift, *ideal[2:]]) < ALPHA


def p_value(observed, expected):
    return stats.chisquare(observed, np.array(expected) * (sum(observed) / sum(expected))).pvalue


@pytest.mark.parametrize("p", [0.3, 2.0**-53, 1 - 2.0**-53, 1e-300])
def test_bernoulli_compares_53_bits(p):
    expected = [float((word >> 11) < p * 2**53) for word in words_of(256, 64)]
    assert fastinit.bernoulli_(torch.empty(256), p, stream=STREAM).tolist() == expected
    assert 0 <= fastinit.bernoulli_(torch.empty(256), 0, stream=STREAM).max() == 0
    assert fastinit.bernoulli_(torch.empty(256), 1, stream=STREAM).min() == 1


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, 1), (-7, 93), (0, 2**24 + 1), (-(2**31), 0), (0, 2**24 + 2), (-5, 5**13), (0, 2**32), (-(2**62), 2**62),
        (-(2**63), 2**63 - 1), (-(2**63), 2**63), (2**62, 2**63), (3, 3 + 2**40 + 9),
    ],
)  # fmt: skip
def test_whole_numbers_are_scaled_words(start, stop):
    """By Python's own numbers; and for powers of two beyond a word the last bits."""
    count = stop - start
    one_word = count <= 2**24 + 1 or (count & (count - 1) == 0 and count <= 2**31)
    words = words_of(256, 32 if one_word else 64)
    scaled = [word * count >> (32 if one_word else 64) for word in words]
    if not one_word and count & (count - 1) == 0:
        scaled = [word % count for word in words]
    got = fastinit.random_(torch.empty(256, dtype=torch.int64), start, None if stop == 2**63 else stop, stream=STREAM)
    assert got.tolist() == [start + number for number in scaled]


def test_whole_numbers_are_the_same_in_every_dtype():
    wide = fastinit.random_(torch.empty(1000, dtype=torch.int64), 3, 103, stream=STREAM)
    for dtype in DTYPES["random_"] - {torch.bool}:
        assert fastinit.random_(torch.empty(1000, dtype=dtype), 3, 103, stream=STREAM).tolist() == wide.tolist()
    two = fastinit.random_(torch.empty(1000, dtype=torch.int64), 2, stream=STREAM)
    assert fastinit.random_(torch.empty(1000, dtype=torch.bool), stream=STREAM).tolist() == two.bool().tolist()


def test_whole_numbers_reach_both_ends_of_a_dtype():
    for dtype in (torch.uint8, torch.int8):
        limits = torch.iinfo(dtype)
        drawn = fastinit.random_(torch.empty(1 << 16, dtype=dtype), limits.min, None, stream=STREAM)
        assert (drawn.min(), drawn.max()) == (limits.min, limits.max)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=name_of)
def test_numbers_of_trials_stay_in_their_dtype(dtype):
    drawn = fastinit.geometric_(torch.empty(1 << 12, dtype=dtype), 1e-12, stream=STREAM)
    assert drawn.min() > 0
    assert (drawn == torch.iinfo(dtype).max).double().mean() > 0.9
    for tiny in (1e-25, 1e-60, 5e-324):
        assert (fastinit.geometric_(drawn, tiny, stream=STREAM) == torch.iinfo(dtype).max).all()


def test_geometric_and_cauchy_by_other_functions():
    """ln(u) / ln(1 - p) and a tangent, in float64, by NumPy."""
    u = np.array([(word + 0.5) / 2**64 for word in words_of(4096, 64)])
    trials = fastinit.geometric_(torch.empty(4096, dtype=torch.int64), 0.01, stream=STREAM).numpy()
    exact = np.log(u) / np.log1p(-0.01)
    clear = np.abs(exact - np.round(exact)) > 1e-9
    assert np.array_equal(trials[clear], np.ceil(exact)[clear])
    words = words_of(4096, 64)
    signed = np.array([(word - (word >> 63 << 64)) / 2**63 for word in words])
    tangent = np.tan(np.pi / 4 * signed)
    flipped = np.array([word >> 1 & 1 for word in words]) == 1
    sign = np.where(np.array([word & 1 for word in words]) == 1, -1.0, 1.0)
    expected = np.where(flipped, sign / tangent, sign * tangent)
    got = fastinit.cauchy_(torch.empty(4096, dtype=torch.float64), 0.0, 3.0, stream=STREAM).numpy() / 3
    assert np.allclose(got, expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_log_normals_are_exponentials_of_normals(dtype):
    logs = fastinit.normal_(torch.empty(5000, dtype=dtype), 1.0, 2.0, stream=STREAM)
    got = fastinit.log_normal_(torch.empty(5000, dtype=dtype), stream=STREAM)
    assert torch.allclose(got, logs.exp(), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("dtype", "least", "most"), [(np.float32, -104, 89), (np.float64, -746, 710)])
def test_exponentials_are_off_by_little_more_than_a_unit_in_the_last_place(dtype, least, most):
    """Subnormal results too; 0 and infinity beyond."""
    width = 8 * np.dtype(dtype).itemsize
    x = np.linspace(least, most, 1_000_003).astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        got = ARITHMETIC[width](exp)(x)
        exact = np.exp(x.astype(np.longdouble))
        held = np.isfinite(exact.astype(dtype))
        off = np.abs(got[held].astype(np.longdouble) - exact[held]) / np.spacing(exact[held].astype(dtype))
        ends = ARITHMETIC[width](exp)(np.array([-1e9, -np.inf, 1e9, np.inf, 0], dtype))
    assert off.max() < 1.1
    assert np.array_equal(np.isinf(got), ~held)
    assert ends.tolist() == [0, 0, math.inf, math.inf, 1]


# --- torch's arguments and errors --------------------------------------------------------------

BAD = [
    ("bernoulli_", (1.5,)), ("bernoulli_", (-0.1,)), ("bernoulli_", (math.nan,)), ("bernoulli_", ("a",)),
    ("cauchy_", (0, 0)), ("cauchy_", (0, -1)), ("cauchy_", (0, math.nan)),
    ("exponential_", (0,)), ("exponential_", (-1,)), ("exponential_", (math.nan,)), ("exponential_", (None,)),
    ("geometric_", (0,)), ("geometric_", (1,)), ("geometric_", (-1,)), ("geometric_", (math.nan,)),
    ("log_normal_", (0, 0)), ("log_normal_", (0, -1)), ("log_normal_", (0, math.nan)),
    ("random_", (0,)), ("random_", (5, 3)), ("random_", (5, 5)), ("random_", (1.0,)), ("random_", (True,)),
    ("random_", (1, 2, 3)), ("random_", (None,)), ("random_", (None, 5)), ("random_", (1, False)), ("random_", ("a",)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), BAD, ids=str)
def test_bad_numbers_raise_torchs_errors(name, arguments):
    theirs, _ = outcome(getattr(torch.Tensor, name), torch.zeros(40), *arguments)
    ours, _ = outcome(getattr(fastinit, name), torch.zeros(40), *arguments)
    assert theirs is not None
    assert ours == theirs
    again, _ = outcome(getattr(fastinit, name), torch.zeros(40), *arguments, stream=STREAM)
    assert again == theirs


@pytest.mark.parametrize(
    ("dtype", "bounds"), [(torch.uint8, (300,)), (torch.uint8, (-1, 5)), (torch.int8, (-129, 0)), (torch.bool, (3,))]
)
def test_bounds_beyond_a_dtype_raise_torchs_errors(dtype, bounds):
    errors = [outcome(f, torch.zeros(9, dtype=dtype), *bounds)[0] for f in (torch.Tensor.random_, fastinit.random_)]
    assert errors[0] == errors[1] is not None


@pytest.mark.parametrize("dtype", DTYPES_TRIED, ids=name_of)
@every_sampler
def test_each_dtype_is_drawn_or_refused_in_torchs_words(name, dtype):
    arguments = CALLS[name][0]
    found, _ = outcome(getattr(fastinit, name), torch.zeros(64, dtype=dtype), *arguments)
    expected, _ = outcome(getattr(torch.Tensor, name), torch.zeros(64, dtype=dtype), *arguments)
    beyond_torch = expected is not None and dtype in DTYPES[name]  # float8
    assert found is None if beyond_torch else found == expected
    assert beyond_torch <= (dtype.itemsize == 1)
    if found is None:
        with fastinit.use_engine("reference"):
            again = getattr(fastinit, name)(torch.zeros(64, dtype=dtype), *arguments, stream=STREAM)
        assert same_bits(again, getattr(fastinit, name)(torch.zeros(64, dtype=dtype), *arguments, stream=STREAM))


@every_call
def test_calls_draw_the_law_of_their_numbers(name, arguments):
    """The table's law for these numbers, by the reference engine: in every dtype, on the fast path and before."""
    for dtype in DTYPES[name]:
        if name == "random_" and dtype is torch.bool and arguments:
            continue
        given = (0, *arguments) if name == "random_" and len(arguments) == 1 else arguments
        given = (None, None) if name == "random_" and not arguments else given
        law = OF_NUMBERS[name](dtype, *given)
        expected = torch.empty(300, dtype=dtype)
        draw = Draw(*law.parameters(dtype), STREAM.seed, STREAM.id)
        engines.load("reference").fill(expected.view(drawn_as(dtype)), draw, 0, None)
        for _ in range(2):
            drawn = getattr(fastinit, name)(torch.empty(300, dtype=dtype), *arguments, stream=STREAM)
            assert same_bits(drawn, expected)


@every_sampler
def test_the_second_call_takes_the_fast_path(name, monkeypatch):
    quick_fills = watch_quick_fills(monkeypatch)
    monkeypatch.setattr(fastinit.samplers, "serve", fastinit.init.serve)
    for dtype in (torch.float32, *((torch.int64, torch.uint8) if torch.int64 in DTYPES[name] else ())):
        tensor = torch.empty(100, dtype=dtype)
        for _ in range(2):
            getattr(fastinit, name)(tensor, *CALLS[name][-1])
    assert quick_fills.count(name) >= (3 if torch.int64 in DTYPES[name] else 1)


@every_sampler
def test_generators_advance_once_and_decide(name):
    arguments = CALLS[name][0]
    generator = torch.Generator().manual_seed(5)
    first = getattr(fastinit, name)(torch.empty(50), *arguments, generator=generator)
    second = getattr(fastinit, name)(torch.empty(5000), *arguments, generator=generator)
    generator.manual_seed(5)
    torch.empty((), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
    again = getattr(fastinit, name)(torch.empty(5000), *arguments, generator=generator)
    assert same_bits(second, again)
    assert not same_bits(first, second[:50])


@every_sampler
def test_fast_false_is_torchs_own(name):
    arguments = CALLS[name][0]
    torch.manual_seed(3)
    expected = getattr(torch.empty(500), name)(*arguments)
    torch.manual_seed(3)
    assert same_bits(getattr(fastinit, name)(torch.empty(500), *arguments, fast=False), expected)
    tensor = torch.empty(500)
    fastinit.flag(tensor, False)
    torch.manual_seed(3)
    assert same_bits(getattr(fastinit, name)(tensor, *arguments), expected)


# --- tensors -----------------------------------------------------------------------------------


@every_sampler
def test_parts_of_a_tensor_and_other_layouts(name):
    arguments = CALLS[name][-1]
    for dtype in (torch.float32, *((torch.bool, torch.int8, torch.int64) if name == "bernoulli_" else ())):
        whole = getattr(fastinit, name)(torch.empty(37, 50, dtype=dtype), *arguments, stream=STREAM)
        for layout in (torch.empty(50, 37, dtype=dtype).t(), torch.empty(37, 100, dtype=dtype)[:, ::2]):
            assert torch.equal(getattr(fastinit, name)(layout, *arguments, stream=STREAM), whole)
        part = fastinit.shard(torch.empty(9, 20, dtype=dtype), (37, 50), (11, 30))
        assert torch.equal(getattr(fastinit, name)(part, *arguments, stream=STREAM).local, whole[11:20, 30:50])


@every_sampler
def test_parameters_and_their_versions(name):
    """Not recorded, as torch.nn.init's functions; torch's methods refuse a leaf that requires grad."""
    parameter = torch.nn.Parameter(torch.zeros(30))
    for fast in (None, False):
        before = parameter._version
        assert getattr(fastinit, name)(parameter, *CALLS[name][0], fast=fast) is parameter
        assert parameter._version > before
        assert parameter.is_leaf
        assert parameter.requires_grad


def test_a_tensor_of_one_probability_is_a_number():
    one = fastinit.bernoulli_(torch.empty(60), torch.tensor([0.3]), stream=STREAM)
    assert same_bits(one, fastinit.bernoulli_(torch.empty(60), torch.tensor(0.3).item(), stream=STREAM))


@every_sampler
def test_nothing_to_draw(name):
    arguments = CALLS[name][0]
    assert getattr(fastinit, name)(torch.empty(0, 3), *arguments).shape == (0, 3)
    assert getattr(fastinit, name)(torch.empty(4, device="meta"), *arguments).is_meta
    assert bits(getattr(fastinit, name)(torch.empty(()), *arguments, stream=STREAM)) is not None
