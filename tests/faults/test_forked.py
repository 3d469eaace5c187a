"""A child that outlives its parent keeps none of its parent's names, connections or interfaces."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
from peer import descriptors_left
from subprocesses import environment
from wait import wait_for

import aiflow
from aiflow._ports.xdp_probe import AF_XDP
from aiflow._system.descriptors import kept_sockets
from aiflow.errors import AiflowError, PeerLost

OPEN = {
    "Receiver": "aiflow.Receiver(ENDPOINT, memory='16MiB')",
    "Sender": "aiflow.Sender(ENDPOINT)",
}
CHILDREN = {
    "os.fork": "child = os.fork()\nif child == 0: time.sleep(60); os._exit(0)",
    "multiprocessing": """
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start(); child = process.pid""",
    "fork_of_a_fork": """
        read, write = os.pipe()
        if os.fork() == 0:
            grandchild = os.fork()
            if grandchild == 0: time.sleep(60)
            os.write(write, b"%d" % grandchild); os._exit(0)
        child = int(os.read(read, 20))""",
    "close_fds=False": """child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=-3).pid""",
    "preexec_fn": """
        read, write = os.pipe()
        def stay(): os.write(write, b"%d" % os.getpid()); time.sleep(60)
        threading.Thread(target=subprocess.run, args=(["true"],), kwargs={"preexec_fn": stay}, daemon=True).start()
        child = int(os.read(read, 20))""",
}
ENDINGS = {
    "killed": "signal.pause()",
    "os._exit": "sys.stdin.readline(); os._exit(0)",
    "sys.exit": "sys.stdin.readline(); sys.exit()",
}
PROGRAM = """
    import multiprocessing.util, os, signal, subprocess, sys, threading, time  # whose exit handler runs after ours
    import aiflow
    ENDPOINT = sys.argv[1]
    side = %s
    print("open", flush=True)
    sys.stdin.readline()
"""


class Parent:
    """A program that opens one side, has a child, and comes to its end."""

    def __init__(self, side: str, endpoint: str, child: str, ending: str, *prefix: str) -> None:
        self.child = 0
        code = [PROGRAM % OPEN[side], CHILDREN[child], "print(child, flush=True)", ENDINGS[ending]]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", "\n".join(map(textwrap.dedent, code)), endpoint],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "open"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def have_child(self) -> None:
        self._go_on()
        self.child = int(self._line())

    def end(self, ending: str) -> None:
        if ending == "killed":
            self.process.kill()
        else:
            self._go_on()

    def __enter__(self) -> Parent:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.child:
            os.kill(self.child, signal.SIGKILL)  # fails if it has not lived to the end of the test


def opened(endpoint: str) -> Iterator[bool]:
    """Try until a Receiver can be opened there; yields whether it could."""
    while True:
        try:
            aiflow.Receiver(endpoint, memory="16MiB").close()
        except AiflowError:
            yield False
        else:
            yield True


@pytest.mark.parametrize(
    ("child", "ending"),
    [
        ("os.fork", "killed"),
        ("os.fork", "os._exit"),
        ("os.fork", "sys.exit"),
        ("multiprocessing", "killed"),
        ("multiprocessing", "sys.exit"),  # which waits for the child, and hangs up before
        ("fork_of_a_fork", "killed"),
        ("close_fds=False", "killed"),
        ("preexec_fn", "killed"),
    ],
)
def test_the_name_of_a_receiver_is_free_and_its_sender_hears_of_it(endpoint: str, child: str, ending: str) -> None:
    with Parent("Receiver", endpoint, child, ending) as parent, aiflow.Sender(endpoint) as tx:
        tx.send([b"x"], timeout=60)
        parent.have_child()
        parent.end(ending)
        wait_for(lambda: tx.receiver is None, "the hang-up", 2)
        attempts = opened(endpoint)
        wait_for(lambda: next(attempts), "the name", 2)


@pytest.mark.parametrize(
    ("ending", "when"),
    [("killed", "at once"), ("killed", "once it is known"), ("os._exit", "at once"), ("sys.exit", "once it is known")],
)
def test_a_send_after_the_death_says_so_and_the_next_one_awaits_another(endpoint: str, when: str, ending: str) -> None:
    """Whatever the moment: a slice posted earlier fails in the same way."""
    with Parent("Receiver", endpoint, "os.fork", ending) as parent, aiflow.Sender(endpoint) as tx:
        tx.send([b"x"], timeout=60)
        parent.have_child()
        parent.end(ending)
        parent.process.wait()
        if when == "once it is known":
            wait_for(lambda: tx.receiver is None, "the hang-up", 2)
        begin = time.monotonic()
        with pytest.raises(PeerLost, match="went away"):
            tx.send([b"y"])
        assert time.monotonic() - begin < 2
        ticket = tx.send([b"z"], wait=False)
        with aiflow.Receiver(endpoint, memory="16MiB") as rx:
            assert rx.recv(timeout=60)[0].tobytes() == b"z"
            ticket.result(60)


def test_a_receiver_that_closes_or_has_a_successor_is_no_loss(endpoint: str) -> None:
    with aiflow.Sender(endpoint) as tx:
        for number in range(4):
            with aiflow.Receiver(endpoint, memory="16MiB") as rx:
                ticket = tx.send([b"%d" % number], wait=False)
                assert rx.recv(timeout=60)[0].tobytes() == b"%d" % number
                ticket.result(60)
            wait_for(lambda: tx.receiver is None, "the goodbye", 2)
        with Parent("Receiver", endpoint, "os.fork", "killed") as parent:
            tx.send([b"x"], timeout=60)
            parent.have_child()
            parent.end("killed")
            wait_for(lambda: tx.receiver is None, "the hang-up", 2)
            with Parent("Receiver", endpoint, "os.fork", "killed"):
                wait_for(lambda: tx.port_table, "the ports of its successor")
                tx.send([b"y"], timeout=60)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_ports_of_a_sender_go(endpoint: str, ending: str) -> None:
    with aiflow.Receiver(endpoint, memory="16MiB") as rx, Parent("Sender", endpoint, "os.fork", ending) as parent:
        wait_for(lambda: len(rx.port_table) == 1, "the sender")
        parent.have_child()
        parent.end(ending)
        wait_for(lambda: len(rx.port_table) == 0, "the hang-up", 2)


@pytest.mark.root
@pytest.mark.parametrize(
    ("scheme", "side", "child"),
    [
        ("af_packet", "Receiver", "os.fork"),
        ("af_packet", "Sender", "multiprocessing"),
        ("af_xdp", "Receiver", "os.fork"),
        ("af_xdp", "Receiver", "close_fds=False"),
        ("af_xdp", "Sender", "os.fork"),
    ],
)
def test_the_interface_is_free(net, scheme: str, side: str, child: str) -> None:
    host, other = net.namespace("host"), net.namespace("other")
    net.veth(host, "va", other, "vb")
    with Parent(side, f"{scheme}:va", child, "killed", *host.prefix) as parent:
        parent.have_child()
        parent.end("killed")
        parent.process.wait()
        with Parent(side, f"{scheme}:va", child, "killed", *host.prefix):
            pass


def test_the_parent_goes_on_when_its_child_ends(endpoint: str) -> None:
    with aiflow.Receiver(endpoint, memory="16MiB") as rx, aiflow.Sender(endpoint) as tx:
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            ticket = tx.send([b"%d" % number], wait=False)
            assert rx.recv(timeout=60)[0].tobytes() == b"%d" % number
            ticket.result(60)


def test_descriptors_of_libraries_are_kept_from_children_as_far_as_they_can_be_listed() -> None:
    with pytest.raises(RuntimeError, match="the library's"), descriptors_left(0), kept_sockets(AF_XDP):
        raise RuntimeError("the library's")
    with contextlib.suppress(RuntimeError), kept_sockets(socket.AF_INET), socket.socket() as opened:
        fd = os.dup(opened.fileno())
        os.set_inheritable(fd, True)
        raise RuntimeError
    assert not os.get_inheritable(fd)
    os.close(fd)
