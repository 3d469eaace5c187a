"""Network namespaces, configured over netlink: interfaces, shapers, bridges, random loss, counters.

The cluster, the tests and the benchmarks use this kit. Interfaces of the cluster and the tests are created inside their
namespaces, so that no interface of the host is touched. Only the benchmarks create a pair in the host's namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute, netns
from pyroute2.ethtool import Ethtool

from aiflow.lab.entering import entered
from aiflow.lab.laberror import LabError
from aiflow.lab.xdp import pass_program

__all__ = ["Counters", "Namespace"]

_MOUNTS = Path("/run/netns")
_OFFLOADS = re.compile(r"(tx|rx)-(checksum|scatter-gather|generic-segmentation|(tcp|udp|sctp|gso|gro|vlan)\b|gro).*")
_LOSS_PERIOD = 1 << 16


class Counters(NamedTuple):
    """Counters of an interface, from the kernel."""

    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    queue_drops: int
    """Frames that its queue refused."""
    wire_drops: int
    """Frames that the other end of its wire refused."""


class Namespace:
    """One network namespace, by name.

    Parameters
    ----------
    name : str
        As in `/run/netns`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def of_this_thread() -> Namespace:
        """Return the namespace that the calling thread is in. It has no name, and cannot be created or deleted."""
        return _Current("")

    @staticmethod
    def of_process(pid: int) -> Namespace:
        """Return the namespace that a process is in. It has no name, and cannot be created or deleted."""
        return _OfProcess(pid)

    @property
    def path(self) -> Path:
        """Path of its mount point."""
        return _MOUNTS / self.name

    def exists(self) -> bool:
        """Return whether it exists."""
        return self.path.exists()

    def create(self) -> None:
        """Create it, with its loopback up and IPv6 off: the kernel sends no frames of its own."""
        netns.create(self.name)
        self.disable_ipv6("all", "default")
        with self.link() as ip:
            ip.link("set", index=1, state="up")

    def disable_ipv6(self, *names: str) -> None:
        """Send no router solicitation and no duplicate address detection from these interfaces."""
        with entered(self.path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")

    @contextlib.contextmanager
    def link(self) -> Iterator[Any]:
        """Yield a netlink socket of this namespace. The calling thread is inside meanwhile."""
        with entered(self.path), IPRoute() as ip:
            yield ip

    def as_destination(self) -> dict[str, Any]:
        """Return the attribute that puts an interface here."""
        return {"net_ns_fd": self.name}

    def inode(self) -> tuple[int, int]:
        """Return its identity, as in `/proc/PID/ns/net`."""
        stat = self.path.stat()
        return stat.st_dev, stat.st_ino

    def processes(self) -> list[int]:
        """Return the pids of the processes inside, without this one."""
        ours = self.inode()
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # it has ended
                    stat = (entry / "ns/net").stat()
                    if (stat.st_dev, stat.st_ino) == ours:
                        pids.append(int(entry.name))
        return pids

    def delete(self) -> None:
        """End the processes inside and remove it, with all its interfaces. A missing namespace is no error."""
        if not self.exists():
            return
        deadline = time.monotonic() + 5.0
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise LabError(f"the processes {pids} in {self.name} do not end: see `ip netns pids {self.name}`")
            time.sleep(0.01)
        self.remove()

    def remove(self) -> None:
        """Remove it, and leave processes inside alone: the kernel deletes the interfaces with the last of them."""
        with contextlib.suppress(FileNotFoundError):
            netns.remove(self.name)

    # ---- interfaces ----

    def veth(
        self, name: str, other: Namespace, peer: str, mtu: int = 1500, mac: str | None = None, *, offloads: bool = False
    ) -> None:
        """Join two namespaces by a pair of interfaces, and set both up. `offloads` keeps the driver's offloads on."""
        with self.link() as ip:
            ends: dict[str, Any] = {"ifname": peer, "mtu": mtu}
            if other is not self:
                ends |= other.as_destination()
            address = {"address": mac} if mac else {}
            ip.link("add", ifname=name, kind="veth", mtu=mtu, peer=ends, **address)
        for namespace, interface in ((self, name), (other, peer)):
            namespace.disable_ipv6(interface)
            if not offloads:
                namespace.turn_off_offloads(interface)
            namespace.plug(interface, up=True)

    def turn_off_offloads(self, name: str) -> None:
        """Let every frame cross the wire unchanged."""
        with entered(self.path), Ethtool() as ethtool:
            features = ethtool.get_features(name)
            for name_of_it, feature in features.features.items():
                if feature.available and _OFFLOADS.fullmatch(name_of_it):
                    feature.enable = False
            ethtool.set_features(name, features)

    def unlink(self, name: str) -> None:
        """Delete an interface, and with it the other end of its wire."""
        with self.link() as ip:
            ip.link("del", ifname=name)

    def plug(self, name: str, *, up: bool) -> None:
        """Set an interface up or down. When down, the other end of its wire has no carrier."""
        with self.link() as ip:
            ip.link("set", ifname=name, state="up" if up else "down")

    def shape(self, name: str, rate_bps: int, burst_bytes: int, queue_bytes: int) -> None:
        """Limit the rate at which frames leave through an interface. A full queue drops frames."""
        with self.link() as ip:
            (index,) = ip.link_lookup(ifname=name)
            ip.tc("replace", "tbf", index, rate=rate_bps // 8, burst=burst_bytes, limit=queue_bytes)

    def take_over(self, names: list[str]) -> None:
        """Release arriving frames from their sender's socket memory at these interfaces (see `aiflow.lab.xdp`)."""
        program = pass_program()
        try:
            with self.link() as ip:
                for name in names:
                    (index,) = ip.link_lookup(ifname=name)
                    ip.link("set", index=index, xdp_fd=program)
        finally:
            os.close(program)

    def address(self, name: str, address: str, neighbours: dict[str, str]) -> None:
        """Give an interface an IPv4 address, and the MACs of its neighbours, so that no ARP is needed."""
        with self.link() as ip:
            (index,) = ip.link_lookup(ifname=name)
            ip.addr("add", index=index, address=address, prefixlen=24)
            for neighbour, mac in neighbours.items():
                ip.neigh("replace", dst=neighbour, lladdr=mac, ifindex=index, state="permanent")

    def bridge(self, name: str, members: Sequence[str] = (), *, learning: bool = False) -> None:
        """Create a bridge. Without `learning` it forwards as `forward` says, and floods only broadcasts."""
        with self.link() as ip:
            ip.link("add", ifname=name, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
            (index,) = ip.link_lookup(ifname=name)
            for member in members:
                (port,) = ip.link_lookup(ifname=member)
                ip.link("set", index=port, master=index)
                if not learning:
                    ip.brport("set", index=port, learning=0, unicast_flood=0, mcast_flood=0)
            ip.link("set", index=index, state="up")

    def forward(self, macs: dict[str, list[str]]) -> None:
        """Set static forwarding: interface → the MACs behind it."""
        with self.link() as ip:
            for name, behind in macs.items():
                (index,) = ip.link_lookup(ifname=name)
                for mac in behind:
                    ip.fdb("replace", ifindex=index, lladdr=mac, state="noarp")

    def lose(self, probability: float, seed: int | None = 1, *, ports: str = "n*") -> None:
        """Drop frames that this switch forwards, from now on.

        Parameters
        ----------
        probability : float
            0: none, 1: all.
        seed : int or None
            Selects the frames: of each 65536 the same ones for the same seed. None: at random.
        ports : str
            Frames from these interfaces only, as nftables matches names; "": from all.
        """
        rules = "add table bridge loss\ndelete table bridge loss\n"
        if nb_lost := round(probability * _LOSS_PERIOD):
            verdict, match = "jump lost", f'iifname "{ports}" ' if ports else ""
            if nb_lost < _LOSS_PERIOD and seed is None:
                verdict = f"numgen random mod {_LOSS_PERIOD} < {nb_lost} jump lost"
            elif nb_lost < _LOSS_PERIOD:
                lost = sorted(random.Random(seed).sample(range(_LOSS_PERIOD), nb_lost))
                each = ", ".join(f"{number} : jump lost" for number in lost)
                verdict = f"numgen inc mod {_LOSS_PERIOD} vmap {{ {each} }}"
            rules += (
                "add table bridge loss\n"
                "add chain bridge loss lost\n"
                "add rule bridge loss lost counter drop\n"
                "add chain bridge loss forward { type filter hook forward priority 0; }\n"
                f"add rule bridge loss forward {match}{verdict}\n"
            )
        self._nft("-f", "-", stdin=rules)

    def lost(self) -> int:
        """Return the number of frames that `lose` has dropped."""
        try:
            entries = json.loads(self._nft("-j", "list", "table", "bridge", "loss"))["nftables"]
        except LabError:
            return 0
        expressions = [e for entry in entries if "rule" in entry for e in entry["rule"]["expr"]]
        return sum(e["counter"]["packets"] for e in expressions if "counter" in e)

    def counters(self) -> dict[str, Counters]:
        """Return the counters of every interface except the loopback."""
        with self.link() as ip:
            drops: dict[int, int] = {}
            for qdisc in ip.get_qdiscs():
                queue = _nested(qdisc, "TCA_STATS2", "TCA_STATS_QUEUE")
                drops[qdisc["index"]] = drops.get(qdisc["index"], 0) + (queue["drops"] if queue else 0)
            found = {}
            for link in ip.get_links():
                stats, name = link.get("stats64"), link.get("ifname")
                if name != "lo":
                    found[name] = Counters(
                        stats["tx_packets"], stats["tx_bytes"], stats["rx_packets"], stats["rx_bytes"],
                        drops.get(link["index"], 0), stats["tx_dropped"],
                    )  # fmt: skip
            return found

    def _nft(self, *words: str, stdin: str | None = None) -> str:
        with entered(self.path):
            try:
                ran = subprocess.run(["nft", *words], input=stdin, capture_output=True, text=True, timeout=30)
            except FileNotFoundError:
                raise LabError("random loss needs the program nft: apt install nftables") from None
        if ran.returncode:
            raise LabError(f"nft in {self.name}: {ran.stderr.strip()}")
        return ran.stdout


class _Current(Namespace):
    @property
    def path(self) -> Path:
        return Path("/proc/thread-self/ns/net")


class _OfProcess(Namespace):
    def __init__(self, pid: int) -> None:
        super().__init__("")
        self._pid = pid

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self._pid}/ns/net")

    def as_destination(self) -> dict[str, Any]:
        return {"net_ns_pid": self._pid}


def _nested(message: Any, *names: str) -> Any:
    for name in names:
        message = message.get_attr(name) if message is not None else None
    return message
