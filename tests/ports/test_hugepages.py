"""DPDK memory with and without hugepages, and the files of dead processes. Fault 47."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hugepage_pool import HUGEPAGES, hugepages, hugepages_free
from subprocesses import environment, run
from wait import wait_for

root = pytest.mark.root

START = """
    from aiflow import _eal
    _eal.start()
    pool = _eal.Mempool('p', 256, 2048)
    port, other = _eal.Port.open_ring_pair('r', pool)
    print(_eal.memory_mode())
"""


@root
def test_fault_47_no_hugepages() -> None:
    with hugepages(0):
        assert run(START) == "no-huge\n"
        out = run(
            """
            from aiflow import _eal
            from aiflow.errors import EalError
            try:
                _eal.start()
            except EalError as exc:
                print(exc)
            """,
            AIFLOW_MEMORY="hugepages",
        )
        assert "vm.nr_hugepages" in out


@root
def test_fault_47_hugepages_are_used_and_given_back_even_by_kill_9() -> None:
    with hugepages(64):
        assert run(START) == "hugepages\n"
        out = run("import os, signal\n" + textwrap.dedent(START) + "pid = os.fork()\nprint(pid)")
        assert out.startswith("hugepages")
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(START) + "import time, sys; sys.stdout.flush(); time.sleep(60)"],
            env=environment(),
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"hugepages\n"
            assert hugepages_free() < 64
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        wait_for(lambda: hugepages_free() == 64, "all hugepages")


@root
def test_fault_47_hugepages_exhausted() -> None:
    with hugepages(64):
        held = mmap.mmap(-1, 40 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
        try:
            assert hugepages_free() < 64 or int(HUGEPAGES.read_text()) == 64  # reserved, not yet touched
            held[:: 2 << 20] = b"x" * 40
            assert hugepages_free() == 24
            assert run(START) == "no-huge\n"
        finally:
            held.close()
        out = run("""
            from aiflow import _eal
            from aiflow.errors import PoolExhausted
            _eal.start()
            try:
                _eal.Mempool('large', 65536, 4096)
            except PoolExhausted as exc:
                print(_eal.memory_mode(), exc)
        """)
        assert out.startswith("hugepages mempool large: 65536 mbufs")
        assert "sysctl vm.nr_hugepages" in out
        assert "AIFLOW_MEMORY=no-huge" in out


@root
def test_fault_47_processes_that_start_at_once_do_not_take_each_others_hugepages() -> None:
    code = textwrap.dedent("""
        import sys
        from aiflow import _eal
        print('here', flush=True)
        sys.stdin.readline()
        _eal.start()
        print(_eal.memory_mode(), flush=True)
        sys.stdin.readline()
    """)
    with hugepages(64):  # DPDK starts with 32 of them
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(6)
        ]  # fmt: skip
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "here\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("start\n")
                process.stdin.flush()
            modes = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
        finally:
            said = [process.communicate("end\n")[1] for process in processes]
        assert sorted(modes) == ["hugepages"] * 2 + ["no-huge"] * 4, said


@root
def test_fault_47_stale_hugepage_files(tmp_path: Path) -> None:
    with hugepages(64):
        subprocess.run(["mount", "-t", "hugetlbfs", "none", str(tmp_path)], check=True)
        try:
            stale = tmp_path / "rtemap_0"
            with stale.open("wb+") as file:
                file.truncate(60 << 21)
                with mmap.mmap(file.fileno(), 60 << 21) as mapping:
                    mapping[:: 2 << 20] = b"x" * 60
            assert hugepages_free() == 4  # no process runs, and they are gone
            assert run(START) == "no-huge\n"
            assert stale.exists()  # not ours to remove
            stale.unlink()
            assert run(START) == "hugepages\n"
        finally:
            subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # a process that starts looks into it


def test_fault_47_stale_runtime_directories_are_removed() -> None:
    from aiflow import _eal_args
    from aiflow._system.filelock import lock

    runtime = _eal_args._runtime_root()
    stale, alive, starting = (runtime / f"aiflow-test-{os.getpid()}-{what}" for what in ("stale", "alive", "starting"))
    long_ago = time.time() - 3600
    for path in (stale, alive, starting):
        path.mkdir(parents=True)
    held = lock(alive / _eal_args._LOCK)
    (stale / "config").write_bytes(b"x")
    try:
        for path in (stale, alive):
            os.utime(path, (long_ago, long_ago))
        run("from aiflow import _eal; _eal.start()")
        assert [path.exists() for path in (stale, alive, starting)] == [False, True, True]
    finally:
        for path in (alive, starting):
            shutil.rmtree(path)
        held.close()
