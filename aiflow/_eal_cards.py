"""Why DPDK did not open a network card, and what to do: in words, from its log."""

from __future__ import annotations

import errno

from aiflow import _eal_args

__all__ = ["CARD_IS_BUSY", "card_advice", "locked_memory_advice", "narrow_iommu_advice", "no_iommu_advice"]

CARD_IS_BUSY = "another process has the card open"
"""In the advice on a card that another process uses."""


def card_advice(log: str, mode: str | None) -> str:
    """What keeps DPDK from opening a card; "" where the log has no known fault.

    Parameters
    ----------
    log : str
        What DPDK has logged since the attempt began.
    mode : {"hugepages", "no-huge", None}
        The EAL's memory mode.
    """
    if "DMA remapping" in log and f"error {errno.ENOSPC} " in log:
        return (
            f"the kernel maps each page of {_heap(mode)} for the card, and no more than "
            "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit says: set AIFLOW_EAL_MEMORY lower (248MiB fit "
            "into the default limit), use hugepages, or raise that limit as root"
        )
    if "DMA remapping" in log and f"error {errno.ENOMEM} " in log:
        return locked_memory_advice(mode)
    if "IOVA mode" in log:
        return no_iommu_advice()
    if "Device or resource busy" in log:
        return f"{CARD_IS_BUSY}: end that one, or take another card"
    if "is not viable" in log:
        return (
            "another device of its IOMMU group is bound to another driver: the command `aiflow ports` says which, and "
            "what to do"
        )
    return ""


def locked_memory_advice(mode: str | None) -> str:
    """What to do if this process may not lock enough memory for a card; `mode` as for `card_advice`."""
    return (
        f"the kernel locks {_heap(mode)} in memory for the card, and this process may not lock as much: raise ulimit "
        "-l (LimitMEMLOCK= of a systemd unit, memlock in /etc/security/limits.conf)"
    )


def no_iommu_advice() -> str:
    """What to do if a card needs physical addresses, and this process does not know them."""
    return (
        "without an IOMMU (uio_pci_generic, igb_uio, vfio's no-IOMMU mode), or with one of fewer than 48 address bits, "
        "a card needs hugepages: as root, sysctl vm.nr_hugepages=256, and run as root without AIFLOW_MEMORY=no-huge. "
        "Or bind it to vfio-pci (aiflow ports bind), with the IOMMU enabled (intel_iommu=on or amd_iommu=on on the "
        "kernel's command line)"
    )


def narrow_iommu_advice() -> str:
    """What to do if a card needs physical addresses although an IOMMU isolates it."""
    return (
        "its IOMMU has fewer than 48 address bits, as many of Intel's, so the card needs root and hugepages: as root, "
        "sysctl vm.nr_hugepages=256, and run as root without AIFLOW_MEMORY=no-huge"
    )


def _heap(mode: str | None) -> str:
    return "the hugepages in use" if mode == "hugepages" else f"DPDK's heap of {_eal_args.memory_mib()} MiB"
