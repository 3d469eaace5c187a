"""Sender.put: windows of slice_ms or until flush, in the background; full, failing and closing; demand on ports."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
import weakref
from typing import NamedTuple

import numpy as np
import pytest
from peer import MiB, Peer, content
from peer import name as local_name
from wait import PATIENCE_S, Deadline, settle

import aiflow
from aiflow._transfer.demand import RateEstimate
from aiflow.errors import ConfigError, PeerLost, PoolExhausted, SliceTimeout

rng = np.random.default_rng(5)


def taken(rx, count, timeout=PATIENCE_S) -> list[tuple[str, bytes]]:
    """Receive `nb` elements, from as many slices as hold them."""
    got = []
    while len(got) < count:
        with rx.recv(timeout=timeout) as time_slice:
            got += [(element.stream, element.tobytes()) for element in time_slice]
    return got


# ---- windows ----


def test_until_flush_everything_is_one_slice() -> None:
    with aiflow.pair() as (tx, rx):
        images = {f"cam-{k}": rng.integers(0, 256, (20 + k, 30), np.uint8) for k in range(5)}
        for stream, image in images.items():
            assert tx.put(stream, image) is None
        with pytest.raises(SliceTimeout):
            rx.recv(timeout=0.3)
        tx.flush(timeout=PATIENCE_S)
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            assert time_slice.streams == list(images)
            assert all(np.array_equal(time_slice[stream].array, image) for stream, image in images.items())
        tx.flush()
        with pytest.raises(SliceTimeout):  # nothing collected, nothing sent
            rx.recv(timeout=0.1)


def test_a_window_is_sent_when_its_time_is_over_without_another_put() -> None:
    with aiflow.pair(slice_ms=150) as (tx, rx):
        started = time.monotonic()
        tx.put("a", b"1")
        tx.put("a", b"2")
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            assert time.monotonic() - started >= 0.15
            assert [element.tobytes() for element in time_slice] == [b"1", b"2"]
        tx.put("b", b"3")
        assert taken(rx, 1) == [("b", b"3")]


def test_a_stream_of_windows_loses_nothing_and_keeps_its_order() -> None:
    with aiflow.pair(slice_ms=10, nb_ports=2) as (tx, rx):
        sent = [(f"cam-{k % 3}", rng.bytes(int(rng.integers(0, 30_000)))) for k in range(600)]

        slices = got = 0

        def produce() -> None:
            for k, (stream, data) in enumerate(sent):
                tx.put(stream, data)
                if k % 20 == 0:
                    time.sleep(0.004)  # so that it takes several windows
                if k % 150 == 149:  # at least these
                    assert settle(lambda k=k: slices > k // 150)
            tx.flush()

        producer = threading.Thread(target=produce)
        producer.start()
        try:
            while got < len(sent):
                with rx.recv(timeout=PATIENCE_S) as time_slice:
                    slices += 1
                    for element in time_slice:
                        assert (element.stream, element.tobytes()) == sent[got]
                        got += 1
        finally:
            producer.join(PATIENCE_S)
        assert slices > 3


def test_several_threads_may_put() -> None:
    with aiflow.pair(slice_ms=5) as (tx, rx):
        threads = [
            threading.Thread(target=lambda k=k: [tx.put(f"t{k}", bytes([k, i])) for i in range(200)]) for k in range(4)
        ]
        for thread in threads:
            thread.start()
        got = taken(rx, 800)
        for thread in threads:
            thread.join(PATIENCE_S)
        for k in range(4):
            assert [data for stream, data in got if stream == f"t{k}"] == [bytes([k, i]) for i in range(200)]


# ---- ownership of memory ----


def test_a_copy_is_taken_at_once_and_others_are_read_where_they_lie() -> None:
    with aiflow.pair() as (tx, rx):
        buffer = np.zeros(100_000, np.uint8)
        for k in range(3):
            buffer[:] = k
            assert tx.put("copied", buffer) is None
        tx.put("where it lies", buffer, copy=False)
        buffer[:] = 77
        tx.flush(timeout=PATIENCE_S)
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            assert [int(element.array[5]) for element in time_slice] == [0, 1, 2, 77]
            assert all(np.ptp(element.array) == 0 for element in time_slice)


def test_copies_keep_dtype_shape_and_order() -> None:
    arrays = [np.asfortranarray(rng.random((5, 7))), np.float32(2.5), np.zeros((0, 3), np.int16), np.arange(20)[::2]]
    with aiflow.pair() as (tx, rx):
        for array in arrays:
            tx.put("a", array)
        tx.flush(timeout=PATIENCE_S)
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            for element, array in zip(time_slice, arrays, strict=True):
                assert (element.dtype, element.shape) == (array.dtype, array.shape)
                assert np.array_equal(element.array, array)


def test_blocks_of_copies_are_used_again() -> None:
    with aiflow.pair(put_memory="16MiB") as (tx, rx):
        images = content(1, 3 * MiB)
        for _ in range(4):
            tx.put("a", images)
            tx.flush(timeout=PATIENCE_S)
            rx.recv(timeout=PATIENCE_S).release()
        assert tx._batcher._held == 0
        assert len(tx._batcher._spare) == 1


def test_tickets_tell_of_their_slice() -> None:
    with aiflow.pair(slice_ms=20) as (tx, rx):
        first, second = tx.put("a", b"1" * 1000, copy=False), tx.put("b", b"2" * 500, copy=False)
        assert not first.done()
        assert first.progress == (0, 1500)
        rx.recv(timeout=PATIENCE_S).release()
        assert first.result(PATIENCE_S) == second.result(PATIENCE_S)
        assert first.result().elements == 2
        assert first.done()
        assert first.progress == (1500, 1500)
    with aiflow.pair() as (tx, rx):  # no window: asking sends it
        ticket = tx.put("a", b"x", copy=False)
        threading.Thread(target=lambda: rx.recv(timeout=PATIENCE_S).release()).start()
        assert ticket.result(PATIENCE_S).nbytes == 1

        async def later() -> int:
            return (await tx.put("a", b"xyz", copy=False)).nbytes

        assert asyncio.run(asyncio.wait_for(later(), PATIENCE_S)) == 3


# ---- full ----


def test_put_blocks_when_full_and_goes_on_when_there_is_room() -> None:
    with aiflow.pair(slice_ms=5, put_memory="4MiB", memory="5MiB") as (tx, rx):
        image, put = content(2, MiB), []

        def produce() -> None:
            for k in range(24):
                tx.put(f"{k}", image)
                put.append(k)

        producer = threading.Thread(target=produce, daemon=True)
        producer.start()
        assert settle(lambda: len(put) >= 3)
        assert not settle(lambda: len(put) > 8, 1.0)  # the receiver's 5 MiB are full, and so are put's 4
        assert producer.is_alive()
        got = taken(rx, 24)
        producer.join(PATIENCE_S)
        assert [stream for stream, _ in got] == [f"{k}" for k in range(24)]
        assert all(data == image.tobytes() for _, data in got)


def test_a_slice_counts_for_what_it_costs_itself() -> None:
    with aiflow.pair(put_memory="1MiB") as (tx, rx):
        for _ in range(20):
            tx.put("a", b"x")
            held = tx._batcher._held
            assert held > 16 << 10
            tx.put("b", b"y")
            assert tx._batcher._held < held + (1 << 10)  # the second costs its slice nothing
            tx.flush(timeout=PATIENCE_S)
            assert tx._batcher._held == 0
            assert len(rx.recv(timeout=PATIENCE_S)) == 2


def test_what_only_flush_would_send_cannot_wait_for_room() -> None:
    with aiflow.pair(put_memory="1MiB") as (tx, rx):
        for _ in range(3):
            tx.put("a", content(1, MiB // 4))
        with pytest.raises(PoolExhausted, match="flush"):
            tx.put("a", content(1, MiB // 2))
        with pytest.raises(PoolExhausted, match="put_memory"):
            tx.put("a", content(1, 2 * MiB))
        tx.flush(timeout=PATIENCE_S)
        assert len(rx.recv(timeout=PATIENCE_S)) == 3


# ---- errors ----


def test_errors_raise_at_the_next_put_once() -> None:
    with aiflow.pair(slice_ms=5, memory="1MiB") as (tx, rx):
        tx.put("large", content(1, 2 * MiB))
        assert settle(lambda: not tx._agent.busy and tx._batcher._open is None)
        with pytest.raises(PoolExhausted, match="receiver's memory") as caught:
            tx.put("not taken", b"x")
        assert caught.value.delivered is False
        tx.put("small", b"y")
        assert taken(rx, 1) == [("small", b"y")]
        tx.flush(timeout=PATIENCE_S)


def test_errors_raise_at_flush_and_at_close() -> None:
    with aiflow.pair(memory="1MiB") as (tx, _):
        tx.put("large", content(1, 2 * MiB))
        with pytest.raises(PoolExhausted):
            tx.flush(timeout=PATIENCE_S)
        tx.flush(timeout=PATIENCE_S)
        tx.put("large", content(1, 2 * MiB))
        with pytest.raises(PoolExhausted):
            tx.close()
        tx.close()
    with pytest.raises(ConfigError, match="closed"):
        tx.put("a", b"x")


def test_an_error_that_a_ticket_told_is_not_told_again() -> None:
    with aiflow.pair(memory="1MiB") as (tx, rx):
        ticket = tx.put("large", content(1, 2 * MiB), copy=False)
        with pytest.raises(PoolExhausted):
            ticket.result(PATIENCE_S)
        with pytest.raises(PoolExhausted):
            ticket.result(PATIENCE_S)
        tx.put("small", b"y")
        tx.flush(timeout=PATIENCE_S)
        assert taken(rx, 1) == [("small", b"y")]


def test_what_cannot_be_sent_fails_at_once_and_spoils_nothing() -> None:
    with aiflow.pair() as (tx, rx):
        tx.put("good", b"1")
        for bad, error in ((("a", "text"), TypeError), ((7, b"x"), TypeError), (("s" * 5000, b"x"), ConfigError)):
            with pytest.raises(error):
                tx.put(*bad)
        tx.put("good", b"2")
        tx.flush(timeout=PATIENCE_S)
        assert taken(rx, 2) == [("good", b"1"), ("good", b"2")]
    for wrong in (0, -1, "soon", float("nan")):
        with pytest.raises(ConfigError, match="slice_ms"):
            aiflow.Sender("ring:nobody", slice_ms=wrong)


def test_leaving_with_sends_what_is_collected_and_leaving_by_an_error_does_not() -> None:
    endpoint = f"ring:{local_name()}"
    with aiflow.Receiver(endpoint) as rx:
        with aiflow.Sender(endpoint, slice_ms=60_000) as tx:
            tx.put("a", b"1")
        assert taken(rx, 1) == [("a", b"1")]

    async def collect() -> None:
        async with aiflow.Sender(endpoint, slice_ms=60_000) as tx:
            tx.put("a", b"2")

    with aiflow.Receiver(endpoint) as rx:
        asyncio.run(collect())
        assert taken(rx, 1) == [("a", b"2")]
    with aiflow.Receiver(endpoint) as rx:
        with pytest.raises(KeyError), aiflow.Sender(endpoint, slice_ms=60_000) as tx:  # noqa: PT012
            ticket = tx.put("a", b"3", copy=False)
            raise KeyError
        assert ticket.done()
        with pytest.raises(SliceTimeout, match="before they were sent"):
            ticket.result()
        with pytest.raises(SliceTimeout):
            rx.recv(timeout=0.2)


def test_a_sender_that_is_dropped_goes_with_its_thread() -> None:
    with aiflow.Receiver(f"ring:{local_name()}") as rx:
        tx = aiflow.Sender(str(rx.endpoints[0]), slice_ms=60_000)
        tx.put("a", b"1")
        gone = weakref.ref(tx)
        with pytest.warns(ResourceWarning, match="was not closed"):  # noqa: PT031
            del tx
            gc.collect()
        assert gone() is None
        assert settle(lambda: all(thread.name != "aiflow-put" for thread in threading.enumerate()))


def receive(pipe, endpoint: str, memory: str) -> None:
    with aiflow.Receiver(endpoint, memory=memory) as rx:
        pipe.send("ready")
        while True:
            rx.recv().release()
            pipe.send("slice")


def test_a_killed_receiver_is_told_by_put_and_the_stream_goes_on_with_the_next() -> None:
    endpoint = f"local:{local_name()}"
    with aiflow.Sender(endpoint, slice_ms=5, peer_timeout=2.0) as tx:
        with Peer(receive, endpoint, "1GiB") as peer:
            assert peer.hear() == "ready"
            assert settle(lambda: tx.receiver, PATIENCE_S)
            tx.put("a", content(1, MiB))
            tx.flush(PATIENCE_S)
            assert peer.hear() == "slice"
            peer.process.kill()
            assert peer.killed()
        deadline = Deadline()
        with pytest.raises(PeerLost) as caught:  # noqa: PT012
            while not deadline.passed:
                tx.put("a", content(1, MiB))
                time.sleep(0.02)
        assert caught.value.delivered in (False, None)
        with Peer(receive, endpoint, "1GiB") as peer:
            assert peer.hear() == "ready"
            assert settle(lambda: tx.receiver, PATIENCE_S)
            while True:
                try:
                    tx.put("a", b"again")
                    tx.flush(PATIENCE_S)
                    break
                except PeerLost:  # of a slice that was put while there was no receiver
                    deadline.check("put still fails")
            assert peer.hear() == "slice"


# ---- M and B_total ----


def test_a_demand_that_was_seen_to_be_too_much_is_reported_before_the_slice_goes_out() -> None:
    """64 MiB within 1 ms is more than any port of this machine carries; the first slices measure what it carries."""
    image = content(3, 8 * MiB)
    with aiflow.pair(slice_ms=1, memory="256MiB") as (tx, rx):
        for _ in range(3):
            tx.put("a", image)
            rx.recv(timeout=PATIENCE_S).release()
        assert settle(lambda: not tx._agent.busy)
        with pytest.warns(aiflow.DemandWarning, match="Mbit/s") as warned:
            tx.put("a", image)
        assert warned[0].filename == __file__
        rx.recv(timeout=PATIENCE_S).release()
        tx.flush(timeout=PATIENCE_S)
        with warnings.catch_warnings():  # told once
            warnings.simplefilter("error")
            tx.put("a", image)
        rx.recv(timeout=PATIENCE_S).release()
        tx.flush(timeout=PATIENCE_S)
        assert tx.counters["demands_unmet"] >= 2
        demand = tx.demand
        assert demand is not None
        assert not demand.met
        assert demand.needed_bps == pytest.approx(8 * 8 * MiB / 0.001)
        assert demand.available_bps < demand.needed_bps
        assert "cannot carry" in tx.explain()


def test_a_demand_that_can_be_met_is_quiet() -> None:
    with aiflow.pair(slice_ms=500) as (tx, rx), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            tx.put("a", content(1, 100_000), copy=False)
            tx.flush(timeout=PATIENCE_S)
            rx.recv(timeout=PATIENCE_S).release()
        assert tx.demand is not None
        assert tx.demand.met
        assert tx.counters["demands_unmet"] == 0
    with aiflow.pair() as (tx, rx):  # without T there is no B_total
        ticket = tx.send([content(1, 100_000)], wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        ticket.result(PATIENCE_S)
        assert tx.demand is None


def test_send_compares_too_when_a_slice_has_a_length() -> None:
    with aiflow.pair(slice_ms=0.001) as (tx, rx):
        for _ in range(3):
            tx.put("a", content(1, MiB))
            tx.flush(timeout=PATIENCE_S)
            rx.recv(timeout=PATIENCE_S).release()
        with pytest.warns(aiflow.DemandWarning) as warned:
            ticket = tx.send([content(1, MiB)], wait=False)
        assert warned[0].filename == __file__
        rx.recv(timeout=PATIENCE_S).release()
        ticket.result(PATIENCE_S)


def test_a_warning_made_an_error_takes_nothing() -> None:
    with aiflow.pair(slice_ms=0.001) as (tx, rx), warnings.catch_warnings():
        for _ in range(3):
            tx.put("a", content(1, MiB))
            tx.flush(timeout=PATIENCE_S)
            rx.recv(timeout=PATIENCE_S).release()
        warnings.simplefilter("error", aiflow.DemandWarning)
        with pytest.raises(aiflow.DemandWarning):
            tx.put("a", content(1, MiB))
        tx.flush(timeout=PATIENCE_S)
        with pytest.raises(SliceTimeout):
            rx.recv(timeout=0.1)


class Sent(NamedTuple):
    nbytes: int
    posted_at: float
    seconds: float
    waited: float | None


@pytest.mark.unit
def test_what_ports_give_is_judged_by_slices_of_a_size_without_their_waiting() -> None:
    estimate = RateEstimate()
    assert estimate.bps(1) is None
    for k in range(3):
        estimate.note(Sent(1000, 10.0 * k, 1.0, None))  # went with its manifest
    assert estimate.bps(1) is None
    for k in range(3):
        assert estimate.bps(2000) is None  # too few
        estimate.note(Sent(1000, 100.0 + 10 * k, 3.0, 2.0))  # two seconds of three for the receiver's grant
    assert estimate.bps(2000) == 8000
    assert estimate.bps(2001) is None
    for k in range(3):
        estimate.note(Sent(1_000_000, 200.0, 1.0 + k, 0.0))  # posted together: each waited for those before
    assert estimate.bps(1_000_000) == 8_000_000
