"""transformers replaces functions of torch.nn.init while it loads a model: what it loaded stays."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from common import python, same_bits
from torch import nn

import fastinit
from fastinit.drawing import originals

ROOT = Path(__file__).parent.parent

with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
    warnings.simplefilter("ignore")
    # transformers would take our folder kernels/ for the package of that name.
    patch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() != ROOT])
    pytest.importorskip(
        "transformers", minversion="5", reason="transformers is not installed: pip install -e '.[libraries]'"
    )
    from safetensors.torch import load_file, save_file
    from transformers import PretrainedConfig, PreTrainedModel, initialization

LOADED = 5.0  # the value of every parameter in the file
GUARDED = tuple(initialization.TORCH_INIT_FUNCTIONS)


class Config(PretrainedConfig):
    model_type = "fastinit-test"


class Model(PreTrainedModel):
    """Two layers, initialised by fastinit."""

    config_class = Config
    made_by: dict = {}  # noqa: RUF012  (keywords of fastinit.normal_)

    def __init__(self, config):
        super().__init__(config)
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            fastinit.normal_(module.weight, std=0.02, **self.made_by)
            fastinit.constant_(module.bias, 0.25)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A folder whose model has every parameter at LOADED, and no first.weight and second.bias."""
    monkeypatch.setattr(Model, "made_by", {})
    model = Model(Config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(LOADED)
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    del tensors["first.weight"], tensors["second.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("keywords", [{}, {"fast": True}, {"fast": False}, {"stream": fastinit.Stream(9)}], ids=str)
def test_from_pretrained_keeps_what_was_loaded_and_draws_the_rest(checkpoint, keywords, monkeypatch):
    monkeypatch.setattr(Model, "made_by", keywords)
    torch.manual_seed(4)
    model = Model.from_pretrained(checkpoint)
    assert (model.second.weight == LOADED).all()
    assert (model.first.bias == LOADED).all()
    assert (model.second.bias == 0.25).all()
    torch.manual_seed(4)
    by = torch.nn.init.normal_ if keywords.get("fast") is False else fastinit.normal_
    drawing = {} if keywords.get("fast") is False else keywords
    assert same_bits(model.first.weight.detach(), by(torch.empty(32, 32), std=0.02, **drawing))


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("marked", [True, False])
def test_under_the_guard_marked_parameters_stay_and_others_are_ours(name, marked):
    arguments = {"constant_": (0.5,), "sparse_": (0.5,)}.get(name, ())
    shape = (4, 4, 3) if name == "dirac_" else (4, 4)
    tensor = nn.Parameter(torch.full(shape, LOADED))
    torch.manual_seed(6)
    expected = getattr(fastinit, name)(tensor.detach().clone(), *arguments)
    tensor._is_hf_initialized = marked
    state = torch.get_rng_state()
    torch.manual_seed(6)
    with initialization.guard_torch_init_functions():
        assert originals.is_guard(name, getattr(torch.nn.init, name))
        assert getattr(fastinit, name)(tensor, *arguments) is tensor
    torch.set_rng_state(state)
    assert same_bits(tensor.detach(), torch.full(shape, LOADED) if marked else expected)


def test_shards_of_marked_parameters_stay():
    local = nn.Parameter(torch.full((2, 4), LOADED))
    local._is_hf_initialized = True
    box = fastinit.shard(local, (4, 4), (0, 0))
    with initialization.guard_torch_init_functions():
        for name in ("normal_", "kaiming_uniform_", "orthogonal_", "zeros_", "eye_"):
            assert getattr(fastinit, name)(box) is box
        fastinit.xavier_normal_(box, layout="io", stream=fastinit.Stream(1))
    assert (local == LOADED).all()


@pytest.mark.parametrize("name", GUARDED)
def test_no_init_weights_skips(name):
    arguments = {"constant_": (0.5,), "sparse_": (0.5,)}.get(name, ())
    tensor = torch.full((4, 4, 3) if name == "dirac_" else (4, 4), LOADED)
    with initialization.no_init_weights():
        getattr(fastinit, name)(tensor, *arguments)
        if name == "normal_":
            with pytest.raises(RuntimeError, match=r"replaced by transformers\.initialization"):
                fastinit.normal_(tensor, fast=True)
    assert (tensor == LOADED).all()


ALL_OURS = """
import os, sys, warnings
warnings.simplefilter("ignore")
# The folder kernels/ is not the package that transformers looks for.
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
import torch, fastinit
for name in ("uniform_", "normal_", "kaiming_uniform_", "ones_", "zeros_"):
    setattr(torch.nn.init, name, getattr(fastinit, name))
from transformers import initialization
torch.manual_seed(1)
expected = fastinit.normal_(torch.empty(4))
loaded = torch.nn.Parameter(torch.zeros(4))
loaded._is_hf_initialized = True
with initialization.guard_torch_init_functions():
    for call in (torch.nn.init.normal_, fastinit.normal_, initialization.normal_):
        torch.manual_seed(1)
        assert torch.equal(call(torch.empty(4)), expected)
        assert not call(loaded).any()
"""
IMPORTED_UNDER_GUARD = """
import os, sys, warnings
warnings.simplefilter("ignore")
# The folder kernels/ is not the package that transformers looks for.
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
import torch
from transformers import initialization
torchs = torch.nn.init.normal_
torch.manual_seed(1)
expected = torchs(torch.empty(4))
with initialization.guard_torch_init_functions():
    import fastinit
    for _ in range(2):
        torch.manual_seed(1)
        assert torch.equal(fastinit.normal_(torch.empty(4), fast=False), expected)
        torch.manual_seed(1)
        assert not torch.equal(fastinit.normal_(torch.empty(4)), expected)
torch.manual_seed(1)
assert torch.equal(fastinit.normal_(torch.empty(4), fast=False), expected)
fastinit.normal_(torch.empty(4))
assert fastinit.drawing.originals.originals["normal_"] is fastinit.drawing.originals.torch_init.normal_ is torchs
"""


@pytest.mark.parametrize("code", [ALL_OURS, IMPORTED_UNDER_GUARD], ids=["ours in torch's place", "guard at our import"])
def test_in_a_process_of_its_own(code):
    python(code)
