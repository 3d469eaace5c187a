"""A Python process that runs statements for a test: `Console`. It owns its ports, as a program of a user does.

The statements share a namespace, in which `answer` is what the test gets back. It begins with `np`, `aiflow`, `images`
(the 64 pictures) and the functions at the end of this file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

IMAGES = "/run/share/images.npz"
TIMEOUT = 100.0  # seconds for some statements


class Template:
    """A process that has imported what consoles need, and becomes one by fork: an import takes seconds here.

    It has not started DPDK. So a process that it forks is as good as a new one.
    """

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])

    def fork(self, variables: dict[str, str]) -> tuple[int, IO[str], IO[str]]:
        """Number of a new process, and the files for its statements and its replies."""
        statements, to_it = os.pipe()
        from_it, replies = os.pipe()
        socket.send_fds(self._ours, [json.dumps(variables).encode()], [statements, replies])
        os.close(statements)
        os.close(replies)
        return int(self._ours.recv(32)), os.fdopen(to_it, "w"), os.fdopen(from_it)


@functools.cache
def template() -> Template:
    """The one for all consoles. It ends when this process ends."""
    return Template()


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
        if prefix:
            process = subprocess.Popen(
                [*prefix, sys.executable, __file__],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            self.pid, self._statements, self._replies = process.pid, process.stdin, process.stdout
        else:
            self.pid, self._statements, self._replies = template().fork(variables)
        self._end = os.pidfd_open(self.pid)

    def start(self, statements: str) -> None:
        """Begin to run statements; `finish` waits for their end."""
        self._statements.write(json.dumps(textwrap.dedent(statements)) + "\n")
        self._statements.flush()

    def finish(self, timeout: float = TIMEOUT) -> Any:
        """The `answer` of the statements that were started. Raises `Raised` where they raised."""
        ready, _, _ = select.select([self._replies], [], [], timeout)
        if not ready:
            os.kill(self.pid, signal.SIGUSR1)  # it prints where its threads are
            time.sleep(2)
            print(Path(f"/proc/{self.pid}/stack").read_text(), flush=True)
        assert ready, f"no answer within {timeout:.0f} s"
        line = self._replies.readline()
        assert line, "the process ended"
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
            self._statements.close()
        ended, _, _ = select.select([self._end], [], [], 20)
        if not ended:
            signal.pidfd_send_signal(self._end, signal.SIGKILL)
            select.select([self._end], [], [], 20)
        os.close(self._end)
        self._replies.close()

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


def _serve(statements: IO[str], replies: IO[str]) -> None:
    import numpy as np

    import aiflow

    faulthandler.register(signal.SIGUSR1)
    namespace: dict[str, Any] = {
        "np": np,
        "aiflow": aiflow,
        "os": os,
        "time": time,
        "images": _images(),
        "facts": facts,
        "same": same,
        "open_ports": open_ports,
        "until": until,
    }
    for line in statements:
        namespace["answer"] = None
        try:
            exec(json.loads(line), namespace)
            reply = {"answer": namespace["answer"]}
        except Exception as exc:
            reply = {"raised": f"{type(exc).__name__}: {exc}"}
        replies.write(json.dumps(reply, default=repr) + "\n")
        replies.flush()


@functools.cache
def _images() -> dict[str, Any]:
    import numpy as np

    return dict(np.load(IMAGES)) if Path(IMAGES).exists() else {}


def _be_template(requests: socket.socket) -> None:
    import aiflow._engine  # noqa: F401  what a Sender and a Receiver import when they are first used

    _images()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 65536, 2)
        if not message:
            return
        child = os.fork()
        if not child:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(child).encode())
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(json.loads(message))
    _serve(os.fdopen(descriptors[0]), os.fdopen(descriptors[1], "w"))


def _main() -> None:
    if len(sys.argv) > 1:
        _be_template(socket.socket(fileno=int(sys.argv[1])))
    else:
        replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what is printed is no reply
        _serve(sys.stdin, replies)


if __name__ == "__main__":
    _main()
