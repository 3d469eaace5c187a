"""Streaming: `Sender.put` collects elements into time slices, which go out in the background.

An interrupt, or a signal handler that puts, flushes or sends, may strike anywhere in this file. CPython lets one in
at calls and at the ends of loops only. Statements that belong together have neither; a comment marks them as
"straight on". What an interrupt leaves half done, the next call finishes.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from aiflow import scheduler
from aiflow._system import threads
from aiflow._transfer.context import Context
from aiflow._transfer.demand import DemandMeter, Speeds
from aiflow._transfer.fanout import whole_of
from aiflow._transfer.in_flight import Flight, InFlight
from aiflow._transfer.manifest import Piece, describe
from aiflow.errors import AiflowError, PoolExhausted, SliceTimeout
from aiflow.report import SliceReport

__all__ = ["Batcher", "Post", "Posting"]

OVERHEAD = 256
"""Bytes that an element counts for beside its own."""

SLICE_OVERHEAD = 16 << 10
"""Bytes that a slice counts for beside its elements."""

FIRST_BLOCK, BLOCK = 64 << 10, 4 << 20
"""Copies go into blocks whose sizes double from the first to the second; a larger element has a block of its own.
Blocks are reused, so their pages stay warm."""

Post = Callable[[list[Any]], Any]
"""Posts one receiver's part of a slice, and appends it to the list."""


class Posting(Protocol):
    """How slices go out (`aiflow._poster.Poster`)."""

    @property
    def lock(self) -> Any:
        """The lock under which a slice is posted: a `threading.RLock`."""

    def posts_of(self, pieces: list[Piece]) -> list[Post]:
        """One call for each receiver's part."""

    def post_all(self, posts: list[Post], posted: list[Any]) -> None:
        """Post the parts that are not in `posted` yet."""

    def give_up(self, posted: list[Any]) -> None:
        """End the parts that are in flight, and never post the others."""


class Batch:
    """The elements of one slice: collected, then in flight."""

    def __init__(self, due: float | None) -> None:
        self.due = due  # time.monotonic() at which it is sent; None: by flush
        self.pieces: list[Piece] = []
        self.blocks: list[np.ndarray[Any, Any]] = []  # memory of the copies; the last one is partly free
        self.used = 0  # bytes of the last block
        self.nbytes = 0
        self.held = SLICE_OVERHEAD
        self.speeds: Speeds = []  # of the ports when it was opened
        self.is_too_large = False  # a warning was due
        self.sealed = False  # nothing is added any more
        self.posts: list[Post] | None = None
        self.posted: list[Any] = []  # the parts that are in flight
        self.flight: InFlight | None = None  # all of them
        self.noted = False  # by the rate estimate
        self.ended = False  # it counts no more
        self.told = False  # its error was raised
        self.error: AiflowError | None = None


class PendingFlight:
    """The flight of an element that `Sender.put` took with ``copy=False``: it ends with its batch."""

    __slots__ = ("_batch", "_batcher")

    def __init__(self, batcher: Batcher, batch: Batch) -> None:
        self._batcher = batcher
        self._batch = batch

    @property
    def done(self) -> bool:
        return self._batch.error is not None or (self._batch.flight is not None and self._batch.flight.done)

    @property
    def progress(self) -> tuple[int, int]:
        flight = self._batch.flight
        return (0 if flight is None else flight.progress[0]), self._batch.nbytes

    @property
    def waits_for(self) -> str:
        flight = self._batch.flight
        return "its slice is still collected: slice_ms= or flush() sends it" if flight is None else flight.waits_for

    def ask(self) -> None:
        """A batch that only `flush` would end is sent now."""
        if self._batcher.seconds is None:
            self._batcher.cut(self._batch)

    def ended(self) -> bool:
        return self._batch.error is not None or (self._batch.flight is not None and self._batch.flight.ended())

    def finish(self, waited_for: str = "") -> SliceReport:
        """See `Flight`. An error that is raised here is not raised again by `put`, `flush` or `close`."""
        try:
            if self._batch.flight is None:
                assert self._batch.error is not None
                raise self._batch.error
            return self._batch.flight.finish(waited_for)
        except AiflowError:
            self._batch.told = True
            raise

    def cancel(self) -> None:
        """Give up the whole slice that the element belongs to."""
        self._batch.told = True
        self._batcher.cut(self._batch)
        if self._batch.flight is not None:
            self._batch.flight.cancel()


class Batcher:
    """The batches of one Sender.

    Parameters
    ----------
    context : Context
    posting : Posting
        Its lock guards the Batcher too: two locks could be taken in either order. It is a plain lock in C, which an
        interrupt never leaves locked; the ``with`` of a Condition is Python.
    demand : DemandMeter
        Knows the length of a slice; None: a batch stays open until `cut`.
    memory : int
        Bytes that may be collected and in flight.
    """

    def __init__(self, context: Context, posting: Posting, demand: DemandMeter, memory: int) -> None:
        self.seconds = demand.seconds
        self.memory = memory
        self.closed = False
        self._context = context
        self._posting = posting
        self._demand = demand
        self._unsaid: scheduler.Demand | None = None  # found too large in the background, to warn of
        self._guard = posting.lock  # of all that follows
        self._changed = threads.unpatched("threading").Condition(self._guard)  # for the thread to wait
        self._open: Batch | None = None
        self._in_flight: deque[Batch] = deque()
        self._failed: list[Batch] = []
        self._spare: list[np.ndarray[Any, Any]] = []
        self._held = 0
        self._thread: threads.Thread | None = None

    # ---- taking elements ----

    def put(self, stream: str, buffer: Any, copy: bool) -> Flight | None:
        """Take one element, and return its flight with ``copy=False``. Blocks while there is no room for it."""
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
                if self._in_flight or self._failed or self._unsaid is not None:
                    self.complain(stacklevel=4)
                self._context.check_open()
                if self._has_room(size):
                    batch = self._opened()
                    self._weigh_open(batch, size)
                    if self._take(batch, piece, size, source):
                        return None if copy else PendingFlight(self, batch)
                    continue
                if self.seconds is None and not self._in_flight:
                    raise PoolExhausted(
                        f"{self._held} bytes are collected and put_memory={self.memory}: flush() sends them; do so "
                        "more often, pass slice_ms=, or a larger put_memory="
                    )
            self._context.waiter.until(lambda: self._moved(size), None)

    def _moved(self, size: int) -> bool:
        """Whether a put that waits should look again."""
        with self._guard:
            self._reap()
            return self._has_room(size) or bool(self._failed) or self.closed

    def _has_room(self, size: int) -> bool:
        opening = SLICE_OVERHEAD if self._open is None else 0
        return self._held + opening + size + OVERHEAD <= self.memory

    def _opened(self) -> Batch:
        if self._open is not None and self._open.sealed:
            self._send_open()
        if self._open is None:
            batch = Batch(None if self.seconds is None else time.monotonic() + self.seconds)
            if self.seconds is not None:
                batch.speeds = self._demand.speeds()
                self._serve()  # it waits for our guard, and finds the batch then
            if self._open is None:  # straight on
                self._held += batch.held
                self._open = batch
        return self._open

    def _serve(self) -> None:
        """Make sure that the thread which sends batches runs, and let it look again."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threads.start(partial(_send_due, weakref.ref(self), self._changed), "aiflow-put")
        self._changed.notify_all()

    def _take(self, batch: Batch, piece: Piece, size: int, source: np.ndarray[Any, Any] | None) -> bool:
        """Add an element, a copy of `source` if there is one; False: not into this batch, or not yet."""
        if source is not None:
            if not batch.blocks or batch.used + size > batch.blocks[-1].nbytes:
                self._add_block(batch, size)
                return False
            if batch.sealed:
                return False
            copy = batch.blocks[-1][batch.used : batch.used + size]  # straight on
            copy[:] = source
            batch.used += (size + 63) // 64 * 64
            piece = Piece(piece.stream, copy, piece.form)
        if batch.sealed:
            return False
        batch.nbytes += size  # straight on
        batch.held += size + OVERHEAD
        self._held += size + OVERHEAD
        batch.pieces += (piece,)
        return True

    def _add_block(self, batch: Batch, size: int) -> None:
        spare, self._spare = self._spare, []
        block = next((block for block in spare if block.nbytes >= size), None)
        self._spare += [other for other in spare if other is not block]
        if block is None:
            block = np.empty(max(size, min(FIRST_BLOCK << len(batch.blocks), BLOCK)), np.uint8)
        batch.used = 0  # straight on
        batch.blocks += (block,)

    # ---- sending batches ----

    def cut(self, batch: Batch | None = None) -> None:
        """Send what is collected, if that is this batch or none is given."""
        with self._guard:
            if batch is None or batch is self._open:
                self._send_open()

    def _send_open(self) -> None:
        """Send the open batch. An interrupt leaves it open, and the next call goes on from there."""
        batch = self._open
        if batch is None:
            return
        if not batch.pieces and not batch.sealed:  # its first element failed
            if self._open is batch:  # straight on
                self._open = None
                self._held -= batch.held
                batch.ended = True
            return
        try:
            if self.closed:
                raise SliceTimeout(
                    f"{len(batch.pieces)} elements were given up before they were sent: close without an error, or "
                    "flush() first",
                    delivered=False,
                )
            if not batch.sealed:
                self._judge(batch)
                batch.sealed = True
            if batch.posts is None:
                batch.posts = self._posting.posts_of(batch.pieces)
            self._posting.post_all(batch.posts, batch.posted)
            flight = InFlight(self._context, whole_of(batch.posted))
        except Exception as error:  # in the background: the next put, flush or close tells
            self._posting.give_up(batch.posted)
            why = error if isinstance(error, AiflowError) else AiflowError(f"put() failed: {error!r}")
            why.__traceback__ = None  # its frames hold the elements
            if batch.flight is None and not batch.ended:
                batch.error = why
                self._end(batch)
            return
        if self._open is batch:  # straight on; else a signal handler was faster
            batch.flight = flight
            self._open = None
            self._in_flight += (batch,)
        batch.pieces = []  # the data plane holds them
        batch.posts = None

    def _reap(self) -> None:
        """Count batches that have ended no more."""
        while self._in_flight:
            batch = self._in_flight[0]
            flight = batch.flight
            if flight is None or not flight.ended():
                return
            try:
                flight.finish()
                if not batch.noted:
                    batch.noted = True
                    self._demand.rates.note(flight.outgoing)
            except AiflowError as error:
                error.__traceback__ = None  # its frames hold the elements
                batch.error = error
            self._end(batch)

    def _end(self, batch: Batch) -> None:
        """A batch counts no more, and its failure is to be raised. Takes effect once, however often it is called."""
        if not batch.ended:  # straight on
            batch.ended = True
            self._held -= batch.held
            if batch.error is not None:
                self._failed += (batch,)
            if self._open is batch:
                self._open = None
            if self._in_flight and self._in_flight[0] is batch:
                del self._in_flight[0]
        blocks, batch.blocks = batch.blocks, []
        free = self.memory - self._held - sum(spare.nbytes for spare in self._spare)
        for block in blocks:
            if block.nbytes <= free:
                free -= block.nbytes
                self._spare.append(block)

    def complain(self, stacklevel: int = 3) -> None:
        """Raise the first error that no call has raised yet, and warn of a demand that was found too large."""
        with self._guard:
            self._reap()
            nb_failed = len(self._failed)
            errors = [batch.error for batch in self._failed[:nb_failed] if not batch.told]
            if len(errors) > 1 and errors[0] is not None:
                errors[0].add_note(f"{len(errors) - 1} more slices of put() have failed since")
            first = errors[0] if errors else None
            del self._failed[:nb_failed]  # straight on
            if first is not None:
                raise first
            unsaid, self._unsaid = self._unsaid, None
        self._demand.warn(unsaid, stacklevel + 1)

    def close(self) -> None:
        """Open no batch any more, and give up what is collected and was not flushed. May be repeated."""
        with self._guard:
            self.closed = True
            self._send_open()
            self._changed.notify_all()
        if self._thread is not None and not threads.is_current(self._thread):
            self._thread.join()

    # ---- demand ----

    def _weigh_open(self, batch: Batch, size: int) -> None:
        """Warn with the first element that makes the batch too large, before anything of it goes out."""
        if batch.is_too_large or self.seconds is None:
            return
        demand = self._demand.weigh(batch.nbytes + size, batch.speeds)
        batch.is_too_large = demand is not None and not demand.met
        self._demand.warn(demand, 5)

    def _judge(self, batch: Batch) -> None:
        if self.seconds is not None:
            self._unsaid = self._demand.note(batch.nbytes, batch.speeds)


def _send_due(reference: weakref.ref[Batcher], changed: threading.Condition) -> None:
    """Send each batch when its time is over. Holds nothing while it waits, so that a dropped Sender can go."""
    while True:
        with changed:
            batcher = reference()
            if batcher is None or batcher.closed:
                return
            batcher._reap()
            batch = batcher._open
            pause = None if batch is None or batch.due is None else batch.due - time.monotonic()
            if pause is not None and pause <= 0:
                batcher._send_open()
                continue
            del batcher, batch
            changed.wait(pause)
