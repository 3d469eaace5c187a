"""iceoryx2: publish and subscribe bytes, one sample per element, copied into the loan and out of the sample.

`RetryUntilDelivered` and a buffer of many samples avoid loss. The subscriber polls, because `receive()` never blocks.
For latency with sleeping sides, a listener waits for an event that is sent with each sample.
"""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import iceoryx2 as iox2
import numpy as np
from loads import Load

DEEP = 64  # samples in transit, of large elements
SMALL, MANY = 65536, 4096  # bytes; samples in transit, of small ones
LOANS = 2  # samples in transit, where each one is awaited

Bytes = iox2.Slice[ctypes.c_uint8]


def version() -> str:
    return installed("iceoryx2")


def _node() -> Any:
    iox2.set_log_level(iox2.LogLevel.Error)
    return iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)


def _depth(size: int) -> int:
    return MANY if size < SMALL else DEEP


def _service(node: Any, name: str, depth: int) -> Any:
    return (
        node.service_builder(iox2.ServiceName.new(name))
        .publish_subscribe(Bytes)
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(depth)
        .open_or_create()
    )


def _publisher(service: Any, size: int) -> Any:
    return (
        service.publisher_builder()
        .initial_max_slice_len(size)
        .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
        .create()
    )


def _publish(publisher: Any, address: int, nbytes: int) -> None:
    sample = publisher.loan_slice_uninit(nbytes)
    ctypes.memmove(sample.payload_ptr, address, nbytes)
    sample.assume_init().send()


def _take(subscriber: Any, address: int, nbytes: int) -> None:
    """Wait for a sample and copy it. Dropping the object returns the sample."""
    while (sample := subscriber.receive()) is None:
        os.sched_yield()
    ctypes.memmove(address, sample.payload_ptr, nbytes)
    sample.delete()


def _array_at(sample: Any, nbytes: int) -> np.ndarray[Any, Any]:
    """Return the payload as an array, without a copy. It is valid as long as the sample."""
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(sample.payload_ptr), np.uint8)


class _Places:
    """Return address and size of every element."""

    def __init__(self, elements: Any) -> None:
        if isinstance(elements, np.ndarray):  # the rows of a batch
            first, step = elements.ctypes.data, elements.strides[0]
            self.all = [(first + i * step, step) for i in range(len(elements))]
        else:
            self.all = [(array.ctypes.data, array.nbytes) for array in elements]


class Sink:
    def __init__(self, directory: str, load: Load) -> None:
        self.address = Path(directory).name
        self._node = _node()
        self._service = _service(self._node, self.address, _depth(max(load.sizes)))
        self._subscriber = self._service.subscriber_builder().create()
        self._memory = load.memory()
        self._places = _Places(self._memory).all

    def recv(self) -> Any:
        subscriber = self._subscriber
        for address, nbytes in self._places:
            _take(subscriber, address, nbytes)
        return self._memory

    def close(self) -> None:
        self._subscriber.delete()


class Source:
    def __init__(self, address: str, load: Load) -> None:
        size = max(load.sizes)
        self._node = _node()
        self._service = _service(self._node, address, _depth(size))
        self._publisher = _publisher(self._service, size)

    def send(self, elements: Any) -> None:
        publisher = self._publisher
        for address, nbytes in _Places(elements).all:
            _publish(publisher, address, nbytes)

    def close(self) -> None:
        self._publisher.delete()


class Lender:
    """The sample of the library itself, filled in place."""

    def __init__(self, address: str, nbytes: int) -> None:
        self._node = _node()
        self._service = _service(self._node, address, LOANS)
        self._publisher, self._nbytes = _publisher(self._service, nbytes), nbytes

    def lend(self) -> np.ndarray[Any, Any]:
        self._sample = self._publisher.loan_slice_uninit(self._nbytes)
        return _array_at(self._sample, self._nbytes)

    def send(self) -> None:
        self._sample.assume_init().send()

    def close(self) -> None:
        self._publisher.delete()


class Borrower:
    lends = True

    def __init__(self, directory: str, nbytes: int) -> None:
        self.address = Path(directory).name
        self._node = _node()
        self._service = _service(self._node, self.address, LOANS)
        self._subscriber, self._nbytes = self._service.subscriber_builder().create(), nbytes

    def take(self) -> np.ndarray[Any, Any]:
        receive = self._subscriber.receive
        while (sample := receive()) is None:
            os.sched_yield()
        self._sample = sample
        return _array_at(sample, self._nbytes)

    def give_back(self) -> None:
        self._sample.delete()

    def close(self) -> None:
        self._subscriber.delete()


class _Half:
    """Publisher and subscriber of one side; with sleeping sides also notifier and listener."""

    def __init__(self, out: str, back: str, nbytes: int, polling: bool) -> None:
        self._node = _node()
        self._out, self._back = _service(self._node, out, 8), _service(self._node, back, 8)
        self._publisher = _publisher(self._out, nbytes)
        self._subscriber = self._back.subscriber_builder().create()
        self._polling = polling
        self._array = np.ones(nbytes, np.uint8)
        if not polling:
            self._events = [self._event(name) for name in (out, back)]
            self._notifier = self._events[0].notifier_builder().create()
            self._listener = self._events[1].listener_builder().create()

    def _event(self, name: str) -> Any:
        return self._node.service_builder(iox2.ServiceName.new(name)).event().open_or_create()

    def _send(self, array: np.ndarray[Any, Any]) -> None:
        _publish(self._publisher, array.ctypes.data, array.nbytes)
        if not self._polling:
            self._notifier.notify()

    def _recv(self) -> np.ndarray[Any, Any]:
        while not self._polling and not self._subscriber.has_samples():
            self._listener.blocking_wait()
        _take(self._subscriber, self._array.ctypes.data, self._array.nbytes)
        return self._array

    def close(self) -> None:
        self._publisher.delete()
        self._subscriber.delete()


class Answerer(_Half):
    def __init__(self, directory: str, nbytes: int, polling: bool) -> None:
        self.address = Path(directory).name
        super().__init__(self.address + "-back", self.address, nbytes, polling)

    def answer(self) -> None:
        self._send(self._recv())


class Caller(_Half):
    def __init__(self, address: str, nbytes: int, polling: bool) -> None:
        super().__init__(address, address + "-back", nbytes, polling)

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._send(array)
        return self._recv()
