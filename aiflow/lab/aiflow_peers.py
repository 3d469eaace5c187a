"""aiflow in the cluster: the bodies of a sender's and a receiver's process, by the public API alone."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any

from aiflow.lab.elements import Elements

__all__ = ["receive", "send"]

_PATIENCE_S = 60.0
_WARM_UP = "warm-up"
_SLICE_S = 600.0


def send(
    pipe: Connection, number: int, ports: list[str], addresses: list[str], to: str, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Send the elements that we are told the numbers of; say ``("sent", start, end, report)``.

    Slices of a few frames go out first, until every port has its path: no part of what is measured.
    """
    from aiflow import Sender

    del addresses
    loaded = elements.load()
    with Sender([f"af_packet:{port}" for port in ports], to=to, name=f"node{number}", **options) as tx:
        used: set[str] = set()
        deadline = time.monotonic() + _PATIENCE_S
        while len(used) < len(ports):
            report = tx.send([(_WARM_UP, bytes(200_000 * len(ports)))], timeout=_PATIENCE_S)
            used |= {port.name for port in report.ports if port.frames}
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {sorted(used)} of {len(ports)} ports found a path")
        pipe.send(("ready",))
        while message := pipe.recv():
            numbers = message[0]
            slice_elements = [(str(i), loaded[i]) for i in numbers]
            start = time.monotonic_ns()
            report = tx.send(slice_elements, timeout=_SLICE_S)
            end = time.monotonic_ns()
            told = {
                "frames": report.frames_sent,
                "retransmitted": report.frames_retransmitted,
                "port_frames": [port.frames for port in report.ports],
                "port_bytes": [port.nbytes for port in report.ports],
            }
            pipe.send(("sent", start, end, told))


def receive(
    pipe: Connection, number: int, ports: list[str], addresses: list[str], nb_senders: int, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Receive a slice of each sender as often as we are told; say ``("received", elements, identical)``."""
    from aiflow import Receiver

    del addresses
    loaded = elements.load()
    with Receiver([f"af_packet:{port}" for port in ports], name=f"node{number}", memory="3GiB", **options) as rx:
        pipe.send(("ready",))
        held: list[Any] = []
        while True:
            expected = 0
            if pipe.poll():
                if not pipe.recv():
                    return
                expected = nb_senders
            if not expected:
                held += _early(rx)
                continue
            deadline = time.monotonic() + _SLICE_S
            while len(held) < expected and time.monotonic() < deadline:
                time_slice = rx.recv(timeout=_SLICE_S)
                if _is_warm_up(time_slice):
                    time_slice.release()
                else:
                    held.append(time_slice)
            counted = sum(len(time_slice) for time_slice in held)
            identical = sum(
                loaded.equal(int(element.stream), element.array) for time_slice in held for element in time_slice
            )
            for time_slice in held:
                time_slice.release()
            held.clear()
            pipe.send(("received", counted, identical))


def _is_warm_up(time_slice: Any) -> bool:
    return len(time_slice) == 1 and time_slice[0].stream == _WARM_UP


def _early(rx: Any) -> list[Any]:
    """What comes while nobody has told us to measure: warm-up, which is dropped, or a slice before its word."""
    from aiflow.errors import SliceTimeout

    try:
        time_slice = rx.recv(timeout=0.05)
    except SliceTimeout:
        return []
    if not _is_warm_up(time_slice):
        return [time_slice]
    time_slice.release()
    return []
