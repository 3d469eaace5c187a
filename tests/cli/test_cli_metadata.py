"""Copies of a tree: modes, times, directories, holes, links and sizes. No port is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from outfiles import A, B, below, part

from aiflow._transfer.filemarks import FileMark
from aiflow.cli.filetree import FileTree, Found, SliceReader, walk
from aiflow.cli.outdir import OutDirectory

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("both_ways_to_write")]


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


def test_directories_below_one_of_a_group_stay_of_the_group(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub" / "below").mkdir(parents=True)
    (source / "sub" / "below" / "file").write_bytes(b"x")
    (source / "sub").chmod(0o750)
    target.mkdir()
    target.chmod(0o2775)  # as a shared directory has it: what is made below gets its group
    copy(source, target)
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o2750
    assert (target / "sub" / "below").stat().st_mode & stat.S_ISGID
    assert not (target / "sub" / "below" / "file").stat().st_mode & stat.S_ISGID


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


@pytest.mark.usefixtures("both_ways_to_write")
def test_a_mode_that_cannot_be_set_is_said_and_the_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with OutDirectory(tmp_path) as out:
        out.write("file", b"x", FileMark("file", 0o755, 10**18), A)
        assert out.sync() == {}
    assert (tmp_path / "file").read_bytes() == b"x"
    assert out.unkept == {"file": "Operation not permitted"}


@pytest.mark.usefixtures("umask", "both_ways_to_write")
def test_a_file_without_a_mode_has_that_of_a_new_file(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("file", b"x", FileMark("file", None, 10**18), A)
    (tmp_path / "new").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("mtime_ns", [-(2**63), 2**70, 2**90])
def test_a_time_that_no_file_can_have_is_said_and_the_file_is_there(tmp_path: Path, mtime_ns: int) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("file", b"x", FileMark("file", 0o600, mtime_ns), A)
        assert out.sync() == {}
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
