"""Processes that are killed or forked, mempools that run dry, clocks that step."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mbufs import everything_returned
from peer import BIG, SLOWLY, MiB, Peer, content, in_the_middle, name, no_slice, send_once
from stalls import Stalls
from subprocesses import environment
from wait import PATIENCE_S, wait_for

import aiflow
from aiflow.errors import PeerLost, SliceTimeout


def seconds_until(condition: Callable[[], object], since: float) -> float:
    wait_for(condition, "the condition")
    return time.monotonic() - since


# ---- 43, 44: kill -9 ----


def send_forever(pipe: Connection, endpoint: str, nbytes: int) -> None:
    with aiflow.Sender(endpoint, faults=SLOWLY) as tx:
        array = content(43, nbytes)
        while True:
            tx.send({"x": array})


def receive_once(pipe: Connection, endpoint: str, seed: int, nbytes: int) -> None:
    with everything_returned(), aiflow.Receiver(endpoint) as rx:
        pipe.send("open")
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["x"].array, content(seed, nbytes)))
        pipe.recv()


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
    """Stop `pid` for `STOP_S`, or until there is `enough`; what had come by the time that it may run again."""
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
    """A slice that was freed for its silence goes again; either way it comes once, and `send` tells no error."""
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
    """For less than `peer_timeout` it only takes longer; else it is `PeerLost`, and the next slice finds it again."""
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


# ---- 46: mempool empty ----

UNHURRIED = {"link_speed": "4gbit"}  # a quarter of a second for a slice: its middle cannot be missed


def with_pool_of(kind: type, nb_mbufs: int) -> type:
    """A Sender or Receiver whose ports have one pool of so few mbufs that nothing stays in a cache."""

    made: list[Any] = []

    class Pools:
        def __init__(self, *_: Any) -> None:
            """As what it stands in for."""

        def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Any:
            from aiflow._eal import Mempool

            made.append(Mempool("scant", nb_mbufs, frame_size, socket_id, not needs_eal_memory))
            return made[-1]

        def clear(self) -> None:
            """The ports still hold theirs."""

    class Scant(kind):  # type: ignore[misc, valid-type]
        @property
        def scant(self) -> Any:
            if not made:
                raise AttributeError("no port is open yet")
            return made[-1]

    module = sys.modules[kind.__module__]  # in a process of its own
    vars(module).update(_pool_for=Pools(), _Pools=Pools)
    return Scant


HELD_S = 1.0  # the whole slice would take a quarter of it


def hold_all(end: Any, progress: Callable[[], tuple[int, int]]) -> dict[str, Any]:
    """Take every mbuf out of the pool of `end` in mid-slice, for a while: into a ring.

    The one that the loop keeps for its next frame may go round meanwhile, and the slice creep on with it: two thousand
    frames or so in this time, a third of the slice.
    """
    from aiflow import _dp_testing, _eal

    wait_for(lambda: hasattr(end, "scant"), "the first port")
    pool = end.scant
    port, other = _eal.Port.open_ring_pair(name(), pool, nb_rxd=1024)

    def take() -> int:
        taken = 0
        while _dp_testing.inject(port, [bytes(60)]):
            taken += 1
        return taken

    in_the_middle(progress)
    held, until = 0, time.monotonic() + HELD_S
    while time.monotonic() < until:
        held += end._loop.between(take)  # while no burst is under way
        time.sleep(0.001)
    facts = {"held": held, "in_use": pool.in_use, "nb_mbufs": pool.nb_mbufs, "after": progress()[0]}
    while _dp_testing.drain(other):
        pass
    port.close()
    other.close()
    return facts


def scant_sender(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), with_pool_of(aiflow.Sender, 64)(endpoint, **UNHURRIED) as tx:
        ticket = tx.send({"x": content(47, BIG)}, wait=False)
        pipe.send(hold_all(tx, lambda: ticket.progress))
        pipe.send(ticket.result(timeout=PATIENCE_S).nbytes)


def scant_receiver(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), with_pool_of(aiflow.Receiver, 64)(endpoint) as rx:
        pipe.send("open")
        pipe.send(hold_all(rx, lambda: rx.progress))
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["x"].array, content(48, BIG)))
        pipe.recv()


def was_empty(facts: dict[str, Any]) -> bool:
    return bool(0 < facts["after"] < BIG // 2 and facts["in_use"] >= facts["nb_mbufs"] - 1)


def test_fault_46_an_empty_mempool_of_the_sender_costs_time_only() -> None:
    endpoint = f"local:{name()}"
    with Peer(receive_once, endpoint, 47, BIG) as receiver, Peer(scant_sender, endpoint) as sender:
        assert receiver.hear() == "open"
        facts = sender.hear()
        assert was_empty(facts), facts
        assert receiver.hear() is True
        assert sender.hear() == BIG
        receiver.tell("close")
        sender.ends()
        receiver.ends()


def test_fault_46_an_empty_mempool_of_the_receiver_costs_time_only() -> None:
    endpoint = f"local:{name()}"
    with Peer(scant_receiver, endpoint) as receiver, Peer(send_once, endpoint, 48, BIG, UNHURRIED) as sender:
        assert receiver.hear() == "open"
        facts = receiver.hear()
        assert was_empty(facts), facts
        assert receiver.hear() is True
        assert sender.hear() == BIG
        sender.ends()
        receiver.tell("close")
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


# ---- 52: clock step ----

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static volatile long ahead;

void step_clock(long seconds) { ahead += seconds; }

int clock_gettime(clockid_t clock, struct timespec *t)
{
    static int (*real)(clockid_t, struct timespec *);
    int rc;

    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    rc = real(clock, t);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        t->tv_sec += ahead;
    return rc;
}

time_t time(time_t *out)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec t;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    out->tv_sec = t.tv_sec;
    out->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""


def step_clock(seconds: int) -> float:
    """Step this process's wall clock; by how much did it move against the monotonic one?"""
    before = time.time() - time.monotonic()
    ctypes.CDLL(None).step_clock(ctypes.c_long(seconds))
    return time.time() - time.monotonic() - before


def send_while_the_clock_steps(pipe: Connection, endpoint: str) -> None:
    with aiflow.Sender(endpoint, peer_timeout=2, faults=SLOWLY) as tx:
        wait_for(lambda: tx.receiver, "the receiver")
        for step in (3600, -7200):
            ticket = tx.send({"x": content(52, BIG // 2)}, wait=False)
            at_step = in_the_middle(lambda ticket=ticket: ticket.progress)
            stepped = step_clock(step)
            middle = ticket.progress[0] < at_step[1]
            pipe.send((stepped, middle, ticket.result(timeout=PATIENCE_S).nbytes))
        pipe.recv()
        array = content(52, BIG // 2)
        with Stalls() as stalls:
            started = time.monotonic()
            ticket = tx.send({"x": array}, wait=False)  # there is no memory for it
            step_clock(3600)
            try:
                ticket.result(timeout=1.5)
            except SliceTimeout:
                pipe.send((time.monotonic() - started, stalls.allowance))
        ticket.cancel()


def receive_while_the_clock_steps(pipe: Connection, endpoint: str) -> None:
    with aiflow.Receiver(endpoint, memory=BIG // 2 + MiB, peer_timeout=2) as rx:
        pipe.send("open")
        for step in (3600, -7200):
            stepped = step_clock(step) if not pipe.send(in_the_middle(lambda: rx.progress)) else 0
            held = rx.recv(timeout=PATIENCE_S)
            latency = held["x"].latency_ns
            pipe.send((stepped, np.array_equal(held["x"].array, content(52, BIG // 2)), latency))
            if step > 0:
                del held
        timer = threading.Timer(0.3, step_clock, (3600,))
        timer.start()
        with Stalls() as stalls:
            started = time.monotonic()
            pipe.send(no_slice(rx, 1.0) and (time.monotonic() - started, stalls.allowance))
        timer.join()
        pipe.recv()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, to build the clock that steps")
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_fault_52_a_clock_step_changes_neither_transfer_nor_timeouts(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    clock = tmp_path / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", clock, tmp_path / "clock.c", "-ldl"], check=True)
    endpoint = f"local:{name()}"
    monkeypatch.setenv("LD_PRELOAD", str(clock))  # both have a clock of their own; one steps it
    with (
        Peer(receive_while_the_clock_steps, endpoint) as receiver,
        Peer(send_while_the_clock_steps, endpoint) as sender,
    ):
        monkeypatch.delenv("LD_PRELOAD")
        assert receiver.hear() == "open"
        for step in (3600, -7200):
            at_step, total = receiver.hear()
            assert 0 < at_step < total
            stepped, same, _ = receiver.hear()
            assert abs(stepped - step) < 1
            assert same
            stepped, middle, nbytes = sender.hear()
            assert abs(stepped - step) < 1
            assert middle
            assert nbytes == BIG // 2
        seconds, allowance = receiver.hear()
        assert 1.0 <= seconds < 1.5 + allowance
        sender.tell("go on")
        seconds, allowance = sender.hear()
        assert 1.5 <= seconds < 2.0 + allowance
        sender.ends()
        receiver.tell("close")
        receiver.ends()
