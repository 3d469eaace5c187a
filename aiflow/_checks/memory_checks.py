"""Memory: hugepages, locked memory, address space, open files, and what a cgroup grants."""

from __future__ import annotations

from collections.abc import Iterator

from aiflow._checks.finding import Finding, better, broken, ok
from aiflow._checks.host import CAP_IPC_LOCK, Host, started_with
from aiflow._eal_args import memory_mib

__all__ = ["cgroup_memory", "hugepages", "limits", "memlock"]

_HUGEPAGES = "/proc/sys/vm/nr_hugepages"  # sysctl is missing on small systems
_LEAST_MIB = 64  # of hugepages: what DPDK reserves at its start
_WANTED_MIB = 1024
_ADDRESS_MIB = 448  # what DPDK maps, with its heap and stacks
_FILES = 1024
_RUN_MIB = 1280  # memory= of a Receiver by default, and DPDK's heap


def hugepages(host: Host) -> Iterator[Finding]:
    """Reserved and free hugepages, what a cgroup grants of them, and AIFLOW_MEMORY."""
    asked = host.environ.get("AIFLOW_MEMORY", "")
    if asked == "no-huge":
        yield ok("not used, because AIFLOW_MEMORY=no-huge is set")
        return
    memory = host.memory()
    page_kib = memory.get("Hugepagesize", 0)
    if not page_kib:
        yield better("this kernel has none: aiflow runs without them, and the CPU misses its table of pages more often")
        return
    total, free = memory.get("HugePages_Total", 0), memory.get("HugePages_Free", 0)
    free -= memory.get("HugePages_Rsvd", 0)
    free += max(0, (host.number("/proc/sys/vm/nr_overcommit_hugepages") or 0) - memory.get("HugePages_Surp", 0))
    free_mib = free * page_kib >> 10
    wanted = max(1, (_WANTED_MIB << 10) // page_kib)
    if free_mib < _LEAST_MIB:
        found = f"{total} reserved, {free_mib} MiB of them free" if total else "none is reserved"
        command = f"echo {total + wanted} > {_HUGEPAGES}"
        kept = ""
        if host.is_kept(_HUGEPAGES):
            kept, command = f". On the container's host, as root: {command}", ""
        if asked == "hugepages":
            text = f"{found}: AIFLOW_MEMORY=hugepages needs {_LEAST_MIB} MiB{kept}"
            yield broken(text, command, as_root=not kept)
        else:
            yield better(f"{found}: aiflow runs without them, slower{kept}", command, as_root=not kept)
        return
    size = f"{page_kib >> 20}GB" if page_kib >> 20 else f"{page_kib >> 10}MB"
    granted = host.cgroup_limit("hugetlb", f"hugetlb.{size}.max", f"hugetlb.{size}.limit_in_bytes")
    if granted is not None and granted[0] < memory_mib() << 20:
        limit, path = granted
        text = f"{free_mib} MiB are free, but this process's cgroup grants {limit >> 20} MiB: aiflow goes without them"
        if host.is_kept(path):
            size = size.replace("B", "i")
            yield better(f"{text}. Its host must grant more; in Kubernetes, set resources.limits.hugepages-{size}")
        else:
            yield better(text, f"echo {_none(path.name)} > {host.shown(path)}", as_root=True)
        return
    yield ok(f"{free_mib} MiB are free, in pages of {size}")


def memlock(host: Host) -> Iterator[Finding]:
    """The limit of locked memory, which vfio needs for all memory that a card reaches."""
    limit = host.limit("Max locked memory")
    if limit is None:
        yield ok("unlimited")
    elif host.may(CAP_IPC_LOCK):
        yield ok(f"ulimit -l is {limit >> 10} KiB, which does not bind this process (CAP_IPC_LOCK)")
    elif limit >> 20 >= memory_mib():
        yield ok(f"ulimit -l is {limit >> 10} KiB, enough for DPDK's heap of {memory_mib()} MiB")
    elif not host.cards_for_vfio():
        yield ok(f"ulimit -l is {limit >> 10} KiB. Only cards behind vfio-pci need more, and there is none")
    else:
        bound = [card for card in host.dpdk_cards() if card.driver == "vfio-pci" and host.has_file_of(card)]
        text = f"ulimit -l is {limit >> 10} KiB, and a card behind vfio-pci needs {memory_mib()} MiB"
        command = "prlimit --pid $$ --memlock=unlimited:unlimited"
        if host.is_bound("Max locked memory"):
            of_pod = "runAsUser: 0 and the capability IPC_LOCK in its securityContext"
            text, command = f"{text}{started_with('--ulimit memlock=-1', of_pod)}", ""
        else:
            text += f". {_for_good('memlock')}"
        as_root = bool(command)
        yield broken(text, command, as_root=as_root) if bound else better(text, command, as_root=as_root)


def limits(host: Host) -> Iterator[Finding]:
    """Limits of this process: address space, open files and file sizes."""
    found = False
    space, files = host.limit("Max address space"), host.limit("Max open files")
    if space is not None and space >> 20 < _ADDRESS_MIB:
        found = True
        text = f"ulimit -v is {space >> 10} KiB, and DPDK does not start below {_ADDRESS_MIB} MiB"
        yield broken(text, "prlimit --pid $$ --as=unlimited:unlimited", as_root=True)
    elif space is not None:
        found = True
        text = f"ulimit -v is {space >> 10} KiB: aiflow goes without hugepages, and memory= must fit into it"
        yield better(text, "prlimit --pid $$ --as=unlimited:unlimited", as_root=True)
    if files is not None and files < _FILES:
        found = True
        text = f"ulimit -n is {files} open files, and each local port of a peer takes several"
        if host.is_bound("Max open files", 4 * _FILES):
            yield better(f"{text}{started_with(f'--ulimit nofile={4 * _FILES}')}")
        else:
            yield better(text, f"prlimit --pid $$ --nofile={4 * _FILES}:{4 * _FILES}", as_root=True)
    size = host.limit("Max file size")
    if size is not None and size >> 20 < _LEAST_MIB:
        found = True
        text = f"ulimit -f is {size >> 10} KiB: no shared memory of a useful size, and no large file, can be made"
        if host.is_bound("Max file size"):
            yield broken(f"{text}{started_with('--ulimit fsize=-1')}")
        else:
            yield broken(text, "prlimit --pid $$ --fsize=unlimited:unlimited", as_root=True)
    if not found:
        yield ok(f"address space and file sizes are unlimited, {files if files is not None else 'all'} files at a time")


def cgroup_memory(host: Host) -> Iterator[Finding]:
    """The memory that this process's cgroups grant."""
    granted = host.cgroup_limit("memory", "memory.max", "memory.limit_in_bytes")
    if granted is None:
        yield ok("no limit")
        return
    limit, path = granted
    if limit >> 20 >= _RUN_MIB:
        yield ok(f"{limit >> 20} MiB ({host.shown(path)})")
        return
    text = f"this process's cgroup grants {limit >> 20} MiB, and the kernel kills it beyond"
    command, advice = f"echo {_none(path.name)} > {host.shown(path)}", ""
    if host.is_kept(path):
        command, advice = "", started_with("--memory=2g", "resources.limits.memory")
    if limit >> 20 < memory_mib():
        yield broken(f"{text}: DPDK's heap alone has {memory_mib()} MiB{advice}", command, as_root=not advice)
    else:
        text += f": pass a memory= that fits; the default is 1 GiB{advice}"
        yield better(text, command, as_root=not advice)


def _none(file: str) -> str:
    """The word for no limit in a cgroup's file: that of version 2, or of version 1."""
    return "-1" if file.endswith("limit_in_bytes") else "max"


def _for_good(what: str) -> str:
    return f"The command holds for this shell; for good: {what} in /etc/security/limits.conf"
