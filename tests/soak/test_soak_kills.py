"""A thousand senders are killed in mid-slice, one after the other; the receiver then holds what it held before.

AIFLOW_SOAK_KILLS sets the number of the long form.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import MOST_LATE, fraction_of, kill_at
from mbufs import everything_returned
from peer import SLOWLY, MiB, Peer, QuickPeer, Resident, content, name
from stalls import Stalls
from subprocesses import run
from wait import PATIENCE_S, wait_for

import aiflow
from aiflow import _eal

WHOLE = MiB
CUT = 8 * MiB
MEMORY = 4 * CUT
NB_PORTS = 2
AHEAD = 2  # victims that start while another one dies
WARM_UP = 5  # kills
LEAK = 28_000
"""Bytes of DPDK's heap that each memif port leaves: of two queues' interrupt handles the driver frees one (22.11)."""
NOTHING = ("memory", "ports", "mbufs")  # is held without a sender, from the very beginning


def victim(pipe: Connection, directory: str, endpoint: str, seed: int) -> None:
    os.environ["AIFLOW_RUNTIME_DIR"] = directory
    _eal.start()
    pipe.recv()  # its turn
    with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S, faults=SLOWLY) as tx:
        tx.send({"whole": content(seed, WHOLE)}, timeout=PATIENCE_S)
        while True:
            tx.send({"cut": content(seed, CUT)})


def victims(directory: str, endpoint: str) -> Iterator[Peer]:
    ahead: deque[Peer] = deque()
    try:
        for seed in count():
            ahead.append(QuickPeer(victim, directory, endpoint, seed))
            if len(ahead) > AHEAD:
                with ahead.popleft() as peer:
                    yield peer
    finally:
        for peer in ahead:
            peer.__exit__()


def held(rx: aiflow.Receiver) -> dict[str, Any]:
    """Resources that the receiver's process holds."""
    return {
        "memory": rx.memory_used,
        "ports": len(rx.port_table),
        "mbufs": sum(pool.in_use for pool in _eal.mempools()),
        "pools": len(_eal.mempools()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def fill(rx: aiflow.Receiver, endpoint: str) -> None:
    """Use all of the receiver's memory once, so that none of it is touched for the first time later on."""
    with aiflow.Sender(endpoint) as tx:
        tickets = [tx.send([content(0, CUT)], wait=False) for _ in range(MEMORY // CUT - 1)]
        for ticket in tickets:
            ticket.result(PATIENCE_S)
        for _ in tickets:
            rx.recv(timeout=PATIENCE_S).release()


def survivor(pipe: Connection, endpoint: str) -> None:
    own, shared = (Resident(WARM_UP, kind) for kind in ("RssAnon", "RssShmem"))
    with everything_returned(), aiflow.Receiver(endpoint, memory=MEMORY) as rx:
        began, seed = held(rx), 0
        assert not any(began[kind] for kind in NOTHING)
        fill(rx, endpoint)
        taken = rx.counters["slices"]
        pipe.send("open")
        while (pid := pipe.recv()) is not None:
            with rx.recv(timeout=PATIENCE_S) as time_slice:
                assert np.array_equal(time_slice["whole"].array, content(seed, WHOLE))
            taken += 1
            done, total = kill_at(fraction_of(seed), lambda: rx.progress, pid, CUT)
            killed, late = time.monotonic(), 0
            with Stalls() as stalls:
                while rx.memory_used:
                    patience = 1 + stalls.allowance
                    assert time.monotonic() < killed + patience, (held(rx), rx.progress, rx.counters, taken)
                    if rx.counters["slices"] > taken:  # whole before the kill: it is shown, and not what we want
                        with rx.recv(timeout=PATIENCE_S) as time_slice:
                            assert np.array_equal(time_slice["cut"].array, content(seed, CUT))
                        taken, late = taken + 1, late + 1
                        killed = time.monotonic()
                    time.sleep(0.001)
                freed = time.monotonic() - killed
            if seed < WARM_UP:  # what the first one made stays: a parked port and its pool, descriptors
                wait_for(lambda: not any(held(rx)[kind] for kind in NOTHING), "the dead one's ports and mbufs")
                time.sleep(0.3)
                began = held(rx)
            wait_for(lambda before=began: held(rx) == before, f"{began} again")
            own.look()
            shared.look()
            pipe.send((0 < done < total and not late, freed))
            seed += 1
        pipe.send((rx.counters["senders_gone"], own.span, shared.span))


CLEAN = """
import sys
import aiflow
with aiflow.Receiver(sys.argv[1]) as rx, aiflow.Sender(sys.argv[1]) as tx:
    tx.send([b"x"], wait=False)
    rx.recv(20).release()
"""


def left(directory: str, pids: list[int]) -> list[str]:
    """Sockets, files of hugepages and directories of DPDK's that are there."""
    sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if directory in line]
    pages = [str(path) for path in Path("/dev/hugepages").glob("*")]
    dpdk = [str(path) for pid in pids for path in Path("/var/run/dpdk").glob(f"aiflow-{pid}-*")]
    return [*sockets, *map(str, Path(directory).rglob("*")), *pages, *dpdk]


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A runtime directory of this test's own, with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="aiflow-") as path:
        monkeypatch.setenv("AIFLOW_RUNTIME_DIR", path)
        yield path


LONG = int(os.environ.get("AIFLOW_SOAK_KILLS", "1000"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [8, pytest.param(LONG, marks=[pytest.mark.soak, pytest.mark.timeout(24 * 3600)])])
def test_the_receiver_of_killed_senders_is_as_it_was_before(kills: int, directory: str) -> None:
    endpoint = f"local:{name()}*{NB_PORTS}"
    before = left(directory, [])
    pids, dead, late, longest, started = [], 0, 0, 0.0, time.monotonic()
    with Peer(survivor, endpoint) as receiver:
        assert receiver.hear() == "open"
        row = victims(directory, endpoint)
        while dead < kills:
            peer = next(row)
            pids.append(peer.pid)
            receiver.tell(peer.pid)
            peer.tell("your turn")
            in_the_middle, freed = receiver.hear()
            assert peer.killed()
            longest = max(longest, freed)
            dead += in_the_middle
            late += not in_the_middle
            assert late <= MOST_LATE * kills
        row.close()
        receiver.tell(None)
        gone, own, shared = receiver.hear()
        receiver.ends()
    print(f"{dead} senders killed in mid-slice in {time.monotonic() - started:.0f} s, {late} more after their slice")
    print(f"memory back after {longest * 1e3:.0f} ms at most")
    for kind, (least, most) in (("its own", own), ("with DPDK's heap, shared", shared)):
        print(f"resident, {kind}: {least / 1e6:.1f} to {most / 1e6:.1f} MB after {WARM_UP} kills")
    assert gone == dead + late
    assert own[1] - own[0] <= 5e6
    assert shared[1] - shared[0] <= 2e6 + LEAK * NB_PORTS * (dead + late)
    run(CLEAN, endpoint)  # what a kill leaves is removed at the next start
    assert left(directory, pids) == before
