"""The emulated cluster: made and removed by us alone, shaped, lossy, and gone whatever becomes of its maker."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from subprocesses import environment, run
from wait import wait_for

from aiflow.cli.app import app

pytest.importorskip("pyroute2")

from aiflow.lab import cluster as lab
from aiflow.lab.children import NodeChild
from aiflow.lab.cluster import Cluster, clusters, owned_name
from aiflow.lab.entering import entered
from aiflow.lab.laberror import LabError
from aiflow.lab.namespaces import Namespace
from aiflow.lab.topology import MBIT, Layout, Port

root = pytest.mark.root
FRAME_BYTES = 1514


def namespaces(name: str) -> set[str]:
    """Those of one cluster: another run of the tests may have some of its own at the same time."""
    return {path.name for path in Path("/run/netns").glob(f"{lab.PREFIX}{name}-*")}


def ours() -> set[str]:
    return namespaces(f"*_{os.getpid()}")


def command(*arguments: str, code: int = 0) -> dict:
    ran = CliRunner().invoke(app, ["lab", *arguments, "--json"])
    assert ran.exit_code == code, (ran.stdout, ran.stderr, ran.exception)
    return json.loads(ran.stdout)


@pytest.fixture
def label() -> Iterator[str]:
    yield owned_name("test")
    list(lab.remove_all(owned_name("test"), running=True))


@pytest.fixture
def make(label):
    """Clusters by their layouts, one at a time."""
    made: list[Cluster] = []

    def one(**fields: object) -> Cluster:
        for before in made:
            before.down()
        made.append(Cluster(Layout(**fields), name=label, owned=True))
        made[-1].up()
        return made[-1]

    yield one
    for cluster in made:
        cluster.down()


# ---- who may ----


def test_without_root_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (["up"], ["status"], ["down"], ["run", "fig6", "--quick"]):
        assert "root" in command(*words, code=1)["error"]["message"]


def test_without_pyroute2_it_says_so() -> None:
    said = run(
        """
        import sys
        sys.modules["pyroute2"] = None  # as if it were not installed
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name == "pyroute2" else find(name, *more)
        from aiflow.cli.app import run
        print(run(["lab", "up", "--json"]))
        """
    )
    assert "pip install 'aiflow-dpdk[lab]'" in said
    assert said.split()[-1] == "1"


# ---- up, status, down ----


def host_interfaces() -> list[tuple[int, str]]:
    return socket.if_nameindex()


@root
def test_up_status_down_are_idempotent_and_leave_the_host_alone(label) -> None:
    before = host_interfaces()
    words = ("up", "--name", label, "--ports", "2", "--rates", "100,10", "--trunk", "50mbit")
    assert command(*words)["made"]
    assert not command(*words)["made"]
    assert host_interfaces() == before
    assert len(namespaces(label)) == 6

    (shown,) = (found for found in command("status")["clusters"] if found["name"] == label)
    assert set(shown["hosts"]) == {"node0", "node1", "node2", "node3", "switch0", "switch1"}
    assert set(shown["hosts"]["node0"]["interfaces"]) == {"p0", "p1"}
    assert shown["layout"]["rates_bps"] == [100 * MBIT, 10 * MBIT]

    assert command("up", "--name", label, "--ports", "1", "--switches", "1")["made"], "another layout replaces it"
    assert len(namespaces(label)) == 5
    assert command("down", "--name", label)["removed"] == [label]
    assert command("down", "--name", label)["removed"] == []
    assert not namespaces(label)
    assert host_interfaces() == before


@root
def test_down_leaves_a_cluster_alone_whose_process_is_at_work(make, label) -> None:
    cluster = make(ports=1, switches=1)
    assert command("down", "--name", label) | {"removed": [], "kept": [label]} == command("down", "--name", label)
    assert all(node.exists() for node in cluster.nodes())
    assert command("down", "--name", label, "--all")["removed"] == [label]
    assert not ours()


@root
def test_a_cluster_that_cannot_be_made_leaves_nothing(label, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no more bridges")

    monkeypatch.setattr(Namespace, "bridge", refuse)
    with pytest.raises(LabError, match="no more bridges"):
        Cluster(Layout(ports=1, switches=1), name=label).up()
    assert not ours()
    assert label not in [found.name for found in clusters()]


# ---- the wires, by frames of our own ----


class Wire:
    """Raw frames from one port of the cluster to another."""

    def __init__(self, cluster: Cluster, source: Port, target: Port) -> None:
        self.header = bytes.fromhex((target.mac + source.mac).replace(":", "")) + b"\x88\xb6"
        with entered(cluster.node(source.node).path):
            self.sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.sender.bind((source.interface, 0))
        with entered(cluster.node(target.node).path):
            self.receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.receiver.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: it shall not lose any
            self.receiver.bind((target.interface, 0x88B6))
        self.receiver.setblocking(False)

    def send(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self.sender.send(self.header + struct.pack("!I", number) + bytes(FRAME_BYTES - 18))

    def arrived(self, quiet: float = 1.0) -> list[int]:
        """Numbers of all frames that come until none has for a while; what lies in the socket is never overlooked."""
        numbers: list[int] = []
        self.last = time.monotonic()
        while select.select([self.receiver], [], [], quiet)[0]:
            numbers.append(struct.unpack_from("!I", self.receiver.recv(2048), 14)[0])
            self.last = time.monotonic()
        return numbers

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sender.close()
        self.receiver.close()


@root
@pytest.mark.parametrize(
    ("fields", "bottleneck"),
    [
        pytest.param({"rates_bps": (10 * MBIT,)}, 10 * MBIT, id="links"),
        pytest.param({"rates_bps": (100 * MBIT,), "trunk_bps": 10 * MBIT}, 10 * MBIT, id="backplane"),
        pytest.param({"rates_bps": (10 * MBIT,), "link_bps": 1000 * MBIT}, 10 * MBIT, id="switch port"),
    ],
)
def test_what_is_narrow_is_no_faster_than_it_says(make, fields, bottleneck) -> None:
    """A busy machine makes it slower, never faster."""
    cluster = make(ports=1, switches=1, queue_bytes=4 << 20, **fields)
    (source,), (target,) = cluster.layout.ports_of(0), cluster.layout.ports_of(2)
    with Wire(cluster, source, target) as wire:
        start = time.monotonic()
        wire.send(400)
        assert wire.arrived() == list(range(400))
        seconds = wire.last - start
    bits = 8 * (400 * FRAME_BYTES - 8 * cluster.layout.burst_bytes)
    assert seconds > 0.9 * bits / bottleneck
    assert cluster.loss() == (0, 0, 0, 0)


@root
def test_a_full_queue_at_a_switch_loses_frames_and_the_kernel_counts_every_one(make) -> None:
    cluster = make(ports=1, switches=1, rates_bps=(1 * MBIT,), link_bps=1000 * MBIT, queue_bytes=32 << 10)
    (source,), (target,) = cluster.layout.ports_of(0), cluster.layout.ports_of(2)
    with Wire(cluster, source, target) as wire:
        wire.send(1000)
        arrived = len(wire.arrived())
    assert cluster.counters()["node0"]["p0"].tx_frames == 1000
    loss = cluster.loss()
    assert loss.in_network == loss.switch_ports == 1000 - arrived
    assert loss.in_network > 0


@root
def test_a_queue_in_the_network_does_not_hold_the_sender_back(make) -> None:
    """More frames than the sender's socket has room for wait at the switch, and its sends return all the same."""
    cluster = make(ports=1, switches=1, rates_bps=(1 * MBIT,), link_bps=1000 * MBIT, queue_bytes=8 << 20)
    (source,), (target,) = cluster.layout.ports_of(0), cluster.layout.ports_of(2)
    with Wire(cluster, source, target) as wire:
        wire.sender.settimeout(20.0)
        wire.send(1000)  # 12 s long at the switch
    assert cluster.counters()["node2"]["p0"].rx_frames < 800


@root
def test_random_loss_is_random_and_its_seed_repeats_it(make) -> None:
    def survivors(seed: int) -> list[int]:
        cluster = make(ports=1, switches=1, rates_bps=(1000 * MBIT,), loss=0.1, seed=seed, queue_bytes=4 << 20)
        (source,), (target,) = cluster.layout.ports_of(0), cluster.layout.ports_of(2)
        with Wire(cluster, source, target) as wire:
            wire.send(2000)
            arrived = wire.arrived()
        assert cluster.loss().random == 2000 - len(arrived)
        return arrived

    one = survivors(1)
    assert 1600 < len(one) < 1950
    assert survivors(1) == one
    assert survivors(2) != one


@root
def test_frames_reach_the_port_that_they_are_for_and_no_other(make) -> None:
    cluster = make(ports=2, switches=1, trunk_bps=100 * MBIT)
    layout = cluster.layout
    with Wire(cluster, layout.ports_of(0)[1], layout.ports_of(3)[0]) as wire:
        wire.send(50)
        assert len(wire.arrived()) == 50
    counted = cluster.counters()
    got = {(node, port): counted[f"node{node}"][f"p{port}"].rx_frames for node in range(4) for port in range(2)}
    assert got == {key: 50 if key == (3, 0) else 0 for key in got}


# ---- processes ----


def _say_where(pipe) -> None:
    pipe.send(("where", os.stat("/proc/self/ns/net").st_ino, [name for _, name in socket.if_nameindex()]))
    pipe.recv()


def _fail(pipe) -> None:
    raise ValueError("on purpose")


@root
def test_children_are_in_their_nodes_and_end_with_the_cluster(make) -> None:
    cluster = make(ports=1, switches=1)
    child = NodeChild(cluster, 2, _say_where)
    assert child.hear(90) == ("where", cluster.node(2).inode()[1], ["lo", "p0"])
    assert cluster.node(2).processes() == [child.process.pid]
    cluster.down()
    child.process.join(60)
    assert child.process.exitcode == -signal.SIGKILL
    child.__exit__(LabError)


@root
def test_a_child_that_fails_says_why(make, capfd) -> None:
    with pytest.raises(LabError, match="on purpose"), NodeChild(make(ports=1, switches=1), 0, _fail) as child:
        child.hear(90)


def hugepage_files() -> set[str]:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " hugetlbfs " in line]
    return {str(path) for mount in mounts for path in Path(mount).iterdir()}


def sockets_of(name: str) -> set[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.split()[-1] for line in lines if f"{lab.STATE}/{name}" in line}


@root
def test_down_after_kill_9_in_mid_experiment_leaves_nothing(tmp_path) -> None:
    files = hugepage_files()
    experiment = subprocess.Popen(
        [sys.executable, "-m", "aiflow", "lab", "run", "fig6", "--quick", "--repeats", "99", "--out", str(tmp_path)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    name = f"fig6_{experiment.pid}"
    sender, receiver = (Namespace(f"{lab.PREFIX}{name}-node{node}") for node in (0, 2))
    try:

        def frames_flow() -> bool:
            assert experiment.poll() is None, "it ended by itself"
            with contextlib.suppress(OSError, LabError):  # it is being made just now
                there = sender.exists() and receiver.exists() and "p0" in (counted := receiver.counters())
                return there and counted["p0"].rx_frames > 500
            return False

        wait_for(frames_flow, "frames in the cluster", 60)
        pids = sender.processes() + receiver.processes()
        assert len(pids) == 2
    finally:
        experiment.kill()
        experiment.wait(60)
    assert command("down", "--name", name)["removed"] == [name]
    assert not namespaces(name)
    assert not (lab.STATE / name).exists()
    assert not (lab.STATE / f"{name}.json").exists()
    wait_for(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "the children's end")
    assert hugepage_files() <= files
    assert not sockets_of(name)
    assert not list(Path("/var/run/dpdk").glob(f"aiflow-{pids[0]}-*"))


# ---- an experiment, end to end ----


def experiment(name: str, out: Path, *options: str) -> dict:
    """Run the quick form of an experiment; what its JSON file says, its other files looked at."""
    child = subprocess.Popen(
        [sys.executable, "-m", "aiflow", "lab", "run", name, "--quick", "--out", str(out), "--json", *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = child.communicate(timeout=280)
    finally:
        child.kill()
    assert child.returncode == 0, stderr[-3000:]
    told = json.loads(stdout)["experiments"][name]
    assert [Path(path).suffix for path in told["files"]] == [".json", ".csv", ".png"]
    assert Path(told["files"][2]).read_bytes().startswith(b"\x89PNG")
    document = json.loads(Path(told["files"][0]).read_text())
    assert len(Path(told["files"][1]).read_text().splitlines()) == 1 + len(document["runs"])
    assert all(row["delivered"] for row in document["runs"])
    assert not namespaces(f"*_{child.pid}")
    return document


@root
@pytest.mark.slow
def test_a_quick_fig6_measures_ours_beside_the_kernels(tmp_path) -> None:
    pytest.importorskip("zmq")
    document = experiment("fig6", tmp_path)
    measured = {(row["system"], row["ports"]): row for row in document["runs"]}
    assert set(measured) == {(system, ports) for system in ("aiflow", "TCP", "ZeroMQ") for ports in (1, 2)}
    for row in measured.values():
        assert 0 < row["share"] < 1.05  # the links are shaped: no system is faster than they are


@root
@pytest.mark.slow
def test_a_quick_loss_loses_at_the_switch_and_by_the_shim(tmp_path) -> None:
    pytest.importorskip("zmq")
    document = experiment("loss", tmp_path, "--faults", "drop=0.02,seed=5")
    measured = {(row["system"], row["probability"]): row for row in document["runs"]}
    assert set(measured) == {(system, loss) for system in ("aiflow", "TCP") for loss in (0, 0.05)}
    clean, lossy = measured["aiflow", 0], measured["aiflow", 0.05]
    assert clean["lost"] < 0.002 * clean["frames"]  # what a full queue takes when the machine lets us wait
    assert clean["retransmitted"] > 0  # the shim's
    assert lossy["lost"] > 0.02 * lossy["frames"]
    assert measured["TCP", 0.05]["lost"] > 0
    assert document["faults"] == {"drop": 0.02, "seed": 5}


@root
@pytest.mark.slow
def test_a_quick_cut_strikes_in_mid_slice(tmp_path) -> None:
    pytest.importorskip("zmq")
    document = experiment("cut", tmp_path, "--rate", "50mbit")
    measured = {row["scenario"]: row for row in document["runs"]}
    assert set(measured) == {"uncut", "a port cut", "a switch swallows"}
    for row in measured.values():
        assert 0.1 < row["bytes_left"] / row["nbytes"] < 0.9  # during the slice; the exact point depends on the machine
        assert 0 < row["stall_ms"] < 1e3 * row["seconds"]
    assert measured["a port cut"]["retransmitted"] > 0
    assert measured["a switch swallows"]["lost"] > 0
    swallowed = measured["a switch swallows"]
    ideal = swallowed["seconds_left"] / swallowed["over_ideal"]
    # Two ports carry no more than two ports can; four did for as long as the last look before the fault was late.
    assert swallowed["seconds_left"] > 0.9 * ideal - 2 * swallowed["unseen_ms"] / 1e3


@root
@pytest.mark.slow
def test_a_quick_relay_passes_everything_on(tmp_path) -> None:
    pytest.importorskip("zmq")
    document = experiment("relay", tmp_path, "--rate", "50mbit")
    measured = {row["scenario"]: row for row in document["runs"]}
    assert set(measured) == {"two nodes", "three nodes"}
    for row in measured.values():
        assert row["elements"] == 4 * 4
        assert 0 < row["share"] < 1.05  # the links are shaped


@pytest.mark.parametrize("faults", ["drop", "drop=2", "flood=0.1", "drop=often"])
def test_faults_that_are_none_are_refused(faults) -> None:
    ran = CliRunner().invoke(app, ["lab", "run", "fig6", "--quick", "--faults", faults])
    assert ran.exit_code == 2
    assert "--faults" in ran.stderr
