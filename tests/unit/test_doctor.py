"""The checks of ``aiflow doctor`` on made-up hosts: each planted fault is named, and its command mends it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_tree import CARD, KERNEL_S, USER, HostTree
from planted_faults import PLANTED, bind_again, no_vfio

from aiflow import _eal_args
from aiflow._checks import checks, directory_checks
from aiflow._checks.checks import CHECKS
from aiflow._checks.finding import better
from aiflow._checks.host import Host
from aiflow._terminal.outcome import Outcome, Terminal
from aiflow.errors import PortError

pytestmark = pytest.mark.unit


@pytest.fixture
def tree(tmp_path: Path) -> HostTree:
    return HostTree(tmp_path)


def test_a_host_in_order_has_no_fault(tree: HostTree) -> None:
    assert tree.faults() == {}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


# No command mends these at once: a package or a restart is needed, or a hand at the cable.
LATER = {
    "an old kernel",
    "a DPDK without memif",
    "a DPDK that is too new",
    "no IOMMU",
    "no carrier",
    "two MTUs",
    "no isolated core",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named_and_its_command_mends_it(tree: HostTree, fault: str) -> None:
    plant, check, state, words = PLANTED[fault]
    plant(tree)
    found = tree.faults()[check]
    (finding,) = (each for each in found if words in each.text)
    assert finding.state == state
    if fault in LATER:
        return
    tree.obey(finding.command)
    assert not any(words in each.text for each in tree.faults().get(check, []))
    if fault != "vfio not loaded":  # then the card is still to be bound
        assert tree.faults() == {} or fault in ("no rights", "a card that is not bound"), tree.faults()


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_the_only_one(tree: HostTree, fault: str) -> None:
    """Other checks do not cry along, but those that look at the same thing."""
    plant, check, _, _ = PLANTED[fault]
    plant(tree)
    related = {check, "NIC binding", "IOMMU", "isolated cores"} if fault in ("vfio not loaded", "no IOMMU") else {check}
    assert set(tree.faults()) <= related


@pytest.mark.parametrize(("drivers", "said"), [([], "build from source"), (["net_af_xdp"], "af_xdp: can be used")])
def test_all_rights_do_not_give_a_driver_that_the_build_lacks(tree: HostTree, drivers: list[str], said: str) -> None:
    tree.build["drivers"] = [*tree.build["drivers"], *drivers]
    tree.status(capabilities=(1 << 40) - 1, cpus="0-7")
    (finding,) = tree.findings()["rights"]
    assert said in finding.text


def test_a_card_that_the_host_needs_stays_with_the_kernel(tree: HostTree) -> None:
    texts = [finding.text for finding in tree.findings()["NIC binding"]]
    assert any(KERNEL_S in text and "carries the host's default route" in text for text in texts)


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("driver", ["iwlwifi", ""])
def test_an_idle_card_that_dpdk_may_not_drive_is_not_to_be_bound(tree: HostTree, driver: str, loaded: bool) -> None:
    """Wi-Fi, and a card without a driver: the kernel does not say what it is."""
    if driver:
        tree.pci.load(driver)
    tree.pci.add("0000:04:00.0", driver, *(["wlan0"] if driver else []), group="9", pci_class="0x028000")
    if not loaded:
        no_vfio(tree)
    (finding,) = (each for each in tree.findings()["NIC binding"] if "0000:04:00.0" in each.text)
    assert "if DPDK has a driver for it" in finding.text
    assert (finding.state, finding.command) == ("ok", "")


def test_no_iommu_is_asked_for_where_only_wifi_is(tree: HostTree) -> None:
    no_vfio(tree)
    tree.pci.load("iwlwifi")
    for address in (CARD, KERNEL_S):
        tree.pci.vacate(address)
        tree.pci.native[address] = "iwlwifi"
        tree.pci.write(tree.pci.device(address).path / "driver_override", "iwlwifi")
        tree.pci.write(tree.pci.bus / "drivers_probe", address)
    (finding,) = tree.findings()["IOMMU"]
    assert (finding.state, finding.command) == ("ok", "")
    assert "not needed" in finding.text


def test_an_idle_card_whose_driver_this_build_lacks_is_not_to_be_bound(tree: HostTree) -> None:
    bind_again(tree)
    tree.build["drivers"] = [driver for driver in tree.build["drivers"] if driver != "net_e1000_igb"]
    (finding,) = (each for each in tree.findings()["NIC binding"] if CARD in each.text)
    assert "lacks its driver net_e1000_igb" in finding.text
    assert (finding.state, finding.command) == ("ok", "")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"mtu": 300}, "MTU of 300 is too small"),
        ({"mtu": 1400}, "the MTU is 1400"),
        ({"speed": 25000}, "25 Gbit/s with an MTU of 1500"),
        ({"speed": 10}, "10 Mbit/s"),
        ({"duplex": "half"}, "half duplex"),
    ],
)
def test_no_command_changes_the_interface_that_the_host_is_reached_over(
    tree: HostTree, attributes: dict[str, object], words: str
) -> None:
    """eth0 carries the default route. An MTU that its network does not carry cuts the host off."""
    tree.interface("eth0", **attributes)
    (finding,) = (each for each in tree.faults()["links"] if words in each.text)
    assert "can cut this host off" in finding.text
    assert finding.command == ""


def test_differing_mtus_are_stated_without_a_command(tree: HostTree) -> None:
    tree.interface("eth2", mtu=9000)  # beside the host's uplink, which may well differ
    (finding,) = (each for each in tree.findings()["links"] if "MTUs differ" in each.text)
    assert (finding.state, finding.command) == ("ok", "")
    tree.interface("eth3")
    (finding,) = tree.faults()["links"]
    assert "MTUs differ (eth0 1500, eth2 9000, eth3 1500)" in finding.text
    assert finding.command == ""


def test_a_module_that_this_host_does_not_have_is_not_to_be_loaded(tree: HostTree) -> None:
    no_vfio(tree)
    (tree.root / "lib/modules/6.1.0-18-amd64").rmdir()
    for check in ("IOMMU", "NIC binding"):
        (finding,) = tree.faults()[check]
        assert "vfio-pci" in finding.text
        assert finding.command == ""


def test_a_host_with_nothing_is_looked_at_without_a_fault_of_ours(tmp_path: Path) -> None:
    host = Host(tmp_path, {}, USER, build={"dpdk": "22.11", "dpdk_from": "wheel", "drivers": []})
    for check in CHECKS:
        if check.name != "round trip":
            assert list(check.findings(host)), check.name


def test_a_check_that_fails_in_any_way_is_a_finding(tree: HostTree) -> None:
    """Here a TypeError; files that cannot be read raise OSError or ValueError."""
    tree.build["drivers"] = None
    (finding,) = tree.findings()["DPDK"]
    assert finding.state == "could be better"
    assert "could not be looked at: TypeError" in finding.text
    assert [each.state for each in tree.findings()["memlock"]] == ["ok"]


def test_a_round_trip_that_cannot_start_is_broken(tree: HostTree, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = (each for each in CHECKS if each.name == "round trip")
    monkeypatch.setattr(sys, "executable", "/none")
    (finding,) = check.findings(tree.host())
    assert finding.state == "broken"
    assert "could not be looked at: FileNotFoundError" in finding.text


def test_a_fix_that_fails_in_any_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiflow.cli import doctor

    def fails() -> str:
        raise PortError("the directory is gone")

    finding = better("two names are left", fix=fails)
    monkeypatch.setattr(checks, "CHECKS", (checks.Check("stale files", "", lambda _: [finding]),))
    outcome = Outcome(Terminal(as_json=True), "doctor")
    doctor.examine(outcome, fix=True)
    assert outcome.document["fixed"] == ["not mended (two names are left): the directory is gone"]
    assert [row["text"] for row in outcome.document["checks"]] == ["two names are left"]


# ------------------------------------------------------------------------------------------------- runtime directory


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory with a short path: sockets need one."""
    with tempfile.TemporaryDirectory(prefix="af-", dir="/tmp") as made:
        monkeypatch.setenv("AIFLOW_RUNTIME_DIR", made)
        yield Path(made)


def found(check: str) -> list[tuple[str, str, str]]:
    (one,) = (each for each in CHECKS if each.name == check)
    return [(each.state, each.text, each.command) for each in one.findings(Host())]


def test_a_directory_that_others_can_enter_is_closed_by_its_command_and_by_fix(directory: Path) -> None:
    (directory / "local-x").mkdir()
    directory.chmod(0o755)
    ((state, text, command),) = found("runtime directory")
    assert (state, command) == ("broken", f"chmod 700 {directory}")
    assert "other users" in text
    assert os.system(command) == 0
    assert found("runtime directory") == [("ok", str(directory), "")]
    directory.chmod(0o777)
    (finding,) = directory_checks.directory(Host())
    assert finding.fix is not None
    assert finding.fix() == f"chmod 700 {directory}"
    assert found("runtime directory") == [("ok", str(directory), "")]


@pytest.mark.parametrize("name", ["a directory", "with 'quotes' & $(more)"])
def test_the_path_in_a_command_is_quoted(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    odd = directory / name
    odd.mkdir(mode=0o755)
    (odd / "local-x").mkdir()
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(odd))
    ((_, _, command),) = found("runtime directory")
    assert os.system(command) == 0
    assert found("runtime directory") == [("ok", str(odd), "")]


def put_sticky(directory: Path) -> None:
    directory.chmod(0o1777)


def leave_empty(directory: Path) -> None:
    directory.chmod(0o755)
    (directory / "local-x").rmdir()


def put_a_file(directory: Path) -> None:
    directory.chmod(0o755)
    (directory / "letter.txt").touch()


@pytest.mark.parametrize("change", [put_sticky, put_a_file, leave_empty])
def test_a_directory_of_other_programs_is_left_alone(directory: Path, change: Callable[[Path], None]) -> None:
    (directory / "local-x").mkdir()
    change(directory)
    mode = directory.stat().st_mode
    (finding,) = directory_checks.directory(Host())
    assert finding.state == "broken"
    assert "may serve other programs" in finding.text
    assert (finding.fix, finding.command) == (None, f"export AIFLOW_RUNTIME_DIR=/tmp/aiflow-{os.getuid()}")
    assert directory.stat().st_mode == mode


@pytest.mark.parametrize("change", [put_sticky, put_a_file, leave_empty])
def test_a_directory_that_changes_before_its_fix_is_left_alone(directory: Path, change: Callable[[Path], None]) -> None:
    (directory / "local-x").mkdir()
    directory.chmod(0o755)
    (finding,) = directory_checks.directory(Host())
    change(directory)
    mode = directory.stat().st_mode
    assert finding.fix is not None
    assert "has changed" in finding.fix()
    assert directory.stat().st_mode == mode


def test_a_directory_that_cannot_be_made_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", "/proc/self/none")
    ((state, _, command),) = found("runtime directory")
    assert (state, command) == ("broken", f"export AIFLOW_RUNTIME_DIR=/tmp/aiflow-{os.getuid()}")


def test_where_the_usual_directory_is_bad_another_is_made(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.chmod(0o755)
    other = 4_000_000 + os.getpid()
    monkeypatch.setattr(os, "getuid", lambda: other)
    usual = Path(f"/tmp/aiflow-{other}")
    usual.touch()
    try:
        (finding,) = directory_checks.directory(Host())
        assert finding.command == "export AIFLOW_RUNTIME_DIR=$(mktemp -d /tmp/aiflow-XXXXXX)"
    finally:
        usual.unlink()


def test_what_a_killed_receiver_left_is_removed_and_what_lives_is_kept(directory: Path) -> None:
    from aiflow._ports.registry import Claim
    from aiflow.config import parse_endpoint

    assert [state for state, _, _ in found("stale files")] == ["ok"]
    dead = directory / "local-dead"
    dead.mkdir()
    (dead / "lock").write_text("1\n")
    claim = Claim(parse_endpoint("local:alive"), directory)
    dead.mkdir(exist_ok=True)
    (dead / "lock").write_text("1\n")
    try:
        findings = list(directory_checks.stale_files(Host()))
        (finding,) = (each for each in findings if str(directory) in each.text)
        assert "local-dead" in finding.text
        assert "alive" not in finding.text
        assert finding.fix is not None
        assert "local-dead" in finding.fix()
        assert not dead.exists()
        assert (directory / "local-alive").exists()
        assert not [text for _, text, _ in found("stale files") if str(directory) in text]
    finally:
        claim.close()


def test_stale_files_are_said_to_be_none_only_if_there_is_none(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = directory / "dpdk"
    monkeypatch.setattr(_eal_args, "_runtime_root", lambda: root)
    assert found("stale files") == [("ok", "none", "")]
    for name in ("local-a", "local-b"):
        (directory / name).mkdir()
    two = ("could be better", f"killed processes left 2 names in {directory}: local-a, local-b", "aiflow doctor --fix")
    assert found("stale files") == [two]
    (root / "aiflow-1-2").mkdir(parents=True)
    os.utime(root / "aiflow-1-2", (0, 0))
    one = ("could be better", f"killed processes left 1 name of DPDK in {root}", "aiflow doctor --fix")
    assert found("stale files") == [two, one]
    for finding in directory_checks.stale_files(Host()):
        assert finding.fix is not None
        finding.fix()
    assert found("stale files") == [("ok", "none", "")]


def test_a_receiver_in_another_directory_is_seen(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiflow._ports.registry import Claim
    from aiflow.config import parse_endpoint

    with tempfile.TemporaryDirectory(prefix="af-", dir="/tmp") as other:
        monkeypatch.setattr(directory_checks, "_directories_of_processes", lambda _: [Path(other)])
        assert not [text for _, text, _ in found("peers") if other in text]
        claim = Claim(parse_endpoint("local:there"), Path(other))
        try:
            ((state, text, command),) = (each for each in found("peers") if other in each[1])
            assert (state, command) == ("could be better", f"export AIFLOW_RUNTIME_DIR={other}")
            assert "local:there" in text
            monkeypatch.setenv("AIFLOW_RUNTIME_DIR", other)  # what the command does
            assert not [text for _, text, _ in found("peers") if f"receivers wait in {other}" in text]
        finally:
            claim.close()
