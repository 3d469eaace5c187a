"""`aiflow ports bind` and `unbind`: what they print and end with, on a made-up sysfs and on this machine's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pci_tree import CARD, World

from aiflow._ports import pci_binding
from aiflow.cli.app import run

pytestmark = pytest.mark.unit


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(pci_binding, "PciBinding", lambda: world.binding)
    return world


def test_the_card_goes_there_and_back(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ports", "bind", CARD]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{CARD}: driver igb → vfio-pci",
        f"  use it as pci:{CARD}",
        "  for a user other than root: chown USER /dev/vfio/12, and ulimit -l unlimited",
    ]
    assert run(["ports", "bind", CARD]) == 0
    assert "  it is bound to vfio-pci already" in capsys.readouterr().out.splitlines()
    assert run(["ports", "unbind", f"pci:{CARD}"]) == 0
    assert capsys.readouterr().out == f"{CARD}: driver vfio-pci → igb\n"
    assert run(["ports", "unbind", CARD]) == 0
    assert capsys.readouterr().out == f"{CARD}: driver igb\n  it is bound to igb, not for DPDK\n"


def test_a_dry_run_prints_a_shell_script_and_changes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ports", "bind", "--dry-run", CARD]) == 0
    script = capsys.readouterr().out
    assert world.tree.written == []
    assert not world.records.exists()
    bus = world.tree.bus
    assert script.splitlines() == [
        f"# {CARD}: driver igb → vfio-pci",
        f"echo vfio-pci > {bus}/devices/{CARD}/driver_override",
        f"echo {CARD} > {bus}/drivers/igb/unbind",
        f"echo {CARD} > {bus}/drivers_probe",
    ]
    subprocess.run(["sh", "-e"], input=script, text=True, check=True)  # the files are there, so each write succeeds
    assert (bus / f"devices/{CARD}/driver_override").read_text() == "vfio-pci\n"
    assert (bus / "drivers_probe").read_text() == f"{CARD}\n"


def test_a_dry_run_of_unbind_clears_the_override(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.bind()
    assert run(["ports", "unbind", "--dry-run", CARD]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"# {CARD}: driver vfio-pci → igb",
        f"echo > {world.tree.bus}/devices/{CARD}/driver_override",
        f"echo {CARD} > {world.tree.bus}/drivers/vfio-pci/unbind",
        f"echo {CARD} > {world.tree.bus}/drivers/igb/bind",
    ]
    assert world.driver() == "vfio-pci"


@pytest.mark.parametrize("words", [["ports", "--json", "bind", CARD], ["ports", "bind", CARD, "--json"]])
def test_json_has_every_card(world: World, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run(words) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["command"], document["exit_code"], document["dry_run"]) == ("ports bind", 0, False)
    (card,) = document["cards"]
    assert card.keys() == {"address", "endpoint", "driver_before", "driver", "changed", "notes", "writes"}
    assert (card["driver_before"], card["driver"], card["changed"]) == ("igb", "vfio-pci", True)
    assert [write["text"] for write in card["writes"]] == ["vfio-pci", CARD, CARD]


def test_a_refusal_ends_with_1_and_bad_usage_with_2(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.routes = [("eth1", "default via 10.0.0.1")]
    assert run(["ports", "bind", CARD]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"aiflow: {CARD}: eth1 carries the host's default route")
    for words in (["eth1"], ["x"], [], ["--driver", "igb_uio", CARD]):
        assert run(["ports", "bind", *words]) == 2
    assert run(["ports", "frobnicate"]) == 2


def test_cards_before_one_that_fails_are_reported(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.tree.add("0000:3b:00.1", "igb", "eth2", group="13")
    vfio = world.tree.driver("vfio-pci")

    def at_the_second_probe(number: int) -> None:
        if number == 6:
            world.tree.refusing.add(vfio.name)

    world.tree.before_write = at_the_second_probe
    assert run(["ports", "bind", CARD, "0000:3b:00.1", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [card["address"] for card in document["cards"]] == [CARD]
    assert "0000:3b:00.1: vfio-pci did not take the card" in document["error"]["message"]


def test_an_interrupt_tells_the_state_of_the_card(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    world.tree.before_write = stop
    assert run(["ports", "bind", CARD]) == 130
    assert capsys.readouterr().err == "aiflow: interrupted. It is bound to igb again\n"


def test_the_drivers_of_the_command_are_those_that_can_be_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ports", "bind", "--help"]) == 0
    assert f"[{'|'.join(pci_binding.BINDABLE)}]" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["bind", "unbind"])
def test_an_address_that_is_not_on_this_machine_is_refused(command: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "aiflow", "ports", command, "ffff:ff:1f.7"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("aiflow: ffff:ff:1f.7: no such PCI device. ")
