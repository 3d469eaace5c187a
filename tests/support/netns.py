"""Network namespaces of one test, from the kit of `aiflow.lab.namespaces`. Root only.

Names contain the process id, so that concurrent runs do not collide. A run removes the namespaces of killed ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path

from aiflow.lab import entering, namespaces
from aiflow.lab.topology import parse_rate

_BURST_BYTES, _QUEUE_BYTES = 16 << 10, 256 << 10
_serial = count()
_cleaned = threading.Lock()


def command(*words: str, stdin: str | None = None) -> str:
    """Run a program that must succeed, and return its output."""
    ran = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, f"{' '.join(words)}: {ran.stderr or ran.stdout}"
    return ran.stdout


def remove_stale() -> None:
    """Delete the namespaces of test runs whose process is dead."""
    for path in Path("/run/netns").glob("aiflow-t-*"):
        owner = path.name.split("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):  # another run removes it at the same time
                namespaces.Namespace(path.name).remove()


class Namespace:
    """One network namespace; `delete` removes it with its interfaces."""

    def __init__(self, label: str) -> None:
        self.name = f"aiflow-t-{os.getpid()}-{next(_serial)}-{label}"
        self.kit = namespaces.Namespace(self.name)
        self.kit.create()

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words in front of a command that runs it here."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *words: str, stdin: str | None = None) -> str:
        """Run a program here."""
        return command(*self.prefix, *words, stdin=stdin)

    def ip(self, *words: str) -> str:
        """Run ip(8) here, for what the kit lacks."""
        return command("ip", "-n", self.name, *words)

    def entered(self) -> AbstractContextManager[None]:
        """Move this thread, and the threads and processes that it starts meanwhile, into the namespace."""
        return entering.entered(self.kit.path)

    def bring_up(self, interface: str) -> None:
        """Set an interface up."""
        self.kit.plug(interface, up=True)

    def take_down(self, interface: str) -> None:
        """Set an interface down: the other end of its wire has no carrier."""
        self.kit.plug(interface, up=False)

    def shape(self, interface: str, rate: str = "100mbit") -> None:
        """Limit the rate at which frames leave through an interface."""
        self.kit.shape(interface, parse_rate(rate), _BURST_BYTES, _QUEUE_BYTES)

    def lose(self, per_mille: int) -> None:
        """Drop this share of the frames that the switch forwards, at random. 0: none, 1000: all."""
        self.kit.lose(per_mille / 1000, None, ports="")

    def lost(self) -> int:
        """Return the number of frames that `lose` has dropped."""
        return self.kit.lost()

    def bridge(self, *members: str) -> None:
        """Make this namespace a switch, with these ports."""
        self.kit.bridge("br0", members, learning=True)

    def delete(self) -> None:
        """Remove it, with its interfaces."""
        self.kit.remove()


class Net:
    """Namespaces of one test: a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self.namespaces: list[Namespace] = []

    def __enter__(self) -> Net:
        with _cleaned:
            remove_stale()
        return self

    def __exit__(self, *exc: object) -> None:
        for namespace in self.namespaces:
            namespace.delete()

    def namespace(self, label: str) -> Namespace:
        """Create a namespace."""
        self.namespaces.append(Namespace(label))
        return self.namespaces[-1]

    def veth(self, one: Namespace, name: str, other: Namespace, peer: str, mtu: int = 1500) -> None:
        """Join two namespaces by a pair of interfaces without offloads, up."""
        one.kit.veth(name, other.kit, peer, mtu)

    def switched(self, nb_ports: int, rate: str | None = None) -> tuple[Namespace, Namespace, Namespace]:
        """A sender's and a receiver's host with `nb_ports` interfaces each (s0…, r0…) at one switch between them."""
        source, switch, sink = self.namespace("source"), self.namespace("switch"), self.namespace("sink")
        for i in range(nb_ports):
            for host, letter in ((source, "s"), (sink, "r")):
                self.veth(host, f"{letter}{i}", switch, f"{letter}{i}")
        switch.bridge(*(f"{letter}{i}" for i in range(nb_ports) for letter in "sr"))
        for i in range(nb_ports):
            if rate:
                source.shape(f"s{i}", rate)
                switch.shape(f"r{i}", rate)
        return source, switch, sink


def raw_socket(interface: str) -> socket.socket:
    """A socket that sends frames unchanged, in the namespace of this thread."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((interface, 0))
    return sock
