"""Processors: NUMA nodes, isolated cores, frequency governor, and the share that a cgroup grants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aiflow._checks.boot_option import boot_option
from aiflow._checks.finding import Finding, better, ok
from aiflow._checks.host import Host, started_with
from aiflow._system.cpus import cpu_list, numa_node

__all__ = ["cgroup_cpu", "governor", "isolated", "numa"]

_GOVERNORS = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
_FEW = 4  # CPUs: with so few, an isolated one is missing elsewhere


def numa(host: Host) -> Iterator[Finding]:
    """Whether this process may run on the NUMA node of each card."""
    nodes = cpu_list(host.read("/sys/devices/system/node/online"))
    if len(nodes) < 2:
        yield ok("a single node")
        return
    cpus_of = {node: cpu_list(host.read(f"/sys/devices/system/node/node{node}/cpulist")) for node in nodes}
    far = False
    for name, path in _devices(host):
        near = cpus_of.get(numa_node(path), set())
        if near and not near & host.cpus:
            far = True
            text = f"{name} is on node {numa_node(path)}, and this process may not run there: each frame crosses over"
            if host.in_container:  # taskset does not lead out of its cpuset
                yield better(f"{text}{started_with(f'--cpuset-cpus={_listed(near | host.cpus)}')}")
            else:
                yield better(text, f"taskset -cp {_listed(near | host.cpus)} $$")
    if not far:
        yield ok(f"{len(nodes)} nodes, and this process may run on those of its cards")


def _devices(host: Host) -> Iterator[tuple[str, Path]]:
    for card in host.cards():
        yield f"pci:{card.address}", card.path


def isolated(host: Host) -> Iterator[Finding]:
    """Cores that the kernel's scheduler leaves alone, for ports that are polled without a pause."""
    kept = cpu_list(host.read("/sys/devices/system/cpu/isolated"))
    online = cpu_list(host.read("/sys/devices/system/cpu/online"))
    if kept:
        yield ok(f"cores {_listed(kept)}: taskset -c {_listed(kept)} aiflow … runs there")
    elif not host.dpdk_cards():
        yield ok("none, and none is needed: no card is bound for DPDK")
    elif len(online) <= _FEW:
        yield ok(f"none: {len(online)} CPUs are too few to spare one")
    else:
        last = max(online)
        words = f"isolcpus={last} nohz_full={last} rcu_nocbs={last}"
        command, how = boot_option(host, words)
        text = f'none: other programs interrupt a port that is polled with idle="spin". {how}'
        yield better(text, command, as_root=bool(command))


def governor(host: Host) -> Iterator[Finding]:
    """The frequency governor of the CPUs that this process may use."""
    found = {cpu: host.read(_GOVERNORS.format(cpu)) for cpu in sorted(host.cpus)}
    slow = {cpu for cpu, name in found.items() if name and name != "performance"}
    if not any(found.values()):
        yield ok("the frequency cannot be set here")
    elif slow:
        names = "/".join(sorted({found[cpu] for cpu in slow}))
        text = f"CPUs {_listed(slow)} run with {names}: they slow down while a port waits, and take time to speed up"
        command = f"echo performance | tee {_GOVERNORS.format('*')}"
        if host.is_kept(_GOVERNORS.format(min(slow))):
            yield better(f"{text}. On the container's host, as root: {command}")
        else:
            yield better(text, command, as_root=True)
    else:
        yield ok("performance")


def cgroup_cpu(host: Host) -> Iterator[Finding]:
    """The processor time that this process's cgroups grant."""
    quota = host.cpu_quota()
    cpus = len(host.cpus)
    if quota is not None and quota[0] < min(2, cpus):
        cores, path = quota
        text = f"this process's cgroup grants {cores:.2g} cores, and stops it for the rest of each period"
        if host.is_kept(path):
            yield better(f"{text}{started_with('--cpus=2', 'resources.limits.cpu')}")
            return
        value = "-1" if path.name == "cpu.cfs_quota_us" else "max"
        yield better(text, f"echo {value} > {host.shown(path)}", as_root=True)
    else:
        yield ok(f"{cpus} CPUs" if quota is None else f"{quota[0]:.3g} cores of {cpus} CPUs")


def _listed(cpus: set[int]) -> str:
    """CPUs in the kernel's form, such as ``0-3,8``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
