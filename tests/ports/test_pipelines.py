"""Relays: a process receives, works, and sends on. Chains keep names and order, trees split, full cycles say so."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mbufs import everything_returned
from peer import MiB, Peer, content
from peer import name as local_name
from wait import PATIENCE_S, settle

import aiflow
from aiflow.errors import SliceTimeout

SLICES = 12
CYCLE = "a", "b", "c"
CYCLE_MEMORY, CYCLE_BYTES = 4 * MiB, 1_500_000


def elements(number: int) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Slice `number` of the source: names, dtypes and sizes that differ from those of its neighbours."""
    image = content(number, 30_000 * (number % 3) + 12).reshape(-1, 3)
    return [(f"left-{number}", image), ("right", image[:4]), ("right", np.arange(number, dtype="<f8"))]


def source(pipe: Any, ports: str, to: str) -> None:
    with everything_returned(), aiflow.Sender(ports, to=to, name="source", peer_timeout=PATIENCE_S) as tx:
        for number in range(SLICES):
            tx.send(elements(number), timeout=PATIENCE_S)


def relay(pipe: Any, here: str | list[str], there: str | list[str] | None, me: str, to: str | list[str]) -> None:
    """Add a stream to each slice and send it on, until the sender before has closed.

    Without `there` it sends over the ports that it receives on.
    """
    with everything_returned(), contextlib.ExitStack() as stack:
        ports: Any = here if there else stack.enter_context(aiflow.Ports(here))
        rx = stack.enter_context(aiflow.Receiver(ports, name=me, until="bye"))
        tx = stack.enter_context(
            aiflow.Sender(there or ports, to=to, name=me, peer_timeout=PATIENCE_S, partition="by_stream")
        )
        pipe.send("open")
        for time_slice in rx:
            tx.send([*time_slice, (me, np.array([time_slice.slice_id]))], timeout=PATIENCE_S)


def own_ports(stack: contextlib.ExitStack) -> tuple[Peer, Peer, aiflow.Receiver, str]:
    """Two relays, the last Receiver, and the endpoint of the first relay. Each listens, and calls the next."""
    one, two, last = (f"local:{local_name()}" for _ in range(3))
    rx = stack.enter_context(aiflow.Receiver(last, name="last", until="bye"))
    second = stack.enter_context(Peer(relay, two, last, "second", "last"))
    first = stack.enter_context(Peer(relay, one, two, "first", "second"))
    assert (first.hear(), second.hear()) == ("open", "open")
    return first, second, rx, one


def shared_ports(stack: contextlib.ExitStack) -> tuple[Peer, Peer, aiflow.Receiver, str]:
    """The same; each relay receives and sends over the same ports. The first process that opens a name owns it."""
    one, two = (f"local:{local_name()}" for _ in range(2))
    first = stack.enter_context(Peer(relay, one, None, "first", "second"))
    assert first.hear() == "open"
    second = stack.enter_context(Peer(relay, [one, two], None, "second", "last"))
    assert second.hear() == "open"
    ports = stack.enter_context(aiflow.Ports(two))
    return first, second, stack.enter_context(aiflow.Receiver(ports, name="last", until="bye")), one


@pytest.mark.parametrize("over", [own_ports, shared_ports])
def test_a_chain_keeps_names_and_order(over) -> None:
    with contextlib.ExitStack() as stack:
        first, second, rx, one = over(stack)
        with Peer(source, one, "first") as sending:
            for number, time_slice in enumerate(rx):
                *sent, of_first, of_second = time_slice
                assert time_slice.sender == "second"
                assert [element.stream for element in sent] == [stream for stream, _ in elements(number)]
                for element, (_, array) in zip(sent, elements(number), strict=True):
                    assert (element.dtype, element.shape) == (array.dtype, array.shape)
                    assert np.array_equal(element.array, array)
                assert [(each.stream, *each.array) for each in (of_first, of_second)] == [
                    ("first", number + 1),
                    ("second", number + 1),
                ]
            assert number + 1 == SLICES
            sending.ends()
        first.ends()
        second.ends()


def test_a_tree_splits_what_its_relay_receives() -> None:
    here, *leaves = (local_name() for _ in range(3))
    with (
        aiflow.Receiver(f"local:{leaves[0]}") as left,
        aiflow.Receiver(f"local:{leaves[1]}") as right,
        Peer(relay, f"local:{here}", [f"local:{leaf}" for leaf in leaves], "relay", leaves) as middle,
    ):
        assert middle.hear() == "open"
        with Peer(source, f"local:{here}", "relay") as sending:
            for number in range(SLICES):
                with left.recv(PATIENCE_S) as one, right.recv(PATIENCE_S) as other:
                    assert {one.sender, other.sender} == {"relay"}
                    got = sorted((each.stream, each.tobytes()) for part in (one, other) for each in part)
                    sent = [(stream, array.tobytes()) for stream, array in elements(number)]
                    assert got == sorted([*sent, ("relay", np.array([number + 1]).tobytes())])
            sending.ends()
        middle.ends()


@contextlib.contextmanager
def relay_without_a_next_node(memory: str = "16MiB") -> Iterator[tuple[aiflow.Receiver, aiflow.Sender, str]]:
    """A relay that holds one slice, and whose next node does not listen yet: its Receiver, its Sender, that node."""
    here, there = local_name(), local_name()
    with (
        aiflow.Receiver(f"ring:{here}", memory=memory) as rx,
        aiflow.Sender(f"ring:{there}", peer_timeout=PATIENCE_S) as tx,
        aiflow.Sender(f"ring:{here}") as upstream,
    ):
        upstream.send({"x": np.arange(100_000)}, timeout=PATIENCE_S)
        yield rx, tx, f"ring:{there}"


def test_what_is_passed_on_is_read_where_it_lies() -> None:
    with relay_without_a_next_node() as (rx, tx, there):
        time_slice = rx.recv(PATIENCE_S)
        array = time_slice["x"].array
        ticket = tx.send(time_slice, wait=False)
        array[7] = -1  # no program may do this: a copy would not show it
        with aiflow.Receiver(there) as last, last.recv(PATIENCE_S) as got:
            ticket.result(PATIENCE_S)
            assert got["x"].array[7] == -1
        time_slice.release()


def test_a_slice_is_freed_when_the_next_node_has_it() -> None:
    with relay_without_a_next_node() as (rx, tx, there):
        with rx.recv(PATIENCE_S) as time_slice:
            ticket = tx.send(time_slice, wait=False)
        held = rx.memory_used
        assert held >= 800_000
        with aiflow.Receiver(there) as last, last.recv(PATIENCE_S) as got:
            ticket.result(PATIENCE_S)
            assert settle(lambda: rx.memory_used == 0)
            assert np.array_equal(got["x"].array, np.arange(100_000))


def test_slices_that_have_ended_free_a_relay_that_waits_for_the_next() -> None:
    """Its memory holds two slices, it has sent both on, and nothing asks for their results."""
    data = np.zeros(1_500_000, np.uint8)
    here, there = (f"ring:{local_name()}" for _ in range(2))
    with (
        aiflow.Receiver(here, memory="4MiB") as rx,
        aiflow.Receiver(there) as last,
        aiflow.Sender(there) as tx,
        aiflow.Sender(here) as upstream,
    ):
        tickets = [upstream.send([data], wait=False) for _ in range(6)]
        for _, time_slice in zip(tickets, rx, strict=False):
            tx.send(time_slice, wait=False)
        for ticket in tickets:
            ticket.result(PATIENCE_S)
        for _ in tickets:
            with last.recv(PATIENCE_S) as got:
                assert got.nbytes == data.nbytes


# ---- a cycle ----


def cyclic(pipe: Any, here: str, there: str, me: str, to: str) -> None:
    """Fill the next node's memory with own slices, then try to send on what came."""
    with (
        aiflow.Receiver(here, name=me, memory=CYCLE_MEMORY) as rx,
        aiflow.Sender(there, to=to, name=me, peer_timeout=PATIENCE_S) as tx,
    ):
        pipe.send("open")
        tickets = [tx.send({"own": content(number, CYCLE_BYTES)}, wait=False) for number in range(4)]
        tickets[1].result(PATIENCE_S)  # more does not fit
        pipe.recv()
        with rx.recv(PATIENCE_S) as time_slice:
            calls = [lambda: tx.send(time_slice, timeout=0.7), lambda: tickets[2].result(0.1)]
            for call in calls:
                with pytest.raises(aiflow.AiflowError) as caught:
                    call()
                pipe.send((type(caught.value).__name__, str(caught.value)))
            pipe.recv()
        for ticket in tickets:
            ticket.cancel()


def test_a_cycle_of_full_relays_says_who_holds_what() -> None:
    names = {each: local_name() for each in CYCLE}
    with contextlib.ExitStack() as stack:
        nodes = {
            me: stack.enter_context(Peer(cyclic, f"local:{names[me]}", f"local:{names[to]}", me, to))
            for me, to in zip(CYCLE, (*CYCLE[1:], CYCLE[0]), strict=True)
        }
        for node in nodes.values():
            assert node.hear() == "open"
        for node in nodes.values():
            node.tell("go")
        for me, node in nodes.items():
            to, before = (CYCLE[(CYCLE.index(me) + step) % 3] for step in (1, -1))
            holds = (
                rf"the receiver '{to}' has no memory for it yet: (\d+) bytes are free there, and it takes (\d+); .*"
                rf"in this process Receiver '{me}' holds (\d+) of its {CYCLE_MEMORY} bytes, in slice 1 from "
                rf"'{before}' \((\d+) bytes\), (\d+) of them .*, and a sender waits for (\d+) bytes of it"
            )
            kind, text = node.hear()
            assert kind == SliceTimeout.__name__
            assert "was given up before it was delivered: in 0.7 s slices before it are in flight" in text
            free, takes, held, of_first, rest, awaited = map(int, re.search(holds, text).groups())
            assert free < CYCLE_BYTES <= takes
            assert held == of_first + rest
            assert 2 * CYCLE_BYTES <= held <= CYCLE_MEMORY
            assert awaited >= CYCLE_BYTES
            kind, text = node.hear()
            assert kind == SliceTimeout.__name__
            assert re.search(holds, text)
        for node in nodes.values():
            node.tell("end")
        for node in nodes.values():
            node.ends()
