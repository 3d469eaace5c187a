"""Names of received files: owner, numbers, case, encoding, and the remains of killed runs. No port is used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from outfiles import A, B, below, part
from subprocesses import environment

from aiflow._transfer.filemarks import FileMark
from aiflow.cli.outdir import NotWritten, OutDirectory, WriteError
from aiflow.cli.safe_paths import temporary_name

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("both_ways_to_write")]


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
        with pytest.raises(WriteError, match="repeat the transfer"):
            out.write("big", b"xxxxx", wrong, B)
        with pytest.raises(WriteError, match="repeat the transfer"):  # what comes after it belongs to no file
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


@pytest.mark.usefixtures("folding")
def test_a_question_is_about_the_exact_name(tmp_path: Path) -> None:
    """Otherwise one file would be kept for two, which may have other bytes."""
    with OutDirectory(tmp_path) as out:
        out.write("sub/a", b"content", FileMark("file", 0o644, 10**18), A)
        out.sync()
    with OutDirectory(tmp_path) as out:
        for stream in ("sub/A", "SUB/a", "sub/b"):
            with pytest.raises(NotWritten):
                out.write(stream, b"", FileMark("question", 0o644, 10**18, size=7), A)
        assert out.write("sub/a", b"", FileMark("question", 0o644, 10**18, size=7), A) == "sub/a"
        assert out.nb_kept == 1


def test_where_case_counts_names_stay_as_they_are(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        for stream in ("a", "A", "sub/a", "SUB/a"):
            out.write(stream, stream.encode())
        assert out.renamed == []


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


def test_two_receivers_of_one_directory_leave_whole_files(tmp_path: Path) -> None:
    """Each name has the file of one of them, and nothing else is left."""
    names = [f"sub/{number % 7}/{number}" for number in range(300)]
    written: dict[bytes, int] = {}

    def receive(content: bytes, mark: FileMark) -> None:
        with OutDirectory(tmp_path) as out:
            for name in names:
                assert out.write(name, content, mark, A) == name
            assert out.sync() == {}
            written[content] = out.nb_files

    contents = b"one" * 1000, b"two" * 2000
    threads = [
        threading.Thread(target=receive, args=(content, FileMark("file", 0o644, time)))
        for time, content in enumerate(contents, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == dict.fromkeys(contents, len(names))
    found = below(tmp_path)
    assert sorted(found) == sorted(names)
    assert set(found.values()) <= set(contents)


def test_a_stream_called_like_a_temporary_file_survives_the_next_run(tmp_path: Path) -> None:
    name = temporary_name()
    with OutDirectory(tmp_path) as out:
        out.write(name, b"mine")
        assert out.renamed == [(name, f"%2E{name[1:]}")]
    OutDirectory(tmp_path).close()
    assert list(below(tmp_path).values()) == [b"mine"]


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
