"""The emulated machine, as its guest sees it: QEMU's monitor, and the cards on the PCI bus."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import time
import tty
from pathlib import Path
from typing import Any, NamedTuple

from aiflow.cli.app import run

DEVICES = Path("/sys/bus/pci/devices")
INTEL_82576 = ("0x8086", "0x10c9")


def cards() -> list[str]:
    """PCI addresses of the igb ports, nic0 first."""
    return sorted(
        path.name
        for path in DEVICES.iterdir()
        if tuple((path / name).read_text().strip() for name in ("vendor", "device")) == INTEL_82576
    )


def driver(address: str) -> str:
    """The kernel's driver that has a card; "" for none."""
    link = DEVICES / address / "driver"
    return link.resolve().name if link.exists() else ""


def unbind(address: str) -> None:
    """Take a card from its driver. Returns when the driver has given it back."""
    if driver(address):
        (DEVICES / address / "driver" / "unbind").write_text(address)


def bind(address: str, wanted: str) -> None:
    """Give a card to a driver of the kernel."""
    if driver(address) == wanted:
        return
    unbind(address)
    (DEVICES / address / "driver_override").write_text(f"{wanted}\n")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    assert driver(address) == wanted


def group(address: str) -> Path:
    """The file of a card's IOMMU group."""
    return Path("/dev/vfio") / (DEVICES / address / "iommu_group").resolve().name


def shell(*words: str) -> str:
    """Run a command; returns what it printed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def aiflow(*words: str) -> Done:
    """Run the command `aiflow` in this process: another one takes seconds to start here."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    return Done(code, out.getvalue(), err.getvalue())


class Monitor:
    """QEMU's monitor (QMP), which the machine's second serial port leads to."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        self._rest = b""
        self._serial = 0
        # The kernel echoed the greeting before this was set up: a byte that is no JSON ends what QEMU read of it.
        os.write(self._fd, b"\xff\n")
        self.run("qmp_capabilities")

    def run(self, command: str, **arguments: Any) -> Any:
        """Run a command; returns its result."""
        self._serial += 1
        request = {"execute": command, "arguments": arguments, "id": self._serial}
        octets = json.dumps(request).encode() + b"\n"
        while octets:
            octets = octets[os.write(self._fd, octets) :]
        deadline = time.monotonic() + 20
        while True:
            reply = self._line(deadline)
            if reply.get("id") == self._serial:  # others are events, or answer what was no command
                assert "return" in reply, reply
                return reply["return"]

    def _line(self, deadline: float) -> dict[str, Any]:
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                try:
                    found = json.loads(line)
                except ValueError:  # the end of the greeting
                    continue
                assert isinstance(found, dict)
                return found
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "QEMU's monitor does not answer"
            self._rest += os.read(self._fd, 4096)

    def link(self, card: str, up: bool) -> None:
        """Plug or pull the cable of nic0 to nic3."""
        self.run("set_link", name=card, up=up)

    def capture(self, on: bool) -> None:
        """Write what passes nic0's end of its wire into wire.pcap, or stop."""
        self.run("qom-set", path="/objects/tap", property="status", value="on" if on else "off")
