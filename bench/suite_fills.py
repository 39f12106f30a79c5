"""`pytest bench [--quick] [--full] [-k "normal_ and 2-to-22"]`: every case, call by call, in pytest-benchmark's tables.

A table is a law; in each dtype and size fastinit, torch.nn.init, `fill_` and the peers follow each other. `extra_info`
has nanoseconds an element and bytes a second. Rows run one after the other: for ratios to rely on take bench.guard and
bench.report, where they take turns.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from bench.cases import Case
from bench.peers import Peer, call_of
from bench.timing import TICK, Call, estimate

BUDGET, QUICK_BUDGET = 0.2, 0.02  # seconds a row
LEAST, MOST = 3, 500  # rounds


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Any:
    budget = QUICK_BUDGET if request.config.getoption("--quick") else BUDGET

    def measured(case: Case, name: str, call: Call) -> None:
        benchmark.group = case.call
        benchmark.name = f"{case.name.removeprefix(case.call).strip()} {name}"
        with case.held():
            seconds = estimate(call)
            iterations = max(1, math.ceil(TICK / seconds))
            rounds = min(MOST, max(LEAST, int(budget / (seconds * iterations))))
            benchmark.pedantic(call, rounds=rounds, iterations=iterations)
        if benchmark.disabled:
            return
        median = statistics.median(benchmark.stats.stats.data)
        figures = {"ns_an_element": 1e9 * median / case.elements, "bytes_a_second": case.bytes / median}
        benchmark.extra_info.update(figures, elements=case.elements, dtype=case.dtype_name)

    return measured


def test_fill(case: Case, contender: str, measure: Any, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id.rpartition("-")[2]
    measure(case, name, case.calls()[contender])


def test_peer(case: Case, peer: Peer, measure: Any, request: pytest.FixtureRequest) -> None:
    call = call_of(peer, case.function, case.tensor())
    if isinstance(call, str):
        pytest.skip(f"{peer.name}: {call}")
    measure(case, request.node.callspec.id.rpartition("-")[2], call)
