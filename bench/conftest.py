"""Options of `pytest bench`, and which cases they choose."""

from __future__ import annotations

import pytest
import torch

from bench import cases
from bench.peers import PEERS

SIZES = (4, 10, 16, 22)  # log2 of the elements
FULL = (0, 4, 8, 12, 16, 20, 24, 26, 28)
QUICK = (4, 16)
PEERS_FROM = 12  # below, calls into other libraries measure their Python


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--quick", action="store_true", help="small sizes and few rounds: seconds, and rough")
    group.addoption("--full", action="store_true", help="up to 2^28 elements, matrices and odd memory: an hour, 5 GiB")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A case's calls are numbered in the order in which they stand in the table; peers come last."""
    option = metafunc.config.getoption
    sizes = QUICK if option("--quick") else FULL if option("--full") else SIZES
    chosen = list(cases.full_suite(sizes) if option("--full") else cases.suite(sizes))
    if "contender" in metafunc.fixturenames:
        pairs = [(case, name) for case in chosen for name in case.contenders]
        ids = [f"{word(case)}-{1 + case.contenders.index(name)}_{name}" for case, name in pairs]
        metafunc.parametrize(("case", "contender"), pairs, ids=ids)
    if "peer" in metafunc.fixturenames:
        drawn = [
            (case, peer) for case in chosen if case.elements >= 1 << PEERS_FROM for peer in PEERS if peer.draws(case)
        ]
        ids = [f"{word(case)}-4_{peer.name}" for case, peer in drawn]
        metafunc.parametrize(("case", "peer"), drawn, ids=ids)


def word(case: cases.Case) -> str:
    """Its name as -k can ask for it: -k has no carets."""
    return case.name.replace("^", "-to-")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
