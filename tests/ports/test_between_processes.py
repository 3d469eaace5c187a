"""Slices between processes: several senders, another user, frames of any size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from peer import Peer, content, name, send_once
from subprocesses import environment, run
from wait import PATIENCE_S

import aiflow
from aiflow._eal_args import hugepages_usable

ROOT = Path(__file__).resolve().parents[2]

SEND = """
    import sys, hashlib
    import numpy as np
    import aiflow
    rng = np.random.default_rng(int(sys.argv[2]))
    with aiflow.Sender(sys.argv[1], name=sys.argv[3] if len(sys.argv) > 3 else None) as tx:
        for i in range(3):
            elements = {f"e{k}": rng.integers(0, 256, int(rng.integers(0, 300_000)), dtype=np.uint8) for k in range(8)}
            report = tx.send(elements, timeout=40)
            print(hashlib.sha256(b"".join(e.tobytes() for e in elements.values())).hexdigest(), flush=True)
"""


def digest(time_slice) -> str:
    import hashlib

    return hashlib.sha256(b"".join(element.tobytes() for element in time_slice)).hexdigest()


@pytest.mark.parametrize("scheme", ["local", "memif", "vhost"])
@pytest.mark.parametrize("nb_ports", [1, 4])
def test_between_two_processes(name, scheme, nb_ports) -> None:
    with aiflow.Receiver(f"{scheme}:{name}*{nb_ports}", until="bye") as rx:
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.extend(digest(time_slice) for time_slice in rx))
        thread.start()
        sent = run(SEND, f"{scheme}:{name}*{nb_ports}", "5").split()
        thread.join(30)
        assert not thread.is_alive()
    assert got == sent
    assert len(sent) == 3


def test_several_senders_feed_one_receiver(name) -> None:
    with aiflow.Receiver(f"local:{name}") as rx:
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import textwrap,sys; exec(textwrap.dedent(sys.argv.pop(1)))",
                    SEND,
                    f"local:{name}",
                    str(seed),
                    f"sender-{seed}",
                ],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(3)
        ]
        got: dict[str, list[str]] = {}
        for _ in range(9):
            with rx.recv(timeout=60) as time_slice:
                got.setdefault(time_slice.sender, []).append(digest(time_slice))
        for seed, process in enumerate(processes):
            out, _ = process.communicate(timeout=30)
            assert process.returncode == 0
            assert got[f"sender-{seed}"] == out.split()  # each sender's slices in its order


def test_a_sender_may_come_first(endpoint) -> None:
    code = "import textwrap,sys; exec(textwrap.dedent(sys.argv.pop(1)))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, SEND, endpoint, "3"], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        time.sleep(0.5)  # not for a condition: the point is that there is no receiver yet
        with aiflow.Receiver(endpoint) as rx:
            got = [digest(rx.recv(timeout=40)) for _ in range(3)]
            out, _ = process.communicate(timeout=30)
        assert got == out.split()
    finally:
        process.kill()
        process.wait()


# env stands behind setpriv, which still has root's capabilities when it looks its command up.
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
AS_NOBODY.append("env")


def reachable_python() -> str | None:
    """An interpreter that the user `nobody` can run, and that finds our imports."""
    for python in dict.fromkeys([sys.executable, "/usr/bin/python3"]):
        trial = [*AS_NOBODY, python, "-c", "import numpy, aiflow._dp_tx"]
        ran = subprocess.run(trial, env=environment(), capture_output=True, timeout=60)
        if ran.returncode == 0:
            return python
    return None


@pytest.mark.root
def test_an_unprivileged_user_can_do_all_this(tmp_path, name) -> None:
    """Receiver and sender as the user `nobody`, without capabilities; with hugepages only if this machine has some."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv (util-linux) here")
    python = reachable_python()
    if python is None:
        pytest.skip(f"{sys.executable} and {ROOT} cannot be read by other users")
    code = """
        import os, subprocess, sys
        assert os.geteuid() == 65534
        assert open("/proc/self/status").read().split("CapEff:")[1].split()[0] == "0" * 16
        import aiflow
        with aiflow.Receiver(sys.argv[1]) as rx:
            sender = subprocess.Popen([sys.argv[3], "-c", sys.argv[2], sys.argv[1], "11"])
            total = 0
            for _ in range(3):
                with rx.recv(timeout=40) as time_slice:
                    total += sum(element.array.nbytes for element in time_slice)
            assert sender.wait(30) == 0
        print(total, rx.describe()[0]["memory"])
    """
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(directory.stat().st_mode | 0o011)
    own = {name: value for name, value in environment().items() if name != "AIFLOW_RUNTIME_DIR"}  # not root's
    usable = hugepages_usable(64 << 20)
    ran = subprocess.run(
        [*AS_NOBODY, python, "-c", textwrap.dedent(code), f"local:{name}", textwrap.dedent(SEND), python],
        env={**own, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "TMPDIR": "/tmp"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    nbytes, memory = ran.stdout.splitlines()[-1].split()
    assert int(nbytes) > 0
    assert memory == ("hugepages" if usable else "no-huge")


def receive_in_frames(pipe, endpoint: str, frame_size: int, nbytes: int) -> None:
    with aiflow.Receiver(endpoint, frame_size=frame_size) as rx:
        pipe.send("open")
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            frames = sum(row.frames for row in rx.port_table)
            pipe.send((np.array_equal(time_slice["x"].array, content(3, nbytes)), frames))
        pipe.recv()


@pytest.mark.parametrize("scheme", ["local", "vhost"])
@pytest.mark.parametrize("frame_size", [1514, 30000])
def test_frames_of_any_size_that_was_asked_for(scheme: str, frame_size: int) -> None:
    endpoint, nbytes = f"{scheme}:{name()}", 1_000_000
    with Peer(receive_in_frames, endpoint, frame_size, nbytes) as receiver:
        assert receiver.hear() == "open"
        with Peer(send_once, endpoint, 3, nbytes) as sender:
            intact, frames = receiver.hear()
            assert intact
            assert frames >= nbytes / frame_size  # and no larger ones
            assert sender.hear() == nbytes
            sender.ends()
        receiver.tell("close")
        receiver.ends()
