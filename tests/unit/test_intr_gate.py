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


def test_the_interrupt_thread_rests_without_gated_ports_and_hurries_while_connecting(tmp_path: Path) -> None:
    out = run(
        f"""
        import time
        from aiflow import _dp_testing, _eal
        pool = _eal.Mempool('p', 512, 2048, own_memory=True)

        def turns(seconds):
            before = _dp_testing.gate_turns()
            time.sleep(seconds)
            return (_dp_testing.gate_turns() - before) / seconds

        def measure():
            idle = turns(1)
            with _eal.connecting():
                return idle, turns(1)

        none = turns(0.3)
        port = _eal.Port.open('m', 'net_memif_gate',
                              'role=server,id=0,socket={tmp_path}/s,socket-abstract=no,bsize=2048,rsize=8', pool)
        for _ in range(20):  # a machine with other things to do lets it wait, at either pace
            idle, connecting = measure()
            if idle >= 5 and connecting > idle * 3:
                break
        port.close()
        after = turns(0.3)
        print(none, idle, connecting, after)
        """
    )
    none, idle, connecting, after = map(float, out.split())
    assert none == 0
    assert 5 <= idle <= 60  # every 20 ms
    assert connecting > idle * 3
    assert after == 0
