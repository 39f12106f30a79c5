"""Operators in graphs of modules: exported, differentiated, under transforms; and what torch finds wrong with them."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from common import python, same_bits
from graphs import FAR, FAST_BACKENDS, all_same, twice, whole, words
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastinit
from fastinit import Stream

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own while it compiles; what counts here are bits


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


class Noisy(torch.nn.Module):
    """A module that draws into a parameter, a buffer and fresh tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)
        self.register_buffer("state", torch.zeros(4, 3))

    def reset_parameters(self) -> None:
        fastinit.kaiming_uniform_(self.layer.weight, a=math.sqrt(5))
        fastinit.uniform_(self.layer.bias, -0.1, 0.1)
        fastinit.orthogonal_(self.state)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        fastinit.xavier_normal_(self.state)
        fastinit.normal_(torch.zeros(4))  # and nobody looks at it
        fresh = fastinit.exponential_(torch.empty(x.shape[0], 3), stream=Stream.named("fresh", 2**64 - 1))
        return [x + fastinit.normal_(torch.empty_like(x)), fresh, self.state * 1]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_module_is_reset_in_one_graph(backend):
    states = []
    for wrap in (lambda function: function, lambda function: whole(function, backend)):
        module = Noisy()
        torch.manual_seed(3)
        wrap(module.reset_parameters)()
        states.append([*module.state_dict().values()])
    assert all_same(*states)
    assert module.layer.weight._version > 0


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_draw_the_same(strict):
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=99)}}
    program = torch.export.export(Noisy(), (torch.ones(4, 3),), strict=strict, dynamic_shapes=rows)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    for x in (torch.ones(4, 3), torch.ones(7, 3)):
        eager = twice(Noisy(), x)
        for ran in (program, torch.export.load(saved), program.run_decompositions()):
            saved.seek(0)
            assert all_same(twice(ran.module(), x), eager)
    assert "fastinit.initialise_" in program.graph_module.code


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_autograd_hears_of_the_write_and_of_nothing_else(backend):
    leaf = torch.nn.Parameter(torch.ones(4, 4))
    loss = (leaf * leaf).sum()
    whole(lambda: fastinit.kaiming_normal_(leaf, stream=FAR), backend)()
    assert same_bits(leaf.detach(), fastinit.kaiming_normal_(torch.empty(4, 4), stream=FAR))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

    def scaled(x):
        noise = fastinit.normal_(torch.empty_like(x))
        return (torch.sin(noise * x) * noise).sum()

    gradients = []
    for function in (scaled, whole(scaled, backend)):
        x = torch.ones(5, requires_grad=True)
        torch.manual_seed(8)
        function(x).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_is_run_again_must_draw_the_same(backend):
    """torch.utils.checkpoint inside a graph: from a stream, or an error."""

    def scaled(x, stream):
        noise = fastinit.normal_(torch.empty_like(x), stream=stream)
        return (torch.sin(noise * x) * noise).sum()

    def again(x, stream):
        return checkpoint(scaled, x, stream, use_reentrant=False)

    gradients = []
    for function in (again, whole(again, backend)):
        x = torch.ones(5, requires_grad=True)
        function(x, FAR).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(Exception, match=r"inside torch.utils.checkpoint .* use stream=fastinit.Stream\(seed\)"):
        whole(again, backend)(x, None)


def test_functorch_and_tracers_are_as_torch_has_them():
    def noise(x, **keywords):
        return fastinit.normal_(torch.empty_like(x), **keywords) + x

    def torchs(x):
        return torch.nn.init.normal_(torch.empty_like(x)) + x

    def batched(x, function=noise, **keywords):
        return torch.func.vmap(lambda row: function(row, **keywords), randomness="different")(x)

    assert all_same(twice(whole(batched), torch.ones(2, 3)), twice(batched, torch.ones(2, 3), torchs))
    gradient = torch.func.grad(lambda x: (noise(x) * x).sum())
    assert whole(gradient)(torch.ones(3)).shape == (3,)
    with pytest.raises(Exception, match=words("a functorch transform is active")):
        whole(batched)(torch.ones(2, 3), noise, stream=FAR)
    assert "aten.normal_" in make_fx(noise)(torch.ones(3)).code
    with pytest.raises(RuntimeError, match=r"torch.nn.init cannot serve stream="):
        make_fx(lambda x: noise(x, stream=FAR))(torch.ones(3))
    called = torch.func.functional_call(Noisy(), {"state": torch.zeros(4, 3)}, (torch.ones(2, 3),))
    assert same_bits(called[1], fastinit.exponential_(torch.empty(2, 3), stream=Stream.named("fresh", 2**64 - 1)))


@pytest.mark.parametrize("make", [lambda: torch.zeros(3, 4), lambda: torch.zeros(4, 6)[:, ::2].t()])
@pytest.mark.parametrize("drawn", [None, torch.tensor(-7)], ids=["stream", "drawn"])
def test_torch_finds_nothing_wrong_with_the_operators(drawn, make):
    options: dict[str, Any] = dict.fromkeys(("layout", "fan_in", "fan_out", "shape", "offset"))
    options |= {"drawn": drawn, "seed": -3, "stream_id": 4, "compiled": False, "groups": 1}
    arguments = (make(), "kaiming_normal_", [0.0], ["fan_in", "relu"])
    found = torch.library.opcheck(torch.ops.fastinit.initialise_.default, arguments, options)
    found |= torch.library.opcheck(
        torch.ops.fastinit.seed.default,
        (torch.zeros(1),),
        {"device": torch.device("cpu"), "shared": False},
        test_utils="test_schema",
    )
    assert set(found.values()) == {"SUCCESS"}
    assert torch.Tag.nondeterministic_seeded in torch.ops.fastinit.seed.default.tags


def test_the_import_is_light_and_may_be_repeated():
    assert (
        python("""
import sys, torch
import fastinit
assert "torch._dynamo" not in sys.modules
for name in [name for name in sys.modules if name.partition(".")[0] == "fastinit"]:
    del sys.modules[name]
import fastinit as again
assert again is not fastinit
drawn = torch.compile(again.normal_, fullgraph=True, backend="eager")(torch.empty(9), stream=again.Stream(3))
print(torch.equal(drawn, fastinit.normal_(torch.empty(9), stream=fastinit.Stream(3))))
""").strip()
        == "True"
    )
