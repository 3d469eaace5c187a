"""Peers that cannot connect say why; a refusal ends; a receiver that opens our ports is not taken for absent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peer import descriptors_left
from subprocesses import environment, run
from wait import wait_for

import aiflow
from aiflow import _eal
from aiflow._ports import doorbells, messages, rendezvous_receiver, rendezvous_sender
from aiflow._ports.connection import Hooks
from aiflow._ports.listener import Listener
from aiflow._ports.registry import Claim
from aiflow._ports.rendezvous_receiver import ReceiverRendezvous
from aiflow._ports.rendezvous_sender import SenderRendezvous
from aiflow._system.descriptors import Descriptor
from aiflow._system.filelock import lock
from aiflow.config import parse_endpoint
from aiflow.errors import AiflowError, PeerLost, PortError

HELLO_1 = {"version": 1, "driver": "memif", "nb_ports": 1, "frame_size": None}
REFUSAL_1 = (
    "local:q: the receiver has version 1 over memif, the sender version 2 over memif; "
    "use the same aiflow and AIFLOW_LOCAL on both sides"
)
"""Version 1, as it was released."""


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(f"/tmp/af-m{os.getpid()}")
    path.mkdir(mode=0o700)
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Side:
    """A Rendezvous, and what it tells."""

    def __init__(self, endpoint: str, role: str) -> None:
        self.ports: list[Any] = []
        self.error: AiflowError | None = None
        self.joining = [False]
        hooks = Hooks(
            pool_for=self._pool_for,
            attach=lambda port, peer: self.ports.append(port),
            detach=lambda ports, peer: [self.ports.remove(port) for port in ports],
            failed=self._fail,
            joining=self.joining.append,
        )
        kind = ReceiverRendezvous if role == "receiver" else SenderRendezvous
        self.side = kind([parse_endpoint(endpoint)], Path(os.environ["AIFLOW_RUNTIME_DIR"]), hooks, frame_size=None)

    def _pool_for(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> _eal.Mempool:
        return _eal.Mempool("side", 2048, frame_size, socket_id, own_memory=not needs_eal_memory)

    def _fail(self, error: AiflowError | None) -> None:
        self.error = error

    def hints(self) -> str:
        return "\n".join(self.side.hints())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exc: object) -> None:
        self.side.close()


class Actor:
    """A receiver that answers each sender with given messages, and then waits."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.heard: list[dict[str, Any]] = []
        self._answers = answers
        self._claim = Claim(parse_endpoint("local:q"))
        self._listener = Listener(self._claim.directory / "control")
        self._connections: list[socket.socket] = []
        self._end, end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(end,))
        self._thread.start()

    def _run(self, end: socket.socket) -> None:
        while True:
            ready = select.select([end, self._listener.sock], [], [])[0]
            if end in ready:
                end.close()
                return
            connection = self._listener.accept()
            connection.setblocking(True)
            self._connections.append(connection)
            self.heard.append(json.loads(connection.recv(16384)))
            for answer in self._answers:
                messages.write(connection, answer)

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.close()
        self._thread.join()
        self._listener.close()
        self._claim.close()
        for connection in self._connections:
            connection.close()


def ask(message: dict[str, Any]) -> dict[str, Any]:
    """The answer of the receiver of local:q to a sender's first message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(60)
        sock.connect(f"{os.environ['AIFLOW_RUNTIME_DIR']}/local-q/control")
        sock.send(json.dumps(message).encode())
        return json.loads(sock.recv(16384))


def says_versions(text: str, receiver: object, sender: object) -> bool:
    there = f"receiver's aiflow speaks version {receiver}", f"sender's version {sender}"
    return all(part in text for part in (*there, "install the same aiflow on both sides"))


# ----------------------------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize("version", [1, 2, 4, None, "3", 2.5, "\x1b[31m" * 200])
def test_a_sender_of_another_version_is_refused_by_name_and_the_receiver_shows_it(version: object) -> None:
    with Side("local:q", "receiver") as receiver:
        answer = ask({**HELLO_1, "version": version})
        assert isinstance(answer["refused"], str)  # what version 1 reads, and shows
        shown = messages.shown(version)
        assert says_versions(answer["refused"], messages.VERSION, shown)
        wait_for(lambda: says_versions(receiver.hints(), messages.VERSION, shown), "a word to the receiver's user")
        assert f"process {os.getpid()}" in receiver.hints()
        assert receiver.error is None  # it goes on for others
        with Side("local:q", "sender") as sender:
            wait_for(lambda: sender.ports and receiver.ports, "a sender of this version")
        assert receiver.side.hints() == []  # of this process: it has come in


@pytest.mark.parametrize(
    ("refusal", "receiver"),
    [
        ({"refused": REFUSAL_1}, 1),
        ({"refused": "why", "version": 2, "again": False}, 2),
        ({"refused": "why", "version": 4, "again": True}, 4),
    ],
)
def test_a_receiver_of_another_version_is_told_by_name_until_it_is_gone(refusal: dict[str, Any], receiver: int) -> None:
    with Side("local:q", "sender") as sender:
        with Actor(refusal) as old:
            wait_for(lambda: sender.error is not None, "an error")
            assert says_versions(str(sender.error), receiver, messages.VERSION)
            assert says_versions(sender.hints(), receiver, messages.VERSION)
            assert old.heard[0]["version"] == messages.VERSION
        wait_for(lambda: sender.error is None, "the end of its refusal")
        with Side("local:q", "receiver"):
            wait_for(lambda: sender.ports, "a receiver of this version")
        assert sender.error is None


# ----------------------------------------------------------------------------------------------------------- refusals


def test_want_of_ports_is_waited_for_and_told() -> None:
    with Side("local:q*10", "receiver") as receiver, Side("local:q*10", "sender") as first:
        wait_for(lambda: len(first.ports) == 10, "the first sender")
        with Side("local:q*16", "sender") as second:
            wait_for(lambda: "room for 12 of the 16 ports" in second.hints(), "a reason")
            assert second.error is None
            assert "room for 12 of the 16 ports" in receiver.hints()
            first.side.close()
            wait_for(lambda: len(second.ports) == 16, "its turn")
            assert second.side.hints() == []
            assert receiver.side.hints() == []


@pytest.mark.parametrize(
    ("there", "then", "why"),
    [("vhost", "memif", "AIFLOW_LOCAL"), ("memif", "vhost", "AIFLOW_LOCAL")],
)
def test_a_refusal_ends_with_the_receiver_that_made_it(
    monkeypatch: pytest.MonkeyPatch, there: str, then: str, why: str
) -> None:
    program = """
        import aiflow, sys
        rx = aiflow.Receiver("local:q", memory="16MiB")
        print("up", flush=True)
        sys.stdin.readline()
    """
    monkeypatch.setenv("AIFLOW_LOCAL", then)
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment(AIFLOW_LOCAL=there), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with contextlib.ExitStack() as ends, aiflow.Sender("local:q") as tx:
        ends.callback(other.wait)
        ends.callback(other.kill)
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        with pytest.raises(PortError, match=why):
            tx.send([b"x"], timeout=60)
        other.kill()
        other.wait()
        with aiflow.Receiver("local:q", memory="16MiB") as rx:
            wait_for(lambda: tx.receiver, "the other receiver")
            ticket = tx.send([b"x"], wait=False)
            rx.recv(timeout=60)
            ticket.result(60)


def test_want_of_descriptors_is_a_refusal_and_not_the_end() -> None:
    with Side("local:q", "receiver") as receiver, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(60)
        with descriptors_left(1):
            sock.connect(f"{os.environ['AIFLOW_RUNTIME_DIR']}/local-q/control")  # the receiver's end takes it
            sock.send(json.dumps({**HELLO_1, "version": messages.VERSION}).encode())
            answers = [json.loads(sock.recv(16384)), json.loads(sock.recv(16384))]
        assert answers[0] == {"coming": 1}
        assert "Too many open files; close some files, or raise ulimit -n" in answers[1]["refused"]
        with Side("local:q", "sender") as sender:
            wait_for(lambda: sender.ports, "a sender with descriptors")
            assert receiver.error is None


def test_a_socket_s_name_that_is_taken_is_not_the_end(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts may hold the lock that we are creating, to see whether we live."""
    numbers = iter(("00000000", "00000001"))
    monkeypatch.setattr(secrets, "token_hex", lambda nbytes: next(numbers))
    held = lock(directory / "sock-00000000.lock")
    assert held is not None
    with Side("local:q", "receiver") as receiver, Side("local:q", "sender") as sender:
        wait_for(lambda: sender.ports, "another name")
        assert receiver.error is None
    held.close()


@pytest.mark.parametrize(
    "offer",
    [
        {},
        {"driver": "vhost"},
        {"driver": "\x1b[31m"},
        {"sockets": [["memif", 1], ["memif", 2]]},
        {"sockets": [["../../etc/x", 1]]},
        {"sockets": [["memif,role=server", 1]]},
        {"sockets": [["memif", -1]]},
        {"sockets": [["memif", "1"]]},
        {"sockets": [7]},
        {"frame_size": 1 << 40},
        {"frame_size": True},
        {"ring_size": 1e400},
        {"ring_size": 0},
        {"descriptors": 7},
    ],
)
def test_an_offer_that_is_none_is_an_error_and_not_the_end(
    monkeypatch: pytest.MonkeyPatch, offer: dict[str, Any]
) -> None:
    monkeypatch.setattr(rendezvous_sender, "_FAILED_FIRST", 0.05)
    good = {"driver": "memif", "peer": 1, "frame_size": 16384, "ring_size": 256, "sockets": [["memif", 1]]}
    with Side("local:q", "sender") as sender:
        with Actor({**good, **offer} if offer else {"driver": "memif"}):
            wait_for(lambda: sender.error is not None, "an error")
            assert "install the same aiflow on both sides" in str(sender.error)
            assert str(sender.error).isprintable()
        with Side("local:q", "receiver"):
            wait_for(lambda: sender.ports, "a sound receiver")
            assert sender.error is None


def unsealed() -> int:
    page = os.memfd_create("unsealed")
    os.ftruncate(page, 4096)
    return page


def sealed(nbytes: int = 4096) -> int:
    page = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(page, nbytes)
    fcntl.fcntl(page, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return page


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (unsealed, "seals 1"),  # F_SEAL_SEAL
        (lambda: sealed(1), "has 1 bytes"),
        (lambda: os.open("/dev/zero", os.O_RDWR), "is no memfd"),
        (lambda: os.eventfd(0), "is no memfd"),
    ],
)
def test_a_doorbell_whose_page_may_vanish_is_refused(page: Callable[[], int], why: str) -> None:
    """Memory that the peer can truncate would end this process with SIGBUS."""
    before = len(os.listdir("/proc/self/fd"))
    mine, other = socket.socketpair()
    with pytest.raises(ValueError, match=why):
        doorbells.take(Descriptor(page()), Descriptor(mine.detach()))
    other.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_that_are_not_asked_for_are_closed() -> None:
    with Side("local:q", "receiver") as receiver, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(f"{os.environ['AIFLOW_RUNTIME_DIR']}/local-q/control")
        sock.settimeout(60)
        before = len(os.listdir("/proc/self/fd"))
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it hangs up at the first one
            for _ in range(3):
                socket.send_fds(sock, [b'{"what": 1}'], [0, 1, 2, 0, 1, 2])
            sock.recv(16384)
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "the end of the connection")
        assert receiver.error is None


@pytest.mark.parametrize("names", [[], ["page"], ["else", "bell"], [7, None]])
def test_an_offer_without_a_doorbell_will_do(names: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later version may pass other descriptors."""
    other = SimpleNamespace(CAPABILITY=doorbells.CAPABILITY, NAMES=names, make=doorbells.make)
    monkeypatch.setattr(rendezvous_receiver, "doorbells", other)
    with Side("local:q", "receiver"), Side("local:q", "sender") as sender:
        wait_for(lambda: sender.ports, "ports")
        assert sender.ports[0].doorbell is None
        assert not sender.ports[0].wakes


# ------------------------------------------------------------------------------------------------------- at work for us


def test_a_receiver_that_is_at_work_for_us_is_not_silent() -> None:
    """It works for longer than peer_timeout and then ends; only from then on it is absent."""
    with aiflow.Sender("local:q", peer_timeout=0.5) as tx:
        with Actor({"coming": 1}) as receiver:
            ticket = tx.send([b"x"], wait=False)
            wait_for(lambda: receiver.heard, "the call")
            begin = time.monotonic()
            wait_for(lambda: ticket.done() or time.monotonic() - begin > 2, "four times peer_timeout")
            assert not ticket.done()
        gone = time.monotonic()
        with pytest.raises(PeerLost, match="no receiver answered"):
            ticket.result(60)
        assert time.monotonic() - gone < 10


@pytest.mark.parametrize(
    ("answers", "told"), [(({"coming": 1},), "answered and its ports did not come up within 0.75 s"),
                          ((), "is there and said nothing for 0.5 s")]
)  # fmt: skip
def test_it_has_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch, answers: Any, told: str) -> None:
    monkeypatch.setattr("aiflow._ports.connection._HANDSHAKE", 0.5)
    monkeypatch.setattr("aiflow._ports.connection._EACH_PORT", 0.25)
    with Side("local:q", "sender") as sender:
        with Actor(*answers) as receiver:
            wait_for(lambda: sender.side.connecting, "the call")
            assert "coming up" in sender.hints()
            wait_for(lambda: told in sender.hints(), "the end of its time")
            wait_for(lambda: len(receiver.heard) > 1, "the next call")  # which is tried, and is no reason to wait
            assert not sender.side.connecting
            assert sender.joining == [False, True, False]
        with Side("local:q", "receiver"):
            wait_for(lambda: sender.ports, "one that comes up")
        assert sender.joining == [False, True, False, True, False]


# -------------------------------------------------------------------------------------------------------------- hints


def test_nobody_there_is_told_with_the_place_that_was_looked_into(directory: Path) -> None:
    with Side("local:q", "sender") as sender:
        assert f"local:q: looked for a receiver in {directory} (AIFLOW_RUNTIME_DIR" in sender.hints()
        with Side("local:other", "receiver"):
            assert "which has local:other" in sender.hints()
        with Side("memif:q", "receiver"):
            assert f"a receiver has this name as memif:q (process {os.getpid()}); use memif:q on both" in sender.hints()
        with Side("local:q", "receiver"):
            wait_for(lambda: sender.ports, "a receiver")
            assert sender.side.hints() == []


# ------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.root
def test_without_a_thread_nothing_is_kept_and_the_next_attempt_works(directory: Path) -> None:
    os.chown(directory, 65534, 65534)
    out = run(
        """
        import os, resource
        from aiflow import _eal
        from aiflow._ports import registry
        from aiflow._ports.portset import PortSet
        _eal.start()
        os.setgroups([])
        os.setuid(65534)
        def pool_for(frame_size, *_): return _eal.Mempool("p", 1024, frame_size)
        def open_one(role):
            PortSet("local:q", role, pool_for=pool_for, attach=lambda *_: 0, detach=lambda *_: 0).close()
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        for role in "receiver", "sender":
            open_one(role)
            before = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
            for _ in range(3):
                try: open_one(role)
                except Exception as error: print(type(error).__name__, error)
            print(len(os.listdir("/proc/self/fd")) - before, registry.live())
            resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
            open_one(role)
        """
    )
    lines = out.splitlines()
    assert lines[3] == lines[7] == "0 []"
    assert all(line.startswith("EalError") and "ulimit -u" in line for line in (*lines[:3], *lines[4:7])), out
