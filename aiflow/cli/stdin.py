"""``aiflow send -``: send the bytes of stdin, such as a tar stream, in slices of bounded size.

A stream is one file of unknown size: parts without a size, then an empty part that states it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from aiflow._terminal.outcome import Outcome
from aiflow._transfer.filemarks import FileMark, Marked
from aiflow.cli.filetree import MOST_IN_FLIGHT, FileSlice, Found
from aiflow.cli.sending import Sending

STREAM = "stdin"
"""Its name: `aiflow recv OUTDIR` writes it to a file of this name."""

_BLOCK_BYTES = 16 << 20  # limit of a slice
_READ_BYTES = 1 << 20  # limit of one read; also asked for as the size of the pipe
_QUIET_MS = 200  # a stream that pauses this long is sent as far as it is there
_F_SETPIPE_SZ = 1031  # fcntl.h


def send_stdin(outcome: Outcome, sending: Sending, undelivered: dict[str, str], slice_bytes: int) -> None:
    """Send stdin to its end.

    Parameters
    ----------
    outcome : Outcome
    sending : Sending
    undelivered : dict of str to str
        Contains `STREAM` until its end is delivered.
    slice_bytes : int
        Limit of a slice, as for files. A slice has at most 16 MiB.
    """
    if os.isatty(0):
        raise click.UsageError("stdin is a terminal: write `tar c DIR | aiflow send - …`, or name a directory")
    from aiflow import empty

    undelivered[STREAM] = "not sent"
    stopped = False

    def stop(_path: str) -> None:
        nonlocal stopped
        stopped = True

    sending.abandon = stop
    with outcome.terminal.bar("sending", None) as bar:
        bar.follow(sending.acknowledged)
        try:
            for file_slice in chunks(0, min(slice_bytes, _BLOCK_BYTES), lambda nbytes: empty((nbytes,), "u1")):
                if stopped:
                    break
                sending.send(file_slice)
            sending.finish()
        finally:
            bar.stop()
        bar.show(sending.acknowledged(), max(sending.acknowledged(), 1))


def chunks(fd: int, block_bytes: int, empty: Callable[[int], npt.NDArray[np.uint8]]) -> Iterator[FileSlice]:
    """Read a stream into slices, each in one of three blocks that are reused.

    Parameters
    ----------
    fd : int
        Descriptor to read from: a pipe, a socket or a file.
    block_bytes : int
        Limit of a slice.
    empty : callable
        ``empty(nbytes)`` returns a new uint8 array.
    """
    with contextlib.suppress(OSError):  # no pipe, or more than this user may have
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _READ_BYTES)
    blocks: list[npt.NDArray[np.uint8]] = []
    offset = turn = 0
    ended = False
    while not ended:
        if turn == len(blocks) <= MOST_IN_FLIGHT:
            blocks.append(empty(block_bytes))
        block = blocks[turn]
        nbytes, ended = _fill(fd, block)
        if nbytes or not offset:
            yield FileSlice([_part(block[:nbytes], offset, None)])
            turn = (turn + 1) % (MOST_IN_FLIGHT + 1)
        offset += nbytes
    yield FileSlice([_part(b"", offset, offset)], [Found(STREAM, offset)])


def _part(content: Any, offset: int, size: int | None) -> Marked:
    return Marked(STREAM, content, FileMark("part", None, None, offset, size))


def _fill(fd: int, block: npt.NDArray[np.uint8]) -> tuple[int, bool]:
    """Read until the block is full, the stream pauses, or ends. Return the number of bytes, and whether it ended."""
    view = block.data
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    at = 0
    while at < len(view):
        if not poll.poll(_QUIET_MS if at else None):
            break
        try:
            nbytes = os.readv(fd, [view[at : at + _READ_BYTES]])
        except BlockingIOError:  # a descriptor with O_NONBLOCK, and another process has read what was there
            continue
        if not nbytes:
            return at, True
        at += nbytes
    return at, False
