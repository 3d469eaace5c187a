"""Mbufs that are in use, and that all of them come back."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wait import Deadline


def mbufs_out() -> dict[str, int]:
    """Mbufs in use, by pool, without the pools that have none; starts no EAL."""
    eal = sys.modules.get("aiflow._eal")
    return {pool.name: pool.in_use for pool in eal.mempools() if pool.in_use} if eal is not None else {}


@contextmanager
def everything_returned() -> Iterator[None]:
    """At its end every mbuf of every pool of this process comes back before the deadline."""
    yield
    deadline = Deadline()
    while True:
        gc.collect()
        if not (out := mbufs_out()):
            return
        deadline.check(f"mbufs are still out: {out}")
        time.sleep(0.01)
