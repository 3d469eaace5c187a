"""The socket at which this process answers questions about its Senders and Receivers.

It is there while one of them is open: ``observe-PID-RANDOM.sock`` in the runtime directory, which no other user can
enter. One daemon thread sleeps until a reader comes. A question is a line, and so is the answer, a JSON document; the
one question is ``snapshot``. A reader has two seconds to ask, and two to take the answer.

A socket is bound under another name and renamed once it listens. So a refused connection means that its process has
ended, and a reader may remove it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiflow._observe import snapshot
from aiflow._ports import registry
from aiflow._ports.runtime_dir import runtime_directory
from aiflow._system import log, threads
from aiflow._system.descriptors import accepted, own_socket
from aiflow.errors import AiflowError

__all__ = ["PATTERN", "SWITCH", "forget", "note"]

PATTERN = "observe-*.sock"
"""Names of the sockets."""

SWITCH = "AIFLOW_OBSERVE"
"""Environment variable: 0 opens no socket."""

_MOST_ASKED = 64  # bytes of a question
_MOST_READERS = 32  # at the same time; others wait
_PATIENCE = 2.0  # seconds for a reader to ask, and to take its answer
_PAUSE = 0.1  # seconds, after a fault

_server: _Server | None = None
_closing: list[_Server] = []  # not needed any more; an interrupt may leave one here, which the next `forget` closes
_lock = threads.unpatched("threading").RLock()


class _Reader:
    """A connection of one reader: what it asks, and what it has not taken of the answer yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked = b""
        self.answer = b""
        self.until = time.monotonic() + _PATIENCE

    def goes_on(self) -> bool:
        """Read and write what is possible without waiting; False: the connection is to be closed. Raises OSError."""
        if self.answer:
            self.answer = self.answer[self.sock.send(self.answer) :]
        else:
            got = self.sock.recv(_MOST_ASKED)
            self.asked += got
            if not got or len(self.asked) > _MOST_ASKED:
                return False
        if not self.answer and b"\n" in self.asked:
            line, _, self.asked = self.asked.partition(b"\n")
            self.answer = _answer(line)
            self.until = time.monotonic() + _PATIENCE
        return True


class _Server:
    """A listening socket and its thread. Raises OSError, AiflowError."""

    def __init__(self) -> None:
        root = runtime_directory()
        registry.sweep_observed(root)
        self._path = root / f"observe-{os.getpid()}-{os.urandom(4).hex()}.sock"
        self._readers: dict[int, _Reader] = {}
        self._closing = threads.Flag()
        self._sock = own_socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _listen(self._sock, self._path)
            self._thread = threads.start(self._run, "aiflow-observe")
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    self._turn()
                except Exception:  # a fault of a source of figures must not end the answers to all readers
                    log.logger("observe").exception("a reader gets no answer")
                    threads.unpatched("time").sleep(_PAUSE)
        finally:
            for reader in self._readers.values():
                reader.sock.close()

    def _turn(self) -> None:
        """Sleep until a reader comes or goes on, and serve each that does: a slow one keeps no other waiting."""
        select = threads.unpatched("select")
        sleep = select.poll()
        sleep.register(self._sock.fileno(), select.POLLIN if len(self._readers) < _MOST_READERS else 0)
        for number, reader in self._readers.items():
            sleep.register(number, select.POLLOUT if reader.answer else select.POLLIN)
        next_end = min((reader.until for reader in self._readers.values()), default=None)
        ready = sleep.poll(None if next_end is None else max(next_end - time.monotonic(), 0) * 1000 + 1)
        numbers = {number for number, _ in ready}
        for number, reader in list(self._readers.items()):
            goes_on = False
            try:
                goes_on = (number not in numbers or reader.goes_on()) and time.monotonic() < reader.until
            except OSError:
                pass  # it has gone
            finally:
                if not goes_on:
                    del self._readers[number]
                    reader.sock.close()
        if self._sock.fileno() in numbers and not self._closing.is_set():
            self._accept()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock = accepted(self._sock)
            self._readers[sock.fileno()] = _Reader(sock)

    def close(self) -> None:
        """End the thread, and remove the socket. Idempotent."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close() does not
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


def _answer(line: bytes) -> bytes:
    """The answer to one question."""
    import json  # here: few processes are asked, and importing aiflow must cost little

    document = snapshot.snapshot() if line == b"snapshot" else {"error": "ask for: snapshot"}
    return json.dumps(document, allow_nan=False, default=str).encode() + b"\n"


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
    snapshot.forget(engine)
    _close_unless_needed()


def _close_unless_needed() -> None:
    global _server
    with _lock:
        if _server is not None and not snapshot.nb_sides():
            _closing.append(_server)
            _server = None
        closing = list(_closing)
    for server in closing:  # without the lock: its thread, which `close` waits for, may collect a Sender and come here
        server.close()
        with contextlib.suppress(ValueError):
            _closing.remove(server)


def _forked() -> None:
    """Runs in every forked child: the socket is the parent's, and the child's copy is closed already."""
    global _lock, _server
    _lock = threads.unpatched("threading").RLock()
    _server = None
    _closing.clear()


os.register_at_fork(after_in_child=_forked)
