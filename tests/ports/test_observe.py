"""What a process shows of its Senders and Receivers to readers outside, and that it costs and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import Peer
from subprocesses import environment
from wait import PATIENCE_S, has_stopped, settle, wait_for

import aiflow
from aiflow._observe import catalogue, kernel, readers, server, watching
from aiflow._observe.snapshot import FORMAT
from aiflow._ports.runtime_dir import runtime_directory

NBYTES = 300_000


def sockets() -> list[Path]:
    return sorted(runtime_directory().glob(f"observe-{os.getpid()}-*"))


def own() -> dict[str, Any]:
    """The snapshot of this process, as a reader gets it."""
    (found,) = [document for document in readers.gather() if document["pid"] == os.getpid()]
    return found


def side(document: dict[str, Any], role: str) -> dict[str, Any]:
    (found,) = [side for side in document["sides"] if side["role"] == role]
    return found


def deliver(tx: aiflow.Sender, rx: aiflow.Receiver, count: int) -> list[aiflow.SliceReport]:
    reports = []
    for number in range(count):
        ticket = tx.send([np.full(NBYTES, number, np.uint8), np.zeros(7)], wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        reports.append(ticket.result(PATIENCE_S))
    return reports


def test_figures_equal_what_the_reports_say(endpoint: str) -> None:
    with aiflow.Receiver(f"{endpoint}*2") as rx, aiflow.Sender(f"{endpoint}*2") as tx:
        reports = deliver(tx, rx, 12)
        document = own()
        sent, received = side(document, "sender")["figures"], side(document, "receiver")["figures"]
        for found in (sent, received):
            assert found["slices"] == len(reports)
            assert found["elements"] == sum(report.elements for report in reports)
            assert found["bytes"] == sum(report.nbytes for report in reports)
        assert sent["slice_frames"] == sum(report.frames_sent for report in reports)
        assert sent["slice_frames_retransmitted"] == sum(report.frames_retransmitted for report in reports)
        assert sent["slice_seconds"] == pytest.approx(sum(report.seconds for report in reports))
        assert sent["slices_failed"] == sent["slices_in_flight"] == 0
        assert received["memory_limit_bytes"] == rx.memory
        assert received["slices_held"] == 0
        ports = {row.name: row for row in tx.port_table}
        for port in side(document, "sender")["ports"]:
            assert port["figures"]["port_transmit_frames"] <= ports[port["name"]].frames
            assert port["figures"]["port_busy_seconds"] < sum(report.seconds for report in reports) + 1
        assert any(port["figures"]["port_busy_seconds"] for port in side(document, "sender")["ports"])


def test_every_figure_of_the_table_has_a_value_in_a_run(endpoint: str) -> None:
    with aiflow.Receiver(endpoint, link_speed="1gbit") as rx, aiflow.Sender(endpoint, link_speed="1gbit") as tx:
        deliver(tx, rx, 1)
        document = own()
        for role in ("sender", "receiver"):
            found = side(document, role)
            views = {"side": [found], "peer": found["peers"], "port": found["ports"]}
            for level, shown in views.items():
                wanted = {figure.name for figure in catalogue.of_level(level, role)}
                assert not wanted or shown
                for view in shown:
                    assert set(view["figures"]) == wanted
    names = [figure.name for figure in catalogue.FIGURES]
    assert len(set(names)) == len(names)


def test_time_is_counted_by_what_the_sender_waits_for(endpoint: str) -> None:
    def waits() -> dict[str, float]:
        found: dict[str, float] = side(own(), "sender")["peers"][0]["figures"]["wait_seconds"]
        return found

    with aiflow.Receiver(endpoint, memory="8MiB", confirm="release") as rx, aiflow.Sender(endpoint) as tx:
        deliver(tx, rx, 1)
        before = waits()
        time.sleep(0.2)  # it offers nothing
        ticket = tx.send({"x": np.zeros(5 << 20, np.uint8)}, wait=False)
        held = rx.recv(timeout=PATIENCE_S)
        time.sleep(0.2)  # its user confirms nothing
        held.confirm()
        ticket.result(PATIENCE_S)
        waiting = tx.send({"x": np.zeros(5 << 20, np.uint8)}, wait=False)  # `held` has the memory that it needs
        wait_for(lambda: side(own(), "receiver")["figures"]["memory_awaited_bytes"] > 0, "a request for memory")
        time.sleep(0.2)
        held.release()
        del held
        rx.recv(timeout=PATIENCE_S).release()
        waiting.result(PATIENCE_S)
        after = waits()
        for state in ("application", "confirmation", "memory"):
            assert 0.18 <= after[state] - before[state] < 2, state  # it hears of each a little later
        assert after["receiver"] == before["receiver"]


def test_the_reader_that_is_slow_and_the_one_that_waits_are_told_apart(endpoint: str) -> None:
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint) as tx:
        deliver(tx, rx, 1)
        before = side(own(), "receiver")["figures"]
        tx.send({"x": np.zeros(1000)}, timeout=PATIENCE_S)
        time.sleep(0.2)  # a whole slice waits
        rx.recv(timeout=PATIENCE_S).release()
        between = side(own(), "receiver")["figures"]
        with pytest.raises(aiflow.SliceTimeout):
            rx.recv(timeout=0.2)
        after = side(own(), "receiver")["figures"]
        assert between["reader_behind_seconds"] - before["reader_behind_seconds"] >= 0.2
        assert between["caller_wait_seconds"] - before["caller_wait_seconds"] < 0.2
        assert after["reader_behind_seconds"] == between["reader_behind_seconds"]
        assert after["caller_wait_seconds"] - between["caller_wait_seconds"] >= 0.19


def test_a_caller_that_waits_is_seen_while_it_waits(endpoint: str) -> None:
    with aiflow.Receiver(endpoint) as rx:

        def wait() -> None:
            with pytest.raises(aiflow.SliceTimeout):
                rx.recv(timeout=1)

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert settle(lambda: side(own(), "receiver")["figures"]["callers_waiting"] == 1)
        waiter.join()
        assert side(own(), "receiver")["figures"]["callers_waiting"] == 0


def test_threads_that_wait_are_told_from_others_of_the_program(endpoint: str) -> None:
    """They drive the loop: the transfer waits for a CPU of theirs, and not for one of another thread."""
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    try:
        with aiflow.Receiver(endpoint) as rx:
            waits = threading.Thread(target=rx.recv)
            waits.start()
            wait_for(lambda: side(own(), "receiver")["callers"] == [waits.native_id], "the thread that waits is told")
            with aiflow.Sender(endpoint, peer_timeout=60) as tx:
                tx.send([b"x"], timeout=60)
                assert side(own(), "sender")["callers"] == [threading.get_native_id()]
            waits.join(PATIENCE_S)
            assert side(own(), "receiver")["callers"] == []  # it has ended
    finally:
        over.set()
        other.join()


def test_the_socket_goes_with_the_last_one(endpoint: str) -> None:
    assert sockets() == []
    with aiflow.Receiver(endpoint):
        (path,) = sockets()
        assert path.stat().st_mode & 0o077 == 0
        with aiflow.Sender(endpoint):
            assert sockets() == [path]
            assert len(own()["sides"]) == 2
        assert len(own()["sides"]) == 1
    assert sockets() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "aiflow-observe"]


def test_it_can_be_switched_off(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server.SWITCH, "0")
    with aiflow.Receiver(endpoint):
        assert sockets() == []


def test_without_a_runtime_directory_ports_open_all_the_same(tmp_path: Path) -> None:
    code = "import aiflow\nwith aiflow.Receiver('ring:x'), aiflow.Sender('ring:x') as tx: print(tx.name)"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o777)
    closed.chmod(0o777)  # others could enter it
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(AIFLOW_RUNTIME_DIR=str(closed)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert list(closed.iterdir()) == []


def test_what_a_killed_process_left_is_removed() -> None:
    code = "import aiflow, os, signal\nrx = aiflow.Receiver('ring:x')\nos.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.Popen([sys.executable, "-c", code], env=environment())
    assert killed.wait(PATIENCE_S) == -9
    left = list(runtime_directory().glob(f"observe-{killed.pid}-*"))
    assert left
    readers.gather()
    assert not any(path.exists() for path in left)


def test_a_forked_child_does_not_answer_for_its_parent(endpoint: str) -> None:
    with aiflow.Receiver(endpoint):
        (path,) = sockets()
        inode = os.stat(path).st_ino
        child = os.fork()
        if child == 0:
            try:
                held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
            except OSError:
                held = []
            listening = [line.split() for line in Path("/proc/net/unix").read_text().splitlines() if str(path) in line]
            os._exit(3 if any(f"socket:[{words[6]}]" in held for words in listening) else 0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert os.stat(path).st_ino == inode  # the child's exit has not removed it
        assert own()["pid"] == os.getpid()


def compute_and_stay(pipe: Connection, endpoint: str) -> None:
    """A reader that is in a long call into C, without the GIL."""
    with aiflow.Receiver(endpoint):
        pipe.send(os.getpid())
        pipe.recv()
        a = np.random.default_rng(1).random((3000, 3000))
        pipe.send("computing")
        until = time.monotonic() + 2
        while time.monotonic() < until:
            a @ a
        pipe.send("done")
        pipe.recv()


def test_a_process_in_a_long_call_answers(endpoint: str) -> None:
    with Peer(compute_and_stay, endpoint) as peer:
        pid = peer.hear()
        (path,) = runtime_directory().glob(f"observe-{pid}-*.sock")
        peer.tell("compute")
        assert peer.hear() == "computing"
        with readers.Connection(path) as connection:
            took = []
            for _ in range(5):
                begun = time.monotonic()
                assert connection.snapshot()["pid"] == pid
                took.append(time.monotonic() - begun)
        print(f"{max(took) * 1e3:.1f} ms at most")
        assert max(took) < 1.5
        assert peer.hear() == "done"
        peer.tell("end")
        peer.ends()


def test_a_reader_that_stays_or_asks_nonsense_blocks_nothing(endpoint: str) -> None:
    with aiflow.Receiver(endpoint):
        (path,) = sockets()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rude:
            rude.connect(str(path))
            rude.sendall(b"format c:\n")
            rude.settimeout(PATIENCE_S)
            assert json.loads(rude.recv(4096)) == {"error": "ask for: snapshot"}
            rude.sendall(b"x" * 1000)  # never a line: it is sent away
            assert settle(lambda: closed(rude))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.connect(str(path))
            begun = time.monotonic()
    assert time.monotonic() - begun < 1.5  # closing does not wait for it


def closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(4096) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("leave", [aiflow.Receiver.close, lambda rx: rx.__exit__(None, None, None)])
def test_after_close_it_is_shown_no_more(endpoint: str, leave: Callable[[aiflow.Receiver], None]) -> None:
    with aiflow.Receiver(f"{endpoint}-stays"):
        rx = aiflow.Receiver(endpoint)
        assert len(own()["sides"]) == 2
        leave(rx)
        assert len(own()["sides"]) == 1


# ---- several of one name, and processes that do not answer ----


def test_sides_of_one_name_are_told_apart(endpoint: str) -> None:
    with aiflow.Receiver(f"{endpoint}-1", name="rx") as first, aiflow.Receiver(f"{endpoint}-2", name="rx") as second:
        with aiflow.Sender(f"{endpoint}-1", name="one") as tx:
            older = own()
            deliver(tx, first, 3)
            newer = own()
        grown = {
            side["number"]: side["figures"]["slices"] - then["figures"]["slices"]
            for then, side, _ in readers.changes(older, newer)
            if side["name"] == "rx"
        }
        assert grown == {1: 3, 2: 0}
        first.close()
        assert [side["number"] for side in own()["sides"]] == [2]  # it keeps its number
        with aiflow.Receiver(f"{endpoint}-1", name="rx"):
            renewed = own()
            assert sorted(side["number"] for side in renewed["sides"]) == [1, 2]
            assert len(list(readers.changes(newer, renewed))) == 1  # the new one is not the one before
        assert second.name == "rx"


def test_a_flow_takes_no_figures_of_a_receiver_that_may_be_another(endpoint: str) -> None:
    with (
        aiflow.Receiver(f"{endpoint}-1", name="rx") as first,
        aiflow.Receiver(f"{endpoint}-2", name="rx"),
        aiflow.Sender(f"{endpoint}-1", name="one") as tx,
    ):
        deliver(tx, first, 1)
        flows = [flow for flow in watching.watch(0.5)[0] if {flow.sender, flow.receiver} & {"one", "rx"}]
    assert sorted((flow.sender, flow.receiver) for flow in flows) == [("", "rx"), ("", "rx"), ("one", "rx")]
    (of_sender,) = [flow.verdict.measures for flow in flows if flow.sender]
    assert of_sender.reader_waits != of_sender.reader_waits  # NaN: which of both it is cannot be known


def open_and_stay(pipe: Connection, endpoint: str) -> None:
    with aiflow.Receiver(endpoint, name="rx"):
        pipe.send(os.getpid())
        pipe.recv()


def test_processes_that_hang_are_named_and_cost_one_wait(endpoint: str) -> None:
    with Peer(open_and_stay, f"{endpoint}-1") as one, Peer(open_and_stay, f"{endpoint}-2") as two:
        pids = {one.hear(), two.hear()}
        with aiflow.Receiver(endpoint):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                wait_for(lambda: all(map(has_stopped, pids)), "all threads to stop")
                begun = time.monotonic()
                seen = readers.look(patience=2)
                assert 2 <= time.monotonic() - begun < 4  # not one after the other
                for _ in range(20):  # as many readers as may wait there, and more
                    more = readers.look(patience=0)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        assert [document["pid"] for document in seen.documents if document["pid"] in {os.getpid(), *pids}] == [
            os.getpid()
        ]
        for found in (seen, more):
            for pid in pids:
                assert len([line for line in found.silent if f"process {pid} does not answer" in line]) == 1
        wait_for(lambda: pids <= {document["pid"] for document in readers.gather()}, "answers afterwards")
        one.tell("end")
        two.tell("end")
        one.ends()
        two.ends()


@pytest.mark.root
def test_a_process_of_a_container_has_the_number_that_the_reader_sees(endpoint: str) -> None:
    code = f"import os, aiflow\nwith aiflow.Receiver({endpoint!r}): print(os.getpid(), flush=True); input()"
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "1\n"  # its own number
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (found,) = [document for document in readers.gather() if document["pid"] == int(child)]
        assert found["inner_pid"] == 1
        inner = found["sides"][0]["thread"]
        loop = kernel.inner_numbers(int(child))[inner]
        assert loop != inner
        assert loop in kernel.threads_of(int(child))
        asker = (
            "from aiflow._observe.readers import gather\n"
            f"print([document['pid'] for document in gather() if document.get('inner_pid') == {os.getpid()}])"
        )
        with aiflow.Receiver(f"{endpoint}-2"):  # and for a container, that of a process outside is none
            inside = subprocess.run(
                ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", asker],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
        namespace = os.stat("/proc/self/ns/pid").st_ino  # containers of a pod have one name of a host
        assert inside.stdout == f"['{os.getpid()}@{namespace}']\n", inside.stderr
    finally:
        process.communicate("\n", timeout=PATIENCE_S)


def test_another_version_is_named_and_remains_of_its_start_go(endpoint: str) -> None:
    directory = runtime_directory()
    unfinished = [directory / "observe-1-old.new", directory / "observe-1-young.new"]
    for path in unfinished:
        path.touch()
    os.utime(unfinished[0], (0, 0))
    path = directory / f"observe-{os.getpid()}-other.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(path))
            other.listen()
            found: list[readers.Seen] = []
            looker = threading.Thread(target=lambda: found.append(readers.look()))
            looker.start()
            with other.accept()[0] as asked:
                assert asked.recv(100) == b"snapshot\n"
                asked.sendall(json.dumps({"format": FORMAT + 1, "pid": os.getpid()}).encode() + b"\n")
                looker.join()
        assert any("has another version of aiflow" in line for line in found[0].silent)
        assert [each.exists() for each in unfinished] == [False, True]
    finally:
        path.unlink(missing_ok=True)
        unfinished[1].unlink(missing_ok=True)
