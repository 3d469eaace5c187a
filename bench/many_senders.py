"""Several sender processes into one receiver: the time of a fixed number of slices, shared among them.

The receiver has a core of its own. The senders share the other cores. The clock runs from the first call of any sender
until the receiver holds the last slice as arrays. The receiver gives each slice back before the next one. After the
clock has stopped it compares a checksum of the last slice.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

from contest import Process
from loads import ROTATION, Load, checksum

TIMEOUT_S = 60.0
_NUMBERS = itertools.count()


def _sender(pipe: Connection, address: str, load: Load, core: int) -> None:
    os.sched_setaffinity(0, {core})
    import aiflow

    slices = load.slices()
    with aiflow.Sender(address) as tx:
        pipe.send(("ready", None))
        sent = 0
        while (message := pipe.recv())[0] != "close":
            cpu, begin = time.process_time(), time.perf_counter()
            for _ in range(message[1]):
                tx.send(slices[sent % ROTATION], timeout=TIMEOUT_S)
                sent += 1
            pipe.send(("ok", (begin, time.process_time() - cpu)))


def _receiver(pipe: Connection, address: str, load: Load, core: int) -> None:
    os.sched_setaffinity(0, {core})
    import aiflow

    expected = {checksum(elements) for elements in load.slices()}
    with aiflow.Receiver(address, memory="1GiB") as rx:
        pipe.send(("ready", None))
        while (message := pipe.recv())[0] != "close":
            cpu = time.process_time()
            for left in reversed(range(message[1])):
                time_slice = rx.recv(TIMEOUT_S)
                arrays = [element.array for element in time_slice]
                if left:
                    del arrays
                    time_slice.release()
            end, cpu = time.perf_counter(), time.process_time() - cpu
            if checksum(arrays) not in expected:
                raise AssertionError("a slice did not arrive as it was sent")
            del arrays
            time_slice.release()
            pipe.send(("ok", (end, cpu)))


class Senders:
    """A receiver and `count` senders, connected.

    Parameters
    ----------
    count : int
    load : Load
        A slice of each sender.
    slices : int
        Slices of a round, of all senders together: a multiple of `count`.
    cores : sequence of int
        CPUs of the senders; the last one is the receiver's if there are several.
    """

    def __init__(self, count: int, load: Load, slices: int, cores: Sequence[int]) -> None:
        self.rounds: list[float] = []
        self.cpu: list[float] = []
        self._slices = slices
        address = f"local:senders-{os.getpid()}-{next(_NUMBERS)}"
        others = list(cores[:-1] or cores)
        with contextlib.ExitStack() as life:

            def start(*args: Any) -> Process:
                process = Process(*args)
                life.callback(process.close)
                process.answer()
                return process

            self._receiver = start(_receiver, address, load, cores[-1])
            self._senders = [start(_sender, address, load, others[number % len(others)]) for number in range(count)]
            self._life = life.pop_all()

    @property
    def pids(self) -> list[int]:
        """Process ids of all of them."""
        return [process.pid for process in (self._receiver, *self._senders)]

    def round(self) -> None:
        """Send all slices twice: the first time another process has used the caches, and does not count."""
        self._send()
        seconds, cpu = self._send()
        self.rounds.append(seconds)
        self.cpu.append(cpu)

    def _send(self) -> tuple[float, float]:
        """Send all slices. Return the seconds, and the CPU seconds of all processes."""
        self._receiver.tell("round", self._slices)
        for sender in self._senders:
            sender.tell("round", self._slices // len(self._senders))
        begins, used = zip(*(sender.answer() for sender in self._senders), strict=True)
        end, cpu = self._receiver.answer()
        return end - min(begins), cpu + sum(used)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._life.close()
