"""Very many frames through a link that suffers every kind of fault, in both directions: every slice whole, once, right.

AIFLOW_SOAK_FRAMES says how many frames the long form sends.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from faults import faults_of, paths_of
from mbufs import everything_returned
from peer import MiB, Peer, Resident, name
from wait import PATIENCE_S, wait_for

import aiflow

FRAME = 512  # the least that a path may have: most frames for each byte that has to be compared
DEPTH = 6  # slices in flight
SLICE = 4 * MiB
MEMORY = 10 * SLICE
HELD = 8  # slices that fill it, but for what is granted
WARM_UP = 3 * DEPTH  # slices

MIXED = {
    "ways": ("out", "in"),
    "drop": 0.001,
    "burst": 0.0001, "burst_frames": 10,
    "drop_for": 0.001, "down_every": 2.0,
    "corrupt": 0.0005, "truncate": 0.0005,
    "repeat": 0.001,
    "reorder": 0.001, "reorder_for": 0.0005,
    "stall": 0.00005, "stall_for": 0.0005,
}  # fmt: skip
"""Half a per cent in all. Both ends have it, so that a frame meets it twice."""


def faults(seed: int) -> list[dict[str, Any]]:
    """`faults=` for the ports of one end; the second port is late as well."""
    return [{**MIXED, "ports": [1], "delay": 0.00002, "seed": seed}, {**MIXED, "seed": seed}]


SHARES = ("dropped", "corrupted", "truncated", "repeated", "reordered")  # bursts and outages are among the dropped
NB_SMALL, NB_LARGE = 50, 40
NB_ELEMENTS = NB_SMALL + NB_LARGE


class Content:
    """Elements of each slice: other names, sizes and bytes in each, and the same at either end."""

    def __init__(self) -> None:
        rng = np.random.default_rng(10**9)
        small = rng.integers(0, 200, NB_SMALL)  # packed, several in a frame
        small[0] = 0
        large = rng.integers(10_000, 200_000, NB_LARGE)
        large = large * (SLICE - small.sum()) // large.sum()
        self.sizes = rng.permutation(np.concatenate([small, large]))
        self.base = rng.integers(0, 1 << 63, SLICE // 8, np.uint64)

    def of_slice(self, number: int, memory: np.ndarray[Any, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """Write slice `number` into `memory`, SLICE bytes, and yield the elements that lie there."""
        key = np.random.default_rng(number).integers(1, 1 << 63, dtype=np.uint64)
        np.bitwise_xor(self.base, key, out=memory.view(np.uint64))
        at = 0
        for index, size in enumerate(np.roll(self.sizes, number)):
            yield f"{number}/{index}", memory[at : at + size]
            at += size


def total(side: aiflow.Sender | aiflow.Receiver, counter: str) -> int:
    """Of all ports: a field of `PortCounters`."""
    return sum(getattr(port, counter) for port in paths_of(side))


def send_frames(pipe: Connection, endpoint: str, nb_frames: int) -> None:
    made, resident, number = Content(), Resident(WARM_UP), 0
    memory = [np.zeros(SLICE, np.uint8) for _ in range(DEPTH)]
    tickets: deque[aiflow.Ticket] = deque()
    options = {"frame_size": FRAME, "faults": faults(1), "peer_timeout": PATIENCE_S}
    with everything_returned(), aiflow.Sender(endpoint, **options) as tx:
        while total(tx, "frames") < nb_frames:
            if len(tickets) == DEPTH:
                tickets.popleft().result(PATIENCE_S)
            tickets.append(tx.send(list(made.of_slice(number, memory[number % DEPTH])), wait=False))
            resident.look()
            number += 1
            if number % 1000 == 0:
                pipe.send(f"{total(tx, 'frames'):,} frames")
        for ticket in tickets:
            ticket.result(PATIENCE_S)
        tx.send({"the end": b""}, timeout=PATIENCE_S)
        pipe.send((number, total(tx, "frames"), total(tx, "retransmits"), faults_of(tx), resident.span))
        pipe.recv()  # the receiver looks at its memory while our ports are there


def receive_frames(pipe: Connection, endpoint: str) -> None:
    made, resident, memory, number = Content(), Resident(WARM_UP), np.zeros(SLICE, np.uint8), 0
    with everything_returned(), aiflow.Receiver(endpoint, memory=MEMORY, faults=faults(2)) as rx:
        wait_for(lambda: rx.counters["slices"] >= HELD, "slices that fill the memory", PATIENCE_S)  # all used once
        while True:
            with rx.recv(PATIENCE_S) as time_slice:
                assert time_slice.slice_id == number + 1  # each once, in order
                if time_slice[0].stream == "the end":
                    break
                expected = dict(made.of_slice(number, memory))
                assert [element.stream for element in time_slice] == list(expected)
                for element in time_slice:
                    assert np.array_equal(element.array, expected[element.stream]), element.stream
                resident.look()
                number += 1
        del element
        assert rx.memory_used == 0
        pipe.send((number, total(rx, "tx_frames"), rx.counters, faults_of(rx), resident.span))
        pipe.recv()


LONG = int(float(os.environ.get("AIFLOW_SOAK_FRAMES", "1e9")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "nb_frames", [300_000, pytest.param(LONG, marks=[pytest.mark.soak, pytest.mark.timeout(24 * 3600)])]
)
def test_frame_after_frame_through_every_fault_arrives_once_and_right(nb_frames: int) -> None:
    endpoint = f"local:{name()}*2"
    started = time.monotonic()
    with Peer(receive_frames, endpoint) as receiver, Peer(send_frames, endpoint, nb_frames) as sender:
        while isinstance(sent := sender.hear(survivor=receiver), str):
            print(f"{sent} after {time.monotonic() - started:.0f} s", flush=True)
        slices, frames, again, faults_tx, resident_tx = sent
        seconds = time.monotonic() - started
        got, answers, counters, faults_rx, resident_rx = receiver.hear()
        for peer in (sender, receiver):  # every mbuf of either is back, or it fails
            peer.tell("close")
            peer.ends()
    print(f"{frames:,} frames, {again:,} of them again, and {answers:,} answers in {seconds:.0f} s; {slices:,} slices")
    assert frames >= nb_frames
    assert got == slices
    assert counters["elements"] == slices * NB_ELEMENTS + 1
    for who, counts, passed in (("sender", faults_tx, frames + answers), ("receiver", faults_rx, frames + answers)):
        share = sum(counts[kind] for kind in SHARES) / passed
        print(f"the {who}'s faults: {counts}, {share:.2%} of all frames")
        assert all(counts[kind] for kind in (*SHARES, "delayed", "stalls", "burst", "down"))
        assert 0.003 <= share <= 0.01
    for who, (least, most) in (("sender", resident_tx), ("receiver", resident_rx)):
        print(f"the {who}'s resident memory: {least / 1e6:.1f} to {most / 1e6:.1f} MB after {WARM_UP} slices")
        assert most - least <= 5e6
