"""Slices of 64 photographs over igb ports: identical at the other end, whatever happens to the links."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import pytest
from consoles import Console, until
from machine import Monitor

Pair = tuple[Console, Console]


def slice_over(pair: Pair, senders: list[str], receivers: list[str], options: str = "") -> dict[str, Any]:
    """Send the images from the first process to the second; returns facts about the report. The sides stay open."""
    a, b = pair
    b.run(f"rx = aiflow.Receiver({receivers!r}{options})")
    a.run(f"tx = aiflow.Sender({senders!r}{options if 'frame_size' in options else ''})")
    return again(pair)


def again(pair: Pair) -> dict[str, Any]:
    """Send the images once more over what is open."""
    a, b = pair
    b.start("with rx.recv(timeout=60) as got: answer = same(got, images)")
    facts: dict[str, Any] = a.run("answer = facts(tx.send(images, timeout=60))")
    assert b.finish()
    return facts


def over_two_pairs(pair: Pair, ports: list[str]) -> dict[str, Any]:
    """Open both pairs, and send the images until a slice uses both: a link needs seconds to come up."""
    slice_over(pair, ports[::2], ports[1::2])

    def both() -> dict[str, Any] | None:
        facts = again(pair)
        return facts if min(facts["ports"].get(port, 0) for port in ports[::2]) > facts["sent"] / 10 else None

    facts: dict[str, Any] = until(both, "a slice over both pairs", 60)
    return facts


def test_an_identical_slice_over_two_ports_of_a_wire(pair: Pair, ports: list[str], monitor: Monitor) -> None:
    monitor.capture(True)
    try:
        facts = slice_over(pair, ports[:1], ports[1:2])
        for console in pair:  # HELLO and BYE lie in the capture, too
            console.run("(globals().get('tx') or rx).close()")
    finally:
        monitor.capture(False)
    assert facts["elements"] == 64
    assert facts["drivers"] == ["net_e1000_igb"]
    assert set(facts["ports"]) == {ports[0]}
    assert facts["again"] < facts["sent"] / 10


def test_two_pairs_share_the_slice(pair: Pair, ports: list[str]) -> None:
    facts = over_two_pairs(pair, ports)
    assert set(facts["ports"]) == set(ports[::2])
    assert facts["elements"] == 64


@pytest.fixture
def cables(monitor: Monitor) -> Iterator[Monitor]:
    """Links that a test may cut."""
    yield monitor
    for number in range(4):
        monitor.link(f"nic{number}", True)


def begin(pair: Pair) -> int:
    """Begin a slice of several times the images, and wait until some of it is there; returns its bytes."""
    a, b = pair
    a.run("many = {f'{name}-{time}': image for name, image in images.items() for time in range(4)}")
    b.run("many = {f'{name}-{time}': image for name, image in images.items() for time in range(4)}")
    b.start("with rx.recv(timeout=90) as got: answer = same(got, many)")
    a.run("ticket = tx.send(many, wait=False)")
    total: int
    moved, total = until(lambda: _progress(a), "the first megabyte")
    assert moved < total * 3 // 4
    return total


def _progress(a: Console, beyond: int = 1_000_000) -> tuple[int, int] | None:
    moved, total = a.run("answer = ticket.progress")
    return (moved, total) if moved > beyond else None


def end(pair: Pair) -> dict[str, Any]:
    """Wait for the slice that `begin` began."""
    a, b = pair
    facts: dict[str, Any] = a.run("answer = facts(ticket.result(timeout=90))")
    assert b.finish()
    return facts


@pytest.mark.parametrize("cut", ["nic2", "nic3"])
def test_a_cut_in_mid_slice_costs_a_port_and_no_image(pair: Pair, ports: list[str], cables: Monitor, cut: str) -> None:
    over_two_pairs(pair, ports)
    begin(pair)
    cables.link(cut, False)
    assert not pair[0].run("answer = ticket.done()")
    facts = end(pair)
    assert facts["elements"] == 256
    assert facts["ports"][ports[0]] > facts["ports"].get(ports[2], 0)
    if cut == "nic2":  # the other end of the wire does not lose its carrier
        links = pair[0].run("answer = {port.name: port.link()[0] for port in open_ports()}")
        assert links == {ports[0]: True, ports[2]: False}
    cables.link(cut, True)
    until(lambda: again(pair)["ports"].get(ports[2], 0) > 100, "the port is used again", 60)


def test_links_that_come_back_in_mid_slice_lose_nothing(pair: Pair, ports: list[str], cables: Monitor) -> None:
    a, _ = pair
    slice_over(pair, ports[:1], ports[1:2])
    begin(pair)
    for _ in range(2):
        cables.link("nic0", False)
        time.sleep(1)
        moved, total = a.run("answer = ticket.progress")
        assert moved < total
        cables.link("nic0", True)
        until(functools.partial(_progress, a, moved), "the slice goes on")
    facts = end(pair)
    assert facts["elements"] == 256
    assert facts["again"] > 0  # what was on the wire at the cut


def test_no_link_is_a_hint_of_the_error(pair: Pair, ports: list[str], cables: Monitor) -> None:
    a, _ = pair
    cables.link("nic0", False)
    a.run(f"tx = aiflow.Sender({ports[0]!r})")
    said = a.error("tx.send(images, timeout=3)")
    assert "SliceTimeout" in said
    assert f"{ports[0]}: no link" in said


@pytest.fixture
def kernels_card() -> Iterator[str]:
    """An interface of the kernel on the wire of nic0 and nic1. It is up only here: no one else takes its frames."""
    Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("1")
    machine.shell("ip", "link", "set", "eth0", "up")
    machine.shell("tc", "qdisc", "add", "dev", "eth0", "clsact")
    yield "af_packet:eth0"
    machine.shell("tc", "qdisc", "del", "dev", "eth0", "clsact")
    machine.shell("ip", "link", "set", "eth0", "down")


def test_frames_with_a_priority_tag_are_taken(
    pair: Pair, ports: list[str], monitor: Monitor, kernels_card: str
) -> None:
    """The kernel's card tags each frame with VLAN 0, as a switch does that knows priorities."""
    tag = ("vlan", "push", "id", "0", "priority", "3")
    machine.shell("tc", "filter", "add", "dev", "eth0", "egress", "matchall", "action", *tag)
    monitor.capture(True)
    try:
        facts = slice_over(pair, [kernels_card], ports[1:2])
        assert facts["elements"] == 64
        for console in pair:
            console.run("(globals().get('tx') or rx).close()")
    finally:
        monitor.capture(False)


def test_frames_of_another_vlan_are_refused(pair: Pair, ports: list[str], kernels_card: str) -> None:
    machine.shell(*("tc", "filter", "add", "dev", "eth0", "egress", "matchall", "action", "vlan", "push", "id", "7"))
    a, b = pair
    b.run(f"rx = aiflow.Receiver({ports[1]!r})")
    a.run(f"tx = aiflow.Sender({kernels_card!r})")
    assert "SliceTimeout" in a.error("tx.send(images, timeout=3)")
    assert b.run("answer = rx.counters['vlan']") > 0


def test_jumbo_frames(pair: Pair, ports: list[str]) -> None:
    plain = slice_over(pair, ports[:1], ports[1:2])
    for console in pair:
        console.run("(globals().get('tx') or rx).close(); globals().pop('tx', None) or globals().pop('rx', None)")
    jumbo = slice_over(pair, ports[:1], ports[1:2], ", frame_size=9014")
    assert jumbo["sent"] < plain["sent"] / 5
    assert pair[1].run("answer = rx.counters['segments']") == 0


def test_too_large_frames_are_refused_with_the_size_that_works(pair: Pair, ports: list[str]) -> None:
    said = pair[0].error(f"aiflow.Sender({ports[0]!r}, frame_size=40000)")
    assert "ConfigError" in said
    assert "bytes this card can send" in said


def test_elements_that_stay_in_their_mbufs(pair: Pair, ports: list[str]) -> None:
    facts = slice_over(pair, ports[:1], ports[1:2], ", assemble=False, memory='48MiB'")
    assert facts["elements"] == 64


def test_both_ways_over_the_same_two_cards(pair: Pair, ports: list[str]) -> None:
    for number, console in enumerate(pair):
        console.run(f"rx = aiflow.Receiver({ports[number]!r}, name='side-{number}')")
    for number, console in enumerate(pair):
        console.run(f"tx = aiflow.Sender({ports[number]!r}, to='side-{1 - number}')")
        assert console.run("answer = len(open_ports())") == 1
    for console in pair:
        console.start(
            """
            ticket = tx.send(images, wait=False)
            with rx.recv(timeout=60) as got:
                answer = same(got, images)
            ticket.result(timeout=60)
            """
        )
    for console in pair:
        assert console.finish()


def test_cards_open_again_and_again(pair: Pair, ports: list[str]) -> None:
    a, b = pair
    b.run(f"rx = aiflow.Receiver({ports[1]!r})")
    count = "answer = len(os.listdir('/proc/self/fd'))"
    before = a.run(count)
    for _ in range(4):
        a.run(f"tx = aiflow.Sender({ports[0]!r})")
        again(pair)
        a.run("tx.close(); del tx")
    assert a.run(count) == before


def test_an_idle_pair_sleeps_until_a_frame_interrupts_it(pair: Pair, ports: list[str]) -> None:
    a, b = pair
    slice_over(pair, ports[:1], ports[1:2])
    for console in pair:
        assert console.run("answer = [port.wakes for port in open_ports()]") == [True]
    clock = "answer = time.process_time()"
    time.sleep(1)
    begun = [console.run(clock) for console in pair]
    time.sleep(6)
    spent = [console.run(clock) - since for console, since in zip(pair, begun, strict=True)]
    print("processor time of 6 s idle:", spent)
    assert max(spent) < 0.6
    b.start("with rx.recv(timeout=60) as got: answer = time.time()")
    time.sleep(1)
    a.run("sent = time.time(); tx.send({'small': b'x' * 100}, timeout=10); answer = sent")
    assert b.finish() - a.run("answer = sent") < 1
