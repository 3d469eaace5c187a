"""Over kernel interfaces: veth pairs in namespaces, af_packet and af_xdp. Fault 42: a smaller MTU on the way."""

from __future__ import annotations

import contextlib
import socket
import subprocess

import numpy as np
import pytest
from subprocesses import run, start
from wait import settle

import aiflow
from aiflow._ports import packet_ring
from aiflow.errors import ConfigError, PortError

pytestmark = pytest.mark.root

SCHEMES = pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])

RECEIVE = """
    import hashlib, sys, aiflow
    with aiflow.Receiver(sys.argv[1].split(","), name="sink", until="bye") as rx:
        print("ready", flush=True)
        for time_slice in rx:
            print(hashlib.sha256(b"".join(element.tobytes() for element in time_slice)).hexdigest(), flush=True)
"""

SEND = """
    import hashlib, sys, time, numpy as np, aiflow
    rng = np.random.default_rng(1)
    used, deadline = set(), time.monotonic() + 60
    with aiflow.Sender(sys.argv[1].split(",")) as tx:
        while len(used) < len(tx.endpoints): # a port joins in when its path is found
            assert time.monotonic() < deadline, used
            elements = [rng.integers(0, 256, int(rng.integers(0, 200_000)), dtype=np.uint8) for k in range(10)]
            report = tx.send(elements, timeout=30)
            used |= {port.name for port in report.ports}
            print(hashlib.sha256(b"".join(e.tobytes() for e in elements)).hexdigest(), flush=True)
"""


@SCHEMES
@pytest.mark.parametrize("nb_ports", [1, 3])
def test_between_two_hosts(net, scheme, nb_ports) -> None:
    source, sink = net.namespace("source"), net.namespace("sink")
    for i in range(nb_ports):
        net.veth(source, f"s{i}", sink, f"r{i}")
    receiver = start(RECEIVE, ",".join(f"{scheme}:r{i}" for i in range(nb_ports)), prefix=sink.prefix)
    try:
        assert receiver.stdout.readline() == "ready\n"
        sent = run(SEND, ",".join(f"{scheme}:s{i}" for i in range(nb_ports)), prefix=source.prefix).split()
        got = receiver.communicate(timeout=60)[0].split()
        assert receiver.returncode == 0
        assert got == sent
        assert got
    finally:
        receiver.kill()
        receiver.wait()


def test_peers_find_each_other_through_a_switch(net) -> None:
    """Three ports each way through one switch: no MAC is typed, and each port gets a path of its own."""
    source, _, sink = net.switched(3)
    receiver = start(RECEIVE, "af_packet:r0,af_packet:r1,af_packet:r2", prefix=sink.prefix)
    try:
        assert receiver.stdout.readline() == "ready\n"
        sent = run(SEND, "af_packet:s0,af_packet:s1,af_packet:s2", prefix=source.prefix).split()
        assert receiver.communicate(timeout=60)[0].split() == sent
    finally:
        receiver.kill()
        receiver.wait()


def test_jumbo_frames_where_the_port_allows(net) -> None:
    host = net.namespace("host")
    net.veth(host, "va", host, "vb", mtu=9000)
    data = np.arange(500_000, dtype=np.uint32)
    with host.entered(), aiflow.Receiver("af_packet:vb") as rx, aiflow.Sender("af_packet:va") as tx:
        ticket = tx.send([data], wait=False)
        with rx.recv(timeout=20) as time_slice:
            report = ticket.result(20)
            assert np.array_equal(time_slice[0].array, data)
        assert report.frames_sent - report.frames_retransmitted < 2_000_000 / 8000


def test_a_packet_sockets_send_buffer_is_widened(net) -> None:
    host = net.namespace("host")
    net.veth(host, "va", host, "vb")
    with host.entered(), aiflow.Sender("af_packet:va"):
        sockets = packet_ring.packet_sockets(socket.if_nametoindex("va"))
        assert len(sockets) == 1
        assert packet_ring.widen_send_buffer(sockets, 6 << 20) == 6 << 20
        assert not packet_ring.packet_sockets(socket.if_nametoindex("vb"))


AGAIN = """
    import sys, time, numpy as np, aiflow
    for number in range(3):
        data = np.full(100_000, number, dtype=np.uint32)
        with aiflow.Receiver(sys.argv[2]) as rx, aiflow.Sender(sys.argv[1]) as tx:
            for _ in range(3):
                ticket = tx.send([data], wait=False)
                with rx.recv(timeout=30) as time_slice:
                    ticket.result(30)
                    assert np.array_equal(time_slice[0].array, data)
                time.sleep(0.1)  # both fall asleep
"""


@SCHEMES
def test_interfaces_are_used_again_by_one_process_and_wake_it(net, scheme) -> None:
    """DPDK 22.11 cannot open an af_xdp queue again: the next user takes the port over."""
    host = net.namespace("host")
    net.veth(host, "va", host, "vb")
    run(AGAIN, f"{scheme}:va", f"{scheme}:vb", prefix=host.prefix)


CLASH = """
    import os, sys, aiflow
    for line in sys.stdin:
        try:
            port = getattr(aiflow, line.strip())("af_packet:va")
            print(os.getpid(), "open", flush=True)
        except aiflow.PortError as error:
            print(os.getpid(), error, flush=True)
"""


def test_fault_55_containers_with_equal_process_ids_on_one_interface_are_told(net) -> None:
    """The kernel would divide the frames among both: DPDK derives the fan-out group from the process id."""
    host = net.namespace("host")
    net.veth(host, "va", host, "vb")
    container = (*host.prefix, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with contextlib.ExitStack() as ends:
        one, other = (ends.enter_context(start(CLASH, prefix=container, stdin=subprocess.PIPE)) for _ in range(2))
        ends.callback(one.kill)
        ends.callback(other.kill)

        def ask(process: subprocess.Popen[str], side: str) -> str:
            process.stdin.write(f"{side}\n")
            process.stdin.flush()
            return process.stdout.readline()

        assert ask(one, "Receiver") == "1 open\n"
        said = ask(other, "Sender")
        assert said.startswith("1 af_packet:va: packet fan-out group ")
        assert "start this process again: it gets another id" in said
        one.kill()
        one.wait()
        assert settle(lambda: ask(other, "Sender") == "1 open\n")


def test_fault_42_mtu_smaller_than_ours_is_adapted_to(net) -> None:
    """Without `frame_size=` the size that passes is found before data depends on it."""
    source, sink = net.namespace("source"), net.namespace("sink")
    net.veth(source, "va", sink, "vb", mtu=4000)
    sink.ip("link", "set", "dev", "vb", "mtu", "1500")
    data = np.arange(100_000, dtype=np.uint32)
    with sink.entered():
        rx = aiflow.Receiver("af_packet:vb")
    with source.entered():
        tx = aiflow.Sender("af_packet:va")
    with rx, tx:
        ticket = tx.send([data], wait=False)
        with rx.recv(timeout=20) as time_slice:
            report = ticket.result(20)
            assert np.array_equal(time_slice[0].array, data)
        assert report.frames_sent >= 400_000 / 1460


def test_fault_42_mtu_smaller_than_configured_is_found_at_the_start(net) -> None:
    """By the port itself, or by the path: a switch on the way takes less than both ends."""
    source, switch, sink = net.namespace("source"), net.namespace("switch"), net.namespace("sink")
    switch.bridge()
    for host, end in ((source, "va"), (sink, "vb")):
        net.veth(host, end, switch, end, mtu=4000)
        switch.ip("link", "set", "dev", end, "master", "br0")
    with source.entered(), pytest.raises(ConfigError, match=r"9014.*4014|4014.*9014"):
        aiflow.Sender("af_packet:va", frame_size=9014)
    switch.ip("link", "set", "dev", "vb", "mtu", "1500")
    with sink.entered():
        rx = aiflow.Receiver("af_packet:vb", frame_size=4014)
    with source.entered():
        tx = aiflow.Sender("af_packet:va", frame_size=4014)
    with rx, tx, pytest.raises(PortError, match="small frames but not full ones"):
        tx.send([bytes(100_000)], timeout=20)


def test_two_receivers_that_answer_need_a_name(net) -> None:
    source, _, sink = net.switched(2)
    with sink.entered():
        one, two = aiflow.Receiver("af_packet:r0", name="one"), aiflow.Receiver("af_packet:r1", name="two")
    with source.entered():
        unsure, sure = aiflow.Sender("af_packet:s0"), aiflow.Sender("af_packet:s1", to="two")
    with one, two, unsure, sure:
        with pytest.raises(ConfigError, match="to="):
            unsure.send([b"x"], timeout=20)
        ticket = sure.send([b"y"], wait=False)
        with two.recv(timeout=20) as time_slice:
            assert ticket.result(20).receivers[0].name == "two"
            assert time_slice[0].tobytes() == b"y"
