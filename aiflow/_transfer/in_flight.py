"""Slices in flight: what a Ticket asks of one, and the flight of a slice that is posted."""

from __future__ import annotations

from typing import Any, Protocol

from aiflow._transfer import result
from aiflow._transfer.context import Context
from aiflow.report import SliceReport

__all__ = ["Flight", "InFlight"]


class Flight(Protocol):
    """One slice, from the call that took it to its end."""

    @property
    def done(self) -> bool:
        """Whether it has ended; nothing reads its buffers from then on."""

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes acknowledged so far, and bytes in all."""

    @property
    def waits_for(self) -> str:
        """What it waits for, in words."""

    def ask(self) -> None:
        """A caller is about to wait for it."""

    def ended(self) -> bool:
        """Whether a caller may stop waiting: it is done, or the ports have failed."""

    def finish(self, waited_for: str = "") -> SliceReport:
        """Its report, or the error that ended it. Only once it has `ended`."""

    def cancel(self) -> None:
        """Give it up; returns once it is done."""


class InFlight:
    """A slice that is posted.

    Parameters
    ----------
    context : Context
    outgoing : aiflow._dp_outgoing.Outgoing or aiflow._transfer.fanout.FanOut
        The data plane's slice.
    """

    __slots__ = ("_context", "_report", "outgoing")

    def __init__(self, context: Context, outgoing: Any) -> None:
        self._context = context
        self._report: SliceReport | None = None
        self.outgoing = outgoing

    @property
    def done(self) -> bool:
        """See `Flight`, as for the others."""
        return bool(self.outgoing.done)

    @property
    def progress(self) -> tuple[int, int]:
        return self.outgoing.acked_bytes, self.outgoing.nbytes

    @property
    def waits_for(self) -> str:
        return self._context.waits_for(self.outgoing)

    def ask(self) -> None:
        """Nothing to do: it is on its way."""

    def ended(self) -> bool:
        return bool(self.outgoing.done) or self._context.ports.error is not None

    def finish(self, waited_for: str = "") -> SliceReport:
        """See `Flight`. `waited_for`: what it waited for when it was given up."""
        outgoing = self.outgoing
        error = self._context.ports.error
        if error is not None and not (outgoing.done and all(part.error == "ok" for part in outgoing.parts)):
            outgoing.cancel()  # the ports' error is the cause
            raise result.lasting(error, outgoing, self._context.name_of)
        outgoing.finish()
        if self._report is None:
            self._report = self._context.report(outgoing, waited_for)
        return self._report

    def cancel(self) -> None:
        self.outgoing.cancel()
