"""Files of a checkpoint: written beside their final names, under which only what is complete is ever seen."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second process from writing the same files
    fcntl = None  # type: ignore[assignment]

AHEAD = 3  # parts in memory: one is written, one drawn, one waits
WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


class File(NamedTuple):
    """A safetensors file: its name, its beginning, and its size."""

    name: str
    head: bytes
    size: int


def head_of(header: bytes) -> bytes:
    """The beginning of a safetensors file: the header, filled up to whole words, behind its length."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


# --- what is there already -----------------------------------------------------------------------


def unfinished(folder: Path, planned: Sequence[File], texts: Mapping[str, bytes]) -> list[File]:
    """Those of the planned files that have yet to be written.

    Raises `FileExistsError` where files with the final names, or other weights, are not those of these plans; `OSError`
    where the disk has not enough room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = [file for file in planned if not is_finished(folder / file.name, file)]
    for name, content in texts.items():
        if (folder / name).exists() and (folder / name).read_bytes() != content:
            raise exists(folder / name, "exists, with other content")
    ours = {file.name for file in planned} | {*texts}
    for other in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        if other.name not in ours:
            raise exists(other, "is of other weights")
    remove_abandoned(folder)
    needed = sum(file.size for file in left)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{needed:,} bytes are to be written, and {free:,} are free; nothing was written", str(folder)
        )
    return left


def is_finished(path: Path, file: File) -> bool:
    """Whether a file of the final name is the planned one. Raises `FileExistsError` for another one."""
    try:
        with path.open("rb") as stream:
            same = stream.read(len(file.head)) == file.head and os.fstat(stream.fileno()).st_size == file.size
    except FileNotFoundError:
        return False
    if not same:
        raise exists(path, "exists, of another model, seed, rules or version")
    return True


def exists(path: Path, what: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, f"{what}: move it, or write to another folder", str(path))


def partial(folder: Path, file: File) -> Path:
    """Where a file is written until it is complete."""
    return folder / f".{file.name}.partial"


def remove_abandoned(folder: Path) -> None:
    """Remove what a process that was killed had not finished."""
    for path in folder.glob(".*.partial"):
        with suppress(BlockingIOError), path.open("rb") as stream:  # another process's, which lives
            lock(stream.fileno(), path)
            path.unlink(missing_ok=True)


# --- writing -------------------------------------------------------------------------------------


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a small file, at once under its final name."""
    path = folder / f".{name}.partial"
    with opened(path) as descriptor:
        write_all(descriptor, memoryview(content))
        finish(descriptor, path, folder / name)


class Writer:
    """Writes parts in a thread of its own, in order. What it returned from `room` it takes back when it is written."""

    def __init__(self, descriptor: int, size: int, told: Callable[[int], object]) -> None:
        self.descriptor, self.told = descriptor, told
        self.free: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(AHEAD):
            self.free.put(torch.empty(size, dtype=torch.uint8, device="cpu"))
        self.parts: SimpleQueue[tuple[Tensor, Tensor | None] | None] = SimpleQueue()
        self.waiting = threading.Semaphore(AHEAD)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run, name="fastinit-writer", daemon=True)
        self.thread.start()

    def draw(self, size: int, fill: Callable[[Tensor], object]) -> None:
        """Have `fill` write so many bytes of memory, and then the file get them."""
        buffer = self.free.get()
        try:
            fill(buffer[:size])
        except BaseException:
            self.free.put(buffer)
            raise
        self.send(buffer[:size], buffer)

    def send(self, part: Tensor, buffer: Tensor | None = None) -> None:
        """Have these bytes written."""
        if self.error is not None:
            raise self.error
        self.waiting.acquire()
        self.parts.put((part, buffer))

    def run(self) -> None:
        while (taken := self.parts.get()) is not None:
            part, buffer = taken
            try:
                if self.error is None:
                    write_all(self.descriptor, part.numpy().data)
                    begin_writing_back(self.descriptor, len(part))
                    self.told(len(part))
            except BaseException as error:
                self.error = error
            if buffer is not None:
                self.free.put(buffer)
            self.waiting.release()

    def close(self) -> None:
        """Wait until all is written."""
        self.parts.put(None)
        self.thread.join()
        if self.error is not None:
            raise self.error


@contextmanager
def written(folder: Path, file: File, size: int, told: Callable[[int], object]) -> Iterator[Writer]:
    """What the context writes becomes the file, when all of it is on the disk; nothing of it where it fails.

    Raises `BlockingIOError` where another process writes the same file.
    """
    path = partial(folder, file)
    with opened(path) as descriptor:
        write_all(descriptor, memoryview(file.head))
        writer = Writer(descriptor, size, told)
        try:
            yield writer
        finally:
            writer.close()
        if os.fstat(descriptor).st_size != file.size:
            raise RuntimeError(f"{file.name} has {os.fstat(descriptor).st_size} bytes, expected {file.size}")
        finish(descriptor, path, folder / file.name)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file that is this process's own, and empty; where the context fails, it is removed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, path)
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:  # else it was finished in between
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        yield descriptor
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(descriptor)


def lock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it", str(path)) from None


def write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def begin_writing_back(descriptor: int, size: int) -> None:
    """Have the system begin to write what was written last to the disk, which it else does in bursts, and when asked.

    So fsync has little left to wait for. On Linux this advice does it.
    """
    if hasattr(os, "posix_fadvise"):
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.posix_fadvise(descriptor, end - size, size, os.POSIX_FADV_DONTNEED)


def finish(descriptor: int, path: Path, final: Path) -> None:
    """Give a file its final name, once it is on the disk."""
    os.fsync(descriptor)
    path.replace(final)
    with suppress(OSError):  # not every system opens folders
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def bytes_of(tensor: Tensor, size: int) -> Iterable[Tensor]:
    """A tensor's bytes, in row-major order, in parts."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [flat[begin : begin + size] for begin in range(0, len(flat), size)]
