"""`aiflow send --resume`: what the receiver has written and synced does not travel twice, and nothing is missing."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
from outfiles import A, B, below, part
from programs import DEADLINE, content, unnamed_bytes
from wait import has_stopped, wait_for

from aiflow import DeliveryError, Receiver
from aiflow._transfer.filemarks import FileMark
from aiflow.cli import durable
from aiflow.cli.filetree import FileSlice
from aiflow.cli.outdir import NotWritten, OutDirectory, WriteError
from aiflow.cli.sending import Sending
from aiflow.cli.tarout import TarOut

NB_FILES = 300
FILE_BYTES = 64 << 10


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """More files than arrive before the end of the first run."""
    for directory in ("a", "b/c"):
        (tmp_path / "source" / directory).mkdir(parents=True)
    for number in range(NB_FILES):
        path = tmp_path / "source" / ("a", "b/c")[number % 2] / f"{number:04}"
        path.write_bytes(os.urandom(FILE_BYTES))
        os.utime(path, ns=(0, 10**18 + 7 * number))
    (tmp_path / "source" / "empty").write_bytes(b"")
    return tmp_path / "source"


@pytest.mark.parametrize("victim", ["send", "recv", "both"])
def test_a_broken_transfer_goes_on_where_it_ended(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path, victim: str
) -> None:
    for attempt in range(5):  # a transfer may end before this process gets the processor
        out = tmp_path / f"out{attempt}"
        recv = aiflow("recv", out, "-p", endpoint, "--memory", "4MiB")
        send = aiflow("send", source, "-p", endpoint, "--slice-bytes", "256KiB")
        wait_for(lambda out=out: sum(path.is_file() for path in out.rglob("*")) > 20, "the first files", DEADLINE)
        for program in {"send": [send], "recv": [recv], "both": [send, recv]}[victim]:
            program.process.send_signal(signal.SIGKILL)
        for program in (send, recv):
            program.process.kill() if victim != "send" else None
            program.process.communicate(timeout=DEADLINE)
        there = {name for name, octets in content(out).items() if octets}
        if len(there) < NB_FILES:
            break
    assert 20 < len(there) < NB_FILES, "the test needs a broken transfer"
    again = aiflow("recv", out, "-p", endpoint, "--json")
    sent = aiflow("send", source, "-p", endpoint, "--resume", "--json").ends(0)
    received = again.ends(0)
    assert content(out) == content(source)
    assert sent["kept"] == received["kept"] >= len(there) - 16  # of the slices that were not synced yet
    assert sent["nbytes"] == (NB_FILES - sent["kept"]) * FILE_BYTES
    assert received["renamed"] == []
    for path in source.rglob("*"):
        arrived = out / path.relative_to(source)
        assert (arrived.stat().st_mtime_ns, arrived.stat().st_mode) == (path.stat().st_mtime_ns, path.stat().st_mode)


def test_a_complete_transfer_sends_no_file_twice(aiflow: Any, endpoint: str, source: Path, tmp_path: Path) -> None:
    for kept in (0, NB_FILES):
        recv = aiflow("recv", tmp_path / "out", "-p", endpoint, "--json")
        sent = aiflow("send", source, "-p", endpoint, "--resume", "--json").ends(0)
        assert (sent["kept"], recv.ends(0)["kept"]) == (kept, kept)
    assert sent["nbytes"] == 0


def test_a_changed_file_is_sent_and_replaces_the_old_one(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recv = aiflow("recv", out, "-p", endpoint, "--json")
    aiflow("send", source, "-p", endpoint, "--json").ends(0)
    recv.ends(0)
    (source / "a" / "0000").write_bytes(b"x" * FILE_BYTES)  # of the same size
    (source / "a" / "0002").chmod(0o600)
    (source / "b" / "c" / "0001").unlink()
    (out / "b" / "c" / "0003").unlink()
    again = aiflow("recv", out, "-p", endpoint, "--json")
    aiflow("send", source, "-p", endpoint, "--resume", "--json").ends(0)
    received = again.ends(0)
    assert (received["files"], received["renamed"]) == (4, [])  # 0000, 0002, 0003 and the empty file
    assert (out / "b" / "c" / "0001").exists()  # what is removed here stays there
    (out / "b" / "c" / "0001").unlink()
    assert content(out) == content(source)


@pytest.mark.parametrize("confirm", ["held", "release"])
def test_a_program_that_confirms_everything_gets_every_file(
    aiflow: Any, endpoint: str, source: Path, confirm: Literal["held", "release"]
) -> None:
    """It knows nothing of files, so its confirmation of a question is no answer."""
    arrived: dict[str, bytes] = {}
    with Receiver(endpoint, confirm=confirm, until="bye", timeout=DEADLINE) as rx:
        send = aiflow("send", source, "-p", endpoint, "--resume", "--json")
        for time_slice in rx:
            with time_slice:
                for element in time_slice:
                    if element.mark is not None and element.mark.kind == "file":
                        arrived[element.stream] = element.array.tobytes()
    sent = send.ends(0)
    assert (sent["kept"], sent["files"]) == (0, NB_FILES + 1)
    assert arrived == content(source)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of many slices."""
    (tmp_path / "source").mkdir()
    file = tmp_path / "source" / "large"
    file.write_bytes(os.urandom(64 << 20))
    os.utime(file, ns=(0, 10**18))
    return file


WATCH = ("--watch", "--settle", 0.1, "--slice-bytes", "256KiB")


def stopped_with_a_piece(
    aiflow: Any, endpoint: str, large: Path, tmp_path: Path, *options: object
) -> tuple[Any, Any, Path]:
    """A receiver that is stopped with the beginning of a file, its sender, and the output directory."""
    for attempt in range(5):  # the file may be whole before this process gets the processor
        out = tmp_path / f"out{attempt}"
        recv = aiflow("recv", out, "-p", endpoint, "--json")
        send = aiflow("send", large.parent, *WATCH, *options, "-p", endpoint, "--json")
        wait_for(
            lambda recv=recv, out=out: (
                out.exists() and ((out / "large").exists() or unnamed_bytes(recv.process.pid, out) >= 1 << 20)
            ),
            "the first bytes",
            DEADLINE,
        )
        recv.process.send_signal(signal.SIGSTOP)
        wait_for(lambda recv=recv: has_stopped(recv.process.pid), "all threads to stop")
        if not (out / "large").exists():
            return recv, send, out
        recv.process.send_signal(signal.SIGCONT)
        send.process.send_signal(signal.SIGINT)
        send.ends(0)
        recv.ends(0)
    raise AssertionError("the test needs a transfer that is stopped in its middle")


def test_a_file_that_changes_in_transit_arrives_whole(aiflow: Any, endpoint: str, large: Path, tmp_path: Path) -> None:
    """A question about it is not the end of what has arrived of it before."""
    recv, send, out = stopped_with_a_piece(aiflow, endpoint, large, tmp_path, "--resume")
    os.utime(large, ns=(0, 10**18 + 1))
    recv.process.send_signal(signal.SIGCONT)
    wait_for((out / "large").exists, "the file", DEADLINE)
    wait_for(lambda: (out / "large").stat().st_mtime_ns == 10**18 + 1, "its time", DEADLINE)
    send.process.send_signal(signal.SIGINT)
    sent, received = send.ends(0), recv.ends(0)
    assert (sent["files"], sent["kept"], received["kept"], sent["not_delivered"]) == (1, 0, 0, {})
    assert (out / "large").read_bytes() == large.read_bytes()


def test_a_file_arrives_whole_at_a_receiver_that_was_silent(
    aiflow: Any, endpoint: str, large: Path, tmp_path: Path
) -> None:
    """The sender takes it for gone, and then asks what it has."""
    recv, send, out = stopped_with_a_piece(aiflow, endpoint, large, tmp_path)
    send.says("Waiting for a receiver")
    recv.process.send_signal(signal.SIGCONT)
    wait_for((out / "large").exists, "the file", DEADLINE)
    wait_for(lambda: (out / "large").stat().st_mtime_ns == 10**18, "its time", DEADLINE)
    send.process.send_signal(signal.SIGINT)
    sent = send.ends(0)
    recv.text(0)
    assert (sent["files"], sent["kept"], sent["not_delivered"]) == (1, 0, {})
    assert (out / "large").read_bytes() == large.read_bytes()


# ---- without a port ----


def test_an_interrupted_question_says_nothing_about_a_delivery() -> None:
    class Interrupted:
        def result(self, _timeout: float | None) -> None:
            self.result = self.refuse  # type: ignore[method-assign]
            raise KeyboardInterrupt

        def refuse(self, _timeout: float | None) -> None:
            raise DeliveryError("refused", failed={"a": "it was not written by an earlier run"})

    class Asking:
        def send(self, _elements: object, *, wait: bool) -> Interrupted:
            return Interrupted()

    undelivered = {"a": "not sent"}
    sending = Sending(None, Asking(), None, undelivered)  # type: ignore[arg-type]
    sending._nb_settled = 1  # there is a receiver
    with pytest.raises(KeyboardInterrupt):
        sending.ask(FileSlice())
    sending.finish_within(2)
    assert undelivered == {"a": "not sent"}


def question(octets: bytes, mtime_ns: int, mode: int = 0o644) -> FileMark:
    return FileMark("question", mode, mtime_ns, size=len(octets))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with OutDirectory(tmp_path) as out:
        out.write("sub/file", b"content", FileMark("file", 0o644, 10**18), A)
        assert out.sync() == {}
    return tmp_path


@pytest.mark.unit
@pytest.mark.usefixtures("both_ways_to_write")
@pytest.mark.parametrize(
    ("stream", "mark", "kept"),
    [
        ("sub/file", question(b"content", 10**18), True),
        ("sub/file", question(b"content", 10**18 + 1), False),
        ("sub/file", question(b"short", 10**18), False),
        ("sub/file", question(b"content", 10**18, 0o600), False),
        ("sub/none", question(b"content", 10**18), False),
        ("none/file", question(b"content", 10**18), False),
        ("sub", question(b"content", 10**18), False),
        ("link/file", question(b"content", 10**18), False),
        ("linked", question(b"content", 10**18), False),
        ("sub/../sub/file", question(b"content", 10**18), False),
    ],
)
def test_a_file_is_kept_if_path_size_mode_and_time_are_the_same(
    written: Path, stream: str, mark: FileMark, kept: bool
) -> None:
    (written / "link").symlink_to("sub")
    (written / "linked").symlink_to("sub/file")
    with OutDirectory(written) as out:
        if kept:
            assert str(out.write(stream, b"", mark, A)) == stream
        else:
            with pytest.raises(NotWritten):
                out.write(stream, b"", mark, A)
        assert (out.nb_kept, out.nb_files, out.unfinished()) == (int(kept), 0, [])
    assert below(written)["sub/file"] == b"content"


@pytest.mark.unit
@pytest.mark.usefixtures("both_ways_to_write")
def test_a_file_of_a_sender_that_died_in_this_run_is_kept(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("file", b"content", FileMark("file", 0o644, 10**18), A)
        with pytest.raises(NotWritten):  # it is not on the disk yet
            out.write("file", b"", question(b"content", 10**18), B)
        out.sync()
        out.write("file", b"", question(b"content", 10**18), B)
        out.write("file", b"changed", FileMark("file", 0o644, 10**18), B)
    assert below(tmp_path) == {"file": b"changed"}


@pytest.mark.unit
@pytest.mark.usefixtures("both_ways_to_write")
@pytest.mark.parametrize("begun", [part(0, 7), FileMark("part", 0o644, 10**18, 0, 7)], ids=["other time", "same time"])
def test_a_question_is_never_the_end_of_a_file(tmp_path: Path, begun: FileMark) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("file", b"con", begun, A)
        out.sync()
        with pytest.raises(NotWritten):
            out.write("file", b"", question(b"content", 10**18), A)
        assert (out.unfinished(), out.nb_kept) == ([], 0)
        with pytest.raises(WriteError, match="without those before it"):
            out.write("file", b"tent", FileMark("part", 0o644, 10**18, 3, 7), A)
        out.write("file", b"content", FileMark("file", 0o644, 10**18), A)
        out.sync()
        out.write("file", b"", question(b"content", 10**18), A)
    assert below(tmp_path) == {"file": b"content"}


@pytest.mark.unit
def test_a_question_about_nothing_is_refused(written: Path) -> None:
    (written / "?").write_bytes(b"")
    with OutDirectory(written) as out, pytest.raises(NotWritten):
        out.write("?", b"", FileMark("question"), A)
    with open(os.devnull, "wb") as null, pytest.raises(NotWritten):
        TarOut(null.fileno()).write("?", b"", FileMark("question"), A)


@pytest.mark.unit
@pytest.mark.parametrize("to", ["a directory", "an archive"])
@pytest.mark.parametrize(
    ("late", "why"),
    [
        (FileMark("part", 0o644, 1, 20, 20), "without those before it"),
        (FileMark("part", 0o644, 1, 15, 20, hole=5), "without those before it"),
        (FileMark("part", 0o644, 1, 10, 20, hole=11), "do not agree"),
        (FileMark("part", 0o644, 1, 10, 21, hole=11), "do not agree"),
        (FileMark("part", 0o644, 2, 10, 20, hole=10), "do not agree"),
    ],
)
def test_a_part_that_is_missing_is_no_hole(tmp_path: Path, to: str, late: FileMark, why: str) -> None:
    with contextlib.ExitStack() as stack:
        out: OutDirectory | TarOut = stack.enter_context(OutDirectory(tmp_path))
        if to == "an archive":
            out = TarOut(stack.enter_context(open(os.devnull, "wb")).fileno())
        out.write("file", b"0123456789", FileMark("part", 0o644, 1, 0, 20), A)
        with pytest.raises(WriteError, match=why):
            out.write("file", b"", late, A)
        assert out.nb_files == 0
    assert below(tmp_path) == {}


@pytest.mark.unit
@pytest.mark.parametrize("to", ["a directory", "an archive"])
@pytest.mark.parametrize(
    "mark",
    [
        FileMark("part", 0o644, 1, 0, None, hole=(1 << 63) - 1),
        FileMark("part", 0o644, 1, 0, 1 << 63),
        FileMark("part", 0o644, 1, 0, (1 << 64) - 1, hole=(1 << 64) - 2),
    ],
)
def test_a_size_that_no_file_may_have_ends_that_file_only(tmp_path: Path, to: str, mark: FileMark) -> None:
    with contextlib.ExitStack() as stack:
        out: OutDirectory | TarOut = stack.enter_context(OutDirectory(tmp_path))
        if to == "an archive":
            out = TarOut(stack.enter_context(open(os.devnull, "wb")).fileno())
        with pytest.raises(WriteError, match="larger than any file may be"):
            out.write("large", b"x", mark, A)
        if to == "a directory":  # an archive would have a gap
            out.write("file", b"content", FileMark("file", 0o644, 1), A)
            assert out.nb_files == 1


@pytest.mark.unit
@pytest.mark.usefixtures("both_ways_to_write")
def test_a_file_that_comes_whole_replaces_what_came_of_it_in_parts(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("file", b"con", part(0, 7), A)
        out.write("file", b"small", FileMark("file", 0o644, 10**18), A)
        assert out.unfinished() == []
        out.write("file", b"of another", FileMark("file", 0o644, 10**18), B)
    assert below(tmp_path) == {"file": b"small", "file~2": b"of another"}


@pytest.mark.unit
def test_a_file_has_its_time_only_when_its_content_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure before that leaves a file that no question finds."""
    seen = []
    really = durable.fsync

    def fsync(descriptor: Any) -> None:
        seen.append((tmp_path / "file").stat().st_mtime_ns)
        really(descriptor)

    monkeypatch.setattr(durable, "fsync", fsync)
    with OutDirectory(tmp_path) as out:
        out.write("file", b"x", FileMark("file", 0o644, 10**18), A)
        assert (tmp_path / "file").stat().st_mtime_ns != 10**18
        out.sync()
    assert seen[0] != 10**18
    assert seen[-1] == 10**18  # and the time is synced, too


@pytest.mark.unit
def test_a_file_that_could_not_be_synced_keeps_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: Any) -> None:
        raise OSError(5, "Input/output error")

    mark = FileMark("file", 0o644, 10**18)
    with OutDirectory(tmp_path) as out, monkeypatch.context() as patched:
        patched.setattr(durable, "fsync", refuse)
        out.write("file", b"x", mark, A)
        assert list(out.sync()) == ["file"]
    with OutDirectory(tmp_path) as out, pytest.raises(NotWritten):
        out.write("file", b"", question(b"x", 10**18), A)


@pytest.mark.unit
@pytest.mark.usefixtures("both_ways_to_write")
def test_a_file_that_its_sender_sends_once_more_is_replaced_and_no_other(tmp_path: Path) -> None:
    mark = FileMark("file", 0o644, 10**18)
    with OutDirectory(tmp_path) as out:
        out.write("file", b"first", mark, A)
        out.write("file", b"of another", mark, B)
        out.write("file", b"second", mark, A)
        out.write("parts", b"abc", part(0, 3), A)
        out.write("parts", b"a", part(0, 3), A)
        out.write("parts", b"bc", part(1, 3), A)
        out.sync()
    assert below(tmp_path) == {"file": b"second", "file~2": b"of another", "parts": b"abc"}


@pytest.mark.unit
def test_a_replacement_that_fails_leaves_the_name_to_the_file_before(tmp_path: Path) -> None:
    with OutDirectory(tmp_path) as out:
        out.write("file", b"abc", part(0, 3), A)
        out.write("file", b"x", part(0, 3), A)  # and never ends
        out.write("file", b"of another", FileMark("file", 0o644, None), B)
    assert below(tmp_path) == {"file": b"abc", "file~2": b"of another"}
