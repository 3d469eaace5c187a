"""`aiflow send` and `aiflow recv` as programs, between two processes over a local port."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import DEADLINE, content, programs, unnamed_bytes
from wait import wait_for


@pytest.fixture
def aiflow() -> Iterator[Any]:
    """Start programs; none survives the test."""
    with programs() as start:
        yield start


@pytest.fixture
def endpoint() -> str:
    """A local endpoint that no other test uses."""
    return f"local:cli-{os.getpid()}-{secrets.token_hex(4)}"


def has_started(pid: int) -> bool:
    """Does DPDK run in that process, as it does from the first port on? Its interrupt thread tells."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            if "intr" in (task / "comm").read_text():
                return True
    return False


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with names and sizes of many kinds."""
    root = tmp_path / "source"
    (root / "sub" / "deep er").mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "one").write_bytes(b"1")
    (root / "ünïcode ☃.jpg").write_bytes(os.urandom(270_000))
    (root / "sub" / "-rf").write_bytes(os.urandom(1499))
    (root / "sub" / "new\nline").write_bytes(os.urandom(64))
    (root / "sub" / "deep er" / "~x%20..").write_bytes(os.urandom(5_000_000))
    (root / ("n" * 250)).write_bytes(os.urandom(100))
    return root


def test_a_tree_arrives_with_its_names(aiflow: Any, endpoint: str, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recv = aiflow("recv", out, "--ports", f"{endpoint}*2", "--json")
    sent = aiflow("send", tree, "--ports", f"{endpoint}*2", "--json").ends(0)
    received = recv.ends(0)
    assert content(out) == content(tree)
    assert sent["files"] == received["files"] == 7
    assert sent["nbytes"] == received["nbytes"] == sum(map(len, content(tree).values()))
    assert sent["not_delivered"] == {}
    assert received["renamed"] == []
    assert sum(row["nbytes"] for row in sent["slices"]) == sent["nbytes"]
    assert len(sent["ports"]) == 2


def test_text_for_people_goes_to_stdout_and_the_rest_to_stderr(
    aiflow: Any, endpoint: str, tree: Path, tmp_path: Path
) -> None:
    recv = aiflow("recv", tmp_path / "out", "--ports", endpoint, "--slices", "1")
    stdout, stderr = aiflow("send", tree, "--ports", endpoint).text(0)
    assert "sent 7 files" in stdout
    assert stderr == "", "no bar without a terminal"
    stdout, _ = recv.text(0)
    assert "wrote 7 files" in stdout


def test_the_sender_may_start_first(aiflow: Any, endpoint: str, tree: Path, tmp_path: Path) -> None:
    send = aiflow("send", tree, "--ports", endpoint, "--json")
    wait_for(lambda: has_started(send.process.pid), "the sender's DPDK", DEADLINE)
    recv = aiflow("recv", tmp_path / "out", "--ports", endpoint, "--json")
    send.ends(0)
    recv.ends(0)
    assert content(tmp_path / "out") == content(tree)


def test_files_larger_than_a_slice_are_put_together_again(
    aiflow: Any, endpoint: str, tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recv = aiflow("recv", out, "--ports", endpoint, "--json", "--memory", "8MiB")
    sent = aiflow("send", tree, "--ports", endpoint, "--slice-bytes", "1MiB", "--json").ends(0)
    received = recv.ends(0)
    assert content(out) == content(tree)
    assert len(sent["slices"]) == received["slices"] >= 6
    assert max(row["nbytes"] for row in sent["slices"]) <= 1 << 20
    assert received["files"] == 7


def test_hostile_names_stay_inside(aiflow: Any, endpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "world" / "out"
    (tmp_path / "world" / "outside").mkdir(parents=True)
    out.mkdir()
    (out / "link").symlink_to("../outside")
    names = [
        "../escaped",
        "/tmp/aiflow-escaped",
        "link/escaped",
        "a\0b",
        "",
        "..",
        "x" * 300,
        "a",
        "a/b",
        "same",
        "same",
    ]
    recv = aiflow("recv", out, "--ports", endpoint, "--slices", "1", "--json")
    sender = (
        "import aiflow, json, sys\n"
        "with aiflow.Sender(sys.argv[1]) as tx:\n"
        "    tx.send([(name, str(n).encode()) for n, name in enumerate(json.loads(sys.argv[2]))], timeout=30)\n"
    )
    subprocess.run([sys.executable, "-c", sender, endpoint, json.dumps(names)], check=True, timeout=DEADLINE)
    received = recv.ends(0)
    assert received["files"] == len(names)
    assert sorted(content(out).values()) == sorted(str(n).encode() for n in range(len(names)))
    assert sorted(path.name for path in (tmp_path / "world").iterdir()) == ["out", "outside"]
    assert list((tmp_path / "world" / "outside").iterdir()) == []
    assert not Path("/tmp/aiflow-escaped").exists()
    assert ["../escaped", "%2E%2E/escaped"] in received["renamed"]


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace (unshare -rm)")
def test_fault_56_a_full_disk_is_said_and_ends_with_1(aiflow: Any, endpoint: str, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tree / "small").write_bytes(bytes(1000))
    mount = (
        "unshare",
        "-rm",
        "sh",
        "-c",
        f"mount -t tmpfs -o size=1m none '{out}'; \"$@\"; c=$?; ls -AR '{out}' >&2; exit $c",
        "sh",
    )
    recv = aiflow("recv", out, "--ports", endpoint, "--json", prefix=mount)
    aiflow("send", tree, "--ports", endpoint, "--json").process.wait(DEADLINE)
    stdout, stderr = recv.text(1)
    error = json.loads(stdout)["error"]
    assert error["type"] == "WriteError"
    assert "disk full: sub/deep er/~x%20.. (5000000 bytes)" in error["message"]
    assert ".part" not in stderr  # nothing half-written is left


def test_bad_usage_ends_with_2_and_a_document(aiflow: Any, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for arguments in (
        ("send", tmp_path / "missing", "--ports", endpoint),
        ("send", tmp_path / "file", "--ports", endpoint),
        ("send", tmp_path, "--ports", "nonsense:x"),
        ("send", tmp_path, "--ports", f"{endpoint}*99"),
        ("send", tmp_path, "--ports", endpoint, "--slice-bytes", "many"),
        ("send", tmp_path),
        ("recv", tmp_path / "missing" / "out", "--ports", endpoint),
        ("recv", tmp_path / "file", "--ports", endpoint),
        ("recv", tmp_path, "--ports", endpoint, "--slices", "0"),
        ("recv", tmp_path, "--ports", endpoint, "--sices", "1"),
        ("nosuchcommand",),
    ):
        document = aiflow(*arguments, "--json").ends(2)
        assert document["error"]["message"], arguments


def test_an_empty_directory_is_nothing_to_send(aiflow: Any, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert aiflow("send", tmp_path / "empty", "--ports", endpoint, "--json").ends(0)["files"] == 0


def test_without_a_receiver_a_timeout_ends_with_1(aiflow: Any, endpoint: str, tree: Path) -> None:
    document = aiflow("send", tree, "--ports", endpoint, "--timeout", "0.5", "--json").ends(1)
    assert document["error"]["type"] == "SliceTimeout"
    assert len(document["not_delivered"]) == 7
    assert document["files"] == 0


def test_without_a_sender_a_timeout_ends_with_1(aiflow: Any, endpoint: str, tmp_path: Path) -> None:
    document = aiflow("recv", tmp_path, "--ports", endpoint, "--timeout", "0.5", "--json").ends(1)
    assert document["error"]["type"] == "SliceTimeout"


def test_what_cannot_be_sent_is_named_and_the_rest_arrives(
    aiflow: Any, endpoint: str, tree: Path, tmp_path: Path
) -> None:
    arriving = content(tree)
    (tree / os.fsdecode(b"caf\xe9")).write_bytes(b"latin-1")
    recv = aiflow("recv", tmp_path / "out", "--ports", endpoint, "--json")
    sent = aiflow("send", tree, "--ports", endpoint, "--json").ends(1)
    recv.ends(0)
    assert list(sent["not_delivered"]) == ["caf\\udce9"]
    assert content(tmp_path / "out") == arriving


def test_a_second_receiver_of_the_same_name_is_refused(aiflow: Any, endpoint: str, tmp_path: Path) -> None:
    first = aiflow("recv", tmp_path / "a", "--ports", endpoint)
    first.says("receiving on")
    document = aiflow("recv", tmp_path / "b", "--ports", endpoint, "--json").ends(1)
    assert document["error"]["type"] == "PortError"
    assert first.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_waiting_receiver_is_interrupted_at_once(
    aiflow: Any, endpoint: str, tmp_path: Path, number: signal.Signals
) -> None:
    recv = aiflow("recv", tmp_path / "out", "--ports", endpoint)
    recv.says("receiving on")
    interrupted = time.monotonic()
    recv.process.send_signal(number)
    _, stderr = recv.text(130)
    assert time.monotonic() - interrupted < 20  # the end of an interpreter with DPDK in it included
    assert "interrupted" in stderr


def test_an_interrupt_while_a_module_is_imported_ends_with_130(tmp_path: Path) -> None:
    """An import may run exec(), as dataclasses do: CPython would end ``python -m`` by SIGINT, caught or not."""
    (tmp_path / "interrupted.py").write_text(
        """\
from aiflow.cli import app, main

def import_something(*_, **__):
    exec("raise KeyboardInterrupt")

app.run = lambda run=app.run: run(["recv"], invoke=import_something)
main()
"""
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, "-m", "interrupted"], env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert (ended.returncode, ended.stderr) == (130, "aiflow: interrupted\n")


def test_a_waiting_sender_is_interrupted_at_once(aiflow: Any, endpoint: str, tree: Path) -> None:
    send = aiflow("send", tree, "--ports", endpoint, "--json")
    wait_for(lambda: has_started(send.process.pid), "the sender's DPDK", DEADLINE)
    time.sleep(1)  # and it waits; if it does not yet, the test is only harder
    send.process.send_signal(signal.SIGINT)
    document = send.ends(130)
    assert document["error"]["message"] == "interrupted"
    assert len(document["not_delivered"]) == 7


def test_fault_43_a_killed_senders_half_file_is_removed_and_ends_with_1(
    aiflow: Any, endpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    with open(tmp_path / "source" / "big", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 << 30)  # more than can arrive before the kill, and no hole
    out = tmp_path / "out"
    recv = aiflow("recv", out, "--ports", endpoint, "--json")
    send = aiflow("send", tmp_path / "source", "--ports", endpoint, "--slice-bytes", "4MiB", "--json")
    wait_for(lambda: unnamed_bytes(recv.process.pid, out) > 4 << 20, "more than a part", DEADLINE)
    assert send.process.poll() is None
    send.process.kill()
    received = recv.ends(1)
    assert received["unfinished"] == ["big"]
    assert received["error"]["message"]
    assert list(out.iterdir()) == []


def test_ports_lists_what_can_be_used(aiflow: Any) -> None:
    document = aiflow("ports", "--json").ends(0)
    usable = {row["endpoint"].partition(":")[0]: row["usable"] for row in document["endpoints"]}
    assert {"local", "memif", "vhost", "ring", "af_packet", "af_xdp", "pci", "vdev"} <= usable.keys()
    assert usable["local"] is True
    assert all(row["note"] for row in document["endpoints"] if not row["usable"])
    stdout, _ = aiflow("ports").text(0)
    assert "local:NAME" in stdout


def test_fault_56_a_full_disk_below_stdout_ends_with_1() -> None:
    for arguments in (("ports", "--json"), ("ports",), ("--version",)):
        with open("/dev/full", "w") as full:
            run = subprocess.run(
                [sys.executable, "-m", "aiflow", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert run.returncode == 1, run.stderr
        assert "No space left on device" in run.stderr
        assert "Traceback" not in run.stderr


def test_version_and_help(aiflow: Any) -> None:
    stdout, _ = aiflow("--version").text(0)
    assert stdout.startswith("aiflow ")
    for command in ((), ("send",), ("recv",), ("ports",), ("demo",)):
        stdout, _ = aiflow(*command, "--help").text(0)
        assert "Usage: aiflow" in stdout


def test_importing_the_library_imports_no_part_of_the_command_line() -> None:
    script = (
        "import sys, aiflow; print([m for m in ('click', 'rich', 'typer', 'PIL', 'aiflow.cli') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
