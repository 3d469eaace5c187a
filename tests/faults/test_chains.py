"""Frames in chains of mbufs, cut anywhere, are received like others: any driver may deliver them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from wait import settle
from wiretap import ROOM, Wiretap

import aiflow
from aiflow import _dp_testing, _eal, _wire
from aiflow._ports import ring_pairs
from aiflow.config import parse_endpoint

RNG = np.random.default_rng(24)
ELEMENTS: dict[str, Any] = {
    "large": RNG.integers(0, 256, 150_001, dtype=np.uint8),  # many frames, the last one short
    "little": b"x",  # packed together, in a frame with padding
    "less": b"",
    "rows": RNG.random((7, 11)),
}
HEADER = 54
PATIENCE_S = 30

Cuts = Callable[[int], Iterable[int]]
AT = [0, 1, 6, 12, 13, 14, 15, 19, 31, 34, 49, 50, HEADER - 1, HEADER, HEADER + 1, 59, 60, 64, 127, 128, 129, 1000]
SHAPES: dict[str, Cuts] = {
    **{f"at-{offset}": lambda size, offset=offset: [min(offset, size)] for offset in AT},
    "before-the-last-byte": lambda size: [size - 1],
    "after-the-last-byte": lambda size: [size],
    "in-the-middle": lambda size: [size // 2],
    "empty-ones-between": lambda size: [0, 0, HEADER, HEADER, size],
    "a-hundred-each": lambda size: range(100, size, 100),
    "bytes-of-the-header": lambda size: range(1, HEADER + 2),
}


def exchange(sender: str, receiver: str, nb_slices: int = 2, faults: Any = None, **options: Any) -> dict[str, int]:
    """Slices arrive as they were sent, and nothing was dropped on the way; the receiver's counters."""
    with (
        aiflow.Receiver(receiver, memory="32MiB", faults=faults, **options) as rx,
        aiflow.Sender(sender) as tx,
    ):
        for _ in range(nb_slices):
            ticket = tx.send(ELEMENTS, wait=False)
            with rx.recv(timeout=PATIENCE_S) as time_slice:
                ticket.result(PATIENCE_S)
                for element in time_slice:
                    assert element.tobytes() == bytes(memoryview(ELEMENTS[element.stream]).cast("B"))
                    if not rx.assemble:
                        assert b"".join(part.tobytes() for part in element.segments) == element.tobytes()
        assert tx.counters["segments"] == 0
        return rx.counters


@pytest.mark.parametrize("assemble", [True, False], ids=["assembled", "kept"])
@pytest.mark.parametrize("shape", SHAPES)
def test_frames_cut(shape: str, assemble: bool, name: str) -> None:
    with Wiretap(name, cuts=SHAPES[shape]) as tap:
        counters = exchange(tap.sender, tap.receiver, assemble=assemble)
    assert tap.passed > 30
    assert {reason for reason in ("segments", "crc", "length", "runt") if counters[reason]} == set()


@pytest.mark.parametrize("assemble", [True, False], ids=["assembled", "kept"])
def test_frames_cut_meet_faults(assemble: bool, name: str) -> None:
    """Faults damage a chain as they damage one mbuf, and the CRC shows it."""
    faults = {"ways": "in", "corrupt": 0.05, "truncate": 0.05, "repeat": 0.05, "reorder": 0.1, "seed": 7}
    with Wiretap(name, cuts=SHAPES["at-54"]) as tap:
        counters = exchange(tap.sender, tap.receiver, 8, faults, assemble=assemble)
    assert counters["crc"] > 0
    assert counters["segments"] == 0


def test_damage_in_the_second_mbuf_is_seen(name: str) -> None:
    """A joined frame is checked like any other frame."""
    hurt = iter([True, False] * 1000)

    def damage(frame: bytes) -> bytes:
        if len(frame) < 1000 or not next(hurt):
            return frame
        return frame[:700] + bytes([frame[700] ^ 1]) + frame[701:]

    with Wiretap(name, damage, cuts=SHAPES["at-54"]) as tap:
        assert exchange(tap.sender, tap.receiver)["crc"] > 0


@pytest.mark.parametrize("assemble", [True, False], ids=["assembled", "kept"])
@pytest.mark.parametrize("nb_segs", [2, 3, 40])
def test_a_chain_that_fits_no_mbuf_is_dropped(nb_segs: int, assemble: bool, name: str) -> None:
    endpoint = parse_endpoint(f"ring:{name}")
    pool = _eal.Mempool("forged", 511, ROOM, own_memory=True)
    long = _wire.seal(_wire.KINDS["DATA"], bytes(ROOM - HEADER), dst=b"\x02\0\0\0\0\x01", src=b"\x02\0\0\0\0\x02")
    with aiflow.Receiver(f"ring:{name}", memory="8MiB", frame_size=1514, assemble=assemble) as rx:
        (port,) = ring_pairs.take(endpoint, "sender", pool)
        try:
            assert _dp_testing.inject(port, [long] * 5, nb_segs=nb_segs) == 5
            assert settle(lambda: rx.counters["segments"] == 5)
            assert settle(lambda: pool.in_use == 0)
        finally:
            ring_pairs.give_back(endpoint, "sender")
        del port


def test_raw_frames_are_read_whole(name: str) -> None:
    endpoint = parse_endpoint(f"ring:{name}")
    few = _eal.Mempool("forged", 3, ROOM, own_memory=True)
    (port,) = ring_pairs.take(endpoint, "sender", few)
    (other,) = ring_pairs.take(endpoint, "receiver", few)
    try:
        assert _dp_testing.inject(port, [b"y" * 400, b"no mbuf left"], cuts=[60, 200]) == 1
        assert few.in_use == 3
        assert _dp_testing.drain(other) == [b"y" * 400]
        assert few.in_use == 0
    finally:
        for role in ("sender", "receiver"):
            ring_pairs.give_back(endpoint, role)


SIZES = [512, 513, 1000, 1514, 2047, 2048, 4095, 4096, 4097, 4200, 9000, 16383, 16384, 16385, 40_000, 64_999, 65_000]


@pytest.mark.parametrize("assemble", [True, False], ids=["assembled", "kept"])
@pytest.mark.parametrize("frame_size", SIZES)
def test_local_frames_of_every_size(frame_size: int, assemble: bool, endpoint: str) -> None:
    """Above 4096 bytes payloads are sent from where they lie, which some memif drivers deliver as chains."""
    sizes = [1, 6, 7, 400, frame_size - HEADER - 1, frame_size - HEADER, frame_size - HEADER + 1, 5 * frame_size + 3]
    sent = [RNG.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    with (
        aiflow.Receiver(endpoint, memory="64MiB", assemble=assemble, frame_size=frame_size) as rx,
        aiflow.Sender(endpoint) as tx,
    ):
        for _ in range(3):
            ticket = tx.send(sent, wait=False)
            with rx.recv(timeout=PATIENCE_S) as time_slice:
                ticket.result(PATIENCE_S)
                assert [element.tobytes() for element in time_slice] == [one.tobytes() for one in sent]
        counters = rx.counters
    assert {reason: counters[reason] for reason in ("segments", "crc", "length") if counters[reason]} == {}


def test_raw_frames_say_how_they_are_cut(name: str) -> None:
    with pytest.raises(aiflow.ConfigError, match="nb_segs=0"), Wiretap(name) as tap:
        _dp_testing.inject(tap._ports[0], [b"x" * 60], nb_segs=0)
