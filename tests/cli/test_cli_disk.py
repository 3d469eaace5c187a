"""Received files on a disk that refuses something: nothing incomplete is left, and the error gives advice."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outfiles import A, B, below, part

from aiflow.cli import durable
from aiflow.cli.outdir import OutDirectory, WriteError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("both_ways_to_write")]


# ---- what the disk refuses ----


@contextlib.contextmanager
def disk_that_fails(monkeypatch: pytest.MonkeyPatch, *calls: str) -> Iterator[None]:
    """Let these calls report what was written before them, of files only: what a disk or a server said too late."""

    def failing(call: Callable[[int], None]) -> Callable[[int], None]:
        def fail(fd: int) -> None:
            is_file = stat.S_ISREG(os.fstat(fd).st_mode)
            call(fd)
            if is_file:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        return fail

    with monkeypatch.context() as patched:
        for name in calls:
            patched.setattr(os, name, failing(getattr(os, name)))
        yield


def test_a_file_with_a_part_that_is_not_on_the_disk_never_becomes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("big", b"bbbb", part(0, 8), B)  # another sender's, which is synced
        assert out.sync() == {}
        out.write("big", b"aaaa", part(0, 8), A)
        with disk_that_fails(monkeypatch, "fsync"):
            assert list(out.sync()) == ["big"]
        with pytest.raises(WriteError, match="Input/output error"):
            out.write("big", b"aaaa", part(4, 8), A)
        out.write("big", b"BBBB", part(4, 8), B)
        assert out.sync() == {}
        assert (out.nb_files, out.unfinished()) == (1, [])
        out.write("big", b"aaaaAAAA", part(0, 8), A)  # from its beginning it may come again
    assert sorted(below(tmp_path).values()) == [b"aaaaAAAA", b"bbbbBBBB"]


@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
@pytest.mark.parametrize("call", ["fsync", "close"])
def test_an_old_file_stays_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, in_parts: bool
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with OutDirectory(tmp_path) as out:
        if in_parts:
            out.write("file", b"n", part(0, 3), A)
        with disk_that_fails(monkeypatch, call), pytest.raises(WriteError, match="Input/output error"):
            out.write("file", b"ew" if in_parts else b"new", part(1, 3) if in_parts else None, A)
        assert below(tmp_path) == {"file": b"old"}
        assert out.nb_files == 0
        out.write("file", b"new", None, A)
    assert below(tmp_path) == {"file": b"new"}


def test_a_file_that_the_disk_refused_at_its_close_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        OutDirectory(tmp_path) as out,
        disk_that_fails(monkeypatch, "close"),
        pytest.raises(WriteError, match="Input/output error"),
    ):
        out.write("file", b"new", None, A)
    assert below(tmp_path) == {}


def test_a_close_that_fails_after_a_sync_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OutDirectory(tmp_path) as out:
        for name in ("a", "b"):
            out.write(name, b"x", part(0, 2), A)
        with disk_that_fails(monkeypatch, "close"):
            assert out.sync() == {}
        for name in ("a", "b"):
            out.write(name, b"y", part(1, 2), A)
    assert below(tmp_path) == {"a": b"xy", "b": b"xy"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get)
def test_where_a_file_system_cannot_be_synced_alone_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Sandboxed:
        def syncfs(self, _fd: int) -> int:
            ctypes.set_errno(number)
            return -1

    synced = []
    monkeypatch.setattr(durable, "_libc", Sandboxed())
    monkeypatch.setattr(os, "sync", lambda: synced.append("all"))
    with OutDirectory(tmp_path) as out:
        for name in range(50):
            out.write(str(name), b"x")
        assert out.sync() == {}
        assert synced == ["all"]


def test_a_new_directorys_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    durable.make_durably(tmp_path / "out")
    durable.make_durably(tmp_path / "out")  # it is there: nothing to do
    assert synced == [str(tmp_path)]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError):
        durable.make_durably(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "check who may write"),
        (errno.EPERM, "check who may write"),
        (errno.EROFS, "mounted read-only"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EIO, "check the disk"),
        (errno.ENAMETOOLONG, "shorter path"),
        (errno.ENODEV, "choose another directory"),
        (errno.ESTALE, "remount"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_each_error_of_the_system_has_its_own_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with OutDirectory(tmp_path) as out, monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        patched.setattr(os, "fstatvfs", refuse)  # as on a file system that is broken
        with pytest.raises(WriteError, match=advice) as told:
            out.write("file", b"x")
    assert advice in told.value.reason
    assert os.strerror(number) in str(told.value)
    assert ("who may write" in str(told.value)) == (number in (errno.EACCES, errno.EPERM))
