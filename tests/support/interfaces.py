"""Network interfaces of a test: make a pair, ask `aiflow ports` about one, send a slice through it."""

from __future__ import annotations

from netns import Namespace

import aiflow
from aiflow._ports.inventory import available


def promise(endpoint: str) -> tuple[bool, str]:
    """The row of `aiflow ports` for an endpoint in this thread's namespace: usable, note."""
    (row,) = ((usable, note) for text, usable, note in available() if text == endpoint)
    return row


def one_slice(receiver: aiflow.Receiver, sender: aiflow.Sender, nbytes: int = 300_000) -> aiflow.SliceReport:
    """Send a slice and receive it."""
    ticket = sender.send([bytes(nbytes)], wait=False)
    with receiver.recv(timeout=20) as time_slice:
        assert time_slice.nbytes == nbytes
    report: aiflow.SliceReport = ticket.result(20)
    return report


def veth(host: Namespace, one: str, other: str, mtu: int = 1500, *options: str) -> None:
    """A pair of interfaces, up."""
    host.ip("link", "add", "name", one, *options, "type", "veth", "peer", "name", other, *options)
    for end in (one, other):
        host.ip("link", "set", "dev", end, "mtu", str(mtu), "up")
