"""fastinit's warnings: held back in one context and in no other, and given once although the first call was quiet."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastinit.drawing import tell


def test_quiet_holds_back_the_warnings_of_its_own_thread_only():
    filters = [*warnings.filters]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # starts the thread outside
        with tell.quiet():
            tell.warn("mine")  # which the suite would make an error
            with tell.quiet():
                pass
            tell.warn("mine")
            with pytest.warns(UserWarning, match="theirs"):
                pool.submit(tell.warn, "theirs").result()
    with pytest.warns(UserWarning, match="mine"):
        tell.warn("mine")
    assert [*warnings.filters] == filters


def test_an_error_ends_quiet():
    with pytest.raises(KeyError), tell.quiet():
        raise KeyError
    with pytest.warns(UserWarning, match="mine"):
        tell.warn("mine")


def test_what_is_told_once_is_told_after_quiet(monkeypatch):
    monkeypatch.setattr(tell, "told", set())
    with tell.quiet():
        tell.warn_once("topic", "words")
    with pytest.warns(RuntimeWarning, match="words"):
        tell.warn_once("topic", "words")
    tell.warn_once("topic", "words")
