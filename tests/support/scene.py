"""A receiver with two af_packet ports: a real sender keeps sending to one, a forger sends to the other."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np
from forger import PAYLOAD, Forger
from wait import settle

import aiflow
from aiflow import _wire


class Scene:
    """A receiver under attack, and a sender that must not notice."""

    def __init__(self, net, **options) -> None:
        self.host = net.namespace("host")
        net.veth(self.host, "bad", self.host, "rx0")
        net.veth(self.host, "good", self.host, "rx1")
        self.open_receiver(**options)
        with self.host.entered():
            self.forger = Forger("bad")
            self.tx = aiflow.Sender("af_packet:good", name="good")
        self.good = count()
        self.shown: list[aiflow.TimeSlice] = []
        self.good_goes_on()

    def open_receiver(self, **options) -> None:
        with self.host.entered():
            self.rx = aiflow.Receiver(["af_packet:rx0", "af_packet:rx1"], name="sink", memory="64MiB", **options)

    def good_goes_on(self) -> None:
        """A slice of the honest sender arrives, whole."""
        data = np.full(40_000, next(self.good) % 251, np.uint8)
        ticket = self.tx.send([data], wait=False)
        while True:
            time_slice = self.rx.recv(timeout=20)
            if time_slice.sender == "good":
                break
            self.shown.append(time_slice)
        assert np.array_equal(time_slice[0].array, data)
        assert ticket.result(20).elements == 1

    def count(self, reason: str) -> int:
        return self.rx.counters[reason]

    @contextmanager
    def drops(self, reason: str, at_least: int = 1) -> Iterator[None]:
        """Frames sent within are dropped for this reason and for no other, and hold no memory."""
        before, used = self.rx.counters, self.rx.memory_used
        yield
        arrived = settle(lambda: self.count(reason) >= before[reason] + at_least)
        assert arrived, {k: v - before[k] for k, v in self.rx.counters.items() if v != before[k]}
        others = {k: v - before[k] for k, v in self.rx.counters.items() if v != before[k] and k != reason}
        assert not set(others) - {"slices", "elements", "bytes"}, others
        assert self.rx.memory_used == used
        self.good_goes_on()

    def close(self) -> None:
        self.forger.close()
        self.shown.clear()
        self.tx.close()
        self.rx.close()


ELEMENT = random.Random(5).randbytes(10 * PAYLOAD + 77)
OTHER = bytes(reversed(ELEMENT))


def begin(scene: Scene, element: bytes = ELEMENT) -> None:
    """The forger has a slice of one element granted, and half of it is there."""
    scene.forger.ask(scene.forger.manifest({"x": element}))
    scene.forger.report_of(0, 2)  # every slice below 2 may flow
    for seq in range(5):
        scene.forger.send(scene.forger.chunk(element, seq))
    scene.forger.report()


def complete(scene: Scene, element: bytes = ELEMENT) -> None:
    """The rest of that slice arrives, and it is delivered as it was sent."""
    for seq in range(5, 11):
        scene.forger.send(scene.forger.chunk(element, seq))
    scene.forger.finish(element)
    scene.forger.report_of(1, 2)  # every slice below 2 is held
    scene.good_goes_on()
    (shown,) = scene.shown
    assert shown.sender == "forger"
    assert shown[0].tobytes() == element


def resealed(frame: bytes, offset: int, value: bytes) -> bytes:
    """The frame with other bytes at an offset, under the correct CRC for its new length."""
    changed = bytearray(frame)
    changed[offset : offset + len(value)] = value
    covered = min(len(changed), 34 + struct.unpack_from("!H", changed, 31)[0])
    changed[50:54] = struct.pack("!I", _wire.crc32c(bytes(changed[12:50] + changed[54:covered])))
    return bytes(changed)
