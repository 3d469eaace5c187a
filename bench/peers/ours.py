"""aiflow itself: `Sender.send` and `send_batch`, `Receiver.recv` and `as_arrays`."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
from loads import Load

import aiflow

TIMEOUT_S = 60
_KEYWORDS = inspect.signature(aiflow.Sender).parameters
CAN_SPIN = "idle" in _KEYWORDS or "flat" in _KEYWORDS  # missing in older trees, which may be compared
CAN_LEND = hasattr(aiflow.Sender, "loan")


def version() -> str:
    return f"{aiflow.__version__}, DPDK {aiflow._eal.dpdk_version()}"


class Sink:
    def __init__(self, directory: str, load: Load, driver: str = "local", ports: int = 1, **options: Any) -> None:
        name = f"{driver}:{Path(directory).name}"
        self.address = f"{name}*{ports}" if ports > 1 else name
        self._batch = load.batch
        self._kept = not options.get("assemble", True)
        self._rx = aiflow.Receiver(self.address, memory="1GiB", **options)
        self.about = {key: self._rx.describe()[0][key] for key in ("driver", "memory")}
        self.about["package"] = os.path.dirname(os.path.realpath(aiflow.__file__))

    def recv(self) -> Any:
        self._slice = self._rx.recv(TIMEOUT_S)
        if self._kept:
            return list(self._slice)
        if self._batch:
            return self._slice.as_arrays()["rows"]
        return [element.array for element in self._slice]

    def parts(self, elements: Any) -> Any:
        return (part for element in elements for part in element.segments) if self._kept else elements

    def release(self) -> None:
        self._slice.release()

    def close(self) -> None:
        self._rx.close()


class Source:
    def __init__(self, address: str, load: Load, assemble: bool = True, driver: str = "", ports: int = 1) -> None:
        self._batch = load.batch
        self._tx = aiflow.Sender(address)

    def send(self, elements: Any) -> None:
        if self._batch:
            self.report = self._tx.send_batch("rows", elements, timeout=TIMEOUT_S)
        else:
            self.report = self._tx.send(elements, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._tx.close()


class Lender:
    """`Sender.loan`, filled in place. A tree without it sends an ordinary array, which is copied."""

    def __init__(self, address: str, nbytes: int) -> None:
        self._tx = aiflow.Sender(address, idle="spin")
        self._nbytes = nbytes
        self._array = np.ones(nbytes, np.uint8)

    def lend(self) -> np.ndarray[Any, Any]:
        if CAN_LEND:
            self._array = self._tx.loan((self._nbytes,), np.uint8)
        return self._array

    def send(self) -> None:
        self._tx.send([self._array], timeout=TIMEOUT_S)  # this thread drives the loop until the delivery

    def close(self) -> None:
        self._tx.close()


class Borrower:
    lends = CAN_LEND

    def __init__(self, directory: str, nbytes: int) -> None:
        self.address = f"local:{Path(directory).name}"
        options: dict[str, Any] = {"loans": True} if CAN_LEND else {}
        self._rx = aiflow.Receiver(self.address, memory="1GiB", idle="spin", **options)

    def take(self) -> np.ndarray[Any, Any]:
        self._slice = self._rx.recv(TIMEOUT_S)
        (element,) = self._slice
        array: np.ndarray[Any, Any] = element.array
        return array

    def give_back(self) -> None:
        self._slice.release()

    def close(self) -> None:
        self._rx.close()


class _End:
    """A Sender and a Receiver, one for each direction, over ports of their own or over the same ones."""

    def __init__(self, out: str, back: str, polling: bool, names: tuple[str, str] | None) -> None:
        idle: dict[str, Any] = {"idle": "spin"} if polling and CAN_SPIN else {}
        self._ports: Any = None
        if names is None:
            self._rx = aiflow.Receiver(back, memory="64MiB", **idle)
            self._tx = aiflow.Sender(out, **idle)
        else:
            me, peer = names
            self._ports = aiflow.Ports([out], polling=aiflow.Polling(**idle))
            self._rx = aiflow.Receiver(self._ports, name=me, memory="64MiB")
            self._tx = aiflow.Sender(self._ports, to=peer, name=me, peer_timeout=60)

    def _send(self, array: np.ndarray[Any, Any]) -> None:
        self._tx.send([array], timeout=TIMEOUT_S)  # this thread drives the loop until the delivery

    def _recv(self) -> np.ndarray[Any, Any]:
        with self._rx.recv(TIMEOUT_S) as time_slice:
            (element,) = time_slice
            array: np.ndarray[Any, Any] = element.array
        return array

    def close(self) -> None:
        self._tx.close()
        self._rx.close()
        if self._ports is not None:
            self._ports.close()


class Answerer(_End):
    def __init__(self, directory: str, nbytes: int, polling: bool, shared: bool = False) -> None:
        self.address = out = f"local:{Path(directory).name}"
        back = out if shared else out + "-back"
        super().__init__(back, out, polling, ("answerer", "caller") if shared else None)

    def answer(self) -> None:
        self._send(self._recv())


class Caller(_End):
    def __init__(self, address: str, nbytes: int, polling: bool, shared: bool = False) -> None:
        super().__init__(address, address + "-back", polling, ("caller", "answerer") if shared else None)

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._send(array)
        return self._recv()
