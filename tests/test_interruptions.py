"""Interruptions, nested calls and forks at every moment of a hand-over: nobody writes late, nobody waits for ever.

Of the pool, which does what is NumPy's; for compiled jobs see `test_jobs`.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
from common import fresh_python, python
from interruptions import PATIENCE, Interrupter, in_time, instrumented

from fastinit.kernels.cpu import pool as threads

PIECES, THREADS, WORK = 4, 3, 0.0005  # seconds a piece


class Memory:
    """What a task writes to; knows whether its call is over."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.late: list[int] = []
        self.over = False

    def write(self, piece: int) -> None:
        time.sleep(WORK)
        (self.late if self.over else self.written).append(piece)


def settle() -> None:
    """Time for a thread that nobody waited for to write."""
    time.sleep(4 * WORK)


def interrupted_run(module, interrupter: Interrupter, at: tuple[int, ...]) -> Memory:
    """A call of `run`, interrupted at these points; it must raise just where it was interrupted."""
    memory = Memory()
    interrupter.arm(at)
    try:
        module.run(memory.write, PIECES, THREADS)
    except KeyboardInterrupt:
        assert interrupter.raised
    else:
        assert not interrupter.raised
        assert sorted(memory.written) == list(range(PIECES))
    finally:
        memory.over = True
        interrupter.armed = False
    settle()
    assert memory.late == [], at
    return memory


def points_of(module, interrupter: Interrupter) -> int:
    interrupted_run(module, interrupter, ())  # starts the threads
    interrupted_run(module, interrupter, ())
    return interrupter.passed


def test_an_interruption_at_every_statement_leaves_no_late_write():
    interrupter = Interrupter()
    module = instrumented(threads, interrupter)
    points = points_of(module, interrupter)
    assert points > 20
    for number in range(points):
        interrupted_run(module, interrupter, (number,))
    interrupted_run(module, interrupter, ())  # and the pool still serves


def pairs(points: int) -> list[tuple[int, int]]:
    """A first interruption anywhere, and a second one while that is dealt with or later."""
    return [(first, first + after) for first in range(points) for after in range(1, 30)]


def test_a_second_interruption_leaves_no_late_write():
    interrupter = Interrupter()
    module = instrumented(threads, interrupter)
    chosen = random.Random(1).sample(pairs(points_of(module, interrupter)), 250)
    twice = 0
    for at in chosen:
        interrupted_run(module, interrupter, at)
        twice += interrupter.raised == 2
    assert twice > 50
    interrupted_run(module, interrupter, ())


@pytest.mark.slow
def test_every_pair_of_interruptions_leaves_no_late_write():
    interrupter = Interrupter()
    module = instrumented(threads, interrupter)
    for at in pairs(points_of(module, interrupter)):
        interrupted_run(module, interrupter, at)
    interrupted_run(module, interrupter, ())


# --- fills inside fills --------------------------------------------------------------------------


class Nested(Interrupter):
    """Calls `run` once more where it would raise, as a signal handler or a finaliser may."""

    def interrupt(self, number: int) -> None:
        self.armed = False
        memory = Memory()
        self.module.run(memory.write, PIECES, 2 * THREADS)  # more threads than the outer call: the pool must grow
        memory.over = True
        assert sorted(memory.written) == list(range(PIECES)), number


def test_a_run_inside_a_run_at_every_statement():
    def body() -> None:
        for number in itertools.count():
            nested = Nested()
            nested.module = instrumented(threads, nested)  # a pool of its own, without any threads yet
            memory = Memory()
            nested.arm((number,))
            nested.module.run(memory.write, PIECES, THREADS)
            assert sorted(memory.written) == list(range(PIECES))
            if not nested.raised:  # no such point
                break
        assert number > 20

    in_time(body)


SETTING_UP = """
import importlib.abc, sys, torch, warnings, fastinit

warnings.simplefilter("error")  # no word of an engine that does not work
stream = fastinit.Stream(1)
nested = []

class Nest(importlib.abc.MetaPathFinder):  # a fill in the middle of these imports
    def find_spec(self, name, path, target=None):
        if name in sys.argv[1:] and name not in dict(nested):
            nested.append((name, None))
            nested.append((name, fastinit.trunc_normal_(torch.empty(50), stream=stream).tolist()))

sys.meta_path.insert(0, Nest())
outer = fastinit.normal_(torch.empty(50), stream=stream)
from fastinit.drawing import engines
from fastinit.kernels.cpu import loading as cpu
print(len(nested) // 2, dict(cpu.failures), engines.load("cpu").name)
values = [values for _, values in nested if values]
print(all(each == fastinit.trunc_normal_(torch.empty(50), stream=stream, fast=True).tolist() for each in values))
"""


def test_a_fill_while_its_thread_sets_up_an_engine(tmp_path):
    """The eager engine draws meanwhile; neither Numba nor what is known of it is harmed."""
    modules = (
        "fastinit.kernels.cpu.engine",
        "fastinit.kernels.cpu.native",
        "numba.core",
        "numba.core.compiler",
        "fastinit.kernels.cpu.loops",
    )
    command = [sys.executable, "-c", SETTING_UP, *modules]
    surroundings = os.environ | {"FASTINIT_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{len(modules)} {{}} cpu", "True"]


# --- memory --------------------------------------------------------------------------------------


class Owned:
    """Memory that a task refers to."""


def test_memory_lives_as_long_as_a_thread_may_touch_it():
    """Also where nobody waits for the threads, which is what three interruptions in a row come to."""
    owned = Owned()
    seen = weakref.ref(owned)
    begun, go_on = threading.Event(), threading.Event()

    def task(piece: int, owned: Owned = owned) -> None:
        begun.set()
        go_on.wait(PATIENCE)

    job = threads.Job(task, 1)
    threads._pool.grow(1)
    threads._pool.jobs.put(job)
    assert begun.wait(PATIENCE)
    del owned, task, job  # the caller's frame is gone
    gc.collect()
    assert seen() is not None
    go_on.set()
    deadline = time.monotonic() + PATIENCE
    while seen() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert seen() is None


def test_a_closed_job_holds_no_memory():
    """The pool's queue may hold it for long: its threads are at work on others."""
    owned = Owned()
    seen = weakref.ref(owned)
    job = threads.Job(lambda piece, owned=owned: None, 3)
    with job:
        job.work()
    del owned
    assert seen() is None
    job.help()  # what a late thread does with it


LATE = """
import signal, sys, torch, fastinit
from fastinit.kernels.cpu import helpers, loading

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have inherited that it is ignored
torch.set_num_threads(2)
stream = fastinit.Stream(1)
fastinit.normal_(torch.empty(1 << 22), stream=stream)  # starts the threads
helpers.A_GO = 1 << 20
right = loading.entry

def entry(name):
    def interrupted(*arguments):
        right(name)(*arguments)
        signal.raise_signal(signal.SIGINT)
    return interrupted if name == "run" else right(name)

for _ in range(3):
    loading.entry = entry
    try:
        fastinit.normal_(torch.empty(1 << 26), stream=stream)
        sys.exit("not interrupted")
    except KeyboardInterrupt:
        pass
    loading.entry = right
    fresh = torch.zeros(1 << 26)
    print(int(torch.count_nonzero(fresh)))
"""


def test_freed_memory_is_not_written():
    """An interruption in the middle of a fill: the next tensor of that size lies in the same memory."""
    assert python(LATE).split() == ["0"] * 3


FILLS = """
import random, signal, sys, time, torch, fastinit

torch.set_num_threads(2)
count, draws = int(sys.argv[1]), random.Random(5)
stream = fastinit.Stream(1)
lasting = time.perf_counter()
fastinit.normal_(torch.empty(1 << 23), stream=stream)
lasting = time.perf_counter() - lasting

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
interrupted = late = 0
for number in range(count):
    out = torch.zeros(1 << 22)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-5, 3e-3))
            fastinit.normal_(out, stream=stream)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
        before = out.clone()
        time.sleep(0.003)
        late += not torch.equal(out, before)
print(interrupted, late)
"""


def interrupted_under_load(count: int, processes: int = 2) -> tuple[int, int]:
    """How many of so many fills were interrupted, at random moments on busy cores; and how many wrote later."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        done = subprocess.run([sys.executable, "-c", FILLS, str(count)], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        interrupted, late = map(int, done.stdout.split())
        return interrupted, late
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_fills_interrupted_at_random_under_load(count):
    interrupted, late = interrupted_under_load(count)
    assert interrupted > count // 10
    assert late == 0


# --- forks ---------------------------------------------------------------------------------------

FORK = """
import os, sys, threading, time
sys.path.insert(0, {tests!r})
from interruptions import Interrupter, instrumented
from fastinit.kernels.cpu import native

sys.unraisablehook = lambda _: None  # where Python sends what a hook raises
interrupter = Interrupter()
module = instrumented(native, interrupter)
numbas = threading.RLock()
module.hold_over_forks(numbas)
locks = (module.compiling, numbas, module.loading)

def free():
    # Another thread can take each lock.
    found = []
    def take():
        for lock in locks:
            found.append(lock.acquire(timeout=5))
            if found[-1]:
                lock.release()
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return all(found)

def forked(at, held):
    holds, done = threading.Event(), threading.Event()
    def hold():
        with locks[held]:
            holds.set()
            done.wait(0.002)
    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    interrupter.arm(at)
    child = os.fork()
    interrupter.armed = False
    if child == 0:
        os._exit(0 if free() else 1)
    thread.join()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and free()

print(forked((), 0))
points = interrupter.passed
print(points)
for number in range(points):
    for at, held in (((number,), number % 3), ((number, number + 1), 0)):
        if not forked(at, held):
            sys.exit("hangs at %s, %s held" % (at, held))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_an_interruption_in_the_fork_hooks_locks_nobody_out():
    first, points, *hanging = fresh_python(FORK.format(tests=os.path.dirname(__file__)), "-W", "ignore").splitlines()
    assert (first, hanging) == ("True", [])
    assert int(points) > 10
