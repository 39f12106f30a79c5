"""The source distribution: unpacked and installed anywhere, its own tests run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of its tests: some of the package, of bench/, of README.md and of the files that tests share.
SELECTION = ("test_streams.py", "test_coefficients.py", "test_readme.py", "test_laws.py")


def done(*command: object, folder: Path) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    run = subprocess.run(
        [str(word) for word in command], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no sources to build a distribution of")
def test_the_sdists_own_tests_pass_outside_the_checkout(tmp_path):
    """Builds as pip does, so an index must be in reach."""
    done(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT, folder=tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = next(path for path in tmp_path.iterdir() if path.is_dir())
    missing = {"CHANGELOG.md", "LICENSE", "README.md", ".ci", "bench", "tests"} - {path.name for path in tree.iterdir()}
    assert not missing
    assert not list(tree.rglob("*.py[cod]"))
    for folder in ("tests", "bench"):
        tracked = {
            path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".ini")
        }
        assert tracked <= {path.relative_to(tree) for path in tree.rglob("*")}

    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
    # What fastinit depends on comes from here; fastinit itself does not, as its own folder is looked at first.
    folder = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (folder / "dependencies.pth").write_text("\n".join(here))
    done(python, "-m", "pip", "install", "--quiet", "--no-deps", tree, folder=tmp_path)
    where = done(python, "-c", "import fastinit, fastinit.kernels; print(fastinit.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(folder)
    outside = tmp_path / "outside"  # where no fastinit/ lies beside the tests
    outside.mkdir()
    for name in ("tests", "bench", "README.md", "pyproject.toml"):
        (tree / name).rename(outside / name)
    said = done(python, "-m", "pytest", "-n", "0", "-q", *(f"tests/{name}" for name in SELECTION), folder=outside)
    assert " passed" in said
