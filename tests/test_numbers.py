"""The numbers that initialisers are given: what they are worth, and which are refused, in torch's words."""

from __future__ import annotations

import contextlib
import math
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.init as torch_init
from common import BY_INVERSE, DRAWING, FLOATS, bits, error_of, name_of, outcome, refuse_bounds, same_bits

import fastinit
import fastinit.init as init
from fastinit import Stream

nan, inf = math.nan, math.inf


@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype is not torch.float32], ids=name_of)
@pytest.mark.parametrize("bounds", [(0.0, 70000.0), (-65000.0, 65000.0), (-1e300, 1e300), (0.0, 1e39), (0.0, inf)])
def test_bounds_beyond_a_dtype_fail_in_torchs_words(bounds, dtype):
    theirs = outcome(torch_init.uniform_, torch.full((9,), 7.0, dtype=dtype), *bounds)
    assert outcome(init.uniform_, torch.full((9,), 7.0, dtype=dtype), *bounds) == theirs


def test_orthogonal_gain():
    tensor = torch.full((4, 4), 7.0)
    with pytest.raises(TypeError, match="mul_"):
        init.orthogonal_(tensor, "g")
    assert (tensor == 7).all()


@pytest.mark.parametrize("name", ["trunc_normal_", "xavier_normal_", "xavier_uniform_"])
def test_divisions_by_zero_say_what_was_wrong(name):
    if name == "trunc_normal_":
        with pytest.raises(ZeroDivisionError, match="std > 0, got 0"):
            init.trunc_normal_(torch.empty(3), std=0.0)
    else:
        with pytest.raises(ZeroDivisionError, match=r"fan_in \+ fan_out, which is 0 for shape \(0, 0\)"):
            getattr(init, name)(torch.empty(0, 0))


REALS = [
    np.float64, np.float32, np.float16, np.longdouble, np.int64, np.uint8, np.array, Fraction, torch.tensor,
    lambda value: torch.tensor(value, dtype=torch.float64, requires_grad=True),
]  # fmt: skip


# A call with numbers that every type above holds.
REAL_CALLS = {
    "uniform_": (1.0, 3.0), "normal_": (1.0, 2.0), "trunc_normal_": (1.0, 2.0, -3.0, 4.0), "xavier_uniform_": (3.0,),
    "xavier_normal_": (3.0,), "kaiming_uniform_": (3.0,), "kaiming_normal_": (3.0,), "orthogonal_": (3.0,),
    "sparse_": (1.0, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("name", DRAWING)
def test_any_real_number_is_worth_what_float_says(name, dtype):
    function, values = getattr(init, name), REAL_CALLS[name]
    tensor = torch.empty(8, 6, dtype=dtype)
    expected = function(tensor.clone(), *values, stream=Stream(1))
    for real in REALS[:-1] if name == "sparse_" else REALS:  # whose sparsity torch takes with a warning, once a process
        given = [torch.tensor(-3) if value < 0 and real is np.uint8 else real(value) for value in values]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same_bits(function(tensor.clone(), *given, stream=Stream(1)), expected), real
            torch.manual_seed(1)
            ours = function(tensor.clone(), *given)
            torch.manual_seed(1)
            assert same_bits(ours, function(tensor.clone(), *values)), real


def test_a_number_that_requires_grad_leaves_the_warnings_of_other_threads_alone(monkeypatch):
    """`warnings.catch_warnings` changes the filters of all threads (before Python 3.14)."""
    std = torch.tensor(0.5, requires_grad=True)
    with monkeypatch.context() as patch:
        patch.setattr(warnings, "catch_warnings", None)
        drawn = init.normal_(torch.empty(4), 0.0, std, stream=Stream(1))
    assert same_bits(drawn, init.normal_(torch.empty(4), 0.0, 0.5, stream=Stream(1)))


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"])
def test_no_number_is_rounded_by_its_own_type(name):
    """A product of a float32 gain and Python's float is a float32 for NumPy and torch."""
    for real in (np.float32(0.1), torch.tensor(0.1), Fraction(1, 3)):
        tensors = [getattr(init, name)(torch.empty(8, 6), gain, stream=Stream(1)) for gain in (real, float(real))]
        assert same_bits(*tensors)


@pytest.mark.parametrize("sparsity", [0.1, np.float64(0.1), np.float32(0.1), torch.tensor(0.1), Fraction(1, 3), True])
def test_the_zeros_of_sparse_are_as_many_as_torchs(sparsity):
    for rows in (1, 3, 10, 30):
        zeros = [(sparse(torch.empty(rows, 4), sparsity) == 0).sum(0).tolist() for sparse in SPARSE]
        assert zeros[0] == zeros[1]


SPARSE = (init.sparse_, torch_init.sparse_)


@pytest.mark.parametrize("stream", [None, Stream(1)], ids=["generator", "stream"])
def test_the_tensors_dtype_decides_what_is_in_range(stream):
    """Not torch's default dtype."""
    double = torch.full((64,), 7.0, dtype=torch.float64)
    for high in (np.float64(1e39), torch.tensor(1e39, dtype=torch.float64), Fraction(10**39)):
        assert 1e36 < init.uniform_(double, 0.0, high, fast=True, stream=stream).max() < 1e39
        assert 1e37 < init.normal_(double, 0.0, high, fast=True, stream=stream).std() < 1e40
        assert 1e37 < init.trunc_normal_(double, 0.0, high, -1e39, 1e39, fast=True, stream=stream).max() < 1e39
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            single = torch.full((64,), 7.0, dtype=dtype)
            words = outcome(torch_init.uniform_, single, 0.0, 1e39)
            assert words[0] is not None
            assert outcome(init.uniform_, single, 0.0, high, stream=stream) == words
    with torch_default(torch.float64):
        single = torch.full((64,), 7.0, dtype=torch.float32)
        assert outcome(init.uniform_, single, 0.0, np.float64(1e39), stream=stream)[0][0] is RuntimeError


@contextlib.contextmanager
def torch_default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "value", [Decimal(1), "1", None, [1.0], np.array([1.0]), torch.tensor([1.0, 2.0]), 1 + 0j], ids=repr
)
def test_what_is_no_real_number_is_refused_in_torchs_words(value):
    for name, arguments in [
        ("uniform_", (0.0, value)), ("normal_", (value, 1.0)), ("normal_", (0.0, value)),
        ("trunc_normal_", (0.0, value)), ("trunc_normal_", (0.0, 1.0, -2.0, value)), ("xavier_normal_", (value,)),
        ("kaiming_normal_", (value,)), ("sparse_", (0.5, value)),
    ]:  # fmt: skip
        if name == "trunc_normal_" and BY_INVERSE and isinstance(value, np.ndarray):
            continue  # which torch has written by then
        theirs = outcome(getattr(torch_init, name), torch.full((4, 4), 7.0), *arguments)
        # None is the default slope. With NumPy 2.2 torch may take the array, too, and is warned of it.
        assert theirs[0] is not None or (name == "kaiming_normal_" and value is None) or isinstance(value, np.ndarray)
        for keywords in ({}, {"stream": Stream(1)}):
            ours = outcome(getattr(init, name), torch.full((4, 4), 7.0), *arguments, **keywords)
            assert ours[0] == theirs[0]
            assert ours[1] == theirs[1] or isinstance(value, np.ndarray)


# Finite bounds beyond float16. (mean, std, a, b)
BEYOND_HALF = [
    (0.0, 1e9, -1e5, 1e5), (0.0, 1e6, -7e4, 7e4), (0.0, 1.0, 1.9, 1e5), (0.0, 1.0, -1e5, -1.9), (0.0, 1.0, 1e5, 2e5),
    (0.0, 1.0, -2e5, -1e5), (0.0, 1.0, 65504.0, 65510.0), (0.0, 1.0, 65505.0, 65510.0), (0.0, 1.0, 2e5, 1e5),
    (0.0, 1.0, 1e5, -1e5), (0.0, 1.0, 1e5, inf), (0.0, 1.0, -inf, -1e5), (0.0, 1.0, inf, inf), (0.0, 1.0, inf, -inf),
    (-3e5, 1e5, -1e5, inf),
]  # fmt: skip


BEYOND_OTHERS = [
    (0.0, 1.0, 1.9, 1e39), (0.0, 1.0, -1e39, -1.9), (0.0, 1.0, 1e39, 1e40), (0.0, 3e38, -1e40, -1e39),
    (0.0, 1.0, 2e39, 1e39), (0.0, 1.0, 1e39, inf), (0.0, 1.0, -inf, -1e39), (0.0, 1.0, inf, inf),
]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [(torch.float16, numbers) for numbers in BEYOND_HALF]
    + [(dtype, numbers) for dtype in (torch.bfloat16, torch.float32) for numbers in BEYOND_OTHERS],
    ids=str,
)
def test_truncation_beyond_a_dtype_fails_in_torchs_words(dtype, numbers):
    mean, std, a, b = numbers
    theirs = outcome(refuse_bounds, torch.full((64,), 7.0, dtype=dtype), mean, std, a, b)
    assert theirs[0] is not None
    ours = outcome(init.trunc_normal_, torch.full((64,), 7.0, dtype=dtype), mean, std, a, b)
    assert ours == theirs
    box = fastinit.shard(torch.full((8,), 7.0, dtype=dtype), (64,), (8,))
    for target, stream in ((torch.full((64,), 7.0, dtype=dtype), Stream(1)), (box, None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raised = error_of(lambda: init.trunc_normal_(target, mean, std, a, b, stream=stream))  # noqa: B023
        assert raised == theirs[0]


def test_bounds_beyond_a_dtype_are_no_matter_where_the_law_is_within():
    """As in torch; infinite ones always."""
    expected = init.trunc_normal_(torch.empty(64, dtype=torch.float16), 0.0, 1.0, -inf, inf, stream=Stream(1))
    for bounds in ((-1e5, 1e5), (-1e39, inf), (-1e300, 1e300)):
        drawn = init.trunc_normal_(torch.empty(64, dtype=torch.float16), 0.0, 1.0, *bounds, stream=Stream(1))
        assert same_bits(drawn, expected)
    assert init.trunc_normal_(torch.empty(64, dtype=torch.float16), 0.0, 1.0, 1.9, inf).min() >= 1.8994140625


def test_an_interval_beyond_the_dtype_is_refused_where_torch_fills_with_infinities():
    tensor = torch.full((64,), 7.0, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"a number of float16 between them, got a=99998\.0 and b=100002\.0"):
        init.trunc_normal_(tensor, 1e5, 1.0, 1e5 - 2, 1e5 + 2)
    assert (tensor == 7).all()


@pytest.mark.parametrize("stream", [None, Stream(1)], ids=["generator", "stream"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_numbers_that_no_truncated_normal_has(dtype, stream):
    """Torch has no error here: by the numbers it draws with |std|, or nearly uniformly, or never ends."""
    tensor = torch.full((64,), 7.0, dtype=dtype)
    state = torch.get_rng_state()
    for mean, std, words in [
        (0.0, -1.0, r"needs std > 0, got -1\.0; fast=False has what torch"), (0.0, nan, "needs std > 0, got nan"),
        (0.0, -inf, "needs std > 0, got -inf"), (nan, 1.0, "needs a number for its mean, got nan"),
        (inf, 1.0, r"needs \|mean\| <= .* got inf"), (-inf, 1.0, r"needs \|mean\| <= .* got -inf"),
        (0.0, inf, r"needs \|std\| <= .* got inf"), (np.float32(0), np.float32(-1), "needs std > 0, got -1"),
        *([] if dtype is torch.float64 else [
            (1e39, 1.0, r"needs \|mean\| <= 3\.403e\+38 in .* got 1e\+39"),
            (0.0, 1e39, r"needs \|std\| <= 3\.403e\+38 in .* got 1e\+39"),
        ]),
    ]:  # fmt: skip
        for a, b in ((-2.0, 2.0), (2.0, -2.0), (5.0, 6.0), (nan, 2.0)):
            with pytest.raises(ValueError, match="trunc_normal_ " + words):
                init.trunc_normal_(tensor, mean, std, a, b, stream=stream)
    assert (tensor.double() == 7).all()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("mean", "std"), [(0.0, -1.0), (nan, 1.0), (1e39, 1.0), (0.0, inf)])  # torch ends with these
def test_not_fast_is_torchs_result_for_such_numbers_too(mean, std):
    """Or its error, which older releases have."""

    def torchs(function, **keywords):
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return bits(function(torch.empty(64), mean, std, **keywords)).tolist()
            except Exception as error:
                return str(error)

    assert torchs(torch_init.trunc_normal_) == torchs(init.trunc_normal_, fast=False)


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "sparse_"])
def test_torchs_errors_come_with_a_stream_and_into_shards(name):
    bad = {
        "uniform_": (2.0, 1.0),
        "normal_": (0.0, -1.0),
        "trunc_normal_": (0.0, 1.0, 2.0, -2.0),
        "sparse_": (0.5, -1.0),
    }
    torchs = refuse_bounds if name == "trunc_normal_" else getattr(torch_init, name)
    theirs = error_of(torchs, torch.empty(4, 4), *bad[name])
    tensor = torch.full((4, 4), 7.0)
    assert error_of(lambda: getattr(init, name)(tensor, *bad[name], stream=Stream(1))) == theirs
    assert error_of(getattr(init, name), fastinit.shard(tensor, (8, 8), (4, 4)), *bad[name]) == theirs
    assert (tensor == 7).all()


def test_half_bounded_truncation_works_where_torch_gives_up():
    """torch rejects [-inf, -2] by accident (no uniform proposal there); it is a law like any other."""
    tensor = init.trunc_normal_(torch.empty(10_000), a=-inf, b=-1.9, stream=Stream(1))
    assert tensor.max() <= -1.9
    assert tensor.min() < -3
    free = init.trunc_normal_(torch.empty(64), a=-inf, b=inf, stream=Stream(1))
    assert same_bits(free, init.normal_(torch.empty(64), stream=Stream(1)))


def test_warnings_come_once_for_odd_numbers():
    with pytest.warns(UserWarning, match="mean is more than 2 std") as caught:
        init.trunc_normal_(torch.zeros(4, 4), mean=np.float64(4.5))
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_a_slope_beyond_all_squares_is_refused_as_by_torch(name):
    for module in (torch.nn.init, init):
        with pytest.raises(OverflowError):
            getattr(module, name)(torch.empty(2, 3), a=1e200)
