"""Whose files are executed: every kind, owner and mode of a file and of the folders around it.

With root's rights other users' files are made and read as them; without, only what one user can do is tried.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import tempfile
import time
from pathlib import Path

import pytest
import torch
from common import python

from fastinit.kernels.cpu import cache, loading as cpu, trust
from fastinit.kernels.cpu.trust import Folder

pytestmark = pytest.mark.skipif(not trust.POSIX, reason="this platform has no owners and modes")
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
US, OTHER, GROUP = 65534, 65533, 65532  # users that own nothing here, and a group that nobody is in
READERS = (0, US) if ROOT else (os.getuid(),)
OWNERS = (0, US, OTHER) if ROOT else (os.getuid(),)
needs_root = pytest.mark.skipif(not ROOT, reason="only root can make files that belong to another user")
NAME, CONTENT = "normal.kernel", b"code"
MODES = [0o000, 0o400, 0o600, 0o644, 0o755, 0o620, 0o602, 0o660, 0o606, 0o666, 0o777, 0o1600, 0o1666, 0o4755, 0o2775]
KINDS = ("regular", "hard link", "link", "fifo", "socket", "folder", "device")


@contextlib.contextmanager
def acting_as(user: int):
    if user == os.geteuid():
        yield
        return
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def read_as(user: int, path: Path) -> bytes | None:
    """What is executed; None for a miss. Nothing but `OSError` may come."""
    with acting_as(user):
        try:
            return Folder(path.parent).read(path.name)
        except OSError:
            return None


def give(path: Path, owner: int, mode: int) -> None:
    os.chown(path, owner, GROUP if ROOT else -1, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)


def allows(reader: int, owner: int, mode: int, right: int) -> bool:
    """Whether the system lets a reader outside the group do so; `right` is 4 for reading, 1 for passing through."""
    return reader == 0 or bool((mode >> 6 if reader == owner else mode) & right)


def ours(reader: int, owner: int, mode: int, sticky: bool = False) -> bool:
    return owner in (0, reader) and (mode & 0o022 == 0 or (sticky and mode & 0o1000 != 0))


def make(kind: str, path: Path) -> None:
    if kind == "regular":
        path.write_bytes(CONTENT)
    elif kind == "hard link":
        (path.parent / "first").write_bytes(CONTENT)
        path.hardlink_to(path.parent / "first")
    elif kind == "link":
        (path.parent / "first").write_bytes(CONTENT)
        path.symlink_to(path.parent / "first")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root can make device nodes, and not in every container")


def try_files(kind: str, path: Path, modes) -> int:
    """Read a file of a kind in all modes, of all owners, by all readers; returns how many were tried."""
    make(kind, path)
    tried = 0
    for owner, mode in itertools.product(OWNERS, modes):
        give(path, owner, mode)
        for reader in READERS:
            wanted = kind == "regular" and ours(reader, owner, mode) and allows(reader, owner, mode, 4)
            assert (read_as(reader, path) == CONTENT) == wanted, (reader, owner, oct(mode))
            tried += 1
    return tried


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_only_where_nobody_else_can_have_written_it(place, kind):
    assert try_files(kind, place / NAME, MODES) >= len(MODES)


@pytest.mark.slow
def test_every_kind_and_every_mode_of_a_file(place):
    tried = 0
    for kind in KINDS:
        (place / kind).mkdir(mode=0o755)
        tried += try_files(kind, place / kind / NAME, range(0o10000))
    print(f"{tried} files tried")
    assert tried == len(KINDS) * 0o10000 * len(OWNERS) * len(READERS)


def try_folders(place: Path, inner_modes, outer_modes) -> int:
    """Read a good file in a folder, in a folder, of all modes and owners, by all readers."""
    outer = place / "outer"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    make("regular", inner / NAME)
    tried = 0
    for inner_owner, outer_owner, reader in itertools.product(OWNERS, OWNERS, READERS):
        give(inner / NAME, reader, 0o600)
        for inner_mode, outer_mode in itertools.product(inner_modes, outer_modes):
            give(inner, inner_owner, inner_mode)
            give(outer, outer_owner, outer_mode)
            wanted = (
                ours(reader, inner_owner, inner_mode)
                and allows(reader, inner_owner, inner_mode, 4)
                and allows(reader, inner_owner, inner_mode, 1)
                and ours(reader, outer_owner, outer_mode, sticky=True)
                and allows(reader, outer_owner, outer_mode, 1)
            )
            found = read_as(reader, inner / NAME)
            assert (found == CONTENT) == wanted, (reader, inner_owner, oct(inner_mode), outer_owner, oct(outer_mode))
            tried += 1
    for folder in (outer, inner):
        give(folder, os.geteuid(), 0o700)
    return tried


def test_a_folder_and_those_around_it_must_be_ours(place):
    assert try_folders(place, [0o700, 0o755, 0o711, 0o775, 0o757, 0o777, 0o1777], [0o755, 0o711, 0o777, 0o1777]) >= 28


@pytest.mark.slow
def test_every_mode_of_a_folder_and_of_the_one_around_it(place):
    (place / "a").mkdir(mode=0o755)
    (place / "b").mkdir(mode=0o755)
    tried = try_folders(place / "a", range(0o10000), [0o755, 0o1777, 0o777])
    tried += try_folders(place / "b", [0o755, 0o700, 0o775], range(0o10000))
    print(f"{tried} folders tried")
    assert tried == 2 * 3 * 0o10000 * len(OWNERS) ** 2 * len(READERS)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_what_is_written_has_its_modes_whatever_the_umask(place, mask, shared):
    before = os.umask(mask)
    try:
        folder = Folder(place / "one" / "two", shared)
        assert folder.prepare()
        folder.write(NAME, CONTENT)
    finally:
        os.umask(before)
    found = [stat.S_IMODE(path.stat().st_mode) for path in (place / "one", place / "one/two", place / "one/two" / NAME)]
    assert found == ([0o755, 0o755, 0o644] if shared else [0o700, 0o700, 0o600])
    assert folder.read(NAME) == CONTENT
    assert folder.names() == [NAME]


@pytest.mark.parametrize("kind", ["hard link", "link", "fifo", "socket", "device"])
def test_a_write_replaces_what_has_the_name(place, kind):
    make(kind, place / NAME)
    folder = Folder(place)
    folder.write(NAME, b"new")
    assert folder.read(NAME) == b"new"
    assert not (place / "first").exists() or (place / "first").read_bytes() == CONTENT


def test_a_write_that_fails_leaves_nothing(place):
    (place / NAME).mkdir()
    with pytest.raises(OSError, match="directory"):
        Folder(place).write(NAME, CONTENT)
    assert os.listdir(place) == [NAME]


def test_a_link_to_a_folder_is_followed_when_it_is_named_and_not_later(place):
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    folder = Folder(place / "link")
    folder.write(NAME, CONTENT)
    assert folder.read(NAME) == (place / "real" / NAME).read_bytes() == CONTENT
    (place / "real").rename(place / "moved")
    (place / "real").symlink_to(place / "moved")
    with pytest.raises(OSError, match="real"):
        folder.read(NAME)
    (place / "outer").symlink_to(place)
    inner = Folder(place / "moved")
    inner._parents[-1] = str(place / "outer")
    with pytest.raises(NotADirectoryError, match="outer is not a folder"):
        inner.read(NAME)


def swapping(monkeypatch, place: Path, after: bool) -> Folder:
    """A folder in whose place another user's is put before, or after, it is opened."""
    folder, evil = Folder(place / "ours"), place / "evil"
    folder.prepare()
    folder.write(NAME, CONTENT)
    evil.mkdir()
    (evil / NAME).write_bytes(b"evil")
    if ROOT:
        os.chown(evil, OTHER, OTHER)
    else:
        evil.chmod(0o777)
    genuine = os.open

    def swap(path, flags, mode=0o777, *, dir_fd=None):
        opened = genuine(path, flags, mode, dir_fd=dir_fd) if after or dir_fd is not None else None
        if dir_fd is None:
            (place / "ours").rename(place / "away")
            evil.rename(place / "ours")
        return genuine(path, flags, mode) if opened is None else opened

    monkeypatch.setattr(os, "open", swap)
    return folder


def test_a_folder_swapped_before_it_is_opened_is_refused(place, monkeypatch):
    folder = swapping(monkeypatch, place, after=False)
    with pytest.raises(PermissionError):
        folder.read(NAME)


def test_a_folder_swapped_after_it_was_opened_is_not_read(place, monkeypatch):
    assert swapping(monkeypatch, place, after=True).read(NAME) == CONTENT


def test_drafts_of_killed_processes_go_when_something_is_written(place):
    unique = "0123456789abcdef0123456789abcdef"
    old, new, other = f"a.kernel.{unique}", f"b.kernel.{unique}", "notes.kernel.txt"
    for name in (old, new, other):
        (place / name).write_bytes(b"half")
    for name in (old, other):
        os.utime(place / name, times=(time.time() - 2 * trust.DRAFT_LIVES,) * 2)
    folder = Folder(place)
    assert sorted(folder.names()) == sorted((old, new, other))
    folder.write(NAME, CONTENT)
    assert sorted(folder.names()) == sorted((new, other, NAME))


def test_reasons_name_the_place(place):
    place.chmod(0o777)
    with pytest.raises(PermissionError, match=rf"its group or others can write {place} \(mode 777\)"):
        Folder(place / "inner").prepare()
    assert not (place / "inner").exists()
    place.chmod(0o755)
    (place / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        Folder(place / "file").prepare()


@needs_root
def test_another_user_s_folder_is_named_in_the_reason(place):
    os.chown(place, OTHER, OTHER)
    with pytest.raises(PermissionError, match=rf"{place} belongs to another user \({OTHER}\)"):
        Folder(place / "inner").prepare()


def test_without_owners_and_descriptors_files_work_all_the_same(place, monkeypatch):
    """As on Windows, where only the kind of a file is looked at."""
    monkeypatch.setattr(trust, "POSIX", False)
    folder = Folder(place / "one" / "two")
    assert folder.prepare()
    folder.write(NAME, CONTENT)
    folder.write(NAME, b"again")
    assert (folder.read(NAME), folder.names()) == (b"again", [NAME])
    for kind in ("fifo", "folder"):
        make(kind, folder.path / kind)
        with pytest.raises(OSError, match=kind):
            folder.read(kind)


# --- the attacks, with kernels -----------------------------------------------------------------

WORDS = ("words", torch.int32, "long", 0)


@pytest.fixture
def home(place, monkeypatch):
    """The home of a user whose cache folder has a kernel."""
    folder = Folder(place / "home" / ".cache" / "fastinit")
    folder.prepare()
    cpu.keep(folder, WORDS)
    (place / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "temporary"))
    for name, value in {"FASTINIT_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": str(place / "home")}.items():
        monkeypatch.setenv(name, value)
    cache.places.cache_clear()
    yield place / "home"
    cache.places.cache_clear()


def all_to(owner: int, *paths: Path) -> None:
    for path in paths:
        for inside in (path, *path.rglob("*")):
            os.chown(inside, owner, owner)


def open_parent(home: Path, cache: Path) -> None:
    cache.parent.chmod(0o777)


def once_open_folder(home: Path, cache: Path) -> None:
    for file in cache.iterdir():
        os.chown(file, OTHER, OTHER)


def files_of_umask_0(home: Path, cache: Path) -> None:
    for file in cache.iterdir():
        file.chmod(0o666)


def another_user_s_home(home: Path, cache: Path) -> None:
    all_to(OTHER, home)


@pytest.mark.parametrize(
    ("attack", "root"),
    [(open_parent, False), (files_of_umask_0, False), (once_open_folder, True), (another_user_s_home, True)],
)
def test_what_others_can_have_written_is_not_executed(home, attack, root):
    """The file is a good one, so that it would be loaded but for the check."""
    if root and not ROOT:
        pytest.skip("only root can make files that belong to another user")
    assert cpu.loaded(WORDS) is not None
    attack(home, home / ".cache" / "fastinit")
    cache.places.cache_clear()
    assert cpu.loaded(WORDS) is None


def test_a_process_that_finds_such_a_file_compiles_and_replaces_it(home):
    code = """
import torch, fastinit
fastinit.bits_(torch.empty(9, dtype=torch.int32))
from fastinit.kernels.cpu.loading import origins
print(dict(origins))
"""
    (file,) = (home / ".cache" / "fastinit").iterdir()
    file.chmod(0o666)
    assert [python(code).strip() for _ in range(2)] == ["{'compiled': 2}", "{'loaded': 2}"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
