"""Objects of the Python API stay correct when copied, pickled, indexed, forwarded, measured and closed."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import math
import multiprocessing
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peer import MiB, resident_bytes
from peer import name as local_name
from wait import settle

import aiflow
from aiflow.errors import ConfigError, SliceTimeout

PATIENCE_S = 20.0
SENT = [("left", np.ones((2, 3), "f4")), ("right", np.arange(4).astype("M8[s]")), ("left", np.zeros((2, 3), "f4"))]


def exchanged(pair: aiflow.Pair, elements: Any) -> aiflow.TimeSlice:
    ticket = pair.sender.send(elements, wait=False)
    time_slice = pair.receiver.recv(PATIENCE_S)
    ticket.result(PATIENCE_S)
    return time_slice


# ---- pickle and copy: an equal object, or a TypeError with advice ----

BOUND: dict[str, Callable[[aiflow.Pair], Any]] = {
    "Element": lambda pair: exchanged(pair, SENT)[0],
    "TimeSlice": lambda pair: exchanged(pair, SENT),
    "Shard": lambda pair: exchanged(pair, SENT).shards(2)[0],
    "Sender": lambda pair: pair.sender,
    "Receiver": lambda pair: pair.receiver,
    "a loop over a Receiver": lambda pair: iter(pair.receiver),
    "Ticket": lambda pair: pair.sender.send([b"x"], wait=False),
    "Ticket of put": lambda pair: pair.sender.put("a", b"x", copy=False),
    "a list of Elements": lambda pair: list(exchanged(pair, SENT)),
}
PLAIN: dict[str, Callable[[aiflow.Pair], Any]] = {
    "SliceReport": lambda pair: pair.sender.send([b"x"], wait=False).result(PATIENCE_S),
    "PortTable of a Sender": lambda pair: pair.sender.port_table,
    "PortTable of a Receiver": lambda pair: pair.receiver.port_table,
    "PortRow": lambda pair: pair.receiver.port_table[0],
    "an array": lambda pair: exchanged(pair, SENT)["right"].array,
    "an error": lambda _: aiflow.SliceTimeout("late", delivered=False, delivered_by={"a": True}),
    "counters": lambda pair: pair.sender.counters,
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda x, n=n: pickle.loads(pickle.dumps(x, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "multiprocessing": lambda x: multiprocessing.reduction.ForkingPickler.dumps(x),
}


@pytest.mark.parametrize("what", BOUND)
def test_what_belongs_to_this_process_refuses_to_be_copied(pair, what) -> None:
    thing = BOUND[what](pair)
    for how, copied in COPIES.items():
        if isinstance(thing, list) and how == "copy":
            continue
        with pytest.raises(TypeError, match=r"an aiflow \w+ cannot be pickled or copied: (take|open|wait|iterate)"):
            copied(thing)
    if isinstance(thing, aiflow.Ticket):
        thing.cancel() if what == "Ticket of put" else pair.receiver.recv(PATIENCE_S)


@pytest.mark.parametrize("what", PLAIN)
def test_what_is_only_told_can_be_copied(pair, what) -> None:
    pair.sender.send([b"x"], wait=False)
    pair.receiver.recv(PATIENCE_S)
    thing = PLAIN[what](pair)
    for how, copied in COPIES.items():
        if how != "multiprocessing":
            assert repr(copied(thing)) == repr(thing)


# ---- relaying ----

RELAYED: dict[str, tuple[Callable[[aiflow.TimeSlice], Any], list[int]]] = {
    "the slice": (lambda s: s, [0, 1, 2]),
    "its only shard": (lambda s: s.shards(1)[0], [0, 1, 2]),
    "elements": (list, [0, 1, 2]),
    "a tuple of them": (tuple, [0, 1, 2]),
    "a generator of them": (lambda s: (e for e in s), [0, 1, 2]),
    "a part": (lambda s: s[1:], [1, 2]),
    "a stream": (lambda s: s.stream("left"), [0, 2]),
    "pairs": (lambda s: [(e.stream, e) for e in s], [0, 1, 2]),
    "a mapping": (lambda s: {"left": s[0], "right": s["right"]}, [0, 1]),
}


@pytest.mark.parametrize("what", RELAYED)
def test_what_is_sent_on_keeps_its_streams(pair, what) -> None:
    relay, places = RELAYED[what]
    with exchanged(pair, SENT) as first, exchanged(pair, relay(first)) as second:
        assert [element.stream for element in second] == [SENT[place][0] for place in places]
        for element, place in zip(second, places, strict=True):
            array = SENT[place][1]
            assert (element.dtype, element.shape) == (array.dtype, array.shape)
            assert element.tobytes() == array.tobytes()


@pytest.mark.parametrize("to", [1, 2])
def test_slices_without_names_and_batches_are_sent_on_as_they_were(to) -> None:
    names = [local_name() for _ in range(to)]
    with contextlib.ExitStack() as stack:
        tx, rx = stack.enter_context(aiflow.pair(memory="16MiB"))
        ends = [stack.enter_context(aiflow.Receiver(f"ring:{name}", memory="16MiB")) for name in names]
        options = {"to": names} if to > 1 else {}
        relay = stack.enter_context(aiflow.Sender([f"ring:{name}" for name in names], **options))
        for send in (
            lambda: tx.send([b"abc", b"def", np.asfortranarray(np.arange(6).reshape(2, 3))], wait=False),
            lambda: tx.send_batch("batch", np.arange(12.0).reshape(4, 3), wait=False),
        ):
            send()
            with rx.recv(PATIENCE_S) as first:
                expected = [(element.stream, element.array.tobytes()) for element in first]
                ticket = relay.send(first, wait=False)
                got = [(element.stream, element.array.tobytes()) for end in ends for element in end.recv(PATIENCE_S)]
                ticket.result(PATIENCE_S)
                assert sorted(got) == sorted(expected)


def test_an_element_is_one_element_to_put_and_send_batch() -> None:
    with aiflow.pair(memory="16MiB", slice_ms=5) as (tx, rx):
        dates = np.arange(6).astype("M8[s]").reshape(2, 3)
        first = exchanged(aiflow.Pair(tx, rx), {"dates": dates})
        tx.put("copied", first["dates"])
        with rx.recv(PATIENCE_S) as got:
            assert np.array_equal(got["copied"].array, dates)
        tx.put("in place", first["dates"], copy=False)
        with rx.recv(PATIENCE_S) as got:
            assert np.array_equal(got["in place"].array, dates)
        tx.send_batch("rows", first["dates"], wait=False)
        with rx.recv(PATIENCE_S) as got:
            assert np.array_equal(got.as_arrays()["rows"], dates)


# ---- a slice as a sequence, an element as an array ----


@pytest.mark.parametrize("part", [lambda s: s, lambda s: s.shards(1)[0]], ids=["slice", "shard"])
def test_a_slice_is_a_sequence_of_its_elements(pair, part) -> None:
    whole = part(exchanged(pair, SENT))
    numbers = [0, 1, 2]
    for key in (
        *(slice(*bounds) for bounds in [(0, 2), (None, None), (None, None, -1), (-2, None), (5, 9), (2, 0), (0, 3, 2)]),
        *(0, 2, -1, -3, True, np.int64(1), np.uint8(2)),
    ):
        expected = numbers[key]
        got = whole[key]
        assert ([e.number for e in got] if isinstance(key, slice) else got.number) == expected
    for key in (3, -4, 10**30):
        with pytest.raises(IndexError, match="there are 3"):
            whole[key]
    for key in (1.5, None, b"left", (0, 1), [0], np.float64(1), np.array([True])):
        with pytest.raises(TypeError, match=r"by a stream's name, a place or a slice of places, not by \w+"):
            whole[key]
    assert whole[0] in whole
    assert whole[0] == whole[-3]
    assert whole[0] != whole[1]
    assert next(reversed(whole)) == whole[2]
    assert len({*whole, *whole}) == 3
    other = exchanged(pair, SENT)
    assert other[0] not in whole
    assert sum(other[0] in shard for shard in other.shards(3)) == 1
    assert "left" in whole
    assert all(what not in whole for what in ("none", 0, None, [], b"left"))


def test_a_key_error_names_the_streams_that_there_are(pair) -> None:
    time_slice = exchanged(pair, SENT)
    for find in (lambda: time_slice["middle"], lambda: time_slice.stream("middle"), lambda: time_slice.stream(0)):
        with pytest.raises(KeyError, match=r"middle|0") as missing:
            find()
        assert "'left'" in str(missing.value)
        assert "'right'" in str(missing.value)
    with pytest.raises(KeyError, match=r"several elements: use stream\('left'\)"):
        time_slice["left"]
    many = exchanged(pair, {f"cam-{k}": b"x" for k in range(1000)})
    with pytest.raises(KeyError, match=r"'cam-0'.* and 990 more") as missing:
        many["none"]
    assert len(str(missing.value)) < 300
    with pytest.raises(KeyError, match="There is none"):
        exchanged(pair, [])["a"]
    for n in (0, -1, 1.5, "2", None):
        with pytest.raises(ConfigError, match="at least 1"):
            time_slice.shards(n)


@pytest.mark.parametrize("assemble", [True, False])
def test_an_element_is_the_array_that_it_says(assemble) -> None:
    with aiflow.pair(memory="16MiB", assemble=assemble) as both:
        dates, fortran = np.arange(3).astype("M8[s]"), np.asfortranarray(np.ones((2, 3)))
        for array in (dates, fortran, np.zeros(2, "u1,f4"), np.array(1j)):
            element = exchanged(both, [array])[0]
            got = np.asarray(element)
            assert (got.dtype, got.shape) == (array.dtype, array.shape)
            assert np.array_equal(got, array)
            assert bytes(element) == array.tobytes(order="A")


def test_where_arrays_lie_is_documented(pair) -> None:
    batch = exchanged(pair, [("a", np.zeros(25, "f4")), ("a", np.ones(25, "f4")), ("b", np.zeros(2, complex))])
    assert [element.array.ctypes.data % 64 for element in batch] == [0, 36, 0]
    assert all(element.array.flags.aligned for element in batch)
    for kind in (aiflow.Receiver, aiflow.Element):
        assert "a multiple of 64 bytes" in " ".join((kind.__doc__ or "").split())


# ---- memory, names, and figures ----


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "dropped"])
def test_memory_goes_back_at_close_without_the_cycle_collector(kept) -> None:
    frame = np.ones(50 * MiB, np.uint8)
    held = []
    gc.collect()
    gc.disable()
    try:
        sizes = []
        for _ in range(3):
            with aiflow.pair(memory="64MiB") as (tx, rx):
                ticket = tx.send([frame], wait=False)
                with rx.recv(PATIENCE_S) as time_slice:
                    view = time_slice[0].array[:3]
                ticket.result(PATIENCE_S)
            assert view.tolist() == [1, 1, 1]
            if kept:
                held.append((tx, rx))
            del tx, rx, ticket, time_slice, view
            sizes.append(resident_bytes())
        assert sizes[2] - sizes[0] < 25 * MiB
    finally:
        gc.enable()


@pytest.mark.parametrize("scheme", ["local", "ring"])
def test_what_is_dropped_goes_at_once_and_gives_its_name_back(scheme) -> None:
    gc.collect()
    gc.disable()
    try:
        endpoint = f"{scheme}:{local_name()}"
        rx, tx = aiflow.Receiver(endpoint, memory="16MiB"), aiflow.Sender(endpoint, slice_ms=5)
        tx.send([b"x"], timeout=PATIENCE_S)
        tx.put("a", b"x")
        rx.recv(PATIENCE_S).release()
        gone = [weakref.ref(rx), weakref.ref(tx)]
        with pytest.warns(ResourceWarning, match="was not closed"):
            del tx
        with pytest.warns(ResourceWarning, match="was not closed"):
            del rx
        assert [one() for one in gone] == [None, None]
        aiflow.Receiver(endpoint, memory="16MiB").close()
    finally:
        gc.enable()


def test_a_rate_counts_from_when_a_receiver_was_there(endpoint) -> None:
    with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S) as tx:
        assert tx.explain() == "nothing was sent yet"
        called = time.monotonic()
        ticket = tx.send([bytes(MiB)], wait=False)
        time.sleep(0.5)  # the time without a receiver is measured
        assert "no port is up" in tx.explain()
        with aiflow.Receiver(endpoint, memory="16MiB") as rx:
            rx.recv(PATIENCE_S).release()
            report = ticket.result(PATIENCE_S)
            took = time.monotonic() - called
            assert report.connecting > 0.4
            assert report.connecting + report.seconds <= took
            assert report.goodput_bps == pytest.approx(8 * MiB / report.seconds)
            assert report.seconds < took - 0.4
            assert "of connecting" in str(report)
            assert "takes the next chunk" in tx.explain()
            assert "no live path" not in tx.explain()
            report = tx.send([bytes(MiB)], wait=False)
            rx.recv(PATIENCE_S).release()
            assert report.result(PATIENCE_S).connecting == 0


@pytest.mark.parametrize("policy", ["pull", "score", "round_robin", "least_queue"])
def test_explain_knows_the_path_after_the_first_slice(policy) -> None:
    endpoint = f"ring:{local_name()}"
    with aiflow.Receiver(endpoint, memory="16MiB") as rx, aiflow.Sender(endpoint, policy=policy) as tx:
        tx.send([bytes(100_000)], wait=False)
        rx.recv(PATIENCE_S).release()
        tx.flush(PATIENCE_S)
        assert "no live path" not in tx.explain()
        assert "port 0: " in tx.explain()


def test_senders_of_a_process_have_different_names() -> None:
    names = []
    for _ in range(3):
        with aiflow.pair(memory="16MiB") as (tx, rx):
            tx.send([b"x"], wait=False)
            names.append(rx.recv(PATIENCE_S).sender)
            assert names[-1] == tx.name
            assert str(os.getpid()) in tx.name
    assert len(set(names)) == 3


# ---- arguments ----


@pytest.mark.parametrize("timeout", ["5", b"5", -1, math.nan, -math.inf, [], 1e6], ids=repr)
def test_what_is_no_timeout_is_refused_everywhere(pair, timeout) -> None:
    tx, rx = pair
    ticket = tx.send([b"x"], wait=False)
    put = tx.put("a", b"x", copy=False)
    for call in (
        lambda: tx.flush(timeout=timeout),
        lambda: ticket.result(timeout),
        lambda: put.result(timeout),
        lambda: tx.send([b"x"], timeout=timeout),
        lambda: tx.send_batch("a", np.zeros((2, 2)), timeout=timeout),
        lambda: rx.recv(timeout=timeout),
        lambda: asyncio.run(rx.arecv(timeout=timeout)),
        lambda: aiflow.Receiver("ring:none", timeout=timeout),
    ):
        with pytest.raises(ConfigError, match="give a number of seconds"):
            call()
    put.cancel()


def test_infinity_is_no_end_of_waiting(pair) -> None:
    tx, rx = pair
    sender = threading.Thread(target=lambda: tx.send([b"x"], timeout=math.inf))
    sender.start()
    assert rx.recv(timeout=math.inf)[0].tobytes() == b"x"
    sender.join(PATIENCE_S)
    tx.flush(math.inf)
    with pytest.raises(SliceTimeout):
        rx.recv(timeout=0)


def test_close_with_abort_waits_for_nothing(endpoint) -> None:
    tx = aiflow.Sender(endpoint)
    ticket = tx.send([b"x"], wait=False)  # there is no receiver
    tx.put("a", b"x")
    tx.close(abort=True)
    assert ticket.done()
    with pytest.raises(SliceTimeout, match="given up"):
        ticket.result(0)
    tx.close()  # done: nothing is raised again


def test_a_pair_whose_sender_fails_to_close_closes_its_receiver() -> None:
    pair = aiflow.pair(memory="16MiB")
    pair.sender.put("a", np.ones(20 * MiB, np.uint8))  # more than the receiver holds
    with pytest.raises(aiflow.PoolExhausted):
        pair.close()
    with pytest.raises(ConfigError, match="closed"):
        pair.receiver.recv(0)


def test_leaving_an_async_block_by_cancellation_closes_the_sender(endpoint) -> None:
    async def waits_without_a_receiver() -> None:
        async with aiflow.Sender(endpoint) as tx:
            senders.append(tx)
            tx.send([b"x"], wait=False)

    async def cancelled() -> None:
        task = asyncio.create_task(waits_without_a_receiver())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    senders: list[aiflow.Sender] = []
    asyncio.run(cancelled())
    with pytest.raises(ConfigError, match="closed"):
        senders[0].send([b"x"])
    assert settle(lambda: not any(thread.name == "aiflow-sender" for thread in threading.enumerate()))
