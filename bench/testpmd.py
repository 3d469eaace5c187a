"""The C baseline: two dpdk-testpmd processes, txonly → rxonly, over the same kind of port, cores and frame size.

testpmd forwards frames without reading them: no payload is filled in, read, checked or stored. It shows the limit of
the driver, not of a transfer.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import veth

PROGRAM = "dpdk-testpmd"
PACKAGE = "dpdk-dev"  # its location in Debian 12
SAMPLES, SAMPLE_S = 10, 0.2
START_S = 30.0


class BaselineError(Exception):
    """testpmd is missing, or did not run."""


@dataclass(frozen=True)
class Baseline:
    """Results of testpmd.

    Attributes
    ----------
    frames_per_s : float
        Received by rxonly, median of the samples.
    best_frames_per_s : float
        The highest sample: the rate without other load on its cores.
    spread : float
        (highest - lowest) / median of the samples.
    how : str
        The arrangement, in words.
    """

    frames_per_s: float
    best_frames_per_s: float
    spread: float
    how: str


def missing() -> str:
    """Return why testpmd cannot run here, or an empty string."""
    return "" if shutil.which(PROGRAM) else f"{PROGRAM} is not installed (apt install {PACKAGE})"


class _Testpmd:
    """One interactive testpmd."""

    def __init__(self, core: int, vdev: str, memory_mode: str, options: list[str], log: Path) -> None:
        modes = {"no-huge": ["--no-huge", "--no-shconf"], "hugepages": ["--in-memory", "--single-file-segments"]}
        self._log = log
        command = [
            *("stdbuf", "-oL", PROGRAM, "--lcores", f"0@{core},1@{core}", "--no-pci", "--no-telemetry"),
            *modes[memory_mode],
            *("-m", "512", "--file-prefix", f"bench-{os.getpid()}-{log.stem}", "--vdev", vdev),
            *("--", "-i", "--no-lsc-interrupt", "--no-flush-rx", *options),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        with self._log.open("w") as log:
            for line in self._process.stdout:
                self._lines.append(line)
                log.write(line)

    def _wait(self, pattern: str, first: int, timeout: float = START_S) -> re.Match[str]:
        """Wait for a match in the lines from number `first` on, and return it."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self._process.poll() is not None
            for line in self._lines[first:]:
                if match := re.search(pattern, line):
                    return match
            if ended or time.monotonic() > deadline:
                tail = "".join(self._lines[-15:])
                raise BaselineError(f"testpmd {'ended' if ended else 'hangs'}, waiting for {pattern!r}:\n{tail}")
            time.sleep(0.01)

    def say(self, command: str, answer: str) -> re.Match[str]:
        """Type a command and wait for a line that matches `answer`."""
        assert self._process.stdin
        first = len(self._lines)
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: _wait reports the reason
        return self._wait(answer, first)

    def ready(self) -> None:
        """Wait until its ports are configured."""
        self._wait(r"^Done", 0)

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            try:
                assert self._process.stdin
                self._process.stdin.write("stop\nquit\n")
                self._process.stdin.close()
                self._process.wait(5)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        self._reader.join()


def _rate(receiver: _Testpmd) -> tuple[float, float, float]:
    """Return frames received per second: median, highest and relative spread of the samples."""
    question = "show port stats 0", r"Rx-pps:\s+(\d+)"
    receiver.say(*question)
    rates = []
    for _ in range(SAMPLES + 1):
        time.sleep(SAMPLE_S)
        rates.append(float(receiver.say(*question)[1]))
    rates = rates[1:]  # the first sample includes the start
    median = statistics.median(rates)
    if not median:
        raise BaselineError("testpmd received nothing")
    return median, max(rates), (max(rates) - min(rates)) / median


def run(
    driver: str,
    frame_size: int,
    ring_size: int,
    cores: tuple[int, int],
    memory_mode: str,
    interfaces: tuple[str, str] | None = None,
) -> Baseline:
    """Measure frames per second from one testpmd to another.

    Parameters
    ----------
    driver : {"memif", "vhost", "ring", "af_packet", "af_xdp"}
        Rings do not connect processes: for "ring", one testpmd on one core creates frames, sends them through a
        net_ring port to itself, and frees them.
    frame_size : int
        Ethernet frame in bytes.
    ring_size : int
        Frames that each ring holds.
    cores : (int, int)
        CPUs of the sending and the receiving side.
    memory_mode : str
        The mode of aiflow: "no-huge" or "hugepages".
    interfaces : (str, str), optional
        Of the sending and the receiving side, for a kernel's driver.

    Raises
    ------
    BaselineError
        With the last output of testpmd.
    """
    if why := missing():
        raise BaselineError(why)
    sizes = [
        *(f"--mbuf-size={max(frame_size, 2048) + 256}", "--total-num-mbufs=16384", f"--txpkts={frame_size}"),
        *(f"--rxd={ring_size}", f"--txd={ring_size}"),
    ]
    with tempfile.TemporaryDirectory(prefix="aiflow-bench-") as directory:
        where = Path(directory)
        started: list[_Testpmd] = []
        try:
            if driver == "ring":
                loop = ["--port-topology=loop", "--forward-mode=flowgen"]
                one = _Testpmd(cores[0], "net_ring0", memory_mode, [*sizes, *loop], where / "ring.log")
                started.append(one)
                one.ready()
                one.say("start", "packet forwarding")
                return Baseline(*_rate(one), "one testpmd on one core, flowgen in a loop")
            socket = where / "socket"
            vdevs: tuple[str, ...]
            if interfaces is not None:
                vdevs = tuple(veth.vdev(driver, interface) for interface in interfaces)
            elif driver == "memif":
                ring = f"socket={socket},socket-abstract=no,bsize={frame_size},rsize={ring_size.bit_length() - 1}"
                vdevs = f"net_memif0,role=client,{ring}", f"net_memif0,role=server,{ring}"
            else:
                vdevs = (
                    f"net_virtio_user0,path={socket},queues=1,queue_size={ring_size},mrg_rxbuf=0",
                    f"net_vhost0,iface={socket},queues=1",
                )
            for side, mode in ((1, "rxonly"), (0, "txonly")):
                options = [*sizes, f"--forward-mode={mode}"]
                testpmd = _Testpmd(cores[side], vdevs[side], memory_mode, options, where / f"{mode}.log")
                started.append(testpmd)
                testpmd.ready()
                testpmd.say("start", "packet forwarding")
            return Baseline(*_rate(started[0]), "two testpmds, txonly → rxonly")
        finally:
            for testpmd in reversed(started):
                testpmd.close()
