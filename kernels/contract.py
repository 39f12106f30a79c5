"""What every engine has in common: what it is asked for, what it answers, and how a block is laid out."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch

from .arithmetic.bind import Arithmetic
from .arithmetic.primitives import Number
from .dtypes import WIDTHS

# Sixteen neighbours come from sixteen neighbouring counters; a block is all that these sixteen draw.
COLUMNS = 16
# How many tensors are asked one question after the other, of 64 to 4096: the caches keep their objects meanwhile.
# Measured by `python -m bench.thresholds`.
ASKED_TOGETHER = 512
GPUS = ("cuda", "xpu")  # ROCm's devices call themselves cuda, too


class Sampler(NamedTuple):
    """Arithmetic that turns random bits and parameters into a sample, and how it wants to be called.

    It takes the low and the high word of an element's random bits, which are one word in float32, and the parameters.
    Returns a number of the working precision, or a whole number of 64 bits (see `primitives.join`).
    """

    function: types.FunctionType
    series_after: int | None = None  # its last argument is a series: how many parameters stand before it
    whole: int = 0  # how many of its first parameters are words, and so ints
    pairs: bool = False  # it takes the bits of two elements, and returns both samples
    short: bool = False  # it needs so few registers that a GPU's thread may draw twice as many at a time
    width: int | None = None  # how many random bits an element takes, 32 or 64; None as many as its dtype has it


SAMPLERS: dict[str, Sampler] = {}  # by kind, which is the function's name; laws enter theirs

F = TypeVar("F", bound=Callable[..., Any])


def sampler(
    *,
    series_after: int | None = None,
    whole: int = 0,
    pairs: bool = False,
    short: bool = False,
    width: int | None = None,
) -> Callable[[F], F]:
    """Enters a function of the arithmetic as a kind of sample that engines can draw; for the facts see `Sampler`."""

    def enter(function: F) -> F:
        assert isinstance(function, types.FunctionType)
        if function.__name__ in SAMPLERS:
            raise ValueError(f"there is a sampler {function.__name__} already")
        SAMPLERS[function.__name__] = Sampler(function, series_after, whole, pairs, short, width)
        return function

    return enter


class Draw(NamedTuple):
    """A law of the arithmetic with its parameters, and the stream that its random words come from."""

    kind: str
    parameters: tuple[float, ...]
    seed: int
    stream_id: int


class KernelMissing(Exception):
    """A kernel is neither loaded nor on disk, and cannot be compiled or not be run. Nothing has been written."""


class Engine(Protocol):
    """One way to run the arithmetic."""

    name: str
    compiled: bool

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this engine cannot fill such a tensor, as the end of a sentence; None if it can."""

    def fill(self, out: torch.Tensor, draw: Draw, first: int, steps: Sequence[int] | None) -> None:
        """Write into `out[n]` the draw's element `first + sum(n[d] * steps[d])`, for every index n.

        Steps of None are those of `out`'s own shape in row-major order. `out` may lie in memory as it likes. Raises
        `KernelMissing` where there is no kernel for it, before anything is written.
        """

    def fill_each(
        self, out: torch.Tensor, draw: Draw, first: int, steps: Sequence[int] | None, parameters: Sequence[torch.Tensor]
    ) -> None:
        """Write elements as `fill` does, each with parameters of its own; the draw has none.

        `parameters` have the shape of `out` (expanded ones share memory), its device and floating-point dtypes; they
        are rounded to the precision that the law computes in. Equal parameters give the bits that `fill` writes. For
        which laws see `has_each`.
        """


@runtime_checkable
class WordEngine(Engine, Protocol):
    """An engine that makes other things of 64-bit words than samples, each word of two random words (low, high).

    Both raise `KernelMissing` before anything is written.
    """

    def permute(self, out: torch.Tensor, seed: int, stream_id: int) -> bool:
        """Write the numbers below len(out) in the order of their words to contiguous int64; False if they are too many.

        Number i has word i; equal ones are in the order of the numbers.
        """

    def choose(self, out: torch.Tensor, sums: torch.Tensor, seed: int, stream_id: int) -> bool:
        """Write to each row of `out` (contiguous int64) which of the row's sums words choose: the first that is above
        floor(word * total / 2^64). Element i takes word i. Sums do not fall, and the last one, the total, is above 0.
        True: no number is too many.
        """


class Job(Protocol):
    """Fills that are done together, with the outcome that they would have one after the other."""

    taken: bool  # whether somebody is doing it: what is added now may be too late

    def add_fill(
        self,
        out: torch.Tensor,
        draw: Draw,
        first: int,
        steps: Sequence[int] | None,
        owner: torch.Tensor | None = None,
    ) -> None:
        """What `Engine.fill` writes. Raises `KernelMissing`."""

    def add_plan(self, plan: Any, out: torch.Tensor, address: int, count: int, seed: int, stream_id: int) -> None:
        """A fill by what the engine has planned for a call like this one."""

    def add_plans(
        self,
        plans: Sequence[Any],
        outs: Sequence[torch.Tensor],
        patterns: Any,
        addresses: Any,
        counts: Any,
        seeds: Any,
        stream_ids: Any,
    ) -> None:
        """The same of many tensors: a number for each, or one for all. `patterns` says by which plan each is filled."""

    def tensors(self) -> list[torch.Tensor]:
        """What is to be written."""

    def touches(self, tensor: torch.Tensor) -> bool:
        """Whether any of it lies in memory that this tensor reaches over."""

    def check(self) -> None:
        """Raise `RuntimeError` where a tensor has got other memory since."""

    def do(self) -> None:
        """Write all of it."""


@runtime_checkable
class JobEngine(Engine, Protocol):
    """An engine that can put fills off, to do many of them together."""

    def job(self) -> Job:
        """A new one. Raises `KernelMissing`."""


class SettingUp(threading.local):
    """`with setting_up.lock:` around what must not be re-entered: importing an engine, and compiling.

    A signal handler or a finaliser may fill a tensor there, and would find modules and Numba's tables half made.
    Each thread has a lock of its own, which keeps count whatever exception comes in between.
    """

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()

    @property
    def is_on(self) -> bool:
        """Whether the calling thread is in the middle of it."""
        return bool(self.lock._is_owned())


setting_up = SettingUp()


def has_each(kind: str) -> bool:
    """Whether a law can be drawn with parameters of its own for each element: it has some, all plain numbers."""
    found = SAMPLERS[kind]
    parameters = found.function.__code__.co_argcount - (4 if found.pairs else 2)
    return parameters > 0 and found.whole == 0 and found.series_after is None


def width_of(kind: str, dtype: torch.dtype) -> int:
    """How many random bits an element of this law and dtype takes: one word, or two; and the working precision."""
    return SAMPLERS[kind].width or WIDTHS[dtype]


def stored_as(kind: str, dtype: torch.dtype, parameters: Sequence[torch.Tensor]) -> torch.dtype:
    """What elements' own parameters are read as: float64 where the law computes in it and one of them has it."""
    wide = width_of(kind, dtype) == 64 and any(tensor.dtype is torch.float64 for tensor in parameters)
    return torch.float64 if wide else torch.float32


def lanes_in_block(width: int) -> int:
    """How many elements one counter draws: one for each word, or for each pair of words."""
    return 128 // width


def block_size(width: int) -> int:
    """How many neighbouring elements sixteen counters draw together."""
    return COLUMNS * lanes_in_block(width)


def sample_lanes(
    arithmetic: Arithmetic, kind: str, words: Sequence[Number], parameters: Sequence[Number]
) -> list[Number]:
    """The samples that one counter's four words give, one a lane, in the working precision."""
    found = SAMPLERS[kind]
    draw, head = arithmetic(found.function), found.series_after
    arguments = tuple(parameters) if head is None else (*parameters[:head], tuple(parameters[head:]))
    bits = [(w, w) for w in words] if arithmetic.width == 32 else [(words[0], words[1]), (words[2], words[3])]
    if found.pairs:
        twos = zip(bits[::2], bits[1::2], strict=True)
        return [sample for a, b in twos for sample in draw(*a, *b, *arguments)]
    return [draw(low, high, *arguments) for low, high in bits]


def sample_each(
    arithmetic: Arithmetic, kind: str, words: Sequence[Number], parameters: Sequence[Sequence[Number]]
) -> list[Number]:
    """The samples that one counter's four words give, where each lane has parameters of its own.

    Compilers remove what the other lanes compute; engines that do not compile have no use for this function.
    """
    return [sample_lanes(arithmetic, kind, words, own)[lane] for lane, own in enumerate(parameters)]
