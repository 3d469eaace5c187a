"""The demo's two processes: one sends the photographs, the other receives and compares them.

Each sends messages to its parent through a pipe: tuples whose first item is the kind. The functions :func:`send_photos`
and :func:`receive_photos` are the bodies of the processes.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from aiflow import Receiver, TimeSlice

SAMPLE_SECONDS = 0.02  # between two readings of the port table
THUMBNAIL_PIXELS = 88  # side of a square
REPORT_FIELDS = "slice_id", "elements", "nbytes", "seconds", "goodput_bps", "frames_sent", "frames_retransmitted"
GREETING = "greeting"  # stream of the first slice, of one byte
_MEMORY = 1 << 30  # bytes of the receiver, at most
_PATIENCE_SECONDS = 60.0  # wait for the other side, or for a slice

Photographs = list[tuple[str, npt.NDArray[np.uint8]]]


def send_photos(pipe: Connection, endpoint: str, directory: Path, names: list[str], seconds: float) -> None:
    """Send one byte to join the receiver, then slices of all photographs, each in another order, for `seconds`.

    The message ``("sent", row, ports)`` after each slice has the fields of its report, and the counters of each port.
    """
    from aiflow import Sender, empty
    from aiflow.cli.figures import port_rows

    with _speaking(pipe) as say:
        elements = _read(directory, names, lambda nbytes: empty((nbytes,), "u1"))
        with Sender(endpoint, name="demo-sender") as tx:
            tx.send({GREETING: b"."}, timeout=_PATIENCE_SECONDS)  # discovery, which is not measured
            end: float | None = None
            while end is None or time.monotonic() < end:
                report = tx.send(elements, timeout=_PATIENCE_SECONDS)
                end = time.monotonic() + seconds if end is None else end
                row = {name: getattr(report, name) for name in REPORT_FIELDS}
                say("sent", row, port_rows(report.ports))
                turn = 1 + len(elements) // 7
                elements = elements[turn:] + elements[:turn]


def receive_photos(pipe: Connection, endpoint: str, directory: Path, names: list[str]) -> None:
    """Receive until the sender closes. Compare every slice with the files, and decode the images of the first one.

    Messages: ``("progress", bytes)`` while the first slice arrives; ``("received", identical)`` for each slice, with
    the number of photographs equal to their files; ``("samples", rows)`` when the sender has closed; ``("decoded",
    number)`` while decoding; ``("checked", identical names, thumbnails)`` at the end.
    """
    with _speaking(pipe) as say:
        originals = dict(_read(directory, names, lambda nbytes: np.empty(nbytes, np.uint8)))
        nbytes = sum(original.nbytes for original in originals.values())
        with _receiver(endpoint, min(_MEMORY, 4 * nbytes + (16 << 20))) as rx:  # the first one is kept
            say("ready")
            first_identical: set[str] | None = None
            images: dict[str, npt.NDArray[np.uint8]] = {}
            with _Sampler(rx, lambda nbytes: say("progress", nbytes)) as sampler:
                for time_slice in rx:
                    if GREETING in {element.stream for element in time_slice}:
                        continue
                    sampler.report_progress = False  # the first slice has arrived
                    identical = _identical(time_slice, originals)
                    say("received", len(identical))
                    if first_identical is None:
                        first_identical = identical
                        images = {element.stream: element.array for element in time_slice}  # kept without a copy
            say("samples", sampler.samples)
            decoded, thumbnails = _decode(images, names, lambda done: say("decoded", done))
            say("checked", sorted(decoded & (first_identical or set())), thumbnails)


def _receiver(endpoint: str, memory: int) -> Receiver:
    """With its memory touched in advance, if there is enough: the first slice then shows the steady rate."""
    from aiflow import Receiver
    from aiflow.errors import PoolExhausted

    try:
        return Receiver(endpoint, memory=memory, prefault=True, timeout=_PATIENCE_SECONDS, until="bye")
    except PoolExhausted:
        return Receiver(endpoint, memory=memory, timeout=_PATIENCE_SECONDS, until="bye")


@contextlib.contextmanager
def _speaking(pipe: Connection) -> Iterator[Callable[..., None]]:
    """Yield a function that sends its arguments through the pipe, from any thread. Also send a final exception.

    The parent's SIGTERM unwinds every ``with`` block of this process.
    """
    lock = threading.Lock()

    def say(*message: object) -> None:
        with lock:
            pipe.send(message)

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not interrupt the exit
        sys.exit(1)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield say
    except Exception as error:
        say("error", type(error).__name__, str(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nor the exit handlers
        pipe.close()


def _read(directory: Path, names: list[str], empty: Callable[[int], npt.NDArray[np.uint8]]) -> Photographs:
    """Read the files into one block of memory."""
    sizes = [(directory / name).stat().st_size for name in names]
    block = empty(sum(sizes))
    photographs: Photographs = []
    at = 0
    for name, size in zip(names, sizes, strict=True):
        place = block[at : at + size]
        with open(directory / name, "rb", buffering=0) as file:
            if file.readinto(place.data) != size:
                raise OSError(f"{directory / name} could not be read completely; delete {directory} and retry")
        photographs.append((name, place))
        at += size
    return photographs


def _identical(time_slice: TimeSlice, originals: dict[str, npt.NDArray[np.uint8]]) -> set[str]:
    """Compare each element with its file, byte for byte. Return the names of the equal ones."""
    return {
        element.stream
        for element in time_slice
        if element.stream in originals and np.array_equal(element.array, originals[element.stream])
    }


def _decode(
    images: dict[str, npt.NDArray[np.uint8]], names: list[str], progress: Callable[[int], None]
) -> tuple[set[str], npt.NDArray[np.uint8]]:
    """Decode every image completely. Return the names of the decodable ones, and their square thumbnails."""
    thumbnails = np.full((len(names), THUMBNAIL_PIXELS, THUMBNAIL_PIXELS, 3), 255, np.uint8)
    decoded: set[str] = set()

    def decode(position: int) -> None:
        from PIL import Image, ImageOps

        name = names[position]
        if name not in images:
            return
        with Image.open(io.BytesIO(images[name].data)) as image:
            try:
                image.load()
            except OSError:  # truncated or corrupt
                return
            side = THUMBNAIL_PIXELS
            smaller = image.reduce(max(1, min(image.size) // (2 * side))).convert("RGB")
            thumbnails[position] = np.asarray(ImageOps.fit(smaller, (side, side)))
        decoded.add(name)

    with ThreadPoolExecutor(2) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(names))), start=1):
            if done % 16 == 0 or done == len(names):
                progress(done)
    return decoded, thumbnails


class _Sampler:
    """A thread that reads the port table every 20 ms, for the curve and the progress of the first slice."""

    def __init__(self, rx: Receiver, progress: Callable[[int], None]) -> None:
        self.samples: list[tuple[float, dict[str, int]]] = []  # seconds, and bytes so far by port
        self.report_progress = True
        self._rx = rx
        self._progress = progress
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="port-table-sampler", daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            self.samples.append((time.monotonic(), {row.name: int(row.nbytes) for row in self._rx.port_table}))
            if self.report_progress:
                self._progress(self._rx.progress[0])
