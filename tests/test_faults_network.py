"""FAULTS.md, part B: a lossy network costs time, never data. Faults made in the frames we send (`faults=`), over memif.

Loss at a switch (24) is in test_lossy.py, MTUs (42) in test_af_packet.py, and everything again on a simulated clock in
test_core.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from conftest import settle

import aiflow
from aiflow.errors import PeerLost, SliceTimeout

Faults = dict[str, Any] | None
rng = np.random.default_rng(17)
IMAGES = [rng.integers(0, 256, int(n), dtype=np.uint8) for n in rng.integers(100, 60_000, 24)]
SMALL = [b"", b"x", b"small", bytes(64)]


@contextmanager
def peers(endpoint: str, tx: Faults = None, rx: Faults = None, **options: Any) -> Iterator:
    """A sender and a receiver whose frames suffer these faults."""
    with (
        aiflow.Receiver(endpoint, faults=rx, **options) as receiver,
        aiflow.Sender(endpoint, faults=tx) as sender,
    ):
        yield sender, receiver


def exchange(tx: aiflow.Sender, rx: aiflow.Receiver, slices: int = 6) -> list[aiflow.SliceReport]:
    """Several slices, the next one under way while one is looked at; every byte is compared."""
    tickets, reports = [], []
    sent = [[*IMAGES[k % 3 :], *SMALL] if k % 3 else SMALL for k in range(slices)]
    for elements in sent:
        tickets.append(tx.send(elements, wait=False))
    for k, elements in enumerate(sent):
        with rx.recv(timeout=30) as time_slice:
            assert time_slice.slice_id == k + 1  # each once, in order
            assert [e.tobytes() for e in time_slice] == [bytes(e) for e in elements]
        reports.append(tickets[k].result(30))
    return reports


def faults_of(side: Any) -> dict[str, int]:
    return side._loop.fault_counts()


@pytest.mark.parametrize("drop", [0.001, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("nb_ports", [1, 4])
def test_fault_24_random_loss(name, drop, nb_ports) -> None:
    fault = {"drop": drop, "seed": 3}
    # Small frames: at a thousandth there must be thousands of them.
    with peers(f"local:{name}*{nb_ports}", fault, {"drop": drop, "seed": 4}, frame_size=1514) as (tx, rx):
        reports = exchange(tx, rx, 3 if drop > 0.05 else 9)
        assert faults_of(tx)["dropped"] > 0
        assert sum(report.frames_retransmitted for report in reports) > 0


@pytest.mark.parametrize("kind", ["HELLO", "MANIFEST", "DATA", "PACKED", "CLOSE", "BYE"])
def test_fault_26_first_frame_lost(endpoint, kind) -> None:
    """The first of every kind that a sender sends."""
    with peers(endpoint, {"drop_first": 1, "kinds": (kind,)}) as (tx, rx):
        exchange(tx, rx, 3)
        tx.close()
        assert faults_of(tx)["dropped"] == 1


@pytest.mark.parametrize("kind", ["HELLO", "GRANT", "FEEDBACK"])
def test_fault_26_first_answer_lost(endpoint, kind) -> None:
    with peers(endpoint, None, {"drop_first": 1, "kinds": (kind,)}) as (tx, rx):
        exchange(tx, rx, 3)
        assert faults_of(rx)["dropped"] == 1


@pytest.mark.parametrize("nbytes", [100_000, 1_000_000])
def test_fault_27_last_frame_lost(endpoint, nbytes) -> None:
    """Nothing follows that could betray the hole: the tail probe finds it, within milliseconds and not seconds."""
    with peers(endpoint, {"drop_first": 3, "kinds": ("CLOSE",)}) as (tx, rx):
        start = time.monotonic()
        ticket = tx.send([bytes(nbytes)], wait=False)
        with rx.recv(timeout=20) as time_slice:
            assert time_slice.nbytes == nbytes
        assert ticket.result(20).frames_retransmitted >= 3
        assert faults_of(tx)["dropped"] == 3
        assert tx.counters["probes"] > 0
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("nb_ports", [1, 4])
def test_fault_28_all_feedback_lost_for_50_ms(name, nb_ports) -> None:
    faults = {"drop_for": 0.05, "kinds": ("GRANT", "FEEDBACK")}
    with peers(f"local:{name}*{nb_ports}", None, faults) as (tx, rx):
        reports = exchange(tx, rx)
        assert faults_of(rx)["dropped"] > 0
        assert max(report.seconds for report in reports) < 5


@pytest.mark.parametrize("nb_ports", [1, 4])
def test_fault_31_every_frame_ten_times(name, nb_ports) -> None:
    with peers(f"local:{name}*{nb_ports}", {"copies": 10}, {"copies": 10}) as (tx, rx):
        exchange(tx, rx)
        assert faults_of(tx)["repeated"] > 50
        assert rx.counters["replay"] > 50
        assert rx.counters["slices"] == 6  # each once


def test_corrupted_frames_are_lost_frames(endpoint) -> None:
    """Row 16 between real peers: one flipped bit in one frame of fifty."""
    with peers(endpoint, {"corrupt": 0.02, "seed": 5}, frame_size=1514) as (tx, rx):
        exchange(tx, rx)
        assert faults_of(tx)["corrupted"] > 0
        assert sum(rx.counters[reason] for reason in ("crc", "dst_mac", "broadcast", "src_mac", "kind", "length")) > 0


@pytest.mark.parametrize("assemble", [True, False], ids=["assembled", "kept"])
def test_fault_41_receiver_that_stops_reading(endpoint, assemble) -> None:
    """Credit goes to zero, the sender waits longer than any peer time-out, nothing is dropped; then it goes on."""
    data = [bytes([k]) * 3_000_000 for k in range(6)]
    with (
        aiflow.Receiver(endpoint, memory="8MiB", assemble=assemble) as rx,
        aiflow.Sender(endpoint, peer_timeout=1.0) as tx,
    ):
        assert settle(lambda: tx.receiver, 20)
        tickets = [tx.send([element], wait=False) for element in data]
        tickets[0].result(20)  # what fits is delivered, read or not
        with pytest.raises(SliceTimeout, match="under way"):
            tickets[-1].result(2.5)  # much longer than peer_timeout
        done = sum(ticket.done() for ticket in tickets)
        assert 1 <= done < 4
        assert settle(lambda: rx._loop.starving[0] > 0)  # the fault took place: a request waits for memory
        for element in data:
            with rx.recv(timeout=20) as time_slice:
                assert time_slice[0].tobytes() == element
        assert all(ticket.result(20).elements == 1 for ticket in tickets)
        assert sum(ticket.result(0).frames_retransmitted for ticket in tickets) <= 5


def test_fault_41_send_waits_and_its_timeout_is_kept(endpoint) -> None:
    with aiflow.Receiver(endpoint, memory="8MiB") as rx, aiflow.Sender(endpoint, peer_timeout=1.0) as tx:
        assert settle(lambda: tx.receiver, 20)
        tx.send([bytes(5_000_000)], timeout=20)
        start = time.monotonic()
        with pytest.raises(SliceTimeout) as caught:
            tx.send([bytes(5_000_000)], timeout=1.5)
        assert 1.5 <= time.monotonic() - start < 3
        assert caught.value.delivered is False
        with rx.recv(timeout=20) as time_slice:
            assert time_slice.slice_id == 1
        ticket = tx.send([b"goes on"], wait=False)
        with rx.recv(timeout=20) as time_slice:
            assert time_slice[0].tobytes() == b"goes on"
        ticket.result(20)


def test_nobody_there_is_peer_lost_in_time(endpoint) -> None:
    with aiflow.Sender(endpoint, peer_timeout=0.5) as tx:
        start = time.monotonic()
        with pytest.raises(PeerLost, match="no receiver answered") as caught:
            tx.send([b"x"])
        assert 0.5 <= time.monotonic() - start < 2
        assert caught.value.delivered is False


@pytest.mark.parametrize("nb_senders", [2, 4])
def test_several_lossy_senders_share_a_receiver(endpoint, nb_senders) -> None:
    """Nobody starves, nothing mixes, in memory that holds one slice and a half."""
    errors: list[BaseException] = []

    def send(k: int) -> None:
        try:
            with aiflow.Sender(endpoint, name=f"s{k}", faults={"drop": 0.02, "seed": k + 1}) as tx:
                for i in range(4):
                    tx.send([np.full(1_000_000, 16 * k + i, np.uint8)], timeout=40)
        except BaseException as error:
            errors.append(error)

    with aiflow.Receiver(endpoint, memory="2MiB") as rx:
        threads = [threading.Thread(target=send, args=(k,)) for k in range(nb_senders)]
        for thread in threads:
            thread.start()
        seen: dict[str, list[int]] = {}
        for _ in range(4 * nb_senders):
            with rx.recv(timeout=40) as time_slice:
                array = time_slice[0].array
                assert (array == array[0]).all()
                seen.setdefault(time_slice.sender, []).append(int(array[0]))
                del array
        for thread in threads:
            thread.join(20)
    assert not errors
    assert seen == {f"s{k}": [16 * k + i for i in range(4)] for k in range(nb_senders)}
