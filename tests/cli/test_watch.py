"""`aiflow send --watch`: a new file is sent when it is whole, once, and Ctrl-C is the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from programs import DEADLINE, content
from wait import wait_for

from aiflow.cli.filetree import CHANGED, SliceReader
from aiflow.cli.watch import NewFiles, file_system_of, is_open_for_writing


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def until_watching(send: Any) -> None:
    send.says("watching")


def test_new_files_arrive_and_ctrl_c_ends_with_0(aiflow: Any, endpoint: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (source / "before").write_bytes(b"before")
    recv = aiflow("recv", out, "-p", endpoint, "--json")
    send = aiflow("send", source, "--watch", "-p", endpoint, "--json")
    wait_for(lambda: (out / "before").exists(), "the file that was there", DEADLINE)
    (source / "sub" / "below").mkdir(parents=True)
    (source / "sub" / "below" / "file").write_bytes(b"new")
    (source / "empty").mkdir(mode=0o750)
    wait_for(lambda: (out / "sub/below/file").exists() and (out / "empty").exists(), "the new ones", DEADLINE)
    (tmp_path / "elsewhere").write_bytes(b"renamed")
    (tmp_path / "elsewhere").rename(source / "renamed")
    wait_for(lambda: (out / "renamed").exists(), "a file renamed into place", DEADLINE)
    (source / "before").write_bytes(b"changed")
    wait_for(lambda: (out / "before").read_bytes() == b"changed", "the change", DEADLINE)
    send.process.send_signal(signal.SIGINT)
    sent = send.ends(0)
    assert (sent["files"], sent["not_delivered"]) == (4, {})
    assert recv.ends(0)["renamed"] == []
    assert content(out) == content(source)
    for path in source.rglob("*"):
        assert (out / path.relative_to(source)).stat().st_mode == path.stat().st_mode


def test_a_file_that_is_open_is_not_sent_before_it_is_closed(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    aiflow("recv", out, "-p", endpoint)
    send = aiflow("send", source, "--watch", "--settle", 0.1, "-p", endpoint, "--json")
    until_watching(send)
    with open(source / "slow", "wb") as slow:
        slow.write(b"first ")
        slow.flush()
        for number in range(3):  # others pass it
            (source / str(number)).write_bytes(b"x")
            wait_for(lambda number=number: (out / str(number)).exists(), "another file", DEADLINE)
        assert not (out / "slow").exists()
        slow.write(b"last")
    wait_for(lambda: (out / "slow").exists(), "the file that was closed", DEADLINE)
    assert (out / "slow").read_bytes() == b"first last"
    (source / "sub").mkdir()
    with open(source / "never", "wb"):
        wait_for(lambda: (out / "sub").exists(), "one more look", DEADLINE)
        send.process.send_signal(signal.SIGTERM)
        sent = send.ends(0)
    assert sent["files"] == 4
    assert sent["left_out"] == {"never": "a file that was not whole yet"}


def test_a_receiver_that_ends_is_replaced_by_the_next(aiflow: Any, endpoint: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recv = aiflow("recv", out, "-p", endpoint)
    send = aiflow("send", source, "--watch", "-p", endpoint, "--json")
    (source / "a").write_bytes(b"a" * 1000)
    wait_for(lambda: (out / "a").exists(), "the first file", DEADLINE)
    recv.process.kill()
    recv.process.wait()
    (source / "b").write_bytes(b"b" * 1000)
    aiflow("recv", out, "-p", endpoint)
    wait_for(lambda: (out / "b").exists(), "the second file", DEADLINE)
    send.process.send_signal(signal.SIGINT)
    assert send.ends(0)["not_delivered"] == {}
    assert content(out) == content(source)


def test_a_file_that_was_refused_is_sent_when_it_changes(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    limited = ("bash", "-c", 'ulimit -f 1800; exec "$@"', "bash")  # KiB: no file may be larger
    recv = aiflow("recv", out, "-p", endpoint, "--json", prefix=limited, AIFLOW_MEMORY="no-huge")
    send = aiflow("send", source, "--watch", "-p", endpoint, "--json")
    for name in ("large", "other"):
        (source / name).write_bytes(os.urandom(2 << 20))
    send.says("large was not delivered: it is larger than a file may be")
    (source / "large").write_bytes(b"small")
    wait_for(lambda: (out / "large").exists(), "the file that changed", DEADLINE)
    send.process.send_signal(signal.SIGINT)
    sent = send.ends(1)
    assert list(sent["not_delivered"]) == ["other"]
    assert list(recv.ends(1)["not_written"]) == ["other"]
    assert content(out) == {"large": b"small"}


def test_what_is_not_sent_is_listed_when_it_is_seen_and_at_the_end(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    aiflow("recv", out, "-p", endpoint)
    send = aiflow("send", source, "--watch", "--settle", 3, "-p", endpoint)
    until_watching(send)
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(source / "socket"))
        send.says("socket is skipped: it is a socket")  # though there is no file to send
    name = "two\nlines"
    (source / name).write_bytes(b"x")
    assert "sent two\\nlines, 1 B" in send.process.stdout.readline()
    (source / "young").write_bytes(b"x")
    (source / "late").mkdir()
    Path(os.fsdecode(bytes(source) + b"/\xff")).write_bytes(b"x")
    send.process.send_signal(signal.SIGINT)
    _, stderr = send.text(1)
    assert "udcff cannot be sent: its name is not UTF-8" in stderr
    # which of both depends on the time that the processes get
    assert re.search("young is skipped: it is (a file that was not whole yet|new or changed since)", stderr)
    assert (out / "late").exists() or "late is skipped: it is new or changed since the last look" in stderr
    assert "socket" not in stderr  # once


def test_ctrl_c_without_a_receiver_ends_with_130(aiflow: Any, endpoint: str, source: Path) -> None:
    (source / "a").write_bytes(b"a")
    send = aiflow("send", source, "--watch", "-p", endpoint)
    send.says("Waiting for a receiver")
    send.process.send_signal(signal.SIGINT)
    _, stderr = send.text(130)
    assert "interrupted" in stderr


# ---- without a port ----


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def names(new: NewFiles) -> list[str]:
    return [file.path for file in new.look().files]


@pytest.mark.unit
def test_a_file_that_was_sent_is_new_again_when_it_changes(source: Path) -> None:
    new = NewFiles(source, 0)
    (source / "a").write_bytes(b"a")
    (file,) = new.look().files
    assert names(new) == ["a"]  # as long as it is not sent
    new.sent(file)
    assert names(new) == []
    (source / "a").write_bytes(b"aa")
    assert names(new) == ["a"]
    (source / "a").unlink()
    assert names(new) == []
    (source / "b").write_bytes(b"aa")
    (source / "b").rename(source / "a")
    assert names(new) == ["a"]


@pytest.mark.unit
def test_a_file_rests_before_it_is_sent(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    new = NewFiles(source, 2, clock, wall_clock=lambda: 0.0)  # files come from the future: their age says nothing
    (source / "a").write_bytes(b"a")
    assert names(new) == []
    clock.now += 1.5
    (source / "a").write_bytes(b"ab")
    assert names(new) == []
    clock.now += 1.5
    assert names(new) == []
    assert list(new.pending) == ["a"]
    clock.now += 1
    assert names(new) == ["a"]
    old = NewFiles(source, 2, clock)
    os.utime(source / "a", (0, 0))
    assert names(old) == ["a"]  # it has rested since 1970


@pytest.mark.unit
def test_where_the_kernel_does_not_say_a_file_rests_longer(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiflow.cli.watch.file_system_of", lambda _: "nfs4")
    clock = Clock()
    new = NewFiles(source, 0, clock)
    (source / "a").write_bytes(b"a")
    os.utime(source / "a", (0, 0))
    assert names(new) == []
    clock.now += 4.9
    assert names(new) == []
    clock.now += 0.2
    assert names(new) == ["a"]


@pytest.mark.unit
def test_each_file_system_below_the_directory_counts(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount, or a link to a file elsewhere, such as a network file system."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as elsewhere:
        device = os.stat(elsewhere.name).st_dev
        if source.stat().st_dev == device:
            pytest.skip("there is one file system")
        monkeypatch.setattr("aiflow.cli.watch.file_system_of", lambda file: (
            "cifs" if os.stat(file).st_dev == device else "ext4"
        ))  # fmt: skip
        (source / "remote").symlink_to(elsewhere.name)
        (source / "local").write_bytes(b"a")
        clock = Clock()
        new = NewFiles(source, 0, clock)
        assert names(new) == ["local"]
        clock.now += 5
        assert names(new) == ["local", "remote"]


@pytest.mark.unit
@pytest.mark.parametrize("slice_bytes", [1000, 1 << 20], ids=["in parts", "whole"])
@pytest.mark.parametrize("how", ["rewritten", "replaced", "with an old time", "opened"])
def test_a_file_that_changes_after_the_look_waits_for_the_next(source: Path, how: str, slice_bytes: int) -> None:
    """A batch may take long: its last file is read long after it was found whole."""
    (source / "a").write_bytes(b"a" * 3000)
    (source / "b").write_bytes(b"whole" * 600)
    os.utime(source / "b", ns=(0, 10**18))
    new = NewFiles(source, 0)
    tree = new.look()
    slices = iter(SliceReader(tree, slice_bytes))
    first = next(slices) if slice_bytes == 1000 else None  # the reader is at "a"
    with open(source / ("c" if how == "replaced" else "b"), "r+b" if how == "opened" else "wb") as writer:
        if how != "opened":
            writer.write(b"half")
            writer.flush()
        if how == "replaced":
            os.rename(source / "c", source / "b")
        if how == "with an old time":
            os.utime(source / "b", ns=(0, 10**18))
        if how != "opened":
            writer.close()
        elif file_system_of(source) not in ("ext4", "tmpfs", "xfs", "btrfs", "overlay"):
            pytest.skip("a file system without leases")
        rest = list(slices)
    ending = [file.path for file_slice in filter(None, [first, *rest]) for file in file_slice.ending]
    assert (ending, tree.unreadable) == (["a"], {"b": CHANGED})


@pytest.mark.unit
def test_a_file_that_is_opened_for_writing_while_it_is_read_waits(source: Path) -> None:
    (source / "a").write_bytes(b"a" * 5000)
    if file_system_of(source) not in ("ext4", "tmpfs", "xfs", "btrfs", "overlay"):
        pytest.skip("a file system without leases")
    tree = NewFiles(source, 0).look()
    slices = iter(SliceReader(tree, 1000))
    next(slices)
    with open(source / "a", "r+b"):
        assert list(slices) == []
    assert tree.unreadable == {"a": CHANGED}


@pytest.mark.unit
def test_a_look_that_is_interrupted_forgets_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = NewFiles(source, 0)
    (source / "link").symlink_to("nowhere")
    (source / "sent").write_bytes(b"a")
    (file,) = new.look().files
    new.sent(file)
    (source / "new").write_bytes(b"a")
    (source / "dangling").symlink_to("nowhere")
    with monkeypatch.context() as patched:
        patched.setattr("aiflow.cli.watch.is_open_for_writing", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            new.look()
    tree = new.look()
    assert [file.path for file in tree.files] == ["new"]
    assert list(tree.left_out) == ["dangling"]


@pytest.mark.unit
def test_the_kernel_says_who_has_a_file_open(source: Path) -> None:
    path = source / "a"
    path.write_bytes(b"a")
    if file_system_of(source) not in ("ext4", "tmpfs", "xfs", "btrfs", "overlay"):
        pytest.skip("a file system without leases")
    assert is_open_for_writing(os.fsencode(path)) is False
    with open(path, "rb"):
        assert is_open_for_writing(os.fsencode(path)) is False
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys; f = open(sys.argv[1], 'ab'); print(flush=True); input()", path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None
    writer.stdout.readline()
    assert is_open_for_writing(os.fsencode(path)) is True
    writer.communicate("\n")
    assert is_open_for_writing(os.fsencode(path)) is False
    assert is_open_for_writing(os.fsencode(source / "none")) is None


@pytest.mark.unit
def test_looking_takes_a_small_part_of_the_time(source: Path) -> None:
    ticks = iter([0.0, 2.0])
    new = NewFiles(source, 0, clock=lambda: next(ticks))
    new.look()
    assert new.interval == pytest.approx(38)


@pytest.mark.unit
def test_a_batch_has_the_directories_above_its_files(source: Path) -> None:
    new = NewFiles(source, 0)
    (source / "a" / "b").mkdir(parents=True)
    (source / "c").mkdir()
    assert sorted(mark.stream for mark in new.look().directories) == ["a", "a/b", "c"]
    (source / "a" / "b" / "file").write_bytes(b"x")
    assert sorted(mark.stream for mark in new.look().directories) == ["a", "a/b"]
