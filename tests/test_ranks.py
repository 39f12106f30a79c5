"""Device generators seeded apart from the CPU's, among several ranks. Devices and generators are stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from common import FakeCudaGenerator, same_bits

import fastinit
from fastinit import Stream
from fastinit.drawing import engines, streams, tell

CALLS = {
    "uniform_": (), "normal_": (), "trunc_normal_": (), "xavier_normal_": (), "kaiming_uniform_": (),
    "orthogonal_": (), "sparse_": (0.0,),
}  # fmt: skip


class OnDevice(torch.Tensor):
    """Memory of the CPU that says that it is the first CUDA device's."""

    device = torch.device("cuda", 0)
    is_cpu = False


class Gpu:
    """An engine for such memory."""

    name, compiled = "gpu", True

    def why_not(self, device, dtype):
        return None

    def fill(self, out, draw, first, steps):
        engines.load("reference").fill(out.as_subclass(torch.Tensor), draw, first, steps)


def on_device(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).as_subclass(OnDevice)


def install(seed: int, device_seed: int) -> FakeCudaGenerator:
    """A CUDA device whose default generator has a seed of its own; for a process of its own, or a fixture."""
    generator, real = FakeCudaGenerator(device_seed), engines.load
    torch.cuda.default_generators = (generator,)
    engines.load = lambda name: Gpu() if name == "gpu" else real(name)
    engines.trial = lambda *arguments: None
    torch.manual_seed(seed)
    return generator


@pytest.fixture
def device(monkeypatch):
    """Call it with the CPU's seed and the device's; hands out the device's generator."""
    for owner, name in ((torch.cuda, "default_generators"), (engines, "load"), (engines, "trial")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back
    monkeypatch.setattr(tell, "told", set())
    monkeypatch.setattr(streams, "has_other_ranks", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False, raising=False)
    return install


def cpus_numbers(name: str, seed: int, *shape: int) -> torch.Tensor:
    """What the call draws from the CPU's generator."""
    torch.manual_seed(seed)
    return getattr(fastinit, name)(torch.zeros(shape), *CALLS[name])


def plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)


@pytest.mark.parametrize("name", CALLS)
def test_generators_seeded_alike_are_the_cpus(name, device):
    expected = cpus_numbers(name, 5, 8, 6)
    generator = device(5, 5)
    if name == "orthogonal_":  # a product that OnDevice cannot make
        assert streams.default_generator(on_device(8, 6)) is None
        return
    assert same_bits(plain(getattr(fastinit, name)(on_device(8, 6), *CALLS[name])), expected)
    assert generator.offset == 0


@pytest.mark.filterwarnings("ignore:the default generator of cuda")
@pytest.mark.parametrize("name", [name for name in CALLS if name != "orthogonal_"])
def test_one_seeded_apart_is_read_and_advanced(name, device):
    expected = cpus_numbers(name, 5, 8, 6)
    drawn = []
    for rank in range(3):
        generator = device(5, 100 + rank)
        state = torch.get_rng_state()
        drawn.append([plain(getattr(fastinit, name)(on_device(8, 6), *CALLS[name])) for _ in range(2)])
        assert generator.offset == 8  # two calls, one number each
        assert torch.equal(torch.get_rng_state(), state)
        again = device(5, 100 + rank)
        assert same_bits(plain(getattr(fastinit, name)(on_device(8, 6), *CALLS[name])), drawn[-1][0])
        assert again.offset == 4
    every = [expected, *(tensor for pair in drawn for tensor in pair)]
    assert len({tuple(tensor.flatten().tolist()) for tensor in every}) == 7


def test_one_warning_a_process_which_names_the_better_way(device):
    generator = device(5, 6)
    with pytest.warns(
        RuntimeWarning, match=r"generator of cuda:0 was seeded apart .*Stream\(.* and fastinit\.shard"
    ) as told:
        fastinit.normal_(on_device(4))
    assert [told[0].filename, len(told)] == [__file__, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second one would be raised
        fastinit.normal_(on_device(4))
    assert generator.offset == 8


def test_only_plain_tensors_without_a_stream_or_a_generator(device, monkeypatch):
    generator = device(5, 6)
    for name, arguments in CALLS.items():
        expected = cpus_numbers(name, 5, 8, 6)
        torch.manual_seed(5)
        box = fastinit.shard(on_device(4, 6), (8, 6), (4, 0))
        if name == "orthogonal_":
            continue
        getattr(fastinit, name)(box, *arguments)
        assert same_bits(plain(box.local), expected[4:])
        by_stream = getattr(fastinit, name)(on_device(8, 6), *arguments, stream=Stream(3))
        assert same_bits(plain(by_stream), getattr(fastinit, name)(torch.zeros(8, 6), *arguments, stream=Stream(3)))
        given = getattr(fastinit, name)(on_device(8, 6), *arguments, generator=torch.Generator().manual_seed(5))
        assert same_bits(plain(given), expected)
        fastinit.normal_(torch.zeros(8, 6))  # the CPU's own
    monkeypatch.undo()
    assert generator.offset == 0


def test_an_orthogonal_shard_is_drawn_from_the_cpus_generator(device, monkeypatch):
    """Its matrix of samples is no shard, but a plain tensor on the device."""
    asked = []
    monkeypatch.setattr(streams, "default_generator", asked.append)
    fastinit.orthogonal_(fastinit.shard(torch.zeros(4, 6), (8, 6), (0, 0)))
    assert asked == []
    fastinit.orthogonal_(whole := torch.zeros(4, 6))
    assert asked == [whole.device]


def test_one_rank_alone_reads_the_cpus(device, monkeypatch):
    expected = cpus_numbers("normal_", 5, 64)
    generator = device(5, 6)
    monkeypatch.setattr(streams, "has_other_ranks", lambda: False)
    assert same_bits(plain(fastinit.normal_(on_device(64))), expected)
    assert generator.offset == 0


@pytest.mark.parametrize("kind", ["cpu", "meta", "mps", "xpu", "cuda"])
def test_devices_without_default_generators_have_none(kind, device, monkeypatch):
    """As CUDA has none before it is in use, and XPU where it is not built in."""
    device(5, 6)
    monkeypatch.setattr(torch.cuda, "default_generators", ())
    assert streams.default_generator(torch.device(kind, 0)) is None


def test_the_process_group_is_asked_only_where_there_is_one(monkeypatch):
    assert not streams.has_other_ranks()
    for available, initialised, size in ((False, None, None), (True, False, None), (True, True, 1), (True, True, 2)):
        answers = {"is_available": available, "is_initialized": initialised, "get_world_size": size}
        for name, answer in answers.items():
            monkeypatch.setattr(torch.distributed, name, lambda answer=answer: answer)
        assert streams.has_other_ranks() is (size == 2)


RANK = """
import datetime, sys, torch, warnings
import fastinit, test_ranks
rank, limit = int(sys.argv[1]), datetime.timedelta(seconds=60)
place = "file://" + sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=limit)
warnings.simplefilter("ignore")
for device_seed in (5, 100 + rank):
    generator = test_ranks.install(5, device_seed)
    drawn = fastinit.normal_(test_ranks.on_device(3)).tolist()
    box = fastinit.shard(test_ranks.on_device(3), (6,), (3 * rank,))
    print(drawn, fastinit.normal_(box).local.tolist(), generator.offset)
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)
def test_two_ranks_of_a_process_group(tmp_path):
    here = str(Path(__file__).parent)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], env=variables, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[0].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    (alike, apart), (other_alike, other_apart) = (
        [(line.partition("] ")[0], line.rpartition(" ")[2]) for line in lines] for lines in said
    )
    assert alike == other_alike  # torch's default generator of the CPU: both draw the same
    assert alike[1] == "0"
    assert apart[0] != other_apart[0]
    assert alike[0] not in (apart[0], other_apart[0])
    assert apart[1] == other_apart[1] == "4"
