"""A Python process that runs statements for a test: `Console`. It owns its ports, as a program of a user does.

The statements share a namespace, in which `answer` is what the test gets back. It begins with `np`, `aiflow`, `images`
(the 64 pictures) and the functions at the end of this file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGES = "/run/share/images.npz"
TIMEOUT = 100.0  # seconds for some statements


class Raised(Exception):
    """An exception of the statements: its class and its words."""


class Console:
    """A process of its own; a context manager.

    Parameters
    ----------
    prefix : tuple of str
        A command in front of Python, such as ``prlimit``.
    variables : str
        Environment variables.
    """

    def __init__(self, *prefix: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def start(self, statements: str) -> None:
        """Begin to run statements; `finish` waits for their end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(textwrap.dedent(statements)) + "\n")
        self._process.stdin.flush()

    def finish(self, timeout: float = TIMEOUT) -> Any:
        """The `answer` of the statements that were started. Raises `Raised` where they raised."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            os.kill(self.pid, signal.SIGUSR1)  # it prints where its threads are
            time.sleep(2)
            print(Path(f"/proc/{self.pid}/stack").read_text(), flush=True)
        assert ready, f"no answer within {timeout:.0f} s"
        line = self._process.stdout.readline()
        assert line, f"the process ended: {self._process.wait()}"
        reply = json.loads(line)
        if "raised" in reply:
            raise Raised(reply["raised"])
        return reply["answer"]

    def run(self, statements: str, timeout: float = TIMEOUT) -> Any:
        """Run statements to their end."""
        self.start(statements)
        return self.finish(timeout)

    def error(self, statements: str) -> str:
        """Run statements that must raise; returns the class and the words."""
        try:
            answer = self.run(statements)
        except Raised as raised:
            return str(raised)
        raise AssertionError(f"nothing was raised: {answer}")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Wait until `condition` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not: {what}"
        time.sleep(0.05)


# --------------------------------------------------------------------------------------- in the process of the console


def facts(report: Any) -> dict[str, Any]:
    """What a test asks about a report."""
    return {
        "elements": report.elements,
        "nbytes": report.nbytes,
        "seconds": report.seconds,
        "sent": report.frames_sent,
        "again": report.frames_retransmitted,
        "ports": {port.name: port.frames for port in report.ports},
        "drivers": sorted({port.driver for port in report.ports}),
    }


def same(time_slice: Any, images: dict[str, Any]) -> bool:
    """Whether a slice holds all of these arrays, and nothing else."""
    import numpy as np

    return sorted(time_slice.streams) == sorted(images) and all(
        np.array_equal(time_slice[name].array, image) for name, image in images.items()
    )


def open_ports() -> list[Any]:
    """The open ports of this process."""
    import gc

    from aiflow import _eal

    return [each for each in gc.get_objects() if type(each) is _eal.Port and each.is_open]


def _serve() -> None:
    import numpy as np

    import aiflow

    faulthandler.register(signal.SIGUSR1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no reply
    images = dict(np.load(IMAGES)) if Path(IMAGES).exists() else {}
    namespace: dict[str, Any] = {
        "np": np,
        "aiflow": aiflow,
        "os": os,
        "time": time,
        "images": images,
        "facts": facts,
        "same": same,
        "open_ports": open_ports,
        "until": until,
    }
    for line in sys.stdin:
        namespace["answer"] = None
        try:
            exec(json.loads(line), namespace)
            reply = {"answer": namespace["answer"]}
        except Exception as exc:
            reply = {"raised": f"{type(exc).__name__}: {exc}"}
        replies.write(json.dumps(reply, default=repr) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve()
