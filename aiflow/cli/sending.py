"""Slices of files on their way: two in flight, and what became of each file."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiflow._terminal.outcome import Outcome
from aiflow._terminal.text import printable
from aiflow.cli.figures import first_few
from aiflow.cli.filetree import MOST_IN_FLIGHT, FileSlice, FileTree, SliceReader
from aiflow.errors import AiflowError, DeliveryError, PeerLost, SliceTimeout

if TYPE_CHECKING:
    from aiflow import Sender, SliceReport, Ticket

_PATIENCE_SECONDS = 3.0  # until the wait for a receiver is reported
_MOST_ROWS = 10_000  # slices in the document: a watch may send for months


class Sending:
    """One run of ``aiflow send``.

    Parameters
    ----------
    outcome : Outcome
        Its document gets ``files``, ``nbytes`` and ``slices``.
    tx : Sender
    timeout : float or None
        Limit of the wait for each slice, seconds.
    undelivered : dict of str to str
        Paths that are not delivered yet, and the reason. Those that the receiver has written are removed.

    Attributes
    ----------
    abandon : callable
        Called with each path that the receiver refused.
    refused : set of str
        These paths.
    nb_slices, nb_retransmitted : int
        Delivered slices, and frames of them that were retransmitted.
    """

    def __init__(self, outcome: Outcome, tx: Sender, timeout: float | None, undelivered: dict[str, str]) -> None:
        self.abandon: Callable[[str], None] = lambda _path: None
        self.refused: set[str] = set()
        self.nb_slices = 0
        self.nb_retransmitted = 0
        self._outcome = outcome
        self._tx = tx
        self._timeout = timeout
        self._undelivered = undelivered
        self._in_flight: deque[tuple[FileSlice, Ticket]] = deque()
        self._nb_settled = 0  # delivered, or refused in part
        self._nbytes_before = 0  # of these

    def send(self, file_slice: FileSlice) -> None:
        """Send a slice. Its block may be reused when two more slices were sent."""
        most = MOST_IN_FLIGHT if self._nb_settled else 1  # only one slice, until there is a receiver
        if len(self._in_flight) == most:
            self._settle()
        self._in_flight.append((file_slice, self._tx.send(file_slice.elements, wait=False)))

    def finish(self) -> None:
        """Wait until every slice is delivered or refused."""
        while self._in_flight:
            self._settle()

    def finish_within(self, seconds: float) -> None:
        """Wait a moment for the slices in flight, after an interrupt."""
        self._timeout = seconds
        if self._nb_settled or self._tx.receivers:
            with contextlib.suppress(AiflowError):
                self.finish()

    def expect_receiver(self) -> None:
        """Wait for another receiver with the next slice: the one before is gone."""
        self._in_flight.clear()
        self._nb_settled = 0

    def acknowledged(self) -> float:
        """Return the bytes that have arrived, for a progress bar."""
        return self._nbytes_before + sum(ticket.progress[0] for _, ticket in tuple(self._in_flight))

    def ask(self, question: FileSlice) -> dict[int, str]:
        """Send a slice of questions. Return the numbers of those that the receiver refused, and the reasons."""
        self.finish()
        self._in_flight.append((question, self._tx.send(question.elements, wait=False)))
        try:
            self._report()
        except DeliveryError as error:
            refused = error.failed_elements
        else:
            refused = {}
        finally:
            self._in_flight.clear()  # after an interrupt, too: an answer says nothing about a delivery
        self._nb_settled += 1
        return refused

    def _settle(self) -> None:
        """Wait for the oldest slice in flight."""
        file_slice, _ = self._in_flight[0]
        try:
            self._note(self._report())
        except DeliveryError as error:
            self.refused.update(error.failed)
            self._undelivered.update(error.failed)
            for path in error.failed:
                self.abandon(path)
        self._in_flight.popleft()
        self._nb_settled += 1
        self._nbytes_before += file_slice.nbytes
        for file in file_slice.ending:
            if file.path not in self.refused:
                self._undelivered.pop(file.path, None)
                self._outcome.document["files"] += 1
                self._outcome.document["nbytes"] += file.nbytes
        for element in file_slice.elements:
            if element.mark.kind == "directory" and element.stream not in self.refused:
                self._undelivered.pop(element.stream, None)

    def _report(self) -> SliceReport:
        """Wait for the report of the oldest slice in flight."""
        if self._nb_settled:
            return _delivered(self._tx, self._in_flight[0][1], self._timeout)
        return first(self._outcome, self._tx, self._in_flight, self._timeout)

    def _note(self, report: SliceReport) -> None:
        rows = self._outcome.document["slices"]
        rows.append(_slice_row(report))
        del rows[:-_MOST_ROWS]
        self.nb_slices += 1
        self.nb_retransmitted += report.frames_retransmitted


def say_left_out(outcome: Outcome, tree: FileTree) -> None:
    """List what a tree has and `aiflow send` does not carry."""
    for line in first_few(f"{printable(path)} is skipped: it is {what}" for path, what in tree.left_out.items()):
        outcome.terminal.say(f"aiflow: {line}", style="yellow")


def send_slices(sending: Sending, tree: FileTree, slice_bytes: int) -> None:
    """Read a tree's files into slices, and send them. Returns when all are delivered or refused."""
    from aiflow import empty

    reader = SliceReader(tree, slice_bytes, lambda nbytes: empty((nbytes,), "u1"))
    sending.abandon = reader.abandon
    sending.refused.clear()  # in a watch, a file that was refused may come in another state
    for file_slice in reader:
        sending.send(file_slice)
    sending.finish()


def first(
    outcome: Outcome, tx: Sender, in_flight: deque[tuple[FileSlice, Ticket]], timeout: float | None
) -> SliceReport:
    """Wait for the delivery of the first slice. Unlike `Sender.send`, wait for a receiver until the timeout.

    A slice that was given up is sent with a new ticket, which also replaces the old one in `in_flight`, for the bar.
    """
    file_slice, ticket = in_flight[0]
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    patience = _PATIENCE_SECONDS
    said = ""
    while True:
        left = max(deadline - time.monotonic(), 0.001)
        try:
            return ticket.result(None if min(left, patience) == math.inf else min(left, patience))
        except PeerLost as lost:
            if lost.delivered is not False or time.monotonic() >= deadline:
                raise
            known = str(lost)
            ticket = tx.send(file_slice.elements, wait=False)
            in_flight[0] = file_slice, ticket
        except SliceTimeout as late:
            if time.monotonic() >= deadline:
                raise _too_late(tx, ticket, timeout) from late
            known = "" if tx.receivers else ticket.waits_for
            patience = math.inf
        if known and known != said:
            outcome.terminal.say(f"aiflow: {known}. Waiting for a receiver; Ctrl-C ends", style="yellow")
            said = known


def _delivered(tx: Sender, ticket: Ticket, timeout: float | None) -> SliceReport:
    """Wait for the delivery of a slice."""
    try:
        return ticket.result(timeout)
    except SliceTimeout as late:
        raise _too_late(tx, ticket, timeout) from late


def _too_late(tx: Sender, ticket: Ticket, timeout: float | None) -> SliceTimeout:
    return SliceTimeout(
        f"not delivered within {timeout} s: {ticket.waits_for}. Start `aiflow recv` on the other side, check the names "
        "and the link, or give a longer --timeout",
        delivered=None if tx.receivers else False,
    )


def _slice_row(report: Any) -> dict[str, Any]:
    names = "slice_id", "elements", "nbytes", "seconds", "goodput_bps", "frames_sent", "frames_retransmitted"
    return {name: getattr(report, name) for name in names}
