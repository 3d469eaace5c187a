"""A lossy network costs time, never data. Faults 24 to 41, made by `faults=` over memif.

Loss at a switch (24) is in test_lossy.py, MTUs (42) in test_af_packet.py. test_core.py has the same faults on a
simulated clock.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from faults import faults_of, paths_of
from peer import content, in_the_middle
from stalls import Stalls
from wait import Deadline, settle

import aiflow
from aiflow._dp_counters import PortCounters
from aiflow.errors import PeerLost, PoolExhausted, SliceTimeout

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


def exchange_until(tx: aiflow.Sender, rx: aiflow.Receiver, slices: int, enough: Callable[[int], object]) -> int:
    """Exchange `slices` slices, repeatedly, until the number of retransmissions is `enough`; return that number.

    The number of frames per port depends on the machine, so a random fault may take a while.
    """
    passed = again = 0
    deadline = Deadline()
    while True:
        again += sum(report.frames_retransmitted for report in exchange(tx, rx, slices, passed))
        passed += slices
        if enough(again) or deadline.passed:
            return again


def exchange(tx: aiflow.Sender, rx: aiflow.Receiver, slices: int = 6, passed: int = 0) -> list[aiflow.SliceReport]:
    """Send several slices, one in flight while another is compared byte by byte; `passed` were sent before."""
    tickets, reports = [], []
    sent = [[*IMAGES[k % 3 :], *SMALL] if k % 3 else SMALL for k in range(slices)]
    for elements in sent:
        tickets.append(tx.send(elements, wait=False))
    for k, elements in enumerate(sent):
        with rx.recv(timeout=30) as time_slice:
            assert time_slice.slice_id == passed + k + 1  # each once, in order
            assert [e.tobytes() for e in time_slice] == [bytes(e) for e in elements]
        reports.append(tickets[k].result(30))
    return reports


@pytest.mark.parametrize("drop", [0.001, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("nb_ports", [1, 4])
def test_fault_24_random_loss(name, drop, nb_ports) -> None:
    fault = {"drop": drop, "seed": 3}
    # Small frames: at a thousandth there must be thousands of them.
    with peers(f"local:{name}*{nb_ports}", fault, {"drop": drop, "seed": 4}, frame_size=1514) as (tx, rx):
        again = exchange_until(tx, rx, 3 if drop > 0.05 else 9, lambda again: again and faults_of(tx)["dropped"])
        assert faults_of(tx)["dropped"] > 0
        assert again > 0


@pytest.mark.parametrize("nb_ports", [1, 4])
def test_fault_25_burst_loss(name, nb_ports) -> None:
    """Gilbert and Elliott's two states: the bad one loses all frames, ten on average, the good one a thousandth."""
    fault = {"burst": 0.01, "burst_frames": 10, "drop": 0.001}
    with peers(f"local:{name}*{nb_ports}", {**fault, "seed": 25}, {**fault, "seed": 26}, frame_size=1514) as (tx, rx):
        again = exchange_until(tx, rx, 9, lambda again: again > 30 and faults_of(tx)["burst"] > 30)
        assert faults_of(tx)["burst"] > 30  # of three or more bursts
        assert again > 30


@pytest.mark.parametrize("kind", ["HELLO", "MANIFEST", "DATA", "PACKED", "PLACED", "PLACED_PACK", "CLOSE", "BYE"])
def test_fault_26_first_frame_lost(endpoint, kind) -> None:
    """The first of every kind that a sender sends."""
    if kind in ("DATA", "PACKED"):
        endpoint = endpoint.replace("local:", "memif:")  # which carries bytes
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
    """No later frame shows the hole: the tail probe finds it, within milliseconds and not seconds."""
    with peers(endpoint, {"drop_first": 3, "kinds": ("CLOSE",)}) as (tx, rx):
        start = time.monotonic()
        with Stalls() as stalls:
            ticket = tx.send([bytes(nbytes)], wait=False)
            with rx.recv(timeout=20) as time_slice:
                assert time_slice.nbytes == nbytes
            assert ticket.result(20).frames_retransmitted >= 3
            assert faults_of(tx)["dropped"] == 3
            assert tx.counters["probes"] > 0
            assert time.monotonic() - start < 3 + stalls.allowance


@pytest.mark.parametrize("nb_ports", [1, 4])
def test_fault_28_all_feedback_lost_for_50_ms(name, nb_ports) -> None:
    faults = {"drop_for": 0.05, "kinds": ("GRANT", "FEEDBACK")}
    with peers(f"local:{name}*{nb_ports}", None, faults) as (tx, rx), Stalls() as stalls:
        reports = exchange(tx, rx)
        assert faults_of(rx)["dropped"] > 0
        assert max(report.seconds for report in reports) < 5 + stalls.allowance


IN_A_SESSION = ("DATA", "PACKED", "PLACED", "PLACED_PACK", "MANIFEST", "GRANT", "FEEDBACK", "PROBE", "VOID", "CLOSE")


@pytest.mark.parametrize(("way", "goes_on"), [("out", False), ("in", True)], ids=["forth", "back"])
def test_fault_29_one_direction_of_one_path_dead(name, way, goes_on) -> None:
    """In mid-traffic and for good: without a way forth it is suspended; without a way back others report for it."""
    fault = {"ports": [1], "ways": way, "kinds": IN_A_SESSION, "down_after": 0.02, "drop_for": 1e5}
    with peers(f"local:{name}*4", fault, frame_size=1514) as (tx, rx):

        def path() -> PortCounters:
            return paths_of(tx)[1]

        passed, deadline = 0, Deadline(60)
        while not (faults_of(tx)["down"] and path().sent):
            exchange(tx, rx, 2, passed)
            passed += 2
            deadline.check("the fault has not taken place")
        assert settle(lambda: path().usable == goes_on, 20)
        exchange(tx, rx, 6, passed)
        assert settle(lambda: path().usable == goes_on, 20)
        assert faults_of(tx)["down"] > 1
        assert settle(lambda: all(port.usable for port in paths_of(tx) if port.number != 1))


def test_fault_30_reordering(endpoint) -> None:
    """Frames are delayed until they have been retransmitted, and arrive twice. `test_core.py` counts the distance."""
    with peers(endpoint, {"reorder": 0.05, "reorder_for": 0.02, "seed": 30}, frame_size=1514) as (tx, rx):

        def came_twice() -> int:
            return rx.counters["duplicate"] + rx.counters["replay"]

        again = exchange_until(tx, rx, 9, lambda again: again and came_twice() and faults_of(tx)["reordered"] > 100)
        assert faults_of(tx)["reordered"] > 100
        assert again > 0
        assert came_twice() > 0
        assert rx.counters["slices"] % 9 == 0  # each once


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

        def refused() -> int:
            return sum(rx.counters[reason] for reason in ("crc", "dst_mac", "broadcast", "src_mac", "kind", "length"))

        exchange_until(tx, rx, 6, lambda _: refused() and faults_of(tx)["corrupted"])
        assert faults_of(tx)["corrupted"] > 0
        assert refused() > 0


def test_fault_33_more_chunks_than_there_are_numbers_for(endpoint) -> None:
    """Refused at once, by name, without reading the bytes. (Packet numbers that wrap: test_simulator.py.)"""
    with peers(endpoint, frame_size=1514) as (tx, rx):
        exchange(tx, rx, 1)
        nbytes = (2**32 + 1) * tx._agent.payload_bytes
        with (
            mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ) as huge,  # addresses, and no memory
            pytest.raises(PoolExhausted, match="send smaller slices") as caught,
        ):
            tx.send([huge], timeout=20)
        assert caught.value.delivered is False
        exchange(tx, rx, 2, 1)


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
        with pytest.raises(SliceTimeout, match="in flight"):
            tickets[-1].result(2.5)  # much longer than peer_timeout
        done = sum(ticket.done() for ticket in tickets)
        assert 1 <= done < 4
        assert settle(lambda: rx._agent.starving[0] > 0)  # the fault took place: a request waits for memory
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
        with Stalls() as stalls:
            with pytest.raises(SliceTimeout) as caught:
                tx.send([bytes(5_000_000)], timeout=1.5)
            assert 1.5 <= time.monotonic() - start < 3 + stalls.allowance
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
        with Stalls() as stalls:
            with pytest.raises(PeerLost, match="no receiver answered") as caught:
                tx.send([b"x"])
            assert 0.5 <= time.monotonic() - start < 2 + stalls.allowance
        assert caught.value.delivered is False


@pytest.mark.parametrize("nb_senders", [2, 8])
def test_fault_40_lossy_senders_share_the_memory_of_a_receiver(endpoint, nb_senders) -> None:
    """Every sender makes progress and nothing is mixed, in memory for one slice and a half."""
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


@pytest.mark.root
def test_fault_40_eight_senders_share_the_only_port_of_a_receiver(net) -> None:
    """Eight ports at a switch, each as fast as the one that leads to the receiver."""
    source, switch, sink = (net.namespace(label) for label in ("source", "switch", "sink"))
    switch.bridge()
    net.veth(sink, "r", switch, "r")
    for interface in ("r", *(f"s{k}" for k in range(8))):
        if interface != "r":
            net.veth(source, interface, switch, interface)
            source.shape(interface, "100mbit")
        switch.ip("link", "set", "dev", interface, "master", "br0")
    switch.shape("r", "100mbit")
    with ExitStack() as stack:
        with sink.entered():
            rx = stack.enter_context(aiflow.Receiver("af_packet:r", name="sink"))
        with source.entered():
            senders = [stack.enter_context(aiflow.Sender(f"af_packet:s{k}", name=f"s{k}")) for k in range(8)]
        assert settle(lambda: all(tx.receiver for tx in senders), 20)
        sent = {tx.name: [content(40 + 8 * i + k, 2_000_000) for i in range(2)] for k, tx in enumerate(senders)}
        tickets = [[tx.send([data], wait=False) for data in sent[tx.name]] for tx in senders]
        assert settle(lambda: all(first.progress[0] for first, _ in tickets))
        assert not any(second.done() for _, second in tickets)  # all eight at once
        seen: dict[str, int] = dict.fromkeys(sent, 0)
        for _ in range(16):
            with rx.recv(timeout=60) as time_slice:
                data = sent[time_slice.sender][seen[time_slice.sender]]
                assert time_slice[0].tobytes() == data.tobytes()
                seen[time_slice.sender] += 1
        assert all(ticket.result(60).elements == 1 for pair in tickets for ticket in pair)
        assert set(seen.values()) == {2}


# ---- 37: all ports down ----


class Cables:
    """Two hosts with two ports each at a switch; the sender's cables can be pulled there."""

    def __init__(self, net: Any, peer_timeout: float) -> None:
        source, self.switch, sink = net.switched(2, rate="25mbit")
        with sink.entered():
            self.rx = aiflow.Receiver(["af_packet:r0", "af_packet:r1"], name="sink")
        with source.entered():
            self.tx = aiflow.Sender(["af_packet:s0", "af_packet:s1"], peer_timeout=peer_timeout)

    def pull(self, ticket: aiflow.Ticket) -> float:
        """Pull the cables in mid-slice, so that no frame gets through; return when that was."""
        in_the_middle(lambda: ticket.progress)
        pulled = time.monotonic()
        for port in ("s0", "s1"):
            self.switch.ip("link", "set", "dev", port, "down")
        still_ns, acked = time.monotonic(), ticket.progress[0]
        while time.monotonic() < still_ns + 0.2:
            if ticket.progress[0] != acked:
                still_ns, acked = time.monotonic(), ticket.progress[0]
            time.sleep(0.005)
        assert 0 < acked < ticket.progress[1]
        return pulled

    def plug_in(self) -> None:
        for port in ("s0", "s1"):
            self.switch.ip("link", "set", "dev", port, "up")

    def __enter__(self) -> Cables:
        assert settle(lambda: self.tx.receiver)
        return self

    def __exit__(self, *exc: object) -> None:
        self.tx.__exit__(*exc)  # aborts, should the cables still be out
        self.rx.close()


CUT = content(37, 16_000_000)  # 2.6 s at the rate of both ports


@pytest.mark.root
def test_fault_37_all_ports_down_for_a_second(net) -> None:
    with Cables(net, peer_timeout=10) as cables:
        ticket = cables.tx.send([CUT], wait=False)
        pulled = cables.pull(ticket)
        acked = ticket.progress[0]
        time.sleep(max(0.0, pulled + 1 - time.monotonic()))  # the fault itself
        assert ticket.progress[0] == acked
        assert not ticket.done()
        cables.plug_in()
        with cables.rx.recv(timeout=60) as time_slice:
            assert time_slice[0].tobytes() == CUT.tobytes()
        assert ticket.result(60).seconds > 1
        assert cables.rx.counters["slices"] == 1


@pytest.mark.root
@pytest.mark.parametrize(
    ("peer_timeout", "seconds"), [(1.5, 2.5), pytest.param(10.0, 15.0, marks=pytest.mark.soak)], ids=["short", "15 s"]
)
def test_fault_37_all_ports_down_for_longer_than_the_peer_timeout(net, peer_timeout, seconds) -> None:
    """Acknowledged slices are there; the cut one is `PeerLost` and never shown; the next one is delivered."""
    with Cables(net, peer_timeout) as cables:
        whole = cables.tx.send([b"whole"], timeout=60)
        assert whole.elements == 1
        ticket = cables.tx.send([CUT], wait=False)
        pulled = cables.pull(ticket)
        with pytest.raises(PeerLost, match="no sign of life") as caught:
            ticket.result(60)
        assert time.monotonic() - pulled > 0.9 * peer_timeout
        assert caught.value.delivered is False
        assert caught.value.delivered_by == {"sink": False}
        time.sleep(max(0.0, pulled + seconds - time.monotonic()))  # the rest of the fault
        cables.plug_in()
        assert settle(lambda: cables.tx.receiver, 20)
        again = cables.tx.send([CUT[::-1]], wait=False)
        for expected in (b"whole", CUT[::-1].tobytes()):
            with cables.rx.recv(timeout=60) as time_slice:
                assert time_slice[0].tobytes() == expected
        assert again.result(60).elements == 1
        assert cables.rx.counters["slices"] == 2
