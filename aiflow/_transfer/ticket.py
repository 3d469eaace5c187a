"""The caller's hold on a slice in flight: `Ticket`."""

from __future__ import annotations

from collections.abc import Generator
from typing import NoReturn, SupportsIndex

from aiflow._transfer.context import Context
from aiflow._transfer.in_flight import Flight
from aiflow.config import parse_timeout
from aiflow.errors import SliceTimeout, not_copied
from aiflow.report import SliceReport

__all__ = ["Ticket"]


class Ticket:
    """A slice in flight: `Sender.send` returns it with ``wait=False``, `Sender.put` with ``copy=False``. Awaitable.

    The elements' buffers belong to the transfer until `done`. A change before that makes the receiver refuse the
    slice. A Ticket of `put` ends with the slice that its element goes with.
    """

    def __init__(self, context: Context, flight: Flight, owner: object) -> None:
        self._context = context
        self._flight = flight
        self._owner = owner  # the Sender lives as long as its Tickets

    def done(self) -> bool:
        """Return whether it has ended, delivered or not. From then on nothing reads the buffers."""
        return self._flight.done

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes acknowledged so far, and bytes in all."""
        return self._flight.progress

    @property
    def waits_for(self) -> str:
        """What a slice that has not ended waits for, in words."""
        return self._flight.waits_for

    def result(self, timeout: float | None = None) -> SliceReport:
        """Wait for the end and return the report. An element of `put` that only `flush` would send is sent now.

        Parameters
        ----------
        timeout : float, optional
            Seconds. When they run out the slice stays in flight; ask again, or `cancel`.

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
        self._context.check_process()
        flight = self._flight
        flight.ask()
        if not self._context.waiter.until(flight.ended, timeout):
            raise SliceTimeout(
                f"the slice is not delivered within {timeout} s: {flight.waits_for}. It goes on: wait longer, or "
                "cancel() it",
                delivered=None,
            )
        return flight.finish()

    def cancel(self) -> None:
        """Give the whole slice up. Returns once it has ended: it may have arrived by then, `result` tells."""
        self._context.check_process()
        self._flight.cancel()

    def __await__(self) -> Generator[None, None, SliceReport]:
        self._context.check_process()
        flight = self._flight
        flight.ask()
        yield from self._context.waiter.until_async(flight.ended, None).__await__()
        return flight.finish()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "wait for its result(), and pass that on")
