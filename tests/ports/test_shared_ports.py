"""`aiflow.Ports`: opened once in a process, and shared by its Senders and Receivers in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from peer import Peer
from subprocesses import run
from wait import settle

import aiflow
from aiflow import _eal, _engine, receiver, sender, shared_ports
from aiflow._ports import opening
from aiflow.errors import ConfigError, PeerLost

PATIENCE_S = 20
DATA = np.arange(300_000, dtype=np.uint32)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls that run at once."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(PATIENCE_S) for future in [pool.submit(call) for call in calls]]


def deliver(tx: aiflow.Sender, rx: aiflow.Receiver, count: int = 10) -> None:
    """Send slices, and check that each arrives as it was sent."""
    for number in range(count):
        sent = DATA + number
        ticket = tx.send({"x": sent}, wait=False)
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            assert time_slice.sender == tx.name
            assert np.array_equal(time_slice["x"].array, sent)
        ticket.result(PATIENCE_S)


@contextmanager
def interrupting(*files: str, line: int) -> Iterator[list[str]]:
    """Interrupt this thread when it comes to the `line`-th line that it executes in these files."""
    strikes: list[str] = []
    passed = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename not in files:
            return None
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not source.startswith("with "):  # no signal comes between a block and its __exit__
            passed += 1
            if passed == line:
                strikes.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                raise KeyboardInterrupt
        return trace

    was = sys.gettrace()
    sys.settrace(trace)
    try:
        yield strikes
    finally:
        sys.settrace(was)


@pytest.fixture(params=["ring", "local"])
def ends(request, name: str):
    """Two Ports that are joined; over ring: and local: a Ports takes the end that is free."""
    endpoint = f"{request.param}:{name}*2"
    with aiflow.Ports(endpoint) as one, aiflow.Ports(endpoint) as other:
        yield one, other


def test_both_directions_at_once(ends) -> None:
    one, other = ends
    with (
        aiflow.Receiver(one, name="a") as rx_a,
        aiflow.Sender(one, name="a", to="b") as tx_a,
        aiflow.Receiver(other, name="b") as rx_b,
        aiflow.Sender(other, name="b", to="a") as tx_b,
    ):
        together(lambda: deliver(tx_a, rx_b), lambda: deliver(tx_b, rx_a))
        assert [row["users"] for row in one.describe()] == [["Receiver 'a'", "Sender 'a'"]]
        assert len(tx_a.port_table) == len(rx_a.port_table) == 2


def test_several_senders_and_receivers_on_the_same_ports(ends) -> None:
    one, other = ends
    with (
        aiflow.Receiver(other, name="b0") as rx_0,
        aiflow.Receiver(other, name="b1") as rx_1,
        aiflow.Sender(one, name="a0", to="b0") as tx_0,
        aiflow.Sender(one, name="a1", to="b1") as tx_1,
        aiflow.Receiver(one, name="a") as rx_back,
        aiflow.Sender(other, name="b", to="a") as tx_back,
    ):
        together(
            lambda: deliver(tx_0, rx_0),
            lambda: deliver(tx_1, rx_1),
            lambda: deliver(tx_back, rx_back),
        )
        drops = tx_0.counters["session"] + rx_0.counters["session"]
        assert drops == 0


def test_a_sender_of_several_receivers_beside_another_sender(ends) -> None:
    one, other = ends
    with (
        aiflow.Receiver(other, name="b0") as rx_0,
        aiflow.Receiver(other, name="b1") as rx_1,
        aiflow.Sender(one, name="both", to=["b0", "b1"]) as both,
        aiflow.Sender(one, name="one", to="b0") as single,
    ):
        for _ in range(3):
            ticket = both.send([DATA, DATA], wait=False)
            assert sum(len(rx.recv(timeout=PATIENCE_S)) for rx in (rx_0, rx_1)) == 2
            ticket.result(PATIENCE_S)
            deliver(single, rx_0, 1)


def test_a_sender_never_pairs_with_a_receiver_of_its_own_ports(ends) -> None:
    one, other = ends
    with aiflow.Receiver(one, name="a") as own, aiflow.Sender(one, name="a", peer_timeout=1) as tx:
        with pytest.raises(PeerLost):
            tx.send([DATA])
        with aiflow.Receiver(other, name="b") as rx:
            deliver(tx, rx, 2)
        assert own.counters["slices"] == 0


def test_two_receivers_of_one_port_are_told_apart_by_name_only(ends) -> None:
    one, other = ends
    with (
        aiflow.Receiver(other, name="b0"),
        aiflow.Receiver(other, name="b1") as rx,
        aiflow.Sender(one, name="a") as tx,
        aiflow.Sender(one, name="b", to="b1") as named,
    ):
        with pytest.raises(ConfigError, match=r"several receivers answer on .*: 'b[01]' .*, 'b[01]' "):
            tx.send([b"x"], timeout=PATIENCE_S)
        deliver(named, rx, 1)


def test_agents_close_in_any_order_and_ports_last(ends) -> None:
    one, other = ends
    rx = aiflow.Receiver(other, name="b")
    first, second = aiflow.Sender(one, name="a0"), aiflow.Sender(one, name="a1")
    deliver(first, rx, 2)
    with pytest.raises(ConfigError, match="in use: close Sender 'a0', Sender 'a1' first"):
        one.close()
    first.close()
    deliver(second, rx, 2)
    rx.close()
    with aiflow.Receiver(other, name="b") as again:
        deliver(second, again, 2)
    second.close()
    one.close()
    one.close()
    with pytest.raises(ConfigError, match="these Ports are closed"):
        aiflow.Sender(one)


def test_a_receiver_that_closes_is_known_at_once_while_its_ports_stay(ends) -> None:
    one, other = ends
    rx = aiflow.Receiver(other, name="b", memory="1MiB")
    with aiflow.Sender(one, peer_timeout=60) as tx, aiflow.Receiver(one):  # something else keeps the ports busy
        held = tx.send([bytes(600_000)], wait=False)
        time_slice = rx.recv(timeout=PATIENCE_S)
        held.result(PATIENCE_S)
        tx.send([bytes(600_000)], wait=False)  # no memory for it while the first is held
        assert settle(lambda: tx.receivers == ("b",))
        rx.close()
        assert settle(lambda: not tx.receivers, 5)  # by its goodbye: no silence would be noticed for a minute
        time_slice.release()
        tx.close(abort=True)


def test_a_later_user_asks_for_what_the_ports_are(name: str) -> None:
    with aiflow.Ports(f"local:{name}", frame_size=4096, polling=aiflow.Polling(idle="spin")) as ports:
        for end in (aiflow.Sender, aiflow.Receiver):
            end(ports, frame_size=4096, idle="spin").close()
            with pytest.raises(ConfigError, match=r"frame_size=4096.* frame_size=1514 was asked for"):
                end(ports, frame_size=1514)
            with pytest.raises(ConfigError, match=r"idle='spin'.*max_cores=0.5.*was asked for"):
                end(ports, max_cores=0.5)
            with pytest.raises(ConfigError, match="faults="):
                end(ports, faults={"drop": 0.1})
        assert ports.users == ()


def test_kept_mbufs_are_the_receivers_own(ends) -> None:
    one, other = ends
    with (
        aiflow.Receiver(other, name="keeps", assemble=False, memory="16MiB") as keeps,
        aiflow.Receiver(other, name="copies") as copies,
        aiflow.Sender(one, name="a", to="keeps") as tx,
        aiflow.Sender(one, name="b", to="copies") as beside,
    ):
        held = []
        for _ in range(6):  # what it holds starves no other agent's ports
            ticket = tx.send({"x": DATA}, wait=False)
            held.append(keeps.recv(timeout=PATIENCE_S))
            ticket.result(PATIENCE_S)
        deliver(beside, copies)
        assert all(np.array_equal(time_slice["x"].array, DATA) for time_slice in held)
        assert any("copied once" in hint for row in keeps.describe() for hint in row["hints"])
        assert keeps.counters["rx_nombuf"] == copies.counters["rx_nombuf"] == 0
        for time_slice in held:
            time_slice.release()


def test_two_threads_that_open_one_port_get_one(name: str) -> None:
    text = f"vdev:net_null_{os.getpid()},copy=1"
    made = together(*(lambda: aiflow.Sender(text, peer_timeout=1) for _ in range(4)))
    try:
        assert len({tx._agent.loop for tx in made}) == 1
        assert len(opening._shared) == 1
    finally:
        together(*(tx.close for tx in made))
    assert not opening._shared


def test_ports_that_different_threads_poll_are_not_joined() -> None:
    one, other = (f"vdev:net_null_{os.getpid()}{letter}" for letter in "ab")
    with aiflow.Receiver(one, name="a"), aiflow.Receiver(other, name="b"):
        with pytest.raises(ConfigError, match=r"open them together first \(ports = aiflow.Ports"):
            aiflow.Sender([one, other])
        with aiflow.Sender(one):
            pass
    with aiflow.Ports([one, other]) as ports, aiflow.Receiver(one, name="a"), aiflow.Sender([other, one]) as tx:
        assert len(tx.port_table) == 2
        assert ports.users == ("Receiver 'a'", f"Sender {tx.name!r}")


def test_a_port_that_is_named_twice_is_refused() -> None:
    text = f"vdev:net_null_{os.getpid()}"
    with pytest.raises(ConfigError, match="twice"):
        aiflow.Ports([text, text])
    assert not opening._shared


def test_ports_that_were_forgotten_are_closed_with_a_warning(name: str) -> None:
    ports = [aiflow.Ports(f"local:{name}")]
    with pytest.warns(ResourceWarning, match="was not closed"):
        ports.clear()
    gc.collect()
    with aiflow.Ports(f"local:{name}") as again:  # the name is free
        assert "unused" in repr(again)


def test_a_forked_child_has_no_ports_of_its_parents(name: str) -> None:
    out = run(
        """
        import os, aiflow
        from aiflow._ports import opening
        ports = aiflow.Ports("vdev:net_null_fork")
        pid = os.fork()
        if not pid:
            assert not opening._shared
            ports.close()
            try:
                aiflow.Sender(ports)
            except aiflow.EalError as error:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        with aiflow.Sender(ports):
            pass
        ports.close()
        print("ok")
        """
    )
    assert out.split() == ["ok"]


def test_waiting_threads_of_all_agents_take_turns(ends) -> None:
    """Callers of different agents wait for one loop: whichever drives, each gets its own."""
    one, other = ends
    with (
        aiflow.Receiver(other, name="b0") as rx_0,
        aiflow.Receiver(other, name="b1") as rx_1,
        aiflow.Sender(one, to="b0") as tx_0,
        aiflow.Sender(one, to="b1") as tx_1,
    ):
        got: list[int] = []

        def takes(rx: aiflow.Receiver) -> None:
            for _ in range(50):
                with rx.recv(timeout=PATIENCE_S) as time_slice:
                    got.append(time_slice.nbytes)

        threads = [threading.Thread(target=takes, args=(rx,)) for rx in (rx_0, rx_1)]
        for thread in threads:
            thread.start()
        together(*(lambda tx=tx: [tx.send([bytes(100)]) for _ in range(50)] for tx in (tx_0, tx_1)))
        for thread in threads:
            thread.join(PATIENCE_S)
        assert got == [100] * 100


def test_coroutines_of_several_agents_wait_for_one_loop(ends) -> None:
    """Each is woken by events: looking again after a pause would take half a second a slice."""
    one, other = ends

    async def receive(rx: aiflow.Receiver, count: int) -> None:
        for _ in range(count):
            with await rx.arecv(timeout=PATIENCE_S) as time_slice:
                assert time_slice.nbytes == 100

    async def both(tx: aiflow.Sender, echo: aiflow.Sender, *receivers: aiflow.Receiver) -> None:
        async def send(sender: aiflow.Sender) -> None:
            for _ in range(20):
                await sender.send([bytes(100)], wait=False)

        await asyncio.gather(send(tx), send(echo), *(receive(rx, 20) for rx in receivers))

    with (
        aiflow.Receiver(one, name="a") as rx_a,
        aiflow.Sender(one, to="b") as tx_a,
        aiflow.Receiver(other, name="b") as rx_b,
        aiflow.Sender(other, to="a") as tx_b,
    ):
        together(lambda: deliver(tx_a, rx_b, 1), lambda: deliver(tx_b, rx_a, 1))  # both have met
        began = time.monotonic()
        asyncio.run(both(tx_a, tx_b, rx_a, rx_b))
        assert time.monotonic() - began < 5


def test_ports_of_one_interface_close_one_by_one() -> None:
    text = f"vdev:net_null_{os.getpid()}"
    with aiflow.Ports(text) as one, aiflow.Ports(text) as other:
        one.close()
        assert [row["state"] for row in other.describe()] == ["up"]
        with aiflow.Sender(other) as tx:
            assert len(tx.port_table) == 1
    assert not opening._shared


def test_ports_that_close_while_an_agent_is_made_refuse_it(name: str) -> None:
    ports = aiflow.Ports(f"local:{name}")
    failed: list[BaseException] = []

    def make() -> None:
        try:
            aiflow.Sender(ports)
        except BaseException as error:
            failed.append(error)

    def waits_in_join() -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        return frame is not None and frame.f_code.co_name == "_join"

    thread = threading.Thread(target=make)
    with opening.opened():
        thread.start()
        assert settle(waits_in_join)
        ports.close()
    thread.join(PATIENCE_S)
    assert [type(error) for error in failed] == [ConfigError]
    assert "these Ports are closed" in str(failed[0])


def test_ports_are_polled_as_the_first_user_of_the_port_asked() -> None:
    text = f"vdev:net_null_{os.getpid()}"
    first = aiflow.Sender(text, idle="spin")
    with aiflow.Ports(text) as ports:
        aiflow.Receiver(ports, idle="spin").close()
        with pytest.raises(ConfigError, match=r"are polled with Polling\(idle='spin'.*idle='backoff'"):
            aiflow.Receiver(ports, idle="backoff", max_cores=0.5)
        first.close()


def test_an_error_in_the_block_is_not_hidden_by_agents_left_on_the_ports(name: str) -> None:
    ports = aiflow.Ports(f"local:{name}")
    rx = aiflow.Receiver(ports)
    with pytest.raises(ZeroDivisionError), ports:
        raise ZeroDivisionError
    rx.close()
    ports.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the interrupt came between the constructor and its caller
@pytest.mark.parametrize("kind", [aiflow.Ports, aiflow.Sender, aiflow.Receiver])
def test_an_interrupt_between_two_lines_leaves_no_port_open(kind: Any) -> None:
    """An error or Ctrl-C anywhere in the constructor or in `close` leaves what can be called again."""
    first, second = (f"vdev:net_null_{os.getpid()}{letter}" for letter in "ab")
    files = [module.__file__ for module in (shared_ports, opening, _engine, receiver, sender)]
    count, done = 0, False
    with aiflow.Ports(first) as beside:
        while not done:
            count += 1
            made = None
            with interrupting(*files, line=count) as strikes:
                try:
                    made = kind([first, second])
                    made.close()
                    done = True
                except KeyboardInterrupt:
                    pass
            assert done or strikes
            if made is not None:
                made.close()
            assert [key[1] for key in opening._shared] == [first.partition(":")[2]], strikes
            assert [row["state"] for row in beside.describe()] == ["up"]
            assert not beside._loop.stopped
    assert not opening._shared
    assert not shared_ports._holders


def test_a_port_that_comes_while_an_agent_leaves_is_not_its_own(name: str) -> None:
    with aiflow.Ports(f"local:{name}") as ports:
        rx = aiflow.Receiver(ports)
        rx._agent.leave()  # as in `close`, before the ports forget it
        with aiflow.Ports(f"local:{name}") as other:
            assert settle(lambda: [row["state"] for row in ports.describe() + other.describe()] == ["up", "up"])
            assert not any(rx._agent.attached_ports)
        rx.close()


def test_lists_of_speeds_and_switches_follow_the_endpoints(name: str) -> None:
    null = f"vdev:net_null_{os.getpid()}"
    with (
        aiflow.Receiver(f"local:{name}", name="b"),
        aiflow.Ports([f"local:{name}", null]) as ports,
        aiflow.Sender(ports, link_speed=["1gbit", "2gbit"], switches=["one", "two"]) as tx,
        aiflow.Sender(null, link_speed=["3gbit"]) as beside,
    ):
        assert settle(lambda: len(tx.port_table) == 2)
        rows = [(row.name, row.link_speed_bps, row.switch) for row in tx.port_table]
        assert rows == [(f"local:{name}#0", 1e9, "one"), (null, 2e9, "two")]
        assert [row.link_speed_bps for row in beside.port_table] == [3e9]


def dies(pipe: Any, endpoint: str) -> None:
    """A process with a Receiver on Ports of its own, which takes one slice."""
    with aiflow.Ports(endpoint) as ports, aiflow.Receiver(ports, name="b") as rx:
        pipe.send("open")
        with rx.recv(timeout=PATIENCE_S):
            pass
        pipe.send("received")
        pipe.recv()


@pytest.mark.parametrize("listens", [True, False])
def test_a_killed_receiver_is_known_at_once_on_either_side_of_the_name(name: str, listens: bool) -> None:
    endpoint = f"local:{name}"
    with contextlib.ExitStack() as stack:
        if listens:
            ports = stack.enter_context(aiflow.Ports(endpoint))
        peer = stack.enter_context(Peer(dies, endpoint))
        assert peer.hear() == "open"
        if not listens:
            ports = stack.enter_context(aiflow.Ports(endpoint))
        tx = stack.enter_context(aiflow.Sender(ports, to="b", peer_timeout=60))
        tx.send([DATA])
        assert peer.hear() == "received"
        os.kill(peer.process.pid, signal.SIGKILL)
        assert peer.killed()
        assert settle(lambda: not tx.receivers)
        with pytest.raises(PeerLost, match="went away"):
            tx.send([b"x"], timeout=10)


def test_ports_that_come_and_go_leave_no_pool_behind(name: str) -> None:
    """The loop of a listening Ports lives on: it must not keep the mbufs of every caller that ever came."""
    with aiflow.Ports(f"local:{name}") as ports, aiflow.Receiver(ports, name="b") as rx:
        counts = []
        for _ in range(3):
            with aiflow.Ports(f"local:{name}") as caller, aiflow.Sender(caller, to="b") as tx:
                deliver(tx, rx, 1)
            assert settle(lambda: ports.describe()[0]["state"] == "no peer")
            gc.collect()
            counts.append(len(_eal.mempools()))
        assert len(set(counts)) == 1, counts
