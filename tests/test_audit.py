"""`fastinit.audit`: moments beside what laws promise, and what is wrong with a model; each finding has a twin."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
import torch
from common import FLOATS
from matplotlib.image import imread
from rich.console import Console
from torch import nn

import fastinit
from fastinit import accelerate, audit, build
from fastinit.commands.cli import main
from fastinit.models.audit import MOST_Z, look, see
from fastinit.models.promise import moments_of

SEED = 4


class Everything(nn.Module):
    """A parameter for every initialiser and sampler."""

    def __init__(self):
        super().__init__()
        calls = {
            "uniform": lambda t: nn.init.uniform_(t, -1, 3),
            "normal": lambda t: nn.init.normal_(t, 1, 0.5),
            "trunc": lambda t: nn.init.trunc_normal_(t, std=2.0),
            "xavier_uniform": nn.init.xavier_uniform_,
            "xavier_normal": nn.init.xavier_normal_,
            "kaiming_uniform": lambda t: nn.init.kaiming_uniform_(t, math.sqrt(5)),
            "kaiming_normal": lambda t: nn.init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"),
            "layout": lambda t: fastinit.kaiming_normal_(t, layout="io"),
            "he_normal": fastinit.he_normal_,
            "orthogonal": lambda t: nn.init.orthogonal_(t, 2.0),
            "sparse": lambda t: nn.init.sparse_(t, 0.3, std=0.5),
            "bernoulli": lambda t: t.data.bernoulli_(0.2),
            "exponential": lambda t: t.data.exponential_(2.0),
            "geometric": lambda t: t.data.geometric_(0.3),
            "log_normal": lambda t: t.data.log_normal_(0.0, 0.3),
            "random": lambda t: t.data.random_(10),
            "constant": lambda t: nn.init.constant_(t, 0.3),
            "ones": nn.init.ones_,
            "zeros": nn.init.zeros_,
            "padded": lambda t: (nn.init.normal_(t), t.data[3].zero_()),
            "halves": lambda t: (nn.init.normal_(t), t.data[:100].uniform_(5, 6)),
        }
        for name, call in calls.items():
            self.register_parameter(name, nn.Parameter(torch.empty(300, 200)))
            call(getattr(self, name))
        self.randn = nn.Parameter(torch.randn(300, 200))
        self.heavy = nn.Parameter(torch.empty(300, 200))
        self.heavy.data.cauchy_()


@pytest.fixture(scope="module")
def everything():
    return build(Everything, seed=SEED)


def row_of(found, name):
    return next(row for row in found.rows if row.name == name)


def test_what_is_promised_is_seen(everything):
    found = audit(everything)
    for row in found.rows:
        assert row.law is not None, row.name
        assert row.seen is not None
        if row.name == "heavy":  # which has no moments
            assert row.z is None
            continue
        assert row.z is not None, row.name
        assert row.z < MOST_Z, row
        mean, std = row.expected
        tensor = getattr(everything, row.name).detach().double()
        assert row.seen.mean == pytest.approx(tensor.mean().item(), abs=1e-9)
        assert row.seen.std == pytest.approx(tensor.std(correction=0).item(), abs=1e-9)
        assert (row.seen.low, row.seen.high) == (tensor.min().item(), tensor.max().item())
        assert mean == pytest.approx(tensor.mean().item(), abs=6 * std / 200 + 1e-6)
    assert not found.errors
    assert row_of(found, "kaiming_uniform").law == "kaiming_uniform_(2.236, fan_in, leaky_relu)"
    assert row_of(found, "layout").law.endswith("layout='io')")
    assert row_of(found, "padded").law == "normal_(0, 1), zeros_() in [200]"
    assert {row.by for row in found.rows} == {"name", "constant"}


@pytest.mark.parametrize("change", [lambda t: t.mul_(1.03), lambda t: t.add_(0.03), lambda t: t.clamp_(-2, 2)])
def test_a_law_that_is_slightly_wrong_is_found(change):
    """The twin: changed behind the back of the version counter."""
    model = build(lambda: nn.Sequential(nn.Embedding(300, 200)), seed=SEED)
    assert not audit(model).errors
    with torch.no_grad():
        change(model[0].weight.data)  # which has a counter of its own
    ((name, finding),) = audit(model).errors
    assert name == "0.weight"
    assert "standard errors from what its law promises" in finding.text


def test_a_parameter_that_was_changed_since_has_no_law():
    model = build(nn.Linear, 300, 200, seed=SEED)
    with torch.no_grad():
        model.weight.mul_(2)
    found = audit(model)
    assert row_of(found, "weight").law is None
    assert row_of(found, "bias").law is not None
    assert not found.errors


@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_the_rounding_of_a_dtype_is_no_error(dtype):
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.empty(1000, 1000, dtype=dtype), requires_grad=False)
            self.b = nn.Parameter(torch.empty(1000, 1000, dtype=dtype), requires_grad=False)
            nn.init.normal_(self.a, std=0.02)
            nn.init.uniform_(self.b, 0, 3)

    found = audit(build(Narrow, seed=SEED))
    assert not found.errors
    assert all(row.z is not None for row in found.rows)


def test_any_model_has_its_moments_shown():
    model = nn.Linear(300, 200)
    found = audit(model)
    assert [row.law for row in found.rows] == [None, None]
    assert row_of(found, "weight").seen.std == pytest.approx(model.weight.std(correction=0).item(), rel=1e-6)
    assert not found.findings


def test_who_drew_it():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 40), nn.Linear(3, 40)
            self.b.load_state_dict(self.a.state_dict())
            self.g = nn.Parameter(torch.zeros(3, 40))
            self.g.data.copy_(self.a.weight.t() * 2)
            self.c = nn.Parameter(torch.randn(50) * 0.02)
            self.d = nn.Parameter(torch.empty(50, dtype=torch.complex64))
            nn.init.normal_(self.d)
            self.e = nn.Parameter(fastinit.random.randn(50, stream=fastinit.Stream(2)))
            self.f = nn.Parameter(self.e.detach().clone())

    found = audit(build(Model, seed=SEED))
    by = {row.name: row.by for row in found.rows}
    assert (by["c"], by["d"], by["e"], by["f"]) == ("computed", None, "given stream", "given stream")
    # What was used is drawn by its number, and so is its copy, which nobody has used.
    assert (by["a.weight"], by["b.weight"], by["g"]) == ("number", "number", "computed")
    assert row_of(found, "f").same_as == "e"
    assert row_of(found, "b.weight").same_as == "a.weight"
    layers = build(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2), seed=SEED)
    found = audit(layers)
    assert row_of(found, "layers.1.linear1.weight").by == "copy of layers.0.linear1.weight"
    assert row_of(found, "layers.1.linear1.weight").same_as == "layers.0.linear1.weight"
    with accelerate():
        model = nn.Linear(30, 40)
    assert row_of(audit(model), "weight").by == "number"


def spoilt(change):
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(30, 40))
    with torch.no_grad():
        change(model)
    return model


FINDINGS = {
    "nan": (lambda m: m[0].weight[2].fill_(math.nan), True, "30 of 1,200 values are not finite"),
    "inf": (lambda m: m[0].weight[2, 3].fill_(math.inf), True, "1 of 1,200 values are not finite"),
    "all nan": (lambda m: m[0].weight.fill_(math.nan), True, "1,200 of 1,200 values are not finite"),
    "huge": (lambda m: m[0].weight[1, 1].fill_(-1e20), True, "has values up to 1e+20"),
    "dead": (lambda m: m[0].weight[3:5].zero_(), False, "2 of 40 rows are zero"),
    "zero": (lambda m: m[0].weight.zero_(), False, "all its elements are 0"),
    "alike": (lambda m: m[0].weight.fill_(0.25), False, "all its elements are 0.25"),
    "same": (lambda m: m[1].weight.copy_(m[0].weight), False, "has the same values as another one"),
    "meta": (lambda m: m[0].to("meta"), True, "is on the meta device"),
}


@pytest.mark.parametrize("what", FINDINGS)
def test_findings(what):
    change, error, words = FINDINGS[what]
    found = audit(spoilt(change))
    kinds = {(finding.error, words in finding.text) for _, finding in found.findings}
    assert kinds == {(error, True)}
    assert all(finding.hint for _, finding in found.findings)
    assert bool(found.errors) is error
    assert not audit(spoilt(lambda m: None)).findings


def test_biases_and_small_tensors_may_be_alike():
    model = nn.Sequential(nn.LayerNorm(50), nn.LayerNorm(50), nn.PReLU())
    assert not audit(model).findings


def test_see_on_chunks_strides_and_odd_dtypes(monkeypatch):
    tensor = torch.randn(50, 70, generator=torch.Generator().manual_seed(3)) + 100
    whole = see(tensor)
    monkeypatch.setattr("fastinit.models.audit.CHUNK", 64)
    parts = see(tensor.t().contiguous().t())
    assert parts == pytest.approx(whole, rel=1e-9)
    assert see(torch.arange(10)).mean == 4.5
    assert see(torch.empty(0, 3)).non_finite == 0
    assert see(torch.full((2, 2), 1 + 1j)).std == 0
    assert see(torch.tensor([True, False])).mean == 0.5
    assert look("a", nn.Parameter(torch.eye(3).to_sparse()), None).seen is None
    assert look("a", nn.LazyLinear(3).weight, None).shape == ()


def test_json_has_all_of_it_and_no_number_that_is_none():
    found = audit(spoilt(lambda m: m[0].weight.fill_(math.nan)))
    read = json.loads(found.to_json())
    assert read["model"] == "Sequential"
    first = read["parameters"][0]
    assert first["name"] == "0.weight"
    assert first["shape"] == [40, 30]
    assert first["seen"]["mean"] is None
    assert first["findings"][0]["error"] is True
    assert "NaN" not in found.to_json()


def shown(renderable, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_table_and_the_report_of_a_terminal():
    model = build(lambda: spoilt(lambda m: m[1].weight.copy_(m[0].weight)), seed=SEED)
    with torch.no_grad():
        model[0].bias.data.mul_(3)
    text = shown(audit(model))
    assert re.search(r"0\.weight +kaiming_uniform_\(2.236, fan_in, leaky_relu\) +0 +\S+ +-0\.18", text)
    assert re.search(r"\(40, 30\) +name +0\.105 +0\.1", text)
    assert "Sequential: 4 parameters, 2,480 elements, the law of 4 known; 1 error, 1 note" in text
    assert "copy of 0.weight" in text
    assert re.search(r"^error: 0\.bias: its mean or standard deviation", text, re.MULTILINE)
    assert "note: 1.weight (= 0.weight): has the same values" in text
    assert "0.weight" in shown(audit(model).table())


def test_the_picture(tmp_path, everything):
    path = tmp_path / "audit.png"
    audit(everything).plot(str(path))
    pixels = torch.as_tensor(imread(path))
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.05
    audit(nn.LayerNorm(3)).plot(str(tmp_path / "constants.svg"))
    with pytest.raises(ValueError, match=r"matplotlib writes no \.nope"):
        audit(everything).plot(str(tmp_path / "audit.nope"))


def test_names_alone_can_be_problems():
    found = audit(nn.Linear(2, 2), problems=[("weight", "was written by nothing"), ("gone", "is lazy")])
    assert {(name, finding.text) for name, finding in found.errors} == {
        ("weight", "was written by nothing"),
        ("gone", "is lazy"),
    }
    assert "gone" in shown(found)


def test_odd_arguments_promise_nothing():
    with accelerate():
        tensor = nn.init.normal_(torch.empty(50, 50), std=torch.tensor(2.0))
    from fastinit.models.origins import origin_of

    (fill,) = origin_of(tensor).fills
    assert moments_of(fill) == (0.0, 2.0)
    assert moments_of(fill._replace(source=fill.source._replace(values=("a", "b")))) is None
    assert moments_of(fill._replace(source=fill.source._replace(initialiser="dirac_"))) is None


# --- the command -------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

class Config:
    def __init__(self, width=8, deep=False):
        if width < 1:
            raise ValueError("too narrow")
        self.width, self.deep = width, deep

class Model(nn.Module):
    def __init__(self, config, hole=False):
        super().__init__()
        self.linear = nn.Linear(config.width, 40)
        if hole:
            self.hole = nn.Parameter(torch.empty(5))
        if config.deep:
            self.drawn = nn.Parameter(torch.empty(5, dtype=torch.complex64))
            nn.init.normal_(self.drawn)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "audited_here.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return "audited_here"


def test_the_command(capsys, here, tmp_path):
    config = f"config={here}:Config(width=30, deep=True)"
    command = ["audit", f"{here}:Model", "--set", config, "--json", "found.json", "--plot", "found.png"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert re.search(r"linear\.weight +kaiming_uniform_", text)
    assert re.search(r"^drawn by torch: normal_, 1 time$", text, re.MULTILINE)
    rows = json.loads((tmp_path / "found.json").read_text())["parameters"]
    assert {row["name"]: row["shape"] for row in rows}["linear.weight"] == [40, 30]
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_the_command_fails_for_what_is_wrong(capsys, here):
    assert main(["audit", f"{here}:Model", "--set", f"config={here}:Config()", "hole=True"]) == 1
    assert re.search(r"error: hole: was written by nothing", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["config={}:Config(width=0)"], r"Config\(width=0\) raised ValueError: too narrow"),
        (["config={}:Config(width=x)"], r"expected MODULE:CALLABLE\(NAME=VALUE, ...\) with Python literals"),
        (["config={}:Nope()"], "has no 'Nope'"),
        (["config=none.such:Config()"], "cannot import 'none.such'"),
        (["config=3"], r"Model\(config=3\) raised AttributeError"),
    ],
)
@pytest.mark.parametrize("command", ["audit", "compare"])
def test_nonsense_is_one_clear_line(capsys, here, command, settings, words):
    assert main([command, f"{here}:Model", "--set", *(text.format(here) for text in settings)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(words, captured.err), captured.err


def test_files_that_cannot_be_written_are_told_before_the_work(capsys, here):
    for option in (["--json", "no/such/folder.json"], ["--plot", "found.nope"]):
        assert main(["audit", f"{here}:Model", "--set", f"config={here}:Config()", *option]) == 2
        assert capsys.readouterr().err.count("\n") == 1
