"""Network namespaces for one test: veth pairs, switches, shaped links, random loss. Root only.

Names carry our process id, so that runs beside each other do not collide; what a killed run left, the next removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_serial = count()
_cleaned = threading.Lock()


def command(*words: str, stdin: str | None = None) -> str:
    """Run a program that must succeed, and return what it printed."""
    ran = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, f"{' '.join(words)}: {ran.stderr or ran.stdout}"
    return ran.stdout


def remove_stale() -> None:
    """Delete the namespaces of test runs whose process is dead."""
    for line in command("ip", "netns", "list").splitlines():
        name = line.split()[0]
        words = name.split("-")
        if name.startswith("aiflow-t-") and words[2].isdigit() and not Path(f"/proc/{words[2]}").exists():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)


class Namespace:
    """One network namespace; deleted with `delete`, and everything in it goes."""

    def __init__(self, label: str) -> None:
        self.name = f"aiflow-t-{os.getpid()}-{next(_serial)}-{label}"
        command("ip", "netns", "add", self.name)
        # No frame that we did not send: no router solicitation, no duplicate address detection.
        self.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        self.ip("link", "set", "dev", "lo", "up")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Command in front of one that shall run here."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *words: str, stdin: str | None = None) -> str:
        """Run a program here."""
        return command(*self.prefix, *words, stdin=stdin)

    def ip(self, *words: str) -> str:
        """Run ip(8) here."""
        return command("ip", "-n", self.name, *words)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and threads and processes it starts meanwhile, are in the namespace."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def bring_up(self, interface: str) -> None:
        """Set an interface up."""
        self.ip("link", "set", "dev", interface, "up")

    def take_down(self, interface: str) -> None:
        """Set an interface down: the other end of its wire loses the carrier."""
        self.ip("link", "set", "dev", interface, "down")

    def shape(self, interface: str, rate: str = "100mbit") -> None:
        """Let what leaves through an interface have no more than a rate."""
        command(
            *("tc", "-n", self.name, "qdisc", "replace", "dev", interface, "root"),
            *("tbf", "rate", rate, "burst", "16k", "limit", "256k"),
        )

    def lose(self, per_mille: int) -> None:
        """From now on this switch loses so many of thousand frames that it forwards, at random; 0: none, 1000: all."""
        rules = "add table bridge loss\ndelete table bridge loss\n"
        if per_mille:
            some = f"numgen random mod 1000 < {per_mille} " if per_mille < 1000 else ""
            rules += (
                "add table bridge loss\n"
                "add chain bridge loss forward { type filter hook forward priority 0; }\n"
                f"add rule bridge loss forward {some}counter drop\n"
            )
        self.run("nft", "-f", "-", stdin=rules)

    def lost(self) -> int:
        """Frames that `lose` has taken so far."""
        entries = json.loads(self.run("nft", "-j", "list", "table", "bridge", "loss"))["nftables"]
        expressions: list[dict[str, Any]] = [e for entry in entries if "rule" in entry for e in entry["rule"]["expr"]]
        return sum(e["counter"]["packets"] for e in expressions if "counter" in e)

    def bridge(self) -> None:
        """Make this namespace a switch."""
        self.ip("link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
        self.ip("link", "set", "dev", "br0", "up")

    def delete(self) -> None:
        """Remove it, with its interfaces."""
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, timeout=30)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


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
        """Make a namespace."""
        self.namespaces.append(Namespace(label))
        return self.namespaces[-1]

    def veth(self, one: Namespace, name: str, other: Namespace, peer: str, mtu: int = 1500) -> None:
        """Join two namespaces by a pair of interfaces without offloads, up."""
        one.ip("link", "add", "name", name, "type", "veth", "peer", "name", peer, "netns", other.name)
        for namespace, interface in ((one, name), (other, peer)):
            off = ["tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx", "off"]
            namespace.run("ethtool", "-K", interface, *off)
            namespace.ip("link", "set", "dev", interface, "mtu", str(mtu), "up")

    def switched(self, nb_ports: int, rate: str | None = None) -> tuple[Namespace, Namespace, Namespace]:
        """A sender's and a receiver's host with `nb_ports` interfaces each (s0…, r0…) at one switch between them."""
        source, switch, sink = self.namespace("source"), self.namespace("switch"), self.namespace("sink")
        switch.bridge()
        for i in range(nb_ports):
            for host, letter in ((source, "s"), (sink, "r")):
                self.veth(host, f"{letter}{i}", switch, f"{letter}{i}")
                switch.ip("link", "set", "dev", f"{letter}{i}", "master", "br0")
            if rate:
                source.shape(f"s{i}", rate)
                switch.shape(f"r{i}", rate)
        return source, switch, sink


def raw_socket(interface: str) -> socket.socket:
    """A socket that sends frames as they are; in the namespace of this thread."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((interface, 0))
    return sock
