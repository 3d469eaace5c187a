"""Users hold views, pause and interrupt; elements by the million, and larger than 4 GB. Faults 48, 49, 53, 58, 59."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from mbufs import everything_returned
from peer import BIG, SLOWLY, MiB, Peer, content, in_the_middle, name, send_once
from stalls import Stalls
from wait import PATIENCE_S, wait_for

import aiflow
from aiflow.errors import PoolExhausted

# ---- 48, 49: the user ----


@pytest.mark.parametrize("timeout", [1.0, None])
def test_fault_48_a_user_who_holds_every_view_is_told_which(timeout: float | None) -> None:
    with aiflow.pair(memory="64MiB") as (tx, rx):
        tickets = [tx.send({"x": content(seed, 24 * MiB)}, wait=False) for seed in range(3)]
        held = []
        for _ in range(2):
            time_slice = rx.recv(timeout=30)
            held.append(time_slice["x"].array)
            time_slice.release()  # the views still hold it
        either_order = r"slice 1 from .* slice 2 from|slice 2 from .* slice 1 from"
        started, patience = time.monotonic(), 10.0 if timeout is None else timeout
        with Stalls() as stalls:
            with pytest.raises(PoolExhausted, match=either_order) as caught:
                rx.recv(timeout=timeout)
            assert 0.5 * patience <= time.monotonic() - started <= patience + 1 + stalls.allowance
        assert str(24 * MiB) in str(caught.value)
        assert not tickets[2].done()
        assert rx.counters["slices"] == 2
        assert all(np.array_equal(array, content(seed, 24 * MiB)) for seed, array in enumerate(held))

        held.pop(0)
        with rx.recv(timeout=30) as time_slice:
            assert np.array_equal(time_slice["x"].array, content(2, 24 * MiB))
        assert [ticket.result(timeout=30).nbytes for ticket in tickets] == [24 * MiB] * 3


def send_several(pipe: Connection, endpoint: str, count: int, nbytes: int) -> None:
    with aiflow.Sender(endpoint, peer_timeout=2.0) as tx:
        wait_for(lambda: tx.receiver, "the receiver")
        for seed in range(count):
            pipe.send(tx.send({"x": content(seed, nbytes)}).seconds)


@pytest.mark.parametrize("trouble", ["exception", "pause"])
def test_fault_49_a_loop_that_fails_or_pauses_lets_the_sender_wait(trouble: str) -> None:
    endpoint, seen = f"local:{name()}*2", []
    with aiflow.Receiver(endpoint, memory="20MiB") as rx, Peer(send_several, endpoint, 8, 8 * MiB) as sender:

        def loop() -> None:
            for time_slice in rx:
                seen.append(np.array_equal(time_slice["x"].array, content(len(seen), 8 * MiB)))
                if len(seen) == 3:
                    if trouble == "exception":
                        raise RuntimeError("the user's")
                    time.sleep(3)
                if len(seen) == 8:
                    return

        if trouble == "exception":
            with pytest.raises(RuntimeError, match="the user's"):
                loop()
            time.sleep(3)
        loop()
        seconds = [sender.hear() for _ in range(8)]
        assert max(seconds) > 2.2  # it waited, longer than its peer_timeout
        assert sum(second > 2.2 for second in seconds) == 1
        sender.ends()
    assert seen == [True] * 8


# ---- 53: Ctrl-C ----


def interrupted_sender(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), aiflow.Sender(endpoint, peer_timeout=PATIENCE_S, faults=SLOWLY) as tx:
        buffer = bytearray(content(53, BIG))
        pipe.send(os.getpid())
        with Stalls() as stalls:
            try:
                tx.send({"x": buffer})
            except KeyboardInterrupt:
                pipe.send((time.monotonic(), stalls.allowance))
        buffer.clear()  # refused while anything may read it
        pipe.send(tx.send({"x": content(54, MiB)}, timeout=PATIENCE_S).nbytes)
    pipe.send("nothing is out")


def receiver_that_interrupts(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), aiflow.Receiver(endpoint) as rx:
        pipe.send("open")
        sender = pipe.recv()
        in_the_middle(lambda: rx.progress)
        os.kill(sender, signal.SIGINT)
        pipe.send(time.monotonic())
        with rx.recv(timeout=PATIENCE_S) as time_slice:  # not the interrupted one
            pipe.send(np.array_equal(time_slice["x"].array, content(54, MiB)))
        pipe.send((rx.counters["slices"], rx.memory_used))
        pipe.recv()


def test_fault_53_ctrl_c_in_send_returns_at_once_and_leaves_the_buffers_alone() -> None:
    endpoint = f"local:{name()}*2"
    with Peer(receiver_that_interrupts, endpoint) as receiver, Peer(interrupted_sender, endpoint) as sender:
        assert receiver.hear() == "open"
        receiver.tell(sender.hear())
        interrupted = receiver.hear()
        returned, allowance = sender.hear()
        assert returned - interrupted < 0.5 + allowance
        assert receiver.hear() is True
        slices, used = receiver.hear()
        assert slices == 1  # it was in mid-slice, and that slice is gone
        assert used == 0
        assert sender.hear() == MiB
        assert sender.hear() == "nothing is out"
        sender.ends()
        receiver.tell("close")
        receiver.ends()


def interrupted_receiver(pipe: Connection, endpoint: str, when: str) -> None:
    with everything_returned(), aiflow.Receiver(endpoint) as rx:
        sent = []

        def interrupt() -> None:
            if when == "in mid-slice":
                met = in_the_middle(lambda: rx.progress)
            else:
                time.sleep(0.3)
                met = rx.progress
            sent.append((time.monotonic(), met))
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        if when == "in mid-slice":
            pipe.send("open")
        with Stalls() as stalls:
            try:
                rx.recv()
            except KeyboardInterrupt:
                raised = time.monotonic() - stalls.allowance
        thread.join()
        interrupted, met = sent[0]
        pipe.send((raised - interrupted, *met))
        if when == "while idle":
            pipe.send("open")
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["x"].array, content(55, BIG)))
        pipe.recv()


@pytest.mark.parametrize("when", ["in mid-slice", "while idle"])
def test_fault_53_ctrl_c_in_recv_returns_at_once_and_loses_nothing(when: str) -> None:
    endpoint = f"local:{name()}*2"
    with Peer(interrupted_receiver, endpoint, when) as receiver:
        if when == "while idle":
            assert receiver.hear()[0] < 0.5
        assert receiver.hear() == "open"
        with Peer(send_once, endpoint, 55, BIG, {"faults": SLOWLY}) as sender:
            if when == "in mid-slice":
                seconds, got, total = receiver.hear()
                assert seconds < 0.5
                assert 0 < got < total
            assert receiver.hear() is True
            assert sender.hear() == BIG
            sender.ends()
        receiver.tell("close")
        receiver.ends()


# ---- 58, 59: many, and large ----


def send_a_million(pipe: Connection, endpoint: str, how: str) -> None:
    rows = content(58, 64_000_000).reshape(-1, 64)
    with aiflow.Sender(endpoint) as tx:
        if how == "batch":
            report = tx.send_batch("records", rows, timeout=PATIENCE_S)
        else:
            memory = rows.tobytes()
            report = tx.send((memory[at : at + 64] for at in range(0, len(memory), 64)), timeout=PATIENCE_S)
        pipe.send((report.elements, report.nbytes, report.frames_sent))


@pytest.mark.parametrize("how", ["batch", "objects"])
def test_fault_58_a_million_small_elements_arrive_in_few_frames(how: str) -> None:
    endpoint = f"local:{name()}"
    with aiflow.Receiver(endpoint) as rx, Peer(send_a_million, endpoint, how) as sender:
        time_slice = rx.recv(timeout=PATIENCE_S)
        assert len(time_slice) == 1_000_000
        rows = content(58, 64_000_000).reshape(-1, 64)
        if how == "batch":
            arrays = time_slice.as_arrays()
            assert list(arrays) == ["records"]
            assert np.array_equal(arrays["records"], rows)
            del arrays
        else:
            gathered = b"".join(element.array for element in time_slice)
            assert gathered == rows.tobytes()
            assert time_slice["999999"].nbytes == 64
        time_slice.release()
        elements, nbytes, frames = sender.hear()
        assert (elements, nbytes) == (1_000_000, 64_000_000)
        assert frames < 50_000
        sender.ends()


HUGE = (4 << 30) + 12_345  # beyond what 32 bits can count
MARKS = np.random.default_rng(59).integers(0, HUGE - 8, 64)


def send_one_huge_element(pipe: Connection, endpoint: str) -> None:
    huge = np.zeros(HUGE, np.uint8)  # untouched pages cost no memory
    for number, mark in enumerate(MARKS):
        huge[mark : mark + 8] = number + 1
    huge[-1] = 255
    with aiflow.Sender(endpoint) as tx:
        started = time.monotonic()
        try:
            report = tx.send({"huge": huge}, timeout=250)
        except PoolExhausted as error:
            pipe.send((time.monotonic() - started, str(error), error.delivered))
            report = tx.send({"small": b"goes"}, timeout=PATIENCE_S)
        pipe.send((report.nbytes, report.seconds))


def test_fault_59_an_element_larger_than_memory_is_refused_at_once() -> None:
    endpoint = f"local:{name()}"
    with aiflow.Receiver(endpoint, memory="1GiB") as rx, Peer(send_one_huge_element, endpoint) as sender:
        seconds, message, delivered = sender.hear()
        assert seconds < 20  # the wait for two processes to find each other included, on any machine
        assert str(HUGE) in message
        assert str(1 << 30) in message
        assert delivered is False
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            assert bytes(time_slice["small"].array) == b"goes"
        assert rx.memory_used == 0
        assert sender.hear()[0] == 4
        sender.ends()


def free_memory() -> int:
    """Bytes that this process may still use, of the machine and of its control group."""
    free = [int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024]
    group = Path("/sys/fs/cgroup")
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for directory in (group, group / "memory"):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                free.append(int((directory / limit).read_text()) - int((directory / used).read_text()))
    return min(free)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fault_59_an_element_of_4_gb_is_delivered() -> None:
    free = free_memory()
    if free < 3 * HUGE // 2:
        pytest.skip(f"needs {3 * HUGE // 2} bytes of free memory, there are {free}")
    endpoint = f"local:{name()}*4"
    with aiflow.Receiver(endpoint, memory="5GiB") as rx, Peer(send_one_huge_element, endpoint) as sender:
        with rx.recv(timeout=250) as time_slice:
            huge = time_slice["huge"].array
            assert huge.shape == (HUGE,)
            expected = np.zeros(64 * MiB, np.uint8)
            for start in range(0, HUGE, len(expected)):
                part = huge[start : start + len(expected)]
                expected[:] = 0
                for number, mark in enumerate(MARKS):
                    for at in range(int(mark), int(mark) + 8):
                        if start <= at < start + len(part):
                            expected[at - start] = number + 1
                if start + len(part) == HUGE:
                    expected[len(part) - 1] = 255
                assert np.array_equal(part, expected[: len(part)]), start
            del huge, part
        assert sender.hear()[0] == HUGE
        sender.ends()
