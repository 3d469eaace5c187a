"""pyzmq: PUSH to PULL, one message per element; a PAIR of sockets for latency.

Large elements are sent without pyzmq's copy (`copy=False`). All are received by `recv_into`, from libzmq's message
into recycled memory: a user who keeps libzmq's messages makes the kernel map, clear and unmap the memory of each one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zmq
from loads import Load

KEEP_AT = 65536  # bytes: below it pyzmq copies anyway (zmq.COPY_THRESHOLD)


def version() -> str:
    return f"{zmq.__version__}, libzmq {zmq.zmq_version()}"


def _bound(context: zmq.Context[Any], kind: int, transport: str, directory: str) -> tuple[zmq.Socket[Any], str]:
    socket = context.socket(kind)
    socket.set_hwm(0)
    if transport == "ipc":
        socket.bind(f"ipc://{directory}/zmq")
    else:
        socket.bind("tcp://127.0.0.1:*")
    return socket, socket.last_endpoint.rstrip(b"\0").decode()


class _Closing:
    _context: zmq.Context[Any]

    def close(self) -> None:
        self._context.destroy(linger=0)


class Sink(_Closing):
    def __init__(self, directory: str, load: Load, transport: str) -> None:
        self._context = zmq.Context()
        self._socket, self.address = _bound(self._context, zmq.PULL, transport, directory)
        self._memory = load.memory()

    def recv(self) -> Any:
        recv_into = self._socket.recv_into
        for array in self._memory:
            recv_into(array)
        return self._memory


class Source(_Closing):
    def __init__(self, address: str, load: Load, transport: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.connect(address)
        self._copy = load.sizes[0] < KEEP_AT

    def send(self, elements: Any) -> None:
        send, copy = self._socket.send, self._copy
        for array in elements:
            send(array, copy=copy)


class _Pair(_Closing):
    """Both ends of a conversation."""

    _socket: zmq.Socket[Any]

    def __init__(self, nbytes: int, polling: bool) -> None:
        self._polling = polling
        self._array = np.ones(nbytes, np.uint8)

    def _recv(self) -> np.ndarray[Any, Any]:
        if not self._polling:
            self._socket.recv_into(self._array)
            return self._array
        recv_into, array = self._socket.recv_into, self._array
        while True:
            try:
                recv_into(array, flags=zmq.NOBLOCK)
                return array
            except zmq.Again:
                continue


class Answerer(_Pair):
    def __init__(self, directory: str, nbytes: int, polling: bool, transport: str) -> None:
        super().__init__(nbytes, polling)
        self._context = zmq.Context()
        self._socket, self.address = _bound(self._context, zmq.PAIR, transport, directory)

    def answer(self) -> None:
        self._socket.send(self._recv())


class Caller(_Pair):
    def __init__(self, address: str, nbytes: int, polling: bool, transport: str) -> None:
        super().__init__(nbytes, polling)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.connect(address)

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._socket.send(array)
        return self._recv()
