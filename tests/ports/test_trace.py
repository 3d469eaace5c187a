"""AIFLOW_TRACE: one file with the spans of both ends, as Perfetto and Chrome read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from subprocesses import environment
from wait import PATIENCE_S

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
