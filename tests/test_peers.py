"""The table for those who come from elsewhere: each row against the exact law, and against the library that it names.

The rows are read from the page and executed, so none can be without a test. LEVEL is the false-alarm rate of one
comparison and ALPHA that of all together; seeds are fixed. Each comparison is repeated with a weight that is 8 %
(between two samples: 25 %) too wide, and must then fail.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch
from common import python
from peer_laws import CONVOLUTION, EXPECTED, FAN_IN, FAN_OUT, MATRIX, Expected, scaled
from scipy import stats

import fastinit

PAGE = Path(fastinit.__file__).parent / "initialisers" / "README.md"
ROWS = peers.rows(PAGE.read_text(encoding="utf-8"))
every_row = pytest.mark.parametrize("row", ROWS, ids=[f"{row.library}: {row.theirs}" for row in ROWS])
ALPHA = 1e-4
LEVEL = ALPHA / (4 * len(ROWS))  # ours, ours as theirs is shaped, theirs, one against the other
ROUNDING = 1e-4  # of float32, in products of matrices


def expected(row: peers.Row) -> Expected:
    return EXPECTED[row.library][row.theirs]


def test_every_row_is_expected_and_nothing_else():
    assert [(row.library, row.theirs) for row in ROWS] == [(name, key) for name in EXPECTED for key in EXPECTED[name]]
    assert list(EXPECTED) == list(peers.PEERS)


@pytest.mark.parametrize("line", ["| theirs() | `ours()` | |", "| `theirs()` | `ours()` |", "| `a` | `b` | c | d |"])
def test_what_is_no_row_is_noticed(line):
    with pytest.raises(ValueError, match="no row of a table of X"):
        peers.rows(f"## X\n\n`import x`\n\n| theirs | ours | |\n| --- | --- | --- |\n{line}\n")


# --- how well a sample fits --------------------------------------------------------------------


def distance_p(sample: np.ndarray, law: Any) -> float:
    """Of the Kolmogorov distance, by Smirnov's limit; steps of a discrete law are compared where they end."""
    values, counts = np.unique(sample, return_counts=True)
    above = counts.cumsum() / sample.size
    apart = np.abs(above - law.cdf(values)).max()
    if not hasattr(law, "pmf"):
        apart = max(apart, np.abs(above - counts / sample.size - law.cdf(values)).max())
    return float(stats.kstwobign.sf(apart * math.sqrt(sample.size)))


def moments_p(sample: np.ndarray, law: Any) -> list[float]:
    """Of the mean and of the variance, where the law has them, by their normal limits."""
    mean, variance, excess = (float(moment) for moment in law.stats("mvk"))
    if not math.isfinite(variance):
        return []
    of_mean = (sample.mean() - mean) / math.sqrt(variance / sample.size)
    of_variance = (sample.var() / variance - 1) / math.sqrt((excess + 2) / sample.size)
    return [2 * float(stats.norm.sf(abs(z))) for z in (of_mean, of_variance)]


def extremes_p(sample: np.ndarray, law: Any) -> list[float]:
    """That so many samples end so early; 0 beyond the law's support. A cut shows here before it shows anywhere else."""
    low, high = law.support()
    least, most = sample.min(), sample.max()
    slack = 1e-6 * max(abs(least), abs(most))  # of float32
    if least < low - slack or most > high + slack:
        return [0.0]
    at_most, at_least = law.cdf(most), law.sf(least) + (law.pmf(least) if hasattr(law, "pmf") else 0.0)
    return [float(at_most**sample.size), float(at_least**sample.size)]


def p_value(sample: np.ndarray, law: Any) -> float:
    sample = sample.astype(np.float64).ravel()
    parts = [distance_p(sample, law), *moments_p(sample, law), *extremes_p(sample, law)]
    return min(1.0, len(parts) * min(parts))


def check(weight: np.ndarray, law: Any) -> None:
    """That a weight follows its law or has its property, and that one slightly off would not pass."""
    if callable(law):
        values = torch.tensor(np.ascontiguousarray(weight))
        assert law(values) < ROUNDING
        assert law(values + 0.05) > ROUNDING  # the twin
    else:
        assert p_value(weight, law) > LEVEL
        assert weight.size < MATRIX[0] * MATRIX[1] or p_value(1.08 * weight, law) < LEVEL  # the twin


# --- ours --------------------------------------------------------------------------------------


class Shaped:
    """fastinit, of which each function with fans is told the layout, and orthogonal_ the axis."""

    def __init__(self, layout: str) -> None:
        self.layout = layout

    def __getattr__(self, name: str) -> Any:
        function = getattr(fastinit, name)
        if name == "orthogonal_":
            return functools.partial(function, column_axis=-1)
        takes = inspect.signature(function).parameters.keys() & {"layout", "options"}
        return functools.partial(function, layout=self.layout) if takes else function


def ours(row: peers.Row, shape: tuple[int, ...], init: Any = fastinit, **options: Any) -> dict[str, torch.Tensor]:
    """What our line makes of a weight of this shape and its bias. Nothing but `b` of a vector."""
    w, b = torch.full(shape, math.nan, **options), torch.full(shape[:1], math.nan, **options)
    tensors = {name: torch.nn.Parameter(tensor) for name, tensor in (("w", w), ("b", b))}
    exec(row.ours, {"init": init, "math": math, **peers.NUMBERS, **tensors})
    return tensors


@every_row
def test_ours_follows_the_law(row):
    want = expected(row)
    drawn = ours(row, want.shape)
    for name, law in (("w", want.law), ("b", want.bias)):
        if law is not None:
            check(drawn[name].detach().numpy(), law)
        else:  # the line says nothing of it
            assert drawn[name].isnan().all()


OF_SHAPE = [row for row in ROWS if peers.PEERS[row.library].draw and not expected(row).native and "w" in row.ours]


@pytest.mark.parametrize("row", OF_SHAPE, ids=[f"{row.library}: {row.theirs}" for row in OF_SHAPE])
def test_ours_shaped_as_theirs_follows_the_law(row):
    """A weight that stays [..., in, out] says so, and has the same law."""
    want = expected(row)
    shape = peers.their_shape(want.shape) if len(want.shape) > 1 else want.shape
    drawn = ours(row, shape, Shaped("s" * (len(shape) - 2) + "io"))
    if want.law is not None:
        check(peers.as_torch_has_it(drawn["w"].detach().numpy()), want.law)


@every_row
def test_ours_fills_parameters_of_other_dtypes_and_devices(row):
    want = expected(row)
    shape = tuple(min(size, 16) for size in want.shape)
    for options in ({"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"device": "meta"}):
        drawn = ours(row, shape, **options)
        for name, law in (("w", want.law), ("b", want.bias)):
            assert drawn[name].requires_grad
            assert drawn[name].grad_fn is None
            if law is not None and "device" not in options:
                assert drawn[name].isfinite().all()


# --- theirs ------------------------------------------------------------------------------------


def in_a_process(library: str, page: str, shapes: dict[str, Any], setup: str = "") -> dict[str, np.ndarray | str]:
    """What `peers.main` writes: a weight, or an error, of each of the library's rows of a page."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "drawn.npy"
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import peers\n{setup}\n"
        code += f"peers.main({library!r}, {page!r}, {shapes!r}, {str(out)!r})"
        environment = peers.PEERS[library].environment if library in peers.PEERS else {}
        python(code, **environment)
        return np.load(out, allow_pickle=True).item()


@functools.cache
def theirs(library: str) -> dict[str, np.ndarray | str]:
    """What the library, which is installed, draws for all of its rows."""
    shapes = {key: (want.shape, want.native) for key, want in EXPECTED[library].items()}
    return in_a_process(library, PAGE.read_text(encoding="utf-8"), shapes)


def two_samples_p(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.ks_2samp(a.ravel(), b.ravel(), method="asymp").pvalue)


@every_row
def test_theirs_follows_the_same_law(row):
    peer = peers.PEERS[row.library]
    if peers.missing(peer):
        pytest.skip(f"{peer.package} is not installed")
    want, drawn = expected(row), theirs(row.library)
    mine = {name: tensor.detach().numpy() for name, tensor in ours(row, want.shape).items()}
    parts = [(name, name, law) for name, law in (("w", want.law), ("b", want.bias)) if law is not None]
    if want.law is None:  # of a vector, which theirs fills as any weight
        parts = [("b", "w", want.bias)]
    for name, their_name, law in parts:
        their = drawn[f"{their_name} {row.theirs}"]
        assert not isinstance(their, str), their
        assert their.shape == mine[name].shape
        check(their, law)
        different = np.unique(mine[name]).size
        if callable(law) and different < 4:
            assert np.array_equal(their, mine[name])
        a, b = (values[values != 0] for values in (mine[name], their))
        if a.size >= 16_000 and different > 20:
            assert two_samples_p(a, b) > LEVEL
            assert two_samples_p(1.25 * a, b) < LEVEL  # the twin


# --- where meanings differ ---------------------------------------------------------------------


def refused(line: str, shape: tuple[int, ...], words: str, error: type[Exception] = ValueError) -> Any:
    return pytest.param(line, shape, error, words, id=f"{line} of {shape}")


def run(line: str, w: torch.Tensor) -> None:
    exec(line, {"init": fastinit, "math": math, "w": w})


NO_FANS = "can not be computed for tensor with fewer than 2 dimensions"


@pytest.mark.parametrize(
    ("line", "shape", "error", "words"),
    [
        # TensorFlow and Keras: there a vector has fans, a fan of 0 counts 1, "normal" is cut, no std is refused.
        refused("init.glorot_uniform_(w)", (5,), NO_FANS),
        refused("init.uniform_unit_scaling_(w, 1.43)", (5,), NO_FANS),
        refused('init.variance_scaling_(w, distribution="normal")', (3, 4), "JAX's normal is untruncated_normal"),
        refused("init.variance_scaling_(w, 0.0)", (3, 4), "scale > 0, got 0"),
        refused("init.uniform_unit_scaling_(w, 0.0)", (3, 4), "scale > 0, got 0"),
        refused("init.glorot_uniform_(w, fan_in=0, fan_out=1)", (3,), "fan_in is a whole number above 0, got 0"),
        refused("init.trunc_normal_(w, 0.0, 0.0, bounds='sigma')", (3,), "std > 0, got 0", ZeroDivisionError),
        refused("init.trunc_normal_(w, 0.0, -0.02, bounds='sigma')", (3,), "std > 0, got -0.02"),
        refused("init.normal_(w, 0.0, -0.02)", (3,), "std >= 0.0", RuntimeError),
        refused("init.uniform_(w, 0.05, -0.05)", (3,), "from=0.05", RuntimeError),
        refused("init.constant_(w, [1.0, 2.0, 3.0])", (2,), "needs 1 to 2 values"),
        refused("init.constant_(w, [])", (2,), "needs 1 to 2 values"),
        refused("init.orthogonal_(w, 1.5)", (5,), "2 or more dimensions"),
        refused("init.identity_(w, 1.5)", (3, 3, 1), "2 dimensions"),
        refused("init.delta_orthogonal_(w)", (4, 8, 3, 3), "as many output features as input features"),
        refused("init.delta_orthogonal_(w)", (8, 4), "3 to 5 dimensions"),
        refused("init.convolution_orthogonal_(w)", (8, 4, 3, 5), "one size of its field"),
        refused("init.convolution_orthogonal_(w)", (4, 8, 3), "as many output features as input features"),
        # JAX: axes that a weight does not have; other modes.
        refused('init.he_normal_(w, layout="iio")', (3, 4), "names 3 dimensions, the tensor has 2"),
        refused('init.he_normal_(w, layout="ii")', (3, 4), "needs input and output features"),
        refused('init.variance_scaling_(w, mode="fan")', (3, 4), "mode is one of fan_in, fan_out, fan_avg"),
        refused("init.orthogonal_(w, column_axis=2)", (3, 4), "Dimension out of range", IndexError),
        # timm: units of bounds.
        refused('init.trunc_normal_(w, std=0.02, bounds="std")', (3,), 'in units of "value" or "sigma"'),
        # mmcv and fvcore: modes and nonlinearities of others.
        refused('init.kaiming_normal_(w, mode="fan_avg", nonlinearity="relu")', (3, 4), "Mode fan_avg not supported"),
        refused('init.kaiming_normal_(w, nonlinearity="gelu_new")', (3, 4), "Unsupported nonlinearity gelu_new"),
        refused("init.kaiming_uniform_(w, 1)", (5,), NO_FANS),
        # GPT-2, Megatron, torchtitan, mup.
        refused("init.depth_scaled_normal_(w, 0.02, 0)", (3,), "whole number of layers above 0, got 0"),
        refused("init.mup_normal_(w, 0.02, 0)", (3,), "width_mult is a number above 0"),
        refused('init.mup_normal_(w, 0.02, 4, "readout")', (3,), "role is one of input, hidden, output"),
        # torch's tensors.
        refused("init.bernoulli_(w, 1.5)", (3,), "p", RuntimeError),
        refused("init.exponential_(w, 0.0)", (3,), "lambda", RuntimeError),
        refused("init.geometric_(w, 0.0)", (3,), "p", RuntimeError),
        refused("init.random_(w, 5, 5)", (3,), "from", RuntimeError),
    ],
)
def test_what_means_nothing_is_refused(line, shape, error, words):
    w = torch.full(shape, 7.0)
    with pytest.raises(error, match=re.escape(words)):
        run(line, w)
    assert (w == 7).all()


WITH_FANS = [row for row in ROWS if re.search(r"(xavier|kaiming|scaling|glorot|he|lecun)_\w*\(w|scaling_\(w", row.ours)]
MATRICES = [row for row in ROWS if re.search(r"(orthogonal|identity)_\(w", row.ours)]


@pytest.mark.parametrize("row", WITH_FANS + MATRICES, ids=lambda row: f"{row.library}: {row.theirs}")
def test_rows_that_need_a_shape_refuse_vectors(row):
    """In words that are torch's, or name what is missing; the others fill them."""
    with pytest.raises(ValueError, match=r"2 (or more )?dimensions|3 to 5 dimensions|names 3 dimensions"):
        ours(row, (7,))


@pytest.mark.parametrize("row", WITH_FANS, ids=lambda row: f"{row.library}: {row.theirs}")
def test_rows_with_fans_leave_nothing_alone(row):
    """A weight without elements, as torch has it: kaiming_* and variance_scaling_ warn, xavier_* do not."""
    w = torch.empty((0, *expected(row).shape[1:]))
    line = row.ours.split(";")[0]
    if "xavier" in line:
        run(line, w)
        return
    with pytest.warns(UserWarning, match="Initializing zero-element tensors is a no-op"):
        run(line, w)


def test_elementwise_rows_fill_any_shape():
    rest = [row for row in ROWS if row not in WITH_FANS + MATRICES and not re.search(r"\bb\b|w\.shape", row.ours)]
    assert len(rest) > 50
    for row in rest:
        for shape in ((), (1,), (2, 0), (2, 3, 1, 2, 2, 1)):
            assert ours(row, shape)["w"].isfinite().all()


# --- the tests themselves ----------------------------------------------------------------------


@pytest.mark.parametrize("error", ["ImportError('no libGL')", "ModuleNotFoundError(name='x')", "RuntimeError('old')"])
def test_a_library_that_is_installed_and_does_not_import_is_an_error(tmp_path, error):
    (tmp_path / "broken.py").write_text(f"raise {error}")
    page = "## Broken\n\n`from broken import f`\n\n| theirs | ours | |\n| --- | --- | --- |\n" + "".join(
        f"| `{line}` | `init.zeros_(w)` | |\n" for line in ("f(w)", "f(m)")
    )
    setup = f"sys.path.insert(0, {str(tmp_path)!r}); peers.PEERS['Broken'] = peers.Peer('broken')"
    drawn = in_a_process("Broken", page, {}, setup)
    assert drawn.keys() == {"w f(w)", "w f(m)"}
    for why_not in drawn.values():
        assert why_not.startswith(f"broken is installed and does not import: {error.partition('(')[0]}")


@pytest.mark.parametrize(
    ("ours_", "law"),
    [
        ("init.trunc_normal_(w, std=0.02)", EXPECTED["timm"]["trunc_normal_tf_(w, std=0.02)"].law),
        ('init.trunc_normal_(w, std=0.02, bounds="sigma")', EXPECTED["timm"]["trunc_normal_(w, std=0.02)"].law),
        ("init.kaiming_normal_(w)", scaled(2 / FAN_IN)),
        ("init.he_normal_(w)", scaled(2 / FAN_IN, "normal")),
        ("init.he_normal_(w)", scaled(2 / FAN_OUT)),
        ('init.he_normal_(w, layout="ioss")', scaled(2 / FAN_IN)),
        ("init.xavier_normal_(w)", scaled(2 / (FAN_IN + FAN_OUT))),
        ("init.uniform_(w, -0.1, 0.1)", stats.uniform(0, 0.1)),
    ],
)
def test_every_difference_of_the_page_would_be_seen(ours_, law):
    w = torch.empty(CONVOLUTION)
    run(ours_, w)
    assert p_value(w.numpy(), law) < LEVEL
