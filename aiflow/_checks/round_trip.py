"""A slice from process to process over ``local:``, in two processes of their own: a crash there is a finding here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator

from aiflow._checks.finding import Finding, broken, ok
from aiflow._checks.host import Host

__all__ = ["round_trip"]

_PATIENCE_S = 30.0
_NBYTES = 1 << 20


def round_trip(host: Host) -> Iterator[Finding]:
    """Send 1 MiB from one process to another, and compare the checksums."""
    del host
    endpoint = f"local:doctor-{os.getpid()}"
    processes: list[subprocess.Popen[str]] = []
    try:
        for side in ("receive", "send"):
            processes.append(_start(side, endpoint))
        receiver, sender = processes
        sent, complaint = _end(sender)
        received, other = _end(receiver) if not complaint else ("", "")
    finally:
        for process in reversed(processes):
            if process.poll() is None:
                process.kill()
            process.communicate()
    if complaint or other:
        yield broken(complaint or other)
        return
    checksum, seconds, driver = sent.split()
    if checksum != received.strip():
        yield broken(f"1 MiB arrived over {endpoint} with other bytes: please report it")
        return
    yield ok(f"1 MiB went from process to process in {float(seconds) * 1e3:.1f} ms, over {driver}, and is identical")


def _start(side: str, endpoint: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "aiflow._checks.round_trip", side, endpoint]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a side has printed, and its complaint."""
    try:
        printed, errors = process.communicate(timeout=2 * _PATIENCE_S)
    except subprocess.TimeoutExpired:
        return "", f"no slice within {2 * _PATIENCE_S:.0f} s"
    if process.returncode == 0:
        return printed, ""
    lines = [line for line in errors.splitlines() if line.strip()]
    return "", lines[-1] if lines else f"a process ended with code {process.returncode}"


def _send(endpoint: str) -> None:
    import numpy as np

    from aiflow import Sender

    block = np.random.default_rng().integers(0, 256, _NBYTES, np.uint8)
    with Sender(endpoint, name="doctor", peer_timeout=_PATIENCE_S) as tx:
        tx.send({"greeting": b"."}, timeout=_PATIENCE_S)  # discovery, which is not measured
        report = tx.send({"block": block}, timeout=_PATIENCE_S)
        print(zlib.crc32(block), report.seconds, tx.port_table[0].driver)


def _receive(endpoint: str) -> None:
    from aiflow import Receiver

    with Receiver(endpoint, memory="16MiB", timeout=_PATIENCE_S, until="bye") as rx:
        for time_slice in rx:
            if "block" in time_slice:
                print(zlib.crc32(time_slice["block"].array))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            {"send": _send, "receive": _receive}[sys.argv[1]](sys.argv[2])
        except Exception as exc:
            sys.exit(str(exc))
