"""Who draws is decided once a call, whatever its arguments."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from common import ARGUMENTS, DRAWING

import fastinit
from fastinit import Stream
from fastinit.drawing import engines, flags, quick, route

KEYWORDS = {
    "nothing": {},
    "fast": {"fast": True},
    "slow": {"fast": False},
    "stream": {"stream": Stream(1)},
    "generator": {"generator": torch.Generator().manual_seed(1)},
    "all": {"fast": True, "stream": Stream(1)},
}
# orthogonal_ and sparse_ draw into a second tensor, of another law or dtype.
CHOICES = {"orthogonal_": 1, "sparse_": 2}


@pytest.fixture
def asked(monkeypatch):
    """How often each question is asked; nobody takes the fast path."""
    counts: Counter[str] = Counter()

    def count(owner, name):
        right = getattr(owner, name)

        def counted(*arguments, **keywords):
            counts[name] += 1
            return right(*arguments, **keywords)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in ((flags, "flag_of"), (engines, "choose"), (route, "outside_contract")):
        count(owner, name)
    monkeypatch.setattr(quick, "fill", lambda *arguments, **keywords: False)
    return counts


@pytest.mark.parametrize("flag", [None, True])
@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
@pytest.mark.parametrize("name", DRAWING)
def test_one_look_at_the_flags_and_one_choice_of_an_engine(name, keywords, flag, asked):
    tensor = torch.empty(12, 4)
    fastinit.flag(tensor, flag)
    call = getattr(fastinit, name)
    for target in (tensor, fastinit.shard(tensor, (24, 4), (12, 0))):
        if keywords.get("fast") is False and target is not tensor:
            continue
        asked.clear()
        call(target, *ARGUMENTS.get(name, ()), **keywords)
        serves = keywords.get("fast") is not False
        assert asked["flag_of"] == (keywords.get("fast") is None)
        assert asked["choose"] == (CHOICES.get(name, 1) if serves else 0)
        assert asked["outside_contract"] == serves
