"""``aiflow send``: the files of a directory, slice after slice, the next one read while this one flows."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow.cli.figures import bytes_text, count, port_rows, print_table, rate_text
from aiflow.cli.filetree import FileSlice, FileTree, SliceReader, walk
from aiflow.cli.names import printable, shown_path
from aiflow.cli.outcome import Bar, Outcome
from aiflow.config import parse_endpoints
from aiflow.errors import DeliveryError, PeerLost, SliceTimeout

if TYPE_CHECKING:
    from aiflow import Sender, SliceReport
    from aiflow.sender import Ticket


_PATIENCE_SECONDS = 3.0  # before a wait for a receiver is spoken of


def send_directory(
    outcome: Outcome,
    directory: Path,
    ports: tuple[str, ...],
    to: str | None,
    name: str | None,
    timeout: float | None,
    slice_bytes: int,
) -> None:
    """Send every file below `directory` and say how it went.

    Parameters
    ----------
    outcome : Outcome
        Receives ``files``, ``nbytes``, ``seconds``, ``goodput_bps``, ``slices``, ``ports``, ``left_out`` and
        ``not_delivered`` (both path → reason).
    directory, ports, to, name, timeout, slice_bytes
        As typed; see ``aiflow send --help``.
    """
    parse_endpoints(ports)  # bad usage, if there is no file to send as well
    document = outcome.document
    document.update(
        directory=shown_path(directory), files=0, nbytes=0, seconds=0.0, goodput_bps=None, slices=[], ports=[]
    )
    tree = walk(directory)
    document["left_out"] = tree.left_out
    document["not_delivered"] = tree.unreadable
    for path, what in tree.left_out.items():
        outcome.terminal.say(f"aiflow: {printable(path)} is left out: it is {what}", style="yellow")
    if not tree.files and not tree.directories and not tree.unreadable:
        outcome.terminal.say(f"aiflow: nothing to send: there is no file in {shown_path(directory)}", style="yellow")
        return

    from aiflow import Sender

    undelivered = {file.path: "not sent" for file in tree.files}
    undelivered.update((directory.stream, "not sent") for directory in tree.directories)
    started = time.perf_counter()
    try:
        if undelivered:
            with Sender(list(ports), to=to, name=name) as tx, outcome.terminal.bar("sending", tree.nbytes) as bar:
                _send_all(outcome, tx, tree, undelivered, slice_bytes, timeout, bar)
                document["ports"] = port_rows(tx.port_table)
    finally:
        document["seconds"] = time.perf_counter() - started
        document["goodput_bps"] = document["nbytes"] * 8 / document["seconds"]
        document["not_delivered"] = {**undelivered, **tree.unreadable}
    for path, reason in document["not_delivered"].items():
        outcome.terminal.say(f"aiflow: {printable(path)} was not delivered: {printable(reason)}", style="red")
    if document["not_delivered"]:
        outcome.fail(f"not delivered: {count(len(document['not_delivered']), 'file')}")
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
    """Send slice after slice. A slice's block is written again only when its ticket is done."""
    from aiflow import empty

    reader = SliceReader(tree, slice_bytes, lambda nbytes: empty((nbytes,), "u1"))
    ticket: Ticket | None = None
    in_flight: FileSlice | None = None
    nbytes_before = 0  # in slices that are done
    refused: set[str] = set()  # what the receiver could not write

    def acknowledged() -> float:
        return nbytes_before + (ticket.progress[0] if ticket is not None else 0)

    def settle() -> None:
        nonlocal ticket, nbytes_before
        if ticket is None or in_flight is None:
            return
        try:
            outcome.document["slices"].append(_slice_row(_delivered(outcome, tx, in_flight, ticket, timeout)))
        except DeliveryError as error:
            for path, reason in error.failed.items():
                refused.add(path)
                undelivered[path] = reason
                reader.abandon(path)
        ticket, nbytes_before = None, nbytes_before + in_flight.nbytes
        for file in in_flight.ending:
            if file.path not in refused:
                undelivered.pop(file.path, None)
                outcome.document["files"] += 1
                outcome.document["nbytes"] += file.nbytes
        for element in in_flight.elements:
            if element.mark.kind == "directory" and element.stream not in refused:
                undelivered.pop(element.stream, None)

    bar.follow(acknowledged)
    try:
        for file_slice in reader:
            settle()
            in_flight = file_slice
            ticket = tx.send(file_slice.elements, wait=False)
        settle()
    finally:
        bar.stop()
    bar.show(nbytes_before, nbytes_before)


def _delivered(
    outcome: Outcome, tx: Sender, file_slice: FileSlice, ticket: Ticket, timeout: float | None
) -> SliceReport:
    """Await a slice's delivery. Unlike `Sender.send`, which gives up, wait for a first receiver as long as we may."""
    began = time.monotonic()
    deadline = math.inf if timeout is None else began + timeout
    first = not outcome.document["slices"]
    patience = began + _PATIENCE_SECONDS if first else math.inf
    while True:
        until = min(deadline, patience)
        try:
            return ticket.result(None if until == math.inf else max(until - time.monotonic(), 0.001))
        except PeerLost as lost:
            if not first or lost.delivered is not False or time.monotonic() >= deadline:
                raise
            outcome.terminal.say(f"aiflow: {lost}. Waiting on; Ctrl-C ends", style="yellow")
            ticket = tx.send(file_slice.elements, wait=False)
        except SliceTimeout as late:
            waited = f"waited {time.monotonic() - began:.0f} s: {ticket.waits_for}"
            if time.monotonic() >= deadline:
                raise SliceTimeout(
                    f"{waited}. Start `aiflow recv` on its side, check the names and the link, or give a longer "
                    "--timeout",
                    delivered=False if not tx.receivers else late.delivered,
                ) from late
            patience = math.inf
            if not tx.receivers:
                outcome.terminal.say(f"aiflow: {waited}. Waiting on; Ctrl-C ends", style="yellow")


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
        f"{count(resent, 'frame')} sent again"
    )
    print_table(outcome.terminal.console(), document["ports"])
