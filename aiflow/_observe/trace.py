"""A trace of slices for Perfetto (ui.perfetto.dev) or Chrome (chrome://tracing): ``AIFLOW_TRACE=FILE``.

Each slice is a span of its Sender and one of its Receiver, with the phases inside. All processes of a host may write
one FILE: their clocks agree, so both ends lie on one time axis. ``%p`` in FILE becomes the process id.

The format is the JSON array of Google's "Trace Event Format". Its end may be missing, so each event is one append. The
events of a process are written once a second at most, and at the end.
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
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # the first process of several begins the array
        if os.fstat(self._fd).st_size == 0:
            os.write(self._fd, b"[\n")
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._kept: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._rows: dict[str, int] = {}
        self._lock = threads.unpatched("threading").RLock()

    def row(self, name: str) -> int:
        """The number of a row of this name."""
        with self._lock:
            if name not in self._rows:
                self._rows[name] = len(self._rows) + 1
                self._kept.append(_event("M", 0, self._rows[name], name="thread_name", args={"name": name}))
            return self._rows[name]

    def add(self, events: list[dict[str, Any]]) -> None:
        """Take events; write them if it is time."""
        with self._lock:
            self._kept += events
            if len(self._kept) >= _MOST_KEPT or time.monotonic() - self._written > _KEPT_S:
                self.write()

    def write(self) -> None:
        """Append what was taken."""
        import json

        with self._lock:
            kept, self._kept = self._kept, []
            self._written = time.monotonic()
            text = "".join(json.dumps(event) + ",\n" for event in kept)
            with contextlib.suppress(OSError):  # a full disk must not stop a transfer
                os.write(self._fd, text.encode())


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
    # Slices overlap. Those of one row must not, so each of the eight that are in flight has a row of its own.
    row = written.row(f"Sender {name} ({outgoing.slice_id % 8})")
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
    for phase, until in (("connect and queue", joined), ("wait for the grant", granted), ("deliver", done)):
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
    row = written.row(f"Receiver {name} ({incoming.slice_id % 16})")
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
        _trace.write()


def _forked() -> None:
    """Runs in every forked child: it begins a trace of its own when it has slices."""
    global _trace, _asked
    _trace = None
    _asked = os.environ.get(VARIABLE)


os.register_at_fork(after_in_child=_forked)
