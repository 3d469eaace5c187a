"""``aiflow send``: send the files of a directory in slices. The next slice is read while one is in transit."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow._terminal.outcome import Bar, Outcome
from aiflow._terminal.text import printable, shown_path
from aiflow.cli.figures import bytes_text, count, first_few, port_rows, print_table, rate_text
from aiflow.cli.filetree import MOST_IN_FLIGHT, FileSlice, FileTree, SliceReader, walk
from aiflow.config import parse_endpoints
from aiflow.errors import DeliveryError, PeerLost, SliceTimeout

if TYPE_CHECKING:
    from aiflow import Sender, SliceReport, Ticket


_PATIENCE_SECONDS = 3.0  # until the wait for a receiver is reported


def send_directory(
    outcome: Outcome,
    directory: Path,
    ports: tuple[str, ...],
    to: str | None,
    name: str | None,
    timeout: float | None,
    slice_bytes: int,
) -> None:
    """Send every file below `directory`, and report the result.

    Parameters
    ----------
    outcome : Outcome
        Receives ``files``, ``nbytes``, ``seconds``, ``goodput_bps``, ``slices``, ``ports``, ``left_out`` and
        ``not_delivered`` (both path → reason).
    directory, ports, to, name, timeout, slice_bytes
        See ``aiflow send --help``.
    """
    parse_endpoints(ports)  # a usage error, even without any file to send
    document = outcome.document
    document.update(
        directory=shown_path(directory), files=0, nbytes=0, seconds=0.0, goodput_bps=None, slices=[], ports=[]
    )
    tree = walk(directory)
    document["left_out"] = tree.left_out
    document["not_delivered"] = tree.unreadable
    for line in first_few(f"{printable(path)} is skipped: it is {what}" for path, what in tree.left_out.items()):
        outcome.terminal.say(f"aiflow: {line}", style="yellow")
    if not tree.files and not tree.directories and not tree.unreadable:
        outcome.terminal.say(f"aiflow: nothing to send: there is no file in {shown_path(directory)}", style="yellow")
        return

    from aiflow import Sender

    undelivered = {file.path: "not sent" for file in tree.files}
    undelivered.update((directory, "not sent") for directory in tree.empty)
    started = time.perf_counter()
    try:
        if tree.files or tree.directories:
            with Sender(list(ports), to=to, name=name) as tx, outcome.terminal.bar("sending", tree.nbytes) as bar:
                _send_all(outcome, tx, tree, undelivered, slice_bytes, timeout, bar)
                document["ports"] = port_rows(tx.port_table)
    finally:
        document["seconds"] = time.perf_counter() - started
        document["goodput_bps"] = document["nbytes"] * 8 / document["seconds"]
        document["not_delivered"] = {**undelivered, **tree.unreadable}
    missing = document["not_delivered"]
    for line in first_few(f"{printable(path)} was not delivered: {reason}" for path, reason in missing.items()):
        outcome.terminal.say(f"aiflow: {line}", style="red")
    if missing:
        outcome.fail(f"not delivered: {count(len(missing), 'file')}")
    _show(outcome)


def _send_all(
    outcome: Outcome,
    tx: Sender,
    tree: FileTree,
    undelivered: dict[str, str],
    slice_bytes: int,
    timeout: float | None,
    bar: Bar,
) -> None:
    """Send the slices. The block of a slice is reused only after its ticket is done."""
    from aiflow import empty

    reader = SliceReader(tree, slice_bytes, lambda nbytes: empty((nbytes,), "u1"))
    in_flight: deque[tuple[FileSlice, Ticket]] = deque()
    nb_settled = nbytes_before = 0  # completed slices, and their bytes
    refused: set[str] = set()  # files that the receiver could not write

    def acknowledged() -> float:
        return nbytes_before + sum(ticket.progress[0] for _, ticket in tuple(in_flight))

    def settle() -> None:
        nonlocal nb_settled, nbytes_before
        file_slice, ticket = in_flight[0]
        try:
            report = _delivered(tx, ticket, timeout) if nb_settled else _first(outcome, tx, in_flight, timeout)
            outcome.document["slices"].append(_slice_row(report))
        except DeliveryError as error:
            for path, reason in error.failed.items():
                refused.add(path)
                undelivered[path] = reason
                reader.abandon(path)
        in_flight.popleft()
        nb_settled += 1
        nbytes_before += file_slice.nbytes
        for file in file_slice.ending:
            if file.path not in refused:
                undelivered.pop(file.path, None)
                outcome.document["files"] += 1
                outcome.document["nbytes"] += file.nbytes
        for element in file_slice.elements:
            if element.mark.kind == "directory" and element.stream not in refused:
                undelivered.pop(element.stream, None)

    bar.follow(acknowledged)
    try:
        for file_slice in reader:
            if len(in_flight) == (MOST_IN_FLIGHT if nb_settled else 1):  # only one slice, until there is a receiver
                settle()
            in_flight.append((file_slice, tx.send(file_slice.elements, wait=False)))
        while in_flight:
            settle()
    finally:
        bar.stop()
    bar.show(nbytes_before, nbytes_before)


def _first(
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


def _show(outcome: Outcome) -> None:
    if outcome.terminal.as_json:
        return
    document = outcome.document
    resent = sum(row["frames_retransmitted"] for row in document["slices"])
    outcome.terminal.tell(
        f"sent {count(document['files'], 'file')}, {bytes_text(document['nbytes'])}, "
        f"in {count(len(document['slices']), 'slice')} and "
        f"{document['seconds']:.2f} s ({rate_text(document['goodput_bps'])}, reading and connecting included), "
        f"{count(resent, 'frame')} retransmitted"
    )
    print_table(outcome.terminal.console(), document["ports"])
