"""Files as they arrive: whose they are, what they are called, what they have besides bytes. No port is used."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from subprocesses import environment

from aiflow._transfer.filemarks import FileMark
from aiflow.cli import durable
from aiflow.cli.filetree import FileTree, Found, SliceReader, walk
from aiflow.cli.outdir import OutDirectory, WriteError
from aiflow.cli.safe_paths import temporary_name

pytestmark = pytest.mark.unit

A, B = 0xA, 0xB  # instances of two senders


@pytest.fixture(params=["unnamed until whole", "under temporary names"], autouse=True)
def both_ways_to_write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no O_TMPFILE."""
    if request.param.startswith("under"):
        monkeypatch.setattr(OutDirectory, "_can_link_unnamed", lambda _: False)


@pytest.fixture(params=[0o022, 0o077, 0], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def part(offset: int, size: int, mode: int | None = 0o644) -> FileMark:
    return FileMark("part", mode, None, offset, size)


def below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- whose a file is ----


def test_parts_of_two_senders_are_two_files_however_they_mix(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        for offset in range(0, 40, 10):
            for sender, letter in ((A, b"a"), (B, b"b")):
                out.write("big", letter * 10, part(offset, 40), sender)
    assert below(tmp_path) == {"big": b"a" * 40, "big~2": b"b" * 40}


@pytest.mark.parametrize(
    ("stream", "mark"),
    [("big", None), ("big", part(0, 3)), ("big", FileMark("file", 0o600, 0)), ("big/below", None)],
    ids=["a program's element", "a whole part", "a file", "a file in a directory of that name"],
)
def test_the_name_of_a_file_that_has_begun_is_taken(tmp_path: Path, stream: str, mark: FileMark | None) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("big", b"01234", part(0, 10), A)
        out.write(stream, b"new", mark, B)
        assert str(out.write("big", b"56789", part(5, 10), A)) == "big"
    assert below(tmp_path) == {"big": b"0123456789", stream.replace("big", "big~2"): b"new"}


def test_a_file_keeps_its_name_from_a_directory_that_came_first(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("a", b"", FileMark("directory", 0o755, None), A)
        out.write("a/below", b"b", None, A)
        assert str(out.write("a", b"file", None, B)) == "a~2"


@pytest.mark.parametrize("wrong", [part(7, 10), part(4, 10), part(5, 9), part(5, 4), FileMark("part", None, None, 5)])
def test_what_one_sender_does_wrong_costs_its_file_only(tmp_path: Path, wrong: FileMark) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("big", b"aaaaa", part(0, 10), A)
        out.write("big", b"bbbbb", part(0, 10), B)
        with pytest.raises(WriteError, match="send it again"):
            out.write("big", b"xxxxx", wrong, B)
        with pytest.raises(WriteError, match="send it again"):  # what comes after it belongs to no file
            out.write("big", b"bbbbb", part(5, 10), B)
        out.write("big", b"AAAAA", part(5, 10), A)
        out.write("other", b"o", None, B)
        assert out.unfinished() == []
    assert below(tmp_path) == {"big": b"aaaaaAAAAA", "other": b"o"}


def test_a_file_that_begins_anew_takes_the_name_that_it_had(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("big", b"01234", part(0, 10), A)
        out.write("big", b"new", part(0, 6), A)
        assert str(out.write("big", b"end", part(3, 6), A)) == "big"
    assert below(tmp_path) == {"big": b"newend"}


@pytest.mark.parametrize("name", ["shard://0/8", "shard://1/100", "s3://2024/12", "a//0/9", "a//0/0", "//0/1"])
def test_a_name_that_looks_like_a_part_is_a_name(tmp_path: Path, name: str) -> None:
    with OutDirectory(tmp_path) as out:
        for stream in ("before", name, "after"):
            out.write(stream, b"12345678")
        assert out.unfinished() == []
    assert len(below(tmp_path)) == 3


# ---- the n-th file of a name ----


@pytest.mark.parametrize(
    "stream",
    [lambda _: "cam.jpg", lambda _: "sub/cam.jpg", lambda i: ("a", "a/x")[i % 2], lambda i: ("x", "x~2")[i % 2]],
    ids=["one name", "in a directory", "a file and a directory", "a name that a number makes"],
)
def test_the_nth_file_of_a_name_takes_as_long_as_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream
) -> None:
    nb_files, calls = 400, 0

    def counted(really):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            return really(*arguments, **options)

        return call

    for name in ("stat", "open", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    with OutDirectory(tmp_path) as out:
        paths = [str(out.write(stream(i), str(i).encode())) for i in range(nb_files)]
        assert [path for _, path in out.renamed] == [path for i, path in enumerate(paths) if path != stream(i)]
    assert calls < 6 * nb_files
    assert below(tmp_path) == {path: str(i).encode() for i, path in enumerate(paths)}


# ---- a file system that takes two names for one ----


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name be found and made in lower case, as vfat, exFAT and ext4 with casefold do."""

    def folded(call, *positions):
        def folding_call(*arguments, **options):
            arguments = list(arguments)
            if options.keys() & {"dir_fd", "src_dir_fd", "dst_dir_fd"}:
                for at in positions:
                    arguments[at] = os.fsdecode(arguments[at]).lower()
            return call(*arguments, **options)

        return folding_call

    for name in ("open", "stat", "mkdir", "unlink"):
        monkeypatch.setattr(os, name, folded(getattr(os, name), 0))
    monkeypatch.setattr(os, "link", folded(os.link, 1))
    monkeypatch.setattr(os, "rename", folded(os.rename, 0, 1))


@pytest.mark.usefixtures("folding")
@pytest.mark.parametrize("there", [True, False], ids=["in a directory that was there", "in a new one"])
@pytest.mark.parametrize("above", ["", "sub/", "sub/below/"])
def test_no_file_takes_the_place_of_one_whose_name_differs_in_case(tmp_path: Path, there: bool, above: str) -> None:
    if there:
        (tmp_path / above).mkdir(parents=True, exist_ok=True)
    streams = ["a.jpg", "A.JPG", "A.jpg", "a~2.jpg", "ÄRGER", "ärger", "dir/x", "DIR/x", "Dir", "big", "a/y"]
    with OutDirectory(tmp_path) as out:
        out.write(f"{above}Big", b"big", part(0, 6), A)
        for stream in streams:
            out.write(f"{above}{stream}", stream.encode(), None, B)
        out.write(f"{above.upper()}Big", b"part", part(0, 4), B)
        out.write(f"{above}Big", b"end", part(3, 6), A)
        out.write(f"{above.upper()}DIR", b"", FileMark("directory", 0o750, None), B)
        assert out.unkept == {}
        assert out.nb_files == len(streams) + 2
    assert sorted(below(tmp_path).values()) == sorted([b"bigend", b"part", *(stream.encode() for stream in streams)])
    assert stat.S_IMODE((tmp_path / above / "dir").stat().st_mode) == 0o750


def test_where_case_counts_names_stay_as_they_are(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        for stream in ("a", "A", "sub/a", "SUB/a"):
            out.write(stream, stream.encode())
        assert out.renamed == []


# ---- what a copy has besides bytes ----


def copy(source: Path, target: Path, slice_bytes: int = 1 << 20, expected: Sequence[str] = ()) -> FileTree:
    """Send and receive, without the wire."""
    tree = walk(source)
    target.mkdir(exist_ok=True)
    with OutDirectory(target) as out:
        for file_slice in SliceReader(tree, slice_bytes):
            for stream, content, mark in file_slice.elements:
                out.write(stream, content, mark, A)
            assert out.sync() == {}
        assert list(out.unkept) == list(expected)
    return tree


def metadata(root: Path) -> dict[str, tuple[str, int]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(root))] = stat.filemode(status.st_mode), status.st_mtime_ns
    return found


@pytest.mark.usefixtures("umask")
def test_modes_times_and_empty_directories_are_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number, mode in enumerate((0o600, 0o755, 0o444, 0o666, 0o777, 0o640, *([0] if os.geteuid() == 0 else []))):
        for path in (source / f"file-{mode:o}", source / f"parts-{mode:o}"):
            path.write_bytes(bytes(3 << 20 if path.name.startswith("parts") else 10))
            path.chmod(mode)
            os.utime(path, ns=(0, (number - 2) * 10**18 + 123456789))
        directory = source / f"directory-{mode:o}"
        (directory / "empty").mkdir(parents=True)
        (directory / "held").write_bytes(b"x")
        os.utime(directory / "empty", ns=(0, 10**18 + number))
        os.utime(directory, ns=(0, 10**18 - number))
        (directory / "empty").chmod(mode)
        directory.chmod(mode | 0o500)
    copy(source, target)
    assert metadata(target) == metadata(source)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o6711])
def test_bits_that_give_rights_do_not_travel(tmp_path: Path, mode: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    (source / "file").chmod(mode)
    (source / "directory").mkdir()
    (source / "directory").chmod(mode)
    copy(source, target)
    for name in ("file", "directory"):
        assert stat.S_IMODE((target / name).stat().st_mode) == mode & 0o777
    with OutDirectory(target) as out:  # a sender that sets them even so
        out.write("forged", b"x", FileMark("file", mode, None), A)
        out.write("forged-directory", b"", FileMark("directory", mode, None), A)
    for name in ("forged", "forged-directory"):
        assert stat.S_IMODE((target / name).stat().st_mode) == mode & 0o777


@pytest.mark.usefixtures("umask")
def test_nothing_private_is_open_while_it_is_being_written(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("home/key", b"012", part(0, 6, 0o600), A)
        assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
        (file,) = out._unfinished.values()
        assert stat.S_IMODE(os.fstat(file.file.fd).st_mode) == 0o600
        out.write("home/key", b"345", part(3, 6, 0o600), A)
        out.write("home", b"", FileMark("directory", 0o750, None), A)
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o750


def test_directories_that_were_there_stay_as_they_are_and_another_sender_widens_none(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    everybody = FileMark("directory", 0o777, None)
    with OutDirectory(tmp_path) as out:
        out.write("mine", b"", everybody, A)
        out.write("theirs", b"", FileMark("directory", 0o750, None), A)
        out.write("theirs", b"", everybody, B)
        out.write("program/x", b"x", None, A)
        out.write("program", b"", FileMark("directory", 0o700, None), B)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"mine": 0o700, "theirs": 0o750, "program": 0o700}


@pytest.mark.parametrize("order", [(A, B), (B, A)], ids=["A first", "B first"])
@pytest.mark.parametrize(
    ("modes", "ends"),
    [((0o755, 0o700), 0o700), ((0o750, 0o705), 0o700), ((0o755, 0o500), 0o700), ((0o500, 0o500), 0o500)],
)
def test_a_directory_of_two_senders_allows_what_both_do(
    tmp_path: Path, order: tuple[int, int], modes: tuple[int, int], ends: int
) -> None:
    mode = dict(zip((A, B), modes, strict=True))
    with OutDirectory(tmp_path) as out:
        out.write("s/file", b"", FileMark("file", 0o644, None), A)  # A makes it, though its mark may come last
        for sender in order:
            out.write("s", b"", FileMark("directory", mode[sender], None), sender)
        assert out.unkept == {}
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) in (ends, ends & mode[order[0]])


def test_a_directory_that_another_sender_made_gets_the_mode_of_the_one_that_says_it(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("s/file", b"", FileMark("file", 0o644, None), A)  # and A goes without a word on "s"
        out.write("s", b"", FileMark("directory", 0o755, None), B)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o755


def test_a_directory_that_was_there_with_another_mode_is_said(tmp_path: Path) -> None:
    for name in ("private", "same"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o700)
        os.utime(tmp_path / name, ns=(0, 10**18))
    with OutDirectory(tmp_path) as out:
        out.write("private", b"", FileMark("directory", 0o755, None), A)
        out.write("same", b"", FileMark("directory", 0o700, None), A)
        assert list(out.unkept) == ["private"]
        assert "keeps its mode 700" in out.unkept["private"]
    assert {path.stat().st_mtime_ns for path in tmp_path.iterdir()} == {10**18}


def test_an_interrupted_copy_leaves_directories_with_their_modes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "s" / "below").mkdir(parents=True)
    (source / "s" / "below" / "file").write_bytes(bytes(3 << 20))
    (source / "s" / "below").chmod(0o555)
    target.mkdir()
    with OutDirectory(target) as out:
        for stream, content, mark in next(iter(SliceReader(walk(source), 1 << 20))).elements:
            out.write(stream, content, mark, A)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*")}
    assert modes == {"s": stat.S_IMODE((source / "s").stat().st_mode), "below": 0o755}
    copy(source, target, expected=["s/below"])  # which is writable still, and is said


def test_a_directory_that_comes_with_the_first_slice_and_the_last_is_renamed_once(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source / "s", target):
        path.mkdir(parents=True)
    (source / "s" / "file").write_bytes(bytes(3 << 20))
    (target / "s").symlink_to("nowhere")
    with OutDirectory(target) as out:
        for file_slice in SliceReader(walk(source), 1 << 20):
            for stream, content, mark in file_slice.elements:
                out.write(stream, content, mark, A)
        assert out.renamed == [("s", "s~2"), ("s/file", "s~2/file")]


@pytest.mark.parametrize("mtime_ns", [-(2**63), 2**70, 2**90])
def test_a_time_that_no_file_can_have_is_said_and_the_file_is_there(tmp_path: Path, mtime_ns: int) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("file", b"x", FileMark("file", 0o600, mtime_ns), A)
        if (tmp_path / "file").stat().st_mtime_ns == mtime_ns:
            pytest.skip("this file system has such times")
        assert list(out.unkept) == ["file"]
    assert below(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("data", [[], [0], [5], [9], [2, 3], range(10)], ids=str)
def test_zeros_become_holes_and_every_byte_is_right(tmp_path: Path, data: range | list[int]) -> None:
    content = np.zeros(10 << 20, np.uint8)
    for mebibyte in data:
        content[(mebibyte << 20) + 77 :: 4099][:255] = 1
    with OutDirectory(tmp_path) as out:
        out.write("sparse", content)
    assert (tmp_path / "sparse").read_bytes() == content.tobytes()
    assert (tmp_path / "sparse").stat().st_blocks * 512 <= (len(data) << 20) + (64 << 10)


def test_links_are_sent_as_what_they_lead_to_or_listed(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(b"x")
    os.link(source / "file", source / "hard")
    (source / "soft").symlink_to("file")
    (source / "to-sub").symlink_to("sub")
    (source / "nowhere").symlink_to("no")
    os.mkfifo(source / "pipe")
    tree = copy(source, target)
    assert tree.left_out == {"nowhere": "a link to nothing", "pipe": "a pipe", "to-sub": "a link to a directory"}
    assert below(target) == {"file": b"x", "hard": b"x", "soft": b"x"}


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
        (errno.ENODEV, "take another directory"),
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
        with pytest.raises(WriteError, match=advice) as told:
            out.write("file", b"x")
    assert advice in told.value.reason
    assert os.strerror(number) in str(told.value)
    assert ("who may write" in str(told.value)) == (number in (errno.EACCES, errno.EPERM))


# ---- what is left behind ----


def test_what_a_killed_run_left_goes_with_the_next_and_what_is_being_written_stays(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / temporary_name()).write_bytes(b"left")
    (tmp_path / "sub" / temporary_name()).write_bytes(b"left")
    with OutDirectory(tmp_path) as busy:
        busy.write("sub/big", b"01234", part(0, 10), A)
        with OutDirectory(tmp_path) as out:
            out.write("sub/small", b"s")
        busy.write("sub/big", b"56789", part(5, 10), A)
    assert below(tmp_path) == {"sub/big": b"0123456789", "sub/small": b"s"}


def test_a_file_of_an_earlier_run_is_replaced_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with OutDirectory(tmp_path) as out:
        out.write("file", b"ne", part(0, 3), A)
        assert (tmp_path / "file").read_bytes() == b"old"
        out.write("file", b"w", part(2, 3), A)
    assert below(tmp_path) == {"file": b"new"}


def test_a_stream_called_like_a_temporary_file_survives_the_next_run(tmp_path: Path) -> None:
    name = temporary_name()
    with OutDirectory(tmp_path) as out:
        out.write(name, b"mine")
        assert out.renamed == [(name, f"%2E{name[1:]}")]
    OutDirectory(tmp_path).close()
    assert list(below(tmp_path).values()) == [b"mine"]


# ---- sizes that the system makes up ----


@pytest.mark.parametrize(
    "directory", ["/proc/sys/kernel/random", "/proc/sys/vm", "/sys/devices/system/cpu/cpu0/topology"]
)
@pytest.mark.parametrize("slice_bytes", [1 << 20, 4096])
def test_files_of_procfs_and_sysfs_arrive_with_their_content(tmp_path: Path, directory: str, slice_bytes: int) -> None:
    if not Path(directory).is_dir():
        pytest.skip(f"no {directory} here")
    tree = copy(Path(directory), tmp_path, slice_bytes)
    arrived = below(tmp_path)
    for path in (path for path in Path(directory).rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        try:
            content = path.read_bytes()
        except OSError:  # written to only, or for root only
            assert name in tree.unreadable
            continue
        assert name in arrived, tree.unreadable
        assert bool(arrived[name]) == bool(content), name


def elements(tree: FileTree, slice_bytes: int) -> dict[str, bytes]:
    return {
        stream: bytes(content)
        for file_slice in SliceReader(tree, slice_bytes)
        for stream, content, _ in file_slice.elements
    }


def test_a_file_that_has_more_than_a_slice_though_its_size_says_nothing_is_named() -> None:
    nbytes = len(Path("/proc/kallsyms").read_bytes())
    files = [Found("kallsyms", 0), Found("version", 0)]
    tree = FileTree(Path("/proc"), files)
    assert {name: len(content) for name, content in elements(tree, 64 << 20).items()}["kallsyms"] == nbytes
    assert tree.unreadable == {}
    assert list(elements(tree, 64 << 10)) == ["version"]
    assert "its size says 0 bytes, and it has more than 65536" in tree.unreadable["kallsyms"]


def test_a_source_that_never_ends_is_given_up(tmp_path: Path) -> None:
    tree = FileTree(Path("/proc/self/root/proc"), [Found("version", 0), Found("kmsg", 0)])
    assert "kmsg" not in elements(tree, 1 << 16)
    assert "kmsg" in tree.unreadable


# ---- names are bytes ----


def test_names_are_utf8_on_the_disk_whatever_the_locale_says(tmp_path: Path) -> None:
    source, target = tmp_path / "Süd", tmp_path / "Übung"
    source.mkdir()
    for name in ("é.txt", "日本", "plain"):
        (source / name).write_text(name, encoding="utf-8")
    (source / "leer ö").mkdir()
    (source / "to ü").symlink_to("nowhere")
    script = """
        import os, sys
        from aiflow.cli.filetree import SliceReader, walk
        from aiflow.cli.outdir import OutDirectory
        from pathlib import Path
        assert sys.getfilesystemencoding() == "ascii", sys.getfilesystemencoding()
        tree = walk(Path(sys.argv[1]))
        assert not tree.unreadable, tree.unreadable
        assert list(tree.left_out) == ["to \\u00fc"]
        os.mkdir(sys.argv[2])
        with OutDirectory(Path(sys.argv[2])) as out:
            for file_slice in SliceReader(tree, 1 << 20):
                for stream, content, mark in file_slice.elements:
                    out.write(stream, content, mark)
                    out.write(stream, content, mark)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), source, target],
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        check=True,
        timeout=60,
    )
    assert {path.name for path in target.iterdir()} == {
        "é.txt", "é~2.txt", "日本", "日本~2", "plain", "plain~2", "leer ö",
    }  # fmt: skip
