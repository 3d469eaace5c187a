"""`tar c … | aiflow send -` and `aiflow recv - | tar x`, and each of them with a directory on the other side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outfiles import A, B, below, part
from programs import DEADLINE
from subprocesses import environment
from wait import wait_for

from aiflow._transfer.filemarks import FileMark
from aiflow.cli.outdir import OutDirectory
from aiflow.cli.stdin import STREAM, chunks
from aiflow.cli.tarout import TarOut
from aiflow.cli.write_errors import WriteError

AIFLOW = f"{sys.executable} -m aiflow"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Names, modes and times of many kinds."""
    root = tmp_path / "source"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / ("n" * 200)).mkdir()
    for name, nbytes in (("a", 0), ("sub/ünïcode ☃", 1000), ("n" * 200 + "/" + "m" * 200, 7), ("large", 5 << 20)):
        (root / name).write_bytes(os.urandom(nbytes))
        os.utime(root / name, ns=(0, 10**18 + 123456789 + nbytes))
    (root / "a").chmod(0o640)
    (root / "sub").chmod(0o750)
    os.utime(root / "sub", ns=(0, 10**18))
    return root


@contextlib.contextmanager
def shells(**scripts: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Shell scripts that run at the same time; none survives the body."""
    running = {
        name: subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {script}"], env=environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for name, script in scripts.items()
    }  # fmt: skip
    try:
        yield running
    finally:
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ends(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, stdout + stderr
    assert "Traceback" not in stderr
    return stdout, stderr


def metadata(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(root)): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in root.rglob("*")}


@pytest.mark.parametrize("layout", ["gnu", "posix"])
def test_a_tar_arrives_as_it_is(endpoint: str, source: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (source / "link").symlink_to("a")
    os.link(source / "large", source / "hard")
    with shells(
        recv=f"{AIFLOW} recv - -p {endpoint} | tar x -C {out}",
        send=f"tar c --format={layout} -C {source} . | {AIFLOW} send - -p {endpoint} --json",
    ) as running:
        ends(running["send"], 0)
        ends(running["recv"], 0)
    assert below(out) == below(source)
    expected = metadata(source)
    if layout == "gnu":  # which has whole seconds
        expected = {path: (mode, mtime // 10**9 * 10**9) for path, (mode, mtime) in expected.items()}
    assert metadata(out) == expected
    assert (out / "link").is_symlink()
    assert (out / "hard").stat().st_ino == (out / "large").stat().st_ino


def test_a_directory_becomes_a_tar(endpoint: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with shells(
        recv=f"{AIFLOW} recv - -p {endpoint} | tar xp -C {out}",
        send=f"{AIFLOW} send {source} -p {endpoint} --slice-bytes 1MiB --json",
    ) as running:
        ends(running["send"], 0)
        ends(running["recv"], 0)
    assert below(out) == below(source)
    assert metadata(out) == metadata(source)


def test_a_stream_becomes_a_file(endpoint: str, aiflow: Any, tmp_path: Path) -> None:
    octets = os.urandom(40 << 20)
    (tmp_path / "stream").write_bytes(octets)
    recv = aiflow("recv", tmp_path / "out", "-p", endpoint, "--json")
    with shells(send=f"cat {tmp_path / 'stream'} | {AIFLOW} send - -p {endpoint}") as running:
        stdout, _ = ends(running["send"], 0)
    assert "sent 1 file, 41.9 MB" in stdout
    assert recv.ends(0)["files"] == 1
    assert (tmp_path / "out" / STREAM).read_bytes() == octets


def test_memory_is_bounded(endpoint: str, tmp_path: Path) -> None:
    """Both ends use the same memory for a stream of 64 MiB and one of 1 GiB."""
    script = tmp_path / "measure.py"
    script.write_text(
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:]).returncode\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    peaks = []
    for mebibytes in (64, 1024):
        measure = f"{sys.executable} {script}"
        with shells(
            recv=f"{measure} {AIFLOW} recv - -p {endpoint} --memory 64MiB | wc -c",
            send=f"head -c {mebibytes}M /dev/zero | {measure} {AIFLOW} send - -p {endpoint}",
        ) as running:
            _, sent = ends(running["send"], 0)
            stdout, received = ends(running["recv"], 0)
        assert int(stdout) == mebibytes << 20
        peaks.append([int(text.split()[-1]) for text in (sent, received)])
    for small, large in zip(*peaks, strict=True):
        assert large < small + (80 << 10), peaks  # KiB


def test_a_stream_that_pauses_is_sent_as_far_as_it_is_there(endpoint: str) -> None:
    with shells(
        recv=f"{AIFLOW} recv - -p {endpoint}",
        send=f"(echo first; sleep 600) | {AIFLOW} send - -p {endpoint}",
    ) as running:
        assert running["recv"].stdout is not None
        assert running["recv"].stdout.readline() == "first\n"


def test_a_reader_that_goes_ends_both_with_1(endpoint: str) -> None:
    with shells(
        recv=f"({AIFLOW} recv - -p {endpoint}; echo $? >&2) | head -c 10",
        send=f"head -c 64M /dev/zero | {AIFLOW} send - -p {endpoint} --json",
    ) as running:
        stdout, _ = running["send"].communicate(timeout=DEADLINE)
        assert '"exit_code": 1' in stdout
        assert "stdout cannot be written" in stdout
        _, stderr = running["recv"].communicate(timeout=DEADLINE)
        assert stderr.endswith("1\n")
        assert "Traceback" not in stderr


def test_a_sender_that_is_killed_leaves_a_stream_that_is_not_whole(endpoint: str, tmp_path: Path) -> None:
    arrived = tmp_path / "arrived"
    with shells(
        recv=f"{AIFLOW} recv - -p {endpoint} >{arrived}",
        send=f"(head -c 16M /dev/zero; sleep 600) | exec {AIFLOW} send - -p {endpoint}",
    ) as running:
        wait_for(lambda: arrived.exists() and arrived.stat().st_size == 16 << 20, "the first bytes", DEADLINE)
        os.killpg(running["send"].pid, signal.SIGKILL)
        _, stderr = ends(running["recv"], 1)
    assert f"the end of {STREAM} never arrived" in stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recv", "-", "--json"], "--json and - both write to stdout"),
        (["send", "-", "--watch"], "--watch and --resume are for directories"),
        (["send", "-", "--resume"], "--watch and --resume are for directories"),
    ],
)
def test_what_a_stream_cannot_have_is_bad_usage(endpoint: str, aiflow: Any, arguments: list[str], said: str) -> None:
    assert said in aiflow(*arguments, "-p", endpoint).text(2)[1]


def test_a_directory_called_dash_can_be_sent(endpoint: str, source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "-")
    with shells(
        recv=f"cd {tmp_path}; mkdir x; cd x; {AIFLOW} recv ./- -p {endpoint} --json",
        send=f"cd {tmp_path}; {AIFLOW} send ./- -p {endpoint} --json",
    ) as running:
        ends(running["send"], 0)
        ends(running["recv"], 0)
    assert below(tmp_path / "x" / "-") == below(tmp_path / "-")


# ---- without a port ----


def pipe_of(octets: bytes) -> int:
    """The end of a pipe from which another process's bytes are read."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as file:
                file.write(octets)
        finally:
            os._exit(0)
    os.close(writing)
    return reading


@pytest.mark.unit
@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 12288, 100_000])
def test_a_stream_of_any_length_arrives(nbytes: int, tmp_path: Path) -> None:
    octets = np.arange(nbytes, dtype=np.uint32).view(np.uint8).tobytes()[:nbytes]
    fd = pipe_of(octets)
    directory = tmp_path / "out"
    directory.mkdir()
    archive = os.open(tmp_path / "archive", os.O_WRONLY | os.O_CREAT)
    with OutDirectory(directory) as out:
        tar = TarOut(archive)
        for file_slice in chunks(fd, 4096, lambda nbytes: np.empty(nbytes, np.uint8)):
            for stream, content, mark in file_slice.elements:
                out.write(stream, content, mark, A)
                tar.write(stream, content, mark, A)
        assert out.unfinished() == tar.unfinished() == []
        tar.finish()
    os.close(fd)
    os.close(archive)
    assert below(directory) == {STREAM: octets}
    assert (tmp_path / "archive").read_bytes() == octets


@pytest.mark.unit
def test_stdin_and_stdout_may_be_without_blocking(tmp_path: Path) -> None:
    """A flag of the pipe, which another process may have set."""
    reading, writing = os.pipe()
    back_reading, back_writing = os.pipe()
    octets = os.urandom(1 << 20)
    for fd in (reading, back_writing):
        os.set_blocking(fd, False)

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            time.sleep(0.2)  # the reader is there first
            file.write(octets)

    def copy() -> None:
        tar = TarOut(back_writing)
        with contextlib.suppress(BlockingIOError, WriteError), os.fdopen(back_writing, "wb"):
            for file_slice in chunks(reading, 65536, lambda nbytes: np.empty(nbytes, np.uint8)):
                for stream, content, mark in file_slice.elements:
                    tar.write(stream, content, mark, A)

    threads = [threading.Thread(target=target, daemon=True) for target in (write, copy)]
    for thread in threads:
        thread.start()
    with os.fdopen(back_reading, "rb") as file:
        threads[1].join(0.5)  # the pipe is full
        arrived = file.read()
    for thread in threads:
        thread.join()
    os.close(reading)
    assert arrived == octets


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[tuple[TarOut, Any]]:
    """An archive, and a function that gives its members."""
    fd = os.open(tmp_path / "archive.tar", os.O_WRONLY | os.O_CREAT)
    tar = TarOut(fd)

    def members() -> dict[str, bytes | None]:
        tar.finish()
        with tarfile.open(tmp_path / "archive.tar") as opened:
            found = {}
            for member in opened:
                file = opened.extractfile(member)
                found[member.name] = None if file is None else file.read()
            return found

    yield tar, members
    os.close(fd)


@pytest.mark.unit
def test_names_of_members_are_safe_and_differ(archive: tuple[TarOut, Any]) -> None:
    tar, members = archive
    for number, stream in enumerate(["same", "same", "../up", "/abs", "same~2", ""]):
        tar.write(stream, str(number).encode())
    assert members() == {
        "same": b"0", "same~2": b"1", "%2E%2E/up": b"2", "abs": b"3", "same~2~2": b"4", "unnamed": b"5",
    }  # fmt: skip


@pytest.mark.unit
def test_parts_and_holes_become_one_member(archive: tuple[TarOut, Any]) -> None:
    tar, members = archive
    for content, offset, hole in ((b"", 0, 1000), (b"data", 1000, 1996)):
        tar.write("sparse", content, part(offset, 3000)._replace(hole=hole), A)
    tar.write("next", b"n", FileMark("file", 0o600, -1), A)
    assert members() == {"sparse": bytes(1000) + b"data" + bytes(1996), "next": b"n"}


@pytest.mark.unit
def test_a_file_that_is_sent_once_more_is_a_member_of_the_same_name(archive: tuple[TarOut, Any]) -> None:
    tar, members = archive
    for stream in ("a", "../b", "b", "_/b"):
        tar.write(stream, b"first", FileMark("file"), A)
    for stream in ("a", "../b"):
        tar.write(stream, b"second", FileMark("file"), A)
    tar.write("a", b"of a program", None, A)
    renamed = dict(tar.renamed)
    found = members()
    assert found["a"] == found[renamed["../b"]] == b"second"
    assert sorted(found.values()) == [b"first", b"first", b"of a program", b"second", b"second"]
    assert len(tar.renamed) == len(renamed)


@pytest.mark.unit
def test_a_stream_or_an_archive_has_one_sender(archive: tuple[TarOut, Any]) -> None:
    tar, members = archive
    tar.write("a", b"a", None, A)
    with pytest.raises(WriteError, match="one sender"):
        tar.write("b", b"b", None, B)
    tar.write("c", b"c", None, A)
    assert members() == {"a": b"a", "c": b"c"}


@pytest.mark.unit
def test_after_a_part_is_missing_nothing_follows(archive: tuple[TarOut, Any], tmp_path: Path) -> None:
    tar, _ = archive
    tar.write("big", b"01", part(0, 6), A)
    with pytest.raises(WriteError, match="without those before it"):
        tar.write("big", b"45", part(4, 6), A)
    with pytest.raises(WriteError):
        tar.write("other", b"o", None, A)
    tar.finish()
    assert tar.unfinished() == ["big"]
    assert (tmp_path / "archive.tar").stat().st_size % 512 == 2  # neither padding nor an end
