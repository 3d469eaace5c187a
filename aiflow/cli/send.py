"""``aiflow send``: the files of a directory, slice after slice, the next one read while this one flows."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow.cli.figures import bytes_text, count, port_rows, print_table, rate_text
from aiflow.cli.filetree import FileSlice, FileTree, SliceReader, walk
from aiflow.cli.outcome import Bar, Outcome
from aiflow.config import parse_endpoints
from aiflow.errors import PeerLost

if TYPE_CHECKING:
    from aiflow import Sender, SliceReport
    from aiflow.sender import Ticket


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
        ``not_delivered`` (path → reason).
    directory, ports, to, name, timeout, slice_bytes
        As typed; see ``aiflow send --help``.
    """
    parse_endpoints(ports)  # bad usage, if there is no file to send as well
    document = outcome.document
    document.update(directory=str(directory), files=0, nbytes=0, seconds=0.0, goodput_bps=None, slices=[], ports=[])
    tree = walk(directory)
    document["left_out"] = tree.left_out
    document["not_delivered"] = tree.unreadable
    for path in tree.left_out:
        outcome.terminal.say(f"aiflow: {path} is left out: it is no file", style="yellow")
    if not tree.files and not tree.unreadable:
        outcome.terminal.say(f"aiflow: nothing to send: there is no file in {directory}", style="yellow")
        return

    from aiflow import Sender

    undelivered = {file.path: "not sent" for file in tree.files}
    started = time.perf_counter()
    try:
        if tree.files:
            with Sender(list(ports), to=to, name=name) as tx, outcome.terminal.bar("sending", tree.nbytes) as bar:
                _send_all(outcome, tx, tree, undelivered, slice_bytes, timeout, bar)
                document["ports"] = port_rows(tx.port_table)
    finally:
        document["seconds"] = time.perf_counter() - started
        document["goodput_bps"] = document["nbytes"] * 8 / document["seconds"]
        document["not_delivered"] = {**undelivered, **tree.unreadable}
    for path, reason in tree.unreadable.items():
        outcome.terminal.say(f"aiflow: {path} was not sent: {reason}", style="red")
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

    ticket: Ticket | None = None
    in_flight: FileSlice | None = None
    nbytes_before = 0  # in slices that are done

    def acknowledged() -> float:
        return nbytes_before + (ticket.progress[0] if ticket is not None else 0)

    def settle() -> None:
        nonlocal ticket, nbytes_before
        if ticket is None or in_flight is None:
            return
        report = _first(tx, in_flight, ticket, timeout) if nbytes_before == 0 else ticket.result(timeout)
        ticket, nbytes_before = None, nbytes_before + in_flight.nbytes
        for file in in_flight.ending:
            undelivered.pop(file.path, None)
            outcome.document["files"] += 1
            outcome.document["nbytes"] += file.nbytes
        outcome.document["slices"].append(_slice_row(report))

    bar.follow(acknowledged)
    try:
        for file_slice in SliceReader(tree, slice_bytes, lambda nbytes: empty((nbytes,), "u1")):
            settle()
            in_flight = file_slice
            ticket = tx.send(file_slice.elements, wait=False)
        settle()
    finally:
        bar.stop()
    bar.show(nbytes_before, nbytes_before)


def _first(tx: Sender, file_slice: FileSlice, ticket: Ticket, timeout: float | None) -> SliceReport:
    """Await the first slice's delivery. Unlike `Sender.send`, which gives up, wait for a receiver as long as we may."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return ticket.result(None if timeout is None else max(deadline - time.monotonic(), 0.001))
        except PeerLost as lost:
            if lost.delivered is not False or time.monotonic() >= deadline:
                raise
            ticket = tx.send(file_slice.elements, wait=False)


def _slice_row(report: Any) -> dict[str, Any]:
    names = "slice_id", "elements", "nbytes", "seconds", "goodput_bps", "frames_sent", "frames_retransmitted"
    return {name: getattr(report, name) for name in names}


def _show(outcome: Outcome) -> None:
    if outcome.terminal.as_json:
        return
    document = outcome.document
    resent = sum(row["frames_retransmitted"] for row in document["slices"])
    console = outcome.terminal.console()
    console.print(
        f"sent {count(document['files'], 'file')}, {bytes_text(document['nbytes'])}, "
        f"in {count(len(document['slices']), 'slice')} and "
        f"{document['seconds']:.2f} s ({rate_text(document['goodput_bps'])}, reading and connecting included), "
        f"{count(resent, 'frame')} sent again"
    )
    print_table(console, document["ports"])
