"""Inside torch.compile: the bits of eager calls, in their order, or an error that says why not."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from common import FLOATS, same_bits
from graphs import BACKENDS, FAR, FAST_BACKENDS, all_same, graphs, twice, whole, words

import fastinit
from fastinit import Stream
from fastinit.initialisers.table import COUNTING, DTYPES

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own while it compiles; what counts here are bits

NUMBERS: dict[str, tuple[Any, ...]] = {
    "uniform_": (-1.0, 2), "normal_": (1.0, 2.0), "trunc_normal_": (0.0, 1.0, -0.5, 2), "xavier_uniform_": (2,),
    "xavier_normal_": (), "kaiming_uniform_": (0, "fan_out", "relu"), "kaiming_normal_": (math.sqrt(5),),
    "variance_scaling_": (2.0, "fan_geo_avg"), "lecun_normal_": (), "lecun_uniform_": (), "glorot_normal_": (),
    "glorot_uniform_": (), "he_normal_": (), "he_uniform_": (), "uniform_unit_scaling_": (1.5,),
    "depth_scaled_normal_": (0.02, 12), "mup_normal_": (0.02, 4.0, "output"), "bernoulli_": (0.3,), "cauchy_": (),
    "exponential_": (2,), "geometric_": (0.2,), "log_normal_": (), "random_": (0, 2), "orthogonal_": (2.0,),
    "sparse_": (0.3,),
}  # fmt: skip
OTHER_DTYPES = [
    dtype if dtype is torch.bool else pytest.param(dtype, marks=pytest.mark.slow)
    for dtype in sorted({*FLOATS, *COUNTING} - {torch.float32}, key=str)
]


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def draw_all(dtype: torch.dtype, stream: Stream | None) -> list[torch.Tensor]:
    """What every initialiser draws in a dtype: into a contiguous and a strided tensor."""
    drawn = []
    for name, numbers in NUMBERS.items():
        if dtype in DTYPES.get(name, FLOATS):
            for tensor in (torch.zeros(4, 6, dtype=dtype), torch.zeros(6, 8, dtype=dtype)[:, ::2].t()):
                drawn.append(getattr(fastinit, name)(tensor, *numbers, stream=stream))
    return drawn


@pytest.mark.parametrize("stream", [FAR, None], ids=["stream", "default generator"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_bits_are_those_of_eager_calls(backend, stream):
    """And the default generator gives one number a call, of each run anew."""
    eager = twice(draw_all, torch.float32, stream)
    assert all_same(twice(whole(draw_all, backend), torch.float32, stream), eager)
    assert graphs() == 1
    half = (len(eager) - 1) // 2
    assert all_same(eager[:half], eager[half:-1]) is (stream is not None)


def test_torchs_bits_are_others():
    drawn = []
    for module in (torch.nn.init, fastinit):
        torch.manual_seed(4)
        drawn.append(whole(module.normal_)(torch.zeros(64)))
    assert not same_bits(*drawn)


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
def test_bits_in_every_dtype(dtype):
    assert all_same(twice(whole(draw_all, "aot_eager"), dtype, FAR), twice(draw_all, dtype, FAR))


def mix(x: torch.Tensor) -> list[torch.Tensor]:
    """Draws whose results nobody uses, draws into what compilers take for equal, torch's draws between them."""
    fastinit.normal_(torch.zeros(4))
    first, second, large = torch.zeros(4), torch.zeros(4), torch.zeros(5000)
    fastinit.normal_(large)
    noise = torch.rand(3)
    fastinit.normal_(second)
    fastinit.normal_(first)
    return [first + 1, second, noise, (large * 2).sum(0), fastinit.bernoulli_(torch.empty_like(x)) * x]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_no_draw_is_dropped_merged_or_moved(backend):
    eager = twice(mix, torch.ones(5))
    assert all_same(twice(whole(mix, backend), torch.ones(5)), eager)
    assert not torch.equal(eager[0] - 1, eager[1])


def many(x: torch.Tensor) -> list[torch.Tensor]:
    """Draws that would be sorted by what memory they need."""
    tensors = [torch.empty(n) for n in (100, 5000, 7, 300_000, 64, 9, 2048, 33, 1, 70_000)]
    for at in (3, 0, 9, 2, 5, 7, 1, 8, 4, 6):
        (fastinit.normal_ if at % 2 else fastinit.uniform_)(tensors[at])
    fastinit.uniform_(torch.empty(3))
    return [tensors[9].view(70, 1000)[0] * x[0], tensors[3][:9] + 1, torch.cat([tensors[2], tensors[7]]), tensors[5]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_keep_their_order(backend):
    assert all_same(twice(whole(many, backend), torch.ones(1)), twice(many, torch.ones(1)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_streams_and_numbers_may_change_without_another_graph(backend):
    def filled(tensor, stream, seed):
        fastinit.normal_(tensor[0], stream=stream)
        return fastinit.normal_(tensor[1], stream=Stream(seed, 1))

    compiled = whole(filled, backend)
    for seed in (1, 3, 2**40, 2**63 - 1, 2**63, 2**64 - 1, 4, 5, 6, 7):
        stream = Stream.named(str(seed), seed)
        pair = torch.zeros(2, 2, 9)
        compiled(pair[0], stream, seed)
        filled(pair[1], stream, seed)
        assert same_bits(*pair)
    assert graphs() <= 5  # of ten: the first, one for other values, some for what is beyond 63 bits


def test_numbers_may_be_known_only_when_the_graph_runs():
    def filled(tensor, std):
        return fastinit.normal_(tensor, 0.0, std, stream=FAR)

    compiled = whole(filled, "aot_eager", dynamic=True)
    numbers = (0.5, 3, 0.25, torch.tensor(1.5))
    for std in numbers if torch.__version__ >= "2.9" else numbers[:-1]:  # torch 2.8 stops at a tensor
        assert same_bits(compiled(torch.zeros(9), std), filled(torch.zeros(9), std))


def test_another_thread_draws_as_ever_while_one_compiles():
    generator, done, right = torch.Generator(), threading.Event(), []
    expected = fastinit.normal_(torch.empty(6, 4).t(), generator=generator.manual_seed(1))

    def draw() -> None:
        while not done.is_set():
            drawn = fastinit.normal_(torch.empty(6, 4).t(), generator=generator.manual_seed(1))
            right.append(same_bits(drawn, expected))

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        whole(fastinit.kaiming_normal_, "aot_eager")(torch.zeros(4, 4))
    finally:
        done.set()
        thread.join()
    assert right
    assert all(right)


def test_streams_are_named_inside():
    def filled(tensor, name, stream):
        fastinit.normal_(tensor[0], stream=Stream.named(name, 2**64 - 1))
        fastinit.normal_(tensor[1], stream=Stream.named(("a", name), 3).child("zeros"))
        return fastinit.normal_(tensor[2], stream=stream.child("b"))

    pair = torch.zeros(2, 3, 9)
    compiled = whole(filled)
    for name, stream in (("w", FAR), ("v", Stream(1, 2))):
        compiled(pair[0], name, stream)
        filled(pair[1], name, stream)
        assert same_bits(*pair)


def test_a_generator_is_an_error_that_names_the_way_out():
    generator = torch.Generator().manual_seed(1)

    def filled(tensor):
        return fastinit.normal_(tensor, generator=generator)

    for fullgraph in (True, False):
        with pytest.raises(
            Exception, match=r"normal_ takes no generator= inside .* use stream=fastinit.Stream\(seed\)"
        ):
            torch.compile(filled, backend="eager", fullgraph=fullgraph)(torch.zeros(9))


def test_torch_draws_where_it_is_asked_to():
    def seeded(function, tensor, **keywords):
        torch.manual_seed(4)
        return whole(lambda tensor: function(tensor, **keywords))(tensor)

    theirs = seeded(torch.nn.init.normal_, torch.zeros(64))
    flagged = torch.zeros(64)
    fastinit.flag(flagged, False)
    assert same_bits(seeded(fastinit.normal_, torch.zeros(64), fast=False), theirs)
    assert same_bits(seeded(fastinit.normal_, flagged), theirs)
    assert not same_bits(seeded(fastinit.normal_, torch.zeros(64)), theirs)
    with pytest.raises(Exception, match=words("fast=False asks for torch.nn.init")):
        whole(fastinit.normal_)(torch.zeros(64), fast=False, stream=FAR)
    each = whole(lambda tensor: fastinit.bernoulli_(tensor, torch.tensor([0.0, 1.0])))  # of its own probability
    assert each(torch.full((2,), 0.5)).tolist() == [0, 1]
    with pytest.raises(Exception, match="one number for all elements"):
        whole(lambda tensor: fastinit.normal_(tensor, std=torch.ones(64), stream=FAR))(torch.zeros(64))


def test_a_flag_that_comes_later_counts():
    compiled, tensor = whole(fastinit.normal_), torch.zeros(64)
    compiled(tensor)
    fastinit.flag(tensor, False)
    torch.manual_seed(4)
    theirs = whole(torch.nn.init.normal_)(torch.zeros(64))
    torch.manual_seed(4)
    assert same_bits(compiled(tensor), theirs)


def test_fast_insists_on_a_compiled_engine_when_the_graph_runs():
    compiled = whole(lambda tensor: fastinit.normal_(tensor, fast=True, stream=FAR))
    assert same_bits(compiled(torch.zeros(64)), fastinit.normal_(torch.zeros(64), stream=FAR))
    with fastinit.use_engine("eager"), pytest.raises(RuntimeError, match="compiled engine"):
        compiled(torch.zeros(64))


WRONG = {
    "range": lambda t: fastinit.uniform_(t, 3.0, 1.0),
    "std": lambda t: fastinit.trunc_normal_(t, std=-1.0),
    "truth": lambda t: fastinit.kaiming_normal_(t.view(2, 2), True),
    "mode": lambda t: fastinit.kaiming_normal_(t.view(2, 2), mode="x"),
    "dimensions": lambda t: fastinit.xavier_normal_(t),
    "layout": lambda t: fastinit.xavier_normal_(t.view(2, 2), layout="ii"),
    "bounds": lambda t: fastinit.random_(t, 3, 3),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_errors_are_those_of_eager_calls(call, backend):
    tensor = torch.ones(4)
    with pytest.raises(Exception) as eager:  # noqa: PT011  (of several types)
        call(torch.ones(4))
    with pytest.raises(eager.type) as compiled:
        whole(call, backend)(tensor)
    assert str(compiled.value).startswith(str(eager.value))  # torch 2.8 says where, too
    assert (tensor == 1).all()
    assert torch.is_grad_enabled()  # `torch.no_grad` in the graph would have been left on


def test_what_only_memory_tells_is_asked_when_the_graph_runs():
    with pytest.raises(RuntimeError, match=r"normal_ was compiled for fastinit.*its elements may share memory"):
        whole(lambda tensor: fastinit.normal_(tensor.expand(4, 3)))(torch.zeros(3))
    with pytest.raises(Exception, match=words("stream is a fastinit.Stream, got int")):
        whole(lambda tensor: fastinit.normal_(tensor, stream=3))(torch.zeros(3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_has_the_right_scale_for_every_shape(backend):
    def filled(x):
        weight = x.new_empty(2 * x.shape[0], x.shape[1])
        return [
            fastinit.kaiming_normal_(weight.clone(), stream=FAR),
            fastinit.xavier_uniform_(weight.clone(), fan_in=x.shape[1], fan_out=5, stream=FAR),
            fastinit.orthogonal_(weight.clone(), stream=FAR),
            fastinit.normal_(weight.clone(), std=1 / math.sqrt(x.shape[1]), stream=FAR),
        ]

    compiled = whole(filled, backend, dynamic=True)
    for shape in ((4, 6), (8, 3), (5, 7)):
        assert all_same(compiled(torch.zeros(shape)), filled(torch.zeros(shape)))
    assert graphs() == 1


def test_eager_calls_in_between_need_no_other_graph():
    compiled = whole(fastinit.normal_)
    for at in range(3):
        compiled(torch.zeros(8))
        fastinit.normal_(torch.zeros(8), 0.125, 3.5 + at)  # remembered by the fast path
    assert graphs() == 1


def test_a_shard_is_a_part_of_the_same_tensor():
    def filled(local):
        fastinit.kaiming_normal_(fastinit.shard(local, (8, 6), (2, 0)), stream=FAR)
        return local

    whole_tensor = fastinit.kaiming_normal_(torch.empty(8, 6), stream=FAR)
    assert same_bits(whole(filled, "aot_eager")(torch.zeros(3, 6)), whole_tensor[2:5])


def test_structured_weights_are_those_of_eager_calls():
    def filled():
        return [
            fastinit.convolution_orthogonal_(torch.empty(3, 3, 4, 6), stream=FAR, layout="ssio"),
            fastinit.delta_orthogonal_(torch.empty(6, 4, 3), stream=FAR),
            fastinit.orthogonal_(torch.empty(3, 5), stream=FAR, column_axis=-1),
            fastinit.identity_(torch.empty(3, 4), 2.0),
            fastinit.constant_(torch.empty(3), [1.0, 2.0]),
        ]

    assert all_same(whole(filled, "aot_eager")(), filled())
