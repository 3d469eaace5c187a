"""The command line's parts that need no port: names, writing below one directory, reading a tree. Then the commands."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aiflow._transfer.filemarks import FileMark
from aiflow.cli.app import app
from aiflow.cli.filetree import FileTree, SliceReader, walk
from aiflow.cli.outdir import OutDirectory, WriteError
from aiflow.cli.safe_paths import MAX_COMPONENT, MAX_PATH, numbered, safe_path

pytestmark = pytest.mark.unit

HOSTILE = [
    "",
    "/",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../../b",
    "a//b",
    "./x",
    "nul\0byte",
    "x" * 300 + ".jpg",
    "ä" * 200,
    "/".join(["deep"] * 2000),
    "\ud800 lone surrogate",
    "trailing/",
    "new\nline",
    "~root/.ssh/authorized_keys",
    "a//5/3",
    "C:\\windows",
]

any_name = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="./\0a~", max_size=40),
    st.lists(st.sampled_from(["..", ".", "", "a", "b", "a~2", "x" * 300, "\0", "é" * 130]), max_size=8).map("/".join),
    st.sampled_from(HOSTILE),
)
file_component = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda text: text not in (".", "..") and len(text.encode()) <= 255)


@given(any_name)
def test_any_name_becomes_a_path_below_the_directory(stream: str) -> None:
    path = safe_path(stream)
    assert path
    for component in path:
        assert component not in ("", ".", "..")
        assert "/" not in component
        assert "\0" not in component
        assert 0 < len(os.fsencode(component)) <= MAX_COMPONENT
    assert len(os.fsencode("/".join(path))) <= MAX_PATH


@given(st.lists(file_component, min_size=1, max_size=5))
def test_a_files_own_name_is_kept(components: list[str]) -> None:
    assert safe_path("/".join(components)) == tuple(components)


@given(file_component, st.integers(2, 10**6))
def test_a_numbered_name_fits_and_differs(component: str, number: int) -> None:
    assert numbered(component, number) != component
    assert len(numbered(component, number).encode()) <= MAX_COMPONENT


def everything_below(directory: Path) -> dict[str, bytes]:
    """Regular files only, and no link followed."""
    found = {}
    for above, below, names in os.walk(directory):
        for name in below + names:
            path = Path(above, name)
            if stat.S_ISREG(path.lstat().st_mode):
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(streams=st.lists(any_name, min_size=1, max_size=6), mark=st.sampled_from([None, FileMark("file", 0o644, 1)]))
@example(streams=["a", "a/b", "a", "a/b", "a/b/c"], mark=None)
@example(streams=HOSTILE, mark=None)
@example(streams=HOSTILE, mark=FileMark("file", 0o644, 1))
@example(streams=["/abs", "sub//x", "sub/./x", "new\nline", "/etc/passwd"], mark=FileMark("file", 0o644, 1))
@example(streams=["link/x", "link", "linked.txt", "dangling", "dangling/x"], mark=None)
@example(streams=["link/x", "link", "linked.txt", "dangling", "dangling/x"], mark=FileMark("file", 0o644, 1))
def test_whatever_names_arrive_every_element_is_a_file_of_its_own_inside(
    tmp_path_factory: pytest.TempPathFactory, streams: list[str], mark: FileMark | None
) -> None:
    base = tmp_path_factory.mktemp("world")
    outside = base / "outside"
    outside.mkdir()
    (outside / "victim.txt").write_bytes(b"untouched")
    inside = base / "out"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "linked.txt").symlink_to(outside / "victim.txt")
    (inside / "dangling").symlink_to(outside / "fresh")

    contents = [f"element {number}".encode() for number in range(len(streams))]
    with OutDirectory(inside) as out:
        written = [out.write(stream, content, mark) for stream, content in zip(streams, contents, strict=True)]
        assert out.sync() == {}
        assert out.renamed == [pair for pair in zip(streams, written, strict=True) if pair[0] != pair[1]]

    assert len({path for path in written if path is not None}) == len(streams)
    assert everything_below(outside) == {"victim.txt": b"untouched"}
    assert sorted(path.name for path in base.iterdir()) == ["out", "outside"]
    assert everything_below(inside) == {str(path): content for path, content in zip(written, contents, strict=True)}


def test_a_file_of_an_earlier_run_is_replaced_and_one_of_this_run_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"old")
    with OutDirectory(tmp_path) as out:
        assert str(out.write("a.jpg", b"first")) == "a.jpg"
        assert str(out.write("a.jpg", b"second")) == "a~2.jpg"
        assert out.renamed == [("a.jpg", "a~2.jpg")]
        assert (out.nb_files, out.nbytes) == (2, 11)
    assert everything_below(tmp_path) == {"a.jpg": b"first", "a~2.jpg": b"second"}


def test_an_array_is_written_as_its_bytes(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    with OutDirectory(tmp_path) as out:
        out.write("array", array)
        out.write("none", np.empty((0, 3)))
    assert everything_below(tmp_path) == {"array": array.tobytes(), "none": b""}


def part(offset: int, size: int) -> FileMark:
    return FileMark("part", 0o644, None, offset, size)


def test_parts_become_one_file_and_a_file_without_its_end_is_removed(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        assert out.write("big", b"01234", part(0, 10), 1) is None
        assert out.write("big", b"abc", part(0, 6), 2) is None
        assert str(out.write("big", b"56789", part(5, 10), 1)) == "big"
        assert out.unfinished() == ["big~2"]
    assert everything_below(tmp_path) == {"big": b"0123456789"}


def test_a_part_without_its_beginning_is_refused(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out, pytest.raises(WriteError, match="without those before it"):
        out.write("big", b"56789", part(5, 10))
    assert everything_below(tmp_path) == {}


def test_a_file_too_large_for_the_system_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with OutDirectory(tmp_path) as out, pytest.raises(WriteError, match="larger than a file may be"):
            out.write("big", bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything_below(tmp_path) == {}


def read_all(tree: FileTree, slice_bytes: int) -> list[dict[str, bytes]]:
    return [
        {stream: content.tobytes() for stream, content, mark in file_slice.elements if mark.kind != "directory"}
        for file_slice in SliceReader(tree, slice_bytes)
    ]


def test_a_walk_finds_files_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b").write_bytes(b"b")
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "to-a").symlink_to("a")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"")
    tree = walk(tmp_path)
    assert [(file.path, file.nbytes) for file in tree.files] == [("a", 1), ("sub/b", 1), ("to-a", 1)]
    assert tree.left_out == {"dangling": "a link to nothing", "loop": "a link to a directory", "pipe": "a pipe"}
    assert [directory.stream for directory in tree.directories] == ["sub"]
    assert tree.unreadable == {"\\udcff": "its name is not UTF-8; rename it to send it"}
    assert read_all(tree, 1 << 20) == [{"a": b"a", "sub/b": b"b", "to-a": b"a"}]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 3 << 20), max_size=12), slice_bytes=st.integers(1 << 20, 4 << 20))
def test_slices_carry_every_byte_and_stay_within_their_bound(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], slice_bytes: int
) -> None:
    source, sink = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    for number, size in enumerate(sizes):
        (source / f"{number}").write_bytes(bytes([number]) * size)
    ending = []
    with OutDirectory(sink) as out:
        for file_slice in SliceReader(walk(source), slice_bytes):
            assert 0 <= file_slice.nbytes <= slice_bytes
            assert file_slice.elements
            ending += [file.path for file in file_slice.ending]
            for stream, content, mark in file_slice.elements:
                out.write(stream, content, mark)
        assert out.unfinished() == []
    assert sorted(ending) == sorted(map(str, range(len(sizes))))
    assert everything_below(sink) == everything_below(source)


def test_a_file_that_shrinks_grows_or_goes_after_the_walk_is_sent_as_it_is_or_named(tmp_path: Path) -> None:
    for name in ("gone", "grown", "shrunk", "still"):
        (tmp_path / name).write_bytes(b"0123456789")
    tree = walk(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "grown").write_bytes(bytes(2 << 20))
    (tmp_path / "shrunk").write_bytes(b"01")
    slices = read_all(tree, 3 << 20)
    assert list(tree.unreadable) == ["gone"]
    together: dict[str, bytes] = {}
    for file_slice in slices:
        for stream, content in file_slice.items():
            together[stream] = together.get(stream, b"") + content
    assert together == {"grown": bytes(2 << 20), "shrunk": b"01", "still": b"0123456789"}


def test_a_file_that_never_rests_is_named_and_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busy").write_bytes(b"0123456789")
    (tmp_path / "still").write_bytes(b"still")
    really = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        with open(tmp_path / "busy", "r+b") as busy:  # another process writes to it between the fstat calls
            busy.write(b"x")
            os.utime(busy.fileno(), ns=(0, os.fstat(busy.fileno()).st_mtime_ns + 1))
        return really(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    tree = walk(tmp_path)
    assert read_all(tree, 1 << 20) == [{"still": b"still"}]
    assert list(tree.unreadable) == ["busy"]
    assert "changed while it was being read" in tree.unreadable["busy"]


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Lay root's powers down for the test, where we have them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_named_and_the_rest_sent(ordinary_user: None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for name in ("closed", "open"):
            (root / name).write_bytes(name.encode())
        (root / "closed").chmod(0)
        (root / "below").mkdir(mode=0)
        tree = walk(root)
        assert read_all(tree, 1 << 20) == [{"open": b"open"}]
        assert tree.unreadable == {"below": "Permission denied", "closed": "Permission denied"}
        (root / "below").chmod(0o700)


def test_a_directory_that_may_not_be_written_is_an_error_that_says_so(ordinary_user: None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "sub").mkdir(mode=0o500)
        with OutDirectory(Path(directory)) as out:
            with pytest.raises(WriteError, match="sub/a: Permission denied; check who may write"):
                out.write("sub/a", b"a")
            assert str(out.write("b", b"b")) == "b"  # and the next is written


def test_a_pipe_that_took_a_files_place_does_not_hang_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    tree = walk(tmp_path)
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    assert read_all(tree, 1 << 20) == []
    assert tree.unreadable == {"a": "it is no longer a file"}


def test_a_misspelt_command_is_told_what_is_like_it() -> None:
    """Also one of another package, which is imported only when it is called."""
    ran = CliRunner().invoke(app, ["lob"])
    assert ran.exit_code == 2
    assert re.search(r"Did you mean '?lab", ran.output)
