"""ZeroMQ in the cluster: one PUSH socket connected to a PULL socket with one endpoint per port."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from aiflow.lab.elements import Elements

__all__ = ["receive", "send"]

_TCP_PORT, _WORD_PORT = 7800, 7801
_HEADER = struct.Struct("!II")  # number of an element, and number of elements in the slice
_HIGH_WATER = 2  # messages queued at each endpoint: few, or a slow port gets too many
_PATIENCE_MS = 600_000


def send(
    pipe: Connection, number: int, ports: list[str], addresses: list[tuple[str, str]], to: str, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Like `aiflow_peers.send`. A slice ends when the receiver has confirmed all of it."""
    import zmq

    del number, ports, to, options
    loaded = elements.load()
    with _sockets(zmq.PUSH, zmq.PULL) as (push, word):
        push.set(zmq.SNDHWM, _HIGH_WATER)
        push.set(zmq.IMMEDIATE, 1)  # only to connected endpoints
        with _joined(push, len(addresses)):
            for source, target in addresses:
                push.connect(f"tcp://{source}:0;{target}:{_TCP_PORT}")
        word.connect(f"tcp://{addresses[0][0]}:0;{addresses[0][1]}:{_WORD_PORT}")
        pipe.send(("ready",))
        while message := pipe.recv():
            numbers = message[0]
            start = time.monotonic_ns()
            for i in numbers:
                push.send_multipart([_HEADER.pack(i, len(numbers)), loaded[i]], copy=False)
            word.recv()
            pipe.send(("sent", start, time.monotonic_ns(), {}))


@contextlib.contextmanager
def _sockets(data: int, word: int) -> Iterator[tuple[Any, Any]]:
    """Open the socket of the elements, and that of the receiver's confirmations."""
    import zmq

    with zmq.Context() as context, context.socket(data) as elements, context.socket(word) as confirmations:
        for sock in (elements, confirmations):
            sock.set(zmq.LINGER, 0)
            sock.set(zmq.RCVTIMEO, _PATIENCE_MS)
        yield elements, confirmations


@contextlib.contextmanager
def _joined(push: Any, count: int) -> Iterator[None]:
    """Wait, at the end of the body, until this number of the endpoints connected in it have answered."""
    import zmq
    from zmq.utils.monitor import recv_monitor_message

    monitor = push.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    monitor.set(zmq.RCVTIMEO, 60_000)
    yield
    for _ in range(count):
        recv_monitor_message(monitor)
    push.disable_monitor()


def receive(
    pipe: Connection, number: int, ports: list[str], addresses: list[str], nb_senders: int, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Like `aiflow_peers.receive`, from one sender."""
    import zmq

    del number, ports, options
    if nb_senders != 1:
        raise ValueError("one ZeroMQ sender for each receiver")
    loaded = elements.load()
    with _sockets(zmq.PULL, zmq.PUSH) as (pull, word):
        pull.set(zmq.RCVHWM, _HIGH_WATER)
        for address in addresses:
            pull.bind(f"tcp://{address}:{_TCP_PORT}")
        word.bind(f"tcp://{addresses[0]}:{_WORD_PORT}")
        pipe.send(("ready",))
        while pipe.recv():
            arrived: dict[int, Any] = {}
            count = 1
            while len(arrived) < count:
                header, content = pull.recv_multipart(copy=False)
                i, count = _HEADER.unpack(header.buffer)
                arrived[i] = content.buffer
            word.send(b".")
            identical = sum(loaded.equal(i, content) for i, content in arrived.items())
            pipe.send(("received", len(arrived), identical))
