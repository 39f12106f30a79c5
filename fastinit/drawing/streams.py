"""Where random words come from: a stream of Philox words, chosen by a seed, a name or a torch generator."""

from __future__ import annotations

import ctypes
import hashlib
import operator
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..kernels.contract import GPUS
from .dtensor import check_number
from .ranks import checking
from .regions import Shard, Target
from .tell import warn_once
from .torch_private import constant_in_graphs

CONTRACT = 1
"""Version of the stream contract: within one version, bits never change."""

MASK = (1 << 64) - 1
LOWEST = -(1 << 63)  # torch's `random_` takes bounds: from here to the end of int64, which is 64 bits


@dataclass(frozen=True)
class Stream:
    """An endless row of random numbers, the same on every device, engine, thread count and sharding.

    `seed` and `id` are whole numbers in [0, 2^64): Philox's key is (low 32 bits, high 32 bits) of the seed, words 2 and
    3 of its counter are those of the id. Element i of a tensor filled from a stream depends on the stream, i and the
    law alone. Raises `ValueError` for a number out of range, `TypeError` for what is no whole number.
    """

    seed: int
    id: int = 0

    def __post_init__(self) -> None:
        for field in ("seed", "id"):
            value = getattr(self, field)
            value = value if isinstance(value, int) and not isinstance(value, bool) else operator.index(value)
            if not 0 <= value <= MASK:
                raise ValueError(f"a Stream's {field} lies in [0, 2**64), got {value}")
            object.__setattr__(self, field, value)

    @classmethod
    def named(cls, name: str | Sequence[str], seed: int = 0) -> Stream:
        """The stream of a parameter's name, whatever the order in which parameters are initialised.

        A name may have parts: ("decoder", "weight") differs from ("decoder.weight",). The id is a BLAKE2b
        digest of the parts, each behind its length, so that no two lists of parts run together.
        """
        parts = [name] if isinstance(name, str) else list(name)
        if not parts or not all(isinstance(part, str) for part in parts):
            raise TypeError(f"a stream's name is a string or a sequence of strings, got {name!r}")
        return cls(seed, _digest(*(part.encode() for part in parts)))

    def child(self, label: str) -> Stream:
        """Another stream of the same seed, for a second purpose: same label, same child."""
        return Stream(self.seed, _child(operator.index(self.id), label))

    def part(self, offset: int, shape: Sequence[int], stride: Sequence[int]) -> Stream:
        """The stream of a part of a tensor that is drawn alone, by where it lies in it, in elements."""
        return self.child(f"{offset} {[*shape]} {[*stride]}")

    def state_dict(self) -> dict[str, int]:
        """The stream as whole numbers, for a checkpoint: `torch.save` (`weights_only` too) and JSON hold them.

        Seed and id are unsigned 64-bit numbers, more than a JSON reader that knows only doubles keeps.
        """
        return {"contract": CONTRACT, "seed": self.seed, "id": self.id}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, int]) -> Stream:
        """The stream that `state_dict` was called on; a stream never changes, so there is none to load a state into.

        Raises `ValueError` for another version of the stream contract, whose bits this one would not draw, and where
        entries are missing or unknown.
        """
        if set(state) != {"contract", "seed", "id"}:
            raise ValueError(f"a Stream's state has contract, seed and id, got {sorted(state)}")
        if state["contract"] != CONTRACT:
            raise ValueError(
                f"a Stream of contract {state['contract']} has other bits in this release, which draws contract "
                f"{CONTRACT}; load it with the release that saved it"
            )
        return cls(state["seed"], state["id"])


@constant_in_graphs
def _child(stream_id: int, label: str) -> int:
    return _digest(stream_id.to_bytes(8, "little"), label.encode())


@constant_in_graphs
def _digest(*parts: bytes) -> int:
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return int.from_bytes(hashlib.blake2b(framed, digest_size=8).digest(), "little")


class _Drawn(threading.local):
    """A tensor of one number for each thread, and a view of its memory: a new one would double a small fill's time."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.number = torch.empty((), dtype=torch.int64, device="cpu")
        self.draw = self.number.random_
        self.bits = ctypes.c_uint64.from_address(self.number.data_ptr())  # read in 40 ns, by `item()` in 130


drawn = _Drawn()


def drawn_seed(generator: torch.Generator | None) -> int:
    """64 bits from a generator, torch's default CPU generator if None; it advances by exactly one such draw.

    A CUDA or XPU generator is read and advanced through its seed and offset, without waiting for the device.
    """
    if generator is None or generator.device.type == "cpu":
        drawn.draw(LOWEST, None, generator=generator)
        return drawn.bits.value
    if hasattr(generator, "get_offset") and generator.device.type in GPUS:
        offset = generator.get_offset()
        generator.set_offset(offset + 4)  # torch wants multiples of 4
        return _digest((generator.initial_seed() & MASK).to_bytes(8, "little"), offset.to_bytes(8, "little"))
    number = torch.empty((), dtype=torch.int64, device=generator.device)
    return number.random_(LOWEST, None, generator=generator).item() & MASK  # type: ignore[operator]


def drawn_seeds(generator: torch.Generator | None, count: int) -> NDArray[np.uint64]:
    """What so many calls of `drawn_seed` return, of torch's default CPU generator or another one of the CPU."""
    numbers = torch.empty(count, dtype=torch.int64, device="cpu")
    return numbers.random_(LOWEST, None, generator=generator).numpy().view(np.uint64)


def source(target: Target, generator: torch.Generator | None, stream: Stream | None) -> Stream:
    """The stream that a call asks for, drawn from the generator where it names none."""
    if stream is None:
        if generator is None and not isinstance(target, Shard):
            generator = default_generator(target.device)
        stream = Stream(drawn_seed(generator))
    else:
        check_source(generator, stream)
    if isinstance(target, Shard) and checking.get():
        check_number(target, (stream.seed, stream.id))
    return stream


def default_generator(device: torch.device) -> torch.Generator | None:
    """The default generator that draws for a tensor there: the device's own if it was seeded apart, or None, the CPU's.

    Only in a process group of more than one rank, and not for shards: Megatron's tracker and a `torch.cuda.manual_seed`
    of each rank's own are there to make the ranks' numbers differ, which the CPU's generators, seeded alike, would not.
    """
    if device.type not in GPUS or not has_other_ranks():
        return None
    generators = getattr(getattr(torch, device.type), "default_generators", ())  # none before the device is in use
    if not generators:
        return None
    own: torch.Generator = generators[device.index]
    if own.initial_seed() == torch.default_generator.initial_seed():
        return None
    warn_once(
        f"generator of {device.type}",
        f"the default generator of {device} was seeded apart from the CPU's, so fastinit reads it, and each rank draws "
        "numbers of its own. To draw each rank's part of one tensor, the same for any number of ranks, use "
        "stream=fastinit.Stream(...) and fastinit.shard(tensor, shape, offset)",
    )
    return own


def has_other_ranks() -> bool:
    """Whether this process is one of several in a process group."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def check_source(generator: torch.Generator | None, stream: Stream | None) -> None:
    """Raises for a stream that is none, and for one beside a generator."""
    if stream is not None and not isinstance(stream, Stream):
        raise TypeError(f"stream is a fastinit.Stream, got {type(stream).__name__}")
    if stream is not None and generator is not None:
        raise ValueError("give a stream or a generator, not both")
