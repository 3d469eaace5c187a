"""aiflow in the cluster: the bodies of the sender, receiver and relay processes. They use only the public API."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

from aiflow.lab.elements import Elements

__all__ = ["receive", "relay", "send"]

_PATIENCE_S = 60.0
_WARM_UP = "warm-up"
_SLICE_S = 600.0
_IN_FLIGHT = 4
_RELAY_MEMORY = "256MiB"
_TRACE_S = 0.0005


def send(
    pipe: Connection, number: int, ports: list[str], addresses: list[str], to: str, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Send the requested elements in the requested number of slices. Reply ``("sent", start, end, report)``.

    A few slices are in flight at a time. Small warm-up slices are sent first, until every port has its path; they are
    not measured.
    """
    from aiflow import Sender

    del addresses
    loaded = elements.load()
    with Sender([f"af_packet:{port}" for port in ports], to=to, name=f"node{number}", **options) as tx:
        _warm_up(tx, ports)
        pipe.send(("ready",))
        while message := pipe.recv():
            numbers, nb_slices = message
            ends = [k * len(numbers) // nb_slices for k in range(nb_slices + 1)]
            slices = [[(str(i), loaded[i]) for i in numbers[a:b]] for a, b in pairwise(ends)]
            reports, in_flight, spurious = [], deque[Any](), tx.counters["spurious"]
            start = time.monotonic_ns()
            for slice_elements in slices:
                in_flight.append(tx.send(slice_elements, wait=False))
                if len(in_flight) == _IN_FLIGHT:
                    reports.append(in_flight.popleft().result(_SLICE_S))
            reports += [ticket.result(_SLICE_S) for ticket in in_flight]
            end = time.monotonic_ns()
            told = {
                "frames": sum(report.frames_sent for report in reports),
                "retransmitted": sum(report.frames_retransmitted for report in reports),
                "spurious": tx.counters["spurious"] - spurious,
            }
            pipe.send(("sent", start, end, told))


def _warm_up(tx: Any, ports: list[str]) -> None:
    """Send warm-up slices until every port has its path."""
    used: set[str] = set()
    deadline = time.monotonic() + _PATIENCE_S
    while len(used) < len(ports):
        report = tx.send([(_WARM_UP, bytes(200_000 * len(ports)))], timeout=_PATIENCE_S)
        used |= {port.name for port in report.ports if port.frames}
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {sorted(used)} of {len(ports)} ports found a path")


def relay(pipe: Connection, number: int, ports: list[str], to: str, options: dict[str, Any]) -> None:
    """Send each slice on, over the ports that it came by, until the end is requested. Nothing is copied.

    A few slices are in flight at a time. Warm-up slices of the sender before are dropped, and own ones are sent.
    """
    from aiflow import Receiver, Sender

    endpoints, name = [f"af_packet:{port}" for port in ports], f"node{number}"
    with (
        Receiver(endpoints, name=name, memory=_RELAY_MEMORY) as rx,
        Sender(endpoints, to=to, name=name, **options) as tx,
    ):
        _warm_up(tx, ports)
        pipe.send(("ready",))
        in_flight = deque[Any]()
        while not pipe.poll():
            for time_slice in _early(rx):
                in_flight.append(tx.send(time_slice, wait=False))
                time_slice.release()  # its memory is freed when the next node has it
                if len(in_flight) == _IN_FLIGHT:
                    in_flight.popleft().result(_SLICE_S)
        for ticket in in_flight:
            ticket.result(_SLICE_S)


def receive(
    pipe: Connection, number: int, ports: list[str], addresses: list[str], nb_senders: int, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Receive the requested number of slices from each sender. Reply ``("received", elements, identical, trace, end)``.

    If each sender sends one slice, they are verified after all have arrived, to keep the CPU free during the
    measurement. The optional trace has entries (ns of the first reading, ns of the last one, bytes seen by both). `end`
    is the time at which the last slice was received.
    """
    from aiflow import Receiver

    del addresses
    loaded = elements.load()
    with Receiver([f"af_packet:{port}" for port in ports], name=f"node{number}", memory="3GiB", **options) as rx:
        pipe.send(("ready",))
        held: list[Any] = []
        while True:
            if not pipe.poll():
                held += _early(rx)
                continue
            if not (message := pipe.recv()):
                return
            nb_slices, wants_trace = message[1:]
            expected, counted, identical = nb_senders * nb_slices - len(held), 0, 0
            end = time.monotonic_ns()
            with _traced(rx, wants_trace) as trace:
                while expected:
                    time_slice = rx.recv(timeout=_SLICE_S)
                    if _is_warm_up(time_slice):
                        time_slice.release()
                        continue
                    end = time.monotonic_ns()
                    held.append(time_slice)
                    expected -= 1
                    if nb_slices > 1:
                        counted += sum(map(len, held))
                        identical += _release(held, loaded)
            counted += sum(map(len, held))
            identical += _release(held, loaded)
            pipe.send(("received", counted, identical, trace, end))


def _release(held: list[Any], loaded: Any) -> int:
    """Return the number of identical elements in these slices."""
    identical = 0
    for time_slice in held:
        identical += sum(loaded.equal(int(element.stream), element.array) for element in time_slice)
    while held:
        held.pop().release()
    return identical


@contextlib.contextmanager
def _traced(rx: Any, wanted: bool) -> Iterator[list[list[int]]]:
    """Record the arrival of the slice that is received in the body. The list is complete after the body."""
    trace: list[list[int]] = []
    if not wanted:
        yield trace
        return
    over = threading.Event()
    left = rx.progress  # of the previous slice

    def look() -> None:
        with contextlib.suppress(OSError):  # so that it is rarely late
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        while not over.is_set():
            now, progress = time.monotonic_ns(), rx.progress
            if progress[0] != trace[-1][2] if trace else progress != left:
                trace.append([now, now, progress[0]])
            elif trace:
                trace[-1][1] = now
            time.sleep(_TRACE_S)

    thread = threading.Thread(target=look, name="trace", daemon=True)
    thread.start()
    try:
        yield trace
    finally:
        over.set()
        thread.join()


def _is_warm_up(time_slice: Any) -> bool:
    return len(time_slice) == 1 and time_slice[0].stream == _WARM_UP


def _early(rx: Any) -> list[Any]:
    """Slices that arrive before the request: warm-up slices are dropped, others are kept."""
    from aiflow.errors import SliceTimeout

    try:
        time_slice = rx.recv(timeout=0.05)
    except SliceTimeout:
        return []
    if not _is_warm_up(time_slice):
        return [time_slice]
    time_slice.release()
    return []
