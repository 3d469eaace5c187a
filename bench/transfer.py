"""One benchmark case: slices through Sender → Receiver, each paired with a memcpy of the same size."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from contest import BusyMeter
from loads import ROTATION, demo
from receiving import ReceiverProcess, checksum

import aiflow
from aiflow import _eal
from aiflow._ports import local_drivers

DRIVER_COPIES = {"memif": 2, "vhost": 1, "ring": 0, "af_packet": 3, "af_xdp": 3}
"""Copies of a frame by a driver pair. memif: into and out of its shared buffers. vhost: out of the sender's mbufs. Over
veth: into the kernel, from there into the other ring or umem, and once between."""

REFERRED = 4096
"""From this frame size on, frames refer to the user's memory if the driver copies anyway (`TxLoop.by_reference`)."""

KERNEL = {"af_packet": 512, "af_xdp": 1024}
"""Drivers of kernel interfaces, and the frames of their rings."""

RING_FRAMES = 512  # aiflow's net_ring pairs


@dataclass(frozen=True)
class Case:
    """A benchmark case.

    Attributes
    ----------
    driver : {"memif", "vhost", "ring", "af_packet", "af_xdp"}
    frame_size : int or None
        Ethernet frame in bytes; None: the driver's default.
    assemble : bool
        Elements contiguous in recycled memory (True), or left in their mbufs.
    """

    driver: str
    frame_size: int | None = None
    assemble: bool = True

    @property
    def name(self) -> str:
        """Name in reports: ``memif-16384``, ``memif-16384-mbufs``."""
        return f"{self.driver}-{self.frame_bytes}" + ("" if self.assemble else "-mbufs")

    @property
    def frame_bytes(self) -> int:
        """Ethernet frame in bytes."""
        if self.driver in KERNEL:
            return 1514
        return self.frame_size or local_drivers.DRIVERS[self.driver].frame_size

    @property
    def ring_size(self) -> int:
        """Frames of a ring of its ports."""
        if self.driver in KERNEL:
            return KERNEL[self.driver]
        return RING_FRAMES if self.driver == "ring" else local_drivers.DRIVERS[self.driver].ring_for(self.frame_bytes)

    @property
    def copies(self) -> int:
        """Copies of each payload byte, from the sender's array to the receiver's array."""
        staged = self.driver != "memif" or self.frame_bytes < REFERRED  # otherwise memif reads the user's array
        return staged + DRIVER_COPIES[self.driver] + self.assemble


def make_slices(nb_images: int) -> list[list[np.ndarray[Any, Any]]]:
    """Return `ROTATION` slices of `nb_images` images of random bytes and sizes. All slices have the same sizes."""
    slices: list[list[np.ndarray[Any, Any]]] = demo(nb_images).slices()
    return slices


class Memcpy:
    """The C library's memcpy of a slice, image by image, into memory that has been touched."""

    def __init__(self, like: list[np.ndarray[Any, Any]]) -> None:
        self.targets = [np.ones_like(image) for image in like]

    def run(self, images: list[np.ndarray[Any, Any]]) -> float:
        """Copy, and return the seconds."""
        pairs = [
            (to.ctypes.data, image.ctypes.data, image.nbytes) for to, image in zip(self.targets, images, strict=True)
        ]
        begin = time.perf_counter()
        for to, source, nbytes in pairs:
            ctypes.memmove(to, source, nbytes)
        return time.perf_counter() - begin


@contextlib.contextmanager
def pinned(core: int) -> Any:
    """Pin this thread, and the threads and processes that it starts, to a CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Transfer:
    """The two ends of a case, the slices, and the results of each round.

    A round is `prepare` (not timed: verify the previous slice, copy the same number of bytes by memcpy) and `send`.

    Parameters
    ----------
    case : Case
    slices : list of list of ndarray
    cores : (int, int)
        CPUs of the sending and the receiving side.
    interfaces : (str, str), optional
        Interfaces of both sides, for a kernel driver.
    """

    def __init__(
        self,
        case: Case,
        slices: list[list[np.ndarray[Any, Any]]],
        cores: tuple[int, int],
        interfaces: tuple[str, str] | None = None,
    ) -> None:
        self.case = case
        self.slices = slices
        self.checksums = [checksum(images) for images in slices]
        self.nbytes = sum(image.nbytes for image in slices[0])
        self.memcpy = Memcpy(slices[0])
        self.memcpy_seconds: list[float] = []
        self.reports: list[aiflow.SliceReport] = []
        self.drivers = ""
        self._cores = cores
        shared = f"bench-{os.getpid()}"
        self._endpoints = [f"{case.driver}:{end}" for end in interfaces or (shared, shared)]
        self._sent = 0
        self._unverified = False
        self._life = contextlib.ExitStack()
        self._remote: ReceiverProcess | None = None
        self._local: aiflow.Receiver | None = None
        self._held: aiflow.TimeSlice | None = None

    def __enter__(self) -> Self:
        name, other = self._endpoints
        with contextlib.ExitStack() as life:
            life.enter_context(pinned(self._cores[0]))
            pids = [os.getpid()]
            if self.case.driver == "ring":
                self._local = life.enter_context(aiflow.Receiver(name, frame_size=self.case.frame_size))
            else:
                self._remote = life.enter_context(ReceiverProcess(other, self._cores[1], self.case.assemble))
                pids.append(self._remote.pid)
            self.tx = life.enter_context(aiflow.Sender(name, frame_size=self.case.frame_size))
            if self._local is not None:
                for thread in threading.enumerate():
                    if thread.name == "aiflow-receiver" and thread.native_id:
                        os.sched_setaffinity(thread.native_id, {self._cores[1]})
            paths = [self.tx.describe()[0]["driver"]]
            paths.append(self._remote.opened["driver"] if self._remote else paths[0])
            self.drivers = " → ".join(dict.fromkeys(paths))
            self.memory_mode = self.tx.describe()[0]["memory"]
            self.busy = BusyMeter(pids)
            self._life = life.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._held = None
        self._life.__exit__(None, None, None)

    def prepare(self) -> tuple[tuple[()], dict[str, Any]]:
        """Prepare a round."""
        self.verify()
        self.memcpy_seconds.append(self.memcpy.run(self.slices[(self._sent + 1) % ROTATION]))
        return (), {}

    def send(self) -> None:
        """Run the timed part: return when the receiver has the complete slice."""
        images = self.slices[self._sent % ROTATION]
        if self._local is None:
            self.reports.append(self.tx.send(images, timeout=60))
        else:
            ticket = self.tx.send(images, wait=False)
            self._held = self._local.recv(timeout=60)
            self.reports.append(ticket.result(60))
        self._sent += 1
        self._unverified = True

    def verify(self) -> None:
        """Check that every byte of the last slice arrived as it was sent."""
        if not self._unverified:
            return
        self._unverified = False
        expected = self.checksums[(self._sent - 1) % ROTATION]
        if self._remote is not None:
            arrived = self._remote.answer()["checksum"]
        else:
            assert self._held is not None
            arrived = checksum(self._held)
            self._held.release()
        assert arrived == expected, f"slice {self._sent} did not arrive as it was sent"


def versions() -> dict[str, Any]:
    """Return versions and machine, for the JSON file."""
    return {
        "aiflow": aiflow.__version__,
        "package": os.path.dirname(os.path.realpath(aiflow.__file__)),
        "dpdk": _eal.dpdk_version(),
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
    }
