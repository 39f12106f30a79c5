"""Processes that start with torch imported: seconds, of a fresh Python's start, that nobody learns from.

They are forked from a server that has imported torch and nothing of fastinit's, Numba's or Triton's. What they run
finds a Python in which `import torch` has been the first line. Apart from tests/common.py, for what it would import.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import tempfile
from pathlib import Path

multiprocessing.util.get_temp_dir()  # made now: later TMPDIR may be a test's own folder, which goes with the test
servers = multiprocessing.get_context("forkserver")
servers.set_forkserver_preload(["torch", __name__])


def main(code: str, environment: dict[str, str], outputs: tuple[str, str]) -> None:
    """The process: its standard output and error are these files."""
    for number, path in enumerate(outputs, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # found anew: TMPDIR may be another
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def start(code: str, environment: dict[str, str], folder: Path) -> multiprocessing.process.BaseProcess:
    """The process, which runs; what it writes is in the files `out` and `error` of that folder."""
    outputs = (str(folder / "out"), str(folder / "error"))
    process = servers.Process(target=main, args=(code, environment, outputs))
    process.start()
    return process


def run(code: str, environment: dict[str, str], timeout: float = 300) -> tuple[int | None, str, str]:
    """The exit status (None after the timeout), what was written to standard output, and to standard error."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(code, environment, Path(folder))
        process.join(timeout)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
        outputs = (Path(folder) / name for name in ("out", "error"))
        return status, *(path.read_text() if path.exists() else "" for path in outputs)
