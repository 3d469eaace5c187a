"""`aiflow doctor` on a kernel: each command that it names is run as it is, and the line is ok then.

Its round trip is left out: two processes take ten seconds to start here, and the other tests send slices.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import pytest

from aiflow._checks import checks

USER = 65534
VARIABLES = {"HOME": "/tmp", "AIFLOW_RUNTIME_DIR": "/tmp/user", "AIFLOW_EAL_MEMORY": "64MiB"}
ENVIRONMENT = {**os.environ, **VARIABLES, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
LOCKED_BYTES = 64 << 10
HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
HERE = Path(__file__).parent
Row = dict[str, Any]


def document() -> dict[str, Any]:
    """What `aiflow doctor --json` prints."""
    everything = checks.CHECKS
    checks.CHECKS = tuple(check for check in everything if check.name != "round trip")
    try:
        done = machine.aiflow("doctor", "--json")
    finally:
        checks.CHECKS = everything
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def row(rows: list[Row], check: str, words: str = "") -> Row:
    """The only row of a check with these words."""
    (found,) = (each for each in rows if each["check"] == check and words in each["text"])
    return found


def run_it(command: str) -> None:
    """Run a command as root, in a shell."""
    done = subprocess.run(["sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stderr)


def be_user() -> None:
    """Be an ordinary user, who may lock little memory."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LOCKED_BYTES, LOCKED_BYTES))
    os.environ.update(VARIABLES)
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)


@pytest.fixture
def hugepages() -> Iterator[None]:
    """As many as before."""
    before = HUGEPAGES.read_text()
    yield
    HUGEPAGES.write_text(before)


@pytest.fixture
def groups(cards: list[str]) -> Iterator[list[str]]:
    """The files of the cards' IOMMU groups, which are root's."""
    files = [str(machine.group(address)) for address in cards]
    yield files
    for file in files:
        os.chown(file, 0, 0)


def test_hugepages_and_a_card_of_the_kernels(card: str, hugepages: None) -> None:
    """As root. Pages that processes hold stay, and none is free."""
    HUGEPAGES.write_text("0")
    found = document()
    assert "net_e1000_igb" in found["build"]["drivers"]
    for check, words in (("hugepages", ""), ("NIC binding", card)):
        fault = row(found["checks"], check, words)
        assert (fault["state"], fault["as_root"]) == ("could be better", True)
        run_it(fault["command"])
    rows = document()["checks"]
    assert row(rows, "hugepages")["state"] == "ok"
    assert row(rows, "NIC binding", card)["state"] == "ok"
    assert machine.driver(card) == "vfio-pci"


def test_locked_memory_rights_and_the_cards_of_an_ordinary_user(cards: list[str], groups: list[str]) -> None:
    """The commands lead to a shell of the user, in which every line that they name is ok."""
    with multiprocessing.get_context("fork").Pool(1, be_user) as pool:
        rows = pool.apply(document)["checks"]
    memlock, rights = row(rows, "memlock"), row(rows, "rights")
    assert (memlock["state"], rights["state"]) == ("broken", "could be better")
    for address, group in zip(cards, groups, strict=True):
        fault = row(rows, "NIC binding", f"pci:{address}")
        assert (fault["state"], fault["command"]) == ("broken", f"chown {USER} {group}")
        run_it(fault["command"])
    # sudo is not installed here. What the user's shell puts into the command is known before root runs it.
    given = rights["command"].removeprefix("sudo ")
    for words in ('"$(id -u)"', '"$(id -g)"'):
        assert words in given
        given = given.replace(words, str(USER))
    look = f"{sys.executable} -c 'import guest_1_doctor as here, json; print(json.dumps(here.document()))'"
    done = subprocess.run(
        ["sh", "-c", f'ulimit -l {LOCKED_BYTES >> 10}; {memlock["command"]}; exec {given} -c "exec {look}"'],
        env={**ENVIRONMENT, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    rows = json.loads(done.stdout.splitlines()[-1])["checks"]
    assert [row(rows, check)["state"] for check in ("memlock", "rights")] == ["ok", "ok"]
    for address in cards:
        assert row(rows, "NIC binding", f"pci:{address}")["state"] == "ok"
