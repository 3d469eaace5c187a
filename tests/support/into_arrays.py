"""Receiving into arrays: what the tests of `recv(into=…)` share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from wait import PATIENCE_S, wait_for

import aiflow

IMAGES = np.random.default_rng(17).integers(0, 256, (8, 60, 80, 3), np.uint8)
LABELS = np.arange(8, dtype="<i8")


def of_both() -> list[tuple[str, np.ndarray[Any, Any]]]:
    return [*(("image", image) for image in IMAGES), ("label", LABELS)]


def address(array: np.ndarray[Any, Any]) -> int:
    return array.__array_interface__["data"][0]


class Call(threading.Thread):
    """A call of `recv` in a thread of its own; `result` is its slice or its error."""

    def __init__(self, rx: aiflow.Receiver, *arguments: Any, **keywords: Any) -> None:
        super().__init__(daemon=True)
        self._call = lambda: rx.recv(*arguments, **keywords)
        self._rx = rx
        self.result: Any = None
        before = len(rx._agent.offers)
        self.start()
        wait_for(lambda: len(rx._agent.offers) > before or not self.is_alive(), "the arrays are offered")

    def run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.result = error

    def ended(self) -> Any:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@contextmanager
def joined(scheme: str, name: str, faults: Any = None, **options: Any) -> Iterator[tuple[Any, Any]]:
    endpoint = f"{scheme}:{name}"
    with aiflow.Receiver(endpoint, **options) as rx, aiflow.Sender(endpoint, faults=faults) as tx:
        yield tx, rx
        assert rx._agent.offers == []
