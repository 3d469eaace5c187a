"""The socket at which this process answers questions about its Senders and Receivers.

It is there while one of them is open: ``observe-PID-RANDOM.sock`` in the runtime directory, which no other user can
enter. One daemon thread sleeps until a reader comes. A question is a line, and so is the answer, a JSON document; the
one question is ``snapshot``.

A socket is bound under another name and renamed once it listens. So a refused connection means that its process has
ended, and a reader may remove it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiflow._observe import snapshot
from aiflow._ports.runtime_dir import runtime_directory
from aiflow._system import threads
from aiflow._system.descriptors import keep, own_socket, pause_without_descriptor
from aiflow.errors import AiflowError

__all__ = ["PATTERN", "SWITCH", "UNFINISHED", "forget", "note"]

PATTERN = "observe-*.sock"
"""Names of the sockets."""

UNFINISHED = "observe-*.new"
"""Their names until they listen."""

SWITCH = "AIFLOW_OBSERVE"
"""Environment variable: 0 opens no socket."""

_MOST_ASKED = 64  # bytes of a question
_PATIENCE = 2.0  # seconds for a reader to ask, and to take its answer

_server: _Server | None = None
_lock = threads.unpatched("threading").RLock()


class _Server:
    """A listening socket and its thread. Raises OSError, AiflowError."""

    def __init__(self) -> None:
        self._path = runtime_directory() / f"observe-{os.getpid()}-{os.urandom(4).hex()}.sock"
        self._reader: socket.socket | None = None
        self._closing = threads.Flag()
        self._sock = own_socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _listen(self._sock, self._path)
            self._thread = threads.start(self._run, "aiflow-observe")
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        select = threads.unpatched("select")
        sleep = select.poll()
        sleep.register(self._sock.fileno(), select.POLLIN)
        while not self._closing.is_set():
            sleep.poll()  # and not in accept: `keep` holds a lock
            try:
                reader = keep(lambda: self._sock.accept()[0])
            except OSError as exc:
                if self._closing.is_set():
                    return
                pause_without_descriptor(exc)
                continue
            self._reader = reader
            with contextlib.suppress(OSError), reader:
                reader.settimeout(_PATIENCE)
                _answer(reader)
            self._reader = None

    def close(self) -> None:
        """End the thread, and remove the socket. Idempotent."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._path.unlink()
        for sock in (self._sock, self._reader):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # ends accept and recv, which close() does not
        thread = getattr(self, "_thread", None)
        if thread is not None and thread.ident is not None and not threads.is_current(thread):
            thread.join()
        self._sock.close()


def _listen(sock: socket.socket, path: Path) -> None:
    begun = path.with_suffix(".new")
    try:
        sock.bind(str(begun))
        begun.chmod(0o600)
        sock.listen(8)
        sock.setblocking(False)
        begun.rename(path)
    finally:
        begun.unlink(missing_ok=True)


def _answer(reader: socket.socket) -> None:
    """Answer the questions of one reader until it goes. Raises OSError."""
    import json  # here: few processes are asked, and importing aiflow must cost little

    asked = b""
    while True:
        got = reader.recv(_MOST_ASKED)
        if not got or len(asked) > _MOST_ASKED:
            return
        asked += got
        while b"\n" in asked:
            line, _, asked = asked.partition(b"\n")
            document = snapshot.snapshot() if line == b"snapshot" else {"error": "ask for: snapshot"}
            reader.sendall(json.dumps(document, allow_nan=False, default=str).encode() + b"\n")


def note(engine: Any, name: str, endpoints: tuple[Any, ...], asked: Mapping[str, Any]) -> None:
    """Show a Sender or Receiver to readers from now on; the parameters are those of `aiflow._observe.snapshot.Side`.

    Without a runtime directory, a descriptor or a thread it is not shown: that is no reason not to open it.
    """
    global _server
    snapshot.note(engine, name, endpoints, asked)
    with _lock:
        if _server is None and os.environ.get(SWITCH) != "0":
            with contextlib.suppress(OSError, AiflowError):
                _server = _Server()


def forget(engine: Any) -> None:
    """Show it no more; the socket goes with the last one. Idempotent, also after an interrupt."""
    global _server
    snapshot.forget(engine)
    with _lock:
        if _server is not None and not snapshot.nb_sides():
            _server.close()
            _server = None


def _forked() -> None:
    """Runs in every forked child: the socket is the parent's, and the child's copy is closed already."""
    global _lock, _server
    _lock = threads.unpatched("threading").RLock()
    _server = None


os.register_at_fork(after_in_child=_forked)
