"""A checkpoint streamed to a disk, beside `dd` that writes bytes of the same number and kind there.

    python -m bench.checkpoint --folder DIR --gigabytes 20 --repeat 3

`dd` copies random bytes, from a file in memory: some disks write zeros faster (`--zeros` has it write these). Both wait
until all is on the disk, once for each file of 5 GB. They take turns; the table has the medians, their ratio, and the
peak memory of this process. For Linux.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import rich
import torch
from rich.table import Table

import fastinit
from fastinit.commands.compare import resident

SHARD = 5 * 10**9
MEMORY = Path("/dev/shm")


def model(size: float) -> torch.nn.Module:
    """Layers as Llama's, without memory: so many bytes in bfloat16."""
    layer = [(2048, 2048)] * 4 + [(8192, 2048)] * 2 + [(2048, 8192)]
    count = max(1, round(size / 2 / sum(rows * columns for rows, columns in layer)))
    with torch.device("meta"):
        layers = [torch.nn.Linear(columns, rows, bias=False) for rows, columns in layer * count]
    return torch.nn.ModuleList(layers)


def ours(folder: Path, size: float) -> float:
    """Bytes a second."""
    made = model(size)
    begin = time.perf_counter()
    files = fastinit.write_checkpoint(made, "llama", folder, seed=0, dtype=torch.bfloat16, shard_size=SHARD)
    taken = time.perf_counter() - begin
    return sum(file.stat().st_size for file in files) / taken


def by_dd(folder: Path, size: float, zeros: bool) -> float:
    with tempfile.NamedTemporaryFile(dir=MEMORY) as source:
        count = 16
        for _ in range(count):
            source.write(bytes(64 << 20) if zeros else os.urandom(64 << 20))
        source.flush()
        written, begin = 0, time.perf_counter()
        while written < size:
            target = folder / f"dd-{written // SHARD}"
            command = ["dd", f"if={source.name}", f"of={target}", "bs=64M", f"count={count}", "oflag=append"]
            last = (written + (count << 26)) % SHARD < count << 26 or written + (count << 26) >= size
            command.append("conv=notrunc,fsync" if last else "conv=notrunc")
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            written += count << 26
        return written / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--zeros", action="store_true")
    arguments = parser.parse_args()
    size, rates = arguments.gigabytes * 1e9, []
    for _ in range(arguments.repeat):
        pair = []
        for write in (functools.partial(by_dd, zeros=arguments.zeros), ours):
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            try:
                os.sync()
                pair.append(write(folder, size))
            finally:
                shutil.rmtree(folder)
        rates.append(pair)
        rich.print(f"dd {pair[0] / 1e9:.2f} GB/s, fastinit {pair[1] / 1e9:.2f} GB/s")
    theirs, own = (statistics.median(column) for column in zip(*rates, strict=True))
    table = Table("checkpoint", "dd", "fastinit", "ratio", "peak memory")
    table.add_row(
        f"{arguments.gigabytes:g} GB", f"{theirs / 1e9:.2f} GB/s", f"{own / 1e9:.2f} GB/s", f"{own / theirs:.2f}",
        f"{(resident('VmHWM') or 0) / 1e9:.2f} GB",
    )  # fmt: skip
    rich.print(table)


if __name__ == "__main__":
    main()
