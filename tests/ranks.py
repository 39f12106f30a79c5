"""Real processes in a gloo group: functions of tests that every rank runs at the same time.

They start from `forked`'s server, so with torch imported and nothing else. Apart from tests/common.py, as that is.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import servers
from torch.distributed.tensor.placement_types import _StridedShard

# torch 2.8 does not gather what FSDP2 over tensor parallelism has cut where lengths do not divide: its `full_tensor` of
# 6 rows over (2, 2) has other rows than the weight that was sharded; and `distribute_tensor` cuts in yet another way.
GATHERS_UNEVEN = _StridedShard(0, split_factor=2)._split_tensor(torch.arange(5), 2)[0][0][:3].tolist() == [0, 1, 3]
TIMEOUT = 60  # seconds: for one function, compilation included


def serve(rank: int, world: int, store: str, calls: Connection) -> None:
    """The process of a rank: it runs the functions that it is sent until it is sent None."""
    torch.set_num_threads(1)
    warnings.filterwarnings("error", module="fastinit")
    timeout = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout)
    while (call := calls.recv()) is not None:
        try:
            number, module, name, arguments = call
            function = getattr(importlib.import_module(module), name)
            calls.send((number, True, function(*arguments)))
        except BaseException:
            calls.send((number, False, traceback.format_exc()))
    dist.destroy_process_group()


class Group:
    """A group of ranks."""

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes = pipes
        self.number = 0  # of the call: a late answer to an earlier one is passed over

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returns on each rank. Raises `AssertionError` with the tracebacks of those that raised.

        Once one has raised, the others may wait for it in a collective: after a moment they are not waited for.
        """
        self.number += 1
        for pipe in self.pipes:
            # Its module has a package, or none, by how pytest was started.
            pipe.send((self.number, function.__module__.rpartition(".")[2], function.__name__, arguments))
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + TIMEOUT
        while len(answers) < len(self.pipes) and (left := end - time.monotonic()) > 0:
            for pipe in wait([pipe for rank, pipe in enumerate(self.pipes) if rank not in answers], left):
                try:
                    number, *answer = pipe.recv()
                except EOFError:
                    number, answer = self.number, [False, "its process is gone"]
                if number == self.number:
                    answers[self.pipes.index(pipe)] = (answer[0], answer[1])
            if not all(well for well, _ in answers.values()):
                end = min(end, time.monotonic() + 3)
        failed = [f"rank {rank}: {text}" for rank, (well, text) in sorted(answers.items()) if not well]
        failed += [f"rank {rank} does not answer" for rank in range(len(self.pipes)) if rank not in answers]
        assert not failed, "\n".join(failed)
        return [answers[rank][1] for rank in range(len(self.pipes))]


@contextlib.contextmanager
def group(world: int) -> Iterator[Group]:
    """So many ranks, each with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [servers.Pipe() for _ in range(world)]
        processes = [
            servers.Process(target=serve, args=(rank, world, str(Path(folder) / "store"), pair[1]))
            for rank, pair in enumerate(pairs)
        ]
        try:
            for process, (_, there) in zip(processes, pairs, strict=True):
                process.start()
                there.close()  # so that its end is heard of
            yield Group([pair[0] for pair in pairs])
            for here, _ in pairs:
                with contextlib.suppress(OSError):
                    here.send(None)
            for process in processes:
                process.join(30)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
