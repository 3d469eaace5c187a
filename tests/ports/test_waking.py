"""An idle process wakes for an event, and does not look for one."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from open_ports import ports_of
from peer import name
from wait import PATIENCE_S, settle

import aiflow
from aiflow import _eal
from aiflow._dp_testing import gate_turns


def idle_turns(seconds: float) -> int:
    """Turns that DPDK's interrupt thread takes meanwhile."""
    before = gate_turns()
    time.sleep(seconds)
    return gate_turns() - before


def test_the_interrupt_thread_takes_no_turn_while_no_peer_comes_or_goes() -> None:
    endpoint = f"local:{name()}*2"
    with aiflow.Receiver(endpoint) as rx:
        with aiflow.Sender(endpoint) as tx:
            ticket = tx.send([b"x"], wait=False)
            rx.recv(timeout=PATIENCE_S).release()
            ticket.result(PATIENCE_S)
            assert settle(lambda: idle_turns(0.1) == 0)
            assert idle_turns(1) == 0
        assert settle(lambda: idle_turns(0.1) == 0)  # the sender's goodbye took some
        assert idle_turns(1) == 0
        with aiflow.Sender(endpoint) as tx:  # the next one connects all the same
            ticket = tx.send([b"x"], wait=False)
            rx.recv(timeout=PATIENCE_S).release()
            ticket.result(PATIENCE_S)


def test_local_peers_share_a_doorbell_that_rings_sleepers_only() -> None:
    endpoint = f"local:{name()}*2"
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint) as tx:
        ticket = tx.send([b"x"], wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        ticket.result(PATIENCE_S)
        bells = [{port.doorbell for port in ports_of(side)} for side in (tx, rx)]
        assert [len(each) for each in bells] == [1, 1]  # one for all ports of a connection
        (one,), (other,) = bells
        assert all(port.wakes and port.wake_fds == [port.doorbell.fileno()] for port in ports_of(tx) + ports_of(rx))
        assert one is not other
        for _ in range(50):
            time.sleep(0.02)  # both loops fall asleep
            ticket = tx.send([b"x"], wait=False)
            rx.recv(timeout=PATIENCE_S).release()
            ticket.result(PATIENCE_S)
        assert 10 <= one.rung <= 500  # for a slice three frames at most find a sleeper
        assert other.rung <= 500


def test_peers_wake_a_worker_that_slept_through_a_call() -> None:
    endpoint = f"local:{name()}"
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint) as tx:
        tx.send([b"x"])
        rx.recv(timeout=PATIENCE_S).release()
        bell = ports_of(tx)[0].doorbell

        def rings() -> bool:
            time.sleep(0.03)  # the worker falls asleep
            with pytest.raises(aiflow.SliceTimeout):
                rx.recv(timeout=0.001)  # it drives the loop, and leaves it to a worker that sleeps
            before = bell.rung
            tx.send([b"x"])
            rx.recv(timeout=PATIENCE_S).release()
            return bell.rung > before

        assert sum(rings() for _ in range(20)) >= 15  # in the others the worker had something to do just then


def test_an_idle_pair_sleeps() -> None:
    endpoint = f"local:{name()}"
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint) as tx:
        ticket = tx.send([b"x"], wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        ticket.result(PATIENCE_S)

        def share(seconds: float) -> float:
            before = cpu_seconds()
            time.sleep(seconds)
            return (cpu_seconds() - before) / seconds

        assert settle(lambda: share(1) < 0.004)  # of a core; both sides, all threads, a busy machine


def cpu_seconds() -> float:
    """Processor time of all threads of this process."""
    spent = 0
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/schedstat") as stat:
            spent += int(stat.read().split()[0])
    return spent / 1e9


def test_receive_interrupts_are_used_where_a_driver_has_an_eventfd_for_them(tmp_path: Path) -> None:
    pool = _eal.Mempool("interrupts", 4096, 2048)
    path = tmp_path / "s"
    ports = []
    try:
        for device, args in (
            ("net_vhost_interrupts", f"iface={path},queues=1"),
            ("net_virtio_user_interrupts", f"path={path},queues=1,queue_size=256,mrg_rxbuf=0"),
            ("net_null_interrupts", "size=64"),
        ):
            ports.append(_eal.Port.open(device, device, args, pool, rx_interrupts=True))
        _, virtio, null = ports
        assert virtio.wakes
        assert len(virtio.wake_fds) == 1
        assert not null.wakes  # it is polled
    finally:
        for port in reversed(ports):
            port.close()
