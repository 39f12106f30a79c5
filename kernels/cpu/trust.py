"""Folders of files that we execute, which nobody but we and root may be able to write.

The rules are those of OpenSSH's StrictModes. A folder and all its parents belong to us or to root, and neither their
group nor others can write them; parents may be sticky, as /tmp is, because there nobody can replace what belongs to
another. A file is checked by the descriptor that it is then read from: a regular file of one name that belongs to us or
to root and that neither its group nor others can write.

Parents are checked from the root down. What lies below one that has passed can only be replaced by us and by root, so
nothing can be swapped between the check and the use. Links in a folder's path are followed once, when it is named;
then the real path is what is checked, and a link found there is refused.

Windows has neither owners nor modes in this sense: what is checked there is that a file is a regular one, and access is
left to the folder, which by default lies in the user's profile.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

POSIX = hasattr(os, "geteuid") and os.open in os.supports_dir_fd
# Drafts older than this many seconds were left behind by a process that was killed: writing one takes milliseconds.
DRAFT_LIVES = 3600


def flags(*names: str) -> int:
    """Those that this platform knows."""
    return functools.reduce(operator.or_, (getattr(os, name, 0) for name in names))


# Without O_NONBLOCK, opening a FIFO waits for somebody who writes.
READ = flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
WRITE = flags("O_WRONLY", "O_CREAT", "O_EXCL", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
FOLDER = flags("O_RDONLY", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")


def require_trusted(status: os.stat_result, place: str, sticky: bool = False) -> None:
    """Raise `PermissionError` where others than we and root can write; `sticky` admits folders such as /tmp."""
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{place} belongs to another user ({status.st_uid})")
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writable and not (sticky and status.st_mode & stat.S_ISVTX):
        raise PermissionError(f"its group or others can write {place} (mode {stat.S_IMODE(status.st_mode):o})")


def check_parent(place: str) -> None:
    status = os.lstat(place)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{place} is not a folder")
    require_trusted(status, place, sticky=True)


def can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


class Folder:
    """A folder whose files may be executed; every method raises `OSError` where it must not be trusted.

    `shared` is whether what is written here can be read by other users, who then have to trust us.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        # Absolute, so that a change of the working directory does not lead to another folder.
        self.path = Path(os.path.realpath(path))
        self.folder_mode, self.file_mode = (0o755, 0o644) if shared else (0o700, 0o600)
        self._parents = [str(parent) for parent in reversed(self.path.parents)]
        self._cleaned = False

    def prepare(self) -> bool:
        """Make the folder, and those around it, where it is missing; returns whether it can be written."""
        for parent in self._parents:
            self._make(parent)
            if POSIX:  # before anything is made below it
                check_parent(parent)
        self._make(str(self.path))
        with self._opened():
            return can_write(self.path)

    def names(self) -> list[str]:
        with self._opened() as folder:
            return os.listdir(self.path if folder is None else folder)

    def read(self, name: str) -> bytes:
        """What is in a file."""
        with self._opened() as folder:
            file = os.open(self._at(folder, name), READ, dir_fd=folder)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise PermissionError(f"{name} is not a regular file")
                if POSIX:
                    require_trusted(status, name)
                    if status.st_nlink != 1:  # the other name may be where others choose what is in it
                        raise PermissionError(f"{name} has {status.st_nlink} names")
                with open(file, "rb", closefd=False) as stream:
                    return stream.read()
            finally:
                os.close(file)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file in one step: no other process sees half of it."""
        with self._opened() as folder:
            if not self._cleaned:
                self._cleaned = True
                self._remove_old_drafts(folder)
            draft, target = self._at(folder, f"{name}.{uuid.uuid4().hex}"), self._at(folder, name)
            file = os.open(draft, WRITE, self.file_mode, dir_fd=folder)
            try:
                with open(file, "wb") as stream:
                    if POSIX:
                        os.fchmod(file, self.file_mode)  # whatever the umask
                    stream.write(content)
                os.replace(draft, target, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft, dir_fd=folder)
                raise

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """A descriptor of the folder, found trusted; None where the platform has none to work relative to."""
        if not POSIX:
            yield None
            return
        for parent in self._parents:
            check_parent(parent)
        folder = os.open(self.path, FOLDER)
        try:
            require_trusted(os.fstat(folder), str(self.path))
            yield folder
        finally:
            os.close(folder)

    def _make(self, place: str) -> None:
        if not os.path.lexists(place):
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.mkdir(place, self.folder_mode)
                os.chmod(place, self.folder_mode)  # whatever the umask

    def _at(self, folder: int | None, name: str) -> str:
        """How to name a file: relative to the folder's descriptor, or by its path."""
        return name if folder is not None else str(self.path / name)

    def _remove_old_drafts(self, folder: int | None) -> None:
        for name in os.listdir(self.path if folder is None else folder):
            kept, _, unique = name.rpartition(".")
            if not (kept.endswith(".kernel") and len(unique) == 32):
                continue
            with contextlib.suppress(OSError):  # another process may be doing the same
                draft = self._at(folder, name)
                age = time.time() - os.stat(draft, dir_fd=folder, follow_symlinks=False).st_mtime
                if age > DRAFT_LIVES:
                    os.unlink(draft, dir_fd=folder)
