"""``aiflow diagnose`` names what bounds a run. Each test makes one thing the bottleneck, for real, in other processes.

Both programs are the same in every run, apart from what makes the bottleneck. Their names say nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from subprocesses import environment
from wait import PATIENCE_S, settle

from aiflow._observe import diagnosis
from aiflow._observe.readers import gather

SECONDS = 3
MB = 1_000_000

SEND = """
import sys, time, numpy, aiflow
endpoints, nbytes, pause = sys.argv[1].split(","), int(sys.argv[2]), float(sys.argv[3])
elements = [numpy.random.default_rng(1).integers(0, 255, nbytes, dtype="u1")]
with aiflow.Sender(endpoints, name="one", peer_timeout=60) as tx:
    while True:
        tx.send(elements, timeout=60)
        time.sleep(pause)
"""

RECEIVE = """
import os, sys, threading, time, aiflow
endpoints, pause, hold, file, memory = sys.argv[1].split(","), float(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]
with aiflow.Receiver(endpoints, name="other", memory=memory) as rx:
    while True:
        time_slice = rx.recv()
        if file:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(fd, time_slice[0].array)
            os.fsync(fd)
            os.close(fd)
        time.sleep(pause)
        if hold:
            threading.Timer(hold, time_slice.release).start()
        else:
            time_slice.release()
"""


@contextlib.contextmanager
def program(code: str, *arguments: object, prefix: tuple[str, ...] = (), group: Path | None = None) -> Iterator[int]:
    """A process of its own, in a namespace or in a cgroup; it is killed at the end."""

    def join() -> None:
        if group is not None:
            (group / "tasks").write_text(str(os.getpid()))

    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)], env=environment(), preexec_fn=join
    )
    try:
        yield process.pid
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def diagnosed(aiflow: Any, pids: set[int]) -> dict[str, Any]:
    """The verdict on the flow between these processes, once it runs."""

    def runs() -> bool:
        sides = [side for document in gather() if document["pid"] in pids for side in document["sides"]]
        return len(sides) == 2 and all(side["figures"]["slices"] >= 2 for side in sides)

    assert settle(runs, PATIENCE_S)
    time.sleep(1)  # a receiver that is slow fills up first
    for _ in range(3):  # on a loaded machine it may say "unclear", and never a wrong name
        (flow,) = aiflow("diagnose", "--json", "--seconds", SECONDS).ends(0)["flows"]
        print(flow["cause"], flow["numbers"], flow["strengths"])
        if flow["cause"] != "unclear":
            break
    assert (flow["sender"], flow["receiver"]) == ("one", "other")
    found: dict[str, Any] = flow
    return found


def bounded(
    aiflow: Any,
    ends: tuple[str, str],
    *,
    nbytes: int = 5 * MB,
    send: dict[str, Any] | None = None,
    receive: dict[str, Any] | None = None,
    offer_pause: float = 0,
    read_pause: float = 0,
    hold: float = 0,
    file: str = "",
    memory: str = "256MiB",
) -> dict[str, Any]:
    """Run both programs, and diagnose them."""
    with (
        program(RECEIVE, ends[1], read_pause, hold, file, memory, **(receive or {})) as reader,
        program(SEND, ends[0], nbytes, offer_pause, **(send or {})) as writer,
    ):
        return diagnosed(aiflow, {reader, writer})


@pytest.fixture
def local(endpoint: str) -> tuple[str, str]:
    return f"{endpoint}*2", f"{endpoint}*2"


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup (version 1) that gives 15 percent of a core."""
    root = Path("/sys/fs/cgroup/cpu")
    if not (root / "cpu.cfs_quota_us").parent.is_dir() or not os.access(root, os.W_OK):
        pytest.skip("needs a cgroup of version 1 for CPU time that can be written")
    made = root / f"aiflow-t-{os.getpid()}"
    made.mkdir()
    try:
        (made / "cpu.cfs_period_us").write_text("50000")
        (made / "cpu.cfs_quota_us").write_text("7500")
        yield made
    finally:

        def removed() -> bool:
            with contextlib.suppress(OSError):
                made.rmdir()
            return not made.exists()

        assert settle(removed)


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a loop device that takes 4 MB/s."""
    limit = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
    if not os.access(limit, os.W_OK):
        pytest.skip("needs a cgroup of version 1 for block devices that can be written")
    image, directory = tmp_path / "image", tmp_path / "disk"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", image], check=True)
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr}")
    device = made.stdout.strip()
    number = os.stat(device).st_rdev
    try:
        subprocess.run(["mount", device, directory], check=True)
        limit.write_text(f"{os.major(number)}:{os.minor(number)} 4000000")
        yield directory
    finally:
        limit.write_text(f"{os.major(number)}:{os.minor(number)} 0")
        subprocess.run(["umount", directory], check=False)
        subprocess.run(["losetup", "-d", device], check=False)


def switched(net: Any, *slow: int) -> tuple[tuple[str, str], dict[str, Any], dict[str, Any]]:
    """Two ports of 100 Mbit/s at a switch, some of them of 20: endpoints, and where each end runs."""
    source, switch, sink = net.switched(2, "100mbit")
    for index in slow:
        source.shape(f"s{index}", "20mbit")
        switch.shape(f"r{index}", "20mbit")
    ends = [",".join(f"af_packet:{letter}{index}" for index in range(2)) for letter in "sr"]
    return (ends[0], ends[1]), {"prefix": source.prefix}, {"prefix": sink.prefix}


@pytest.mark.slow
@pytest.mark.root
class TestVerdicts:
    """The eight kinds."""

    def test_full_links(self, aiflow: Any, net: Any) -> None:
        ends, source, sink = switched(net)
        assert bounded(aiflow, ends, nbytes=2 * MB, send=source, receive=sink)["cause"] == "link"

    def test_one_slow_port(self, aiflow: Any, net: Any) -> None:
        ends, source, sink = switched(net, 1)
        flow = bounded(aiflow, ends, nbytes=2 * MB, send=source, receive=sink)
        assert flow["cause"] == "port"
        assert "af_packet:s1" in flow["numbers"]

    def test_too_little_cpu_of_the_sender(self, aiflow: Any, local: tuple[str, str], group: Path) -> None:
        assert bounded(aiflow, local, send={"group": group})["cause"] == "sender-cpu"

    def test_too_little_cpu_of_the_receiver(self, aiflow: Any, local: tuple[str, str], group: Path) -> None:
        assert bounded(aiflow, local, receive={"group": group})["cause"] == "receiver-cpu"

    def test_a_slow_reader(self, aiflow: Any, local: tuple[str, str]) -> None:
        assert bounded(aiflow, local, read_pause=0.02)["cause"] == "reader"

    def test_little_memory(self, aiflow: Any, local: tuple[str, str]) -> None:
        """The reader takes each slice at once, and needs it for a while."""
        assert bounded(aiflow, local, hold=0.1, memory="12MiB")["cause"] == "memory"

    def test_a_slow_disk(self, aiflow: Any, local: tuple[str, str], slow_disk: Path) -> None:
        assert bounded(aiflow, local, nbytes=2 * MB, file=str(slow_disk / "file"), memory="16MiB")["cause"] == "disk"

    @pytest.mark.parametrize("pause", [0.02, 0.1])
    def test_an_application_that_offers_little(self, aiflow: Any, local: tuple[str, str], pause: float) -> None:
        flow = bounded(aiflow, local, offer_pause=pause)
        assert flow["cause"] == "application"
        assert flow["measures"]["offered"] < 0.3
        assert f"had a slice to send for {flow['measures']['offered']:.0%}" in flow["numbers"]


# ---- the rules ----

QUIET = diagnosis.Measures(
    offered=1.0,
    path=0.0,
    grant=0.0,
    confirmation=0.0,
    sender_busy=0.1,
    receiver_busy=0.1,
    sender_starved=0.0,
    receiver_starved=0.0,
    reader_waits=1.0,
    memory_waits=0.0,
    behind=0.0,
    sender_disk=0.0,
    receiver_disk=0.0,
    busiest_port=0.9,
    other_ports=0.9,
    slowest_port=1.0,
    slow_port="",
    goodput_bps=1e9,
    has_links=True,
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a link": ("link", {"path": 1.0}),
    "shared memory has no link": ("unclear", {"path": 1.0, "has_links": False}),
    "each slice waits for one port": ("port", {"path": 1.0, "other_ports": 0.3}),
    "a loop that is always busy": ("sender-cpu", {"path": 1.0, "sender_busy": 0.98}),
    "both loops are busy": ("unclear", {"path": 1.0, "sender_busy": 0.98, "receiver_busy": 0.98}),
    "both have no CPU": ("unclear", {"path": 1.0, "sender_starved": 0.6, "receiver_starved": 0.6}),
    "a reader that confirms late": ("reader", {"confirmation": 0.9, "reader_waits": 0.05}),
    "memory and reader alternate": ("memory", {"grant": 0.5, "memory_waits": 0.5, "reader_waits": 0.5, "path": 0.5}),
    "the reader works while memory is full": ("reader", {"grant": 0.9, "memory_waits": 0.9, "reader_waits": 0.1}),
    "half and half": ("unclear", {"offered": 0.5, "path": 0.5}),
    "nothing is sent": ("idle", {"offered": 0.0, "goodput_bps": 0.0}),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", CASES)
def test_rules_name_a_cause_only_when_it_stands_out(name: str) -> None:
    cause, measures = CASES[name]
    found = diagnosis.verdict(QUIET._replace(**measures))
    assert found.cause == cause, found.strengths
    assert found.text
    assert found.advice


@pytest.mark.unit
@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_with_one_end_alone_nothing_is_made_up(end: str) -> None:
    """What only the other end knows is NaN: no rule may take that for a number."""
    sender_only = {"offered", "path", "grant", "confirmation", "busiest_port", "other_ports", "slowest_port"}
    receiver_only = {"reader_waits", "memory_waits", "behind"}
    hidden = sender_only if end == "receiver" else receiver_only
    other = "sender" if end == "receiver" else "receiver"
    hidden |= {f"{other}_busy", f"{other}_starved", f"{other}_disk"}
    found = diagnosis.verdict(QUIET._replace(**dict.fromkeys(hidden, float("nan"))))
    assert found.cause == "unclear"
    assert "nan" not in found.text
    assert all(strength == strength for strength in found.strengths.values())


@pytest.mark.unit
def test_every_cause_has_a_rule_words_and_advice() -> None:
    assert set(diagnosis.RULES) == set(diagnosis.CAUSES)
    check: Callable[[str], bool] = diagnosis.WORDS.__contains__
    assert all(check(name) for rule in diagnosis.RULES.values() for name in rule.shows)


def test_nothing_to_diagnose_is_said(aiflow: Any) -> None:
    _, stderr = aiflow("diagnose", "--seconds", 0.5).text(1)
    assert "no Sender or Receiver of this user is open" in stderr
