"""Identities with a gain, constants from lists, orthogonal axes, orthogonal convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import error_of, same_bits

import fastinit

STREAM = fastinit.Stream(11, 12)
PLACES = [torch.empty(5, 7), torch.empty(7, 5).t(), torch.empty(5, 14)[:, ::2]]


@pytest.mark.parametrize("tensor", PLACES, ids=["contiguous", "transposed", "strided"])
def test_identities(tensor):
    assert torch.equal(fastinit.identity_(tensor.fill_(3), 2.5), 2.5 * torch.eye(5, 7))
    part = fastinit.shard(torch.empty(3, 4), (5, 7), (2, 1))
    assert torch.equal(fastinit.identity_(part, -2).local, -2 * torch.eye(5, 7)[2:5, 1:5])
    assert error_of(fastinit.identity_, torch.empty(3)) == error_of(torch.nn.init.eye_, torch.empty(3))


@pytest.mark.parametrize("tensor", PLACES, ids=["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_constants_from_a_list(kind, tensor):
    """Row-major, the last value repeats."""
    expected = torch.tensor([*range(1, 11), *[10] * 25]).reshape(5, 7)
    assert torch.equal(fastinit.constant_(tensor.fill_(-1), kind(range(1, 11))), expected.float())
    part = fastinit.shard(torch.empty(3, 4), (5, 7), (1, 2))
    assert torch.equal(fastinit.constant_(part, kind(range(1, 11))).local, expected[1:4, 2:6].float())
    every = fastinit.constant_(tensor.fill_(-1), kind(range(35)))
    assert every.flatten().tolist() == list(range(35))


def test_constants_of_other_dtypes_and_shapes():
    assert fastinit.constant_(torch.empty(2, 2, dtype=torch.int64), [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    parameter = torch.nn.Parameter(torch.zeros(3))
    assert fastinit.constant_(parameter, [1.0, 2.0]).tolist() == [1, 2, 2]
    assert fastinit.constant_(torch.empty(()), [4.0]).item() == 4
    assert fastinit.constant_(torch.empty(3, device="meta"), [4.0]).is_meta
    assert fastinit.constant_(torch.empty(3), torch.tensor(2.0)).tolist() == [2, 2, 2]


def test_too_many_constants_are_refused():
    tensor = torch.zeros(2, 2)
    for values in ([1, 2, 3, 4, 5], []):
        with pytest.raises(ValueError, match=rf"1 to 4 values for shape \(2, 2\), got {len(values)}"):
            fastinit.constant_(tensor, values)
    assert not tensor.any()


def test_lists_of_constants_keep_the_precision_of_the_tensor():
    tensor = fastinit.constant_(torch.empty(3, dtype=torch.float64), [0.1, 0.2])
    assert tensor.tolist() == [0.1, 0.2, 0.2]
    assert fastinit.constant_(torch.empty(2, dtype=torch.int64), (2**53 + 1,)).tolist() == [2**53 + 1] * 2


def gram(matrix: torch.Tensor) -> torch.Tensor:
    """Products of rows or columns, whichever are fewer."""
    return matrix.t() @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.t()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 5, 8), (2, 3, 4, 50)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_columns_on_any_axis(axis, shape):
    """As JAX has it: the columns of the matrix lie along that dimension."""
    tensor = fastinit.orthogonal_(torch.empty(shape, dtype=torch.float64), 2.0, stream=STREAM, column_axis=axis)
    matrix = tensor.movedim(axis, -1).reshape(-1, shape[axis])
    assert torch.allclose(gram(matrix), 4 * torch.eye(min(matrix.shape), dtype=torch.float64), atol=1e-12)
    straight = tuple(torch.empty(shape).movedim(axis, 0).shape)
    same = fastinit.orthogonal_(torch.empty(straight, dtype=torch.float64), 2.0, stream=STREAM)
    assert same_bits(tensor.movedim(axis, 0), same)


def test_columns_on_any_axis_by_torch():
    tensor = fastinit.orthogonal_(torch.empty(3, 5, 4), fast=False, column_axis=1)
    matrix = tensor.movedim(1, -1).reshape(-1, 5)
    assert torch.allclose(gram(matrix), torch.eye(5), atol=1e-5)
    with pytest.raises(IndexError, match=r"in range of \[-3, 2\], but got 3"):
        fastinit.orthogonal_(tensor, column_axis=3)


def test_columns_of_a_part():
    whole = fastinit.orthogonal_(torch.empty(6, 4, 5), stream=STREAM, column_axis=-1)
    part = fastinit.shard(torch.empty(3, 2, 4), (6, 4, 5), (2, 1, 1))
    assert torch.equal(fastinit.orthogonal_(part, stream=STREAM, column_axis=-1).local, whole[2:5, 1:3, 1:5])


SHAPES = [(8, 5, 3), (8, 5, 3, 3), (6, 6, 4, 5), (7, 3, 3, 2, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_delta_keeps_norms(shape):
    """A circular convolution with it multiplies every norm by the gain."""
    weight = fastinit.delta_orthogonal_(torch.full(shape, 3.0), 1.5, stream=STREAM)
    middle = (slice(None), slice(None), *((size - 1) // 2 for size in shape[2:]))
    assert torch.allclose(gram(weight[middle]), 2.25 * torch.eye(shape[1]), atol=1e-5)
    assert weight.count_nonzero() == weight[middle].count_nonzero()
    before, after = circular_norms(weight)
    assert after == pytest.approx(1.5 * before, rel=1e-5)


CUBES = [(8, 5, 3), (6, 6, 4, 4), (7, 3, 3, 3, 3), (4, 2, 1), (5, 4, 2, 2)]


def circular_norms(weight: torch.Tensor) -> tuple[float, float]:
    """Of random inputs, and of what a circular convolution makes of them."""
    field = weight.shape[2:]
    convolve = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[len(field)]
    inputs = torch.randn(1, weight.shape[1], *[9] * len(field), dtype=weight.dtype)
    around = [size for width in reversed(field) for size in ((width - 1) // 2, width // 2)]
    outputs = convolve(torch.nn.functional.pad(inputs, around, mode="circular"), weight)
    return inputs.norm().item(), outputs.norm().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", CUBES)
def test_orthogonal_convolutions_keep_norms(shape, dtype):
    for fast in (None, False):
        stream = STREAM if fast is None else None
        weight = fastinit.convolution_orthogonal_(torch.empty(shape, dtype=dtype), 1.5, fast=fast, stream=stream)
        before, after = circular_norms(weight)
        assert after == pytest.approx(1.5 * before, rel=1e-5 if dtype is torch.float32 else 1e-12)
        wrong = weight.clone()  # the twin
        wrong[0] *= 1.1
        before, after = circular_norms(wrong)
        assert after != pytest.approx(1.5 * before, rel=1e-4)
    assert (weight != 0).double().mean() > 0.9  # the whole field is in use


def test_orthogonal_convolutions_in_other_layouts_parts_and_dtypes():
    whole = fastinit.convolution_orthogonal_(torch.empty(6, 4, 3, 3), stream=STREAM)
    turned = fastinit.convolution_orthogonal_(torch.empty(3, 3, 4, 6), stream=STREAM, layout="ssio")
    assert same_bits(turned.permute(3, 2, 0, 1), whole)
    part = fastinit.shard(torch.empty(2, 3, 3, 1), (6, 4, 3, 3), (3, 1, 0, 2))
    assert torch.equal(fastinit.convolution_orthogonal_(part, stream=STREAM).local, whole[3:5, 1:4, :, 2:3])
    half = fastinit.convolution_orthogonal_(torch.empty(6, 4, 3, 3, dtype=torch.bfloat16), stream=STREAM)
    assert torch.equal(half, whole.bfloat16())
    other = fastinit.convolution_orthogonal_(torch.empty(6, 4, 3, 3), stream=fastinit.Stream(1))
    assert not torch.equal(other, whole)
    assert fastinit.convolution_orthogonal_(torch.empty(6, 4, 3, 3, device="meta")).is_meta


def test_what_is_no_orthogonal_convolution():
    for shape, words in (
        ((4, 4, 2, 3), "one size of its field"),
        ((3, 4, 2), "as many output"),
        ((4, 4), "needs 3 to 5"),
    ):
        tensor = torch.zeros(shape)
        with pytest.raises(ValueError, match=words):
            fastinit.convolution_orthogonal_(tensor)
        assert not tensor.any()


def test_a_delta_in_other_layouts_and_parts():
    whole = fastinit.delta_orthogonal_(torch.empty(8, 5, 3, 4), stream=STREAM)
    turned = fastinit.delta_orthogonal_(torch.empty(3, 4, 5, 8), stream=STREAM, layout="ssio")
    assert same_bits(turned.permute(3, 2, 0, 1), whole)
    for offset in ((2, 1, 0, 0), (0, 0, 1, 1), (0, 2, 2, 0)):
        part = fastinit.shard(torch.empty(4, 2, 1, 2), (8, 5, 3, 4), offset)
        box = tuple(slice(at, at + n) for at, n in zip(offset, (4, 2, 1, 2), strict=True))
        assert torch.equal(fastinit.delta_orthogonal_(part, stream=STREAM).local, whole[box])
    matrix = fastinit.orthogonal_(torch.empty(8, 5), stream=STREAM)
    assert same_bits(whole[:, :, 1, 1], matrix)


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((3, 4, 3), None, "as many output features as input features, got 3 and 4"),
        ((4, 4), None, "needs 3 to 5 dimensions"),
        ((4, 4, 1, 1, 1, 1), None, "needs 3 to 5 dimensions"),
        ((4, 4, 3), "oio", "needs 3 to 5 dimensions"),
        ((4, 4, 3), "oi", "needs 3 to 5 dimensions"),
    ],
)
def test_what_is_no_delta(shape, layout, words):
    tensor = torch.zeros(shape)
    with pytest.raises(ValueError, match=words):
        fastinit.delta_orthogonal_(tensor, layout=layout)
    assert not tensor.any()


def test_flags_and_loaded_parameters_are_respected(monkeypatch):
    flagged = torch.zeros(6, 4, 3)
    fastinit.flag(flagged, False)
    torch.manual_seed(4)
    fastinit.delta_orthogonal_(flagged)
    torch.manual_seed(4)
    assert same_bits(flagged[:, :, 1], torch.nn.init.orthogonal_(torch.empty(6, 4)))
    guards = pytest.importorskip("transformers.initialization", reason="needs transformers")
    with guards.guard_torch_init_functions():
        loaded = torch.nn.Parameter(torch.full((4, 4, 3), 7.0))
        loaded._is_hf_initialized = True
        assert (fastinit.delta_orthogonal_(loaded) == 7).all()
        square = torch.nn.Parameter(torch.full((4, 4), 7.0))
        square._is_hf_initialized = True
        assert (fastinit.identity_(square, 2) == 7).all()
        assert (fastinit.orthogonal_(square, column_axis=1) == 7).all()


def test_nothing_is_written_before_the_matrix_is_drawn():
    tensor = torch.ones(4, 4, 3, dtype=torch.int64)
    with pytest.raises((RuntimeError, NotImplementedError)):
        fastinit.delta_orthogonal_(tensor)
    assert tensor.all()
