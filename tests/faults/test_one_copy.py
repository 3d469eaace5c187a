"""Senders that write into the receiver's memory, and are stopped, killed or forked while they do.

The receiver sums each placed chunk in these tests (AIFLOW_CHECK_PLACES, see conftest.py).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hugepage_pool import hugepages
from mbufs import everything_returned
from peer import MiB, Peer, content, in_the_middle, name
from stalls import Stalls
from wait import PATIENCE_S, has_stopped, wait_for

import aiflow
from aiflow._system.limits import cgroups
from aiflow.errors import PoolExhausted

SLICE = 96 * MiB
MEMORY = 2 * SLICE + 8 * MiB
SILENCE_S = 1.0


def send_numbers(pipe: Connection, endpoint: str, first: int) -> None:
    """Slices whose words are all the same number, which rises; a `pipe` message ends it."""
    with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S) as tx:
        array = np.empty(SLICE // 8, np.int64)
        number = first
        while not pipe.poll():
            array[:] = number
            tx.send({"x": array}, timeout=PATIENCE_S)
            number += 1


def is_one_number(array: np.ndarray[Any, Any]) -> bool:
    return bool((array == array[0]).all())


@contextmanager
def local_pair(ports: str = "") -> Iterator[tuple[aiflow.Sender, aiflow.Receiver]]:
    endpoint = f"local:{name()}{ports}"
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint) as tx:
        yield tx, rx


class Met:
    """Whole slices that a receiver takes while it looks for one in its middle; each is checked."""

    def __init__(self, rx: aiflow.Receiver) -> None:
        self.rx = rx
        self.numbers: list[int] = []

    def take(self) -> None:
        with self.rx.recv(timeout=PATIENCE_S) as time_slice:
            array = time_slice["x"].array
            assert is_one_number(array)
            self.numbers.append(int(array[0]))

    def progress(self) -> tuple[int, int]:
        while self.rx.counters["slices"] > len(self.numbers):
            self.take()
        return self.rx.progress


def stop_in_mid_copy(met: Met, pid: int) -> None:
    """Stop the sender while a slice is on its way, so that it is most likely in the copy of a chunk."""
    while True:
        in_the_middle(met.progress)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: has_stopped(pid), "the sender stops")
        time.sleep(0.1)  # the receiver takes what was sent
        done, total = met.progress()
        if 0 < done < total:
            return
        os.kill(pid, signal.SIGCONT)  # the slice was over by then


@pytest.mark.parametrize("turn", range(3))
def test_a_sender_that_wakes_up_after_the_silence_writes_into_no_other_slice(turn: int) -> None:
    endpoint = f"local:{name()}"
    with (
        everything_returned(),
        aiflow.Receiver(endpoint, memory=MEMORY, peer_timeout=SILENCE_S) as rx,
        Peer(send_numbers, endpoint, 1) as sleeper,
    ):
        met = Met(rx)
        stop_in_mid_copy(met, sleeper.pid)
        store = rx._agent.store
        with Stalls() as stalls:
            wait_for(lambda: rx.memory_used == 0, "memory is freed", SILENCE_S + 5 + stalls.allowance)
        assert store.fenced >= 1
        with Peer(send_numbers, endpoint, 1000) as other:
            held = [rx.recv(timeout=PATIENCE_S) for _ in range(2)]  # both fit beside the fenced block
            arrays = [time_slice["x"].array for time_slice in held]
            numbers = [int(array[0]) for array in arrays]
            assert all(number >= 1000 for number in numbers)
            os.kill(sleeper.pid, signal.SIGCONT)
            wait_for(lambda: store.fenced == 0, "its sender has begun another session")
            time.sleep(0.2)
            for array, number in zip(arrays, numbers, strict=True):
                assert (array == number).all()  # also what was granted while it slept
            other.tell("end")
            del arrays, array
            for time_slice in held:
                time_slice.release()
            held.clear()
            seen = []
            while not seen or min(seen[-4:]) >= 1000:  # the sleeper's slice comes whole, in its next session
                with rx.recv(timeout=PATIENCE_S) as time_slice:
                    assert is_one_number(time_slice["x"].array)
                    seen.append(int(time_slice["x"].array[0]))
        assert rx.counters["place"] == 0


@pytest.mark.parametrize("turn", range(10))
def test_what_a_killed_sender_had_begun_is_freed_and_granted_again(turn: int) -> None:
    endpoint = f"local:{name()}"
    with everything_returned(), aiflow.Receiver(endpoint, memory=MEMORY) as rx:
        with Peer(send_numbers, endpoint, 1) as victim:
            met = Met(rx)
            in_the_middle(met.progress)
            os.kill(victim.pid, signal.SIGKILL)
            killed = time.monotonic()
            with Stalls() as stalls:
                while rx.memory_used and time.monotonic() < killed + 30:
                    met.progress()
                assert time.monotonic() - killed - stalls.allowance < 1.0
            wait_for(lambda: rx._agent.store.fenced == 0, "its process has ended")
        with Peer(send_numbers, endpoint, 1000) as other:
            for _ in range(3):
                met.take()
            other.tell("end")
            while other.process.is_alive():
                met.progress()
                other.process.join(0.01)


def fork_and_send(pipe: Connection, endpoint: str) -> None:
    """Fork without Python's handlers, in the middle of a slice: the child keeps every descriptor."""
    with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S) as tx:
        array = np.full(SLICE // 8, 7, np.int64)
        tx.send({"x": array}, timeout=PATIENCE_S)
        ticket = tx.send({"x": array}, wait=False)
        while not ticket.done():
            child = ctypes.CDLL(None).fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            with open(f"/proc/{child}/maps") as maps:
                pipe.send((child, "memfd:aiflow" in maps.read().replace("memfd:aiflow-doorbell", "")))
            pipe.recv()


def test_a_child_that_keeps_the_socket_of_a_killed_sender_holds_no_memory() -> None:
    endpoint = f"local:{name()}"
    with (
        everything_returned(),
        aiflow.Receiver(endpoint, memory=MEMORY) as rx,
        Peer(fork_and_send, endpoint) as sender,
    ):
        rx.recv(timeout=PATIENCE_S).release()
        child, maps_it = sender.hear()
        try:
            assert not maps_it  # MADV_DONTFORK
            os.kill(sender.pid, signal.SIGKILL)
            with Stalls() as stalls:
                wait_for(lambda: len(rx.port_table) == 0, "the ports are closed", 2 + stalls.allowance)
            wait_for(lambda: rx._agent.store.fenced == 0, "the fence is lifted")
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_shared_memory_cannot_shrink_and_no_child_program_gets_it() -> None:
    with aiflow.Receiver(f"local:{name()}", memory="16MiB") as rx:
        fd, nbytes = rx._agent.store.shared
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with pytest.raises(OSError):
            os.ftruncate(fd, nbytes - 4096)


def test_a_forked_child_sees_the_next_slice_in_its_parents_array() -> None:
    """Element memory for local senders is shared, with children, too: docs/limits.md."""
    with local_pair() as (tx, rx):
        tx.send({"x": np.full(MiB, 1, np.uint8)}, wait=False)
        time_slice = rx.recv(timeout=PATIENCE_S)
        array = time_slice["x"].array
        ours, theirs = os.pipe()
        go, gone = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(go, 1)
            os.write(theirs, bytes(array[:1]))
            os._exit(0)
        array[:] = 2
        os.write(gone, b"x")
        assert os.read(ours, 1) == b"\x02"
        os.waitpid(child, 0)
        for fd in (ours, theirs, go, gone):
            os.close(fd)


@pytest.mark.parametrize("nb_ports", [1, 3])
def test_every_byte_of_large_elements_and_packed_rows_is_placed(nb_ports: int) -> None:
    rng = np.random.default_rng(3)
    batch = rng.integers(0, 256, (500, 100), np.uint8)
    sizes = [64] * 2000 + [1, 0, 16331, 16330, 50_000, 3, 1_000_001]
    elements = [*batch, *(rng.integers(0, 256, nbytes, np.uint8) for nbytes in sizes), *batch]
    with local_pair(f"*{nb_ports}") as (tx, rx):
        ticket = tx.send(elements, wait=False)
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            for element, array in zip(time_slice, elements, strict=True):
                assert np.array_equal(element.array, array)
        report = ticket.result(timeout=PATIENCE_S)
        assert report.placed_bytes == report.nbytes == rx.counters["placed_bytes"]


def test_one_slice_is_placed_on_one_path_and_carried_on_another() -> None:
    array = content(5, 64 * MiB)
    serial = name()
    ports = [f"local:{serial}", f"memif:{serial}"]
    with aiflow.Receiver(ports) as rx, aiflow.Sender(ports, policy="round_robin") as tx:
        ticket = tx.send({"x": array}, wait=False)
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            assert np.array_equal(time_slice["x"].array, array)
        report = ticket.result(timeout=PATIENCE_S)
    assert 0 < report.placed_bytes < report.nbytes
    assert all(port.frames > 0 for port in report.ports)


def test_a_receiver_without_local_ports_has_private_memory() -> None:
    with aiflow.Receiver(f"memif:{name()}", memory="16MiB") as rx:
        assert rx._agent.store.shared is None


def test_prefault_gives_all_memory_its_pages_at_once() -> None:
    def shared_bytes() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssShmem:"))

    before = shared_bytes()
    with aiflow.Receiver(f"local:{name()}", memory="64MiB", prefault=True):
        assert shared_bytes() - before >= 64 * MiB
    wait_for(lambda: shared_bytes() - before < 16 * MiB, "the pages are given back")


@contextmanager
def memory_group(nbytes: int) -> Iterator[Path]:
    """A cgroup of version 1 that limits memory."""
    own = next(cgroups("memory"), None)
    if own is None or not (own / "memory.limit_in_bytes").exists():
        pytest.skip("no cgroup of version 1 limits memory here")
    group = own / f"aiflow-t-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(nbytes))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield group
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "its processes have ended")
        group.rmdir()


def receive_within(pipe: Connection, endpoint: str, group: str) -> None:
    with open(f"{group}/cgroup.procs", "w") as procs:
        procs.write("0")
    with aiflow.Receiver(endpoint, memory="1GiB") as rx:
        pipe.send("open")
        for time_slice in rx:
            pipe.send(time_slice.nbytes)
            if time_slice.nbytes == 1:
                return


@pytest.mark.root
def test_a_slice_beyond_the_memory_of_the_container_is_refused_and_no_process_dies() -> None:
    endpoint = f"local:{name()}"
    with memory_group(256 * MiB) as group, Peer(receive_within, endpoint, str(group)) as receiver:
        assert receiver.hear() == "open"
        with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S) as tx:
            for nbytes in (32 * MiB, 512 * MiB, 48 * MiB, 1):
                if nbytes > 256 * MiB:
                    with pytest.raises(PoolExhausted, match="raise the memory limit of its container"):
                        tx.send([bytes(nbytes)], timeout=PATIENCE_S)
                    continue
                tx.send([bytes(nbytes)], timeout=PATIENCE_S)
                assert receiver.hear() == nbytes
            receiver.ends()


@pytest.mark.root
def test_memory_for_local_senders_is_of_ordinary_pages_beside_hugepages() -> None:
    with hugepages(200), Peer(receive_pattern, endpoint := f"local:{name()}") as receiver:
        with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S) as tx:
            assert tx.send([content(1, 32 * MiB)], timeout=PATIENCE_S).placed_bytes == 32 * MiB
        assert receiver.hear() == ("hugepages", True)
        receiver.ends()


def receive_pattern(pipe: Connection, endpoint: str) -> None:
    from aiflow import _eal

    os.environ.pop("AIFLOW_MEMORY", None)
    with aiflow.Receiver(endpoint, memory="64MiB") as rx, rx.recv(timeout=PATIENCE_S) as time_slice:
        pipe.send((_eal.memory_mode(), np.array_equal(time_slice[0].array, content(1, 32 * MiB))))
