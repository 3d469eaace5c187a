"""eclipse-zenoh: put to a declared subscriber, through shared memory, which is on by default.

Its Python API takes and returns `bytes` only, which requires a copy on each side. Congestion control BLOCK and a FIFO
channel avoid drops.
"""

from __future__ import annotations

import json
import socket
import time
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import zenoh
from loads import Load

POOL_BYTES = 1 << 26
CHANNEL = 1024  # samples queued in the subscriber's channel


def version() -> str:
    return installed("eclipse-zenoh")


def _config(way: str, address: str, pool: int) -> zenoh.Config:
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps("peer"))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5(f"{way}/endpoints", json.dumps([address]))
    config.insert_json5("transport/shared_memory/enabled", json.dumps(pool > 0))
    if pool:
        config.insert_json5("transport/shared_memory/transport_optimization/pool_size", json.dumps(pool))
    return config


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"tcp/127.0.0.1:{listener.getsockname()[1]}"


def _publisher(session: zenoh.Session, key: str) -> Any:
    return session.declare_publisher(
        key, congestion_control=zenoh.CongestionControl.BLOCK, reliability=zenoh.Reliability.RELIABLE
    )


def _await_match(publisher: Any) -> None:
    deadline = time.monotonic() + 30
    while not publisher.matching_status.matching:
        if time.monotonic() > deadline:
            raise TimeoutError("no subscriber matches")
        time.sleep(0.01)


class Sink:
    def __init__(self, directory: str, load: Load, pool: int = POOL_BYTES) -> None:
        address = _free_address()
        key = f"bench/{Path(directory).name}"
        self._session = zenoh.open(_config("listen", address, pool))
        self._subscriber = self._session.declare_subscriber(key, zenoh.handlers.FifoChannel(CHANNEL))
        self._count, self._batch = len(load.sizes), load.batch
        self.address = address, key

    def recv(self) -> Any:
        recv = self._subscriber.recv
        if self._batch:
            return [np.frombuffer(b"".join([recv().payload.to_bytes() for _ in range(self._count)]), np.uint8)]
        return [np.frombuffer(recv().payload.to_bytes(), np.uint8) for _ in range(self._count)]

    def close(self) -> None:
        self._session.close()


class Source:
    def __init__(self, address: tuple[str, str], load: Load, pool: int = POOL_BYTES) -> None:
        where, key = address
        self._session = zenoh.open(_config("connect", where, pool))
        self._publisher = _publisher(self._session, key)
        _await_match(self._publisher)

    def send(self, elements: Any) -> None:
        put = self._publisher.put
        for array in elements:
            put(array.tobytes())

    def close(self) -> None:
        self._session.close()


class _Half:
    def __init__(self, session: zenoh.Session, out: str, back: str, polling: bool) -> None:
        self._session = session
        self._subscriber = session.declare_subscriber(back, zenoh.handlers.FifoChannel(CHANNEL))
        self._publisher = _publisher(session, out)
        self._polling = polling

    def _recv(self) -> bytes:
        if not self._polling:
            payload: bytes = self._subscriber.recv().payload.to_bytes()
            return payload
        try_recv = self._subscriber.try_recv
        while (sample := try_recv()) is None:
            pass
        polled: bytes = sample.payload.to_bytes()
        return polled

    def close(self) -> None:
        self._session.close()


class Answerer(_Half):
    def __init__(self, directory: str, nbytes: int, polling: bool) -> None:
        address, key = _free_address(), f"bench/{Path(directory).name}"
        self.address = address, key
        super().__init__(zenoh.open(_config("listen", address, POOL_BYTES)), f"{key}/back", f"{key}/there", polling)

    def answer(self) -> None:
        self._publisher.put(self._recv())


class Caller(_Half):
    def __init__(self, address: tuple[str, str], nbytes: int, polling: bool) -> None:
        where, key = address
        super().__init__(zenoh.open(_config("connect", where, POOL_BYTES)), f"{key}/there", f"{key}/back", polling)
        _await_match(self._publisher)

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._publisher.put(array.tobytes())
        return np.frombuffer(self._recv(), np.uint8)
