"""``aiflow demo``: send one time slice of photographs between two processes, verify each one, draw a report."""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import statistics
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import click

from aiflow._samples import photos
from aiflow._terminal.extras import require
from aiflow._terminal.interrupts import interrupts_blocked
from aiflow._terminal.outcome import Bar, Outcome, Terminal
from aiflow.cli import demo_peers
from aiflow.cli.figures import bytes_text, cold_start, count, print_table, rate_text
from aiflow.errors import AiflowError

_SILENCE_SECONDS = 90.0  # longer than any wait in the peers
_FAREWELL_SECONDS = 5.0


def run_demo(outcome: Outcome, images: int, nb_ports: int, seconds: float, report: Path) -> None:
    """Send the photographs, verify them, print a table, and write a picture. Create the photographs if missing.

    Parameters
    ----------
    outcome : Outcome
        Receives the figures of the first slice's report (``elements``, ``nbytes``, ``seconds``, ``goodput_bps``,
        ``frames_sent``, ``frames_retransmitted``), ``identical``, ``ports``, ``slices``, ``slices_identical``,
        ``report``. Exit code 1 unless every photograph of every slice arrived identical, and those of the first decode.
    images : int
        Number of photographs, up to 512.
    nb_ports : int
        Ports between the two processes.
    seconds : float
        Time to continue sending after the first slice.
    report : Path
        File name of the picture.
    """
    require("PIL", "matplotlib")
    if not report.absolute().parent.is_dir():
        raise click.UsageError(f"--report {report}: there is no such directory")
    photo_set = _photographs(outcome.terminal)
    chosen = photo_set.photos[:images]
    names = [photo.name for photo in chosen]
    nbytes = sum(photo.nbytes for photo in chosen)

    endpoint = f"local:demo-{secrets.token_hex(4)}*{nb_ports}"
    run = _Run(outcome.terminal, len(names), nbytes)
    with _peers(endpoint, photo_set.directory, names, seconds) as peers:
        for message in _messages(peers):
            run.hear(message)
        run.stage_ends()
    first = run.slices[0]
    identical = len(run.checked)
    slices_identical = sum(nb_equal == len(names) for nb_equal in run.received)
    outcome.document.update(
        first,
        endpoint=endpoint,
        identical=identical,
        ports=run.first_ports,
        slices=run.slices,
        slices_identical=slices_identical,
        report=str(report.absolute()),
    )
    if identical < len(names) or first["elements"] != len(names):
        outcome.fail(f"{len(names) - identical} of {len(names)} photographs did not arrive identical and complete")
    elif not slices_identical == len(run.received) == len(run.slices):
        outcome.fail(f"{len(run.slices)} slices were sent, {slices_identical} arrived identical")

    from aiflow.cli.demo_picture import draw

    try:
        draw(report, run.thumbnails, run.samples, outcome.document)
    except OSError as error:
        outcome.document["report"] = None
        outcome.fail(f"the picture could not be written to {report}: {error.strerror or error}; use --report PATH")
    _show(outcome, len(names))


def _photographs(terminal: Terminal) -> photos.PhotoSet:
    with terminal.bar("making photographs", photos.NB_PHOTOS, in_bytes=False) as bar:
        try:
            photo_set = photos.photo_set(progress=bar.show)
        except OSError as error:
            raise AiflowError(
                f"the photographs could not be stored in {photos.cache_root()}: {error.strerror or error}; "
                "they need 140 MB; XDG_CACHE_HOME selects another directory"
            ) from error
        bar.show(photos.NB_PHOTOS)
    return photo_set


class _Run:
    """The messages of the two processes, and the progress bar."""

    def __init__(self, terminal: Terminal, nb_photos: int, nbytes: int) -> None:
        self.slices: list[dict[str, Any]] = []
        self.first_ports: list[dict[str, Any]] = []
        self.received: list[int] = []
        self.samples: list[tuple[float, dict[str, int]]] = []
        self.checked: list[str] = []
        self.thumbnails: Any = None
        self._terminal = terminal
        self._nb_photos = nb_photos
        self._nbytes = nbytes
        self._stage = contextlib.ExitStack()
        self._bar: Bar | None = None

    def hear(self, message: tuple[Any, ...]) -> None:
        """Process one message."""
        match message:
            case ("ready",):
                self._stage_begins(f"sending {self._nb_photos} photographs", self._nbytes)
            case ("progress", nbytes):
                self._show(nbytes)
            case ("received", identical):
                self.received.append(identical)
                if len(self.received) == 1:
                    self._show(self._nbytes)
                    self._stage_begins("sending further slices", None)
                else:
                    self._show((len(self.received) - 1) * self._nbytes)
            case ("sent", row, ports):
                self.slices.append(row)
                self.first_ports = self.first_ports or ports
            case ("samples", samples):
                self.samples = samples
                self._stage_begins("decoding every image", self._nb_photos, in_bytes=False)
            case ("decoded", done):
                self._show(done)
            case ("checked", names, thumbnails):
                self.checked, self.thumbnails = names, thumbnails
            case ("error", kind, text):
                self.stage_ends()
                raise AiflowError(f"{kind}: {text}")

    def stage_ends(self) -> None:
        """Stop moving the current bar."""
        self._stage.close()
        self._bar = None

    def _stage_begins(self, text: str, total: int | None, *, in_bytes: bool = True) -> None:
        self.stage_ends()
        self._bar = self._stage.enter_context(self._terminal.bar(text, total, in_bytes=in_bytes))

    def _show(self, done: int) -> None:
        if self._bar is not None:
            self._bar.show(done)


@contextlib.contextmanager
def _peers(
    endpoint: str, directory: Path, names: list[str], seconds: float
) -> Iterator[dict[Connection, SpawnProcess]]:
    """Start the receiver and the sender, each a fresh interpreter. End them if the body fails."""
    spawn = multiprocessing.get_context("spawn")
    peers: dict[Connection, SpawnProcess] = {}
    try:
        for body, *arguments in (
            (demo_peers.receive_photos, endpoint, directory, names),
            (demo_peers.send_photos, endpoint, directory, names, seconds),
        ):
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=body, args=(theirs, *arguments), name=body.__name__, daemon=True)
            with interrupts_blocked():
                process.start()
            theirs.close()
            peers[ours] = process
        yield peers
        for process in peers.values():
            process.join(_FAREWELL_SECONDS)
    finally:
        for process in peers.values():
            process.terminate()
        for pipe, process in peers.items():
            pipe.close()
            process.join(_FAREWELL_SECONDS)
            if process.is_alive():
                process.kill()


def _messages(peers: dict[Connection, SpawnProcess]) -> Iterator[tuple[Any, ...]]:
    """Yield the messages of the processes until both are done. Raise if one dies or both are silent."""
    listening = dict(peers)
    while listening:
        pipes = wait(list(listening), _SILENCE_SECONDS)
        if not pipes:
            raise AiflowError(f"no message from the demo's processes for {_SILENCE_SECONDS:.0f} s; restart the demo")
        for pipe in pipes:
            assert isinstance(pipe, Connection)
            try:
                yield pipe.recv()
            except EOFError:
                process = listening.pop(pipe)
                process.join(_FAREWELL_SECONDS)
                if process.exitcode != 0:
                    raise AiflowError(
                        f"the process {process.name} ended with exit code {process.exitcode}; restart the demo"
                    ) from None


def _show(outcome: Outcome, nb_photos: int) -> None:
    if outcome.terminal.as_json:
        return
    from rich import box
    from rich.table import Table

    document = outcome.document
    console = outcome.terminal.console()
    right = document["identical"] == nb_photos
    console.print(
        f"{document['identical']}/{nb_photos} images identical, byte for byte, and decoded",
        style="bold green" if right else "bold red",
    )
    table = Table(box=box.SIMPLE_HEAD, title="the first slice", title_justify="left", title_style="")
    for heading in ("elements", "bytes", "seconds", "goodput", "frames", "retransmitted"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{document['elements']}",
        f"{document['nbytes']:,}",
        f"{document['seconds']:.3f}",
        rate_text(document["goodput_bps"]),
        f"{document['frames_sent']:,}",
        f"{document['frames_retransmitted']:,}",
    )
    console.print(table, soft_wrap=False)
    print_table(console, document["ports"])
    slices = document["slices"]
    if cold_start(slices):
        console.print("the first slices may be slower: they use new memory, which the kernel must clear first")
    if len(slices) > 1:
        median = statistics.median(row["goodput_bps"] for row in slices[1:])
        total = bytes_text(sum(row["nbytes"] for row in slices))
        console.print(
            f"with {count(len(slices) - 1, 'more slice')}, {total} in all: median {rate_text(median)}, "
            f"{document['slices_identical']} of {len(slices)} slices identical"
        )
    if document["report"]:
        console.print(f"report: {document['report']}")
