"""A waiting thread drives the loop itself, in turns with the worker; no waiting thread is forgotten."""

from __future__ import annotations

import ctypes
import resource
import threading
import time

import numpy as np
import pytest
from wait import PATIENCE_S, settle

import aiflow
from aiflow._dp_testing import driven, rests, thread_id
from aiflow.errors import ConfigError, SliceTimeout

PR_GET_TIMERSLACK = 30
DATA = np.arange(1024, dtype=np.uint8)


def test_waiting_calls_drive_both_ends() -> None:
    with aiflow.pair() as (tx, rx):
        tx.send([DATA], wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        before = driven(tx._agent.loop), driven(rx._agent.loop)
        for number in range(2000):
            ticket = tx.send([DATA], wait=False)
            assert bytes(rx.recv(timeout=PATIENCE_S)[0].array) == bytes(DATA), number
            ticket.result(PATIENCE_S)
            if number >= 50 and driven(rx._agent.loop) > before[1]:
                break  # beside other load the worker may be quicker for a while
        assert driven(rx._agent.loop) > before[1]
        blocked = threading.Thread(target=lambda: [rx.recv(timeout=PATIENCE_S).release() for _ in range(50)])
        blocked.start()
        for _ in range(50):
            tx.send([DATA], timeout=PATIENCE_S)
        blocked.join()
        assert driven(tx._agent.loop) > before[0]


def test_the_worker_takes_over_from_callers_that_are_gone() -> None:
    with aiflow.pair() as (tx, rx):
        for number in range(20):
            ticket = tx.send([DATA], wait=False)
            rx.recv(timeout=PATIENCE_S).release()  # it drove, and leaves
            later = tx.send([DATA], wait=False)
            assert settle(ticket.done, PATIENCE_S), number  # no thread waits in a loop of ours
            assert settle(later.done, PATIENCE_S), number
            rx.recv(timeout=PATIENCE_S).release()


def test_many_threads_share_a_loop_and_none_is_forgotten() -> None:
    threads, slices = 6, 100
    failures: list[BaseException] = []

    def sends(tx: aiflow.Sender, number: int) -> None:
        try:
            for count in range(slices):
                if (count + number) % 3:
                    tx.send([DATA], timeout=PATIENCE_S)
                else:
                    tx.send([DATA], wait=False).result(PATIENCE_S)
        except BaseException as error:
            failures.append(error)

    def receives(rx: aiflow.Receiver, counts: list[int]) -> None:
        try:
            for _ in range(threads * slices // 2):
                with rx.recv(timeout=PATIENCE_S) as time_slice:
                    counts.append(time_slice.slice_id)
        except BaseException as error:
            failures.append(error)

    counts: list[int] = []
    with aiflow.pair() as (tx, rx):
        crowd = [threading.Thread(target=sends, args=(tx, number)) for number in range(threads)]
        crowd += [threading.Thread(target=receives, args=(rx, counts)) for _ in range(2)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
    assert not failures
    assert sorted(counts) == list(range(1, threads * slices + 1))


def test_the_control_plane_gets_in_while_a_caller_drives(endpoint: str) -> None:
    outcome: list[BaseException] = []
    with aiflow.Receiver(endpoint, idle="spin") as rx:
        drives = driven(rx._agent.loop)

        def waits() -> None:
            try:
                rx.recv()
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=waits)
        thread.start()
        assert settle(lambda: driven(rx._agent.loop) > drives, PATIENCE_S)
        assert rx._agent.loop.between(lambda: 7) == 7
        with aiflow.Sender(endpoint):  # its port is attached between two iterations
            assert settle(lambda: len(rx.port_table) == 1, PATIENCE_S)
        rx.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert isinstance(outcome[0], ConfigError)


def switches_while_waiting(rx: aiflow.Receiver, seconds: float) -> int:
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    with pytest.raises(SliceTimeout):
        rx.recv(timeout=seconds)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


def test_spinning_never_sleeps_and_backing_off_does(name: str) -> None:
    with aiflow.Receiver(f"local:{name}-a", idle="spin") as spins, aiflow.Receiver(f"local:{name}-b") as sleeps:
        begun = time.thread_time()
        assert switches_while_waiting(sleeps, 0.5) > 0  # nothing is due meanwhile
        middle = time.thread_time()
        switches_while_waiting(spins, 0.5)
        assert time.thread_time() - middle > 10 * (middle - begun)


def test_a_waiting_caller_keeps_its_timer_slack(endpoint: str) -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    with aiflow.Receiver(endpoint) as rx:
        before = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
        assert switches_while_waiting(rx, 0.5) > 2  # it has slept, and exactly
        assert prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) == before


def test_idle_is_one_of_two(endpoint: str) -> None:
    for end in (aiflow.Sender, aiflow.Receiver):
        with pytest.raises(ConfigError, match="idle='furiously'"):
            end(endpoint, idle="furiously")


def test_a_send_that_is_given_up_ends_while_others_drive() -> None:
    with aiflow.pair(memory="1MiB") as (tx, rx):
        block = np.zeros(700_000, np.uint8)
        tx.send([block], wait=False)
        held = rx.recv(timeout=PATIENCE_S)  # no room for another one
        begun = time.monotonic()
        with pytest.raises(SliceTimeout):
            tx.send([block], timeout=0.2)
        assert time.monotonic() - begun < PATIENCE_S
        held.release()
        del held
        ticket = tx.send([block], wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        ticket.result(PATIENCE_S)


# ---- max_cores ----


def cpu_ns(loop: object) -> int:
    """Processor time of a loop's worker."""
    with open(f"/proc/self/task/{thread_id(loop)}/schedstat") as stat:
        return int(stat.read().split()[0])


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_max_cores_bounds_a_loop_that_has_much_to_do(name: str, end: str) -> None:
    share, endpoint = 0.1, f"ring:{name}"
    data = [np.zeros(4_000_000, np.uint8)]
    with (
        aiflow.Receiver(endpoint, max_cores=share if end == "receiver" else None) as rx,
        aiflow.Sender(endpoint, max_cores=share if end == "sender" else None) as tx,
    ):
        loop = (tx if end == "sender" else rx)._agent.loop
        tx.send(data, wait=False)
        assert settle(lambda: rx._agent.counters()["slices"] == 1, PATIENCE_S)
        rx.recv().release()
        begun, used, slices = time.monotonic(), cpu_ns(loop), 0
        tickets = [tx.send(data, wait=False) for _ in range(2)]
        while time.monotonic() - begun < 1.0 or slices < 3:  # there is always work, and no caller that drives
            if tickets[0].done():
                tickets.pop(0).result(0)
                tickets.append(tx.send(data, wait=False))
                slices += 1
            incoming = rx._agent.pop()
            if incoming is None:
                time.sleep(0.0005)
            del incoming
        measured = (cpu_ns(loop) - used) / 1e9 / (time.monotonic() - begun)
        assert rests(loop) > 10
        assert measured < 1.5 * share
        for ticket in tickets:
            while not ticket.done():
                rx._agent.pop()
                time.sleep(0.0005)


@pytest.mark.parametrize("max_cores", [0, -1, "two", float("nan"), True])
def test_max_cores_is_a_number_of_cores(endpoint: str, max_cores: object) -> None:
    for end in (aiflow.Sender, aiflow.Receiver):
        with pytest.raises(ConfigError, match="max_cores="):
            end(endpoint, max_cores=max_cores)
