"""Loans between processes, which are killed, stopped or closed while they hold some."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from loans import Array, filled, used
from mbufs import everything_returned
from peer import MiB, Peer, content
from wait import PATIENCE_S, Deadline, has_stopped, wait_for

import aiflow
from aiflow.errors import PeerLost


def test_loans_go_both_ways_over_shared_ports(endpoint: str) -> None:
    with Peer(echo, endpoint) as peer, aiflow.Ports(endpoint) as ports:
        peer.hear()
        with aiflow.Receiver(ports, name="here", loans=True) as rx, aiflow.Sender(ports, to="there", name="a") as tx:
            deadline = Deadline()
            while True:
                loan = filled(tx, MiB, seed=5)
                report = tx.send({"x": loan}, timeout=PATIENCE_S)
                with rx.recv(PATIENCE_S) as time_slice:
                    assert np.array_equal(time_slice["x"].array, loan)
                    lent = report.lent_bytes, time_slice["x"].array.flags.writeable
                del loan
                if lent == (MiB, False):
                    break
                deadline.check(lent)
            wait_for(lambda: used(tx) == 0, "it came back")
            tx.send({"end": b""})
        peer.ends()


def echo(pipe: Connection, endpoint: str) -> None:
    """What arrives goes back as a loan."""
    with everything_returned(), aiflow.Ports(endpoint) as ports:
        pipe.send("open")
        with aiflow.Receiver(ports, name="there", loans=True) as rx, aiflow.Sender(ports, to="here", name="b") as tx:
            for time_slice in rx:
                if "end" in time_slice:
                    break
                loan = tx.loan(MiB)
                loan[:] = time_slice["x"].array
                tx.send({"x": loan}, timeout=PATIENCE_S)
                del loan


def hold(pipe: Connection, endpoint: str, options: dict[str, Any]) -> None:
    """Take slices, and say what is in them; hold them until a message says "release"."""
    with everything_returned(), aiflow.Receiver(endpoint, loans=True, **options) as rx:
        pipe.send("open")
        held = []
        while True:
            if pipe.poll():
                if (told := pipe.recv()) == "end":
                    break
                held = [array for array in held if told != "release"]
            if not no_slice_in(rx, held):
                pipe.send((held[-1].nbytes, held[-1].flags.writeable, int(held[-1][0])))
        held.clear()


def no_slice_in(rx: aiflow.Receiver, held: list[Array]) -> bool:
    try:
        with rx.recv(0.02) as time_slice:
            held.append(time_slice["x"].array)
    except aiflow.SliceTimeout:
        return True
    return False


def lent_to(tx: aiflow.Sender, peer: Peer, number: int) -> None:
    """Send loans to a peer that holds them, until one is lent."""
    deadline = Deadline()
    while True:
        loan = tx.loan(MiB)
        loan[:] = number
        try:
            report = tx.send({"x": loan}, timeout=PATIENCE_S)
        except PeerLost:  # an earlier peer was killed a moment ago
            continue
        assert peer.hear()[2] == number
        if report.lent_bytes:
            return
        del loan
        deadline.check("no loan is lent")


def test_a_killed_receiver_gives_back_what_it_held(endpoint: str) -> None:
    with everything_returned(), aiflow.Sender(endpoint, loan_memory=8 * MiB) as tx:
        for turn in range(3):
            with Peer(hold, endpoint, {}) as peer:
                assert peer.hear() == "open"
                lent_to(tx, peer, turn)
                lent_to(tx, peer, turn + 1)
                assert used(tx) >= 2 * MiB
                os.kill(peer.pid, signal.SIGKILL)
                wait_for(lambda: used(tx) == 0, "its process is gone")
                tx.loan(8 * MiB)[:] = 1


def test_a_receiver_that_releases_while_it_goes_on(endpoint: str) -> None:
    with everything_returned(), aiflow.Sender(endpoint) as tx, Peer(hold, endpoint, {}) as peer:
        assert peer.hear() == "open"
        for turn in range(5):
            lent_to(tx, peer, turn)
            assert used(tx) == MiB
            peer.tell("release")
            wait_for(lambda: used(tx) == 0, "it has released")
        peer.tell("end")
        peer.ends()


def lend_and_wait(pipe: Connection, endpoint: str) -> None:
    with aiflow.Sender(endpoint) as tx:
        while True:
            loan = filled(tx, 4 * MiB, seed=3)
            if tx.send({"x": loan}, timeout=PATIENCE_S).lent_bytes:
                pipe.send("lent")
            del loan
            if pipe.recv() == "end":
                return


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_what_was_lent_outlives_its_sender(endpoint: str, how: str) -> None:
    with aiflow.Receiver(endpoint, loans=True) as rx:
        for _ in range(2):
            with Peer(lend_and_wait, endpoint) as peer:
                arrays = []
                while True:
                    with rx.recv(PATIENCE_S) as time_slice:
                        arrays.append(time_slice["x"].array)
                    if not arrays[-1].flags.writeable:
                        break
                    peer.tell("again")
                assert peer.hear() == "lent"
                if how == "killed":
                    os.kill(peer.pid, signal.SIGKILL)
                    assert peer.killed()
                else:
                    peer.tell("end")
                    peer.ends()
                wait_for(lambda: rx._agent.nb_sessions == 0 or how == "closed", "the receiver has seen its end")
            assert all(np.array_equal(array, content(3, 4 * MiB)) for array in arrays)


def test_a_stopped_receiver_never_reads_what_its_sender_has_used_again(endpoint: str) -> None:
    with (
        everything_returned(),
        aiflow.Sender(endpoint, peer_timeout=1, loan_memory=4 * MiB) as tx,
        Peer(hold, endpoint, {"peer_timeout": 60}) as peer,
    ):
        assert peer.hear() == "open"
        lent_to(tx, peer, 1)
        peer.tell("release")
        wait_for(lambda: used(tx) == 0, "it has released")
        for number in (2, 3):
            os.kill(peer.pid, signal.SIGSTOP)
            wait_for(lambda: has_stopped(peer.pid), "it stops")
            loan = tx.loan(3 * MiB)
            loan[:] = 100
            with pytest.raises(PeerLost) as caught:
                tx.send({"x": loan})
            assert caught.value.delivered is None  # its frame may be in the ring
            del loan, caught
            assert used(tx) == 0  # but no process can take it any more
            again = tx.loan(3 * MiB)  # the same pages
            again[:] = 200
            os.kill(peer.pid, signal.SIGCONT)
            del again
            lent_to(tx, peer, number)
            peer.tell("release")
            wait_for(lambda: used(tx) == 0, "it has released")
        peer.tell("end")
        peer.ends()
