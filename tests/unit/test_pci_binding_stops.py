"""A change of a card's driver that fails or is interrupted half-way, in a made-up sysfs."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pci_tree import CARD, World

from aiflow.errors import PortError

pytestmark = pytest.mark.unit

OTHER = "0000:3b:00.1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_driver_that_does_not_take_the_card_leaves_it_as_it_was(world: World) -> None:
    world.tree.refusing.add("vfio-pci")
    with pytest.raises(PortError, match=r"vfio-pci did not take the card; dmesg.*It is bound to igb again$"):
        world.bind()
    assert (world.driver(), world.override()) == ("igb", "")
    assert world.tree.device(CARD).interfaces == ["eth1"]
    assert not list(world.records.glob("*.json"))


@pytest.mark.parametrize("expected", [PortError, KeyboardInterrupt])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_wherever_a_bind_stops_the_card_is_as_it_was(world: World, number: int, expected: type[BaseException]) -> None:
    def stop(at: int) -> None:
        if at == number:
            raise OSError(errno.EIO, "Input/output error") if expected is PortError else KeyboardInterrupt

    world.tree.before_write = stop
    with pytest.raises(expected) as caught:
        world.bind()
    assert (world.driver(), world.override()) == ("igb", "")
    assert not list(world.records.glob("*.json"))
    if expected is PortError:
        assert re.search(r"`echo .* > .*` failed \(Input/output error\); dmesg.*igb again$", str(caught.value))
    else:
        assert caught.value.__notes__ == ["It is bound to igb again"]


def test_a_bind_that_cannot_be_undone_says_what_to_type(world: World) -> None:
    world.tree.refusing |= {"vfio-pci", "igb"}
    with pytest.raises(PortError, match="It could not be restored") as caught:
        world.bind()
    assert f"echo {CARD} > {world.tree.driver('igb')}/bind" in str(caught.value)
    world.tree.refusing.clear()
    assert world.unbind() == ["igb"]  # the record is still there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_interrupt_does_not_stop_the_undoing(world: World, number: signal.Signals) -> None:
    def stop(at: int) -> None:
        if at == 3:
            raise KeyboardInterrupt
        if at > 3:
            os.kill(os.getpid(), number)  # ends the tests if it is delivered

    world.tree.before_write = stop
    with pytest.raises(KeyboardInterrupt) as caught:
        world.bind()
    assert caught.value.__notes__ == ["It is bound to igb again"]
    assert world.tree.nb_writes > 4
    assert (world.driver(), world.override()) == ("igb", "")


def test_an_interrupted_bind_that_cannot_be_undone_says_what_to_type(world: World) -> None:
    def stop(at: int) -> None:
        if at == 3:
            world.tree.refusing.add("igb")
            raise KeyboardInterrupt

    world.tree.before_write = stop
    with pytest.raises(KeyboardInterrupt) as caught:
        world.bind()
    (note,) = caught.value.__notes__
    assert "It could not be restored" in note
    assert f"echo {CARD} > {world.tree.driver('igb')}/bind" in note


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_card_that_disappears_is_named(world: World, number: int) -> None:
    def pull(at: int) -> None:
        if at == number:
            shutil.rmtree(world.tree.device(CARD).path)

    world.tree.before_write = pull
    with pytest.raises(PortError, match=r"has disappeared from the PCI bus.*There is nothing to restore$"):
        world.bind()
    assert not list(world.records.glob("*.json"))


def test_a_route_that_comes_after_the_plan_is_seen(world: World) -> None:
    (change,) = world.binding.plan_bind([CARD])
    world.routes = [("eth1", "default via 10.0.0.1")]
    with pytest.raises(PortError, match="default route"):
        world.binding.carry_out(change)
    assert world.tree.written == []


def test_a_driver_that_changes_after_the_plan_is_seen(world: World) -> None:
    (change,) = world.binding.plan_bind([CARD])
    world.tree.vacate(CARD)
    with pytest.raises(PortError, match="its driver was igb and is none now"):
        world.binding.carry_out(change)
    assert world.tree.written == []


def test_the_first_card_stays_bound_if_the_second_fails(world: World) -> None:
    world.tree.add(OTHER, "igb", "eth2", group="13")
    first, second = world.binding.plan_bind([CARD, OTHER])
    assert world.binding.carry_out(first) == "vfio-pci"
    world.tree.refusing.add("vfio-pci")
    with pytest.raises(PortError, match=f"^{OTHER}: vfio-pci did not take"):
        world.binding.carry_out(second)
    assert (world.driver(CARD), world.driver(OTHER)) == ("vfio-pci", "igb")


def test_an_unbind_that_fails_can_be_repeated(world: World) -> None:
    world.bind()
    world.tree.refusing.add("igb")
    said = rf"drivers/igb/bind.* The card has no driver now; repeat the command: aiflow ports unbind {CARD}$"
    with pytest.raises(PortError, match=said):
        world.unbind()
    world.tree.refusing.clear()
    assert world.unbind() == ["igb"]
    assert world.override() == ""


@pytest.mark.parametrize(("number", "notes"), [(1, 0), (2, 0), (3, 1)])
def test_an_interrupted_unbind_says_that_the_card_has_no_driver(world: World, number: int, notes: int) -> None:
    world.bind()

    def stop(at: int) -> None:
        if at == 3 + number:
            raise KeyboardInterrupt

    world.tree.before_write = stop
    with pytest.raises(KeyboardInterrupt) as caught:
        world.unbind()
    assert len(getattr(caught.value, "__notes__", ())) == notes
    assert world.unbind() == ["igb"]


def failed_unbind(world: World) -> None:
    world.bind()
    world.tree.refusing.add("igb")
    with pytest.raises(PortError, match="The card has no driver now"):
        world.unbind()
    world.tree.refusing.clear()


def killed_bind(world: World) -> None:
    child = os.fork()
    if child == 0:
        world.tree.before_write = lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == 3 else None
        world.bind()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def bind_without_undo(world: World) -> None:
    world.tree.refusing |= {"vfio-pci", "igb"}
    with pytest.raises(PortError, match="It could not be restored"):
        world.bind()
    world.tree.refusing.clear()


@pytest.mark.parametrize("stop", [failed_unbind, killed_bind, bind_without_undo])
def test_a_bind_after_one_that_stopped_half_way_keeps_the_former_driver(
    world: World, stop: Callable[[World], None]
) -> None:
    stop(world)
    assert world.driver() == ""
    world.tree.refusing.add("vfio-pci")
    with pytest.raises(PortError, match=r"It is bound to no driver, as before$"):
        world.bind()
    world.tree.refusing.clear()
    assert world.bind() == ["vfio-pci"]
    assert world.unbind() == ["igb"]
    assert (world.driver(), world.override()) == ("igb", "")
