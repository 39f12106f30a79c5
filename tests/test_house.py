"""The house: imports run one way, files and functions stay small, and the list of laws is the only one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fastinit
from fastinit import laws
from fastinit.kernels import contract

PACKAGE = Path(fastinit.__file__).parent
KERNELS = Path(contract.__file__).parent
FILES = {
    ".".join(("fastinit", *prefix, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
    for root, prefix in ((PACKAGE, ()), (KERNELS, ("kernels",)))
    for path in root.rglob("*.py")
    if root == KERNELS or KERNELS.name not in path.relative_to(root).parts
}
# From the ground up: a folder imports itself and those before it.
FLOORS = (
    "version", "kernels", "laws", "drawing", "initialisers", "init", "samplers", "random", "scaled", "structured",
    "shards", "frameworks", "models", "fastinit", "commands",
)  # fmt: skip
LONGEST_FILE, LONGEST_FUNCTION = 400, 50


def imported(name: str) -> Iterator[tuple[str, bool]]:
    """The modules of the house that a module imports, and whether when it is imported itself."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {inner for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    late |= {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package.split(".")[: package.count(".") + 2 - node.level]
            base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in FILES else base), node not in late


def floor_of(name: str) -> str | None:
    part = name.removeprefix("fastinit.").partition(".")[0]
    return part if part in FLOORS else None


@pytest.mark.parametrize("name", FILES)
def test_imports_run_down(name):
    own = floor_of(name)
    if own is None:  # python -m fastinit, and PyInstaller's
        return
    for used, _ in imported(name):
        other = floor_of(used)
        assert other is not None, f"{name} imports {used}"
        assert FLOORS.index(other) <= FLOORS.index(own), f"{name} imports {used}"


def test_no_circles():
    """At the time of import; and a circle would show."""
    graph = {name: {used for used, now in imported(name) if now and used != name} for name in FILES}
    assert not circle_in(graph)
    graph["fastinit.laws.floats"] = {"fastinit.laws.uniform"}
    assert circle_in(graph)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    left = {name: set(used) & graph.keys() for name, used in graph.items()}
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_kernels_know_no_law_and_nothing_of_fastinit():
    english = {"words", "normal", "uniform", "integers"}
    kinds = contract.SAMPLERS.keys() - english
    for name, path in FILES.items():
        if floor_of(name) == "kernels":
            text = path.read_text(encoding="utf-8")
            assert not [kind for kind in kinds if kind in text], name
            assert all(floor_of(used) == "kernels" for used, _ in imported(name)), name


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_small(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


def test_a_requirement_has_the_same_versions_in_every_extra():
    versions: dict[str, set[str]] = {}
    for requirement in map(Requirement, metadata.requires("torch-fastinit")):
        versions.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert not {name: different for name, different in versions.items() if len(different) > 1}


def test_every_law_s_file_is_in_the_list():
    modules = {path.stem for path in (PACKAGE / "laws").glob("*.py") if "@sampler" in path.read_text(encoding="utf-8")}
    assert {law.__name__.rpartition(".")[2] for law in laws.ALL} == modules
    kinds = {law.parameters(dtype)[0] for _, law, dtype in laws.examples()}
    assert kinds == contract.SAMPLERS.keys()  # every sampler has an example
