"""The emulated cluster: nodes and switches as network namespaces of its own, connected by shaped links.

A cluster consists of `aiflow-lab-NAME-node0 …` and `aiflow-lab-NAME-switch0 …` in `/run/netns`, and a file in
`/run/aiflow-lab` with its layout and owner. Nothing else on the machine is changed. `down` removes everything, even
after the process that created it was killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aiflow._eal_args import remove_stale_directories
from aiflow.errors import ConfigError
from aiflow.lab.laberror import LabError
from aiflow.lab.topology import Layout, Port

if TYPE_CHECKING:
    from aiflow.lab.namespaces import Counters, Namespace

__all__ = ["Cluster", "Found", "Loss", "check_rights", "clusters", "owned_name", "remove_all", "sweep"]

PREFIX = "aiflow-lab-"
STATE = Path("/run/aiflow-lab")
_MOUNTS = Path("/run/netns")
SWITCH_BURSTS = 2
"""Bucket of a switch port, in buckets of a node. If both were equal, a port that receives from one node would be empty
after the first burst and wait for tokens at every later frame: twice the timers, for the same rate."""
_NAME = re.compile(r"[a-z0-9_]{1,16}")


def check_rights() -> None:
    """Check the requirements.

    Raises
    ------
    LabError
        Without pyroute2, on a system other than Linux, or without root privileges.
    """
    if importlib.util.find_spec("pyroute2") is None:
        raise LabError("the cluster needs the package pyroute2: pip install 'aiflow-dpdk[lab]'")
    if os.geteuid() != 0:
        raise LabError("creating the network namespaces of the cluster needs root: sudo aiflow lab …")


class Loss(NamedTuple):
    """Frames lost in the network since the cluster came up, from the kernel's counters."""

    links: int
    """At the nodes: dropped by a queue, and known to the sender's kernel."""
    switch_ports: int
    trunks: int
    random: int
    """Dropped by a switch on purpose."""

    @property
    def in_network(self) -> int:
        """Frames lost after they left the node."""
        return self.switch_ports + self.trunks + self.random


class Cluster:
    """An emulated cluster. A context manager: up on entry, down on exit.

    Parameters
    ----------
    layout : Layout, optional
        Default: that of the paper, at 100 Mbit/s per port.
    name : str
        At most 16 of a–z, 0–9 and _. Clusters with different names can be up at the same time.
    owned : bool
        It belongs to this process: `aiflow lab down` keeps it while the process is running, and removes it afterwards.

    Raises
    ------
    ConfigError
        For an invalid name.
    LabError
        Without pyroute2 or root privileges.
    """

    def __init__(self, layout: Layout | None = None, *, name: str = "lab", owned: bool = False) -> None:
        check_rights()
        if _NAME.fullmatch(name) is None:
            raise ConfigError(f"{name!r} is not a valid name of a cluster: at most 16 of a-z, 0-9 and _")
        self.layout = layout or Layout()
        self.name = name
        self._owned = owned

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    # ---- names ----

    def node(self, number: int) -> Namespace:
        """Return the namespace of a node."""
        return self._namespace(f"node{number}")

    def switch(self, number: int) -> Namespace:
        """Return the namespace of a switch."""
        return self._namespace(f"switch{number}")

    def nodes(self) -> list[Namespace]:
        """Return all nodes, senders first."""
        return [self.node(i) for i in range(self.layout.nb_nodes)]

    def switches(self) -> list[Namespace]:
        """Return all switches."""
        return [self.switch(i) for i in range(self.layout.switches)]

    @property
    def runtime_directory(self) -> Path:
        """Directory for the sockets of processes in the cluster. It is removed with the cluster."""
        return STATE / self.name

    def _namespace(self, label: str) -> Namespace:
        from aiflow.lab.namespaces import Namespace

        return Namespace(f"{PREFIX}{self.name}-{label}")

    # ---- life ----

    def up(self) -> bool:
        """Create the cluster, unless it is up with the same layout.

        Returns
        -------
        bool
            Whether it was created.

        Raises
        ------
        LabError
            If the kernel refuses. The created parts are removed.
        """
        if self._is_up():
            self._note()
            return False
        self.down()
        try:
            self._note()
            self._make()
        except BaseException as error:
            self.down()
            if isinstance(error, OSError) or type(error).__name__ == "NetlinkError":
                raise LabError(f"the kernel refused a part of the cluster: {error}") from error
            raise
        return True

    def down(self) -> bool:
        """End every process in the cluster and remove it. Return whether there was anything to remove."""
        return _remove(self.name)

    def _is_up(self) -> bool:
        state = _read_state(self.name)
        if state is None or not state.get("complete") or Layout.from_dict(state["layout"]) != self.layout:
            return False
        return all(namespace.exists() for namespace in (*self.nodes(), *self.switches()))

    def _note(self, complete: bool | None = None) -> None:
        """Record the owner before anything is created, so that the remains of a killed process are found."""
        before = _read_state(self.name) or {}
        state = {
            "layout": self.layout.as_dict(),
            "owner": _process(os.getpid()) if self._owned else None,
            "complete": before.get("complete", False) if complete is None else complete,
        }
        self.runtime_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = STATE / f".{self.name}.part"
        fresh.write_text(json.dumps(state))
        fresh.replace(STATE / f"{self.name}.json")

    def _make(self) -> None:
        layout = self.layout
        for namespace in (*self.nodes(), *self.switches()):
            namespace.create()
        ports = layout.all_ports()
        for port in ports:
            node, switch = self.node(port.node), self.switch(port.switch)
            node.veth(port.interface, switch, port.switch_interface, layout.mtu, port.mac)
            others = {p.address: p.mac for p in ports if p.number == port.number and p.node != port.node}
            node.address(port.interface, port.address, others)
        for number in range(layout.switches):
            self._wire(self.switch(number), [port for port in ports if port.switch == number])
        for port in ports:
            node, switch = self.node(port.node), self.switch(port.switch)
            node.shape(port.interface, port.link_bps, layout.burst_bytes, layout.queue_bytes)
            switch.shape(port.switch_interface, port.rate_bps, SWITCH_BURSTS * layout.burst_bytes, layout.queue_bytes)
        self._note(complete=True)

    def _wire(self, switch: Namespace, ports: list[Port]) -> None:
        """Create one bridge; or two, for senders and receivers, connected by the shaped backplane."""
        layout = self.layout
        macs = {port.switch_interface: [port.mac] for port in ports}
        if layout.trunk_bps is None:
            switch.bridge("bridge", [port.switch_interface for port in ports])
        else:
            switch.veth("trunk-in", switch, "trunk-out", layout.mtu)
            for bridge, trunk, senders in (("bridge-in", "trunk-in", True), ("bridge-out", "trunk-out", False)):
                here = [port for port in ports if (port.node < layout.senders) == senders]
                switch.bridge(bridge, [trunk, *(port.switch_interface for port in here)])
                macs[trunk] = [port.mac for port in ports if port not in here]
                switch.shape(trunk, layout.trunk_bps, SWITCH_BURSTS * layout.burst_bytes, 4 * layout.queue_bytes)
        switch.forward(macs)
        switch.take_over([port.switch_interface for port in ports])
        if layout.loss:
            switch.lose(layout.loss, layout.seed)

    # ---- what the kernel counted ----

    def counters(self) -> dict[str, dict[str, Counters]]:
        """Return the interfaces of each host, by the label of the host (``node0``, ``switch1``)."""
        return {host.name.rpartition("-")[2]: host.counters() for host in (*self.nodes(), *self.switches())}

    def loss(self) -> Loss:
        """Return the frames lost so far, by place."""
        counted = self.counters()

        def rows(hosts: str, begins: str) -> list[Counters]:
            interfaces = (each for host, found in counted.items() if host.startswith(hosts) for each in found.items())
            return [row for name, row in interfaces if name.startswith(begins)]

        nodes, ports, trunks = rows("node", "p"), rows("switch", "n"), rows("switch", "trunk")
        return Loss(
            sum(row.queue_drops for row in nodes),
            sum(row.wire_drops for row in nodes) + sum(row.queue_drops + row.wire_drops for row in ports),
            sum(row.queue_drops + row.wire_drops for row in trunks),
            sum(switch.lost() for switch in self.switches()),
        )


# ---- clusters of this machine ----


def owned_name(purpose: str) -> str:
    """Return a cluster name for this process only."""
    return f"{purpose[:8]}_{os.getpid()}"


def _process(pid: int) -> dict[str, int] | None:
    """Identify a process by its pid and start time."""
    try:
        birth = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return {"pid": pid, "birth": birth}


def _read_state(name: str) -> dict[str, Any] | None:
    try:
        state = json.loads((STATE / f"{name}.json").read_text())
        return state if isinstance(state, dict) and "layout" in state else None
    except (OSError, ValueError):
        return None


class Found(NamedTuple):
    """A cluster, or the remains of one.

    Attributes
    ----------
    name : str
    layout : Layout or None
        None if its creation was interrupted before the layout was recorded.
    owner : int or None
        Process that it belongs to.
    alive : bool
        Whether that process is running.
    namespaces : tuple of str
    """

    name: str
    layout: Layout | None
    owner: int | None
    alive: bool
    namespaces: tuple[str, ...]


def clusters() -> list[Found]:
    """Return every cluster of this machine, and the remains of killed ones."""
    names: dict[str, list[str]] = {}
    if STATE.is_dir():
        names = {path.stem: [] for path in STATE.iterdir() if _NAME.fullmatch(path.stem)}
    for path in sorted(_MOUNTS.glob(f"{PREFIX}*-*")):
        names.setdefault(path.name[len(PREFIX) :].rpartition("-")[0], []).append(path.name)
    found = []
    for name, namespaces in sorted(names.items()):
        state = _read_state(name) or {}
        layout = None
        with contextlib.suppress(KeyError, TypeError, ConfigError):
            layout = Layout.from_dict(state["layout"])
        owner = state.get("owner")
        alive = owner is not None and _process(owner["pid"]) == owner
        found.append(Found(name, layout, owner["pid"] if owner else None, alive, tuple(namespaces)))
    return found


def remove_all(name: str | None = None, *, running: bool = False) -> Iterator[tuple[Found, bool]]:
    """Remove every cluster, and the remains of dead processes.

    Parameters
    ----------
    name : str, optional
        Only the cluster with this name.
    running : bool
        Also those of a running process, such as an experiment.

    Yields
    ------
    Found, bool
        The cluster, and whether it was removed.
    """
    check_rights()
    for found in clusters():
        if name not in (None, found.name):
            continue
        removed = running or not found.alive
        if removed:
            _remove(found.name)
        yield found, removed
    remove_stale_directories()  # DPDK's directories of killed processes
    with contextlib.suppress(OSError):
        STATE.rmdir()  # if empty


def sweep() -> list[str]:
    """Remove the clusters of killed experiments, and return their names. Clusters of `lab up` stay."""
    dead = [found.name for found in clusters() if found.owner is not None and not found.alive]
    for name in dead:
        _remove(name)
    return dead


def _remove(name: str) -> bool:
    from aiflow.lab.namespaces import Namespace

    there = sorted(_MOUNTS.glob(f"{PREFIX}{name}-*"))
    for path in there:
        Namespace(path.name).delete()
    directory, state = STATE / name, STATE / f"{name}.json"
    anything = bool(there) or directory.exists() or state.exists()
    shutil.rmtree(directory, ignore_errors=True)
    (STATE / f".{name}.part").unlink(missing_ok=True)
    state.unlink(missing_ok=True)
    return anything
