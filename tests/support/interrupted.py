"""Programs that are interrupted while they send and receive, each in a process of its own.

A lock that an interrupt leaves behind hangs that process only. The failure then shows the stacks of its threads.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

PRELUDE = """
import ctypes, faulthandler, gc, os, random, signal, sys, threading, time
import numpy as np, aiflow
from aiflow.errors import AiflowError

faulthandler.dump_traceback_later(SECONDS, exit=True)

def failed(*error):
    sys.__excepthook__(*error)
    sys.stderr.flush()
    os._exit(1)  # its other threads would go on

sys.excepthook = failed
threading.excepthook = lambda args: failed(args.exc_type, args.exc_value, args.exc_traceback)
armed = False
struck = 0

def interrupt(*_):
    global armed, struck
    if armed:
        armed = False
        struck += 1
        raise KeyboardInterrupt

def storm(call, seconds=0.7, pause=0.0006):
    '''Call again and again while interrupts strike; how many did.'''
    global armed
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, pause, pause * 1.1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            armed = True
            call()
            armed = False
        except KeyboardInterrupt:
            pass
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert struck > 10, struck

def receivers(nb, **options):
    names = [f"i{os.getpid()}-{k}" for k in range(nb)]
    ends = [aiflow.Receiver(f"ring:{name}", name=name, memory="64MiB", until="bye", **options) for name in names]
    return ends, [f"ring:{name}" for name in names], ({"to": names} if nb > 1 else {})

def consume(ends):
    '''Number of times that each element has come, by its 8 first bytes.'''
    seen, guard = {}, threading.Lock()
    def run(rx):
        for time_slice in rx:
            for element in time_slice:
                key = int.from_bytes(element.tobytes()[:8], "big")
                assert element.tobytes() == content(key, element.nbytes), key
                with guard:
                    seen[key] = seen.get(key, 0) + 1
    threads = [threading.Thread(target=run, args=(rx,)) for rx in ends]
    for thread in threads:
        thread.start()
    def joined():
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        for rx in ends:
            rx.close()
        return seen
    return joined

def content(key, nbytes):
    return (key.to_bytes(8, "big") * (nbytes // 8 + 1))[:nbytes]

def left():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("aiflow"))
"""


def run(program: str, *arguments: object, seconds: int = 25) -> str:
    """Run a program with what is above in front of it; its output."""
    source = PRELUDE.replace("SECONDS", str(seconds)) + textwrap.dedent(program)
    command = [sys.executable, "-W", "ignore", "-c", source, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
