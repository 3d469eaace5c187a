"""No view outlives its memory, and no memory outlives its last view, in any order and any thread."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
import warnings

import numpy as np
import pytest
from mbufs import mbufs_out
from wait import settle

import aiflow
from aiflow.errors import ConfigError, PoolExhausted, SliceTimeout

BOTH = pytest.mark.parametrize("assemble", [True, False], ids=["assembled", "kept"])
MEMORY = "64MiB"
DATA = np.random.default_rng(3).integers(0, 256, 300_000, dtype=np.uint8)


def received(pair, data=DATA):
    ticket = pair.sender.send({"a": data, "b": data[:100]}, wait=False)
    time_slice = pair.receiver.recv(timeout=20)
    ticket.result(20)
    return time_slice


def views(time_slice) -> list[np.ndarray]:
    element = time_slice["a"]
    return [element.array] if time_slice._incoming.assembled else element.segments


def joined(arrays) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


@BOTH
def test_view_outlives_slice(assemble) -> None:
    with aiflow.pair(assemble=assemble, memory=MEMORY) as pair:
        time_slice = received(pair)
        kept = views(time_slice)
        time_slice.release()
        del time_slice
        gc.collect()
        for _ in range(5):  # whatever was freed by mistake is overwritten
            received(pair, np.zeros_like(DATA)).release()
        assert joined(kept) == DATA.tobytes()
        held = pair.receiver.memory_used
        assert held > 0
        del kept
        gc.collect()
        assert settle(lambda: pair.receiver.memory_used == 0)


@BOTH
def test_view_outlives_receiver(assemble) -> None:
    pair = aiflow.pair(assemble=assemble, memory=MEMORY)
    kept = views(received(pair))
    pair.close()
    del pair
    gc.collect()
    assert joined(kept) == DATA.tobytes()
    del kept
    gc.collect()
    assert settle(lambda: not mbufs_out())


@BOTH
def test_slice_outlives_close(assemble) -> None:
    pair = aiflow.pair(assemble=assemble, memory=MEMORY)
    time_slice = received(pair)
    pair.close()
    gc.collect()
    assert joined(views(time_slice)) == DATA.tobytes()
    assert time_slice["a"].array.tobytes() == DATA.tobytes()
    del time_slice


@BOTH
def test_derived_views_hold_the_memory_too(assemble) -> None:
    pair = aiflow.pair(assemble=assemble, memory=MEMORY)
    time_slice = received(pair)
    corner = views(time_slice)[0][10:20].reshape(2, 5).T
    view = memoryview(time_slice["b"])
    tensor = np.from_dlpack(time_slice["b"]) if assemble else None
    time_slice.release()
    pair.close()
    del pair, time_slice
    gc.collect()
    assert corner.T.tobytes() == DATA[10:20].tobytes()
    assert view.tobytes() == DATA[:100].tobytes()
    if tensor is not None:
        assert tensor.tobytes() == DATA[:100].tobytes()


@BOTH
def test_last_view_may_die_in_another_thread(assemble) -> None:
    with aiflow.pair(assemble=assemble, memory=MEMORY) as pair:
        kept = [views(received(pair)) for _ in range(8)]
        used = pair.receiver.memory_used
        assert used > 0
        threads = [threading.Thread(target=lambda: (kept.pop(), gc.collect())) for _ in range(8)]
        for thread in threads:
            thread.start()
        received(pair).release()  # while they do
        for thread in threads:
            thread.join(20)
        gc.collect()
        assert settle(lambda: pair.receiver.memory_used == 0)


@BOTH
def test_memory_comes_back_from_cycles(assemble) -> None:
    """The garbage collector frees a slice that frames of an exception hold, its oldest object first."""
    with aiflow.pair(assemble=assemble, memory=MEMORY) as pair:
        for _ in range(3):
            cycle: list[object] = [received(pair)]
            cycle.append(cycle)
            assert pair.receiver.memory_used > 0
            del cycle
            gc.collect()
        assert settle(lambda: pair.receiver.memory_used == 0, 5)


def test_released_slice_says_so() -> None:
    with aiflow.pair() as pair:
        time_slice = received(pair)
        element = time_slice["a"]
        time_slice.release()
        time_slice.release()
        with pytest.raises(ConfigError, match="released"):
            element.array  # noqa: B018


def test_advancing_releases_the_slice_before_but_not_its_arrays() -> None:
    with aiflow.pair() as pair:
        tickets = [pair.sender.send([bytes([i]) * 10_000], wait=False) for i in range(3)]
        arrays, slices = [], []
        for time_slice in pair.receiver:
            arrays.append(time_slice[0].array)
            slices.append(time_slice)
            if len(arrays) == 3:
                break
        assert [array[0] for array in arrays] == [0, 1, 2]
        with pytest.raises(ConfigError, match="released"):
            slices[0][0].array  # noqa: B018
        for ticket in tickets:
            ticket.result(20)


def test_arrays_are_the_users_own() -> None:
    """Written to, they change nothing that arrives later; two of one element are one memory."""
    with aiflow.pair() as pair:
        first = received(pair)
        array, again = first["a"].array, first["a"].array
        array[:] = 9
        assert again[0] == 9
        second = received(pair)
        assert second["a"].array.tobytes() == DATA.tobytes()
        assert array[5] == 9


def test_segments_are_read_only() -> None:
    with aiflow.pair(assemble=False, memory=MEMORY) as pair, received(pair) as time_slice:
        for segment in time_slice["a"].segments:
            with pytest.raises(ValueError, match="read-only"):
                segment[0] = 1


def test_what_nobody_took_is_freed_with_the_receiver() -> None:
    pair = aiflow.pair(assemble=False, memory=MEMORY)
    tickets = [pair.sender.send([DATA], wait=False) for _ in range(4)]
    for ticket in tickets:
        ticket.result(20)
    pair.close()
    del pair
    gc.collect()
    assert settle(lambda: not mbufs_out())


def test_a_sender_keeps_buffers_alive_until_the_end() -> None:
    with aiflow.pair() as pair:
        ticket = pair.sender.send([np.full(2_000_000, 7, np.uint8)], wait=False)
        gc.collect()
        with pair.receiver.recv(timeout=20) as time_slice:
            assert (time_slice[0].array == 7).all()
        ticket.result(20)


def test_buffers_are_free_once_send_has_returned_or_raised(endpoint) -> None:
    buffer = bytearray(1000)
    with aiflow.pair() as pair:
        ticket = pair.sender.send([buffer], wait=False)
        pair.receiver.recv(timeout=20)
        ticket.result(20)
        buffer.append(1)  # a BufferError while anything still exports it
    with aiflow.Sender(endpoint) as tx:
        with pytest.raises(SliceTimeout):
            tx.send([buffer], timeout=0.1)
        buffer.append(2)
        ticket = tx.send([buffer], wait=False)
        ticket.cancel()
        buffer.append(3)
    tx = aiflow.Sender(endpoint)
    ticket = tx.send([buffer], wait=False)
    with pytest.raises(ZeroDivisionError), tx:
        raise ZeroDivisionError  # leaving by an exception aborts
    assert ticket.done()
    buffer.append(4)


@pytest.mark.parametrize("to", [None, ["a", "b"]], ids=["one", "several"])
def test_the_traceback_of_an_error_holds_no_buffer(endpoint, to) -> None:
    with aiflow.Sender(endpoint, to=to) as tx:
        for send, *first in ((tx.send,), (tx.send_batch, "x")):
            buffer = bytearray(1000)
            with pytest.raises(SliceTimeout) as caught:
                send(*first, buffer if first else [buffer], timeout=0.1)
            buffer.append(1)  # a BufferError while anything still exports it
            assert caught.value.delivered is False


def test_fault_60_a_buffer_changed_during_send_is_refused_or_sent_as_it_was_read(endpoint) -> None:
    """Documented: the receiver shows either bytes under a right CRC, or nothing."""
    with aiflow.pair() as pair:
        buffer = np.zeros(20_000_000, np.uint8)
        ticket = pair.sender.send([buffer], wait=False)
        while not ticket.done():
            buffer += 1
            if pair.receiver.counters["slices"]:
                break
        try:
            ticket.result(20)
        except aiflow.IntegrityError:
            assert pair.receiver.counters["slices"] == 0
        with received(pair) as time_slice:
            while len(time_slice) != 2:
                time_slice = pair.receiver.recv(timeout=20)
            assert time_slice["a"].array.tobytes() == DATA.tobytes()


def test_unclosed_objects_warn_and_close() -> None:
    threads = threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair = aiflow.pair()
        del pair
        gc.collect()
    assert len([w for w in caught if issubclass(w.category, ResourceWarning)]) == 2
    assert settle(lambda: threading.active_count() == threads)


def test_closing_twice_and_using_afterwards() -> None:
    pair = aiflow.pair()
    pair.close()
    pair.close()
    with pytest.raises(ConfigError, match="closed"):
        pair.sender.send([b"x"])
    with pytest.raises(ConfigError, match="closed"):
        pair.receiver.recv()
    assert list(pair.receiver) == []


def test_close_wakes_a_thread_that_waits() -> None:
    pair = aiflow.pair()
    seen: list[list[object]] = []
    thread = threading.Thread(target=lambda: seen.append(list(pair.receiver)))
    thread.start()
    time.sleep(0.05)  # let it wait; either order must work
    pair.close()
    thread.join(60)
    assert seen == [[]]


def test_a_hundred_pairs_leave_no_descriptor() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    counts = []
    for _ in range(20):
        with aiflow.pair() as pair:
            received(pair).release()
        gc.collect()
        counts.append(max(count() for _ in range(5)))
    assert settle(lambda: count() <= counts[1])


@BOTH
@pytest.mark.parametrize(("count", "size"), [(1000, 3000), (5, 700_000), (200_000, 64)])
def test_the_memory_that_an_error_asks_for_is_enough(assemble, count, size) -> None:
    rows = np.ones((count, size), np.uint8)
    with aiflow.pair(assemble=assemble, memory="1MiB") as (tx, _), pytest.raises(PoolExhausted) as caught:
        tx.send_batch("rows", rows, timeout=20)
    wanted = int(re.search(r"at least (\d+)", str(caught.value))[1])
    with aiflow.pair(assemble=assemble, memory=wanted) as (tx, rx):
        ticket = tx.send_batch("rows", rows, wait=False)
        assert len(rx.recv(timeout=20)) == count
        ticket.result(20)
