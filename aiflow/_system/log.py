"""The loggers of this package, below ``aiflow``. A program that sets up no logging sees nothing of them."""

from __future__ import annotations

import logging

__all__ = ["logger"]

logging.getLogger("aiflow").addHandler(logging.NullHandler())  # else Python prints warnings to stderr


def logger(room: str) -> logging.Logger:
    """The logger ``aiflow.ROOM``: ``dpdk`` for DPDK's own lines, ``eal`` for its start, ``ports``."""
    return logging.getLogger(f"aiflow.{room}")
