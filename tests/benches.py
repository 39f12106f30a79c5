"""Scripts of bench/ for tests, which see no package there: it is beside the tests, not on the path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "bench"


def load(name: str) -> ModuleType:
    """The module bench.`name`."""
    if "bench" not in sys.modules:
        start, found = FOLDER / "__init__.py", [str(FOLDER)]
        specification = importlib.util.spec_from_file_location("bench", start, submodule_search_locations=found)
        assert specification is not None
        sys.modules["bench"] = importlib.util.module_from_spec(specification)
    return importlib.import_module(f"bench.{name}")
