"""What the source paper published, on four hosts with 1 Gbit/s ports: the figures that ours are drawn beside."""

from __future__ import annotations

__all__ = ["FIG6_SHARE", "FIG6_SPEEDUP", "FIG7_LOSS_RATIO", "FIG8_GAIN", "header_bound"]

FIG6_SHARE = {1: 0.6882, 2: 0.7362, 4: 0.7721, 8: 0.7947}
"""Fig. 6: share of the line rate by ports in parallel."""

FIG6_SPEEDUP = {1: 1.0, 2: 2.13, 4: 4.49, 8: 9.23}
"""And how much faster than over one port."""

FIG7_LOSS_RATIO = 0.2191
"""Fig. 7: loss under reverse flow control at 2048 elements, in that under a fixed gap."""

FIG8_GAIN = 0.1202
"""Fig. 8: what two switches gain over one at 4096 elements."""


def header_bound(frame_size: int = 1514) -> float:
    """Share of the line that payload can have: what our headers (14 Ethernet, 20 Table 1, 20 transport) leave."""
    return (frame_size - 54) / frame_size
