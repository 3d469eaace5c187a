"""The interrupt gate: DPDK's interrupt thread runs only while no worker is inside, and no thread waits for ever.

The gate is plain C, so a C program with real threads tests it (tests/core/test_intr_gate.c). A test with real ports
shows that a receiver survives the death of its memif peer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from subprocesses import run

ROOT = Path(__file__).resolve().parents[2]


def compiled(where: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = where / "test_intr_gate"
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Werror", "-pthread", f"-I{ROOT / 'include'}", *flags]
    subprocess.run([*command, "-o", str(program), str(ROOT / "tests/core/test_intr_gate.c")], check=True)
    return program


@pytest.mark.unit
@pytest.mark.parametrize("flags", [(), ("-fsanitize=undefined", "-fno-sanitize-recover")], ids=["plain", "sanitized"])
def test_turns_and_bursts_exclude_each_other_under_more_threads_than_cores(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    program = compiled(tmp_path, *flags)
    # one core for all: the owner of the gate is descheduled again and again
    for cpus in (str(min(os.sched_getaffinity(0))), ",".join(map(str, os.sched_getaffinity(0)))):
        command = ["taskset", "-c", cpus, str(program), "turns_and_bursts_exclude_each_other"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done
        assert done.stdout == "turns_and_bursts_exclude_each_other\n"


def test_the_interrupt_thread_rests_until_a_source_has_an_event(tmp_path: Path) -> None:
    out = run(
        f"""
        import time
        from aiflow import _dp_testing, _eal
        pool = _eal.Mempool('p', 512, 2048, own_memory=True)
        args = 'id=0,socket={tmp_path}/s,socket-abstract=no,bsize=2048,rsize=8'

        def turns(seconds):
            before = _dp_testing.gate_turns()
            time.sleep(seconds)
            return _dp_testing.gate_turns() - before

        print(turns(0.3))
        server = _eal.Port.open('m', 'net_memif_gate', 'role=server,' + args, pool)
        time.sleep(0.1)  # its socket is a new source
        print(turns(1))
        before, began = _dp_testing.gate_turns(), time.monotonic()
        with _eal.connecting():
            client = _eal.Port.open('n', 'net_memif_gate2', 'role=client,' + args, pool)
            while not (server.link()[0] and client.link()[0]) and time.monotonic() < began + 60:
                time.sleep(0.001)
        print(int(_dp_testing.gate_turns() > before and server.link()[0]))
        time.sleep(0.1)
        print(turns(1))
        client.close()
        began = time.monotonic()
        while server.link()[0] and time.monotonic() < began + 60:
            time.sleep(0.001)
        print(int(server.link()[0]))
        server.close()
        print(turns(0.3))
        """
    )
    free, waiting, met, idle, still_met, closed = map(int, out.split())
    assert free == closed == 0
    assert waiting == idle == 0
    assert met
    assert not still_met
