"""Files of a checkpoint: written beside their final names, under which only what is complete is ever seen."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    left = [file for file in planned if not is_finished(folder / file.name, file)]
    for name, content in texts.items():
        if (folder / name).exists() and (folder / name).read_bytes() != content:
            raise exists(folder / name, "exists, with other content")
    ours = {file.name for file in planned} | {*texts}
    for other in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        if other.name not in ours:
            raise exists(other, "is of other weights")
    for path in (*folder.glob(".model*.safetensors.partial"), *(partial(folder, name) for name in texts)):
        path.unlink(missing_ok=True)  # of a process that was killed: none is writing, in this locked folder
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


def partial(folder: Path, name: str) -> Path:
    """Where a file of that name is written until it is complete."""
    return folder / f".{name}.partial"


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder, created if missing, that no other process writes to in this way (nor this one, in another thread).

    Raises `BlockingIOError` where one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing there", str(folder)) from None
        except OSError:  # some network file systems lock no folders
            pass
        yield
    finally:
        os.close(descriptor)


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a small file."""
    with complete(folder, name) as descriptor:
        write_all(descriptor, memoryview(content))


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
    """What the context writes, in parts of at most `size` bytes, becomes the file; `told` hears how much was."""
    with complete(folder, file.name) as descriptor:
        write_all(descriptor, memoryview(file.head))
        writer = Writer(descriptor, size, told)
        try:
            yield writer
        finally:
            writer.close()
        if os.fstat(descriptor).st_size != file.size:
            raise RuntimeError(f"{file.name} has {os.fstat(descriptor).st_size} bytes, expected {file.size}")


@contextmanager
def complete(folder: Path, name: str) -> Iterator[int]:
    """A new file, which has its name when the context has ended and all is on the disk; if it fails, none is left."""
    path = partial(folder, name)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.replace(folder / name)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # which writing does not know
        with suppress(OSError):
            path.unlink()
        raise
    with suppress(OSError):  # not every system opens folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def begin_writing_back(descriptor: int, size: int) -> None:
    """Have the system start to write back what was written last, so that fsync has little left to wait for.

    On Linux this advice does it.
    """
    if hasattr(os, "posix_fadvise"):
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.posix_fadvise(descriptor, end - size, size, os.POSIX_FADV_DONTNEED)


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    found = hashlib.sha256()
    for part in bytes_of(tensor, 1 << 24):
        found.update(part.numpy().data)
    return found.hexdigest()


def bytes_of(tensor: Tensor, size: int) -> list[Tensor]:
    """A tensor's bytes, in row-major order, in parts."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)  # one element may have any stride
    return [flat[begin : begin + size] for begin in range(0, len(flat), size)]
