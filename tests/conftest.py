"""What the tests share: the laws, dtypes and engines that they run over, and how bits are compared."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

# Before fastinit is imported: kernels of this run are compiled for this run, whatever the user's cache holds.
if "FASTINIT_CACHE_DIR" not in os.environ:
    os.environ["FASTINIT_CACHE_DIR"] = tempfile.mkdtemp(prefix="fastinit-tests-")
    atexit.register(shutil.rmtree, os.environ["FASTINIT_CACHE_DIR"], ignore_errors=True)
os.environ.pop("FASTINIT", None)

import pytest
import torch
from hypothesis import settings

settings.register_profile("fastinit", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("fastinit")


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(20260101)


@pytest.fixture
def their_imports(monkeypatch):
    """Libraries import lazily: our folder kernels/ is not the package of that name, and their warnings are not ours."""
    root = Path(__file__).parent.parent
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() != root])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def two_threads():
    """At least two threads, so that pieces are really shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place():
    """A folder that every user can reach; `tmp_path` is only its user's."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
