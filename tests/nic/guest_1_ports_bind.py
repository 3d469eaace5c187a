"""`aiflow ports bind` and `unbind` on a kernel: a card goes to vfio-pci and back, and one that the host needs stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import machine
from consoles import Console

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = f"""
import contextlib, io, runpy, sys
sys.argv = ["{{name}}_array.py", "{{endpoint}}"]
with contextlib.redirect_stdout(io.StringIO()) as printed:
    runpy.run_path(f"{EXAMPLES}/{{name}}_array.py", run_name="__main__")
answer = printed.getvalue()
"""


def ports(*words: str) -> machine.Done:
    """Run `aiflow ports` with these words."""
    return machine.aiflow("ports", *words)


def override(address: str) -> str:
    return (machine.DEVICES / address / "driver_override").read_text().strip()


def interface(address: str) -> str:
    (name,) = (path.name for path in (machine.DEVICES / address / "net").iterdir())
    return name


def test_a_card_goes_to_vfio_and_back(card: str) -> None:
    name = interface(card)
    done = ports("bind", card, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["cards"]
    assert (row["driver_before"], row["driver"]) == ("igb", "vfio-pci")
    assert (machine.driver(card), override(card)) == ("vfio-pci", "vfio-pci")
    assert "it is bound to vfio-pci already" in ports("bind", card).stdout
    done = ports("unbind", card)
    assert done.returncode == 0, done.stderr
    assert (machine.driver(card), override(card)) == ("igb", "(null)")
    assert interface(card) == name
    assert "it is bound to igb, not for DPDK" in ports("unbind", card).stdout


def test_a_dry_run_changes_nothing_and_its_output_does_it(card: str) -> None:
    script = ports("bind", card, "--dry-run").stdout
    assert machine.driver(card) == "igb"
    subprocess.run(["sh", "-e"], input=script, text=True, check=True, timeout=60)
    assert machine.driver(card) == "vfio-pci"
    done = ports("unbind", card)  # no record: the kernel chooses
    assert done.returncode == 0, done.stderr
    assert "its former driver is not known" in done.stdout
    assert machine.driver(card) == "igb"


def test_a_card_of_a_route_is_refused(card: str) -> None:
    name = interface(card)
    machine.shell("ip", "address", "add", "192.0.2.1/24", "dev", name)
    try:
        machine.shell("ip", "link", "set", name, "up")
        assert f"{name} carries the host's route" in ports("bind", card).stderr
        machine.shell("ip", "route", "add", "default", "via", "192.0.2.254")
        assert f"{name} carries the host's default route (default via 192.0.2.254)" in ports("bind", card).stderr
        assert machine.driver(card) == "igb"
        machine.shell("ip", "link", "set", name, "down")  # as the error advises where it is no default route
        assert ports("bind", card, "--dry-run").returncode == 0
    finally:
        machine.shell("ip", "link", "set", name, "down")
        machine.shell("ip", "address", "flush", "dev", name)


def test_a_card_whose_interface_a_container_has_is_refused(card: str) -> None:
    name = interface(card)
    machine.shell("ip", "netns", "add", "container")
    try:
        machine.shell("ip", "link", "set", name, "netns", "container")
        assert "another network namespace" in ports("bind", card).stderr
        machine.shell("ip", "netns", "exec", "container", "ip", "link", "set", "dev", name, "netns", "1")
        assert ports("bind", card, "--dry-run").returncode == 0
    finally:
        machine.shell("ip", "netns", "delete", "container")


def test_a_card_that_a_process_uses_is_not_taken_away(card: str, pair: tuple[Console, Console]) -> None:
    assert ports("bind", card).returncode == 0
    a, _ = pair
    a.run(f"tx = aiflow.Sender('pci:{card}')")
    done = ports("unbind", card)
    assert done.returncode == 1
    assert f"busy, in use by process {a.pid}" in done.stderr
    a.run("tx.close()")
    assert ports("unbind", card).returncode == 0
    assert machine.driver(card) == "igb"


def test_a_card_goes_to_uio_and_back(card: str) -> None:
    done = ports("bind", card, "--driver", "uio_pci_generic")
    assert done.returncode == 0, done.stderr
    assert machine.driver(card) == "uio_pci_generic"
    assert "vfio-pci would isolate it" in done.stdout
    assert ports("unbind", card).returncode == 0
    assert (machine.driver(card), override(card)) == ("igb", "(null)")


def test_an_ordinary_user_is_told_to_use_root(card: str) -> None:
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    done = subprocess.run(
        [*user, sys.executable, "-m", "aiflow", "ports", "bind", card], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "only root may change the driver" in done.stderr
    assert machine.driver(card) == "igb"


def test_the_steps_of_the_page_lead_from_two_cards_to_a_slice(
    card: str, cards: list[str], pair: tuple[Console, Console]
) -> None:
    """docs/nic.md: bind, examples/recv_array.py and send_array.py, unbind. nic2 and nic3 share a wire."""
    both = [cards[2], card]
    machine.bind(cards[2], "igb")
    (machine.DEVICES / cards[2] / "driver_override").write_text("\n")
    try:
        done = ports("bind", *both)
        assert done.returncode == 0, done.stderr
        a, b = pair
        b.start(EXAMPLE.format(name="recv", endpoint=f"pci:{card}"))
        a.start(EXAMPLE.format(name="send", endpoint=f"pci:{cards[2]}"))
        assert f"pci:{cards[2]} (net_e1000_igb)" in a.finish()
        first, *received = b.finish().splitlines()
        assert first == f"receiving on pci:{card}"
        assert [line.split()[0] for line in received] == ["cam-0", "cam-1"]
        assert ports("unbind", *both).returncode == 0
        assert [machine.driver(address) for address in both] == ["igb", "igb"]
    finally:
        machine.bind(cards[2], "vfio-pci")
