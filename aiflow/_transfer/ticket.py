"""Slices under way: `Ticket`."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from aiflow._transfer import result
from aiflow.config import parse_timeout
from aiflow.errors import AiflowError, SliceTimeout, not_copied

if TYPE_CHECKING:
    from aiflow.report import SliceReport
    from aiflow.sender import Sender

__all__ = ["Ticket", "again"]


class Ticket:
    """A slice under way: what `Sender.send` returns with ``wait=False``. Awaitable.

    The elements' buffers belong to the transfer until `done`; changing them before makes the receiver refuse the slice.
    """

    def __init__(self, sender: Sender, outgoing: Any) -> None:
        self._sender = sender
        self._outgoing = outgoing
        self._report: SliceReport | None = None

    def done(self) -> bool:
        """Has it ended, one way or the other? From then on nothing reads the buffers."""
        return bool(self._outgoing.done)

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes acknowledged so far, and bytes in all."""
        return self._outgoing.acked_bytes, self._outgoing.nbytes

    @property
    def waits_for(self) -> str:
        """What a slice that has not ended is waiting for, in words."""
        return self._sender._waits_for(self._outgoing)

    def result(self, timeout: float | None = None) -> SliceReport:
        """Wait for the end and return the report.

        Parameters
        ----------
        timeout : float, optional
            Seconds. When they run out the slice goes on; ask again, or `cancel`.

        Returns
        -------
        SliceReport

        Raises
        ------
        SliceTimeout, PeerLost, PoolExhausted, IntegrityError, PortError, ConfigError
            As `Sender.send`.
        """
        timeout = parse_timeout(timeout)
        self._sender._loop.check_process()
        if not self._sender._waiting.until(self._ended, timeout):
            raise SliceTimeout(
                f"the slice is not delivered within {timeout} s, and still in flight: "
                f"{self._sender._waits_for(self._outgoing)}. Wait longer, or cancel() it",
                delivered=None,
            )
        return self._finish()

    def cancel(self) -> None:
        """Give the slice up. Returns once it has ended: it may have arrived by then, `result` tells."""
        self._sender._loop.check_process()
        self._outgoing.cancel()

    def __await__(self) -> Generator[Any, None, SliceReport]:
        self._sender._loop.check_process()
        yield from self._sender._waiting.until_async(self._ended, None).__await__()
        return self._finish()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "wait for its result(), and pass that on")

    def _ended(self) -> bool:
        return bool(self._outgoing.done) or self._sender._ports.error is not None

    def _finish(self, waited_for: str = "") -> SliceReport:
        error = self._sender._ports.error
        if error is not None and not (self._outgoing.done and all(part.error == "ok" for part in self._outgoing.parts)):
            self._outgoing.cancel()  # what the ports say is why
            raise result.lasting(error, self._outgoing, self._sender._name_of)
        self._outgoing.finish()
        if self._report is None:
            self._report = self._sender._report(self._outgoing, waited_for)
        return self._report


def again(error: AiflowError) -> AiflowError:
    """A lasting error, as a fresh exception for each call that meets it."""
    return type(error)(str(error), delivered=False)
