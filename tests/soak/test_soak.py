"""The main job many times over: slices in a row at a constant size, and peers killed one after the other.

CI runs the short form of each; ``-m soak`` runs the long one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from kills import MOST_LATE, fraction_of, kill_at
from mbufs import everything_returned
from peer import SLOWLY, MiB, Peer, content, name, resident_bytes
from stalls import Stalls
from wait import PATIENCE_S, wait_for

import aiflow
from aiflow.errors import PeerLost

# ---- slices in a row ----

NB_IMAGES = 512
TOTAL = 137_000_000


class Images:
    """512 buffers of the size of photographs, with new content and new sizes for each slice."""

    def __init__(self) -> None:
        sizes = np.random.default_rng(512).integers(220_000, 310_001, NB_IMAGES)
        self.sizes = (sizes * (TOTAL / sizes.sum())).astype(int)
        self.sizes[0] += TOTAL - self.sizes.sum()
        self.base = content(512, TOTAL + 8).view(np.uint64)[: TOTAL // 8 + 1].copy()
        self.memory = np.empty_like(self.base)

    def of_slice(self, number: int) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        key = np.random.default_rng(number).integers(1, 1 << 63, dtype=np.uint64)
        np.bitwise_xor(self.base, key, out=self.memory)  # every byte of it is another
        at, memory = 0, self.memory.view(np.uint8)
        for image, size in enumerate(np.roll(self.sizes, number)):
            yield f"{number}/{image:03}.jpg", memory[at : at + size]
            at += size


def digest(elements: list[tuple[str, np.ndarray[Any, Any]]]) -> str:
    total = hashlib.blake2b()
    for stream, array in elements:
        total.update(f"{stream} {array.nbytes} ".encode())
        total.update(array)
    return total.hexdigest()


def send_slices(pipe: Connection, endpoint: str, count: int) -> None:
    images = Images()
    with everything_returned(), aiflow.Sender(endpoint, peer_timeout=PATIENCE_S) as tx:
        for number in range(count):
            elements = list(images.of_slice(number))
            expected = digest(elements)
            report = tx.send(elements, timeout=PATIENCE_S)
            pipe.send((number, expected, resident_bytes(), report.seconds))
        pipe.recv()


def receive_slices(pipe: Connection, endpoint: str, count: int) -> None:
    with everything_returned(), aiflow.Receiver(endpoint, memory="300MiB") as rx:
        wait_for(lambda: rx.counters["slices"] >= 2, "slices that fill the memory", PATIENCE_S)  # all of it used once
        for number in range(count):
            with rx.recv(timeout=PATIENCE_S) as time_slice:
                got = digest([(element.stream, element.array) for element in time_slice])
            pipe.send((number, got, resident_bytes(), time_slice.nbytes))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [25, pytest.param(100, marks=pytest.mark.soak)])
def test_slices_in_a_row_arrive_intact_at_a_constant_size(count: int) -> None:
    endpoint = f"local:{name()}*4"
    started = time.monotonic()
    with Peer(receive_slices, endpoint, count) as receiver, Peer(send_slices, endpoint, count) as sender:
        sent = [sender.hear() for _ in range(count)]
        got = [receiver.hear() for _ in range(count)]
        sender.tell("close")  # not earlier: a port that goes makes the receiver smaller
        sender.ends()
        receiver.ends()
    assert [row[:2] for row in got] == [row[:2] for row in sent]
    assert len({row[1] for row in sent}) == count  # each another content
    assert {row[3] for row in got} == {TOTAL}
    for rows, who in ((sent, "sender"), (got, "receiver")):
        sizes = np.array([row[2] for row in rows[10:]]) / 1e6
        print(f"{who}: resident {sizes.min():.1f} to {sizes.max():.1f} MB after slice 10")
        assert sizes.max() - sizes.min() <= 5, who
    seconds = sorted(row[3] for row in sent)
    print(f"{count} slices in {time.monotonic() - started:.0f} s; a slice {seconds[0]:.3f} to {seconds[-1]:.3f} s")


# ---- kill -9, again and again ----

WHOLE = 16 * MiB
CUT = 64 * MiB


@contextmanager
def busy_cores() -> Iterator[None]:
    """A loop that never sleeps, pinned on each core that we may use."""
    loops = []
    try:
        for core in sorted(os.sched_getaffinity(0)):
            loop = f"import os\nos.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
            loops.append(subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE))
        for process in loops:
            assert process.stdout is not None
            process.stdout.readline()
        yield
        assert all(process.poll() is None for process in loops)
    finally:
        for process in loops:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def held_after(ports: Callable[[], Any]) -> tuple[int, int]:
    """Descriptors and threads of a survivor, as most looks see them, after the dead peer's ports are gone."""
    wait_for(lambda: not len(ports()), "the dead peer's ports to go")
    seen = []
    for _ in range(15):
        seen.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
        time.sleep(0.02)
    return max(set(seen), key=seen.count)


def sender_to_be_killed(pipe: Connection, endpoint: str, seed: int) -> None:
    with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S, faults=SLOWLY) as tx:
        tx.send({"whole": content(seed, WHOLE)}, timeout=PATIENCE_S)
        pipe.send("whole")
        while True:
            tx.send({"cut": content(seed, CUT)})


def surviving_receiver(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), aiflow.Receiver(endpoint, memory="256MiB") as rx:
        pipe.send("open")
        turn, taken = 0, 0
        while (pid := pipe.recv()) is not None:
            with rx.recv(timeout=PATIENCE_S) as time_slice:
                whole = np.array_equal(time_slice["whole"].array, content(turn, WHOLE))
            taken += 1
            done, total = kill_at(fraction_of(turn), lambda: rx.progress, pid, CUT)
            killed = time.monotonic()
            shown = []
            with Stalls() as stalls:
                while rx.memory_used and time.monotonic() < killed + PATIENCE_S:
                    if rx.counters["slices"] > taken:  # came whole before the kill: it lies in memory until it is taken
                        with rx.recv(timeout=PATIENCE_S) as time_slice:
                            shown.append(np.array_equal(time_slice["cut"].array, content(turn, CUT)))
                        taken += 1
                        killed = time.monotonic()
                    time.sleep(0.001)
                freed = time.monotonic() - killed, stalls.allowance
            done = max(done, rx.progress[0])
            pipe.send((whole, done, total, freed, shown, held_after(lambda: rx.port_table)))
            turn += 1
    pipe.send("nothing is out")


def receiver_to_be_killed(pipe: Connection, endpoint: str, seed: int) -> None:
    with aiflow.Receiver(endpoint) as rx:
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["whole"].array, content(seed, WHOLE)))
        pipe.recv()


def surviving_sender(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), aiflow.Sender(endpoint, faults=SLOWLY, peer_timeout=PATIENCE_S) as tx:
        pipe.send("open")
        turn = 0
        while (pid := pipe.recv()) is not None:
            tx.send({"whole": content(turn, WHOLE)}, timeout=PATIENCE_S)
            pipe.recv()  # the victim has said that it came whole
            buffer = bytearray(content(turn, CUT))
            ticket = tx.send({"cut": buffer}, wait=False)
            killer = threading.Thread(target=kill_at, args=(fraction_of(turn), lambda t=ticket: t.progress, pid, CUT))
            killer.start()
            try:
                ticket.result(timeout=PATIENCE_S)
                outcome = "delivered"
            except PeerLost as error:
                outcome = f"PeerLost {error.delivered}"
            killer.join()
            buffer.clear()  # refused while anything may read it
            pipe.send((outcome, *ticket.progress, held_after(lambda: tx.port_table)))
            turn += 1
    pipe.send("nothing is out")


LONG = [8, pytest.param(50, marks=pytest.mark.soak)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", LONG)
def test_a_receiver_survives_the_death_of_sender_after_sender(kills: int) -> None:
    endpoint = f"local:{name()}*4"
    held, late, turn = [], 0, 0
    with busy_cores(), Peer(surviving_receiver, endpoint) as survivor:
        assert survivor.hear() == "open"
        while len(held) < kills:
            with Peer(sender_to_be_killed, endpoint, turn) as victim:
                survivor.tell(victim.pid)
                assert victim.hear(survivor=survivor) == "whole"
                whole, done, total, freed, shown, now = survivor.hear()
                assert victim.killed()
            assert whole is True  # the first slice of this sender, after its predecessor's death
            seconds, allowance = freed
            assert seconds <= 1.0 + allowance
            assert all(shown)  # what came whole before the kill; the cut slice is never shown
            if shown:
                late += 1
                assert late <= MOST_LATE * kills
            else:
                assert 0 < done < total  # killed in mid-slice
                held.append((seconds, now))
            turn += 1
        survivor.tell(None)
        assert survivor.hear() == "nothing is out"
        survivor.ends()
    print(f"descriptors and threads: {[now for _, now in held]}")
    print(f"{kills} senders killed; memory back after {max(freed for freed, _ in held) * 1e3:.0f} ms at most")
    print(f"{late} more were killed after their slice")
    assert held[-1][1] == held[2][1]  # descriptors and threads


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", LONG)
def test_a_sender_survives_the_death_of_receiver_after_receiver(kills: int) -> None:
    endpoint = f"local:{name()}*4"
    held, late, turn = [], 0, 0
    with busy_cores(), Peer(surviving_sender, endpoint) as survivor:
        assert survivor.hear() == "open"
        while len(held) < kills:
            with Peer(receiver_to_be_killed, endpoint, turn) as victim:
                survivor.tell(victim.pid)
                assert victim.hear(survivor=survivor) is True  # whole, after the predecessor's death
                survivor.tell("go on")
                outcome, acked, total, now = survivor.hear()
                assert victim.killed()
            if outcome == "delivered":
                late += 1
                assert late <= MOST_LATE * kills
            else:
                assert outcome in ("PeerLost False", "PeerLost None")
                assert 0 < acked < total  # killed in mid-slice
                held.append((outcome, now))
            turn += 1
        survivor.tell(None)
        assert survivor.hear() == "nothing is out"
        survivor.ends()
    print(f"descriptors and threads: {[now for _, now in held]}")
    print(f"{kills} receivers killed, each a PeerLost; {late} more were killed after their slice")
    assert held[-1][1] == held[2][1]  # descriptors and threads
