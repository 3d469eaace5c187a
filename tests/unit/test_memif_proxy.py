"""The proxy in front of memif's server: what it relays, and which connections it keeps open."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from wait import PATIENCE_S, Deadline

from aiflow._ports.memif_proxy import MemifProxy

pytestmark = pytest.mark.unit


def connection(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(PATIENCE_S)
    sock.connect(str(path))
    return sock


def serve(proxy: MemifProxy, until) -> None:
    """Run the proxy, as the rendezvous thread does, until a condition holds."""
    deadline = Deadline()
    while not until():
        deadline.check()
        proxy.relay(set(select.select([sock.fileno() for sock in proxy.sockets()], [], [], 0.01)[0]))


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    """Stands where DPDK listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "server"))
        listener.listen(1)
        listener.settimeout(PATIENCE_S)
        yield listener


@pytest.fixture
def proxy(tmp_path: Path, server: socket.socket) -> Iterator[MemifProxy]:
    with contextlib.closing(MemifProxy(tmp_path / "proxy", lambda sock: True)) as proxy:
        proxy.server = str(tmp_path / "server")
        yield proxy


def test_messages_and_descriptors_pass_in_both_directions(proxy, server) -> None:
    with connection(Path(proxy.path)) as client:
        serve(proxy, lambda: readable(server))
        inside, _ = server.accept()
        inside.settimeout(PATIENCE_S)
        inside.send(b"hello")
        serve(proxy, lambda: readable(client))
        assert client.recv(100) == b"hello"
        ours, theirs = os.pipe()
        socket.send_fds(client, [b"a ring"], [theirs])
        os.close(theirs)
        serve(proxy, lambda: readable(inside))
        message, (passed,), _, _ = socket.recv_fds(inside, 100, 4)
        assert message == b"a ring"
        os.write(passed, b"x")
        assert os.read(ours, 1) == b"x"
        os.close(passed)
        assert os.read(ours, 1) == b""  # the proxy kept no copy
        os.close(ours)
        inside.close()
        serve(proxy, lambda: readable(client))
        assert client.recv(100) == b""  # a hang-up passes, too
        assert len(proxy.sockets()) == 1


def test_a_connection_stays_open_until_it_is_answered_though_its_client_is_gone(proxy, server) -> None:
    client = connection(Path(proxy.path))
    serve(proxy, lambda: readable(server))
    client.close()
    serve(proxy, lambda: len(proxy.sockets()) == 2)  # the listener, and our side of it
    inside, _ = server.accept()
    inside.settimeout(PATIENCE_S)
    assert inside.send(b"hello") == 5  # on the raw socket this is EPIPE
    serve(proxy, lambda: len(proxy.sockets()) == 1)
    assert inside.recv(100) == b""
    inside.close()


def test_closing_waits_for_answers_and_never_closes_what_has_none(proxy, server) -> None:
    with connection(Path(proxy.path)):
        serve(proxy, lambda: readable(server))
        proxy.close()
        inside, _ = server.accept()
        assert inside.send(b"hello") == 5
        inside.close()


def test_strangers_are_turned_away_before_dpdk_hears_of_them(tmp_path, server) -> None:
    with contextlib.closing(MemifProxy(tmp_path / "proxy", lambda sock: False)) as proxy:
        proxy.server = str(tmp_path / "server")
        with connection(tmp_path / "proxy") as client:
            serve(proxy, lambda: readable(client))
            assert client.recv(100) == b""
            assert not readable(server)


def test_a_server_that_is_gone_is_a_hang_up(proxy, server) -> None:
    server.close()
    with connection(Path(proxy.path)) as client:
        serve(proxy, lambda: readable(client))
        assert client.recv(100) == b""
