"""A Sender and a Receiver of one process on the same interfaces, both directions at once."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from subprocesses import run, start
from wait import settle

import aiflow
from aiflow.errors import PortError

pytestmark = pytest.mark.root

SCHEMES = pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])

BOTH = """
    import hashlib, sys, threading, numpy as np, aiflow
    ports, me, peer, count = sys.argv[1].split(","), sys.argv[2], sys.argv[3], int(sys.argv[4])
    rng = np.random.default_rng(len(me) + ord(me[0]))

    def digest(time_slice):
        return hashlib.sha256(b"".join(element.tobytes() for element in time_slice)).hexdigest()

    with aiflow.Receiver(ports, name=me) as rx, aiflow.Sender(ports, to=peer, name=me, peer_timeout=30) as tx:
        got = []
        def receives():
            for _ in range(count):
                with rx.recv(timeout=40) as time_slice:
                    assert time_slice.sender == peer
                    got.append(digest(time_slice))
        thread = threading.Thread(target=receives)
        thread.start()
        sent = []
        for _ in range(count):
            elements = [rng.integers(0, 256, int(rng.integers(0, 200_000)), dtype=np.uint8) for k in range(10)]
            tx.send(elements)
            sent.append(hashlib.sha256(b"".join(e.tobytes() for e in elements)).hexdigest())
        thread.join()
        print(" ".join(got), flush=True)
        print(" ".join(sent), flush=True)
        assert rx.describe()[0]["users"] == [f"Receiver {me!r}", f"Sender {me!r}"], rx.describe()
        sys.stdin.readline()  # both have what they wait for
"""


@SCHEMES
@pytest.mark.parametrize("nb_ports", [1, 2])
def test_a_sender_and_a_receiver_share_an_interface(net, scheme, nb_ports) -> None:
    """What ended in PeerLost on both sides: DPDK joined the packet sockets of a process to one fan-out group."""
    left, right = net.namespace("left"), net.namespace("right")
    for i in range(nb_ports):
        net.veth(left, f"l{i}", right, f"r{i}")
    peers = [
        start(
            BOTH,
            ",".join(f"{scheme}:{side[0]}{i}" for i in range(nb_ports)),
            *names,
            "8",
            prefix=host.prefix,
            stdin=subprocess.PIPE,
        )
        for side, host, names in (("left", left, ("a", "b")), ("right", right, ("b", "a")))
    ]
    try:
        told = [(peer.stdout.readline().split(), peer.stdout.readline().split()) for peer in peers]
        for peer in peers:
            peer.communicate("done\n", timeout=60)
            assert peer.returncode == 0
        (got_a, sent_a), (got_b, sent_b) = told
        assert got_a == sent_b
        assert got_b == sent_a
        assert len(got_a) == len(got_b) == 8
    finally:
        for peer in peers:
            peer.kill()
            peer.wait()


def test_a_sender_and_a_receiver_of_two_processes_on_one_interface(net) -> None:
    """As before there were Ports: each process has a socket of its own."""
    near, far = net.namespace("near"), net.namespace("far")
    net.veth(near, "n0", far, "f0")
    receiver = start(
        """
        import aiflow, sys
        with aiflow.Receiver("af_packet:n0", name="a") as rx:
            print("ready", flush=True)
            print(rx.recv(timeout=40).nbytes, flush=True)
        """,
        prefix=near.prefix,
    )
    relay = start(
        """
        import aiflow, sys
        with aiflow.Receiver("af_packet:f0", name="b") as rx, aiflow.Sender("af_packet:f0", to="a") as tx:
            print("ready", flush=True)
            with rx.recv(timeout=40) as time_slice:
                tx.send(time_slice)
        """,
        prefix=far.prefix,
    )
    try:
        assert receiver.stdout.readline() == relay.stdout.readline() == "ready\n"
        code = "import aiflow\nwith aiflow.Sender('af_packet:n0', to='b') as tx: tx.send([bytes(300_000)])"
        run(code, prefix=near.prefix)
        assert receiver.stdout.readline() == "300000\n"
        assert receiver.wait(60) == relay.wait(60) == 0
    finally:
        for process in (receiver, relay):
            process.kill()
            process.wait()


def test_who_comes_second_is_refused_by_role(net) -> None:
    host = net.namespace("host")
    net.veth(host, "va", host, "vb")
    with host.entered(), aiflow.Sender("af_packet:va", name="one"), aiflow.Sender("af_packet:va", name="two") as tx:
        assert tx.describe()[0]["users"] == ["Sender 'one'", "Sender 'two'"]  # one process, one port
        out = run(
            """
            import aiflow
            with aiflow.Receiver("af_packet:va"):
                pass  # another process may receive there
            try:
                aiflow.Sender("af_packet:va")
            except aiflow.PortError as error:
                print(error)
            """,
            prefix=host.prefix,
        )
        assert "another aiflow sender uses va" in out


@pytest.mark.filterwarnings("ignore:.*was removed")
def test_the_interface_goes_and_all_its_agents_work_again_when_it_is_back(net) -> None:
    host = net.namespace("host")
    net.veth(host, "va", host, "vb")
    with (
        host.entered(),
        aiflow.Receiver("af_packet:vb", name="far") as far,
        aiflow.Receiver("af_packet:va", name="near") as near,
        aiflow.Sender("af_packet:va", to="far", peer_timeout=40) as out,
        aiflow.Sender("af_packet:vb", to="near", peer_timeout=40) as back,
    ):
        for _ in range(2):
            for tx, rx in ((out, far), (back, near)):
                ticket = tx.send([np.arange(50_000)], wait=False)
                rx.recv(timeout=40).release()
                ticket.result(40)
            host.ip("link", "del", "va")  # and vb with it
            _wait_for_error(near)
            _wait_for_error(far)
            assert [end.describe()[0]["state"] for end in (near, far)] == ["removed", "removed"]
            net.veth(host, "va", host, "vb")
            assert settle(lambda: all(len(end.port_table) for end in (far, near, out, back)))


def test_the_state_of_a_port_has_a_name(net) -> None:
    host = net.namespace("host")
    net.veth(host, "va", host, "vb")
    with host.entered(), aiflow.Ports(["af_packet:va", "local:none"]) as ports, aiflow.Ports("af_packet:vb") as far:

        def states() -> list[str]:
            return [row["state"] for each in (ports, far) for row in each.describe()]

        assert states() == ["up", "no peer", "up"]
        host.take_down("vb")
        assert settle(lambda: states() == ["no carrier", "no peer", "down"], 5)
        host.bring_up("vb")
        assert settle(lambda: states() == ["up", "no peer", "up"], 5)


@pytest.mark.filterwarnings("ignore:.*was removed")
def test_the_loss_of_one_interface_of_two_is_no_error(net) -> None:
    host = net.namespace("host")
    for i in range(2):
        net.veth(host, f"va{i}", host, f"vb{i}")
    with (
        host.entered(),
        aiflow.Receiver(["af_packet:vb0", "af_packet:vb1"]) as rx,
        aiflow.Sender(["af_packet:va0", "af_packet:va1"]) as tx,
    ):
        for _ in range(2):
            ticket = tx.send([np.arange(50_000)], wait=False)
            rx.recv(timeout=40).release()
            ticket.result(40)
            host.ip("link", "del", "va0") if len(tx.port_table) == 2 else None
            assert settle(lambda: len(tx.port_table) == len(rx.port_table) == 1)


def _wait_for_error(rx: aiflow.Receiver) -> None:
    for _ in range(200):
        try:
            rx.recv(timeout=0.05)
        except PortError:
            return
        except aiflow.SliceTimeout:
            continue
    raise AssertionError("the removal was not noticed")
