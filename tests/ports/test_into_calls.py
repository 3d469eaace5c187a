"""recv(into=…): calls that end early, several calls, and the memory of arrays."""

from __future__ import annotations

import gc
import sys
import weakref

import interrupted
import numpy as np
import pytest
from into_arrays import IMAGES, LABELS, Call, address, joined, of_both
from wait import PATIENCE_S, settle, wait_for

import aiflow
from aiflow.errors import ConfigError, PoolExhausted, SliceTimeout

rng = np.random.default_rng(18)
SCHEMES = pytest.mark.parametrize("scheme", ["ring", "local"])
UNFINISHED_S = 4.0
UNFINISHED = {"kinds": ["CLOSE"], "drop_for": UNFINISHED_S}
"""Faults of a sender: all data of its slice arrives, and the slice is not whole before this time is over."""


# ---- calls that end early, and other calls ----


@SCHEMES
def test_a_timeout_without_a_slice_gives_the_arrays_back(scheme: str, name: str) -> None:
    batch = np.zeros_like(IMAGES)
    with joined(scheme, name) as (tx, rx):
        with pytest.raises(SliceTimeout):
            rx.recv(0.02, into={"x": batch})
        assert rx._agent.offers == []
        tx.send_batch("x", IMAGES)
        rx.recv(PATIENCE_S).release()
        assert not batch.any()


@SCHEMES
def test_a_slice_keeps_the_arrays_of_a_call_that_timed_out(scheme: str, name: str) -> None:
    batch, other = np.zeros_like(IMAGES), np.zeros_like(IMAGES)
    with joined(scheme, name, faults=UNFINISHED) as (tx, rx):
        call = Call(rx, 0.4 * UNFINISHED_S, into={"x": batch})
        ticket = tx.send_batch("x", IMAGES, wait=False)
        with pytest.raises(SliceTimeout):
            call.ended()
        with pytest.raises(ConfigError, match="still arrives in one of these arrays"):
            rx.recv(0, into={"x": batch[:4]})
        with pytest.raises(ConfigError, match="still arrives in one of these arrays"):
            rx.recv(0, into={"y": batch})
        with pytest.raises(SliceTimeout):
            rx.recv(0, into={"x": other})
        time_slice = rx.recv(PATIENCE_S, into={"x": batch})  # the same again
        ticket.result(PATIENCE_S)
        assert time_slice.copied == 0
        assert np.array_equal(batch, IMAGES)
        assert address(time_slice[0].array) == address(batch)


def test_such_a_slice_is_received_without_arrays_or_moved_to_others(name: str) -> None:
    batch, other = np.zeros_like(IMAGES), np.zeros_like(IMAGES)
    for into in (None, {"x": other}):
        with joined("ring", f"{name}-{into is None}", faults=UNFINISHED) as (tx, rx):
            batch[:] = 0
            call = Call(rx, 0.4 * UNFINISHED_S, into={"x": batch})
            ticket = tx.send_batch("x", IMAGES, wait=False)
            with pytest.raises(SliceTimeout):
                call.ended()
            time_slice = rx.recv(PATIENCE_S, into=into)
            ticket.result(PATIENCE_S)
            assert address(time_slice[0].array) == address(batch if into is None else other)
            assert np.array_equal(time_slice.as_arrays()["x"], IMAGES)
            assert time_slice.copied == (0 if into is None else IMAGES.nbytes)


def test_each_call_gets_a_slice_of_its_own_in_its_own_arrays(name: str) -> None:
    with joined("ring", name) as (tx, rx):
        batches = [np.zeros_like(IMAGES) for _ in range(6)]
        calls = [Call(rx, PATIENCE_S, into={"x": batch}) for batch in batches]
        for number in range(6):
            tx.send_batch("x", IMAGES + number)
        slices = [call.ended() for call in calls]
        assert sorted(one.slice_id for one in slices) == [1, 2, 3, 4, 5, 6]
        for one, batch in zip(slices, batches, strict=True):
            assert address(one[0].array) == address(batch)
            assert np.array_equal(batch, IMAGES + (one.slice_id - 1))


def test_another_call_gets_neither_the_slice_nor_the_arrays_of_one_that_waits(name: str) -> None:
    batch = np.zeros_like(IMAGES)
    with joined("ring", name, faults=UNFINISHED) as (tx, rx):
        call = Call(rx, PATIENCE_S, into={"x": batch})
        first = tx.send_batch("x", IMAGES, wait=False)
        wait_for(lambda: rx._agent.offers[0].bound, "the slice is granted")
        with pytest.raises(ConfigError, match="another call receives into one of these arrays"):
            rx.recv(0, into={"x": batch})
        second = tx.send({"y": LABELS}, wait=False)
        assert rx.recv(PATIENCE_S).streams == ["y"]
        assert call.ended().streams == ["x"]
        first.result(PATIENCE_S)
        second.result(PATIENCE_S)


@SCHEMES
def test_a_loop_over_one_batch_gets_every_slice_once_and_in_order(scheme: str, name: str) -> None:
    batch = np.zeros((50, 1000), np.uint8)
    with joined(scheme, name) as (tx, rx):
        tickets = [tx.send_batch("x", np.full_like(batch, number), wait=False) for number in range(20)]
        for number in range(20):
            with rx.recv(PATIENCE_S, into={"x": batch}) as time_slice:
                assert time_slice.slice_id == number + 1
                assert (batch == number).all()
        for ticket in tickets:
            ticket.result(PATIENCE_S)


def test_closing_ends_the_call_and_gives_the_arrays_back(name: str) -> None:
    batch = np.zeros_like(IMAGES)
    alive = weakref.ref(batch)
    endpoint = f"ring:{name}"
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint, faults=UNFINISHED) as tx:
        call = Call(rx, PATIENCE_S, into={"x": batch})
        tx.send_batch("x", IMAGES, wait=False)
        wait_for(lambda: rx._agent.offers[0].bound, "the slice is granted")
        rx.close()
        with pytest.raises(ConfigError, match="was closed while it waited"):
            call.ended()
        assert rx._agent.offers == []
        del batch, call
        gc.collect()
        assert alive() is None


@SCHEMES
def test_elements_outlive_the_receiver_and_keep_the_array(scheme: str, name: str) -> None:
    batch = np.zeros_like(IMAGES)
    with joined(scheme, name) as (tx, rx):
        call = Call(rx, PATIENCE_S, into={"x": batch})
        tx.send_batch("x", IMAGES)
        row = call.ended()[5].array
    alive = weakref.ref(batch)
    del call, batch
    gc.collect()
    assert np.array_equal(row, IMAGES[5])
    assert alive() is not None
    del row
    gc.collect()
    assert alive() is None


def test_interrupts_neither_lose_a_slice_nor_leave_an_array_behind() -> None:
    interrupted.run(
        """
        (rx,), endpoints, _ = receivers(1)
        tx = aiflow.Sender(endpoints)
        batch, seen, sent = np.zeros(40_000, np.uint8), {}, 0
        over = threading.Event()
        def stream():
            global sent
            while not over.is_set():
                sent += 1
                tx.send({"x": np.frombuffer(content(sent, 40_000), np.uint8)})
        thread = threading.Thread(target=stream)
        thread.start()
        def take(time_slice):
            data = time_slice["x"].tobytes()
            key = int.from_bytes(data[:8], "big")
            assert data == content(key, 40_000), key
            seen[time_slice.slice_id] = key
        got = []
        def call():
            global got
            if got:
                take(got[0])
                got = []
            got.append(rx.recv(0.05, into={"x": batch}))
        def attempt():
            try:
                call()
            except aiflow.SliceTimeout:
                pass
        storm(attempt, seconds=2)
        over.set()
        while thread.is_alive():
            try:
                rx.recv(0.1).release()
            except aiflow.SliceTimeout:
                pass
        thread.join()
        tx.close()
        for time_slice in rx:
            pass
        assert rx._agent.offers == [], rx._agent.offers
        assert all(key == slice_id for slice_id, key in seen.items()), seen
        assert len(seen) > 10, seen
        rx.close()
        """,
        seconds=60,
    )


# ---- memory ----


def test_a_slice_that_waits_for_memory_goes_into_arrays(name: str) -> None:
    large = rng.integers(0, 256, 700_000, np.uint8)
    target = np.zeros_like(large)
    with joined("ring", name, memory="1MiB") as (tx, rx):
        tx.send({"x": large})
        held = rx.recv(PATIENCE_S)
        ticket = tx.send({"x": large}, wait=False)
        wait_for(lambda: rx._agent.starving[0], "the second slice waits for memory")
        with rx.recv(PATIENCE_S, into={"x": target}) as time_slice:
            assert time_slice.copied == 0
        ticket.result(PATIENCE_S)
        assert np.array_equal(target, large)
        held.release()


@SCHEMES
def test_an_array_of_the_receiver_is_charged_until_it_is_gone(scheme: str, name: str) -> None:
    with joined(scheme, name, memory="64MiB") as (_, rx):
        first = rx.empty((3, 1000), "<f4")
        assert (first.shape, first.dtype, first.flags.c_contiguous) == ((3, 1000), np.dtype("<f4"), True)
        assert rx.memory_used >= first.nbytes
        view = first[1]
        first[:] = 3
        del first
        assert rx.memory_used >= 12_000
        assert rx.empty(5).dtype == np.uint8
        assert rx.empty((0, 4)).shape == (0, 4)
        with pytest.raises(PoolExhausted, match="bytes left of the Receiver's memory="):
            rx.empty(65 << 20)
        for shape, dtype in [((-1,), "u1"), (3, object)]:
            with pytest.raises(ConfigError, match="axes are 0 or more"):
                rx.empty(shape, dtype)
        rx.empty(60 << 20)
        assert settle(lambda: rx.memory_used < 20_000)
    assert (view == 3).all()  # it outlives the Receiver
    with pytest.raises(ConfigError, match="closed"):
        rx.empty(3)
    why = r"empty\(\) needs a Receiver with assemble=True"
    with joined(scheme, f"{name}-kept", assemble=False) as (_, rx), pytest.raises(ConfigError, match=why):
        rx.empty(3)


@SCHEMES
def test_a_sender_writes_straight_into_an_array_of_the_receiver(scheme: str, name: str) -> None:
    with joined(scheme, name) as (tx, rx):
        ring = rx.empty((3, *IMAGES.shape), np.uint8)
        used = rx.memory_used
        for number in range(6):
            call = Call(rx, PATIENCE_S, into={"image": ring[number % 3]})
            tx.send_batch("image", IMAGES + number)
            with call.ended() as time_slice:
                assert time_slice.copied == 0
                assert rx.memory_used - used < 10_000
            assert np.array_equal(ring[number % 3], IMAGES + number)
        placed = rx.counters["placed_bytes"]
        assert placed == (6 * IMAGES.nbytes if scheme == "local" else 0)
        call = Call(rx, PATIENCE_S, into={"image": ring[0]})
        tx.send(of_both())  # of two streams it is carried
        assert call.ended().copied == 0
        assert np.array_equal(ring[0], IMAGES)
        assert rx.counters["placed_bytes"] == placed


def test_a_call_takes_no_part_in_the_counts_of_references(name: str) -> None:
    batch = np.zeros_like(IMAGES)
    before = sys.getrefcount(batch)
    with joined("ring", name) as (tx, rx):
        for _ in range(5):
            call = Call(rx, PATIENCE_S, into={"x": batch})
            tx.send_batch("x", IMAGES)
            call.ended().release()
            del call
        gc.collect()
        assert sys.getrefcount(batch) == before
