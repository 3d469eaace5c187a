"""``aiflow recv``: what arrives becomes files below one directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import numpy.typing as npt

from aiflow.cli.figures import bytes_text, count, port_rows, print_table, rate_text
from aiflow.cli.outcome import Bar, Outcome
from aiflow.cli.outdir import OutDirectory

if TYPE_CHECKING:
    from aiflow import Element, Receiver, TimeSlice


def receive_into(
    outcome: Outcome,
    outdir: Path,
    ports: tuple[str, ...],
    slices: int | None,
    name: str | None,
    timeout: float | None,
    memory: int,
) -> None:
    """Receive slices and write their elements to files in `outdir`.

    Parameters
    ----------
    outcome : Outcome
        Receives ``slices``, ``files``, ``nbytes``, ``seconds``, ``renamed`` (stream → path), ``unfinished`` and
        ``ports``.
    outdir, ports, slices, name, timeout, memory
        As typed; see ``aiflow recv --help``.
    """
    from aiflow import Receiver

    document = outcome.document
    document.update(outdir=str(outdir), slices=0, files=0, nbytes=0, seconds=0.0, renamed={}, unfinished=[], ports=[])
    try:
        outdir.mkdir(exist_ok=True)
        out = OutDirectory(outdir)
    except OSError as error:
        raise click.UsageError(f"{outdir} cannot be written to: {error.strerror or error}") from error
    with out:
        try:
            with Receiver(
                list(ports), name=name, memory=memory, timeout=timeout, until="bye" if slices is None else None
            ) as rx:
                outcome.terminal.say(f"receiving on {', '.join(ports)}; Ctrl-C ends")
                with outcome.terminal.bar("receiving", None) as bar:
                    _receive(outcome, rx, out, slices, bar)
                nb_gone = rx.counters.get("senders_gone", 0)
        finally:
            document.update(files=out.nb_files, nbytes=out.nbytes, renamed=out.renamed, unfinished=out.unfinished())
            for stream, path in out.renamed.items():
                outcome.terminal.say(f"aiflow: stream {stream!r} was written to {path}", style="yellow")
    if nb_gone:
        outcome.fail(f"{count(nb_gone, 'sender')} ended without saying goodbye: files may be missing; send again")
    if document["unfinished"]:
        outcome.fail(f"the end of {', '.join(document['unfinished'])} never came; send again")
    _show(outcome)


def _receive(outcome: Outcome, rx: Receiver, out: OutDirectory, slices: int | None, bar: Bar) -> None:
    """Write each slice as it comes. Time counts from the first slice's arrival, since the wait for it is nobody's."""
    bar.follow(lambda: out.nbytes + rx.progress[0])
    started: float | None = None
    try:
        for time_slice in rx:
            started = time.perf_counter() if started is None else started
            _write(time_slice, out)
            outcome.document["slices"] += 1
            rows = port_rows(rx.port_table)
            outcome.document["ports"] = rows or outcome.document["ports"]  # a sender that has gone took its ports along
            if outcome.document["slices"] == slices:
                break
    finally:
        bar.stop()
        outcome.document["seconds"] = 0.0 if started is None else time.perf_counter() - started
    bar.show(out.nbytes, max(out.nbytes, 1))


def _write(time_slice: TimeSlice, out: OutDirectory) -> None:
    for element in time_slice:
        out.write(element.stream, payload(element), str(time_slice.sender))


def payload(element: Element) -> memoryview:
    """Give an element's bytes as they lie in memory; no copy, whatever its dtype and order."""
    octets: npt.NDArray[np.uint8] = element.array.ravel(order="K").view(np.uint8)
    return octets.data


def _show(outcome: Outcome) -> None:
    if outcome.terminal.as_json:
        return
    document = outcome.document
    console = outcome.terminal.console()
    rate = f", {rate_text(document['nbytes'] * 8 / document['seconds'])} to disk" if document["seconds"] else ""
    console.print(
        f"received {count(document['slices'], 'slice')} and wrote {count(document['files'], 'file')}, "
        f"{bytes_text(document['nbytes'])}, to {document['outdir']}{rate}"
    )
    print_table(console, document["ports"])
