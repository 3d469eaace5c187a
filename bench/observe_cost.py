"""Cost of looking: throughput while `aiflow top`, `metrics` (scraped) and `diagnose` look, over that without them.

    python bench/observe_cost.py [--rounds 40] [--seconds 1.5]

Two transfers between processes are open all the time, over memif: one with AIFLOW_OBSERVE=0, one that answers. A round
has four phases in changing order: the first transfer; the second one alone; alone once more; and with all three that
look. They are stopped in the other phases, and what is due then they do in theirs: they work more often than for a
user. `top` refreshes every two seconds, metrics are scraped every five, and diagnose looks twenty times a second. The
result is the median of the rounds' ratios with its 95 % interval; "alone ÷ alone" is the noise of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from intervals import Median
from paired import Side

TREE = Path(__file__).resolve().parents[1]
SWITCH = "AIFLOW_OBSERVE"
SCRAPER = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1]).read()
    time.sleep(5)
"""


class Lookers:
    """The programs that look. They are stopped unless `looking`."""

    def __init__(self, life: contextlib.ExitStack) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._life = life
        terminal, its_end = pty.openpty()
        command = [sys.executable, "-m", "aiflow"]
        top = {"stdin": its_end, "stdout": its_end, "stderr": its_end}
        self._start([*command, "top"], **top)
        threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
        metrics = self._start([*command, "metrics", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE)
        assert metrics.stdout
        url = next(word for word in metrics.stdout.readline().split() if word.startswith("http")).rstrip(";")
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"aiflow_slices_total{" in answer.read(), "metrics show no transfer"
        self._start([sys.executable, "-c", SCRAPER, url])
        self._start([*command, "diagnose", "--seconds", "600"], stdout=subprocess.DEVNULL)
        time.sleep(3)  # they have imported what they need
        self._pause()

    def _start(self, command: list[str], **streams: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": str(TREE)}, **streams)
        self._processes.append(process)
        self._life.callback(process.wait)
        self._life.callback(process.kill)
        return process

    def _pause(self) -> None:
        for process in self._processes:
            assert process.poll() is None, f"{process.args} ended"
            process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Within, they run."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
        yield
        self._pause()

    def cpu_seconds(self) -> float:
        """CPU time of all of them so far."""
        ticks = 0
        for process in self._processes:
            words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


def phase(side: Side, seconds: float) -> float:
    """Send for this long: GB/s."""
    until, rates = time.monotonic() + seconds, [side.rate()]
    while time.monotonic() < until:
        rates.append(side.rate())
    return statistics.harmonic_mean(rates)


def main() -> None:
    """Run the rounds, and print the outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a phase")
    options = parser.parse_args()
    sizes = argparse.Namespace(driver="memif", rows=0, talk=0, frame=0)
    with contextlib.ExitStack() as life:
        directory = life.enter_context(tempfile.TemporaryDirectory(prefix="af-", dir="/tmp"))
        os.environ |= {"AIFLOW_RUNTIME_DIR": directory, SWITCH: "0"}
        hidden = life.enter_context(Side(TREE, sizes))
        del os.environ[SWITCH]
        shown = life.enter_context(Side(TREE, sizes))
        hidden.rate(), shown.rate()
        lookers = Lookers(life)
        rates: dict[str, list[float]] = {"hidden": [], "alone": [], "again": [], "looked at": []}
        began, looked = lookers.cpu_seconds(), 0.0
        for number in range(options.rounds):
            names = list(rates)
            for name in names[number % 4 :] + names[: number % 4]:
                side = hidden if name == "hidden" else shown
                side.rate()  # a change of the side costs its caches
                with lookers.looking() if name == "looked at" else contextlib.nullcontext():
                    start = time.monotonic()
                    rates[name].append(phase(side, options.seconds))
                    looked += time.monotonic() - start if name == "looked at" else 0
            print(f"round {number + 1:3}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in rates.items()), flush=True)
        cores = (lookers.cpu_seconds() - began) / looked
    for over, under in (("again", "alone"), ("alone", "hidden"), ("looked at", "alone"), ("looked at", "hidden")):
        found = Median.of_ratios(rates[over], rates[under])
        print(f"{over} ÷ {under}: {found.median:.4f} (95 %: {found.low:.4f} to {found.high:.4f})")
    print(f"those who look take {cores:.3f} cores")


if __name__ == "__main__":
    main()
