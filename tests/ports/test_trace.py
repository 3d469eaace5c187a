"""AIFLOW_TRACE: one file with the spans of both ends, as Perfetto and Chrome read it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from peer import name as local_name
from subprocesses import environment
from wait import PATIENCE_S

import aiflow
from aiflow._observe import trace

RECEIVE = """
import sys, aiflow
with aiflow.Receiver(sys.argv[1], name="rx", until="bye") as rx:
    for time_slice in rx: pass
"""
SEND = """
import sys, numpy, aiflow
with aiflow.Sender(sys.argv[1], name="tx") as tx:
    for _ in range(5): tx.send([numpy.zeros(500_000, "u1")], timeout=60)
"""


def run(endpoint: str, **variables: str) -> list[subprocess.CompletedProcess[str]]:
    """A receiver and a sender, each in a process of its own."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", code, endpoint],
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code in (RECEIVE, SEND)
    ]
    done = []
    for program in programs:
        stdout, stderr = program.communicate(timeout=PATIENCE_S)
        done.append(subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr))
        assert program.returncode == 0, stderr
    return done


def read(path: Path) -> list[dict[str, Any]]:
    """The events. The end of the array is missing, which the format allows."""
    events: list[dict[str, Any]] = json.loads(path.read_text().rstrip().rstrip(",") + "]")
    return events


def test_both_ends_lie_on_one_time_axis(endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    run(endpoint, AIFLOW_TRACE=str(path))
    events = read(path)
    rows = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["ph"] == "M"}
    assert all(isinstance(event["ts"], (int, float)) and event["pid"] and event["tid"] for event in events)
    for number in range(1, 6):
        spans = [event for event in events if event["name"] == f"slice {number}"]
        named = {rows[event["pid"], event["tid"]].split()[0]: event for event in spans}
        sent, received = named["Sender"], named["Receiver"]
        assert sent["pid"] != received["pid"]
        assert sent["args"]["bytes"] == received["args"]["bytes"] == 500_000
        assert sent["args"]["outcome"] == "ok"
        marks = {
            event["name"]: event["ts"]
            for event in events
            if event["ph"] == "i"
            and any(
                event["pid"] == span["pid"]
                and span["ts"] - 0.01 <= event["ts"] <= span["ts"] + span["dur"] + 0.01
                and event["tid"] == span["tid"]
                for span in spans
            )
        }
        # what happens in a slice's life happens in this order, whichever process saw it
        order = [sent["ts"], marks["first byte"], marks["granted"], marks["whole"], marks["delivered"]]
        assert order == sorted(order), (number, order)
        assert marks["whole"] <= sent["ts"] + sent["dur"]


def test_each_process_may_have_a_file_of_its_own(endpoint: str, tmp_path: Path) -> None:
    run(endpoint, AIFLOW_TRACE=str(tmp_path / "trace-%p.json"))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert {len({event["pid"] for event in read(path)}) for path in files} == {1}


@pytest.mark.parametrize("file", ["/nowhere/trace.json", "/"])
def test_a_file_that_cannot_be_written_stops_nothing(endpoint: str, file: str) -> None:
    for done in run(endpoint, AIFLOW_TRACE=file):
        assert "no trace is written" in done.stderr


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this process writes a trace meanwhile."""
    path = tmp_path / "own.json"
    monkeypatch.setattr(trace, "_asked", str(path))
    monkeypatch.setattr(trace, "_trace", None)
    yield path
    if trace._trace is not None:
        os.close(trace._trace._fd)


def test_spans_of_one_row_never_overlap(traced: Path) -> None:
    """Though more slices are posted than may be in flight, and each has a part for each of two receivers."""
    names = [local_name() for _ in range(2)]
    with ExitStack() as stack:
        receivers = [stack.enter_context(aiflow.Receiver(f"ring:{name}", name=name)) for name in names]
        tx = stack.enter_context(aiflow.Sender([f"ring:{name}" for name in names], to=names, name="tx"))
        tickets = [tx.send([bytes(9000)] * 4, wait=False) for _ in range(20)]
        for _ in tickets:
            for rx in receivers:
                rx.recv(timeout=PATIENCE_S).release()
        for ticket in tickets:
            ticket.result(PATIENCE_S)
    assert trace._trace is not None
    trace._trace.write(PATIENCE_S)
    events = read(traced)
    slices = [event for event in events if event["ph"] == "X" and event["name"].startswith("slice ")]
    assert len(slices) == 2 * 20 * 2
    rows: dict[int, list[tuple[float, float]]] = {}
    for event in slices:
        rows.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        spans.sort()
        assert all(end <= begin + 0.01 for (_, end), (begin, _) in pairwise(spans))
    assert {event["tid"] for event in events if event["ph"] == "M"} == set(rows)  # each row has a name


def test_a_write_that_is_short_or_fails_leaves_whole_events(traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    written = trace.trace()
    assert written is not None

    def note(number: int) -> None:
        written.add([trace._event("i", 1000, number, name=f"mark {number}", s="t")])
        written.write()

    monkeypatch.setattr(os, "write", lambda fd, text: write(fd, text[:7]))
    note(1)
    room = 20

    def full(fd: int, text: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        done = write(fd, text[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", full)
    note(2)
    monkeypatch.setattr(os, "write", write)
    note(3)
    assert [event["tid"] for event in read(traced)] == [1, 3]


def test_a_process_that_stops_while_it_writes_holds_no_other_up(traced: Path) -> None:
    written = trace.trace()
    assert written is not None
    with traced.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        written.add([trace._event("i", 1000, 1, name="mark", s="t")])
        written.write()
        assert traced.read_text() == ""
    written.write()
    assert [event["name"] for event in read(traced)] == ["mark"]
