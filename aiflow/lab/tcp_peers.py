"""TCP in the cluster: one connection per port. Each takes the next element from a common queue when it is free."""

from __future__ import annotations

import queue
import selectors
import socket
import struct
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from aiflow.lab.elements import Elements

__all__ = ["receive", "send"]

_TCP_PORT = 7700
_GREETING = struct.Struct("!I")  # the sender
_HEADER = struct.Struct("!III")  # number and size of an element, and the number of elements in the slice
_PATIENCE_S = 60.0
_SEND_BUFFER = 128 << 10


def send(
    pipe: Connection, number: int, ports: list[str], addresses: list[tuple[str, str]], to: str, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Like `aiflow_peers.send`. A slice ends when the receiver has confirmed all of it."""
    del ports, to
    loaded = elements.load()
    connections = [_connect(source, target, options) for source, target in addresses]
    for connection in connections:
        connection.sendall(_GREETING.pack(number))
    pipe.send(("ready",))
    while message := pipe.recv():
        numbers = message[0]
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        start = time.monotonic_ns()
        for i in numbers:
            todo.put(i)
        pullers = [
            threading.Thread(target=_pull, args=(connection, todo, loaded, len(numbers))) for connection in connections
        ]
        for puller in pullers:
            puller.start()
        _await_word(connections)
        end = time.monotonic_ns()
        for puller in pullers:
            puller.join()
        pipe.send(("sent", start, end, {}))


def _connect(source: str, target: str, options: dict[str, Any]) -> socket.socket:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.get("congestion", "cubic").encode())
        # Otherwise the kernel grows the buffer to megabytes, and a port takes elements that it cannot send yet.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        connection.bind((source, 0))
        try:
            connection.connect((target, _TCP_PORT))
            return connection
        except ConnectionRefusedError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _pull(connection: socket.socket, todo: queue.SimpleQueue[int], loaded: Any, count: int) -> None:
    while True:
        try:
            i = todo.get_nowait()
        except queue.Empty:
            return
        content = loaded[i]
        connection.sendall(_HEADER.pack(i, len(content), count))
        connection.sendall(content)


def _await_word(connections: list[socket.socket]) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        for key, _ in selector.select(600.0):
            assert isinstance(key.fileobj, socket.socket)
            if key.fileobj.recv(1) == b".":
                return
    raise ConnectionError("the receiver has not confirmed the slice")


class _Sink:
    """The received part of one sender's slice."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.arrived: dict[int, Any] = {}
        self.whole: queue.SimpleQueue[dict[int, Any]] = queue.SimpleQueue()

    def take(self, connection: socket.socket) -> None:
        """Read elements from one connection until it ends."""
        while header := _read(connection, _HEADER.size):
            i, nbytes, count = _HEADER.unpack(header)
            content = np.empty(nbytes, np.uint8)
            _fill(connection, memoryview(content))
            with self.lock:
                self.arrived[i] = content
                if len(self.arrived) < count:
                    continue
                arrived, self.arrived = self.arrived, {}
            connection.sendall(b".")
            self.whole.put(arrived)


def receive(
    pipe: Connection, number: int, ports: list[str], addresses: list[str], nb_senders: int, elements: Elements,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Like `aiflow_peers.receive`."""
    del number, ports, options
    loaded = elements.load()
    sinks: dict[int, _Sink] = {}
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        (sender,) = _GREETING.unpack(_read(connection, _GREETING.size))
        with lock:
            sink = sinks.setdefault(sender, _Sink())
        sink.take(connection)

    def accept(listener: socket.socket) -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    for address in addresses:
        threading.Thread(target=accept, args=(socket.create_server((address, _TCP_PORT)),), daemon=True).start()
    pipe.send(("ready",))
    while pipe.recv():
        deadline = time.monotonic() + _PATIENCE_S
        while len(sinks) < nb_senders and time.monotonic() < deadline:
            time.sleep(0.01)
        slices = [sink.whole.get(timeout=600.0) for sink in list(sinks.values())]
        identical = sum(loaded.equal(i, content) for arrived in slices for i, content in arrived.items())
        pipe.send(("received", sum(map(len, slices)), identical))


def _read(connection: socket.socket, nbytes: int) -> bytes:
    """Read this number of bytes; return nothing at the end of the stream."""
    content = bytearray(nbytes)
    try:
        _fill(connection, memoryview(content))
    except ConnectionError:
        return b""
    return bytes(content)


def _fill(connection: socket.socket, view: memoryview) -> None:
    while view:
        nbytes = connection.recv_into(view)
        if not nbytes:
            raise ConnectionError("the stream ended within an element")
        view = view[nbytes:]
