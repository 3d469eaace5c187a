"""Peers of one host find each other, part, and find each other again. Fault 54 (two receivers with one name)."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stalls import Stalls
from subprocesses import environment, run
from wait import wait_for

from aiflow import _eal
from aiflow._ports.messages import VERSION
from aiflow._ports.portset import PortSet
from aiflow._ports.registry import live
from aiflow._ports.runtime_dir import runtime_directory
from aiflow.errors import ConfigError, PortError


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    """A short path, as sockets need; for the whole module, since the memif socket in it stays open."""
    path = Path(f"/tmp/aiflow-test-{os.getpid()}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def directory(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Names of this test's own; nothing of them is left at its end."""
    path = runtime
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(path))
    yield path
    gc.collect()
    left = [entry.name for entry in path.glob("*") if not entry.name.startswith("sock-")] if path.exists() else []
    assert left == []


class Side:
    """A PortSet and what was attached to it."""

    def __init__(self, endpoints: str | list[str], role: str, frame_size: int | None = None) -> None:
        self.pools: list[_eal.Mempool] = []
        self.attached: list[tuple[_eal.Port, int]] = []
        self.detached: list[tuple[list[_eal.Port], int]] = []
        self.ports = PortSet(
            endpoints,
            role,
            pool_for=self.pool_for,
            attach=lambda port, peer: self.attached.append((port, peer)),
            detach=self.detach,
            frame_size=frame_size,
        )

    def pool_for(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> _eal.Mempool:
        self.pools = [pool for pool in self.pools if pool.in_use]  # DPDK's heap may be small: with few hugepages
        self.pools.append(_eal.Mempool("side", 2048, frame_size, socket_id, own_memory=not needs_eal_memory))
        return self.pools[-1]

    def detach(self, ports: list[_eal.Port], peer: int) -> None:
        assert all(port.is_open for port in ports), "detach comes before the ports are closed"
        self.detached.append((ports, peer))

    def up(self) -> list[_eal.Port]:
        return self.ports.ports()

    def hints(self) -> str:
        return "\n".join(self.ports.hints())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exc: object) -> None:
        self.ports.close()
        self.pools.clear()  # the garbage collector may come late
        assert self.up() == []
        assert len(self.attached) == sum(len(ports) for ports, _ in self.detached)
        assert not any(port.is_open for port, _ in self.attached)


DRIVERS = ["local", "memif", "vhost"]


@pytest.mark.parametrize("scheme", DRIVERS)
@pytest.mark.parametrize("first", ["sender", "receiver"])
def test_either_side_may_come_first_and_both_see_every_port(scheme: str, first: str) -> None:
    second = "receiver" if first == "sender" else "sender"
    with Side(f"{scheme}:demo*3", first) as one, Side(f"{scheme}:demo*3", second) as two:
        wait_for(lambda: len(one.up()) == 3 and len(two.up()) == 3, "three ports on each side")
        assert all(port.link()[0] and port.point_to_point for port in one.up() + two.up())
        assert {port.frame_size for port in one.up()} == {port.frame_size for port in two.up()}
        assert len({port.name for port in one.up()}) == 3
        macs = {port.mac for port in one.up() + two.up()}
        assert len(macs) == 6
        (row,) = one.ports.describe()
        assert row["driver"] == one.up()[0].driver


@pytest.mark.parametrize("scheme", DRIVERS)
def test_a_side_that_closes_is_let_go_of_and_the_next_one_found(scheme: str) -> None:
    with Side(f"{scheme}:demo*2", "receiver") as receiver:
        for turn in range(1, 4):
            with Side(f"{scheme}:demo*2", "sender") as sender:
                wait_for(lambda: len(sender.up()) == 2 and len(receiver.up()) == 2, f"connection {turn}")
            wait_for(lambda: not receiver.up(), f"hang-up {turn}")
            assert len(receiver.detached) == turn
    with Side(f"{scheme}:demo", "sender") as sender:
        for turn in range(1, 4):
            with Side(f"{scheme}:demo", "receiver") as receiver:
                wait_for(lambda: sender.up() and receiver.up(), f"connection {turn}")
            wait_for(lambda: not sender.up(), f"hang-up {turn}")
            assert len(sender.detached) == turn


def test_connections_leave_no_descriptor_or_thread_behind() -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = _eal.nb_ports()
    with Side("memif:demo", "receiver") as receiver:
        for turn in range(25):
            with Side("memif:demo", "sender") as sender:
                wait_for(lambda: sender.up() and receiver.up(), f"connection {turn}")
            wait_for(lambda: _eal.nb_ports() == before, f"hang-up {turn}")
            if turn == 2:  # the most of several looks: the interrupt thread makes its epoll set anew now and then
                looks = [(count(), time.sleep(0.01)) for _ in range(20)]
                files, threads = map(max, zip(*(look for look, _ in looks), strict=True))
        wait_for(lambda: count()[0] <= files and count()[1] <= threads, f"{files} descriptors, {threads} threads")


def test_several_senders_each_have_ports_and_a_number_of_their_own() -> None:
    with Side("local:many*2", "receiver") as receiver:
        senders = [Side("local:many*2", "sender") for _ in range(3)]
        try:
            wait_for(lambda: len(receiver.up()) == 6, "six ports")
            assert len({peer for _, peer in receiver.attached}) == 3
            assert len({port.name for port in receiver.up()}) == 6
        finally:
            for sender in senders:
                sender.__exit__()


def test_more_than_32_ports_in_all_are_refused_with_a_reason() -> None:
    with Side("local:full*12", "receiver"):
        with Side("local:full*12", "sender") as first:
            wait_for(lambda: len(first.up()) == 12, "the first sender")
            with Side("local:full*12", "sender") as second:
                wait_for(lambda: "room for 8 of the 12 ports" in second.hints(), "a refusal")
                assert second.ports.error is None  # there may be room soon
            assert len(first.up()) == 12
        with Side("local:full*12", "sender") as third:
            wait_for(lambda: len(third.up()) == 12, "a sender after the first has gone")


def test_the_smaller_frame_size_is_agreed() -> None:
    with (
        Side("local:size", "receiver", frame_size=9014) as receiver,
        Side("local:size", "sender", frame_size=4110) as sender,
    ):
        wait_for(lambda: receiver.up() and sender.up(), "a connection")
        assert receiver.up()[0].frame_size == sender.up()[0].frame_size == 4110


@pytest.mark.parametrize("frame_size", [64, 511, 65001, 70000])
def test_a_frame_size_no_path_can_have_is_refused(frame_size: int) -> None:
    with pytest.raises(ConfigError, match="512 to 65000"):
        Side("local:size", "sender", frame_size=frame_size)


def test_sides_with_other_drivers_learn_why_they_do_not_meet() -> None:
    with Other("local:other", "receiver", AIFLOW_LOCAL="vhost"), Side("local:other", "sender") as sender:
        wait_for(lambda: sender.ports.error, "a refusal")
        assert "use the same AIFLOW_LOCAL on both sides" in str(sender.ports.error)


RECEIVER = """
    import sys, time
    from aiflow import _eal
    from aiflow._ports.portset import PortSet
    def pool_for(frame_size, socket_id, nb_ports, needs_eal_memory):
        return _eal.Mempool('p', 1024, frame_size, own_memory=not needs_eal_memory)
    ports = PortSet(sys.argv[1], sys.argv[2], pool_for=pool_for, attach=lambda port, peer: print(port.name, flush=True),
                    detach=lambda ports, peer: print('gone', flush=True))
    print('ready', flush=True)
    sys.stdin.read()
    ports.close()
"""


class Other:
    """One side in a process of its own."""

    def __init__(self, endpoint: str, role: str, *prefix: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", textwrap.dedent(RECEIVER), endpoint, role],
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Other:
        assert self.line() == "ready"
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.end()
        finally:
            self.process.kill()
            self.process.wait()

    def end(self) -> int:
        """Let it close."""
        if self.process.poll() is None:
            self.process.communicate(timeout=60)
        return self.process.returncode


def test_fault_54_two_receivers_with_one_name() -> None:
    with Other("local:mine", "receiver") as other:
        with pytest.raises(PortError, match=f"another receiver has this name .process {other.process.pid}"):
            Side("local:mine", "receiver")
        with Side("memif:mine", "receiver"), Side("local:yours", "receiver"):
            pass  # other names are free
        assert ("local:mine", other.process.pid) in [(name.endpoint, name.pid) for name in live()]
        assert other.end() == 0
    with Side("local:mine", "receiver"), pytest.raises(PortError, match="another receiver"):
        Side("local:mine", "receiver")


@pytest.mark.parametrize("scheme", ["memif", "vhost"])
def test_the_name_of_a_killed_receiver_is_free_at_once_and_its_sockets_go(scheme: str, directory: Path) -> None:
    with Side(f"{scheme}:dead*2", "sender") as sender:
        for _ in range(3):
            with Other(f"{scheme}:dead*2", "receiver") as other:
                wait_for(lambda: len(sender.up()) == 2, "a connection")
                other.process.send_signal(signal.SIGKILL)
                other.process.wait()
                killed = time.monotonic()
                with Stalls() as stalls:
                    wait_for(lambda: not sender.up(), "the sender to let go")
                    assert time.monotonic() - killed < 1 + stalls.allowance
                left = [path.name for path in (directory / f"{scheme}-dead").iterdir()]
                assert "control" in left  # the fault took place
    with Side(f"{scheme}:dead*2", "receiver"):
        there = {path.name for path in (directory / f"{scheme}-dead").iterdir()}
        assert there == {"control", "lock"}
        assert len(list(directory.glob("sock-*.lock"))) <= 1  # our own
        assert len(list(directory.glob("sock-????????"))) <= 1


def test_what_a_killed_receiver_left_under_another_name_goes_too(directory: Path) -> None:
    with Other("local:gone", "receiver") as other:
        other.process.send_signal(signal.SIGKILL)
        other.process.wait()
        assert (directory / "local-gone" / "control").exists()
    with Side("local:alive", "receiver"), Other("memif:other", "receiver"):
        assert {path.name for path in directory.iterdir() if path.is_dir()} == {"local-alive", "memif-other"}


@pytest.mark.parametrize("scheme", ["memif", "vhost"])
def test_the_ports_of_a_killed_sender_are_removed_within_a_second(scheme: str) -> None:
    before = _eal.nb_ports()
    with Side(f"{scheme}:dead*2", "receiver") as receiver:
        for turn in range(1, 4):
            with Other(f"{scheme}:dead*2", "sender") as other:
                wait_for(lambda: len(receiver.up()) == 2, "a connection")
                other.process.send_signal(signal.SIGKILL)
                other.process.wait()
                killed = time.monotonic()
                with Stalls() as stalls:
                    wait_for(lambda: _eal.nb_ports() == before, "the ports to go")
                    assert time.monotonic() - killed < 1 + stalls.allowance
                assert len(receiver.detached) == turn
        assert all(pool.in_use == 0 for pool in receiver.pools)


def test_a_stopped_sender_does_not_hold_up_the_others() -> None:
    with Side("local:stopped", "receiver") as receiver, Other("local:stopped", "sender") as stopped:
        wait_for(receiver.up, "a connection")
        stopped.process.send_signal(signal.SIGSTOP)
        with Side("local:stopped", "sender") as sender:
            wait_for(lambda: sender.up() and len(receiver.up()) == 2, "the second sender")
        stopped.process.send_signal(signal.SIGCONT)
        wait_for(lambda: len(receiver.up()) == 1, "one sender left")


def test_a_stranger_at_the_control_socket_does_no_harm(directory: Path) -> None:
    with Side("local:open", "receiver") as receiver:
        messages = [
            b"\x00\xff",
            b"[]",
            b"{}",
            b'"x"',
            b"{" * 10000,
            b"[" * 16000,
            b'{"version": 3}',
            b'{"version": 3, "driver": "memif"}',
            b'{"version": "\\u001b[31m", "driver": "memif"}',
            b'{"version": 3, "driver": ["memif"]}',
            b'{"version": 3, "driver": "memif", "nb_ports": "many"}',
            b'{"version": 3, "driver": "memif", "nb_ports": true}',
            b'{"version": 3, "driver": "memif", "nb_ports": Infinity}',
            b'{"version": 3, "driver": "memif", "nb_ports": 1e99}',
            b'{"version": 3, "driver": "memif", "nb_ports": -1}',
            b'{"version": 3, "driver": "memif", "nb_ports": 99}',
            b'{"version": 3, "driver": "memif", "nb_ports": 1, "frame_size": -5}',
            b'{"version": 3, "driver": "memif", "nb_ports": 1, "frame_size": 1e400}',
            b'{"version": 3, "driver": "memif", "nb_ports": 1, "frame_size": [1]}',
            b'{"version": 3, "driver": "memif", "nb_ports": 1, "capabilities": 7}',
            b'{"ready": true}',
        ]
        for message in messages:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(60)
                sock.connect(str(directory / "local-open" / "control"))
                sock.send(message)
                answer = sock.recv(16384)
                if answer:
                    said = json.loads(answer)
                    assert said["version"] == VERSION, message
                    assert said["refused"].isprintable(), message
        idle = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        idle.connect(str(directory / "local-open" / "control"))
        with idle, Side("local:open", "sender") as sender:
            wait_for(lambda: sender.up() and receiver.up(), "a real sender")
        assert receiver.ports.error is None
        assert len(receiver.attached) == 1


def test_waiting_sides_sleep() -> None:
    with Side("local:idle", "receiver") as receiver, Side("local:idle", "sender") as sender:
        wait_for(lambda: receiver.up() and sender.up(), "a connection")

        def share_of_a_core() -> float:
            started, used = time.monotonic(), time.process_time()
            threading.Event().wait(1.0)
            return (time.process_time() - used) / (time.monotonic() - started)

        assert min(share_of_a_core() for _ in range(3)) < 0.03


def test_closing_ends_the_thread_and_a_second_close_does_nothing() -> None:
    threads = threading.active_count()
    side = Side(["local:a", "local:b"], "receiver")
    assert threading.active_count() == threads + 1  # one for both endpoints
    side.__exit__()
    side.__exit__()
    assert threading.active_count() == threads


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048, reason="needs ulimit -Hn of 2048")
def test_a_process_with_a_thousand_descriptors_parts_like_any_other() -> None:
    out = run("""
        import os, resource, threading
        import aiflow
        failures = []
        threading.excepthook = failures.append
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        for _ in range(2):  # the second time over the same name
            with aiflow.Receiver("local:many") as rx, aiflow.Sender("local:many") as tx:
                ticket = tx.send([b"x"], wait=False)
                print(rx.recv(timeout=20)[0].tobytes())
                ticket.result(20)
        print(failures)
    """)
    assert out.splitlines() == ["b'x'", "b'x'", "[]"]


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(f"/tmp/aiflow-open-{os.getpid()}")
    shared.mkdir(mode=0o700)
    try:
        monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(shared))
        assert runtime_directory() == shared
        shared.chmod(0o755)
        with pytest.raises(PortError, match="no other user can enter"):
            Side("local:demo", "receiver")
    finally:
        shared.rmdir()
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", f"/tmp/{'x' * 60}-{os.getpid()}")
    with pytest.raises(PortError, match="too long"):
        Side("local:demo", "receiver")
    assert not Path(os.environ["AIFLOW_RUNTIME_DIR"]).exists()


def test_names_cannot_leave_their_directory(directory: Path) -> None:
    for name in ("..", ".", "a..b", "-"):
        with Side(f"local:{name}", "receiver"):
            assert (directory / f"local-{name}" / "control").is_socket()
