"""Why DPDK did not open a network card, and what to do: in words, from its log."""

from __future__ import annotations

import errno

from aiflow import _eal_args

__all__ = ["card_advice"]


def card_advice(log: str, mode: str | None) -> str:
    """What keeps DPDK from opening a card; "" where the log has no known fault.

    Parameters
    ----------
    log : str
        What DPDK has logged since the attempt began.
    mode : {"hugepages", "no-huge", None}
        The EAL's memory mode.
    """
    heap = "the hugepages in use" if mode == "hugepages" else f"DPDK's heap of {_eal_args.memory_mib()} MiB"
    if "DMA remapping" in log and f"error {errno.ENOSPC} " in log:
        return (
            f"the kernel maps each page of {heap} for the card, and no more than "
            "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit says: set AIFLOW_EAL_MEMORY lower (248MiB fit "
            "into the default limit), use hugepages, or raise that limit as root"
        )
    if "DMA remapping" in log and f"error {errno.ENOMEM} " in log:
        return (
            f"the kernel locks {heap} in memory for the card, and this process may not lock as much: raise ulimit -l "
            "(LimitMEMLOCK= of a systemd unit, memlock in /etc/security/limits.conf)"
        )
    if "IOVA mode" in log:
        return (
            "without an IOMMU (uio_pci_generic, igb_uio, vfio's no-IOMMU mode), or with one of fewer than 48 address "
            "bits, a card needs hugepages: as root, sysctl vm.nr_hugepages=256, and run as root without "
            "AIFLOW_MEMORY=no-huge. Or bind it to vfio-pci (aiflow ports bind), with the IOMMU enabled (intel_iommu=on "
            "or amd_iommu=on on the kernel's command line)"
        )
    if "Device or resource busy" in log:
        return "another process has the card open: end that one, or take another card"
    if "is not viable" in log:
        return (
            "another device of its IOMMU group is bound to another driver: give that one to vfio-pci, too (as root: "
            "aiflow ports bind DBDF)"
        )
    if "VFIO" in log and "not loaded" in log:
        return "vfio-pci was loaded after this process had started DPDK: start the process again"
    return ""
