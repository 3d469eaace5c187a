"""A step of the system clock changes no transfer and no timeout. Fault 52."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from peer import BIG, SLOWLY, MiB, Peer, content, in_the_middle, name, no_slice
from stalls import Stalls
from wait import PATIENCE_S, wait_for

import aiflow
from aiflow.errors import SliceTimeout

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static volatile long ahead;

void step_clock(long seconds) { ahead += seconds; }

int clock_gettime(clockid_t clock, struct timespec *t)
{
    static int (*real)(clockid_t, struct timespec *);
    int rc;

    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    rc = real(clock, t);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        t->tv_sec += ahead;
    return rc;
}

time_t time(time_t *out)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec t;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    out->tv_sec = t.tv_sec;
    out->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""


def step_clock(seconds: int) -> float:
    """Step this process's wall clock; return by how much it moved against the monotonic clock."""
    before = time.time() - time.monotonic()
    ctypes.CDLL(None).step_clock(ctypes.c_long(seconds))
    return time.time() - time.monotonic() - before


def send_while_the_clock_steps(pipe: Connection, endpoint: str) -> None:
    with aiflow.Sender(endpoint, peer_timeout=2, faults=SLOWLY) as tx:
        wait_for(lambda: tx.receiver, "the receiver")
        for step in (3600, -7200):
            ticket = tx.send({"x": content(52, BIG // 2)}, wait=False)
            at_step = in_the_middle(lambda ticket=ticket: ticket.progress)
            stepped = step_clock(step)
            middle = ticket.progress[0] < at_step[1]
            pipe.send((stepped, middle, ticket.result(timeout=PATIENCE_S).nbytes))
        pipe.recv()
        array = content(52, BIG // 2)
        with Stalls() as stalls:
            started = time.monotonic()
            ticket = tx.send({"x": array}, wait=False)  # there is no memory for it
            step_clock(3600)
            try:
                ticket.result(timeout=1.5)
            except SliceTimeout:
                pipe.send((time.monotonic() - started, stalls.allowance))
        ticket.cancel()


def receive_while_the_clock_steps(pipe: Connection, endpoint: str) -> None:
    with aiflow.Receiver(endpoint, memory=BIG // 2 + MiB, peer_timeout=2) as rx:
        pipe.send("open")
        for step in (3600, -7200):
            stepped = step_clock(step) if not pipe.send(in_the_middle(lambda: rx.progress)) else 0
            held = rx.recv(timeout=PATIENCE_S)
            latency = held["x"].latency_ns
            pipe.send((stepped, np.array_equal(held["x"].array, content(52, BIG // 2)), latency))
            if step > 0:
                del held
        timer = threading.Timer(0.3, step_clock, (3600,))
        timer.start()
        with Stalls() as stalls:
            started = time.monotonic()
            pipe.send(no_slice(rx, 1.0) and (time.monotonic() - started, stalls.allowance))
        timer.join()
        pipe.recv()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, to build the clock that steps")
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_fault_52_a_clock_step_changes_neither_transfer_nor_timeouts(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    clock = tmp_path / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", clock, tmp_path / "clock.c", "-ldl"], check=True)
    endpoint = f"local:{name()}"
    monkeypatch.setenv("LD_PRELOAD", str(clock))  # both have a clock of their own; one steps it
    with (
        Peer(receive_while_the_clock_steps, endpoint) as receiver,
        Peer(send_while_the_clock_steps, endpoint) as sender,
    ):
        monkeypatch.delenv("LD_PRELOAD")
        assert receiver.hear() == "open"
        for step in (3600, -7200):
            at_step, total = receiver.hear()
            assert 0 < at_step < total
            stepped, same, _ = receiver.hear()
            assert abs(stepped - step) < 1
            assert same
            stepped, middle, nbytes = sender.hear()
            assert abs(stepped - step) < 1
            assert middle
            assert nbytes == BIG // 2
        seconds, allowance = receiver.hear()
        assert 1.0 <= seconds < 1.5 + allowance
        sender.tell("go on")
        seconds, allowance = sender.hear()
        assert 1.5 <= seconds < 2.0 + allowance
        sender.ends()
        receiver.tell("close")
        receiver.ends()
