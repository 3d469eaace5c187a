"""The receiving half of a benchmark, in a process and on a core of its own.

Run as a program it opens a Receiver and answers each slice with a line of JSON: what arrived, and its checksum. The
checksum is made after the slice has arrived and while no clock runs: the sender waits for the line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterable
from typing import Any, Self


def checksum(elements: Iterable[Any], kept: bool = False) -> int:
    """CRC32 (zlib's, not the wire's) over all bytes of all elements, in order; `kept`: they lie in mbufs."""
    crc = 0
    for element in elements:
        for part in element.segments if kept else [element]:
            crc = zlib.crc32(part, crc)
    return crc


class ReceiverProcess:
    """A Receiver in another process.

    Parameters
    ----------
    endpoint : str
    core : int
        CPU it is pinned to.
    assemble : bool
        As for `aiflow.Receiver`.
    """

    def __init__(self, endpoint: str, core: int, assemble: bool = True) -> None:
        command = [sys.executable, __file__, endpoint, "--core", str(core)]
        if not assemble:
            command.append("--keep-mbufs")
        # the same aiflow, installed or not
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.opened = self.answer()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def answer(self) -> dict[str, Any]:
        """The next line it prints; waits for it."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the receiving process ended with code {self._process.wait()}; its error stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--keep-mbufs", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})

    import aiflow  # after the pinning, so that every thread inherits it

    with aiflow.Receiver(options.endpoint, assemble=not options.keep_mbufs, memory="1GiB") as rx:
        # the end of our standard input is the end of the run
        threading.Thread(target=lambda: (sys.stdin.read(), rx.close()), daemon=True).start()
        (path,) = rx.describe()
        print(json.dumps({"driver": path["driver"], "memory": path["memory"]}), flush=True)
        for time_slice in rx:
            answer = {
                "nbytes": time_slice.nbytes,
                "elements": len(time_slice),
                "checksum": checksum(time_slice, options.keep_mbufs),
            }
            time_slice.release()
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
