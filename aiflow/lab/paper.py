"""Figures published in the source paper, from four hosts with 1 Gbit/s ports, for comparison."""

from __future__ import annotations

__all__ = ["FIG6_SHARE", "FIG6_SPEEDUP", "FIG7_LOSS_RATIO", "FIG8_GAIN", "header_bound"]

FIG6_SHARE = {1: 0.6882, 2: 0.7362, 4: 0.7721, 8: 0.7947}
"""Fig. 6: share of the line rate by ports in parallel."""

FIG6_SPEEDUP = {1: 1.0, 2: 2.13, 4: 4.49, 8: 9.23}
"""Fig. 6: speed-up over one port."""

FIG7_LOSS_RATIO = 0.2191
"""Fig. 7: loss under reverse flow control at 2048 elements, relative to that under a fixed gap."""

FIG8_GAIN = 0.1202
"""Fig. 8: gain of two switches over one at 4096 elements."""


def header_bound(frame_size: int = 1514) -> float:
    """Return the maximum payload share of the line: the rest are headers (14 Ethernet, 20 Table 1, 20 transport)."""
    return (frame_size - 54) / frame_size
