"""The programs in examples/ run as their docstrings say, over ``local:``, and print what they should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = ["send_array.py", "recv_array.py", "stream.py", "several_receivers.py", "relay.py"]
DEADLINE_S = 120  # each takes two or three


class Started:
    """Programs that are running, with a runtime directory of their own; all end with the test."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="aiflow-", dir="/tmp")  # a short path: it holds sockets
        self.programs: list[subprocess.Popen[str]] = []

    def start(self, name: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "AIFLOW_RUNTIME_DIR": self.directory, "PYTHONPATH": os.pathsep.join(sys.path)}
        program = subprocess.Popen(
            [sys.executable, EXAMPLES / name],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.programs.append(program)
        return program

    def end(self) -> None:
        for program in self.programs:
            if program.poll() is None:
                program.kill()
            program.communicate()
        shutil.rmtree(self.directory)


@pytest.fixture
def started() -> Iterator[Started]:
    programs = Started()
    try:
        yield programs
    finally:
        programs.end()


def output(program: subprocess.Popen[str]) -> str:
    """What the program prints until it ends, with exit code 0 and nothing on stderr."""
    stdout, stderr = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 0, stderr
    assert stderr == ""
    return stdout


def receiver(started: Started) -> subprocess.Popen[str]:
    """recv_array.py, ready for a sender."""
    program = started.start("recv_array.py")
    assert program.stdout is not None
    assert program.stdout.readline() == "receiving on local:arrays\n"
    return program


def test_arrays_arrive_as_they_were_sent(started: Started) -> None:
    receiving = receiver(started)
    sent = output(started.start("send_array.py"))
    assert re.match(r"slice 1: 2 elements, 1,843,200 bytes in ", sent)
    assert "\n  local:arrays" in sent
    assert output(receiving) == "cam-0 uint8 (480, 640, 3) mean 127.5\ncam-1 uint8 (480, 640, 3) mean 127.5\n"


def test_a_stream_arrives_whole_and_in_order(started: Started) -> None:
    receiving = receiver(started)
    assert output(started.start("stream.py")) == "delivered 60 frames\n"
    lines = [f"{cam} uint8 (480, 640, 3) mean {number}.0" for number in range(30) for cam in ("cam-0", "cam-1")]
    assert output(receiving).splitlines() == lines


def test_one_slice_is_spread_over_two_receivers(started: Started) -> None:
    lines = output(started.start("several_receivers.py")).splitlines()
    assert sorted(lines) == [
        "node-0 holds 4 images",
        "node-0 received 4 of 8 images, 3686400 bytes",
        "node-1 holds 4 images",
        "node-1 received 4 of 8 images, 3686400 bytes",
    ]


def test_a_relay_adds_to_what_it_passes_on(started: Started) -> None:
    lines = [f"{{'left': {number}.0, 'right': {number}.0, 'mean': {number}.0}}" for number in range(3)]
    assert output(started.start("relay.py")).splitlines() == lines


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) < 40
    assert f"python examples/{name}" in text.split('"""')[1]
