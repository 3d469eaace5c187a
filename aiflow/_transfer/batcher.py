"""Streaming: what `Sender.put` is given, collected into time slices and sent in the background.

An interrupt, or a signal handler that puts, flushes or sends, may strike anywhere here. CPython lets one in at calls
and at the ends of loops only. What belongs together has neither, which a comment says: "straight on". What an interrupt
leaves half done, the next call finishes.
"""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from aiflow import scheduler
from aiflow._system import threads
from aiflow._transfer.fanout import whole_of
from aiflow._transfer.manifest import Piece, describe
from aiflow._transfer.ticket import Ticket
from aiflow.config import parse_timeout
from aiflow.errors import AiflowError, DemandWarning, PoolExhausted, SliceTimeout

if TYPE_CHECKING:
    from aiflow.report import SliceReport
    from aiflow.sender import Sender

__all__ = ["PutTicket", "Streaming", "Supply"]

OVERHEAD = 256
"""Bytes that an element counts for beside its own."""

SLICE_OVERHEAD = 16 << 10
"""Bytes that a slice counts for beside its elements."""

FIRST_BLOCK, BLOCK = 64 << 10, 4 << 20
"""Copies are made into blocks that double from the first size to the second, or have the element's; they are used
again, so their pages stay warm."""

REMEMBERED, ENOUGH = 8, 3
"""Slices by which what the ports give is judged: the newest, and how many there must be. One may have had bad luck."""


class Supply:
    """What the ports were seen to give, by the newest slices."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)  # bytes, bit/s
        self._until = 0.0

    def note(self, outgoing: Any) -> None:
        """Remember a slice that was delivered: at what rate, its waiting for the receiver and for others left out."""
        if outgoing.waited is None:  # a single frame, which measures the round trip
            return
        done_at = outgoing.posted_at + outgoing.seconds
        seconds = done_at - max(outgoing.posted_at + outgoing.waited, self._until)
        self._until = max(self._until, done_at)
        if seconds > 0 and outgoing.nbytes:
            self._seen.append((outgoing.nbytes, 8 * outgoing.nbytes / seconds))

    def bps(self, nbytes: int) -> float | None:
        """The best rate of slices at least half as large (small ones measure the round trip); None for too few."""
        rates = [rate for size, rate in tuple(self._seen) if 2 * size >= nbytes]
        return max(rates) if len(rates) >= ENOUGH else None


class Window:
    """The elements of one slice: collected, then under way."""

    def __init__(self, due: float | None) -> None:
        self.due = due  # time.monotonic() at which it closes; None: by flush
        self.pieces: list[Piece] = []
        self.blocks: list[np.ndarray[Any, Any]] = []  # that copies lie in, the last one partly free
        self.used = 0  # bytes of the last block
        self.nbytes = 0
        self.held = SLICE_OVERHEAD
        self.speeds: list[float | None] = []  # of the ports when it was opened, bit/s
        self.weighed = False  # and found too large
        self.sealed = False  # nothing is added any more
        self.posts: list[Callable[[list[Any]], Any]] | None = None  # each sends one receiver's part
        self.posted: list[Any] = []  # the parts that are under way
        self.outgoing: Any = None  # all of them
        self.noted = False  # by Supply
        self.ended = False  # it counts no more
        self.told = False  # its error
        self.error: AiflowError | None = None


class PutTicket(Ticket):
    """An element that `Sender.put` took with ``copy=False``; it ends with its slice. Awaitable.

    The buffer belongs to the transfer until `done`.
    """

    def __init__(self, sender: Sender, streaming: Streaming, window: Window) -> None:
        super().__init__(sender, None)
        self._streaming = streaming
        self._window = window

    def done(self) -> bool:
        """Has its slice ended, one way or the other? From then on nothing reads the buffer."""
        window = self._window
        return window.error is not None or (window.outgoing is not None and bool(window.outgoing.done))

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes of its slice acknowledged so far, and bytes in all."""
        window = self._window
        return (0, window.nbytes) if window.outgoing is None else (window.outgoing.acked_bytes, window.nbytes)

    def result(self, timeout: float | None = None) -> SliceReport:
        """Wait for the end of its slice and return the report. A slice that only `flush` ends is sent now.

        Parameters
        ----------
        timeout : float, optional
            Seconds. When they run out the slice goes on; ask again.

        Returns
        -------
        SliceReport
            Of the whole slice.

        Raises
        ------
        SliceTimeout, PeerLost, PoolExhausted, IntegrityError, PortError, ConfigError
            As `Sender.send`. `put`, `flush` and `close` don't raise it again.
        """
        timeout = parse_timeout(timeout)
        self._sender._loop.check_process()
        self._streaming.ask(self._window)
        if not self._sender._waiting.until(self._ended, timeout):
            raise SliceTimeout(
                f"the slice of this element has not arrived within {timeout} s: wait longer, or cancel() it",
                delivered=None,
            )
        return self._finish()

    def cancel(self) -> None:
        """Give the whole slice up that the element belongs to. Returns once it has ended."""
        self._sender._loop.check_process()
        self._window.told = True
        self._streaming.cut(self._window)
        if self._window.outgoing is not None:
            self._window.outgoing.cancel()

    def __await__(self) -> Generator[Any, None, SliceReport]:
        self._sender._loop.check_process()
        self._streaming.ask(self._window)
        yield from self._sender._waiting.until_async(self._ended, None).__await__()
        return self._finish()

    def _ended(self) -> bool:
        self._outgoing = self._window.outgoing
        return self._window.error is not None or (self._outgoing is not None and super()._ended())

    def _finish(self, waited_for: str = "") -> SliceReport:
        try:
            if self._outgoing is None:
                assert self._window.error is not None
                raise self._window.error
            return super()._finish(waited_for)
        except AiflowError:
            self._window.told = True
            raise


class Streaming:
    """The windows of one Sender.

    Parameters
    ----------
    sender : Sender
        Held weakly: a Sender that is dropped can go.
    seconds : float or None
        Length of a slice from its first element; None: until `cut`.
    memory : int
        Bytes that may be collected and under way.
    guard : threading.RLock
        The lock under which the Sender posts a slice for several receivers. Ours is the same one: two could be taken in
        either order. A plain lock in C, which an interrupt leaves taken by nobody; a Condition's ``with`` is Python.
    """

    def __init__(self, sender: Sender, seconds: float | None, memory: int, guard: Any) -> None:
        self._sender = weakref.ref(sender)
        self.seconds = seconds
        self.memory = memory
        self.supply = Supply()
        self.demand: scheduler.Demand | None = None
        self.unmet = 0
        self._warned = False  # of a demand that is not met; again after one that was
        self._unsaid: scheduler.Demand | None = None
        self._guard = guard  # of all that follows
        self._changed = threads.unpatched("threading").Condition(guard)  # for the thread to wait
        self._open: Window | None = None
        self._flying: deque[Window] = deque()
        self._failed: list[Window] = []
        self._spare: list[np.ndarray[Any, Any]] = []
        self._held = 0
        self.closed = False
        self._thread: threads.Thread | None = None

    # ---- taking elements ----

    def put(self, sender: Sender, stream: str, buffer: Any, copy: bool) -> PutTicket | None:
        """Take one element; blocks while there is no room for it. See `Sender.put`."""
        piece = describe(stream, buffer)  # what cannot be sent fails here, not in the background
        size = piece.form.nbytes
        if size + OVERHEAD + SLICE_OVERHEAD > self.memory:
            raise PoolExhausted(
                f"an element of {size} bytes is more than put_memory={self.memory}: pass a larger one, or send() it"
            )
        copied = copy and size and not isinstance(piece.buffer, bytes)
        source = np.frombuffer(piece.buffer, np.uint8) if copied else None
        while True:
            with self._guard:
                if self._flying or self._failed or self._unsaid is not None:
                    self.complain(stacklevel=4)
                sender._check_open()
                if self._has_room(size):
                    window = self._window(sender)
                    self._weigh_open(window, size)
                    if self._take(window, piece, size, source):
                        return None if copy else PutTicket(sender, self, window)
                    continue
                if self.seconds is None and not self._flying:
                    raise PoolExhausted(
                        f"{self._held} bytes are collected and put_memory={self.memory}: flush() sends them; do so "
                        "more often, pass slice_ms=, or a larger put_memory="
                    )
            sender._waiting.until(lambda: self._moved(size), None)

    def _moved(self, size: int) -> bool:
        """Whether a put that waits should look again."""
        with self._guard:
            self._reap()
            return self._has_room(size) or bool(self._failed) or self.closed

    def _has_room(self, size: int) -> bool:
        opening = SLICE_OVERHEAD if self._open is None else 0
        return self._held + opening + size + OVERHEAD <= self.memory

    def _window(self, sender: Sender) -> Window:
        if self._open is not None and self._open.sealed:
            self._send_open()
        if self._open is None:
            window = Window(None if self.seconds is None else time.monotonic() + self.seconds)
            if self.seconds is not None:
                window.speeds = self._speeds(sender)
                self._serve()  # it waits for our guard, and finds the window then
            if self._open is None:  # straight on
                self._held += window.held
                self._open = window
        return self._open

    def _serve(self) -> None:
        """The thread that closes windows runs, and looks again."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threads.start(partial(_close_windows, weakref.ref(self), self._changed), "aiflow-put")
        self._changed.notify_all()

    def _take(self, window: Window, piece: Piece, size: int, source: np.ndarray[Any, Any] | None) -> bool:
        """Add an element, a copy of `source` if there is one; False: not into this window, or not yet."""
        if source is not None:
            if not window.blocks or window.used + size > window.blocks[-1].nbytes:
                self._add_block(window, size)
                return False
            if window.sealed:
                return False
            copy = window.blocks[-1][window.used : window.used + size]  # straight on
            copy[:] = source
            window.used += (size + 63) // 64 * 64
            piece = Piece(piece.stream, copy, piece.form)
        if window.sealed:
            return False
        window.nbytes += size  # straight on
        window.held += size + OVERHEAD
        self._held += size + OVERHEAD
        window.pieces += (piece,)
        return True

    def _add_block(self, window: Window, size: int) -> None:
        spare, self._spare = self._spare, []
        block = next((block for block in spare if block.nbytes >= size), None)
        self._spare += [other for other in spare if other is not block]
        if block is None:
            block = np.empty(max(size, min(FIRST_BLOCK << len(window.blocks), BLOCK)), np.uint8)
        window.used = 0  # straight on
        window.blocks += (block,)

    # ---- sending windows ----

    def ask(self, window: Window) -> None:
        """Somebody waits for this window: one that only a flush would end is sent now."""
        if self.seconds is None:
            self.cut(window)

    def cut(self, window: Window | None = None) -> None:
        """Send what is collected (of this window, if one is given)."""
        with self._guard:
            if window is None or window is self._open:
                self._send_open()

    def _send_open(self) -> None:
        """Send the open window. After an interrupt it is still open, and the next call goes on where this one was."""
        window = self._open
        if window is None:
            return
        if not window.pieces and not window.sealed:  # its first element failed
            if self._open is window:  # straight on
                self._open = None
                self._held -= window.held
                window.ended = True
            return
        sender = self._sender()
        try:
            if sender is None or self.closed:
                raise SliceTimeout(
                    f"{len(window.pieces)} elements were given up before they were sent: close without an error, or "
                    "flush() first",
                    delivered=False,
                )
            if not window.sealed:
                self._judge(window)
                window.sealed = True
            if window.posts is None:
                window.posts = sender._posts_of(window.pieces)
            sender._post_all(window.posts, window.posted)
            outgoing = whole_of(window.posted)
        except Exception as error:  # in the background: the next put, flush or close tells
            for part in window.posted:
                part.cancel()
            why = error if isinstance(error, AiflowError) else AiflowError(f"put() failed: {error!r}")
            why.__traceback__ = None  # its frames hold the Sender
            if window.outgoing is None and not window.ended:
                window.error = why
                self._end(window)
            return
        if self._open is window:  # straight on; else a signal handler was faster
            window.outgoing = outgoing
            self._open = None
            self._flying += (window,)
        window.pieces = []  # whoever sends them holds them
        window.posts = None

    def _reap(self) -> None:
        """Take leave of windows that have ended."""
        sender = self._sender()
        while sender is not None and self._flying:
            window = self._flying[0]
            ticket = Ticket(sender, window.outgoing)
            if not ticket._ended():
                return
            try:
                ticket._finish()
                if not window.noted:
                    window.noted = True
                    self.supply.note(window.outgoing)
            except AiflowError as error:
                error.__traceback__ = None  # its frames hold the Sender
                window.error = error
            self._end(window)

    def _end(self, window: Window) -> None:
        """A window counts no more, and its failure is to be told. Once, however often it is called."""
        if not window.ended:  # straight on
            window.ended = True
            self._held -= window.held
            if window.error is not None:
                self._failed += (window,)
            if self._open is window:
                self._open = None
            if self._flying and self._flying[0] is window:
                del self._flying[0]
        blocks, window.blocks = window.blocks, []
        free = self.memory - self._held - sum(spare.nbytes for spare in self._spare)
        for block in blocks:
            if block.nbytes <= free:
                free -= block.nbytes
                self._spare.append(block)

    def complain(self, stacklevel: int = 3) -> None:
        """Raise the first error that nobody has been told, and warn of a demand that was found too large."""
        with self._guard:
            self._reap()
            nb_failed = len(self._failed)
            errors = [window.error for window in self._failed[:nb_failed] if not window.told]
            if len(errors) > 1 and errors[0] is not None:
                errors[0].add_note(f"{len(errors) - 1} more slices of put() have failed since")
            first = errors[0] if errors else None
            del self._failed[:nb_failed]  # straight on
            if first is not None:
                raise first
            unsaid, self._unsaid = self._unsaid, None
        self._warn(unsaid, stacklevel + 1)

    def close(self) -> None:
        """No window opens any more; what is collected and was not flushed is given up. May be repeated."""
        with self._guard:
            self.closed = True
            self._send_open()
            self._changed.notify_all()
        if self._thread is not None and not threads.is_current(self._thread):
            self._thread.join()

    # ---- what is asked of the ports ----

    def _speeds(self, sender: Sender) -> list[float | None]:
        return [row.link_speed_bps for row in sender.port_table if row.dest_mac]

    def weigh(self, nbytes: int, speeds: list[float | None]) -> scheduler.Demand | None:
        """Compare a slice of so many bytes with what the ports can give: their speeds, and what they were seen to give.

        None where nothing is known, as before the first slice over ports whose driver makes its speed up.
        """
        assert self.seconds is not None
        demands = []
        known = [speed for speed in speeds if speed]
        if known and len(known) == len(speeds):
            demands.append(scheduler.demand(nbytes, self.seconds, known))
        seen = self.supply.bps(nbytes)
        if seen is not None:
            demands.append(scheduler.demand(nbytes, self.seconds, [seen], payload_share=1.0))
        return min(demands, key=lambda demand: demand.available_bps, default=None)

    def check(self, sender: Sender, nbytes: int, stacklevel: int = 4) -> None:
        """A slice is about to go out by `Sender.send`: note what it asks, and warn if that is too much."""
        if self.seconds is not None:
            with self._guard:
                demand = self._note(nbytes, self._speeds(sender))
            self._warn(demand, stacklevel + 1)

    def _note(self, nbytes: int, speeds: list[float | None]) -> scheduler.Demand | None:
        self.demand = self.weigh(nbytes, speeds)
        if self.demand is not None:
            self.unmet += not self.demand.met
            self._warned &= not self.demand.met
        return self.demand

    def _warn(self, demand: scheduler.Demand | None, stacklevel: int) -> None:
        """Warn of a demand that is not met, once until one is met again."""
        if demand is not None and not demand.met and not self._warned:
            self._warned = True
            warnings.warn(demand.explain(), DemandWarning, stacklevel=stacklevel)

    def _weigh_open(self, window: Window, size: int) -> None:
        """Warn with the first element that makes the window too large, before anything of it goes out."""
        if window.weighed or self.seconds is None:
            return
        demand = self.weigh(window.nbytes + size, window.speeds)
        window.weighed = demand is not None and not demand.met
        self._warn(demand, 5)

    def _judge(self, window: Window) -> None:
        if self.seconds is not None:
            self._unsaid = self._note(window.nbytes, window.speeds)


def _close_windows(reference: weakref.ref[Streaming], changed: threading.Condition) -> None:
    """Send each window when its time is over. Holds nothing while it waits, so that a dropped Sender can go."""
    while True:
        with changed:
            streaming = reference()
            if streaming is None or streaming.closed:
                return
            streaming._reap()
            window = streaming._open
            pause = None if window is None or window.due is None else window.due - time.monotonic()
            if pause is not None and pause <= 0:
                streaming._send_open()
                continue
            del streaming, window
            changed.wait(pause)
