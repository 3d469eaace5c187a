"""`aiflow send` says "delivered" when every file is written and synced; what ends a command early leaves nothing."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import DEADLINE, Program, content, unnamed_bytes
from subprocesses import environment, run
from wait import wait_for

from aiflow import DeliveryError, PeerLost, Sender
from aiflow._terminal.interrupts import interrupts_repeated
from aiflow._terminal.outcome import Bar, Outcome, Terminal
from aiflow._transfer.filemarks import FileMark, Marked
from aiflow.cli.filetree import FileSlice
from aiflow.cli.recv import receive_into
from aiflow.cli.sending import first

PART_BYTES = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Some small files, and one that is several slices long."""
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "z"):
        (tmp_path / "source" / name).write_bytes(name.encode() * 100)
    (tmp_path / "source" / "m").write_bytes(os.urandom(5 * PART_BYTES // 2))
    return tmp_path / "source"


def until_ready(recv: Program) -> None:
    recv.says("receiving on")


# ---- 80: written, or told ----


@pytest.mark.parametrize("slice_bytes", [256 << 20, PART_BYTES], ids=["in one slice", "in parts"])
def test_what_is_delivered_is_there_at_once(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path, slice_bytes: int
) -> None:
    out = tmp_path / "out"
    aiflow("recv", out, "-p", endpoint, "--slices", 99)
    sent = aiflow("send", source, "-p", endpoint, "--slice-bytes", slice_bytes, "--json").ends(0)
    assert content(out) == content(source)  # though recv goes on
    assert sent["files"] == 4


@pytest.mark.parametrize("slice_bytes", [256 << 20, PART_BYTES], ids=["in one slice", "in parts"])
def test_a_file_that_cannot_be_written_fails_its_sender_by_name_and_no_other(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path, slice_bytes: int
) -> None:
    out = tmp_path / "out"
    limited = ("bash", "-c", 'ulimit -f 1800; exec "$@"', "bash")  # KiB: no file may be larger
    recv = aiflow("recv", out, "-p", f"{endpoint}*2", "--json", prefix=limited, AIFLOW_MEMORY="no-huge")
    with Sender(endpoint) as another:
        another.send({"m": b"another sender's"}, timeout=60)
        sent = aiflow("send", source, "-p", endpoint, "--slice-bytes", slice_bytes, "--json").ends(1)
        another.send({"after": b"all is well"}, timeout=60)
    assert list(sent["not_delivered"]) == ["m"]
    assert "larger than a file may be" in sent["not_delivered"]["m"]
    assert sent["files"] == 3
    received = recv.ends(1)
    assert list(received["not_written"]) == ["m"]
    assert received["unfinished"] == []
    assert content(out) == {**content(source), "m": b"another sender's", "after": b"all is well"}


def test_a_program_hears_which_streams_were_not_written(endpoint: str, aiflow: Any, tmp_path: Path) -> None:
    limited = ("bash", "-c", 'ulimit -f 10; exec "$@"', "bash")
    recv = aiflow("recv", tmp_path / "out", "-p", endpoint, "--json", prefix=limited, AIFLOW_MEMORY="no-huge")
    said = run(
        """
        import sys, aiflow
        with aiflow.Sender(sys.argv[1]) as tx:
            try:
                tx.send([("large", bytes(20000)), ("small", b"s"), ("large", b"small, too")], timeout=30)
            except aiflow.DeliveryError as error:
                print(error.failed_elements)
        """,
        endpoint,
    )
    failed = ast.literal_eval(said)
    assert list(failed) == [0]
    assert "larger than a file may be" in failed[0]
    recv.ends(1)
    assert content(tmp_path / "out") == {"small": b"s", "large": b"small, too"}


@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
def test_more_slices_may_fail_than_fit_into_memory(aiflow: Any, endpoint: str, tmp_path: Path, in_parts: bool) -> None:
    """Nothing but references gives a slice back: the collector of cycles is off."""
    script = """
        import gc, resource, sys
        from aiflow.cli.app import run
        gc.disable()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        sys.exit(run(sys.argv[1:]))
    """
    (tmp_path / "receiver.py").write_text(textwrap.dedent(script))
    recv = subprocess.Popen(
        [sys.executable, tmp_path / "receiver.py", "recv", tmp_path / "out", "-p", endpoint, "--memory", "16MiB"],
        env=environment(AIFLOW_MEMORY="no-huge"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with Sender(endpoint) as tx:
            for number in range(10):
                marks = [FileMark("part", None, None, part << 21, 10 << 21) for part in range(10)]
                mark = marks[number] if in_parts else FileMark("file", None, None)
                with pytest.raises(DeliveryError):
                    tx.send([Marked("f" if in_parts else f"f{number}", np.zeros(1 << 21, "u1"), mark)], timeout=60)
            tx.send({"small": b"s"}, timeout=60)
        _, stderr = recv.communicate(timeout=DEADLINE)
    finally:
        recv.kill()
        recv.communicate()
    assert recv.returncode == 1, stderr
    assert content(tmp_path / "out") == {"small": b"s"}


def test_a_receiver_that_is_stopped_confirms_nothing(aiflow: Any, endpoint: str, source: Path, tmp_path: Path) -> None:
    recv = aiflow("recv", tmp_path / "out", "-p", endpoint)
    until_ready(recv)
    recv.process.send_signal(signal.SIGSTOP)
    try:
        sent = aiflow("send", source, "-p", endpoint, "--timeout", 1, "--json").ends(1)
        assert sent["files"] == 0
        assert len(sent["not_delivered"]) == 4
    finally:
        recv.process.send_signal(signal.SIGCONT)


# ---- 81: no receiver ----


def test_without_a_receiver_a_timeout_says_that_none_answered(aiflow: Any, endpoint: str, source: Path) -> None:
    document = aiflow("send", source, "-p", endpoint, "--timeout", 0.5, "--json").ends(1)
    message = document["error"]["message"]
    assert message.startswith(f"not delivered within 0.5 s: no receiver has answered on {endpoint}")
    assert "cancel()" not in message
    assert document["error"]["delivered"] is False


def test_without_a_receiver_a_line_says_so_while_it_waits(
    aiflow: Any, endpoint: str, source: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    send = aiflow("send", source, "-p", endpoint, "--json")
    send.says(f"no receiver has answered on {endpoint}")
    assert time.monotonic() - began < 10
    aiflow("recv", tmp_path / "out", "-p", endpoint)
    assert send.ends(0)["files"] == 4


# ---- 58: ended early ----


def ends_of_a_command() -> dict[str, Callable[[subprocess.Popen[str]], None]]:
    def twice(number: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
        def send(process: subprocess.Popen[str]) -> None:
            process.send_signal(number)
            process.send_signal(number)

        return send

    once = {number.name: lambda process, number=number: process.send_signal(number) for number in ENDING}
    return {**once, "SIGHUP twice": twice(signal.SIGHUP), "SIGTERM twice": twice(signal.SIGTERM)}


ENDING = (signal.SIGINT, signal.SIGKILL)


@pytest.mark.parametrize("end", ends_of_a_command().values(), ids=ends_of_a_command())
def test_a_receiver_that_ends_in_the_middle_of_a_file_leaves_nothing(
    aiflow: Any, endpoint: str, tmp_path: Path, end: Callable[[subprocess.Popen[str]], None]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    with open(source / "big", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 << 30)  # more than can arrive before the end, and no hole
    recv = aiflow("recv", out, "-p", endpoint, "--memory", "16MiB")
    send = aiflow("send", source, "-p", endpoint, "--slice-bytes", "2MiB", "--json", "--timeout", 20)
    wait_for(lambda: recv.process.poll() is not None or unnamed_bytes(recv.process.pid, out) > 2 << 20, "a part")
    end(recv.process)
    _, stderr = recv.process.communicate(timeout=DEADLINE)
    assert recv.process.returncode in (130, -signal.SIGKILL), stderr
    assert "Traceback" not in stderr
    assert list(out.iterdir()) == []
    if recv.process.returncode == -signal.SIGKILL:  # else it waits for another receiver
        sent = send.ends(1)
        assert sent["files"] == 0
        assert list(sent["not_delivered"]) == ["big"]


def test_under_nohup_a_hang_up_ends_nothing(aiflow: Any, endpoint: str, source: Path, tmp_path: Path) -> None:
    ignoring = ("bash", "-c", "trap '' HUP; exec \"$@\"", "bash")  # as nohup does, its files left as they are
    recv = aiflow("recv", tmp_path / "out", "-p", endpoint, "--json", prefix=ignoring)
    until_ready(recv)
    recv.process.send_signal(signal.SIGHUP)
    aiflow("send", source, "-p", endpoint, "--json").ends(0)
    assert recv.ends(0)["files"] == 4


@pytest.mark.parametrize("attempt", range(2))
def test_an_interrupt_at_any_moment_of_many_files_ends_with_130(
    aiflow: Any, endpoint: str, tmp_path: Path, attempt: int
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(2000):
        (source / str(number)).write_bytes(b"x" * 3000)
    recv = aiflow("recv", out, "-p", endpoint)
    until_ready(recv)
    aiflow("send", source, "-p", endpoint, "--slice-bytes", "1MiB")
    wait_for(lambda: any(out.iterdir()), "a file", DEADLINE)
    time.sleep(random.Random(attempt).random() * 0.1)  # some moment
    recv.process.send_signal(signal.SIGINT)
    _, stderr = recv.text(130)
    assert "Errno" not in stderr
    assert all(path.stat().st_size == 3000 for path in out.iterdir())


class Swallows:
    """Its destructor is where an interrupt strikes."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_an_interrupt_that_a_destructor_has_swallowed_is_raised_again(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGRTMAX)
    with pytest.raises(KeyboardInterrupt), interrupts_repeated():  # noqa: PT012
        Swallows(KeyboardInterrupt)
        time.sleep(30)
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGRTMAX) == before
    others: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda lost: others.append(lost.exc_type)
    try:
        with interrupts_repeated():
            Swallows(OSError)
    finally:
        sys.unraisablehook = hook
    assert others == [OSError]


def test_an_interrupt_that_cannot_be_repeated_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    went_on = False
    with pytest.raises(KeyboardInterrupt), interrupts_repeated():  # noqa: PT012
        Swallows(KeyboardInterrupt)
        went_on = True
    assert went_on


# ---- the lab ----


def namespaces(name: str) -> list[str]:
    directory = Path("/run/netns")
    return [path.name for path in directory.iterdir() if name in path.name] if directory.is_dir() else []


@contextlib.contextmanager
def experiment(out: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`aiflow lab run`, with its namespaces there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aiflow", "lab", "run", "fig6", "--quick", "--repeats", "99", "--out", str(out)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    name = f"fig6_{process.pid}"
    try:
        wait_for(lambda: process.poll() is not None or len(namespaces(name)) == 6, "six namespaces", 60)
        assert process.poll() is None
        yield process, name
    finally:
        process.kill()
        process.wait(60)
        subprocess.run(
            [sys.executable, "-m", "aiflow", "lab", "down", "--name", name],
            env=environment(),
            capture_output=True,
            check=True,
            timeout=60,
        )


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_closes_takes_the_lab_along(tmp_path: Path, number: signal.Signals) -> None:
    with experiment(tmp_path) as (process, name):
        process.send_signal(number)
        assert process.wait(60) == 130
        assert namespaces(name) == []


@pytest.mark.root
def test_what_a_killed_experiment_left_goes_with_the_next(tmp_path: Path) -> None:
    from aiflow.lab import cluster

    with experiment(tmp_path) as (process, name):
        assert name not in cluster.sweep()  # it lives
        process.kill()
        process.wait(60)
        assert namespaces(name)
        assert name in cluster.sweep()
        assert namespaces(name) == []


# ---- what recv says of its progress ----


class Recorder(Bar):
    """A bar that keeps what it was told to show."""

    def __init__(self) -> None:
        super().__init__(object(), 0)  # type: ignore[arg-type]
        self.shown: list[float] = []

    def show(self, done: float, total: float | None = None) -> None:
        self.shown.append(done)


class RecordingTerminal(Terminal):
    """A terminal whose bar is recorded."""

    def __init__(self) -> None:
        super().__init__(as_json=True)
        self.recorder = Recorder()

    @contextlib.contextmanager
    def bar(self, text: str, total: int | None, *, in_bytes: bool = True) -> Iterator[Bar]:
        yield self.recorder
        self.recorder.stop()


@pytest.mark.parametrize("slice_bytes", ["1MiB", "256MiB"])
def test_the_bar_never_runs_backwards_and_the_ports_have_carried_everything(
    aiflow: Any, endpoint: str, tmp_path: Path, slice_bytes: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, nbytes in (("large", 16 << 20), ("small", 5), ("zero", 0)):
        (source / name).write_bytes(os.urandom(nbytes))
    aiflow("send", source, "-p", f"{endpoint}*2", "--slice-bytes", slice_bytes)
    terminal = RecordingTerminal()
    outcome = Outcome(terminal, "recv")
    receive_into(outcome, tmp_path / "out", (f"{endpoint}*2",), None, None, 60.0, 128 << 20)
    assert outcome.exit_code == 0, outcome.document
    shown = terminal.recorder.shown
    assert shown == sorted(shown)
    assert shown[-1] == outcome.document["nbytes"] == (16 << 20) + 5
    assert sum(row["nbytes"] for row in outcome.document["ports"]) > outcome.document["nbytes"]


def test_the_bar_follows_a_first_slice_that_gets_a_new_ticket() -> None:
    """The receiver went before the slice was delivered; the ticket of the second attempt is the one that moves."""
    in_flight: deque[Any] = deque()

    class Lost:
        progress = 0, 10

        def result(self, _timeout: float | None) -> None:
            raise PeerLost("the receiver went", delivered=False)

    class Moving:
        progress = 5, 10

        def result(self, _timeout: float | None) -> int:
            return sum(ticket.progress[0] for _, ticket in in_flight)

    class Again:
        def send(self, elements: object, *, wait: bool) -> Moving:
            return Moving()

    in_flight.append((FileSlice(), Lost()))
    assert first(Outcome(RecordingTerminal(), "send"), Again(), in_flight, None) == 5  # type: ignore[arg-type]
