"""The CPU benchmarks without their wait: how they judge, over made-up times; that every case runs, in small sizes."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import benches
import pytest
import torch

timing, cases, peers = benches.load("timing"), benches.load("cases"), benches.load("peers")
cold = benches.load("cold")
floors, guard, report = benches.load("floors"), benches.load("guard"), benches.load("report")


class Clock:
    """Stands still but for calls that say how long they take."""

    def __init__(self) -> None:
        self.now, self.calls, self.slept = 0.0, [], 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def call(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


# --- timing ------------------------------------------------------------------------------------


def test_calls_take_turns_in_a_new_order_each_round(clock):
    found = timing.medians(clock.call("a", 0.5), clock.call("b", 0.25), budget=0.0, least=3)
    assert found == [0.5, 0.25]
    assert clock.calls == ["a", "a", "b", "b", *"ab", *"ba", *"ab"]


def test_what_needs_to_settle_is_called_once_before_each_timing(clock):
    timing.medians(clock.call("a", 2.0), clock.call("b", 2.0), budget=0.0, least=2, settle=True)
    assert clock.calls == ["a", "a", "b", "b", *"aabb", *"bbaa"]
    assert cases.fresh(exponent=4).settle
    assert cases.model().settle
    assert not cases.fill("normal_").settle


def test_what_is_slow_sits_rounds_out_evenly(clock):
    found = timing.medians(clock.call("slow", 10.0), clock.call("fast", 1.0), budget=30.5, least=2)
    assert found == [10.0, 1.0]
    measured = "".join(name[0] for name in clock.calls[4:])  # each is called twice for its estimate
    assert measured.count("s") == 3
    assert [len(turns) for turns in measured.split("s")] in ([9, 10, 10, 1], [10, 10, 10, 0], [9, 10, 11, 0])


def test_short_calls_are_timed_many_at_a_time(clock):
    (found,) = timing.medians(clock.call("a", 1e-6), budget=1e-3, least=3)
    assert found == pytest.approx(1e-6)
    assert len(clock.calls) > 10 * timing.TICK / 1e-6 / 1.01


def test_calls_wait_for_threads_that_spin_where_it_matters(clock):
    timing.medians(clock.call("a", 4e-3), clock.call("b", 1.0), budget=0.0, least=3)
    assert clock.slept == pytest.approx(6 * timing.REST)
    timing.medians(clock.call("a", 4e-4), clock.call("b", 1.0), budget=0.0, least=3)
    assert clock.slept == pytest.approx(6 * timing.REST)


def test_measuring_leaves_the_process_as_it_was():
    assert gc.isenabled()
    before, seen = torch.get_num_threads(), []
    with timing.threads(before + 1):
        timing.medians(lambda: seen.append((gc.isenabled(), torch.get_num_threads())), budget=0.0, least=1)
    assert set(seen) == {(False, before + 1)}
    assert gc.isenabled()
    assert torch.get_num_threads() == before


def test_the_machine_is_described():
    about = timing.machine()
    assert all(about.values())
    assert all(about[name] in timing.words_of(about) for name in ("processor", "vectors", "torch", "fastinit"))


# --- cases -------------------------------------------------------------------------------------

TINY = [*cases.full_suite((4,)), *(replace(case, shape=(4, 8)) for case in cases.TABLE)]


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_every_case_runs(case):
    calls = case.calls()
    assert tuple(calls) == case.contenders
    for call in calls.values():
        call()


def test_names_tell_cases_apart():
    names = [case.name for case in cases.full_suite((0, 4, 26))]
    assert len(set(names)) == len(names)
    assert sorted(names[: names.index("uniform_ float32 2^04")]) == sorted(
        name for name in names if name.endswith("2^00")
    )


def test_the_model_has_half_a_billion_parameters():
    assert cases.model().elements == pytest.approx(500e6, rel=0.05)


def test_slices_are_of_one_matrix_and_as_large():
    case = cases.slices("normal_", side=64)
    assert case.elements == 64 * 64
    for name in ("fastinit", "rows"):
        call = case.calls()[name]
        local, down, right = call.args
        assert local.numel() * cases.RANKS == case.elements
        assert (down * cases.RANKS, right * cases.RANKS) in ((64, 0), (0, 64))


# --- peers -------------------------------------------------------------------------------------


def raising(error):
    def make(function, tensor):
        raise error

    return peers.Peer("made up", ("normal_",), (torch.float32,), make)


def test_a_peer_that_is_missing_says_why():
    tensor = torch.empty(64)
    assert "no module named x" in peers.call_of(raising(ImportError("no module named x")), "normal_", tensor)
    words = peers.call_of(raising(NotImplementedError("not here\nand much more")), "normal_", tensor)
    assert words == "does not work here: NotImplementedError: not here"
    assert "RuntimeError" in peers.call_of(raising(RuntimeError()), "normal_", tensor)


@pytest.mark.parametrize("name", ["numpy Philox", "numpy SFC64"])
def test_numpy_draws_into_the_tensor(name):
    peer = next(peer for peer in peers.PEERS if peer.name == name)
    tensor = torch.zeros(8, 8)
    peers.call_of(peer, "uniform_", tensor)()
    assert tensor.unique().numel() > 60
    assert peer.draws(cases.fill("normal_", exponent=6))
    assert not peer.draws(cases.fill("normal_", torch.bfloat16, 6))
    assert not peer.draws(cases.fill("normal_", exponent=6, std=0.02))
    assert not peer.draws(cases.slices("normal_"))


# --- the guard ---------------------------------------------------------------------------------

FLOOR = floors.Floor(cases.fill("normal_", exponent=4), (floors.torchs(10, 2.5), floors.fills(2.0, 8)), budget=1.0)


def attempts(*pairs):
    """Made-up attempts: how many times as fast as torch, and how many times fill_'s time."""
    budgets, left = [], list(pairs)

    def measured_by(floor, budget):
        budgets.append(budget)
        times, fill = left.pop(0)
        return {"fastinit": 2.0, "torch": 2.0 * times, "fill_": 2.0 / fill}

    return measured_by, budgets


@pytest.mark.parametrize(
    ("pairs", "met", "measured"),
    [
        ([(10.0, 2.0)], (True, True), 1),
        ([(9.0, 1.0), (9.9, 1.0), (9.0, 1.0)], (False, True), 3),
        ([(20.0, 2.1), (20.0, 2.1), (20.0, 2.1)], (True, False), 3),
        ([(9.0, 1.0), (10.5, 1.0), (11.0, 1.0)], (True, True), 3),  # the median of 9, 10.5 and 11
        ([(9.0, 1.0), (12.0, 1.0)], (True, True), 2),
        ([(2.4, 1.0)], (False, True), 1),  # hopeless
        ([(20.0, 8.1)], (True, False), 1),
    ],
)
def test_a_miss_is_measured_again_and_the_median_decides(pairs, met, measured):
    measured_by, budgets = attempts(*pairs)
    verdicts = guard.judge(FLOOR, FLOOR.bounds, measured_by)
    assert tuple(verdict.met for verdict in verdicts) == met
    assert [verdict.attempts for verdict in verdicts] == [measured] * 2
    assert budgets == [1.0, 1.5, 2.25][:measured]


def test_generous_bounds_pass_what_strict_ones_do_not():
    for generous, expected in ((False, False), (True, True)):
        measured_by, _ = attempts(*[(5.0, 4.0)] * 3)
        ((first, second),) = guard.verdicts([FLOOR], generous, measured_by)
        assert (first.met, second.met) == (expected, expected)
    measured_by, _ = attempts(*[(1.3, 9.0)] * 3)  # lost vectors
    ((first, second),) = guard.verdicts([FLOOR], True, measured_by)
    assert [first.met, second.met] == [False, False]


@pytest.mark.parametrize(("times", "status"), [(1e6, 0), (1e-6, 1)])
def test_the_exit_status_tells(monkeypatch, capsys, times, status):
    """The twin of a guard that passes: the same rows, with times in which everything is too slow."""

    def measured_by(floor, budget):
        return {"fastinit": 1.0} | {bound.against: times for bound in floor.bounds}

    monkeypatch.setattr(guard, "measure", measured_by)
    assert guard.main(["--only", r"float32 2\^26|columns"]) == status
    words = capsys.readouterr().out
    rows = [line for line in words.splitlines() if line.startswith("│")]
    assert len(rows) == 23
    assert all(("missed" in row) == bool(status) for row in rows)


def test_without_the_engine_nothing_is_met(monkeypatch, capsys):
    monkeypatch.setattr(guard.doctor, "processor_problem", lambda: "no Numba")
    assert guard.main([]) == 1
    assert "no Numba" in capsys.readouterr().out


def test_a_pattern_without_rows_is_no_success(capsys):
    assert guard.main(["--only", "no such row"]) == 1
    assert "0 met, 0 missed" in capsys.readouterr().out


def test_every_floor_has_a_case_that_measures_it():
    names = [floor.case.name for floor in floors.FLOORS]
    assert len(set(names)) == len(names)
    for floor in floors.FLOORS:
        assert {bound.against for bound in floor.bounds} <= {*floor.case.contenders} - {"fastinit"}
        for bound in floor.bounds:
            assert bound.rough < bound.target if bound.faster else bound.rough > bound.target
    assert {case.name for case in cases.TABLE[:6]} <= set(names)


def test_a_floor_is_really_measured():
    floor = floors.Floor(cases.slices("uniform_", side=64), (floors.Bound("rows", 1.3, 2.6, faster=False),))
    seconds = guard.measure(floor, 0.0)
    assert set(seconds) == {"fastinit", "rows"}
    assert min(seconds.values()) > 0


def test_the_first_use_is_timed_in_new_processes(monkeypatch):
    monkeypatch.setattr(guard, "STARTS", 1)
    milliseconds = guard.start_up()
    assert 1 < milliseconds < 60_000
    assert guard.first_use(milliseconds, milliseconds).met
    assert not guard.first_use(milliseconds, milliseconds - 1).met


# --- the report --------------------------------------------------------------------------------


def test_a_quick_report_writes_everything(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "QUICK", report.Sweep((0, 4), (6,), 1 << 10, 6, None, 6, budget=0.0, least=1))
    pages = {tmp_path / "short.md": 4, tmp_path / "long.md": len(cases.TABLE)}
    for page in pages:
        page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGES", pages)
    assert report.main(["--quick", "--out", str(tmp_path / "out"), "--pages"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["machine"] == timing.machine()
    assert len(found["measured"]) == len({row["case"] for row in found["measured"]})
    for row in found["measured"]:
        assert {"fastinit", "torch", "fill_", "stores"} <= set(row["ns_an_element"])
        assert all(0 < ns < 1e9 for ns in row["ns_an_element"].values())
        seconds, rate = row["median_seconds"]["fastinit"], row["bytes_a_second"]["fastinit"]
        assert seconds * 1e9 / row["elements"] == pytest.approx(row["ns_an_element"]["fastinit"])
        assert rate > 0
    for name in report.PICTURES:
        assert 5_000 < len((tmp_path / "out" / name).read_bytes()) < 150_000
        assert f"({name})" in (tmp_path / "out" / "report.md").read_text()
    shown = [(case.shown, case.dtype_name) for case in cases.TABLE]
    for page, most in pages.items():
        text = page.read_text()
        assert re.fullmatch(r"before\n<!-- .*? -->\n.*\n<!-- .*? -->\nafter\n", text, re.S)
        assert "old" not in text
        assert re.findall(r"^\| ([\w.]+\(.*?\)) \| (\w+) \|", text, re.M) == shown[:most]
        assert re.search(
            r"^\| a model like Llama, \w+ parameters, fresh memory \| float32 \|( [\d.]+ \|){4} \*\*", text, re.M
        )
    assert text.splitlines()[6] in capsys.readouterr().out


def test_peers_have_a_table_and_their_reasons():
    case, seconds = cases.fill("normal_", exponent=4), {"fastinit": 1e-8, "torch": 2e-8, "stores": 1e-9}
    row = report.Measured(case, seconds | {"numpy Philox": 3e-8}, {"mkl_random": "not installed"})
    made = report.Report({}, [], [], [], [], [], [], [row])
    words = report.peers_table(made)
    assert "* mkl_random: not installed" in words
    assert "| 0.62 | 1.25 | 0.06 |" in words
    assert "| 1.87 |" in words
    assert "nan" not in words


def test_a_page_without_a_place_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="no place for the table"):
        report.into_page(tmp_path / "README.md", "table")


# --- the suite ---------------------------------------------------------------------------------


def test_the_suite_runs(tmp_path):
    wanted = "test_fill and normal_ and float32 and 2-to-04 and not kaiming_normal_ and not std"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench",
        "--quick",
        "-k",
        wanted,
        "--benchmark-json",
        tmp_path / "j.json",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    root: Path = benches.FOLDER.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "j.json").read_text())["benchmarks"]
    group = [row for row in rows if row["group"] == "normal_"]
    assert [row["name"] for row in group] == [
        f"float32 2^04 {name}" for name in ("1_fastinit", "2_torch", "3_fill_", "4_stores")
    ]
    for row in group:
        assert row["extra_info"]["ns_an_element"] == pytest.approx(row["stats"]["median"] * 1e9 / 16)
        assert row["extra_info"]["bytes_a_second"] == pytest.approx(64 / row["stats"]["median"])
    assert done.stdout.index("1_fastinit") < done.stdout.index("2_torch") < done.stdout.index("3_fill_")


# --- many tensors ----------------------------------------------------------------------------------


MANY = [
    *(replace(cold.ring("normal_", 12, how), size=1 << 18) for how in cold.HOW),
    *(cold.small(50, how) for how in ("batch", "list")),
    cold.hot("normal_", 12),
    cold.parameters(),
]


@pytest.mark.parametrize("case", MANY, ids=lambda case: case.name)
def test_cases_of_many_tensors_write_all_of_them(case, monkeypatch):
    """What is timed fills each tensor, whoever does it; fastinit to the same bits, in each way."""
    made, drawn = [], {}
    right = type(case).tensors if isinstance(case, cold.Many) else type(case).tensor
    monkeypatch.setattr(type(case), right.__name__, lambda self: made.append(right(self)) or made[-1])
    calls = case.calls()
    assert calls.keys() >= set(case.contenders)
    tensors = made[-1] if isinstance(case, cold.Many) else [made[-1]]
    assert sum(tensor.numel() for tensor in tensors) == case.elements
    for name in calls.keys() - {"one"}:
        for tensor in tensors:
            tensor.fill_(7.0)
        torch.manual_seed(1)
        calls[name]()
        assert all((tensor != 7).float().mean() > 0.9 for tensor in tensors), name
        drawn[name] = torch.cat([tensor.flatten() for tensor in tensors])
    for name in drawn.keys() & {"batch", "list", "alone"}:
        assert torch.equal(drawn[name], drawn["fastinit"]), name


def test_a_busy_neighbour_is_there_while_a_case_is_timed_and_gone_afterwards():
    """It takes a core's time: some of what passes, on a machine that is busy itself."""

    def childrens_time(busy: bool) -> float:
        before = sum(os.times()[2:4])  # of children that have ended
        with cold.ring("uniform_", 12, busy=busy).held():
            time.sleep(0.4)
        return sum(os.times()[2:4]) - before

    assert childrens_time(busy=True) > 0.1
    assert childrens_time(busy=False) == 0.0


def test_names_of_all_rows_differ():
    names = [floor.case.name for floor in floors.FLOORS]
    assert len(names) == len(set(names))
