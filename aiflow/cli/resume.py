"""``aiflow send --resume``: ask the receiver for the files that it has, and send the others.

The receiver's own files are the record; there is no journal that could contradict them. A question is an element of no
bytes with a kind of its own: path, size, mode and time of the sender's file. The receiver agrees if an earlier run
wrote a file of that path, size, mode and time, to the nanosecond. It sets a file's time only after its content is on
the disk (`aiflow.cli.outdir`), so that a file which a crash has damaged never has it.

A receiver agrees by confirming. A program that is no `aiflow recv` confirms everything. Each slice of questions thus
begins with one about nothing. Its refusal shows that the receiver looks at its files. Without it, every file is sent.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiflow._terminal.outcome import Outcome
from aiflow._transfer.filemarks import FileMark, Marked
from aiflow.cli.filetree import FileSlice, FileTree, Found
from aiflow.cli.sending import Sending
from aiflow.cli.write_errors import NOT_WRITTEN

_QUESTIONS = 4096  # in one slice: its answer has room for a reason for each run of refused files


def leave_out(outcome: Outcome, sending: Sending, tree: FileTree, undelivered: dict[str, str]) -> list[Found]:
    """Remove what the receiver has from `tree`, and return it."""
    kept = _leave_out_written(sending, tree)
    for file in kept:
        undelivered.pop(file.path, None)
    outcome.document["kept"] += len(kept)
    return kept


def _leave_out_written(sending: Sending, tree: FileTree) -> list[Found]:
    """Remove the files from `tree` that the receiver has already written.

    Parameters
    ----------
    sending : Sending
    tree : FileTree

    Returns
    -------
    list of Found
        The removed files.
    """
    written: set[str] = set()
    for files in _batches([file for file in tree.files if file.nbytes]):
        refused = sending.ask(FileSlice([_ABOUT_NOTHING, *map(_question, files)]))
        if refused.get(0) != NOT_WRITTEN:
            return []
        written.update(file.path for number, file in enumerate(files, 1) if number not in refused)
    found = [file for file in tree.files if file.path in written]
    tree.files[:] = [file for file in tree.files if file.path not in written]
    return found


_ABOUT_NOTHING = Marked("?", b"", FileMark("question"))  # no file is without a size: it must be refused


def _question(file: Found) -> Marked:
    return Marked(file.path, b"", FileMark("question", file.mode, file.mtime_ns, size=file.nbytes))


def _batches(files: list[Found]) -> Iterator[list[Found]]:
    for begin in range(0, len(files), _QUESTIONS):
        yield files[begin : begin + _QUESTIONS]
