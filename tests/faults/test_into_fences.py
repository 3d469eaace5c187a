"""A sender that is stopped while it writes into an array of `Receiver.empty`."""

from __future__ import annotations

import gc
import os
import signal
from multiprocessing.connection import Connection

import numpy as np
import pytest
from into_arrays import Call
from mbufs import everything_returned
from peer import MiB, Peer, name
from stalls import Stalls
from wait import PATIENCE_S, has_stopped, wait_for

import aiflow
from aiflow.errors import ConfigError

NBYTES = 128 * MiB
SILENCE_S = 1.0


def send_for_ever(pipe: Connection, endpoint: str) -> None:
    with aiflow.Sender(endpoint, peer_timeout=PATIENCE_S) as tx:
        array = np.full(NBYTES, 9, np.uint8)
        while not pipe.poll():
            tx.send({"x": array}, timeout=PATIENCE_S)


def test_an_array_is_refused_while_a_silent_sender_may_write_to_it_and_not_after_its_death() -> None:
    endpoint = f"local:{name()}"
    with (
        everything_returned(),
        aiflow.Receiver(endpoint, memory=NBYTES + 64 * MiB, peer_timeout=SILENCE_S) as rx,
        Peer(send_for_ever, endpoint) as sleeper,
    ):
        array = rx.empty(NBYTES, np.uint8)
        while True:
            call = Call(rx, PATIENCE_S, into={"x": array})
            wait_for(lambda rx=rx, call=call: not call.is_alive() or rx.progress[0] > 0, "bytes arrive")
            os.kill(sleeper.pid, signal.SIGSTOP)
            wait_for(lambda: has_stopped(sleeper.pid), "the sender stops")
            if call.is_alive() and rx._agent.offers and rx._agent.offers[0].bound and 0 < rx.progress[0] < NBYTES:
                break
            os.kill(sleeper.pid, signal.SIGCONT)
            call.ended().release()
        with Stalls() as stalls:
            wait_for(lambda: rx._agent.store.fenced == 1, "the array is fenced", SILENCE_S + 5 + stalls.allowance)
        with pytest.raises(ConfigError, match="a sender that fell silent may still write to the array of 'x'"):
            call.ended()
        array[:] = 5  # its user still has it
        assert rx.memory_used >= NBYTES
        with pytest.raises(ConfigError, match="a sender that fell silent may still write"):
            rx.recv(0, into={"y": array[:10]})
        os.kill(sleeper.pid, signal.SIGKILL)
        wait_for(lambda: rx._agent.store.fenced == 0, "the death of the sender is seen")
        with Peer(send_for_ever, endpoint) as other:
            with rx.recv(PATIENCE_S, into={"x": array}) as time_slice:
                assert (time_slice["x"].array == 9).all()
                assert np.shares_memory(time_slice["x"].array, array)
            os.kill(other.pid, signal.SIGKILL)
        del array, time_slice, call
    gc.collect()
    assert rx.memory_used == 0
