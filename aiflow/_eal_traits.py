"""What the drivers of virtual devices are like."""

from __future__ import annotations

__all__ = ["OF_A_CARD", "TRAITS", "may_lend"]

TRAITS = {
    "net_memif": (True, False, True, True, True),
    "net_ring": (False, False, True, False, True),
    "net_vhost": (False, False, True, True, True),
    "net_virtio_user": (False, False, True, False, True),
    "net_af_packet": (False, True, False, True, True),
    "net_af_xdp": (False, True, False, True, False),
}
"""By driver: the fields ``gated``, ``kick``, ``point_to_point``, ``copies`` and ``multi_segs`` of `Port`."""

OF_A_CARD = (False, False, False, False, False)
"""The same fields of any other driver."""

_LEAST_TO_LEND = 4096  # bytes of a frame; smaller ones are copied, which costs less
_OTHER_MEMORY = ("net_mlx5", "mlx5_pci", "net_mlx4", "net_mana", "net_nbl", "net_ntnic")
# They do not use DPDK's own VFIO container.


def may_lend(driver: str, frame_size: int | None) -> bool:
    """Whether a driver could read payloads from arrays of `aiflow.empty`, and gains by it.

    Parameters
    ----------
    driver : str
    frame_size : int or None
        As asked for; None for the frames of the usual MTU.
    """
    return driver not in TRAITS and driver not in _OTHER_MEMORY and (frame_size or 0) > _LEAST_TO_LEND
