"""Runs of two programs with one bottleneck, made for real: a limit of a cgroup, a shaped link, a slow reader, a disk …

Both programs are the same in every run. What they have to do comes through standard input: neither their names nor
their arguments say it. They have far more weight than other programs on the machine: else these may be the bottleneck.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from subprocesses import environment
from wait import PATIENCE_S, settle

from aiflow._observe.readers import gather

MB = 1_000_000
WEIGHT = 1 << 18  # of each program for the scheduler; that of others is 1024. Version 2: 10000, others 100

COMMON = """
import json, os, sys, threading, time, numpy, aiflow
asked = json.load(sys.stdin)
def work(seconds):  # the same work, however little CPU there is
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
"""

SEND = (
    COMMON
    + """
nbytes = asked["nbytes"] // asked["elements"]
elements = [numpy.random.default_rng(1).integers(0, 255, nbytes, dtype="u1")] * asked["elements"]
def load():
    fd = os.open(asked["file"], os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # it comes from the disk
    loaded = numpy.frombuffer(os.read(fd, nbytes), "u1")
    os.close(fd)
    return [loaded]
if asked["file"]:
    with open(asked["file"], "wb") as file:
        file.write(elements[0])
        file.flush()
        os.fsync(file.fileno())
tickets = []
with aiflow.Sender(asked["ports"], name="one", peer_timeout=60, **asked["options"]) as tx:
    while True:
        tickets.append(tx.send(load() if asked["file"] else elements, wait=False))
        if len(tickets) > asked["ahead"]:
            tickets.pop(0).result(60)
        work(asked["work"])
        time.sleep(asked["pause"])
"""
)

RECEIVE = (
    COMMON
    + """
with aiflow.Receiver(asked["ports"], name="other", **asked["options"]) as rx:
    while True:
        time_slice = rx.recv()
        if asked["file"]:
            fd = os.open(asked["file"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for element in time_slice:
                os.write(fd, element.array)
            os.fsync(fd)
            os.close(fd)
        work(asked["work"])
        time.sleep(asked["pause"])
        if asked["hold"]:
            threading.Timer(asked["hold"], time_slice.release).start()
        else:
            time_slice.release()
"""
)


@dataclass(frozen=True)
class End:
    """What one of the two programs does, and what it has.

    Attributes
    ----------
    pause, work : float
        Seconds that it sleeps, and CPU seconds that it computes, for each slice.
    cpu : float
        Its share of a core, by a cgroup; 0 for no limit.
    period_ms : float
        Of this limit.
    disk_bps : float
        It reads or writes each slice, with a disk of this speed; 0 for no disk.
    rivals : int
        Programs that compute on its one core, too; 0 leaves it all cores.
    options : dict
        Of the Sender or Receiver.
    """

    pause: float = 0
    work: float = 0
    cpu: float = 0
    period_ms: float = 50
    disk_bps: float = 0
    rivals: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """A run.

    Attributes
    ----------
    cause : str
        The verdict that is right.
    sender, receiver : End
    link : str
        Rate of each link between two namespaces; "" for shared memory, "free" for links without a limit.
    slow : dict
        Port → its rate, where it is another.
    told : bool
        The Sender is told the rate of each link that is not slow (``link_speed=``), as a driver of a card would.
    ports, nbytes, elements : int
        Ports; bytes of a slice, and into how many elements they are divided.
    ahead : int
        Slices that the sender posts before it waits for the first of them.
    hold : float
        Seconds for which the receiving program needs a slice after it took it.
    """

    cause: Literal["link", "port", "sender-cpu", "receiver-cpu", "reader", "memory", "disk", "application"]
    sender: End = End()
    receiver: End = End()
    link: str = ""
    slow: dict[int, str] = field(default_factory=dict)
    told: bool = True
    ports: int = 2
    nbytes: int = 5 * MB
    elements: int = 1
    ahead: int = 0
    hold: float = 0

    def __str__(self) -> str:
        plain = Scene(self.cause)
        told = {name: value for name, value in vars(self).items() if value != getattr(plain, name)}
        for name in ("sender", "receiver"):
            if name in told:
                told[name] = {key: value for key, value in vars(told[name]).items() if value != getattr(End(), key)}
        return f"{self.cause}: {told}"


@contextlib.contextmanager
def running(scene: Scene) -> Iterator[set[int]]:
    """Both programs at work, once slices have passed. Gives their process ids."""
    with contextlib.ExitStack() as life:
        prefixes = _links(scene, life)
        pids = set()
        for letter, code, end in (("r", RECEIVE, scene.receiver), ("s", SEND, scene.sender)):
            group = life.enter_context(cpu_group(end.cpu, end.period_ms))
            asked: dict[str, Any] = {
                "ports": [f"af_packet:{letter}{index}" for index in range(scene.ports)]
                if scene.link
                else [f"local:scene-{os.getpid()}*{scene.ports}"],
                "file": str(life.enter_context(disk(end.disk_bps, group)) / "file") if end.disk_bps else "",
                "work": end.work,
                "pause": end.pause,
                "options": end.options,
            }
            if letter == "s":
                asked |= {"nbytes": scene.nbytes, "elements": scene.elements, "ahead": scene.ahead}
                if scene.told and scene.link not in ("", "free"):
                    asked["options"] = {**end.options, "link_speed": scene.link}
            else:
                asked["hold"] = scene.hold
            core = None
            if scene.sender.rivals or scene.receiver.rivals:  # the other end has another core
                core = (max if end.rivals else min)(os.sched_getaffinity(0))
                life.enter_context(rivals(end.rivals, group, core))
            pids.add(life.enter_context(program(code, asked, prefixes.get(letter, ()), group, core)))

        def runs() -> bool:
            sides = [side for document in gather() if document["pid"] in pids for side in document["sides"]]
            return len(sides) == 2 and all(side["figures"]["slices"] >= 2 for side in sides)

        assert settle(runs, PATIENCE_S), "no slices pass"
        time.sleep(1)  # a receiver that is slow fills up first
        yield pids


def _links(scene: Scene, life: contextlib.ExitStack) -> dict[str, tuple[str, ...]]:
    """Make two namespaces with ports at a switch; where the sender's program runs, and the receiver's."""
    if not scene.link:
        return {}
    from netns import Net

    source, switch, sink = life.enter_context(Net()).switched(scene.ports, scene.link if scene.link != "free" else None)
    for index, rate in scene.slow.items():
        source.shape(f"s{index}", rate)
        switch.shape(f"r{index}", rate)
    return {"s": source.prefix, "r": sink.prefix}


@contextlib.contextmanager
def program(code: str, asked: dict[str, Any], prefix: tuple[str, ...], group: Path, core: int | None) -> Iterator[int]:
    """A process of its own; it is killed at the end."""

    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        if core is not None:
            os.sched_setaffinity(0, {core})

    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code], env=environment(), stdin=subprocess.PIPE, preexec_fn=join
    )
    try:
        assert process.stdin
        with process.stdin:
            process.stdin.write(json.dumps(asked).encode())
        yield process.pid
        assert process.poll() is None, "the program ended"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def rivals(count: int, group: Path, core: int) -> Iterator[None]:
    """Programs of a group that compute all the time on one core."""

    def alike() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        os.sched_setaffinity(0, {core})

    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=alike) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


_serial = itertools.count()


def unified() -> Path | None:
    """The root of version 2 of the cgroups, if CPU time is limited there; None if it is in version 1."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, root, kind, *_ = line.split()
        if kind == "cgroup2" and "cpu" in Path(root, "cgroup.controllers").read_text().split():
            return Path(root)
    return None


@contextlib.contextmanager
def cpu_group(share: float, period_ms: float) -> Iterator[Path]:
    """A cgroup that gives this share of a core; 0: no limit."""
    version2 = unified()
    root = version2 or Path("/sys/fs/cgroup/cpu")
    if not os.access(root, os.W_OK):
        pytest.skip("needs a cgroup for CPU time that can be written")
    if version2 is not None:
        limit_below(version2)
    made = root / f"aiflow-t-{os.getpid()}-{next(_serial)}"
    made.mkdir()
    try:
        for name, value in limits(version2 is not None, share, period_ms).items():
            (made / name).write_text(value)
        yield made
    finally:

        def removed() -> bool:
            with contextlib.suppress(OSError):
                made.rmdir()
            return not made.exists()

        assert settle(removed)


def limit_below(root: Path) -> None:
    """Let version 2 limit groups below its root. Writes to a disk belong to a group by the memory that they were in."""
    try:
        for controller in ("cpu", "memory", "io"):
            if controller not in (root / "cgroup.subtree_control").read_text().split():
                (root / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError as error:  # a container's root, in which processes are, or without a controller
        pytest.skip(f"needs the root of cgroups, with limits below it: {error}")


def limits(version2: bool, share: float, period_ms: float) -> dict[str, str]:
    """Files of a group and what to write into them: far more weight than others have, and this share of a core."""
    period, quota = f"{period_ms * 1000:.0f}", f"{period_ms * 1000 * share:.0f}"
    if version2:
        return {"cpu.weight": "10000"} | ({"cpu.max": f"{quota} {period}"} if share else {})
    timed = {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota} if share else {}
    return {"cpu.shares": str(WEIGHT), **timed}


@contextlib.contextmanager
def disk(bps: float, group: Path) -> Iterator[Path]:
    """A directory on a loop device that reads and writes this many bytes a second for a group; version 1: for all."""
    if unified() is not None:
        limited, unlimited = {group / "io.max": f"rbps={bps:.0f} wbps={bps:.0f}"}, "rbps=max wbps=max"
    else:
        ways = [Path(f"/sys/fs/cgroup/blkio/blkio.throttle.{way}_bps_device") for way in ("read", "write")]
        limited, unlimited = dict.fromkeys(ways, f"{bps:.0f}"), "0"
    if not all(os.access(limit, os.W_OK) for limit in limited):
        pytest.skip("needs a cgroup for block devices that can be written")
    with tempfile.TemporaryDirectory() as name:
        image, directory = Path(name, "image"), Path(name, "disk")
        directory.mkdir()
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mke2fs", "-q", image], check=True)
        made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no loop device: {made.stderr}")
        device = made.stdout.strip()
        number = os.stat(device).st_rdev
        numbers = f"{os.major(number)}:{os.minor(number)}"
        try:
            subprocess.run(["mount", device, directory], check=True)
            for limit, value in limited.items():
                limit.write_text(f"{numbers} {value}")
            yield directory
        finally:
            for limit in limited:
                limit.write_text(f"{numbers} {unlimited}")
            subprocess.run(["umount", directory], check=False)
            subprocess.run(["losetup", "-d", device], check=False)
