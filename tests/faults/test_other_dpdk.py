"""Limits of newer versions of DPDK, and what replaces the missing feature."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from subprocesses import run

LONGEST = 40


@pytest.fixture
def long_directory() -> Iterator[Path]:
    """A runtime directory with as long a path as one may have."""
    directory = Path(tempfile.mkdtemp(prefix="aiflow-", dir="/tmp"))
    directory /= "r" * (LONGEST - len(f"{directory}/"))
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory.parent)


@pytest.mark.parametrize("driver", ["memif", "vhost"])
def test_the_longest_paths_are_no_trouble(driver: str, long_directory: Path) -> None:
    """24.11's rte_eal_hotplug_add takes no more than 127 bytes of a device's arguments."""
    code = """
        import aiflow
        name = "local:" + "n" * 20 + "*3"
        with aiflow.Receiver(name) as rx, aiflow.Sender(name) as tx:
            ticket = tx.send([b"x" * 100_000], wait=False)
            print(rx.recv(timeout=30)[0].nbytes, ticket.result(30).elements)
    """
    assert run(code, AIFLOW_RUNTIME_DIR=str(long_directory), AIFLOW_LOCAL=driver) == "100000 1\n"


@pytest.mark.parametrize("memory", ["no-huge", ""])
def test_the_environment_starts(memory: str) -> None:
    """25.11 refuses --single-file-segments beside --no-huge."""
    code = """
        import aiflow
        with aiflow.pair() as (tx, rx):
            print(tx.send([b"x"], wait=False) and rx.recv(timeout=30)[0].tobytes())
    """
    assert run(code, AIFLOW_MEMORY=memory) == "b'x'\n"
