"""Receivers that close while senders connect and send: no other process fails, whatever the moment."""

from __future__ import annotations

import textwrap

import pytest
from subprocesses import run

SENDER = """
    import ctypes, signal, sys, numpy as np, aiflow
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: with the receiver, should it fall
    data = np.zeros(300_000, np.uint8)
    while True:
        try:
            with aiflow.Sender(sys.argv[1]) as tx:
                for _ in range(20):
                    tx.send([data] * 8, timeout=10)
        except aiflow.AiflowError:
            pass
"""

RECEIVER = """
    import random, subprocess, sys, textwrap, time, aiflow
    senders = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(sys.argv[2]), sys.argv[1]],
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
               for _ in range(3)]
    generator, slices, turns, patience = random.Random(4), 0, 0, time.monotonic() + 200
    try:
        while turns < int(sys.argv[3]) or (not slices and time.monotonic() < patience):
            turns += 1
            with aiflow.Receiver(sys.argv[1]) as rx:
                end = time.monotonic() + generator.uniform(0.05, 0.4)
                while time.monotonic() < end:
                    try:
                        rx.recv(timeout=0.05).release()
                        slices += 1
                    except aiflow.SliceTimeout:
                        pass
            assert all(sender.poll() is None for sender in senders), "a sender fell"
        print(slices)
    finally:
        for sender in senders:
            sender.kill()
            sender.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["local", "vhost"])
def test_a_receiver_may_close_while_senders_come_and_go(name, scheme) -> None:
    """In a process of its own: DPDK once panicked here."""
    assert int(run(RECEIVER, f"{scheme}:{name}", textwrap.dedent(SENDER), "30", timeout=280)) > 0
