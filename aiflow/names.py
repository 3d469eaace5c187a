"""Names of ``local:`` endpoints on this host, for scripts: which are taken, and where they lie.

>>> import aiflow.names
>>> list(aiflow.names.live_names())  # no receiver is here
[]
"""

from __future__ import annotations

from collections.abc import Iterator

from aiflow._ports.registry import live
from aiflow._ports.runtime_dir import runtime_directory

__all__ = ["live_names", "runtime_directory"]


def live_names() -> Iterator[tuple[str, int]]:
    """Names of this user that have a receiver on this host: (endpoint, process id)."""
    for name in live():
        yield name.endpoint, name.pid
