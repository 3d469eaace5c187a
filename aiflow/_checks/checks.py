"""The checks of ``aiflow doctor``, in the order of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from aiflow._checks import card_checks, cpu_checks, directory_checks, link_checks, memory_checks, software_checks
from aiflow._checks.finding import Finding, better, broken
from aiflow._checks.host import Host
from aiflow._checks.round_trip import round_trip

__all__ = ["CHECKS", "Check"]


class Check(NamedTuple):
    """One check.

    Attributes
    ----------
    name : str
    looks_at : str
        In a few words, for the documents.
    find : callable
        Takes the host, and yields findings.
    is_vital : bool
        Whether no run works where it cannot look.
    """

    name: str
    looks_at: str
    find: Callable[[Host], Iterable[Finding]]
    is_vital: bool = False

    def findings(self, host: Host) -> Iterator[Finding]:
        """Its findings; what it cannot look at is one, too: one check must not hide the others."""
        try:
            yield from self.find(host)
        except Exception as exc:
            yield (broken if self.is_vital else better)(f"this could not be looked at: {type(exc).__name__}: {exc}")


CHECKS = (
    Check("kernel", "versions of Linux and Python", software_checks.kernel),
    Check("DPDK", "its version and drivers", software_checks.dpdk),
    Check("hugepages", "reserved, free and granted", memory_checks.hugepages),
    Check("memlock", "memory that may be locked, for vfio", memory_checks.memlock),
    Check("limits", "address space, open files, file size", memory_checks.limits),
    Check("cgroup memory", "memory that a container may use", memory_checks.cgroup_memory),
    Check("rights", "capabilities", card_checks.rights),
    Check("IOMMU", "the IOMMU and vfio-pci", card_checks.iommu),
    Check("NIC binding", "the driver of each card, and access to it", card_checks.cards),
    Check("links", "carrier, speed, duplex and MTU", link_checks.links),
    Check("NUMA", "the nodes of cards and of this process", cpu_checks.numa),
    Check("isolated cores", "cores for ports that are polled without a pause", cpu_checks.isolated),
    Check("governor", "the frequency of the CPUs", cpu_checks.governor),
    Check("cgroup CPU", "processor time that a container may use", cpu_checks.cgroup_cpu),
    Check("runtime directory", "names of local endpoints", directory_checks.directory),
    Check("peers", "whether other processes use the same one", directory_checks.peers),
    Check("stale files", "what killed processes left", directory_checks.stale_files),
    Check("keys", "whether frames are encrypted and authenticated", software_checks.keys),
    Check("round trip", "1 MiB over local:, between two processes", round_trip, is_vital=True),
)
