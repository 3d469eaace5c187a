"""Pictures of a running transfer for docs/: the screen of `aiflow top`, and the graph page of a Prometheus server.

Usage: tools/live_pictures.py [top | prometheus ...]        takes two minutes; screenshots.py --documents calls it

Two processes send eight cameras' frames over four local ports. The third port loses one frame in a hundred by
`faults=`, and the sender offers more every half minute. `aiflow top` runs in a pseudo-terminal, and pyte reads what it
draws there. Prometheus is Debian's package: on PATH, or where tools/setup.sh unpacks it.
"""

from __future__ import annotations

import contextlib
import fcntl
import html
import itertools
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
AIFLOW = [sys.executable, "-m", "aiflow"]

RECEIVE = """
import aiflow
with aiflow.Receiver("local:cameras*4", name="training", until="bye", link_speed="1gbit") as rx:
    for time_slice in rx:
        time_slice.release()
"""
SEND = """
import sys, time
import numpy as np
import aiflow
frames = np.random.default_rng(1).integers(0, 256, (8, 480, 640, 3), dtype=np.uint8)
faults = {"ports": [2], "ways": "out", "drop": 0.01}
with aiflow.Sender("local:cameras*4", name="cameras", link_speed="1gbit", faults=faults, peer_timeout=60) as tx:
    began = due = time.monotonic()
    while (elapsed := time.monotonic() - began) < 300:
        tx.send({f"cam-{number}": frame for number, frame in enumerate(frames)})
        due += 1 / (10 * min(1 + elapsed // 30, 3))
        time.sleep(max(due - time.monotonic(), 0))
"""

COLUMNS, LINES = 156, 27
SETTLE_S = 5
"""From the start of `aiflow top` to the picture: rates are of two looks, two seconds apart."""
PATIENCE_S = 60
SCRAPED_S = 95
EXPRESSION = 'rate(aiflow_port_receive_bytes_total{role="receiver"}[5s]) * 8'
COLOURS = {
    "default": "#d4d8de", "black": "#45494f", "red": "#ff7b72", "green": "#56d364", "brown": "#e3b341",
    "blue": "#79b8ff", "magenta": "#d2a8ff", "cyan": "#56d4dd", "white": "#f0f6fc",
}  # fmt: skip
STYLE = """
body { margin: 0; background: #fff }
pre { display: inline-block; margin: 0; padding: 14px 18px; border-radius: 8px; background: #16191d; color: #d4d8de;
      font: 13px/1.3 "DejaVu Sans Mono", monospace }
"""


@contextmanager
def running(*command: str, env: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended by SIGTERM."""
    process = subprocess.Popen(command, env=env, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def transfer(directory: Path) -> Iterator[dict[str, str]]:
    """The two processes. Yields the environment in which a command sees them."""
    (directory / "run").mkdir(mode=0o700)
    env = {**os.environ, "AIFLOW_RUNTIME_DIR": str(directory / "run"), "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    for name, program in (("training.py", RECEIVE), ("cameras.py", SEND)):
        (directory / name).write_text(program)
    receiver, sender = ((sys.executable, str(directory / name)) for name in ("training.py", "cameras.py"))
    with running(*receiver, env=env), running(*sender, env=env):
        wait_for_slices(env)
        yield env


def wait_for_slices(env: dict[str, str]) -> None:
    """Return once slices flow: the first looks of the pictures are then not empty."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        seen = subprocess.run([*AIFLOW, "top", "--json"], env=env, capture_output=True, text=True)
        if any(side["rates"]["slices"] > 1 for side in json.loads(seen.stdout)["sides"]):
            return
    sys.exit(f"no slice was sent within {PATIENCE_S} s")


# --------------------------------------------------------------------------------------------------------------- top


def screen_of_top(env: dict[str, str]) -> str:
    """What `aiflow top` shows after a few seconds, as HTML. It is ended by the key q."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(AIFLOW[0], [*AIFLOW, "top"], env)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    seen = ""
    deadline = time.monotonic() + SETTLE_S
    with contextlib.suppress(OSError):  # EIO: it has ended
        while True:
            left = deadline - time.monotonic()
            if left <= 0 and not seen:
                os.write(terminal, b"q")
                seen = as_html(screen)
            if select.select([terminal], [], [], max(left, 0.2))[0]:
                stream.feed(os.read(terminal, 1 << 16))
    _, status = os.waitpid(child, 0)
    if (code := os.waitstatus_to_exitcode(status)) != 0 or "cameras" not in seen:
        sys.exit(f"aiflow top has ended with {code}, and showed:\n" + "\n".join(screen.display))
    return seen


def as_html(screen: pyte.Screen) -> str:
    """A terminal's screen, without the empty lines at its end."""
    lines = []
    for row in range(screen.lines):
        chars = [screen.buffer[row][column] for column in range(screen.columns)]
        line = ""
        for (colour, bold), run in itertools.groupby(chars, key=lambda char: (char.fg, char.bold)):
            style = f"color:{COLOURS.get(colour, '#' + colour)};font-weight:{'bold' if bold else 'normal'}"
            line += f'<span style="{style}">{html.escape("".join(char.data for char in run))}</span>'
        lines.append(line)
    nb_used = max((row for row, text in enumerate(screen.display) if text.strip()), default=0) + 1
    return "\n".join(lines[:nb_used])


def picture_of_top(browser: Browser, env: dict[str, str], picture: Path) -> None:
    """Save the screen of `aiflow top`."""
    page = browser.new_page(viewport={"width": 1400, "height": 900}, device_scale_factor=1.5)
    page.set_content(f"<style>{STYLE}</style><pre>{screen_of_top(env)}</pre>")
    page.locator("pre").screenshot(path=picture)
    page.close()


# -------------------------------------------------------------------------------------------------------- Prometheus


def free_port() -> int:
    """A TCP port of the loopback that no program has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def picture_of_prometheus(browser: Browser, env: dict[str, str], directory: Path, picture: Path) -> None:
    """Let a server scrape the transfer, and save its graph page."""
    program = shutil.which("prometheus", path=f"{os.environ.get('PATH', '')}{os.pathsep}{ROOT / 'build/programs'}")
    if program is None:
        sys.exit("the picture of Prometheus needs it: tools/setup.sh dev unpacks it on a Debian")
    exporter, server = free_port(), free_port()
    config = directory / "prometheus.yml"
    targets = [{"targets": [f"127.0.0.1:{exporter}"]}]
    jobs = [{"job_name": "aiflow", "static_configs": targets}]
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    options = [f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"]
    options += [f"--web.listen-address=127.0.0.1:{server}", "--log.level=error"]
    url = f"http://127.0.0.1:{server}"
    with running(*AIFLOW, "metrics", "--listen", str(exporter), env=env), running(program, *options, env=env):
        time.sleep(SCRAPED_S)  # the graph is of this time
        query = urllib.parse.urlencode({"query": EXPRESSION})
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:
            series = json.load(answer)["data"]["result"]
        if len(series) != 4:
            sys.exit(f"Prometheus has {len(series)} series of the four ports: {series}")
        page = browser.new_page(viewport={"width": 1310, "height": 900}, device_scale_factor=1.2)
        asked = {"g0.expr": EXPRESSION, "g0.tab": "0", "g0.range_input": "90s", "g0.step_input": "1"}
        page.goto(f"{url}/graph?{urllib.parse.urlencode(asked)}", wait_until="networkidle")
        page.wait_for_timeout(2000)  # the graph is drawn, and fades in
        height = page.evaluate("document.body.scrollHeight")
        area = {"x": 0, "y": 0, "width": 1310, "height": height}  # without the margin by which its rows overflow
        page.screenshot(path=picture, full_page=True, clip=area)
        page.close()


def make(browser: Browser, names: list[str]) -> None:
    """Make these pictures in docs/."""
    with tempfile.TemporaryDirectory(prefix="aiflow-", dir="/tmp") as name, transfer(Path(name)) as env:
        if "top" in names:
            picture_of_top(browser, env, ROOT / "docs/top.png")
        if "prometheus" in names:
            picture_of_prometheus(browser, env, Path(name), ROOT / "docs/prometheus.png")


def main() -> None:
    """Make all pictures, or those that are named."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs end, too
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or "/usr/bin/chromium"
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        make(browser, sys.argv[1:] or ["top", "prometheus"])
        browser.close()


if __name__ == "__main__":
    main()
