"""Compiled jobs: every row is written once, by any threads; and whatever happens meanwhile, nobody waits for ever."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import threading
import time

import pytest
import torch
from common import bits, python, same_bits
from hypothesis import given, strategies as st
from interruptions import PATIENCE, Interrupter, in_time, instrumented

import fastinit
from fastinit import Stream
from fastinit.drawing import tell
from fastinit.kernels.contract import Draw, KernelMissing
from fastinit.kernels.cpu import helpers, jobs, loading
from fastinit.kernels.cpu.engine import CpuEngine
from fastinit.kernels.cpu.jobs import Job
from fastinit.kernels.cpu.rows import END
from fastinit.kernels.cpu.slots import LOCK, MAILBOX, NOBODY, SIZE
from fastinit.kernels.runs import row_major
from fastinit.laws import Normal, Uniform

LAWS = (Normal(0.0, 1.0), Uniform(-1.0, 1.0), Normal(3.0, 0.5))
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
MEMORIES = (
    lambda count, dtype: torch.zeros(count, dtype=dtype),
    lambda count, dtype: torch.zeros(count + 3, dtype=dtype)[3:],
    lambda count, dtype: torch.zeros(2 * count, dtype=dtype)[::2],
    lambda count, dtype: torch.zeros(-(-count // 5), 5, dtype=dtype).t(),
)


def fills(counts, first=0):
    """A job of tensors of these sizes, of every law, dtype and layout in turns; and each drawn alone."""
    job, found = Job(), []
    for number, count in enumerate(counts):
        law, dtype, memory = LAWS[number % 3], DTYPES[number % 2 + number % 5 // 4], MEMORIES[number % 4]
        draw = Draw(*law.parameters(dtype), 7, number)
        out, alone = memory(count, dtype), memory(count, dtype)
        steps = row_major(out.shape)
        job.add_fill(out, draw, first + number, steps)
        CpuEngine().fill(alone, draw, first + number, steps)
        found.append((out, alone))
    return job, found


def check(found) -> None:
    for out, alone in found:
        assert same_bits(out, alone)


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("counts", [[1], [1 << 17], [3] * 2000, [70_000, 1, 64, 300_000, 5, 5, 200_001]], ids=str)
def test_a_job_writes_what_its_fills_write(threads, counts, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(jobs, "THREADS_FROM", 1)
    job, found = fills(counts, first=2**40 + 17)
    job.do()
    check(found)


@given(st.lists(st.integers(1, 20_000), max_size=30), st.integers(1, 4), st.integers(0, 2**62), st.integers(6, 20))
def test_any_rows_in_any_goes(counts, threads, first, go):
    """Cut wherever goes and pieces end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "A_GO", 1 << go)
        patch.setattr(jobs, "THREADS_FROM", 1)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        job, found = fills(counts, first)
        job.do()
    check(found)


def test_nothing_is_written_beside():
    memory = torch.zeros(40_000, dtype=torch.int32)
    job = Job()
    for start in range(0, 40_000, 400):
        job.add_fill(memory[start + 50 : start + 350], Draw("words", (), 1, start), 0, None)
    job.do()
    written = memory.view(-1, 400)
    assert (written[:, 50:350] != 0).float().mean() > 0.99
    assert (written[:, :50] == 0).all()
    assert (written[:, 350:] == 0).all()


def test_an_empty_job_is_done():
    Job().do()


# --- threads -------------------------------------------------------------------------------------


def test_no_python_runs_in_a_piece(two_threads, monkeypatch):
    """A hook that counts calls in every thread: a job of a thousand pieces makes about as many as one of two.

    Not exactly: a thread that starts makes a dozen calls more when whoever starts it has to wait for it.
    """

    def calls(count: int) -> int:
        out, job, events = torch.empty(count), Job(), []
        job.add_fill(out, Draw("normal", (0.0, 1.0), 1, 1), 0, None)
        monkeypatch.setattr(helpers, "_team", helpers.Team())  # whose helpers begin under the hook
        threading.setprofile(lambda *event: events.append(event))
        sys.setprofile(lambda frame, event, what: events.append((event, what)))
        try:
            job.do()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        return len(events)

    few, many = calls(2 << 14), calls(1000 << 14)
    assert few > 0
    assert many <= few + 100


def test_helpers_are_python_s_threads_that_stay_in_compiled_code(two_threads):
    fastinit.normal_(torch.empty(1 << 20), stream=Stream(1))
    helper = next(thread for thread in threading.enumerate() if thread.name == "fastinit-helper-1")
    assert helper.daemon
    frame = sys._current_frames()[helper.ident]
    assert frame.f_code.co_name == "run"  # of threading: it has called compiled code, and does not come back


def own_team(monkeypatch, size: int, alive: bool = True) -> helpers.Team:
    """Another team of so many helpers; unless `alive` they have gone after a first look into their mailboxes."""
    team = helpers.Team()
    monkeypatch.setattr(helpers, "_team", team)
    team.grow(size, loading.entry("serve") if alive else lambda slot: team.write(slot + MAILBOX, 0))
    deadline = time.monotonic() + PATIENCE
    while set(mailboxes(team)) != {0} and time.monotonic() < deadline:
        time.sleep(0.001)
    return team


def mailboxes(team: helpers.Team) -> list[int]:
    size = ctypes.c_int64.from_address(team.address + SIZE).value
    places = [team.slot(number) + MAILBOX for number in range(size)]
    return [ctypes.c_int64.from_address(place).value for place in places]


def dismiss(team: helpers.Team) -> None:
    """Have its helpers return."""
    for number in range(team.started):
        team.write(team.slot(number) + MAILBOX, NOBODY)
        wake = ctypes.pythonapi.PyThread_release_lock
        wake.argtypes = [ctypes.c_void_p]
        wake(team.read(team.slot(number) + LOCK))


@pytest.mark.parametrize("size", [1, 7, 63])
def test_any_number_of_helpers(size, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: size + 1)
    team = own_team(monkeypatch, size)
    for _ in range(5):
        job, found = fills([300_000, 5, 1_000_000])
        job.do()
        check(found)
    assert set(mailboxes(team)) <= {0}
    names = [thread for thread in threading.enumerate() if thread.name.startswith("fastinit-helper-")]
    dismiss(team)
    deadline = time.monotonic() + PATIENCE
    while sum(thread.is_alive() for thread in names) > len(names) - size and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sum(thread.is_alive() for thread in names) <= len(names) - size


def test_who_has_not_begun_is_not_waited_for(monkeypatch):
    """Helpers that the machine holds up for ever: the caller takes the job back."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    team = own_team(monkeypatch, 3, alive=False)

    def body() -> None:
        job, found = fills([300_000, 5, 1_000_000])
        job.do()
        check(found)

    in_time(body)
    assert mailboxes(team) == [0, 0, 0]


def test_two_jobs_at_a_time(monkeypatch):
    """From eight threads, each with jobs of its own; helpers serve one at a time."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def body() -> None:
        made = [[fills([50_000, 7, 90_000]) for _ in range(6)] for _ in range(8)]
        threads = [threading.Thread(target=lambda own=own: [job.do() for job, _ in own]) for own in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _, found in itertools.chain(*made):
            check(found)

    in_time(body)


def test_fewer_threads_than_asked_for_are_enough(monkeypatch):
    def refuse(self) -> None:
        raise RuntimeError("can't start new thread")

    team = helpers.Team()
    monkeypatch.setattr(helpers, "_team", team)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    job, found = fills([300_000])
    job.do()
    check(found)
    assert team.started == 0
    assert set(mailboxes(team)) == {NOBODY}


@pytest.mark.parametrize("missing", ["share", "serve", "run", "lay_out share", "share serve run"])
def test_what_cannot_be_compiled_is_done_without(missing, monkeypatch, two_threads):
    """Numba has broken since the kernels were compiled: fewer threads, or the eager engine; the same bits."""
    counts = (1 << 13, 1 << 15, 1 << 18, 1 << 22)
    expected = [fastinit.normal_(torch.empty(count), stream=Stream(1)) for count in counts]
    right = loading.entry

    def entry(name):
        if name in missing.split():
            raise KernelMissing("none")
        return right(name)

    monkeypatch.setattr(loading, "entry", entry)
    monkeypatch.setattr(helpers, "_team", helpers.Team())
    monkeypatch.setattr(tell, "told", {"eager CPU"})
    for count, values in zip(counts, expected, strict=True):
        alone, together = torch.empty(count), torch.empty(count)
        fastinit.normal_(alone, stream=Stream(1))
        with fastinit.batch():
            fastinit.normal_(together, stream=Stream(1))
            fastinit.zeros_(torch.empty(3))
        assert same_bits(alone, values)
        assert same_bits(together, values)


# --- interruptions, nested jobs, forks -----------------------------------------------------------


def one_job(module, out: torch.Tensor) -> None:
    """A fill in several goes, by an instrumented module of helpers."""
    job = Job()
    job.add_fill(out, Draw("normal", (0.0, 1.0), 1, 1), 0, None)
    rows, length = laid_out(job)
    module.run(rows.ctypes.data, 1, length, 3)


def laid_out(job: Job):
    rows = job.table().rows
    return rows, int(rows[0, END])


def own_module(interrupter: Interrupter):
    module = instrumented(helpers, interrupter)
    module.A_GO = 1 << 14
    return module


def test_an_interruption_at_every_statement_leaves_no_late_write():
    interrupter = Interrupter()
    module = own_module(interrupter)
    expected = fastinit.normal_(torch.empty(200_000), stream=Stream(1, 1))
    for number in itertools.count():
        out = torch.zeros(200_000)
        interrupter.arm((number,))
        try:
            one_job(module, out)
        except KeyboardInterrupt:
            assert interrupter.raised
        else:
            assert not interrupter.raised
        interrupter.armed = False
        before = out.clone()
        time.sleep(0.002)
        assert same_bits(out, before)
        if not interrupter.raised:
            break
        one_job(module, out)
        assert same_bits(out, expected), number
    assert number > 10
    assert same_bits(out, expected)


class Nested(Interrupter):
    """Does a job where it would raise, as a signal handler or a finaliser may."""

    def interrupt(self, number: int) -> None:
        self.armed = False
        inner = torch.empty(100_000)
        one_job(self.module, inner)
        assert same_bits(inner, fastinit.normal_(torch.empty(100_000), stream=Stream(1, 1))), number


def test_a_job_inside_a_job_at_every_statement():
    expected = fastinit.normal_(torch.empty(200_000), stream=Stream(1, 1))

    def body() -> None:
        for number in itertools.count():
            nested = Nested()
            nested.module = own_module(nested)  # a team of its own, without any threads yet
            out = torch.empty(200_000)
            nested.arm((number,))
            one_job(nested.module, out)
            assert same_bits(out, expected)
            if not nested.raised:
                break
        assert number > 10

    in_time(body)


FORK = """
import os, signal, threading, torch, fastinit
torch.set_num_threads(3)
stream = fastinit.Stream(1)
expected = fastinit.normal_(torch.empty(1 << 20), stream=stream).numpy().tobytes()
going = True
def draw():
    out = torch.empty(1 << 21)
    while going:
        fastinit.normal_(out, stream=stream)
threads = [threading.Thread(target=draw) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs
        same = all(fastinit.normal_(torch.empty(1 << 20), stream=stream).numpy().tobytes() == expected for _ in "ab")
        os._exit(0 if same else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
going = False
for thread in threads:
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forks_while_jobs_are_done():
    """By two other threads, and their helpers: the child has none of them, and makes its own."""
    assert python("import warnings; warnings.simplefilter('ignore')" + FORK).split() == ["0"] * 20


FORK_INSIDE = """
import os, signal, sys, torch, fastinit
from fastinit.kernels.cpu import helpers, loading
torch.set_num_threads(3)
stream = fastinit.Stream(1)
expected = fastinit.normal_(torch.empty(1 << 23), stream=stream).numpy().tobytes()
helpers.A_GO = 1 << 19
right, children = loading.entry, []

def entry(name):
    def forking(*arguments):
        right(name)(*arguments)
        if len(children) < 3:
            children.append(os.fork())
            if children[-1] == 0:
                signal.alarm(60)
    return forking if name == "run" else right(name)

loading.entry = entry
same = fastinit.normal_(torch.empty(1 << 23), stream=stream).numpy().tobytes() == expected
if 0 in children:
    os._exit(0 if same else 1)
print(same, *[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_in_the_middle_of_a_job():
    """Between two goes, as a signal handler may: both go on."""
    assert python("import warnings; warnings.simplefilter('ignore')" + FORK_INSIDE).split() == ["True", "0", "0", "0"]


def test_an_interruption_comes_within_a_go(monkeypatch):
    """Control-C during a fill of seconds is heard after a fraction of one, and leaves the rest unwritten."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("needs POSIX timers")
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # eight goes
    out = torch.zeros(1 << 28, dtype=torch.bfloat16)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        begin = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(KeyboardInterrupt):
            fastinit.normal_(out, stream=Stream(1))
        took = time.perf_counter() - begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert took < 5
    assert (bits(out[-1000:]) == 0).all()
