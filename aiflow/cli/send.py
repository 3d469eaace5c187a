"""``aiflow send``: send the files of a directory in slices. The next slice is read while one is in transit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from aiflow._terminal.outcome import Outcome
from aiflow._terminal.text import printable, shown_path
from aiflow.cli.figures import bytes_text, count, first_few, port_rows, print_table, rate_text
from aiflow.cli.filetree import FileTree, walk
from aiflow.cli.sending import Sending, say_left_out, send_slices
from aiflow.config import parse_endpoints


def send_directory(
    outcome: Outcome,
    directory: Path,
    ports: tuple[str, ...],
    to: str | None,
    name: str | None,
    timeout: float | None,
    slice_bytes: int,
    watch: bool = False,
    settle: float = 0.0,
    resume: bool = False,
) -> None:
    """Send every file below `directory`, and report the result.

    Parameters
    ----------
    outcome : Outcome
        Receives ``files``, ``nbytes``, ``kept``, ``seconds``, ``goodput_bps``, ``slices``, ``ports``, ``left_out`` and
        ``not_delivered`` (both path → reason).
    directory, ports, to, name, timeout, slice_bytes, watch, settle, resume
        See ``aiflow send --help``.
    """
    parse_endpoints(ports)  # a usage error, even without any file to send
    if str(directory) == "-" and (watch or resume):
        raise click.UsageError("--watch and --resume are for directories: leave them out with -")
    document = outcome.document
    document.update(
        directory=shown_path(directory), files=0, nbytes=0, kept=0, seconds=0.0, goodput_bps=None, slices=[], ports=[],
        left_out={}, not_delivered={},
    )  # fmt: skip
    tree = FileTree(directory)
    undelivered: dict[str, str] = {}
    if not watch and str(directory) != "-":
        tree = walk(directory)
        document["left_out"] = tree.left_out
        document["not_delivered"] = tree.unreadable
        say_left_out(outcome, tree)
        if not tree.files and not tree.directories and not tree.unreadable:
            outcome.terminal.say(f"aiflow: nothing to send: there is no file in {shown_path(directory)}", "yellow")
            return
        undelivered.update((file.path, "not sent") for file in tree.files)
        undelivered.update((empty, "not sent") for empty in tree.empty)

    from aiflow import Sender

    sending: Sending | None = None
    started = time.perf_counter()
    try:
        if watch or tree.files or tree.directories or str(directory) == "-":
            with Sender(list(ports), to=to, name=name) as tx:
                sending = Sending(outcome, tx, timeout, undelivered)
                if str(directory) == "-":
                    from aiflow.cli.stdin import send_stdin

                    send_stdin(outcome, sending, undelivered, slice_bytes)
                elif watch:
                    from aiflow.cli.watch import send_new_files

                    send_new_files(outcome, sending, directory, undelivered, slice_bytes, settle, resume)
                else:
                    _send_tree(outcome, sending, tree, undelivered, slice_bytes, resume)
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
    _show(outcome, sending)


def _send_tree(
    outcome: Outcome, sending: Sending, tree: FileTree, undelivered: dict[str, str], slice_bytes: int, resume: bool
) -> None:
    """Send the files of a tree, but for those that the receiver has, with `resume`."""
    if resume:
        from aiflow.cli.resume import leave_out

        leave_out(outcome, sending, tree, undelivered)
    with outcome.terminal.bar("sending", tree.nbytes) as bar:
        bar.follow(sending.acknowledged)
        try:
            send_slices(sending, tree, slice_bytes)
        finally:
            bar.stop()
        bar.show(sending.acknowledged(), sending.acknowledged())


def _show(outcome: Outcome, sending: Sending | None) -> None:
    if outcome.terminal.as_json:
        return
    document: dict[str, Any] = outcome.document
    kept = f"; {count(document['kept'], 'file')} had arrived before" if document["kept"] else ""
    nb_slices, nb_retransmitted = (sending.nb_slices, sending.nb_retransmitted) if sending else (0, 0)
    outcome.terminal.tell(
        f"sent {count(document['files'], 'file')}, {bytes_text(document['nbytes'])}, "
        f"in {count(nb_slices, 'slice')} and "
        f"{document['seconds']:.2f} s ({rate_text(document['goodput_bps'])}, reading and connecting included), "
        f"{count(nb_retransmitted, 'frame')} retransmitted{kept}"
    )
    print_table(outcome.terminal.console(), document["ports"])
