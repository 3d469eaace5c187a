"""Processes that are killed, stopped or forked. Faults 43, 44, 45 and 50."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mbufs import everything_returned
from peer import BIG, SLOWLY, MiB, Peer, content, in_the_middle, name, no_slice, receive_once, send_once
from stalls import Stalls
from subprocesses import environment
from wait import PATIENCE_S, wait_for

import aiflow
from aiflow.errors import PeerLost


def seconds_until(condition: Callable[[], object], since: float) -> float:
    wait_for(condition, "the condition")
    return time.monotonic() - since


# ---- 43, 44: kill -9 ----


def send_forever(pipe: Connection, endpoint: str, nbytes: int) -> None:
    with aiflow.Sender(endpoint, faults=SLOWLY) as tx:
        array = content(43, nbytes)
        while True:
            tx.send({"x": array})


def receive_and_hold(pipe: Connection, endpoint: str) -> None:
    with aiflow.Receiver(endpoint) as rx:
        pipe.send("open")
        for _ in rx:
            pass


def receiver_that_kills(pipe: Connection, endpoint: str, assemble: bool) -> None:
    with everything_returned(), aiflow.Receiver(endpoint, memory="1GiB", assemble=assemble) as rx:
        pipe.send("open")
        sender = pipe.recv()
        taken = 0

        def progress() -> tuple[int, int]:
            nonlocal taken
            while rx.counters["slices"] > taken:  # not met in its middle: it is whole, and not what we want
                rx.recv(timeout=PATIENCE_S).release()
                taken += 1
            return rx.progress

        at_kill, total = in_the_middle(progress)
        slices = rx.counters["slices"]
        os.kill(sender, signal.SIGKILL)
        killed = time.monotonic()
        with Stalls() as stalls:
            freed = seconds_until(lambda: rx.memory_used == 0, killed) - stalls.allowance
        pipe.send((at_kill, rx.progress[0], total, freed))
        pipe.send(no_slice(rx, 0.5) and rx.counters["slices"] == slices)
        pipe.recv()
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["x"].array, content(44, 32 * MiB)))
    pipe.send("nothing is out")


@pytest.mark.parametrize(
    ("form", "assemble"),
    [("local:{}", True), ("local:{}*4", True), ("local:{}*4", False), ("vhost:{}*2", True)],
)
def test_fault_43_a_killed_senders_half_slice_is_freed_and_never_shown(form: str, assemble: bool) -> None:
    endpoint = form.format(name())
    with Peer(receiver_that_kills, endpoint, assemble) as receiver:
        assert receiver.hear() == "open"
        with Peer(send_forever, endpoint, BIG) as sender:
            receiver.tell(sender.pid)
            at_kill, in_the_end, total, freed = receiver.hear()
            assert 0 < at_kill <= in_the_end < total  # killed in mid-slice
            assert sender.killed()
            assert freed <= 1.0
            assert receiver.hear() is True  # never delivered
        with Peer(send_once, endpoint, 44, 32 * MiB) as other:
            receiver.tell("go on")
            assert receiver.hear() is True
            assert other.hear() == 32 * MiB
            other.ends()
        assert receiver.hear() == "nothing is out"
        receiver.ends()


def receive_and_count(pipe: Connection, endpoint: str) -> None:
    from aiflow._ports.runtime_dir import endpoint_directory
    from aiflow.config import parse_endpoints

    with everything_returned(), aiflow.Receiver(endpoint) as rx:
        pipe.send("open")
        rx.recv(timeout=PATIENCE_S).release()
        pipe.send(str(endpoint_directory(parse_endpoints(endpoint)[0]) / "memif"))
        rx.recv(timeout=PATIENCE_S).release()


def send_and_stay(pipe: Connection, endpoint: str) -> None:
    with aiflow.Sender(endpoint) as tx:
        for _ in range(2):
            tx.send({"x": content(1, 1000)}, timeout=PATIENCE_S)
            pipe.recv()


def died_unanswered(door: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(door)
        try:
            client.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return True
    return False


def test_fault_43_a_sender_that_dies_while_it_connects_does_not_take_the_receiver_with_it() -> None:
    """A connection that is dead before memif's listener answers it makes DPDK's interrupt thread panic."""
    endpoint = f"memif:{name()}"
    with Peer(receive_and_count, endpoint) as receiver, Peer(send_and_stay, endpoint) as sender:
        assert receiver.hear() == "open"
        door = receiver.hear()
        assert sum(died_unanswered(door) for _ in range(100)) > 50
        sender.tell("once more")
        receiver.ends()
        sender.tell("close")
        sender.ends()


def sender_that_kills(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), aiflow.Sender(endpoint, peer_timeout=PATIENCE_S, faults=SLOWLY) as tx:
        buffer = bytearray(content(45, BIG))
        victim = pipe.recv()
        ticket = tx.send({"x": buffer}, wait=False)
        at_kill, total = in_the_middle(lambda: ticket.progress)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        with Stalls() as stalls:
            try:
                ticket.result(timeout=PATIENCE_S)
            except PeerLost as error:
                seconds = time.monotonic() - killed - stalls.allowance
                pipe.send((at_kill, ticket.progress[0], total, seconds, error.delivered, str(error)))
        buffer.clear()  # refused while anything may read it
        report = tx.send({"x": content(46, 32 * MiB)}, timeout=PATIENCE_S)
        pipe.send(report.nbytes)
    pipe.send("nothing is out")


@pytest.mark.parametrize("form", ["local:{}", "local:{}*4", "vhost:{}*2"])
def test_fault_44_a_killed_receiver_is_peer_lost_and_the_next_one_is_found(form: str) -> None:
    endpoint = form.format(name())
    with Peer(sender_that_kills, endpoint) as sender:
        with Peer(receive_and_hold, endpoint) as victim:
            assert victim.hear() == "open"
            sender.tell(victim.pid)
            at_kill, acked, total, seconds, delivered, message = sender.hear()
            assert victim.killed()
        assert 0 < at_kill <= acked < total  # killed in mid-slice
        assert seconds < 5
        assert delivered is not True
        assert "send" in message  # it says what to do next
        with Peer(receive_once, endpoint, 46, 32 * MiB) as receiver:
            assert receiver.hear() == "open"
            assert receiver.hear() is True
            assert sender.hear() == 32 * MiB
            assert sender.hear() == "nothing is out"
            sender.ends()


# ---- 45: SIGSTOP, SIGCONT ----


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


STOP_S = 5.0


def stop_in_mid_slice(
    pid: int, progress: Callable[[], tuple[int, int]], enough: Callable[[], object] | None
) -> dict[str, Any]:
    """Stop `pid` for `STOP_S`, or until there is `enough`; return the progress at both ends of the stop."""
    at_stop, total = in_the_middle(progress)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: is_stopped(pid), "the process to be stopped")
        since = time.monotonic()
        wait_for(enough or (lambda: time.monotonic() >= since + STOP_S), "the end of the stop", PATIENCE_S)
        return {"at_stop": at_stop, "at_end": progress()[0], "total": total, "seconds": time.monotonic() - since}
    finally:
        os.kill(pid, signal.SIGCONT)


def in_mid_slice(facts: dict[str, Any]) -> bool:
    return bool(0 < facts["at_stop"] <= facts["at_end"] < facts["total"])


def sender_to_be_stopped(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), aiflow.Sender(endpoint, faults=SLOWLY) as tx:
        pipe.recv()
        pipe.send(tx.send({"x": content(45, BIG)}, timeout=PATIENCE_S).nbytes)


def receiver_that_stops(pipe: Connection, endpoint: str, peer_timeout: float) -> None:
    with everything_returned(), aiflow.Receiver(endpoint, peer_timeout=peer_timeout) as rx:
        pipe.send("open")
        freed = None if peer_timeout > STOP_S else (lambda: rx.memory_used == 0)
        pipe.send(stop_in_mid_slice(pipe.recv(), lambda: rx.progress, freed))
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["x"].array, content(45, BIG)))
        pipe.recv()
        pipe.send(rx.counters["slices"])


@pytest.mark.parametrize("peer_timeout", [10.0, 1.0], ids=["for_5_s", "until_its_slice_is_freed"])
def test_fault_45_a_sender_stopped_in_mid_slice_goes_on(peer_timeout: float) -> None:
    """A slice that was freed for silence is retransmitted. It arrives once, and `send` raises nothing."""
    endpoint = f"local:{name()}*2"
    with (
        Peer(receiver_that_stops, endpoint, peer_timeout) as receiver,
        Peer(sender_to_be_stopped, endpoint) as sender,
    ):
        assert receiver.hear() == "open"
        receiver.tell(sender.pid)
        sender.tell("go")
        facts = receiver.hear()
        assert in_mid_slice(facts), facts
        assert facts["seconds"] >= min(peer_timeout, STOP_S) * 0.9, facts
        assert receiver.hear() is True
        assert sender.hear() == BIG
        sender.ends()
        receiver.tell("count")
        assert receiver.hear() == 1
        receiver.ends()


def sender_that_stops(pipe: Connection, endpoint: str, peer_timeout: float) -> None:
    with everything_returned(), aiflow.Sender(endpoint, peer_timeout=peer_timeout, faults=SLOWLY) as tx:
        victim = pipe.recv()
        wait_for(lambda: tx.receiver, "the receiver")
        ticket = tx.send({"x": content(44, BIG)}, wait=False)
        pipe.send(stop_in_mid_slice(victim, lambda: ticket.progress, None if peer_timeout > STOP_S else ticket.done))
        try:
            pipe.send(ticket.result(timeout=PATIENCE_S).nbytes)
        except PeerLost as error:
            pipe.send((error.delivered, str(error)))
        wait_for(lambda: tx.receiver, "the receiver again")
        pipe.send(tx.send({"x": content(45, 32 * MiB)}, timeout=PATIENCE_S).nbytes)


def receiver_to_be_stopped(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), aiflow.Receiver(endpoint) as rx:
        pipe.send("open")
        expected = [(44, BIG), (45, 32 * MiB)][-pipe.recv() :]
        for seed, nbytes in expected:
            with rx.recv(timeout=PATIENCE_S) as time_slice:
                pipe.send(np.array_equal(time_slice["x"].array, content(seed, nbytes)))
        pipe.recv()
        pipe.send(rx.counters["slices"])


@pytest.mark.parametrize("peer_timeout", [10.0, 2.0], ids=["for_5_s", "until_it_counts_as_lost"])
def test_fault_45_a_receiver_stopped_in_mid_slice(peer_timeout: float) -> None:
    """Below `peer_timeout` the slice takes longer. Beyond it `send` raises `PeerLost`; the next one is delivered."""
    endpoint = f"local:{name()}*2"
    with (
        Peer(receiver_to_be_stopped, endpoint) as receiver,
        Peer(sender_that_stops, endpoint, peer_timeout) as sender,
    ):
        assert receiver.hear() == "open"
        sender.tell(receiver.pid)
        facts = sender.hear()
        assert in_mid_slice(facts), facts
        assert facts["seconds"] >= min(peer_timeout, STOP_S) * 0.9, facts
        outcome, arrives = sender.hear(), 2
        if peer_timeout > STOP_S:
            assert outcome == BIG
        else:
            assert outcome[0] is False
            assert "no sign of life" in outcome[1]
            arrives = 1
        receiver.tell(arrives)
        assert [receiver.hear() for _ in range(arrives)] == [True] * arrives
        assert sender.hear() == 32 * MiB
        sender.ends()
        receiver.tell("count")
        assert receiver.hear() == arrives
        receiver.ends()


# ---- 50: fork ----


def test_fault_50_a_forked_child_is_told_and_leaves_its_parents_ports_alone() -> None:
    code = """
    import gc, os, sys
    import numpy as np
    import aiflow
    from aiflow.errors import EalError

    with aiflow.pair() as (tx, rx):
        tx.send({"x": np.arange(9)}, wait=False)
        held = rx.recv(timeout=20)["x"].array
        pid = os.fork()
        if pid == 0:
            told = 0
            for call in (lambda: tx.send({"x": b"1"}), lambda: rx.recv(timeout=1), lambda: next(rx),
                         lambda: aiflow.Receiver("local:forked"), lambda: aiflow.pair()):
                try:
                    call()
                except EalError as error:
                    told += "spawn" in str(error)
            tx.close()
            rx.close()
            held_too = int(held.sum())
            del held
            gc.collect()
            print("child", told, held_too, flush=True)
            sys.exit(7)  # with all that the interpreter does at its end
        _, status = os.waitpid(pid, 0)
        ticket = tx.send({"x": np.arange(5)}, wait=False)
        print("parent", os.waitstatus_to_exitcode(status), rx.recv(timeout=20)["x"].array.sum())
        ticket.result(20)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(), capture_output=True, text=True, timeout=60
    )
    # From 3.12 on Python itself warns of a fork beside threads.
    assert [line for line in done.stderr.splitlines() if "DeprecationWarning" not in line] == []
    assert done.stdout.splitlines() == ["child 5 36", "parent 7 10"]
