"""``aiflow recv``: write received elements to files below one directory.

A slice is confirmed to its sender after every file in it is written and synced. The sender is told of each file that
cannot be written. Other files are not affected, and the failed ones are listed at the end.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from aiflow._terminal.outcome import Bar, Outcome
from aiflow._terminal.text import printable, shown_path
from aiflow.cli.durable import make_durably
from aiflow.cli.figures import bytes_text, count, first_few, port_rows, print_table, rate_text
from aiflow.cli.outdir import NotWritten, OutDirectory, WriteError
from aiflow.cli.tarout import TarOut

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
        Receives ``slices``, ``files``, ``nbytes``, ``kept``, ``seconds``, ``renamed`` (pairs of stream and path),
        ``unfinished``, ``not_written`` and ``unkept`` (both path → reason) and ``ports``.
    outdir, ports, slices, name, timeout, memory
        See ``aiflow recv --help``.
    """
    from aiflow import Receiver

    document = outcome.document
    document.update(outdir=shown_path(outdir), slices=0, files=0, nbytes=0, kept=0, seconds=0.0)
    document.update(renamed=[], unfinished=[], not_written={}, unkept={}, ports=[])
    with _opened(outcome, outdir) as out:
        try:
            with Receiver(
                list(ports),
                name=name,
                memory=memory,
                timeout=timeout,
                until="bye" if slices is None else None,
                confirm="release",
            ) as rx:
                outcome.terminal.say(f"receiving on {', '.join(ports)}; Ctrl-C ends")
                with outcome.terminal.bar("receiving", None) as bar:
                    _Receiving(outcome, rx, out, bar).run(slices)
                nb_gone = rx.counters.get("senders_gone", 0)
        finally:
            document.update(files=out.nb_files, nbytes=out.nbytes, renamed=out.renamed, unfinished=out.unfinished())
            document.update(unkept=out.unkept, kept=out.nb_kept)
            _say_what_differs(outcome)
        _report_failures(outcome, nb_gone)
    _show(outcome)


def _report_failures(outcome: Outcome, nb_gone: int) -> None:
    """Say what did not arrive, or was not written."""
    document = outcome.document
    if nb_gone:
        outcome.fail(f"{count(nb_gone, 'sender')} ended without closing: files may be missing; repeat the transfer")
    if document["unfinished"]:
        unfinished = [printable(path) for path in document["unfinished"]]
        outcome.fail(f"the end of {', '.join(first_few(unfinished))} never arrived; repeat the transfer")
    if document["not_written"]:
        nb_others = len(document["not_written"]) - 1
        others = f" ({count(nb_others, 'other file')} could not be written either)" if nb_others else ""
        text = next(iter(document["not_written"].values())) + others
        outcome.fail(WriteError(text, text))


@contextlib.contextmanager
def _opened(outcome: Outcome, outdir: Path) -> Iterator[OutDirectory | TarOut]:
    """Open the output directory; for ``-``, keep stdout for the bytes that arrive, and write text to stderr."""
    if str(outdir) == "-":
        if outcome.terminal.as_json:
            raise click.UsageError("--json and - both write to stdout: leave one of them out")
        if os.isatty(1):
            raise click.UsageError("stdout is a terminal: write `aiflow recv - … | tar x`, or name a directory")
        outcome.terminal.leave_stdout()
        with contextlib.closing(os.fdopen(os.dup(1), "wb", buffering=0)) as stdout:
            os.dup2(2, 1)  # what a library prints must not get into the stream
            out = TarOut(stdout.fileno())
            yield out
            if outcome.exit_code == 0:
                out.finish()
        return
    try:
        make_durably(outdir)
        directory = OutDirectory(outdir)
    except OSError as error:
        raise click.UsageError(f"{shown_path(outdir)} is not writable: {error.strerror or error}") from error
    with directory:
        yield directory


class _Receiving:
    """One run: the received slices and their totals."""

    def __init__(self, outcome: Outcome, rx: Receiver, out: OutDirectory | TarOut, bar: Bar) -> None:
        self._document = outcome.document
        self._rx = rx
        self._out = out
        self._bar = bar
        self._nbytes = 0  # of slices that were written, or failed
        self._shown = 0.0
        self._ports: dict[str, dict[str, Any]] = {}
        self._lacking: dict[tuple[int, str], str] = {}  # sender and stream → why it was not written

    def run(self, slices: int | None) -> None:
        """Write each slice as it arrives. Time counts from the arrival of the first slice."""
        self._bar.follow(self._progress)
        started: float | None = None
        try:
            for time_slice in self._rx:
                started = time.perf_counter() if started is None else started
                self._write(time_slice)
                self._document["slices"] += 1
                if self._document["slices"] == slices:
                    break
        finally:
            self._bar.stop()
            self._document["not_written"] = {stream: why for (_, stream), why in self._lacking.items()}
            self._document["seconds"] = 0.0 if started is None else time.perf_counter() - started
        self._bar.show(self._nbytes, max(self._nbytes, 1))

    def _progress(self) -> float:
        """Return the bytes that have arrived. Slices waiting to be written are not counted, so keep the maximum."""
        self._shown = max(self._shown, self._nbytes + self._rx.progress[0])
        return self._shown

    def _write(self, time_slice: TimeSlice) -> None:
        failed: dict[int | str, str] = {}  # text: an error object would keep this frame and the slice alive
        sender = time_slice.instance
        for element in time_slice:
            try:
                path = self._out.write(element.stream, payload(element), element.mark, sender)
                if path and element.mark is not None and (sender, element.stream) in self._lacking:
                    del self._lacking[sender, element.stream]  # a file that its sender has sent once more
            except NotWritten as error:  # an answer, not a failure
                failed[element.number] = error.reason
            except WriteError as error:
                failed[element.number] = error.reason
                self._lacking[sender, element.stream] = str(error)
        for stream, unsynced in self._out.sync().items():
            failed[stream] = unsynced.reason
            self._lacking[sender, stream] = str(unsynced)
        self._nbytes += time_slice.nbytes
        self._count_ports()  # before the confirmation: the sender may then close its ports
        if failed:
            time_slice.fail(failed)
        else:
            time_slice.confirm()
        time_slice.release()

    def _count_ports(self) -> None:
        for row in port_rows(self._rx.port_table):
            self._ports[row["name"]] = row
        self._document["ports"] = list(self._ports.values())


def payload(element: Element) -> memoryview:
    """Return the bytes of an element in memory order, without a copy, for any dtype and order."""
    octets: npt.NDArray[np.uint8] = element.array
    if octets.ndim != 1 or octets.dtype.char != "B":  # of a program; `aiflow send` sends bytes
        octets = octets.ravel(order="K").view(np.uint8)
    return octets.data


def _say_what_differs(outcome: Outcome) -> None:
    """List the files with another name than their stream, and those with another mode or time."""
    document = outcome.document
    lines = [f"stream {stream!r} was written to {printable(path)}" for stream, path in document["renamed"]]
    lines += [f"{printable(path)}: its mode or time was not kept: {why}" for path, why in document["unkept"].items()]
    for line in first_few(lines):
        outcome.terminal.say(f"aiflow: {line}", style="yellow")


def _show(outcome: Outcome) -> None:
    if outcome.terminal.as_json:
        return
    document = outcome.document
    kept = f"; {count(document['kept'], 'file')} had arrived before" if document["kept"] else ""
    rate = f", {rate_text(document['nbytes'] * 8 / document['seconds'])} to disk" if document["seconds"] else ""
    outcome.terminal.tell(
        f"received {count(document['slices'], 'slice')} and wrote {count(document['files'], 'file')}, "
        f"{bytes_text(document['nbytes'])}, to {document['outdir']}{rate}{kept}"
    )
    print_table(outcome.terminal.console(), document["ports"])
