"""Lists of tensors in place of a tensor: bits, errors and generators of a loop, drawn in one job."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from common import same_bits
from torch import Tensor

import fastinit
from fastinit import Stream, batch, init
from fastinit.initialisers import functions, quick
from fastinit.kernels.cpu import helpers

ARGUMENTS = {
    "constant_": (0.3,),
    "sparse_": (0.5,),
    "geometric_": (0.3,),
    "bernoulli_": (torch.linspace(0, 1, 12),),
}  # fmt: skip
CONVOLUTIONS = ("dirac_", "delta_orthogonal_", "convolution_orthogonal_")
DRAWING = [name for name, one in functions.items() if "stream" in inspect.signature(one).parameters]


def made(name: str) -> list[Tensor]:
    shape = (12, 6, 3) if name in CONVOLUTIONS else (7, 12)
    dtype = torch.int32 if name == "bits_" else torch.float32
    return [torch.full(shape, 7, dtype=dtype), torch.full(shape, 7, dtype=dtype).transpose(0, 1).contiguous().mT,
            torch.nn.Parameter(torch.full(shape, 7, dtype=dtype), requires_grad=False)]  # fmt: skip


def call(name: str, target: object, **named: object) -> object:
    return functions[name](target, *ARGUMENTS.get(name, ()), **named)


def jobs_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each job has that is done from now on."""
    done: list[int] = []
    run = helpers.run

    def counted(rows: int, number: int, *rest: int) -> None:
        done.append(number)
        run(rows, number, *rest)

    monkeypatch.setattr(helpers, "run", counted)
    return done


# --- the same as a loop ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("name", functions)
def test_bits_and_generators_are_those_of_a_loop(name, kind):
    ours, theirs = kind(made(name)), made(name)
    for _ in range(2):  # the second time what these calls do is known
        torch.manual_seed(5)
        for tensor in theirs:
            call(name, tensor)
        after = torch.rand(1)
        torch.manual_seed(5)
        assert call(name, ours) is ours
        assert torch.equal(torch.rand(1), after)
        assert all(map(same_bits, ours, theirs))


@pytest.mark.parametrize("name", DRAWING)
def test_a_stream_for_each(name):
    ours, theirs = made(name), made(name)
    streams = [Stream(1), Stream(1, 2**64 - 1), Stream(2**64 - 1, 3)]
    for tensor, stream in zip(theirs, streams, strict=True):
        call(name, tensor, stream=stream)
    call(name, ours, stream=streams)
    assert all(map(same_bits, ours, theirs))


@pytest.mark.parametrize("name", DRAWING)
def test_one_stream_for_all_would_repeat_its_numbers_and_is_refused(name):
    ours = made(name)
    before = [tensor.clone() for tensor in ours]
    with pytest.raises(TypeError, match="one for all would give them the same numbers"):
        call(name, ours, stream=Stream(1))
    with pytest.raises(ValueError, match="a stream for each of the 3 tensors; got 2"):
        call(name, ours, stream=[Stream(1)] * 2)
    for wrong, named in ((None, "NoneType"), (2, "int")):
        with pytest.raises(TypeError, match=rf"stream\[1\] is a fastinit.Stream, got {named}"):
            call(name, ours, stream=[Stream(1), wrong, Stream(3)])
    with pytest.raises(ValueError, match="not both"):
        call(name, ours, generator=torch.Generator(), stream=[Stream(1), Stream(2), Stream(3)])
    assert all(map(same_bits, ours, before))


def odd_ones() -> list[object]:
    """Tensors of all kinds, ordinary ones between them."""
    memory = torch.zeros(3000)
    with torch.inference_mode():
        inference = torch.zeros(3, 3).clone()
    found: list[object] = [inference]
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        found += [torch.zeros(40, 30, dtype=dtype), torch.zeros(30, 40, dtype=dtype).t()]
        found += [torch.zeros(1, 1, dtype=dtype)]
    found += [memory[:2000].view(40, 50), memory[1000:].view(40, 50), memory[:2000].view(40, 50)]  # in one place
    found += [torch.zeros(40, 60)[:, ::2], torch.zeros(1203)[3:].view(40, 30), torch.zeros(2200, 2048)]
    found += [torch.nn.Parameter(torch.zeros(9, 9)), torch.zeros(9, 9, dtype=torch.complex64)]
    found += [fastinit.shard(torch.zeros(5, 9), (20, 9), (5, 0)), torch.zeros(4, 4, device="meta")]
    found += [torch.zeros(1, 1, dtype=torch.complex64).conj().imag]  # negated lazily
    found += [torch.zeros(7, 7) for _ in range(5)]
    return found


def plain(target: object) -> Tensor:
    local = target.local if isinstance(target, fastinit.shard(torch.zeros(1), (1,), (0,)).__class__) else target
    return torch.zeros(0) if local.is_meta else local.resolve_neg()


@pytest.mark.parametrize("name", ["normal_", pytest.param("xavier_uniform_", marks=pytest.mark.slow)])
def test_tensors_of_all_kinds(name):
    with torch.inference_mode():
        ours, theirs = odd_ones(), odd_ones()
        for _ in range(2):
            torch.manual_seed(5)
            for target in theirs:
                getattr(init, name)(target)
            torch.manual_seed(5)
            getattr(init, name)(ours)
            assert all(same_bits(plain(a), plain(b)) for a, b in zip(ours, theirs, strict=True))


def test_the_same_tensor_twice_and_an_explicit_generator():
    tensor, other = torch.zeros(100), torch.zeros(100)
    generator = torch.Generator().manual_seed(4)
    init.normal_([tensor, other, tensor], generator=generator)
    expected = [torch.zeros(100) for _ in range(3)]
    again = torch.Generator().manual_seed(4)
    for one in expected:
        init.normal_(one, generator=again)
    assert same_bits(tensor, expected[2])
    assert same_bits(other, expected[1])
    assert torch.equal(generator.get_state(), again.get_state())


def test_no_tensors():
    state = torch.get_rng_state()
    for name in functions:
        empty: list[Tensor] = []
        assert call(name, empty) is empty
    assert torch.equal(torch.get_rng_state(), state)


def test_flags_engines_and_functions_in_torchs_place(monkeypatch):
    flagged, other = torch.zeros(9), torch.zeros(9)
    fastinit.flag(flagged, False)
    torch.manual_seed(1)
    init.normal_([other, flagged])
    torch.manual_seed(1)
    init.normal_(torch.zeros(9))
    assert same_bits(flagged, torch.nn.init.normal_(torch.zeros(9)))  # torch's bits
    expected = init.normal_(torch.zeros(9), stream=Stream(3))
    for engine in ("reference", "eager", "cpu"):
        with fastinit.use_engine(engine):
            [drawn] = init.normal_([torch.zeros(9)], stream=[Stream(3)])
            assert same_bits(drawn, expected), engine
    torch.manual_seed(1)
    ours = init.normal_([torch.zeros(9), torch.zeros(5)], fast=False)
    torch.manual_seed(1)
    assert all(map(same_bits, ours, [torch.nn.init.normal_(torch.zeros(9)), torch.nn.init.normal_(torch.zeros(5))]))
    assert same_bits(init.normal_([torch.zeros(9)], fast=True, stream=[Stream(3)])[0], expected)
    seen: list[int] = []
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, *rest: seen.append(tensor.numel()) or tensor)
    init.normal_([torch.zeros(3), torch.zeros(5)])
    assert seen == [3, 5]


def test_lists_in_lists_and_other_lists():
    class Several(list):
        pass

    expected = [init.normal_(torch.zeros(4), stream=Stream(k)) for k in range(3)]
    inner = [torch.zeros(4), torch.zeros(4)]
    init.normal_(Several([inner, torch.zeros(4)]), generator=torch.Generator().manual_seed(1))
    assert all(bool(tensor.any()) for tensor in inner)
    drawn = init.normal_(Several(torch.zeros(4) for _ in range(3)), stream=tuple(Stream(k) for k in range(3)))
    assert all(map(same_bits, drawn, expected))
    with pytest.raises(AttributeError):
        init.normal_(torch.nn.ParameterList([torch.zeros(3)]))


def test_a_list_in_another_thread_than_its_batch():
    tensors = [torch.zeros(9) for _ in range(3)]
    init.normal_(tensors[0])
    with batch():
        thread = threading.Thread(target=init.normal_, args=(tensors,))
        thread.start()
        thread.join()
        assert all(bool(tensor.any()) for tensor in tensors)


@pytest.mark.parametrize("name", ["normal_", "ones_"])
def test_elements_with_code_of_their_own_find_what_stands_before_them_written(name):
    """And may take its memory away."""
    seen = []
    big = torch.zeros(300, 300)

    class Sub(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(bool(big.any()))
            big.data = torch.zeros(4, 4)
            return super().__torch_function__(function, types, args, kwargs or {})

    getattr(init, name)(torch.zeros(300, 300))
    getattr(init, name)([torch.zeros(5), big, torch.zeros(3).as_subclass(Sub), big])
    assert seen[0]
    assert big.shape == (4, 4)
    assert big.any()


@contextlib.contextmanager
def interrupted(number: int, handler: Callable[[], None]) -> Iterator[list[int]]:
    """Before the line of that number in fastinit's Python the handler is called, as a signal's would be.

    Yields how many lines there were.
    """
    lines = [0]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not any(folder in frame.f_code.co_filename for folder in ("fastinit/drawing", "fastinit/initialisers")):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == number:
                sys.settrace(None)
                handler()
                sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("name", ["normal_", "ones_"])
def test_fills_by_a_signal_handler_are_neither_lost_nor_put_off(name, batching):
    """Before any line of a list call and of a call, in a batch or not: with blocks of its own, and without."""
    function, other, found = getattr(init, name), torch.zeros(8), []
    tensors = [torch.zeros(8) for _ in range(5)]

    def handler() -> None:
        other.zero_()
        function(other)
        found.append(batching or bool(other.any()))
        with batch():
            function(other)

    function(tensors)
    number, lines = 1, [99]
    while number <= lines[0]:
        for tensor in tensors:
            tensor.zero_()
        with interrupted(number, handler) as lines, batch() if batching else contextlib.nullcontext():
            function(tensors[:4])
            function(tensors[4])
        assert all(bool(tensor.any()) for tensor in (*tensors, other)), number
        number += 1
    assert number > 40
    assert all(found)
    assert len(found) == number - 1


def test_in_a_graph():
    def draw(first: Tensor, second: Tensor) -> list[Tensor]:
        return init.normal_([first, second])

    torch.manual_seed(2)
    expected = draw(torch.zeros(20), torch.zeros(30))
    torch.manual_seed(2)
    got = torch.compile(draw, backend="eager", fullgraph=True)(torch.zeros(20), torch.zeros(30))
    assert all(map(same_bits, got, expected))


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "last", "arguments", "error"), [
    ("normal_", torch.zeros(3), (0.0, -1.0), RuntimeError),
    ("normal_", 3, (), AttributeError),
    ("xavier_normal_", torch.zeros(3), (), ValueError),
    ("ones_", None, (), AttributeError),
    ("orthogonal_", torch.zeros(3), (), ValueError),
])  # fmt: skip
def test_errors_are_those_of_a_loop_and_come_where_it_would_have_them(name, last, arguments, error):
    function = getattr(init, name)
    for _ in range(2):
        ours, theirs = ([torch.full((3, 4), 7.0) for _ in range(4)] for _ in range(2))
        torch.manual_seed(8)
        with pytest.raises(error) as alone:
            [function(tensor, *arguments) for tensor in (*theirs, last)]
        after = torch.rand(1)
        torch.manual_seed(8)
        with pytest.raises(error) as raised:
            function([*ours, last], *arguments)
        assert torch.equal(torch.rand(1), after)
        assert str(raised.value) == str(alone.value)
        assert all(map(same_bits, ours, theirs))


def test_warnings_point_at_the_caller():
    with pytest.warns(UserWarning, match="zero-element") as warned:
        init.kaiming_uniform_([torch.empty(0, 3)])
    with pytest.warns(UserWarning, match="more than 2 std") as far:
        init.trunc_normal_([torch.empty(9)], 5.0)
    assert warned[0].filename == far[0].filename == __file__


# --- one job -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal_", "xavier_uniform_", "constant_"])
def test_a_list_is_one_job_and_a_loop_many(name, monkeypatch):
    tensors = [torch.zeros(200, 300) for _ in range(1000)]
    call(name, tensors[:1])
    done = jobs_of(monkeypatch)
    call(name, tensors)
    assert done == [1000]
    assert all(bool(tensor.any()) for tensor in tensors)
    del done[:]
    with batch():
        call(name, tensors[:600])
        call(name, tensors[600:])
        assert not done
    assert done == [1000]


def test_ordinary_tensors_are_not_served_one_by_one(monkeypatch):
    """After the first of each dtype; and those behind an odd one are many at a time again."""
    ordinary = [torch.zeros(10) for _ in range(700)]
    init.normal_(ordinary[0])
    served: list[object] = []
    one_by_one = quick.serve

    def counted(name: str, target: object, *rest: object) -> object:
        served.append(target)
        return one_by_one(name, target, *rest)

    monkeypatch.setattr(quick, "serve", counted)
    odd = torch.zeros(20)[::2]
    quick.serve_list(
        "normal_", [*ordinary[:300], odd, *ordinary[300:]], (0.0, 1.0), None, None, None, None, False, None
    )
    assert served == [odd]
    assert all(bool(tensor.any()) for tensor in ordinary)


def test_autograd_hears_of_it():
    weight = torch.nn.Parameter(torch.ones(5))
    out = (weight * weight).sum()
    init.normal_([weight, torch.zeros(3)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_a_list_in_a_batch_keeps_its_place():
    tensor, expected = torch.zeros(50), torch.zeros(50)
    init.normal_(expected, stream=Stream(6))
    with batch():
        init.ones_([tensor])
        init.normal_([tensor], stream=[Stream(6)])
        assert not tensor.any()
    assert same_bits(tensor, expected)
    with batch():
        init.normal_([tensor], stream=[Stream(6)])
        init.ones_([tensor])
    assert bool((tensor == 1).all())
