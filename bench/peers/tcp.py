"""TCP sockets of the standard library over the loopback: the length of each element, then its bytes.

Large elements use `sendall` and `recv_into` with MSG_WAITALL, small ones buffered files, to save system calls.
"""

from __future__ import annotations

import platform
import socket
from typing import Any

import numpy as np
from loads import Load

HEADER_BYTES = 8
SMALL = 65536  # bytes
BUFFER_BYTES = 1 << 18


def version() -> str:
    return f"Linux {platform.release()}"


def _recv_exactly(connection: socket.socket, buffer: Any) -> None:
    view = memoryview(buffer)
    while view:
        view = view[connection.recv_into(view, flags=socket.MSG_WAITALL) or _ended() :]


def _ended() -> int:
    raise ConnectionError("the peer has closed the connection")


class _Listening:
    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._accepted: socket.socket | None = None

    @property
    def _connection(self) -> socket.socket:
        if self._accepted is None:
            self._accepted, _ = self._listener.accept()
            self._accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._accepted

    def close(self) -> None:
        if self._accepted is not None:
            self._accepted.close()
        self._listener.close()


class _Connected:
    def __init__(self, address: tuple[str, int]) -> None:
        self._connection = socket.create_connection(address)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._connection.close()


class Sink(_Listening):
    def __init__(self, directory: str, load: Load) -> None:
        super().__init__()
        self._memory = load.memory()
        self._small = load.sizes[0] < SMALL
        self._file: Any = None

    def recv(self) -> Any:
        if self._small:
            if self._file is None:
                self._file = self._connection.makefile("rb", BUFFER_BYTES)
            read, readinto = self._file.read, self._file.readinto
            for array in self._memory:
                readinto(array[: int.from_bytes(read(HEADER_BYTES), "little")])
            return self._memory
        header = bytearray(HEADER_BYTES)
        for array in self._memory:
            _recv_exactly(self._connection, header)
            _recv_exactly(self._connection, array[: int.from_bytes(header, "little")])
        return self._memory


class Source(_Connected):
    def __init__(self, address: tuple[str, int], load: Load) -> None:
        super().__init__(address)
        self._small = load.sizes[0] < SMALL
        self._file = self._connection.makefile("wb", BUFFER_BYTES)

    def send(self, elements: Any) -> None:
        if self._small:
            write = self._file.write
            for array in elements:
                write(array.nbytes.to_bytes(HEADER_BYTES, "little"))
                write(array)
            self._file.flush()
            return
        for array in elements:
            self._connection.sendall(array.nbytes.to_bytes(HEADER_BYTES, "little"))
            self._connection.sendall(array)


def _wait(connection: socket.socket, buffer: Any, polling: bool) -> None:
    if not polling:
        _recv_exactly(connection, buffer)
        return
    view = memoryview(buffer)
    while view:
        try:
            view = view[connection.recv_into(view, flags=socket.MSG_DONTWAIT) or _ended() :]
        except BlockingIOError:
            continue


class Answerer(_Listening):
    def __init__(self, directory: str, nbytes: int, polling: bool) -> None:
        super().__init__()
        self._array, self._polling = np.ones(nbytes, np.uint8), polling

    def answer(self) -> None:
        _wait(self._connection, self._array, self._polling)
        self._connection.sendall(self._array)


class Caller(_Connected):
    def __init__(self, address: tuple[str, int], nbytes: int, polling: bool) -> None:
        super().__init__(address)
        self._array, self._polling = np.ones(nbytes, np.uint8), polling

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._connection.sendall(array)
        _wait(self._connection, self._array, self._polling)
        return self._array
