"""The receiving half of a benchmark, in a process and on a core of its own.

It opens a Receiver and answers each slice with what arrived and its checksum. The checksum is computed after the slice
has arrived and while no clock runs: the sender waits for the answer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

from contest import Process


def checksum(elements: Iterable[Any], kept: bool = False) -> int:
    """Return the CRC32 (zlib's, not the wire's) of all bytes of all elements, in order. `kept`: they are in mbufs."""
    crc = 0
    for element in elements:
        for part in element.segments if kept else [element]:
            crc = zlib.crc32(part, crc)
    return crc


class ReceiverProcess(Process):
    """A Receiver in another process.

    Parameters
    ----------
    endpoint : str
    core : int
        CPU it is pinned to.
    assemble : bool
        As for `aiflow.Receiver`.
    """

    def __init__(self, endpoint: str, core: int, assemble: bool = True) -> None:
        super().__init__(_receive, endpoint, core, assemble)
        self.opened: dict[str, Any] = self.answer()


def _receive(pipe: Connection, endpoint: str, core: int, assemble: bool) -> None:
    os.sched_setaffinity(0, {core})

    import aiflow  # after the pinning, so that every thread inherits it

    def close_at_farewell() -> None:
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()
        rx.close()

    with aiflow.Receiver(endpoint, assemble=assemble, memory="1GiB") as rx:
        threading.Thread(target=close_at_farewell, daemon=True).start()
        (path,) = rx.describe()
        pipe.send(("ready", {"driver": path["driver"], "memory": path["memory"]}))
        for time_slice in rx:
            answer = {
                "nbytes": time_slice.nbytes,
                "elements": len(time_slice),
                "checksum": checksum(time_slice, not assemble),
            }
            time_slice.release()
            pipe.send(("ok", answer))
