"""A card that is taken away while it is open. The last tests: a pulled card does not come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import machine
import pytest
from consoles import Console, until
from machine import Monitor


@pytest.fixture
def sides() -> Iterator[tuple[Console, Console]]:
    """Two processes of this test's own."""
    with Console() as a, Console() as b:
        yield a, b


def test_the_kernel_takes_a_card_back(sides: tuple[Console, Console], cards: list[str], ports: list[str]) -> None:
    a, b = sides
    b.run(f"rx = aiflow.Receiver({ports[1]!r})")
    a.run(f"tx = aiflow.Sender({ports[0]!r})")
    b.start("with rx.recv(timeout=60) as got: answer = same(got, images)")
    a.run("tx.send(images, timeout=60)")
    assert b.finish()
    taking = threading.Thread(target=machine.unbind, args=(cards[0],))  # waits until the card is free
    taking.start()
    taking.join(10)
    assert not taking.is_alive(), "the process keeps the card"
    said = a.error("tx.send(images, timeout=20)")
    assert said.startswith("PortError")
    assert ports[0] in said
    assert "was removed" in said
    a.run("tx.close()")
    machine.bind(cards[0], "vfio-pci")
    a.run(f"tx = aiflow.Sender({ports[0]!r})")
    b.start("with rx.recv(timeout=60) as got: answer = same(got, images)")
    a.run("tx.send(images, timeout=60)")
    assert b.finish()
    a.run("tx.close()")
    b.run("rx.close()")


def test_a_pulled_card_costs_a_port_and_no_image(
    sides: tuple[Console, Console], ports: list[str], cards: list[str], monitor: Monitor
) -> None:
    a, b = sides
    b.run(f"rx = aiflow.Receiver({ports[1::2]!r})")
    a.run(f"tx = aiflow.Sender({ports[::2]!r})")
    b.start("with rx.recv(timeout=60) as got: answer = same(got, images)")
    a.run("tx.send(images, timeout=60)")
    assert b.finish()
    monitor.run("device_del", id="nic2")
    b.start("answer = []\nfor _ in range(3):\n    with rx.recv(timeout=60) as got: answer.append(same(got, images))")
    for _ in range(3):
        facts = a.run("answer = facts(tx.send(images, timeout=60))")
        time.sleep(1)
    assert b.finish() == [True] * 3
    assert set(facts["ports"]) == {ports[0]}
    assert a.run("answer = [row['state'] for row in tx.describe()]") == ["up", "removed"]
    until(lambda: not (machine.DEVICES / cards[2]).exists(), "the kernel has given the card up", 30)
    a.run("tx.close()")
    b.run("rx.close()")
