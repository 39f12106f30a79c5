"""The arithmetic's numbers are the ones that the script makes, and as good as it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fastinit.kernels.arithmetic import coefficients

SCRIPT = Path(__file__).parents[1] / "bench" / "coefficients.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("bench_coefficients", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_script_makes_the_file(script):
    assert script.module_text() == Path(coefficients.__file__).read_text()


def test_greatest_errors(script):
    for name, (_, allowed) in script.FITS.items():
        made, greatest = script.fit_floats(name)
        assert made == getattr(coefficients, name)
        assert greatest < allowed


def test_a_wrong_coefficient_would_show(script):
    """The twin: one coefficient off by a few units in its last place breaks the bound."""
    fit = script.FITS["SIN_32"][0]("SIN_32")
    wrong = [script.mpf(c) for c in reversed(coefficients.SIN_32)]
    wrong[0] += script.mpf(4 * torch.finfo(torch.float32).eps)
    assert max(abs(error) for error in script.weighted_errors(fit, wrong)) > script.FITS["SIN_32"][1]
