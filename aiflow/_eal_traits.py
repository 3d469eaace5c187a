"""What the drivers of virtual devices are like."""

from __future__ import annotations

__all__ = ["OF_A_CARD", "TRAITS"]

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
