"""Who draws: an argument beats a flag, a flag beats the environment."""

from __future__ import annotations

import copy
import os

import forked
import numpy as np
import pytest
import torch
from common import same_bits

import fastinit
from fastinit import Stream
from fastinit.drawing import engines


def is_torchs(tensor: torch.Tensor, **keywords) -> bool:
    """Whether normal_ on `tensor` draws torch's bits."""
    torch.manual_seed(7)
    expected = torch.nn.init.normal_(torch.empty(tensor.shape, dtype=tensor.dtype))
    torch.manual_seed(7)
    fastinit.normal_(tensor, **keywords)
    return same_bits(tensor.detach(), expected)


def test_fast_as_an_argument():
    assert not is_torchs(torch.empty(64))
    assert is_torchs(torch.empty(64), fast=False)
    assert not is_torchs(torch.empty(64), fast=True)


@pytest.mark.parametrize("name", ["xavier_uniform_", "kaiming_normal_", "trunc_normal_", "orthogonal_", "sparse_"])
def test_not_fast_is_torch_itself(name):
    arguments = (0.5,) if name == "sparse_" else ()
    torch.manual_seed(1)
    expected = getattr(torch.nn.init, name)(torch.empty(32, 16), *arguments)
    torch.manual_seed(1)
    assert same_bits(getattr(fastinit, name)(torch.empty(32, 16), *arguments, fast=False), expected)


def test_a_flag_on_a_tensor_and_its_removal():
    tensor, other = torch.empty(64), torch.empty(64)
    fastinit.flag(tensor, False)
    assert is_torchs(tensor)
    assert not is_torchs(other)
    assert not is_torchs(tensor, fast=True)
    fastinit.flag(tensor, None)
    assert not is_torchs(tensor)


def test_a_flag_survives_aliases():
    tensor = torch.empty(64)
    fastinit.flag(tensor, False)
    assert is_torchs(tensor.data)
    assert is_torchs(torch.nn.Parameter(tensor))
    assert is_torchs(tensor.detach())
    assert not is_torchs(tensor[:32])  # another tensor that shares memory
    square = torch.empty(8, 8)
    fastinit.flag(square[:, 0], False)
    assert is_torchs(square[:, 0])
    assert not is_torchs(square[0])
    assert not is_torchs(tensor.clone())


def test_a_flag_on_a_module_survives_to_and_parameter_wrapping():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    fastinit.flag(model[1], False)
    assert not is_torchs(model[0].weight)
    assert is_torchs(model[1].weight)
    model.to(torch.float64)
    assert is_torchs(model[1].weight)
    assert is_torchs(model[1].bias)
    assert not is_torchs(model[0].weight)
    fastinit.flag(model, None)
    assert not is_torchs(model[1].weight)


def test_a_deep_copy_and_a_saved_module_carry_no_flag(tmp_path):
    layer = torch.nn.Linear(8, 8)
    fastinit.flag(layer, False)
    assert not is_torchs(copy.deepcopy(layer).weight)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    assert not is_torchs(torch.load(tmp_path / "layer.pt")["weight"])


def test_a_flag_of_true_insists():
    tensor = torch.empty(64, dtype=torch.complex64)
    fastinit.flag(tensor, True)
    with pytest.raises(RuntimeError, match="does not cover complex64"):
        fastinit.normal_(tensor)


def test_a_flag_somewhere_changes_no_error_elsewhere():
    fastinit.flag(torch.empty(1), False)
    with pytest.raises(Exception, match="NoneType") as ours:
        fastinit.normal_(None)
    with pytest.raises(type(ours.value)) as theirs:
        torch.nn.init.normal_(None)
    assert str(ours.value) == str(theirs.value)


def test_the_memorys_flag_wins_over_the_objects():
    tensor = torch.empty(64)
    parameter = torch.nn.Parameter(tensor)
    fastinit.flag(tensor, False)
    fastinit.flag(parameter, None)
    assert not is_torchs(tensor)
    assert not is_torchs(parameter)


def test_flags_on_lazy_modules_and_meta_tensors():
    fastinit.flag(torch.nn.LazyLinear(3), False)
    fastinit.flag(torch.empty(3, device="meta"), False)


@pytest.mark.parametrize("fast", [0, 1, "no", np.False_], ids=repr)
def test_what_is_almost_a_truth_value_is_refused(fast):
    tensor = torch.full((4,), 7.0)
    with pytest.raises(ValueError, match="fast is True, False or None"):
        fastinit.normal_(tensor, fast=fast)
    with pytest.raises(ValueError, match="fast is True, False or None"):
        fastinit.flag(tensor, fast)
    assert (tensor == 7).all()


@pytest.mark.parametrize(("target", "error"), [(3, TypeError), ("weight", TypeError)])
def test_flag_refuses_what_is_no_tensor(target, error):
    with pytest.raises(error, match="tensor or a module"):
        fastinit.flag(target, False)


def in_process(environment: str | None, code: str) -> tuple[str, str]:
    """What it prints, and its errors."""
    variables = {k: v for k, v in os.environ.items() if k != "FASTINIT"}
    if environment is not None:
        variables["FASTINIT"] = environment
    return forked.run(code, variables)[1:]


COMPARE = """
import torch, fastinit
torch.manual_seed(0); ours = fastinit.normal_(torch.empty(64){})
torch.manual_seed(0); theirs = torch.nn.init.normal_(torch.empty(64))
print(torch.equal(ours, theirs))
"""


@pytest.mark.parametrize(
    ("environment", "keywords", "torchs"),
    [(None, "", False), ("0", "", True), ("0", ", fast=True", False), ("1", "", False), ("", "", False)],
)
def test_the_environment(environment, keywords, torchs):
    printed, errors = in_process(environment, COMPARE.format(keywords))
    assert printed.strip() == str(torchs), errors


def test_the_environment_of_one_insists():
    errors = in_process("1", "import torch, fastinit; fastinit.normal_(torch.empty(4, dtype=torch.complex64))")[1]
    assert "RuntimeError: fast=True cannot be kept" in errors


def test_the_environment_refuses_other_values():
    errors = in_process("fast", "import fastinit")[1]
    assert "FASTINIT is 0 (torch.nn.init), 1 (compiled or an error) or unset, got 'fast'" in errors


@pytest.mark.parametrize("name", ["reference", "cpu", "eager"])
def test_use_engine_forces_one(name, monkeypatch):
    used = []
    engine = engines.load(name)
    original = type(engine).fill

    def fill(self, *arguments):
        used.append(self.name)
        return original(self, *arguments)

    monkeypatch.setattr(type(engine), "fill", fill)
    with fastinit.use_engine(name):
        fastinit.normal_(torch.empty(4))
    assert used == [name]


def test_use_engine_and_fast_true():
    with fastinit.use_engine("eager"), pytest.raises(RuntimeError, match="needs a compiled engine"):
        fastinit.normal_(torch.empty(4), fast=True)
    with fastinit.use_engine("cpu"):
        fastinit.normal_(torch.empty(4), fast=True)


def test_use_engine_refuses_other_names_and_ends_with_its_block():
    with pytest.raises(ValueError, match="one of reference, cpu, gpu, eager; got 'gpu3'"), fastinit.use_engine("gpu3"):
        pass
    with pytest.raises(KeyError), fastinit.use_engine("reference"):
        raise KeyError
    assert engines.choose(torch.device("cpu"), torch.float32, False).name == "cpu"


def test_engines_agree_through_the_public_functions():
    results = []
    for name in ("reference", "cpu", "eager"):
        with fastinit.use_engine(name):
            results.append(fastinit.trunc_normal_(torch.empty(300), std=0.7, stream=Stream(3)))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])
