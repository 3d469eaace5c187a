"""What a process shows stays right, and its socket stays answered, when readers, sources or processes fail."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import name as local_name
from subprocesses import environment
from wait import PATIENCE_S, settle

import aiflow
from aiflow._observe import readers, server, snapshot
from aiflow._ports import registry
from aiflow._ports.runtime_dir import runtime_directory
from aiflow._transfer.waiter import Waiter


def own_socket() -> Path:
    (path,) = runtime_directory().glob(f"observe-{os.getpid()}-*.sock")
    return path


def own() -> dict[str, Any]:
    with readers.Connection(own_socket()) as connection:
        return connection.snapshot()


def side(document: dict[str, Any], role: str) -> dict[str, Any]:
    (found,) = [side for side in document["sides"] if side["role"] == role]
    return found


# ---- what is counted ----


def test_a_slice_to_several_receivers_counts_once() -> None:
    names = [local_name() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(aiflow.Receiver(f"ring:{name}", memory="8MiB")) for name in names]
        tx = stack.enter_context(aiflow.Sender([f"ring:{name}" for name in names], to=names))
        reports = []
        for count in (6, 1, 0):  # 1 element: the parts of two receivers are empty
            ticket = tx.send([np.full(50_000, k, np.uint8) for k in range(count)], wait=False)
            assert snapshot.snapshot()["sides"][-1]["figures"]["slices_in_flight"] <= 1
            for rx in receivers:
                rx.recv(timeout=PATIENCE_S).release()
            reports.append(ticket.result(PATIENCE_S))
        sent = side(snapshot.snapshot(), "sender")
        figures = sent["figures"]
        assert figures["slices"] == len(reports)
        assert figures["elements"] == sum(report.elements for report in reports)
        assert figures["bytes"] == sum(report.nbytes for report in reports)
        assert figures["slice_frames"] == sum(report.frames_sent for report in reports)
        assert figures["slice_seconds"] == pytest.approx(sum(report.seconds for report in reports), rel=0.01)
        assert figures["slices_in_flight"] == figures["slices_failed"] == 0
        assert [peer["figures"]["peer_slices"] for peer in sent["peers"]] == [len(reports)] * 3
        too_large = np.zeros(16 << 20, np.uint8)  # for its receiver; the others have room
        failing = tx.send([too_large, *[np.zeros(10, np.uint8)] * 5], wait=False)
        for rx in receivers:
            with contextlib.suppress(aiflow.SliceTimeout):
                rx.recv(timeout=0.5).release()
        with pytest.raises(aiflow.AiflowError):
            failing.result(PATIENCE_S)
        figures = side(snapshot.snapshot(), "sender")["figures"]
        assert (figures["slices"], figures["slices_failed"]) == (len(reports), 1)
        assert figures["bytes"] == sum(report.nbytes for report in reports)


class _Idle:
    """What a Waiter needs of an agent when nothing waits."""


@pytest.mark.unit
def test_waits_of_two_threads_that_end_at_once_both_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waiter, read = Waiter(_Idle()), time.monotonic_ns
    waiter._since = {1: read() - 10**9, 2: read() - 10**9}

    def interrupted() -> int:
        monkeypatch.setattr(time, "monotonic_ns", read)
        other = threading.Thread(target=waiter._ended, args=(2,))
        other.start()
        other.join()
        return read()

    monkeypatch.setattr(time, "monotonic_ns", interrupted)
    waiter._ended(1)
    assert waiter.waited()[1] >= 2 * 10**9


@pytest.mark.unit
def test_a_wait_that_ends_during_a_look_makes_no_sum_fall() -> None:
    waiter = Waiter(_Idle())
    waiter._since = {1: time.monotonic_ns() - 10**9}
    _, before = waiter.waited()
    since = waiter._since.pop(1)  # as `_ended` begins
    assert waiter.waited()[1] >= before
    waiter._since[1] = since
    waiter._ended(1)
    assert before <= waiter.waited()[1] < before + 10**9


def test_frames_dropped_have_all_reasons_before_the_first() -> None:
    with aiflow.Receiver("ring:reasons"):
        dropped = snapshot.snapshot()["sides"][-1]["figures"]["frames_dropped"]
    assert dropped["version"] == dropped["rx_nombuf"] == 0  # Prometheus sees the growth from 0


def test_bytes_of_a_name_that_are_no_text_spoil_nothing(endpoint: str) -> None:
    with aiflow.Receiver(endpoint, name="caf\udce9") as rx, aiflow.Sender(endpoint, name="na\udcefve") as tx:
        ticket = tx.send([b"x"], wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        ticket.result(PATIENCE_S)
        document = own()
        assert side(document, "receiver")["name"] == "caf\ufffd"
        assert side(document, "sender")["peers"][0]["name"] == "caf\ufffd"  # the ends of a flow find each other
        generate = pytest.importorskip("prometheus_client.exposition").generate_latest
        from prometheus_client import CollectorRegistry

        from aiflow._observe.exposition import Collector

        registered = CollectorRegistry()
        registered.register(Collector(lambda: [document, snapshot.snapshot()]))
        assert "na\ufffdve" in generate(registered).decode()


# ---- readers and sources that fail ----


def test_slow_readers_keep_no_other_waiting(endpoint: str) -> None:
    with aiflow.Receiver(endpoint), contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(5)]
        for reader in slow:
            reader.connect(str(own_socket()))
        slow[0].sendall(b"snap")  # and never the rest
        slow[1].sendall(b"snapshot\n" * 7)  # and takes nothing
        begun = time.monotonic()
        assert own()["pid"] == os.getpid()
        assert time.monotonic() - begun < 1.5
        for reader in slow:
            reader.settimeout(PATIENCE_S)
            with contextlib.suppress(ConnectionError):
                while reader.recv(1 << 16):
                    pass  # until it is sent away
        assert 1.5 < time.monotonic() - begun < 30


def test_more_readers_than_are_served_at_once_are_answered(endpoint: str) -> None:
    with aiflow.Receiver(endpoint), contextlib.ExitStack() as stack:
        for _ in range(server._MOST_READERS):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            silent.connect(str(own_socket()))
        assert settle(lambda: [1 for document in readers.gather() if document["pid"] == os.getpid()])
        begun = time.monotonic()
    assert time.monotonic() - begun < 1.5  # closing waits for none of them


def test_a_source_that_fails_ends_no_later_answer(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, Any]:
        monkeypatch.undo()
        raise RuntimeError("planted")

    with aiflow.Receiver(endpoint):
        monkeypatch.setattr(snapshot, "snapshot", fail)
        with pytest.raises(OSError):
            own()
        assert own()["pid"] == os.getpid()
    assert not [thread for thread in threading.enumerate() if thread.name == "aiflow-observe"]


def test_a_sender_that_is_collected_in_the_answering_thread_does_not_hang(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering, closing = threading.Event(), threading.Event()
    take, close = snapshot.snapshot, server._Server.close

    def collect() -> dict[str, Any]:
        answering.set()
        closing.wait(PATIENCE_S)
        time.sleep(0.1)  # the other thread waits for this one now
        server.forget(object())  # as a Sender's finalizer does
        return take()

    def announced(self: Any) -> None:
        closing.set()
        close(self)

    rx = aiflow.Receiver(endpoint)
    monkeypatch.setattr(snapshot, "snapshot", collect)
    monkeypatch.setattr(server._Server, "close", announced)
    with readers.Connection(own_socket()) as connection:
        connection.ask()
        assert answering.wait(PATIENCE_S)
        closer = threading.Thread(target=rx.close, daemon=True)
        closer.start()
        closer.join(20)
        assert not closer.is_alive()


def test_after_an_interrupt_the_next_one_closes_the_socket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    close = server._Server.close

    def interrupted(self: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    rx = aiflow.Receiver(endpoint)
    path = own_socket()
    monkeypatch.setattr(server._Server, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rx.close()
    assert server._Server.close is close
    rx.close()
    aiflow.Receiver(endpoint).close()
    assert not path.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "aiflow-observe"]


# ---- processes that end without closing, and forks ----

OPEN = "import aiflow, os, signal, sys\nrx = aiflow.Receiver(sys.argv[1])\nprint(os.getpid(), flush=True)\n"


def run(code: str, *arguments: str) -> tuple[int, int]:
    """A process id and its exit code."""
    program = [sys.executable, "-c", OPEN + code, *arguments]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    return int(done.stdout), done.returncode


def left_by(pid: int) -> list[Path]:
    return list(runtime_directory().glob(f"observe-{pid}-*"))


@pytest.mark.parametrize("end", ["keep = [rx]; keep.append(keep)", "sys.exit(3)", "raise ValueError"])
def test_a_process_that_ends_without_closing_leaves_no_socket(endpoint: str, end: str) -> None:
    pid, _ = run(end, endpoint)
    assert left_by(pid) == []


def test_the_socket_of_a_killed_process_goes_with_the_next_that_opens(endpoint: str) -> None:
    pid, code = run("os.kill(os.getpid(), signal.SIGKILL)", endpoint)
    assert code == -signal.SIGKILL
    (path,) = left_by(pid)
    with aiflow.Receiver(endpoint):
        alive = own_socket()
        assert path in registry.stale(runtime_directory()) or not path.exists()
        assert not path.exists()
        assert alive not in registry.stale(runtime_directory())


def test_doctor_names_and_removes_the_socket_of_a_killed_process(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead, contextlib.chdir(tmp_path):
        dead.bind(f"observe-{os.getpid()}-dead.sock")  # another process has its number now
    begun = tmp_path / "observe-1-begun.new"
    begun.touch()
    assert [path.name for path in registry.stale(tmp_path)] == [f"observe-{os.getpid()}-dead.sock"]
    os.utime(begun, (0, 0))
    assert len(registry.stale(tmp_path)) == 2
    assert len(registry.sweep(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_shows_nothing_of_its_parent_s(endpoint: str) -> None:
    with aiflow.Receiver(endpoint):
        parent = own_socket()
        child = os.fork()
        if child == 0:
            shown = [1]
            with contextlib.suppress(BaseException):
                shown = snapshot.snapshot()["sides"]
                server.forget(object())  # nothing of it is the child's to close
            os._exit(len(shown))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert parent.exists()
        assert own()["pid"] == os.getpid()
