"""``aiflow top``: what it shows of running processes, its keys, and how it ends."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from typing import Any

import numpy as np
import pytest
from subprocesses import environment
from wait import PATIENCE_S, Deadline, has_stopped, wait_for

import aiflow as library

DATA = [np.zeros(1 << 20, np.uint8)]


@contextmanager
def transfer(endpoint: str, pause: float = 0.01) -> Iterator[None]:
    """A Sender called tx and a Receiver called rx at work in this process."""
    ending = threading.Event()
    with library.Receiver(endpoint, name="rx") as rx, library.Sender(endpoint, name="tx") as tx:

        def receive() -> None:
            while not ending.is_set():
                try:
                    rx.recv(timeout=0.1).release()
                except library.SliceTimeout:
                    continue

        def send() -> None:
            while not ending.wait(pause):
                tx.send(DATA, timeout=PATIENCE_S)

        threads = [threading.Thread(target=receive), threading.Thread(target=send)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ending.set()
            threads[1].join()
            threads[0].join()


def test_json_has_each_side_with_its_rates(endpoint: str, aiflow: Any) -> None:
    with transfer(f"{endpoint}*2"):
        document = aiflow("top", "--json", "--interval", 1).ends(0)
    sides = {side["role"]: side for side in document["sides"] if side["pid"] == os.getpid()}
    assert sides["sender"]["name"] == "tx"
    assert sides["receiver"]["name"] == "rx"
    for side in sides.values():
        assert side["rates"]["slices"] > 0
        assert side["rates"]["bytes"] == pytest.approx(side["rates"]["slices"] * DATA[0].nbytes)
        assert len(side["ports"]) == 2
        assert sum(port["rates"]["port_transmit_frames"] for port in side["ports"]) > 0
    shares = sides["sender"]["peers"][0]["rates"]["wait_seconds"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.1)  # each moment belongs to one state


def test_once_is_plain_text_for_a_log(endpoint: str, aiflow: Any) -> None:
    with transfer(endpoint):
        stdout, stderr = aiflow("top", "--once").text(0)
    assert stderr == ""
    assert "\x1b" not in stdout
    for word in ("sender tx", "receiver rx", "slices/s", "goodput", "memory", "waits for", "window", f"{endpoint}#0"):
        assert word in stdout, word


def test_nothing_to_show_is_said(aiflow: Any) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as empty:  # a socket's path must be short
        _, stderr = aiflow("top", "--once", AIFLOW_RUNTIME_DIR=empty).text(1)
    assert "no Sender or Receiver of this user is open" in stderr


def test_a_directory_that_others_can_enter_is_not_trusted(aiflow: Any) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)  # sockets in it may be another user's
        for command in (("top", "--once"), ("diagnose", "--seconds", 0.5)):
            _, stderr = aiflow(*command, AIFLOW_RUNTIME_DIR=directory).text(1)
            assert "must be a directory that you own and no other user can enter" in stderr


STAY = "import aiflow, sys\nwith aiflow.Receiver(sys.argv[1], name='stopped'): print('open', flush=True); input()"


@contextmanager
def stopped(endpoint: str, **variables: str) -> Iterator[int]:
    """A process with a Receiver, stopped like one that hangs. Gives its process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAY, endpoint],
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: has_stopped(process.pid), "all threads to stop")
        yield process.pid
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate("\n", timeout=PATIENCE_S)


def test_a_process_that_hangs_is_named_and_hides_no_other(endpoint: str, aiflow: Any) -> None:
    with stopped(f"{endpoint}-2") as pid, transfer(endpoint):
        stdout, _ = aiflow("top", "--once").text(0)
        assert "receiver rx" in stdout
        assert f"process {pid} does not answer" in stdout
        document = aiflow("top", "--json").ends(0)
        assert any(f"process {pid} does not answer" in line for line in document["silent"])
        assert any("does not answer" in line for line in aiflow("diagnose", "--json", "--seconds", 1).ends(0)["silent"])
        with screen() as shown:
            shown.shows("goodput")
            shown.shows(f"process {pid} does not answer")
            shown.press("q")
            assert shown.ends() == 0


def test_the_only_process_hangs(endpoint: str, aiflow: Any) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, stopped(endpoint, AIFLOW_RUNTIME_DIR=directory) as pid:
        for command in (("top", "--once"), ("diagnose", "--seconds", 0.5)):
            _, stderr = aiflow(*command, AIFLOW_RUNTIME_DIR=directory).text(1)
            assert f"process {pid} does not answer" in stderr
            assert "no Sender or Receiver" not in stderr


def test_sides_of_one_name_have_numbers(endpoint: str, aiflow: Any) -> None:
    with transfer(endpoint), library.Receiver(f"{endpoint}-2", name="rx"):
        stdout, _ = aiflow("top", "--once").text(0)
    assert "receiver rx  pid" in stdout
    assert "receiver rx #2  pid" in stdout


class Screen:
    """`aiflow top` on a terminal of 30 lines and 150 columns."""

    def __init__(self, **variables: str) -> None:
        self.fd, terminal = pty.openpty()
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 150, 0, 0))
        self.before = termios.tcgetattr(terminal)
        self.terminal = terminal
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aiflow", "top", "--interval", "0.2"],
            env=environment(TERM="xterm-256color", **variables),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        self.text = ""

    def shows(self, pattern: str) -> None:
        """Wait until this appears from now on."""
        deadline, seen = Deadline(), ""
        while not re.search(pattern, seen):
            deadline.check(f"{pattern!r} in {seen[-3000:]!r}")
            if select.select([self.fd], [], [], 0.1)[0]:
                part = os.read(self.fd, 1 << 16).decode(errors="replace")
                self.text += part
                seen += part

    def press(self, key: str) -> None:
        os.write(self.fd, key.encode())

    def ends(self) -> int:
        deadline = Deadline()
        while (code := self.process.poll()) is None:
            deadline.check("it does not end")
            if select.select([self.fd], [], [], 0.1)[0]:
                self.text += os.read(self.fd, 1 << 16).decode(errors="replace")
        assert termios.tcgetattr(self.terminal) == self.before  # the terminal is as it was
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.terminal)


@contextmanager
def screen(**variables: str) -> Iterator[Screen]:
    shown = Screen(**variables)
    try:
        yield shown
    finally:
        shown.close()


def test_keys_sort_pause_and_quit(endpoint: str) -> None:
    with transfer(endpoint), screen() as shown:
        shown.shows("goodput")
        shown.shows("by rate")
        shown.press("s")
        shown.shows("by loss")
        shown.press("p")
        shown.shows("paused, by loss")
        shown.press("p")
        shown.shows("[^,] *by loss")
        shown.press("q")
        assert shown.ends() == 0
        assert "\x1b[1m" in shown.text  # names are bold


def test_keys_put_no_look_off(endpoint: str) -> None:
    with transfer(endpoint), screen() as shown:
        shown.shows("by rate")
        assert "is open" not in shown.text  # before there are rates, too
        shown.shows("goodput")
        for _ in range(100):  # twenty intervals, if each key cost one
            shown.press("s")
        begun = time.monotonic()
        rates = set()
        while len(rates) < 4:
            assert time.monotonic() - begun < 15
            shown.shows("slices/s")
            rates |= set(re.findall(r"([0-9.]+) slices/s", shown.text))
        shown.press("q")
        assert shown.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_restores_the_terminal(number: signal.Signals) -> None:
    with screen() as shown:
        shown.shows("q: quit")
        shown.process.send_signal(number)
        assert shown.ends() == 130
        assert "Traceback" not in shown.text
        assert shown.text.rstrip().endswith("aiflow: interrupted") or "\x1b[?1049l" in shown.text


def test_no_color_leaves_the_colours_out(endpoint: str) -> None:
    with transfer(endpoint), screen(NO_COLOR="1") as shown:
        shown.shows("goodput")
        shown.shows("goodput")
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown.text)
        shown.press("q")
        assert shown.ends() == 0


def test_looking_costs_little(endpoint: str) -> None:
    """A snapshot takes far less than the interval: its share of a core stays under a hundredth."""
    from aiflow._observe.snapshot import snapshot

    with transfer(f"{endpoint}*4", pause=0.05):
        time.sleep(0.3)
        used = time.thread_time()
        for _ in range(50):
            snapshot()
        seconds = (time.thread_time() - used) / 50
    print(f"{seconds * 1e6:.0f} µs a snapshot")
    assert seconds < 0.01
