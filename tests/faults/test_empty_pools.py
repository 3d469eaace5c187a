"""A mempool that runs empty costs time and nothing else. Fault 46."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from mbufs import everything_returned
from peer import BIG, Peer, content, in_the_middle, name, receive_once, send_once
from wait import PATIENCE_S, wait_for

import aiflow

UNHURRIED = {"link_speed": "4gbit"}  # a quarter of a second for a slice: its middle cannot be missed


def with_pool_of(kind: type, nb_mbufs: int) -> type:
    """A Sender or Receiver whose ports share one pool, too small to keep mbufs in a cache."""

    made: list[Any] = []

    class Pools:
        def __init__(self, *_: Any) -> None:
            """Takes the arguments of the class that it replaces."""

        def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Any:
            from aiflow._eal import Mempool

            made.append(Mempool("scant", nb_mbufs, frame_size, socket_id, not needs_eal_memory))
            return made[-1]

        def clear(self) -> None:
            """The ports still hold theirs."""

    class Scant(kind):  # type: ignore[misc, valid-type]
        @property
        def scant(self) -> Any:
            if not made:
                raise AttributeError("no port is open yet")
            return made[-1]

    module = sys.modules[kind.__module__]  # in a process of its own
    name, stand_in = ("port_pool", Pools()) if kind is aiflow.Sender else ("ReceiverPools", Pools)
    assert hasattr(module, name)
    setattr(module, name, stand_in)
    return Scant


HELD_S = 1.0  # the whole slice would take a quarter of it


def hold_all(end: Any, progress: Callable[[], tuple[int, int]]) -> dict[str, Any]:
    """Take every mbuf out of the pool of `end` in mid-slice, for a while: into a ring.

    The one that the loop keeps for its next frame may go round meanwhile, and the slice creep on with it: two thousand
    frames or so in this time, a third of the slice.
    """
    from aiflow import _dp_testing, _eal

    wait_for(lambda: hasattr(end, "scant"), "the first port")
    pool = end.scant
    port, other = _eal.Port.open_ring_pair(name(), pool, nb_rxd=1024)

    def take() -> int:
        taken = 0
        while _dp_testing.inject(port, [bytes(60)]):
            taken += 1
        return taken

    in_the_middle(progress)
    held, until = 0, time.monotonic() + HELD_S
    while time.monotonic() < until:
        held += end._agent.loop.between(take)  # between two bursts
        time.sleep(0.001)
    facts = {"held": held, "in_use": pool.in_use, "nb_mbufs": pool.nb_mbufs, "after": progress()[0]}
    while _dp_testing.drain(other):
        pass
    port.close()
    other.close()
    return facts


def scant_sender(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), with_pool_of(aiflow.Sender, 64)(endpoint, **UNHURRIED) as tx:
        ticket = tx.send({"x": content(47, BIG)}, wait=False)
        pipe.send(hold_all(tx, lambda: ticket.progress))
        pipe.send(ticket.result(timeout=PATIENCE_S).nbytes)


def scant_receiver(pipe: Connection, endpoint: str) -> None:
    with everything_returned(), with_pool_of(aiflow.Receiver, 64)(endpoint) as rx:
        pipe.send("open")
        pipe.send(hold_all(rx, lambda: rx.progress))
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            pipe.send(np.array_equal(time_slice["x"].array, content(48, BIG)))
        pipe.recv()


def was_empty(facts: dict[str, Any]) -> bool:
    return bool(0 < facts["after"] < BIG // 2 and facts["in_use"] >= facts["nb_mbufs"] - 1)


def test_fault_46_an_empty_mempool_of_the_sender_costs_time_only() -> None:
    endpoint = f"local:{name()}"
    with Peer(receive_once, endpoint, 47, BIG) as receiver, Peer(scant_sender, endpoint) as sender:
        assert receiver.hear() == "open"
        facts = sender.hear()
        assert was_empty(facts), facts
        assert receiver.hear() is True
        assert sender.hear() == BIG
        receiver.tell("close")
        sender.ends()
        receiver.ends()


def test_fault_46_an_empty_mempool_of_the_receiver_costs_time_only() -> None:
    endpoint = f"local:{name()}"
    with Peer(scant_receiver, endpoint) as receiver, Peer(send_once, endpoint, 48, BIG, UNHURRIED) as sender:
        assert receiver.hear() == "open"
        facts = receiver.hear()
        assert was_empty(facts), facts
        assert receiver.hear() is True
        assert sender.hear() == BIG
        sender.ends()
        receiver.tell("close")
        receiver.ends()
