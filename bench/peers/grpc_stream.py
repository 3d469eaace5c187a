"""gRPC (grpcio): a client stream of messages over HTTP/2, one element each, without or with gzip.

The messages are plain bytes: a protobuf message would add a copy on each side. gRPC needs `bytes`, so arrays are copied
into them. Received elements stay in gRPC's buffers.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from loads import Load

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SERVICE = "aiflow.bench"


def version() -> str:
    return str(grpc.__version__)


class _Listening:
    def __init__(self, **methods: Any) -> None:
        self._server = grpc.server(ThreadPoolExecutor(2), options=OPTIONS)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()


class Sink(_Listening):
    def __init__(self, directory: str, load: Load, gzip: bool = False) -> None:
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._batch = load.batch
        super().__init__(put=grpc.stream_unary_rpc_method_handler(self._put))

    def _put(self, messages: Iterator[bytes], context: Any) -> bytes:
        if self._batch:
            self._arrived.put([np.frombuffer(b"".join(messages), np.uint8)])
        else:
            self._arrived.put([np.frombuffer(message, np.uint8) for message in messages])
        return b""

    def recv(self) -> Any:
        return self._arrived.get()


class Source:
    def __init__(self, address: str, load: Load, gzip: bool = False) -> None:
        compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
        self._channel = grpc.insecure_channel(address, OPTIONS, compression)
        self._put = self._channel.stream_unary(f"/{SERVICE}/put")

    def send(self, elements: Any) -> None:
        self._put(array.tobytes() for array in elements)

    def close(self) -> None:
        self._channel.close()


class Answerer(_Listening):
    """The server's own threads answer."""

    def __init__(self, directory: str, nbytes: int, polling: bool) -> None:
        if polling:
            raise NotImplementedError("it cannot poll")
        super().__init__(call=grpc.unary_unary_rpc_method_handler(lambda message, context: message))

    def answer(self) -> None:
        pass


class Caller:
    def __init__(self, address: str, nbytes: int, polling: bool) -> None:
        self._channel = grpc.insecure_channel(address, OPTIONS)
        self._call = self._channel.unary_unary(f"/{SERVICE}/call")

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.frombuffer(self._call(array.tobytes()), np.uint8)

    def close(self) -> None:
        self._channel.close()
