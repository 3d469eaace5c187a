"""A network interface that is removed, moved, renamed, or down for a while, under open ports."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from interfaces import one_slice, veth
from netns import Namespace, Net
from open_ports import ports_of
from subprocesses import run
from wait import wait_for

import aiflow
from aiflow.errors import PeerLost, PortError, SliceTimeout

root = pytest.mark.root


def _deleted(net: Net, one: Namespace, other: Namespace) -> None:
    one.ip("link", "delete", "dev", "va")


def _moved(net: Net, one: Namespace, other: Namespace) -> None:
    away = net.namespace("away")
    one.ip("link", "set", "dev", "va", "netns", away.name)
    other.ip("link", "set", "dev", "vb", "netns", away.name)


@root
def test_ports_that_open_at_once_take_no_sockets_of_each_other(host: Namespace) -> None:
    """A port that counts another's socket as its own is lost when the other one closes."""
    veth(host, "va", "vb")
    run(
        """
        import threading
        from aiflow import _eal
        from aiflow._ports.portset import PortSet

        def open_one(name, opened):
            together.wait()
            opened[name] = PortSet(f"af_packet:{name}", "sender",
                                   pool_for=lambda size, *_: _eal.Mempool("p", 512, size),
                                   attach=lambda *_: None, detach=lambda *_: None)

        for _ in range(8):
            together, opened = threading.Barrier(2), {}
            threads = [threading.Thread(target=open_one, args=(name, opened)) for name in ("va", "vb")]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            one, other = (opened[name]._watched[0].sockets for name in opened)
            assert one and other and not one & other, (one, other)
            for ports in opened.values(): ports.close()
        """,
        prefix=host.prefix,
    )


@root
@pytest.mark.filterwarnings("ignore:.*the interface was removed")
@pytest.mark.parametrize("removed", [_deleted, _moved])
def test_an_interface_that_was_removed_is_told_on_both_sides_and_opened_again(
    net: Net, removed: Callable[[Net, Namespace, Namespace], None]
) -> None:
    source, sink = net.namespace("source"), net.namespace("sink")
    net.veth(source, "va", sink, "vb")
    with source.entered():
        tx = aiflow.Sender("af_packet:va", peer_timeout=3)
    with sink.entered():
        rx = aiflow.Receiver("af_packet:vb", name="r", memory="16MiB")
    with rx, tx:
        one_slice(rx, tx)
        removed(net, source, sink)
        with pytest.raises(PortError, match="af_packet:va: the interface was removed"):
            tx.send([b"x"], timeout=10)
        with pytest.raises(PortError, match="af_packet:vb: the interface was removed"):
            rx.recv(timeout=10)
        assert "was removed" in tx._ports.hints()[0]
        net.veth(source, "va", sink, "vb")
        wait_for(lambda: tx._ports.error is None and rx._ports.error is None, "both ports")
        for _ in range(10):
            try:
                one_slice(rx, tx)
                break
            except (PeerLost, SliceTimeout):  # the session of before
                continue
        one_slice(rx, tx)


@root
@pytest.mark.filterwarnings("ignore:.*the interface was removed")
def test_an_interface_that_comes_back_at_once_is_noticed_even_so(net: Net) -> None:
    source, away = net.namespace("source"), net.namespace("away")
    veth(source, "va", "vb")
    with source.entered():
        rx, tx = aiflow.Receiver("af_packet:vb", name="r", memory="16MiB"), aiflow.Sender("af_packet:va")
        with rx, tx:
            one_slice(rx, tx)
            (before,) = ports_of(tx)
            source.ip("link", "set", "dev", "va", "netns", away.name)  # it keeps its number
            away.ip("link", "set", "dev", "va", "netns", source.name)
            source.bring_up("va")
            wait_for(lambda: before not in ports_of(tx), "a look")
            wait_for(lambda: tx._ports.error is None and ports_of(tx), "the port")
            one_slice(rx, tx)


@root
@pytest.mark.filterwarnings("ignore:.*the interface was removed")
def test_the_other_ports_of_a_side_go_on(net: Net) -> None:
    source, sink = net.namespace("source"), net.namespace("sink")
    for i in range(2):
        net.veth(source, f"va{i}", sink, f"vb{i}")
    with source.entered():
        tx = aiflow.Sender(["af_packet:va0", "af_packet:va1"], peer_timeout=5)
    with sink.entered():
        rx = aiflow.Receiver(["af_packet:vb0", "af_packet:vb1"], name="r", memory="16MiB")
    with rx, tx:
        one_slice(rx, tx)
        source.ip("link", "delete", "dev", "va0")
        wait_for(lambda: len(ports_of(tx)) == len(ports_of(rx)) == 1, "one port on each side")
        for _ in range(3):
            one_slice(rx, tx)
        assert any("af_packet:va0: the interface was removed" in hint for hint in tx._ports.hints())
        assert any("was removed" in hint for hint in rx.describe()[0]["hints"])
        assert rx.describe()[1]["hints"] != rx.describe()[0]["hints"]


@root
def test_af_xdp_says_that_the_interface_was_removed_and_what_to_do(net: Net) -> None:
    source = net.namespace("source")
    veth(source, "va", "vb")
    said = run(
        """
        import subprocess, warnings
        import aiflow
        tx = aiflow.Sender("af_xdp:va", peer_timeout=30)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            subprocess.run(["ip", "link", "delete", "dev", "va"], check=True)
            try: tx.send([b"x"], timeout=20)
            except aiflow.PortError as exc: print(exc)
            tx.close()
        print(*(warning.message for warning in told))
        """,
        prefix=source.prefix,
    )
    assert said.count("af_xdp:va: the interface was removed") == 2  # the error, and a warning
    assert said.count("open it again when it is back") == 2


@root
def test_down_and_up_and_another_name_are_no_removal(host: Namespace) -> None:
    veth(host, "va", "vb")
    with aiflow.Receiver("af_packet:vb", name="r", memory="16MiB") as rx, aiflow.Sender("af_packet:va") as tx:
        one_slice(rx, tx)
        port = ports_of(tx)
        host.take_down("va")
        wait_for(lambda: "ip link set va up" in tx._ports.hints()[0], "a look")
        host.ip("link", "set", "dev", "va", "name", "vc")
        wait_for(lambda: "no interface va" in tx._ports.hints()[0], "a look")
        host.ip("link", "set", "dev", "vc", "name", "va")
        host.bring_up("va")
        one_slice(rx, tx)
        wait_for(lambda: "its link came up" in tx._ports.hints()[0], "a look")
        assert ports_of(tx) == port
