"""The system's hugepages, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")


@contextlib.contextmanager
def hugepages(count: int) -> Iterator[None]:
    """The system with `count` hugepages; skips where the kernel gives none."""
    before = HUGEPAGES.read_text()
    try:
        HUGEPAGES.write_text(str(count))
        if int(HUGEPAGES.read_text()) != count or hugepages_free() != count:
            pytest.skip(f"there are no {count} free hugepages, or another program takes them")
        yield
    finally:
        HUGEPAGES.write_text(before)


def hugepages_free() -> int:
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free"))
    return int(line.split()[1])
