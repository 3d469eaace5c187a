"""``aiflow doctor`` on this machine: its commands mend what it names, in namespaces, cgroups and limits of ours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netns import Net
from subprocesses import environment

from aiflow._system.limits import may

CAP_SYS_RESOURCE = 24
BY_ENGINE = "start the container with"
DOCTOR = (sys.executable, "-m", "aiflow", "doctor")


def examined(*prefix: str, fix: bool = False, code: int = 0, **variables: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each check."""
    words = [*prefix, *DOCTOR, "--json", *(["--fix"] if fix else [])]
    done = subprocess.run(words, env=environment(**variables), capture_output=True, text=True, timeout=100)
    assert done.returncode == code, (done.stdout, done.stderr)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout)["checks"]:
        rows.setdefault(row["check"], []).append(row)
    return rows


def test_a_machine_with_nothing_still_ends_with_a_round_trip() -> None:
    done = subprocess.run(DOCTOR, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    last = "".join(done.stdout.splitlines()[-2:])
    assert "round trip" in last
    assert "is identical" in " ".join(last.split())
    for named in ("hugepages", "memlock", "rights", "NIC binding", "runtime directory"):
        assert named in done.stdout


def test_the_hugepages_of_this_machine_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIFLOW_MEMORY", raising=False)
    rows = examined()
    for check in ("memlock", "rights"):
        assert all(row["state"] == "ok" or row["command"] or BY_ENGINE in row["text"] for row in rows[check])
    (row,) = rows["hugepages"]
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if int(memory.get("HugePages_Total", "0")) == 0:
        assert row["state"] == "could be better"
        said = row["command"] or row["text"]  # the text says it where a container may not write the file
        assert said.endswith(" > /proc/sys/vm/nr_hugepages") or "kernel has none" in row["text"]
    (row,) = examined(AIFLOW_MEMORY="no-huge")["hugepages"]
    assert row["state"] == "ok"


def mended(command: str) -> str:
    """A shell that lowers a limit of its own, then runs a command, then the doctor."""
    return f"{command}; exec {' '.join(DOCTOR)} --json"


def row_of(shell: str, check: str, code: int) -> dict[str, Any]:
    done = subprocess.run(["sh", "-c", shell], env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == code, (done.stdout, done.stderr)
    (row,) = (row for row in json.loads(done.stdout)["checks"] if row["check"] == check)
    return dict(row)


def test_a_limit_of_open_files_is_named_and_the_command_raises_it() -> None:
    lowered = "ulimit -S -n 200"
    row = row_of(mended(lowered), "limits", 0)
    assert row["state"] == "could be better"
    assert "200 open files" in row["text"]
    if os.geteuid() == 0:
        assert row_of(mended(f"{lowered}; {row['command']}"), "limits", 0)["state"] == "ok"


def test_a_limit_of_address_space_is_broken_and_the_round_trip_says_so() -> None:
    lowered = "ulimit -S -v 400000"
    row = row_of(mended(lowered), "limits", 1)
    assert row["state"] == "broken"
    assert "ulimit -v is 400000 KiB" in row["text"]
    assert row_of(mended(lowered), "round trip", 1)["state"] == "broken"
    if os.geteuid() == 0:
        assert row_of(mended(f"{lowered}; {row['command']}"), "limits", 0)["state"] == "ok"


@pytest.mark.root
def test_memlock_is_named_and_the_command_raises_it() -> None:
    """Without CAP_IPC_LOCK, with which the limit does not count."""
    drop = "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock"
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    doctor = f"exec {drop} {' '.join(DOCTOR)} --json"
    row = row_of(f"ulimit -l 64; {doctor}", "memlock", 0)
    assert row["state"] == "could be better"
    assert "ulimit -l is 64 KiB" in row["text"]
    if not may(CAP_SYS_RESOURCE):
        pytest.skip("it is named; but the root of this machine may not raise limits (CAP_SYS_RESOURCE)")
    assert row_of(f"ulimit -l 64; {row['command']}; {doctor}", "memlock", 0)["state"] == "ok"


@pytest.mark.root
def test_rights_are_named_and_the_command_gives_them() -> None:
    prefix = "setpriv --securebits=+noroot --inh-caps=-all --ambient-caps=-all"  # as a user has none, with a full bound
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    row = row_of(f"exec {prefix} {' '.join(DOCTOR)} --json", "rights", 0)
    assert row["state"] == "could be better"
    assert row["command"].startswith("sudo setpriv ")
    assert row["command"].endswith(" bash")
    given = row["command"].removeprefix("sudo ").removesuffix(" bash")  # root needs no sudo
    assert row_of(f"exec {given} {' '.join(DOCTOR)} --json", "rights", 0)["state"] == "ok"


CONTAINED = """
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
exec setpriv --bounding-set=-net_admin --inh-caps=-all "$@"
"""


@pytest.mark.root
def test_where_the_kernel_denies_what_a_container_is_denied_no_command_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Namespaces as an engine makes them, with read-only sysctls; an engine itself cannot be had here."""
    monkeypatch.delenv("AIFLOW_MEMORY", raising=False)
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("needs unshare and setpriv")
    contained = ("unshare", "--mount", "--pid", "--fork", "sh", "-ec", CONTAINED, "sh")
    rows = examined(*contained, KUBERNETES_SERVICE_HOST="10.0.0.1")
    (row,) = rows["rights"]
    assert "no CAP_NET_ADMIN" in row["text"]
    assert f"{BY_ENGINE} --user 0 --cap-add NET_ADMIN" in row["text"]
    assert row["command"] is None
    (row,) = rows["hugepages"]
    if row["state"] != "ok":
        assert row["command"] is None
        assert "On the container's host" in row["text"] or "kernel has none" in row["text"]
    assert [row["state"] for row in rows["round trip"]] == ["ok"]


@pytest.mark.root
def test_links_are_named_and_their_commands_mend_them(net: Net) -> None:
    here, there = net.namespace("here"), net.namespace("there")
    net.veth(here, "w0", there, "w1")

    def links() -> list[dict[str, Any]]:
        return [row for row in examined(*here.prefix)["links"] if "w0" in row["text"]]

    def fault(words: str) -> str:
        (row,) = (row for row in links() if words in row["text"])
        assert row["state"] != "ok"
        return str(row["command"])

    assert [row["state"] for row in links()] == ["ok"]
    here.ip("link", "set", "dev", "w0", "mtu", "1280")
    here.run("sh", "-c", fault("the MTU is 1280"))
    assert [row["state"] for row in links()] == ["ok"]
    here.take_down("w0")
    here.run("sh", "-c", fault("w0 is down"))
    assert [row["state"] for row in links()] == ["ok"]
    there.take_down("w1")
    assert "ethtool w0" in fault("no carrier")
    there.bring_up("w1")
    assert [row["state"] for row in links()] == ["ok"]


@contextlib.contextmanager
def cgroup(controller: str) -> Iterator[Path]:
    """A cgroup of this test's own; version 1 or 2."""
    from aiflow._system.limits import cgroups

    parent = next(cgroups(controller), None)
    if parent is None:
        pytest.skip(f"no cgroup of {controller} here")
    path = parent / f"aiflow-doctor-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield path
    finally:
        path.rmdir()


@pytest.mark.root
@pytest.mark.parametrize(
    ("controller", "check", "words", "files"),
    [
        ("cpu", "cgroup CPU", "grants 0.5 cores", {"cpu.max": "50000 100000", "cpu.cfs_quota_us": "50000"}),
        (
            "memory",
            "cgroup memory",
            "grants 600 MiB",
            {"memory.max": str(600 << 20), "memory.limit_in_bytes": str(600 << 20)},
        ),
    ],
)
def test_a_cgroups_limit_is_named_and_the_command_lifts_it(
    controller: str, check: str, words: str, files: dict[str, str]
) -> None:
    with cgroup(controller) as path:
        limited = [name for name in files if (path / name).exists()]
        if not limited:
            pytest.skip(f"{controller} is not delegated to {path.parent}")
        (path / limited[0]).write_text(files[limited[0]])
        enter = f"echo $$ > {path}/cgroup.procs; exec {' '.join(DOCTOR)} --json"
        row = row_of(enter, check, 0)
        assert row["state"] == "could be better"
        assert words in row["text"]
        subprocess.run(["sh", "-c", row["command"]], check=True)
        assert row_of(enter, check, 0)["state"] == "ok"


def test_fix_removes_what_killed_receivers_left_and_says_so() -> None:

    with tempfile.TemporaryDirectory(prefix="af-", dir="/tmp") as directory:
        left = Path(directory) / "local-dead"

        def plant() -> None:
            left.mkdir()
            (left / "lock").write_text("1\n")

        plant()
        (row,) = (row for row in examined(AIFLOW_RUNTIME_DIR=directory)["stale files"] if directory in row["text"])
        assert row["command"] == "aiflow doctor --fix"
        assert not left.exists()  # the receiver of the round trip has removed it
        plant()
        done = subprocess.run(
            [*DOCTOR, "--fix"],
            env=environment(AIFLOW_RUNTIME_DIR=directory),
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert f"--fix: removed from {directory}: local-dead" in done.stdout
        assert not left.exists()
