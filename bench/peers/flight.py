"""Arrow Flight (pyarrow): `do_put` of record batches, read in gRPC's buffers.

An element is a record batch with a column of bytes. A batch of equal elements is one record batch with a column of
fixed-size binaries, one row per element. Neither side adds a copy; the arrays are views of Arrow's memory.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
from loads import Load

ROWS_BYTES = 1 << 20  # of a record batch: it fits into caches


def version() -> str:
    return pa.__version__


class _Server(fl.FlightServerBase):  # type: ignore[misc]
    """A server that passes on the received batches."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        super().__init__("grpc://127.0.0.1:0")

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        for chunk in reader:
            self.arrived.put(chunk.data)
        self.arrived.put(None)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        writer.begin(reader.schema)
        for chunk in reader:
            writer.write_batch(chunk.data)


def _batch(array: np.ndarray[Any, Any]) -> pa.RecordBatch:
    """Return bytes as a column, without a copy."""
    column = pa.Array.from_buffers(pa.uint8(), array.nbytes, [None, pa.py_buffer(array)])
    return pa.RecordBatch.from_arrays([column], ["element"])


def _rows(array: np.ndarray[Any, Any]) -> pa.RecordBatch:
    """Return rows as a column of fixed-size binaries, without a copy."""
    column = pa.Array.from_buffers(pa.binary(array.shape[1]), len(array), [None, pa.py_buffer(array)])
    return pa.RecordBatch.from_arrays([column], ["element"])


def _bytes_of(batch: pa.RecordBatch) -> np.ndarray[Any, Any]:
    column = batch.column(0)
    return np.frombuffer(column.buffers()[1], np.uint8)


class Sink:
    def __init__(self, directory: str, load: Load) -> None:
        self._server = _Server()
        self.address = f"grpc://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve, daemon=True)
        self._thread.start()

    def recv(self) -> Any:
        arrays = []
        while (batch := self._server.arrived.get()) is not None:
            arrays.append(_bytes_of(batch))
        return arrays

    def close(self) -> None:
        self._server.shutdown()


class Source:
    def __init__(self, address: str, load: Load) -> None:
        self._client = fl.FlightClient(address)
        self._batch = load.batch

    def send(self, elements: Any) -> None:
        if self._batch:
            step = max(1, ROWS_BYTES // elements.shape[1])
            batches = [_rows(elements[at : at + step]) for at in range(0, len(elements), step)]
        else:
            batches = [_batch(array) for array in elements]
        writer, _ = self._client.do_put(fl.FlightDescriptor.for_path("slice"), batches[0].schema)
        with writer:
            for batch in batches:
                writer.write_batch(batch)

    def close(self) -> None:
        self._client.close()


class Answerer:
    """The server's own thread answers."""

    def __init__(self, directory: str, nbytes: int, polling: bool) -> None:
        if polling:
            raise NotImplementedError("it cannot poll")
        self._server = _Server()
        self.address = f"grpc://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve, daemon=True).start()

    def answer(self) -> None:
        pass

    def close(self) -> None:
        self._server.shutdown()


class Caller:
    def __init__(self, address: str, nbytes: int, polling: bool) -> None:
        self._client = fl.FlightClient(address)
        self._writer: Any = None

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        batch = _batch(array)
        if self._writer is None:
            self._writer, self._reader = self._client.do_exchange(fl.FlightDescriptor.for_path("call"))
            self._writer.begin(batch.schema)
        self._writer.write_batch(batch)
        return _bytes_of(self._reader.read_chunk().data)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.done_writing()
        self._client.close()
