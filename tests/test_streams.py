"""Where streams come from: seeds, names, generators, torch's default."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import threading

import numpy as np
import pytest
import torch
from common import FakeCudaGenerator, python, same_bits

import fastinit
from fastinit import Stream
from fastinit.drawing.streams import drawn_seed


def test_the_default_generator_repeats_and_goes_on():
    torch.manual_seed(0)
    first, second = fastinit.normal_(torch.empty(64)), fastinit.normal_(torch.empty(64))
    torch.manual_seed(0)
    assert same_bits(fastinit.normal_(torch.empty(64)), first)
    assert same_bits(fastinit.normal_(torch.empty(64)), second)
    assert not same_bits(first, second)


def test_manual_seed_keeps_32_bits_and_a_stream_64():
    def numbers(seed, draw):
        torch.manual_seed(seed)
        return draw(torch.empty(64))

    for draw in (fastinit.normal_, torch.nn.init.normal_):
        assert same_bits(numbers(5, draw), numbers(5 + 2**32, draw))
        assert same_bits(numbers(5, draw), numbers(5 + 2**63, draw))
        assert not same_bits(numbers(5, draw), numbers(6, draw))
    streams = [fastinit.normal_(torch.empty(64), stream=Stream(seed)) for seed in (5, 5 + 2**32, 5 + 2**63)]
    assert not any(same_bits(a, b) for a, b in itertools.combinations(streams, 2))


def test_a_generator_advances_by_one_number_whatever_the_size():
    states = []
    for shape in ((0,), (1,), (1000, 1000)):
        generator = torch.Generator().manual_seed(3)
        fastinit.uniform_(torch.empty(shape), generator=generator)
        states.append(generator.get_state())
    expected = torch.Generator().manual_seed(3)
    torch.empty((), dtype=torch.int64).random_(-(1 << 63), None, generator=expected)
    assert all(torch.equal(state, expected.get_state()) for state in states)


def test_a_generators_number_is_the_streams_seed():
    generator, twin = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    number = torch.empty((), dtype=torch.int64).random_(-(1 << 63), None, generator=twin).item() % 2**64
    drawn = fastinit.normal_(torch.empty(64), generator=generator)
    assert same_bits(drawn, fastinit.normal_(torch.empty(64), stream=Stream(number)))


def test_all_64_bits_are_drawn():
    numbers = [drawn_seed(None) for _ in range(200)]
    assert len(set(numbers)) == 200
    for bit in range(64):
        assert 50 < sum(number >> bit & 1 for number in numbers) < 150


def test_a_cuda_generator_is_read_through_seed_and_offset():
    generator = FakeCudaGenerator(5)
    numbers = [drawn_seed(generator) for _ in range(3)]
    assert generator.offset == 12
    assert len(set(numbers)) == 3
    assert drawn_seed(FakeCudaGenerator(5)) == numbers[0]
    assert drawn_seed(FakeCudaGenerator(5, 4)) == numbers[1]
    assert drawn_seed(FakeCudaGenerator(6)) not in numbers


def test_names():
    a = Stream.named("model.layers.0.weight", seed=7)
    assert a == Stream.named("model.layers.0.weight", 7)
    framed = (21).to_bytes(8, "little") + b"model.layers.0.weight"
    assert a == Stream(7, int.from_bytes(hashlib.blake2b(framed, digest_size=8).digest(), "little"))
    names = ["a", "b", "ab", ("a", "b"), ("ab", ""), ("", "ab"), ("a", "b", "")]
    assert len({Stream.named(name).id for name in names}) == len(names)
    assert Stream.named("a", 1) != Stream.named("a", 2)
    assert a.child("zeros") != a.child("ones") != a
    assert a.child("zeros") == Stream.named("model.layers.0.weight", 7).child("zeros")


@pytest.mark.parametrize("name", [(), 3, ("a", 3), b"a"], ids=repr)
def test_bad_names(name):
    with pytest.raises(TypeError):
        Stream.named(name)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match=r"seed lies in \[0, 2\*\*64\), got"):
        Stream(seed)
    with pytest.raises(ValueError, match=r"id lies in \[0, 2\*\*64\), got"):
        Stream(0, seed)


def test_seeds_are_whole_numbers():
    with pytest.raises(TypeError):
        Stream(1.5)
    with pytest.raises(TypeError):
        Stream("1")
    assert Stream(np.int64(5)) == Stream(5)
    assert Stream(2**64 - 1).seed == 2**64 - 1


def test_streams_hash_and_compare():
    assert {Stream(1, 2), Stream(1, 2)} == {Stream(1, 2)}
    with pytest.raises(AttributeError):
        Stream(1).seed = 3


STREAMS = [Stream(0), Stream(2**64 - 1, 2**64 - 2), Stream.named("model.weight", 7)]


@pytest.mark.parametrize("stream", STREAMS, ids=repr)
def test_a_state_survives_a_checkpoint(stream, tmp_path):
    state = stream.state_dict()
    assert state == {"contract": 1, "seed": stream.seed, "id": stream.id}
    assert all(type(number) is int for number in state.values())
    file = io.BytesIO()
    torch.save({"stream": state}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)["stream"]
    for loaded in (state, json.loads(json.dumps(state)), saved):
        assert Stream.from_state_dict(loaded) == stream


@pytest.mark.slow
def test_a_state_survives_a_distributed_checkpoint(tmp_path):
    code = f"""
import torch, torch.distributed.checkpoint as dcp
from fastinit import Stream
dcp.save({{"stream": Stream(2**64 - 1, 5).state_dict()}}, checkpoint_id={str(tmp_path)!r}, no_dist=True)
state = {{"stream": Stream(0).state_dict()}}
dcp.load(state, checkpoint_id={str(tmp_path)!r}, no_dist=True)
print(Stream.from_state_dict(state["stream"]))
"""
    assert python(code) == f"{Stream(2**64 - 1, 5)}\n"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, r"has contract, seed and id, got \[\]"),
        ({"seed": 1, "id": 2}, r"has contract, seed and id, got \['id', 'seed'\]"),
        ({"contract": 1, "seed": 1, "id": 2, "offset": 3}, "has contract, seed and id, got"),
        ({"contract": 2, "seed": 1, "id": 2}, "a Stream of contract 2 has other bits in this release"),
        ({"contract": 1, "seed": -1, "id": 2}, r"seed lies in \[0, 2\*\*64\)"),
    ],
    ids=str,
)
def test_states_that_are_none(state, words):
    with pytest.raises(ValueError, match=words):
        Stream.from_state_dict(state)


def test_drawing_works_in_inference_mode_and_in_new_threads():
    results = []

    def work():
        with torch.inference_mode():
            results.append(fastinit.normal_(torch.empty(64)).clone())
        results.append(fastinit.normal_(torch.empty(64)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(results) == 2
    assert not torch.equal(results[0], results[1])
