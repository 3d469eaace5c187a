"""One slice to several receivers: each gets its part, or an error names the receivers that have theirs."""

from __future__ import annotations

import hashlib
import threading
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from mbufs import everything_returned
from peer import BIG, SLOWLY, MiB, Peer, content, in_the_middle
from peer import name as local_name
from wait import PATIENCE_S, Deadline, settle

import aiflow
from aiflow._policy.partition import SLACK
from aiflow._transfer.fanout import Partition
from aiflow.errors import ConfigError, PeerLost, PoolExhausted, SliceTimeout

rng = np.random.default_rng(23)


@contextmanager
def rings(nb_receivers: int, nb_ports: int = 1, memory: str = "256MiB", **options: Any):
    """A Sender and its receivers in this process, ports of its own for each."""
    names = [local_name() for _ in range(nb_receivers)]
    endpoints = [f"ring:{name}*{nb_ports}" for name in names]
    with ExitStack() as stack:
        receivers = [stack.enter_context(aiflow.Receiver(endpoint, memory=memory)) for endpoint in endpoints]
        tx = stack.enter_context(aiflow.Sender(endpoints, to=names, **options))
        yield tx, receivers, names


def sent(tx, receivers, elements, **options):
    """Send, and receive everywhere: the report and the slices."""
    ticket = tx.send(elements, wait=False, **options)
    slices = [rx.recv(timeout=PATIENCE_S) for rx in receivers]
    return ticket.result(PATIENCE_S), slices


# ---- the choice ----


@pytest.mark.unit
def test_by_stream_a_stream_stays_where_it_went_first() -> None:
    partition = Partition("by_stream", ["a", "b"])
    first = partition.split(["x", "y", "z", "x"], [10, 100, 60, 30], list).tolist()
    assert first == [1, 0, 1, 1]  # the largest stream first, then the next ones to the other
    assert partition.split(["z", "y", "new"], [10**9, 1, 1], list).tolist() == [1, 0, 0]
    assert partition.split(["newer", "y"], [5, 5], list).tolist() == [0, 0]
    assert partition.split([], [], list).tolist() == []


@pytest.mark.unit
def test_a_callable_chooses_and_is_held_to_it() -> None:
    seen: list[Any] = []

    def choose(elements, receivers):
        seen.append((elements, receivers))
        return [len(stream) % 2 for stream, _ in elements]

    partition = Partition(choose, ["a", "b"])
    assert partition.split(["x", "xx"], [1, 1], lambda: [("x", 1), ("xx", 2)]).tolist() == [1, 0]
    assert seen == [([("x", 1), ("xx", 2)], ("a", "b"))]
    for wrong in ([0], [0, 2], [0, -1], [0.0, 1.0], [True, False], None, "ab", [[0, 1]], [[0], [0, 1]]):
        with pytest.raises(ConfigError, match="index from 0 to 1 for each of 2"):
            Partition(lambda *_, wrong=wrong: wrong, ["a", "b"]).split(["x", "y"], [1, 1], list)


@pytest.mark.unit
def test_names_are_checked() -> None:
    for to, what in (
        (["a", "a"], "once"),
        ([], "several"),
        (["a", ""], "several"),
        ([1, 2], "several"),
        ([f"n{k}" for k in range(17)], "16"),
    ):
        with pytest.raises(ConfigError, match=what):
            aiflow.Sender("ring:nobody", to=to)
    with pytest.raises(ConfigError, match="partition"):
        aiflow.Sender("ring:nobody", to=["a", "b"], partition="evenly")


# ---- the parts ----


@pytest.mark.parametrize("nb_receivers", [2, 3])
def test_each_receiver_gets_its_part_even_by_bytes(nb_receivers) -> None:
    images = {f"cam-{k}": rng.integers(0, 256, int(rng.integers(1000, 90_000)), np.uint8) for k in range(60)}
    with rings(nb_receivers, nb_ports=2) as (tx, receivers, names):
        for number in (1, 2, 3):
            report, slices = sent(tx, receivers, images)
            assert sorted(stream for time_slice in slices for stream in time_slice.streams) == sorted(images)
            for time_slice, row, name in zip(slices, report.receivers, names, strict=True):
                assert time_slice.slice_id == number
                assert all(np.array_equal(element.array, images[element.stream]) for element in time_slice)
                order = [list(images).index(stream) for stream in time_slice.streams]
                assert order == sorted(order)
                assert row == (name, len(time_slice), time_slice.nbytes, True)
                assert time_slice.nbytes <= SLACK * report.nbytes / nb_receivers
            assert report.elements == 60
            assert report.nbytes == sum(map(len, images.values()))
            assert len(report.ports) == 2 * nb_receivers
            assert all(name in str(report) for name in names)
        assert tx.receivers == tuple(names)
        assert all(name in repr(tx) for name in names)


def test_by_stream_keeps_each_camera_at_its_node() -> None:
    with rings(2, partition="by_stream") as (tx, receivers, _):
        homes: dict[str, int] = {}
        for _ in range(5):
            elements = [(f"cam-{k}", rng.bytes(int(rng.integers(1, 50_000)))) for k in range(8) for _ in range(2)]
            _, slices = sent(tx, receivers, elements)
            for at, time_slice in enumerate(slices):
                for element in time_slice:
                    assert homes.setdefault(element.stream, at) == at
        assert set(homes.values()) == {0, 1}


def test_a_callable_sees_arrays_and_names() -> None:
    def choose(elements, receivers):
        assert len(receivers) == 2
        return [int(array.mean() > 100) for _, array in elements]

    arrays = [np.full((3, 4), value, np.float32) for value in (1, 200, 2, 300)]
    with rings(2, partition=choose) as (tx, receivers, _):
        _, slices = sent(tx, receivers, arrays)
        assert [[float(e.array[0, 0]) for e in time_slice] for time_slice in slices] == [[1, 2], [200, 300]]
        assert [time_slice.streams for time_slice in slices] == [["0", "2"], ["1", "3"]]  # numbers stay
    with rings(2, partition=lambda elements, receivers: [7]) as (tx, _, _), pytest.raises(ConfigError, match="index"):
        tx.send([b"x"])


def test_a_part_without_elements_is_a_slice_all_the_same() -> None:
    """Receivers that run in step see as many slices."""
    with rings(2) as (tx, receivers, _):
        for elements in ([b"only one"], {}, [b"", b""]):
            report, slices = sent(tx, receivers, elements)
            assert sum(map(len, slices)) == len(elements) == report.elements
            assert sorted(row.elements for row in report.receivers) == sorted(map(len, slices))


def test_a_batch_is_split_without_a_copy_into_views() -> None:
    batch = rng.integers(0, 1 << 16, (1001, 8, 9), dtype=np.uint16)
    odd = {"empty": batch[:0], "no bytes": np.zeros((5, 0)), "one": batch[:1]}
    with rings(3) as (tx, receivers, _):
        ticket = tx.send_batch("patches", batch, wait=False)
        slices = [rx.recv(timeout=PATIENCE_S) for rx in receivers]
        report = ticket.result(PATIENCE_S)
        assert report.elements == 1001
        rows = [time_slice.as_arrays()["patches"] for time_slice in slices]
        assert {len(part) for part in rows} == {333, 334}
        assert sorted(map(bytes, np.concatenate(rows))) == sorted(map(bytes, batch))
        for stream, array in odd.items():
            ticket = tx.send_batch(stream, array, wait=False)
            slices = [rx.recv(timeout=PATIENCE_S) for rx in receivers]
            assert ticket.result(PATIENCE_S).elements == sum(map(len, slices)) == len(array)
    for partition in ("by_stream", lambda elements, receivers: [k % 2 for k in range(len(elements))]):
        with rings(2, partition=partition) as (tx, receivers, _):
            ticket = tx.send_batch("patches", batch, wait=False)
            slices = [rx.recv(timeout=PATIENCE_S) for rx in receivers]
            ticket.result(PATIENCE_S)
            if partition == "by_stream":
                assert sorted(map(len, slices)) == [0, 1001]
            else:
                assert np.array_equal(slices[1].as_arrays()["patches"], batch[1::2])


def test_put_spreads_too() -> None:
    with rings(2, slice_ms=5) as (tx, receivers, _):
        for k in range(40):
            tx.put(f"{k}", bytes([k]) * 5000)
        tx.flush(PATIENCE_S)
        got: dict[str, bytes] = {}
        for rx in receivers:
            while rx.counters["elements"] and len(got) < 40:
                try:
                    with rx.recv(timeout=0.2) as time_slice:
                        got |= {element.stream: element.tobytes() for element in time_slice}
                except SliceTimeout:
                    break
        assert got == {f"{k}": bytes([k]) * 5000 for k in range(40)}


def test_threads_that_send_at_once_are_seen_in_one_order() -> None:
    with rings(2) as (tx, receivers, _):

        def produce(k: int) -> None:
            for i in range(30):
                tx.send([(f"{k}.{i}", b"x" * 2000), (f"{k}.{i}", b"y" * 2000)])

        threads = [threading.Thread(target=produce, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        orders: list[list[str]] = [[], []]
        for _ in range(90):
            for order, rx in zip(orders, receivers, strict=True):
                with rx.recv(timeout=PATIENCE_S) as time_slice:
                    order += time_slice.streams
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(orders[0]) == 90
        assert orders[0] == orders[1]


# ---- receivers that have their part ----


def test_one_that_refuses_does_not_undo_what_the_others_got() -> None:
    names = [local_name(), local_name()]
    ports = [f"ring:{name}" for name in names]
    with (
        aiflow.Receiver(ports[0]) as large,
        aiflow.Receiver(ports[1], memory="1MiB") as small,
        aiflow.Sender(ports, to=names) as tx,
    ):
        ticket = tx.send([content(1, 2 * MiB), content(2, 2 * MiB)], wait=False)
        with large.recv(timeout=PATIENCE_S) as time_slice:
            assert time_slice.nbytes == 2 * MiB
        with pytest.raises(PoolExhausted, match=f"{names[1]}.*hold their parts: {names[0]}") as caught:
            ticket.result(PATIENCE_S)
        assert caught.value.delivered is False
        assert caught.value.delivered_by == {names[0]: True, names[1]: False}
        report, slices = sent(tx, [large, small], [content(1, 1000), content(2, 1000)])
        assert [len(time_slice) for time_slice in slices] == [1, 1]
        assert all(row.delivered for row in report.receivers)


def test_one_that_never_comes_and_one_that_is_slow() -> None:
    names = [local_name(), local_name()]
    ports = [f"ring:{name}" for name in names]
    with aiflow.Receiver(ports[0], memory="1500kB") as rx, aiflow.Sender(ports, to=names, peer_timeout=2.0) as tx:
        with pytest.raises(PeerLost, match=f"no receiver answered on .*{names[1]}") as caught:
            tx.send([b"x" * 9000, b"y" * 9000])
        assert caught.value.delivered_by == {names[0]: True, names[1]: False}
        with pytest.raises(SliceTimeout) as late:
            tx.send([content(1, MiB), content(2, MiB)], timeout=0.3)
        assert late.value.delivered_by[names[1]] is False
        assert rx.counters["slices"] >= 1
        for _ in range(rx.counters["slices"]):
            rx.recv(timeout=PATIENCE_S).release()
        with aiflow.Receiver(ports[1]) as other:
            sent(tx, [rx, other], [b"1" * 5000, b"2" * 5000])


def receive(pipe: Connection, ports: list[str], name: str) -> None:
    with everything_returned(), aiflow.Receiver(ports, name=name, until="bye") as rx:
        pipe.send("ready")
        for time_slice in rx:
            pipe.send({element.stream: hashlib.sha256(element.array).hexdigest() for element in time_slice})
        del time_slice, rx


def digests(elements: dict[str, np.ndarray]) -> dict[str, str]:
    return {stream: hashlib.sha256(array).hexdigest() for stream, array in elements.items()}


def test_between_processes_over_local_ports() -> None:
    names = [local_name(), local_name()]
    elements = {f"cam-{k}": content(k, 300_000 + 7000 * k) for k in range(20)}
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(receive, [f"local:{name}*2"], name)) for name in names]
        assert [peer.hear() for peer in peers] == ["ready"] * 2
        with everything_returned(), aiflow.Sender([f"local:{name}*2" for name in names], to=names) as tx:
            for _ in range(3):
                report = tx.send(elements, timeout=PATIENCE_S)
                parts = [peer.hear() for peer in peers]
                assert parts[0] | parts[1] == digests(elements)
                assert [len(part) for part in parts] == [row.elements for row in report.receivers]
                assert {port.name.split("#")[0] for port in report.ports} == {f"local:{name}" for name in names}
            del report
        for peer in peers:
            peer.ends()


@contextmanager
def killed_in_mid_slice(tx: aiflow.Sender, victim: Peer, elements: dict[str, np.ndarray]):
    """Send, kill one receiver while the slice flows, and give the error."""
    ticket = tx.send(elements, wait=False)
    in_the_middle(lambda: ticket.progress)
    victim.process.kill()
    assert victim.killed()
    with pytest.raises(PeerLost) as caught:
        ticket.result(PATIENCE_S)
    yield caught.value


def test_one_of_two_local_receivers_is_killed_in_mid_slice() -> None:
    names = [local_name(), local_name()]
    ports = [f"local:{name}" for name in names]
    elements = {f"cam-{k}": content(k, BIG // 8) for k in range(8)}
    with everything_returned(), ExitStack() as stack:
        survivor = stack.enter_context(Peer(receive, ports[:1], names[0]))
        victim = stack.enter_context(Peer(receive, ports[1:], names[1]))
        assert survivor.hear() == victim.hear() == "ready"
        with aiflow.Sender(ports, to=names, faults=SLOWLY) as tx:
            with killed_in_mid_slice(tx, victim, elements) as error:
                assert error.delivered is False
                assert error.delivered_by == {names[0]: True, names[1]: False}
            part = survivor.hear()
            assert part == {stream: digest for stream, digest in digests(elements).items() if stream in part}
            assert 0 < len(part) < 8
            successor = stack.enter_context(Peer(receive, ports[1:], names[1]))
            assert successor.hear() == "ready"
            small = {stream: array[:1000] for stream, array in elements.items()}
            assert tx.send(small, timeout=PATIENCE_S).elements == 8
            assert survivor.hear() | successor.hear() == digests(small)
        survivor.ends()
        successor.ends()


# ---- ports that several receivers share ----


def switched(net, nb_ports: int, rate: str | None = None):
    """A sender and two receivers, each with `nb_ports` interfaces at one switch."""
    source, switch = net.namespace("source"), net.namespace("switch")
    sinks = [net.namespace("one"), net.namespace("two")]
    switch.bridge()
    for i in range(nb_ports):
        for host, label in ((source, "s"), (sinks[0], "a"), (sinks[1], "b")):
            net.veth(host, f"{label}{i}", switch, f"{label}{i}")
            switch.ip("link", "set", "dev", f"{label}{i}", "master", "br0")
        if rate:
            source.shape(f"s{i}", rate)
    return source, switch, sinks


@pytest.mark.root
@pytest.mark.parametrize("per_mille", [0, 10])
def test_two_receivers_behind_the_same_ports(net, per_mille) -> None:
    source, switch, sinks = switched(net, 2)
    switch.lose(per_mille)
    elements = {f"cam-{k}": content(k, 60_000 + 500 * k) for k in range(40)}
    with ExitStack() as stack:
        receivers = []
        for sink, label in zip(sinks, "ab", strict=True):
            with sink.entered():
                receivers.append(
                    stack.enter_context(aiflow.Receiver([f"af_packet:{label}{i}" for i in range(2)], name=label))
                )
        with source.entered():
            tx = stack.enter_context(aiflow.Sender(["af_packet:s0", "af_packet:s1"], to=["a", "b"]))
        for _ in range(4):
            report, slices = sent(tx, receivers, elements)
            got = {element.stream: element.array.copy() for time_slice in slices for element in time_slice}
            assert digests(got) == digests(elements)
            assert [row.elements for row in report.receivers] == [len(time_slice) for time_slice in slices]
            for time_slice in slices:
                time_slice.release()
        assert settle(lambda: sum(row.frames > 0 for row in tx.port_table) == 2)
        assert (switch.lost() if per_mille else 0) >= per_mille
        assert (report.frames_retransmitted > 0) or not per_mille or tx.port_table[0].frames_again


@pytest.mark.root
@pytest.mark.parametrize("policy", ["pull", "score", "least_queue"])
def test_the_gaps_of_a_port_hold_between_the_frames_of_all(net, policy) -> None:
    """100 Mbit/s for both receivers together: 2.5 MB take 0.2 s, whatever the machine."""
    source, _, sinks = switched(net, 1)
    with ExitStack() as stack:
        receivers = []
        for sink, label in zip(sinks, "ab", strict=True):
            with sink.entered():
                receivers.append(stack.enter_context(aiflow.Receiver(f"af_packet:{label}0", name=label)))
        with source.entered():
            options = {"flow_control": "token_bucket", "link_speed": "100mbit", "policy": policy}
            tx = stack.enter_context(aiflow.Sender("af_packet:s0", to=["a", "b"], **options))
        sent(tx, receivers, [b"x" * 3000] * 2)
        report, _ = sent(tx, receivers, [content(k, 250_000) for k in range(10)])
        assert [row.nbytes for row in report.receivers] == [1_250_000] * 2
        assert report.seconds > 0.18
        assert "port 0" in tx.explain()
        assert len(tx.port_table) == 1


@pytest.mark.root
def test_one_of_two_behind_the_same_ports_is_killed_in_mid_slice(net) -> None:
    source, _, sinks = switched(net, 2, rate="200mbit")
    elements = {f"cam-{k}": content(k, 4 * MiB) for k in range(8)}
    with ExitStack() as stack:
        peers = []
        for sink, label in zip(sinks, "ab", strict=True):
            with sink.entered():
                ports = [f"af_packet:{label}{i}" for i in range(2)]
                peers.append(stack.enter_context(Peer(receive, ports, label)))
        survivor, victim = peers
        assert survivor.hear() == victim.hear() == "ready"
        with source.entered():
            tx = stack.enter_context(aiflow.Sender(["af_packet:s0", "af_packet:s1"], to=["a", "b"], peer_timeout=3.0))
        assert settle(lambda: set(tx.receivers) == {"a", "b"})
        with killed_in_mid_slice(tx, victim, elements) as error:  # soon, or it would lose patience
            assert error.delivered_by == {"a": True, "b": False}
        part = survivor.hear()
        assert part == {stream: digest for stream, digest in digests(elements).items() if stream in part}
        assert sum(len(elements[stream]) for stream in part) == 16 * MiB
        with sinks[1].entered():
            successor = stack.enter_context(Peer(receive, ["af_packet:b0", "af_packet:b1"], "b"))
        assert successor.hear() == "ready"
        small = {stream: array[:50_000] for stream, array in elements.items()}
        deadline = Deadline()
        while True:
            try:
                tx.send(small, timeout=PATIENCE_S)
                break
            except PeerLost:
                deadline.check("send still fails")
                survivor.hear()
        assert survivor.hear() | successor.hear() == digests(small)
        tx.close()
        survivor.ends()
        successor.ends()
