"""A trace of slices for Perfetto (ui.perfetto.dev) or Chrome (chrome://tracing): ``AIFLOW_TRACE=FILE``.

Each slice is a span of its Sender and one of its Receiver, with the phases inside. All processes of a host may write
one FILE: their clocks agree, so both ends lie on one time axis. ``%p`` in FILE becomes the process id.

The format is the JSON array of Google's "Trace Event Format". Its end may be missing, so events are appended, under a
lock of the file. The events of a process are written once a second at most, and at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import time
import warnings
from typing import Any

from aiflow._system import threads

__all__ = ["VARIABLE", "received", "sent", "trace"]

VARIABLE = "AIFLOW_TRACE"
_KEPT_S = 1.0  # the longest time between two writes, while slices end
_MOST_KEPT = 2000  # events
_MOST_WAITING = 100_000  # events that wait for another process's write; older ones are lost
_MOST_ROWS = 10_000  # of one name


class _Trace:
    """The file of this process. Raises OSError.

    Parameters
    ----------
    pattern : str
        The path, with ``%p`` for the process id.
    """

    def __init__(self, pattern: str) -> None:
        path = pattern.replace("%p", str(os.getpid()))
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._kept: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._rows: dict[str, list[int]] = {}  # by name: when the newest span of each of its rows ended
        self._named: set[int] = set()
        self._lock = threads.unpatched("threading").RLock()

    def row(self, name: str, begin_ns: int, end_ns: int) -> int:
        """The number of a row of this name that is free for a span: those of one row must not overlap."""
        with self._lock:
            ends = self._rows.setdefault(name, [])
            place = next((place for place, end in enumerate(ends) if end <= begin_ns), len(ends))
            ends[place : place + 1] = [end_ns]
            number = (list(self._rows).index(name) + 1) * _MOST_ROWS + place
            if number not in self._named:
                self._named.add(number)
                self._kept.append(_event("M", 0, number, name="thread_name", args={"name": f"{name} ({place})"}))
            return number

    def add(self, events: list[dict[str, Any]]) -> None:
        """Take events; write them if it is time."""
        with self._lock:
            self._kept += events
            if len(self._kept) >= _MOST_KEPT or time.monotonic() - self._written > _KEPT_S:
                self.write()

    def write(self, patience: float = 0.0) -> None:
        """Append what was taken. Kept for the next time if another process writes for longer than `patience`."""
        import json

        with self._lock:
            self._written = time.monotonic()
            if not self._alone(self._written + patience):
                del self._kept[:-_MOST_WAITING]
                return
            kept, self._kept = self._kept, []
            text = "".join(json.dumps(event) + ",\n" for event in kept)
            try:
                size = os.fstat(self._fd).st_size
                self._append((text if size else f"[\n{text}").encode(), size)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _alone(self, until: float) -> bool:
        """Lock the file. Other processes append to it, and one of them may be stopped while it does."""
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if time.monotonic() >= until:
                    return False
                threads.unpatched("time").sleep(0.01)

    def _append(self, text: bytes, size: int) -> None:
        """Append all of it to a file of `size` bytes, or nothing: part of an event would spoil those behind it."""
        try:
            while text:
                text = text[os.write(self._fd, text) :]
        except OSError:  # a full disk must not stop a transfer
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)


_trace: _Trace | None = None
_asked = os.environ.get(VARIABLE)


def trace() -> _Trace | None:
    """The trace of this process; None if none was asked for, or the file cannot be written."""
    global _trace, _asked
    if _trace is None and _asked:
        pattern, _asked = _asked, None
        try:
            _trace = _Trace(pattern)
        except OSError as exc:
            warnings.warn(f"{VARIABLE}={pattern}: {exc.strerror}: no trace is written", stacklevel=2)
    return _trace


def _event(phase: str, ns: int, row: int, **more: Any) -> dict[str, Any]:
    return {"ph": phase, "ts": ns / 1e3, "pid": os.getpid(), "tid": row, "cat": "aiflow", **more}


def _span(name: str, begin_ns: int, end_ns: int, row: int, **args: Any) -> dict[str, Any]:
    return _event("X", begin_ns, row, dur=max(end_ns - begin_ns, 0) / 1e3, name=name, args=args)


def sent(name: str, outgoing: Any) -> None:
    """Add a slice, or one receiver's part of it, that a Sender has ended.

    Parameters
    ----------
    name : str
        Of the Sender.
    outgoing : aiflow._dp_outgoing.Outgoing
    """
    written = trace()
    if written is None:
        return
    posted, joined, granted, done = outgoing.times
    row = written.row(f"Sender {name}", posted, done)
    again = outgoing.frames[1]
    about = {
        "slice": outgoing.slice_id,
        "bytes": outgoing.nbytes,
        "elements": outgoing.nb_elements,
        "outcome": outgoing.error,
        "frames": outgoing.frames[0],
        "retransmitted": again,
    }
    events = [_span(f"slice {outgoing.slice_id}", posted, done, row, **about)]
    since = posted
    for phase, until in (("connect", joined), ("queue and wait for the grant", granted), ("deliver", done)):
        if until and until > since:
            events.append(_span(phase, since, until, row))
            since = until
    if granted:
        events.append(_event("i", granted, row, name="granted", s="t"))
    written.add(events)


def received(name: str, incoming: Any) -> None:
    """Add a slice that a Receiver's user has taken.

    Parameters
    ----------
    name : str
        Of the Receiver.
    incoming : aiflow._dp_incoming.Incoming
    """
    taken_ns = time.monotonic_ns()
    written = trace()
    if written is None:
        return
    first, whole = incoming.times
    row = written.row(f"Receiver {name}", first, taken_ns)
    about = {"slice": incoming.slice_id, "sender": incoming.sender, "bytes": incoming.nbytes, "frames": incoming.frames}
    events = [
        _span(f"slice {incoming.slice_id}", first, taken_ns, row, **about),
        _span("arrive", first, whole, row),
        _span("wait for the user", whole, taken_ns, row),
    ]
    marks = (("first byte", first), ("whole", whole), ("delivered", taken_ns))
    events += [_event("i", ns, row, name=mark, s="t") for mark, ns in marks]
    written.add(events)


@atexit.register
def _end() -> None:
    if _trace is not None:
        _trace.write(_KEPT_S)


def _forked() -> None:
    """Runs in every forked child: it begins a trace of its own when it has slices."""
    global _trace, _asked
    _trace = None
    _asked = os.environ.get(VARIABLE)


os.register_at_fork(after_in_child=_forked)
