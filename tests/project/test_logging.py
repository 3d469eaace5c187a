"""The library prints nothing: it logs below ``aiflow``, DPDK's log too, and only where a program asks for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from subprocesses import environment

import aiflow

PACKAGE = Path(aiflow.__file__).parent
SPEAKERS = ("cli", "lab", "_terminal", "_samples", "__main__.py", "round_trip.py")
"""The commands may print: that is what they are for. round_trip is a process that the doctor reads."""

RUN = """
import sys, logging, numpy as np, aiflow
SETUP
with aiflow.Receiver("local:NAME") as rx, aiflow.Sender("local:NAME") as tx:
    ticket = tx.send({"x": np.arange(9)}, wait=False)
    rx.recv(timeout=30).release()
    ticket.result(30)
SECOND
"""


def ran(setup: str, name: str, second: str = "") -> subprocess.CompletedProcess[str]:
    code = RUN.replace("SETUP", setup).replace("NAME", name).replace("SECOND", second)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(AIFLOW_LOG=""),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.unit
def test_importing_is_silent_with_warnings_as_errors() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import aiflow"], env=environment(), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_run_prints_nothing(name: str) -> None:
    done = ran("", name)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_program_that_asks_gets_the_ports_and_dpdks_lines(name: str) -> None:
    setup = 'logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")'
    done = ran(setup, name)
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert any(line.startswith("INFO aiflow.eal DPDK") for line in lines), lines
    assert any(line.startswith("INFO aiflow.dpdk EAL: ") for line in lines), lines
    opened = [line for line in lines if line.startswith("INFO aiflow.ports") and "open, driver net_memif" in line]
    closed = [line for line in lines if line.startswith("INFO aiflow.ports") and line.endswith(": closed")]
    assert len(opened) == len(closed) == 2, lines


def test_each_line_of_dpdk_comes_once_and_in_order(name: str) -> None:
    setup = "records = []\nfilter = lambda record: records.append(record.getMessage()) or True\n"
    setup += 'log = logging.getLogger("aiflow.dpdk"); log.setLevel("INFO"); log.addFilter(filter)'
    second = "from aiflow import _eal; _eal.forward_log(); text = _eal.log_tail()\n"
    second += "assert records == [line.strip() for line in text.splitlines() if line.strip()], (records, text)\n"
    second += "assert records\n_eal.forward_log()\nprint(len(records))"
    assert int(ran(setup, name, second).stdout) > 0


def test_a_failed_open_logs_what_dpdk_says() -> None:
    code = """
import logging, aiflow
records = []
logging.getLogger("aiflow.dpdk").setLevel("INFO")
logging.getLogger("aiflow.dpdk").addFilter(lambda record: records.append(record.getMessage()) or True)
try:
    aiflow.Receiver("vdev:net_no_such_driver")
except aiflow.PortError as error:
    said = str(error).partition("DPDK says: ")[2].split(" | ")
    assert said[0] and set(said) <= set(records), (said, records)
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("told\n", "", 0)


@pytest.mark.unit
def test_no_module_of_the_library_prints() -> None:
    printing = []
    for path in PACKAGE.rglob("*.py"):
        if {*path.relative_to(PACKAGE).parts} & {*SPEAKERS}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stderr.write",
                "sys.stdout.write",
            ):
                printing.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert printing == []
    for path in PACKAGE.rglob("*.pyx"):
        assert not any(line.lstrip().startswith(("print(", "printf(")) for line in path.read_text().splitlines()), path
