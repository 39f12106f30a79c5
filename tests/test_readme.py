"""The pages' code runs, their links lead somewhere, and their commands and tables are the project's own."""

from __future__ import annotations

import re
from pathlib import Path

import benches
import pytest

import fastinit

ROOT = Path(__file__).parents[1]
PACKAGE, KERNELS = Path(fastinit.__file__).parent, Path(fastinit.kernels.__file__).parent
# fastinit/ and kernels/ are not beside the tests where an installed package is tested.
PLACES = {
    "fastinit": PACKAGE,
    "fastinit/initialisers": PACKAGE / "initialisers",
    "fastinit/models": PACKAGE / "models",
    "kernels": KERNELS,
    "bench": ROOT / "bench",
    "tests": ROOT / "tests",
}
PAGES = {"README.md": ROOT / "README.md"} | {f"{name}/README.md": place / "README.md" for name, place in PLACES.items()}
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
README = TEXTS["README.md"]
BLOCKS = [(name, block) for name, text in TEXTS.items() for block in re.findall(r"```python\n(.*?)```", text, re.S)]


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(BLOCKS)])
def test_python_blocks_run(name, block):
    exec(compile(block, name, "exec"), {})


def test_there_are_two_commands():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.S)
    assert len(commands) == 2
    assert commands[0].endswith("fastinit compare torch.nn:Transformer --plot report.png")
    assert commands[1].endswith("pytest")


def test_the_tables_have_the_benchmarks_rows():
    """The numbers come from the report: same cases, in the same order."""
    wanted = [(case.shown, case.dtype_name) for case in benches.load("cases").TABLE]
    for name, rows in (("README.md", wanted[:4]), ("bench/README.md", wanted)):
        assert re.findall(r"^\| ([\w.]+\(.*?\)) \| (\w+) \|", TEXTS[name], re.M) == rows


def test_the_pictures_are_there():
    pictures = [(name, link) for name, text in TEXTS.items() for link in re.findall(r"!\[.*?\]\((.*?)\)", text)]
    assert len(pictures) == 4
    assert all((PAGES[name].parent / link).read_bytes()[:4] == b"\x89PNG" for name, link in pictures)


def headings(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", TEXTS[name]):
        path, _, anchor = link.partition("#")
        parts = Path(name).parent.joinpath(path).as_posix().split("/")
        while ".." in parts:
            del parts[parts.index("..") - 1 : parts.index("..") + 1]
        target = "/".join(parts) if path else name
        if target in TEXTS:
            assert not anchor or anchor in headings(TEXTS[target]), link
        elif target != "CONTRIBUTING.md":  # which is not beside the tests of an installed package
            assert (ROOT / target).exists(), link
