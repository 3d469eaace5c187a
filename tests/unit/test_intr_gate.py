"""The interrupt gate: DPDK's interrupt thread runs only while no worker is inside, and no thread waits for ever.

The gate is plain C, so a C program with real threads tests it. A test with real ports shows that a receiver survives
the death of its memif peer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from subprocesses import run

INCLUDE = Path(__file__).resolve().parents[2] / "include"

STRESS = r"""
#include <aiflow/rt/intr_gate.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <poll.h>

static struct af_intr_gate gate;
static _Atomic int in_turn, workers_inside, stop, finished, wrong, in_hold;
static _Atomic unsigned long turns, entries, holds;

static void burn(unsigned n) { for (volatile unsigned i = 0; i < n; i++) { } }

/* what eal-intr-thread does: poll the eventfd, call the callback, serve others */
static void *interrupt_thread(void *arg)
{
    (void)arg;
    while (!finished) {
        struct pollfd wake = {.fd = gate.wake_fd, .events = POLLIN};
        if (poll(&wake, 1, 10) == 1)
            af_intr_gate_callback(&gate);
        if (!gate.gated)
            continue;
        in_turn = 1;
        if (workers_inside || in_hold)
            wrong = 1;
        burn(500);
        if (workers_inside || in_hold)
            wrong = 2;
        turns++;
        in_turn = 0;
    }
    return NULL;
}

static void *worker(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    while (!stop) {
        af_intr_gate_enter(&gate);
        workers_inside++;
        if (in_turn)
            wrong = 3;
        burn((unsigned)rand_r(&seed) % 2000);
        if (rand_r(&seed) % 512 == 0)
            sched_yield(); /* a descheduled owner */
        if (in_turn)
            wrong = 4;
        workers_inside--;
        af_intr_gate_leave(&gate);
        entries++;
    }
    return NULL;
}

static void *control(void *arg)
{
    unsigned seed = 7;
    (void)arg;
    while (!stop) {
        af_intr_gate_connecting(&gate, 1);
        af_intr_gate_hold(&gate);
        in_hold++;
        burn((unsigned)rand_r(&seed) % 200000);
        if (in_turn)
            wrong = 5;
        in_hold--;
        af_intr_gate_release(&gate, 0);
        af_intr_gate_connecting(&gate, -1);
        holds++;
        usleep(500);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[8];
    struct timespec second = {1, 500000000};

    if (af_intr_gate_init(&gate, eventfd(0, EFD_NONBLOCK)))
        return 2;
    pthread_create(&threads[0], NULL, interrupt_thread, NULL);
    af_intr_gate_hold(&gate);        /* before any port: the thread is fetched */
    af_intr_gate_release(&gate, 1);
    for (uintptr_t i = 1; i <= 5; i++)
        pthread_create(&threads[i], NULL, worker, (void *)i);
    pthread_create(&threads[6], NULL, control, NULL);
    pthread_create(&threads[7], NULL, control, NULL);
    for (int i = 0; i < 60 && (i < 1 || turns <= 10 || entries <= 1000 || holds <= 10); i++)
        nanosleep(&second, NULL);
    stop = 1;
    for (int i = 1; i < 8; i++)
        pthread_join(threads[i], NULL);
    af_intr_gate_hold(&gate);
    af_intr_gate_release(&gate, -1); /* the last port goes: the thread runs free again, the gate is open */
    finished = 1;
    pthread_join(threads[0], NULL);
    af_intr_gate_enter(&gate);
    af_intr_gate_leave(&gate);
    printf("%d %lu %lu %lu %u\n", wrong, turns, entries, holds, (unsigned)gate.word);
    return 0;
}
"""


def compile_c(source: str, where: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (where / "stress.c").write_text(source)
    program = where / "stress"
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Werror", "-pthread", f"-I{INCLUDE}", *flags]
    subprocess.run([*command, "-o", str(program), str(where / "stress.c")], check=True)
    return program


@pytest.mark.unit
@pytest.mark.parametrize("flags", [(), ("-fsanitize=undefined", "-fno-sanitize-recover")], ids=["plain", "sanitized"])
def test_turns_and_bursts_exclude_each_other_under_more_threads_than_cores(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    program = compile_c(STRESS, tmp_path, *flags)
    # one core for all: the owner of the gate is descheduled again and again
    for cpus in (str(min(os.sched_getaffinity(0))), ",".join(map(str, os.sched_getaffinity(0)))):
        done = subprocess.run(["taskset", "-c", cpus, str(program)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done
        wrong, turns, entries, holds, word = map(int, done.stdout.split())
        assert wrong == 0
        assert turns > 10
        assert entries > 1000
        assert holds > 10
        assert word == 0


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
