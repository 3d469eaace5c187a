"""A card that cannot be opened: the error says why, and what to do. These come first: the kernel has the cards."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import machine
from consoles import Console


def rows() -> dict[str, tuple[bool, str]]:
    """What `aiflow ports` shows."""
    document = json.loads(machine.aiflow("ports", "--json").stdout)
    return {row["endpoint"]: (row["usable"], row["note"]) for row in document["endpoints"]}


def why_not(console: Console, endpoint: str) -> str:
    """The error of a Sender there; `aiflow ports` gives the same reason."""
    said = console.error(f"aiflow.Sender({endpoint!r})")
    assert said.startswith("PortError: ")
    usable, note = rows()[endpoint]
    assert not usable
    assert note in said
    return said


def test_a_card_that_the_kernel_drives(long_lived: tuple[Console, Console]) -> None:
    address = machine.cards()[2]
    machine.bind(address, "igb")
    said = why_not(long_lived[0], f"pci:{address}")
    (interface,) = (path.name for path in (machine.DEVICES / address / "net").iterdir())
    assert "bound to the kernel's igb driver" in said
    assert f"af_packet:{interface}" in said
    assert "vfio-pci" in said


def test_a_card_that_the_machine_needs(long_lived: tuple[Console, Console]) -> None:
    address = machine.cards()[2]
    machine.bind(address, "igb")
    (interface,) = (path.name for path in (machine.DEVICES / address / "net").iterdir())
    # IPv6 would add its route between the two questions
    Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")
    machine.shell("ip", "address", "add", "192.0.2.1/24", "dev", interface)
    try:
        machine.shell("ip", "link", "set", interface, "up")
        said = why_not(long_lived[0], f"pci:{address}")
        assert f"{interface} carries the host's route" in said
    finally:
        machine.shell("ip", "link", "set", interface, "down")
        machine.shell("ip", "address", "flush", "dev", interface)


def test_a_card_without_a_driver(long_lived: tuple[Console, Console]) -> None:
    address = machine.cards()[2]
    machine.unbind(address)
    said = why_not(long_lived[0], f"pci:{address}")
    assert "bound to no driver" in said
    assert "vfio-pci" in said


def test_a_card_that_is_not_there(long_lived: tuple[Console, Console]) -> None:
    said = long_lived[0].error("aiflow.Sender('pci:0000:7f:00.0')")
    assert "no such PCI device 0000:7f:00.0" in said


def test_bound_cards_are_listed(ports: list[str]) -> None:
    listed = rows()
    for endpoint in ports:
        assert listed[endpoint] == (True, "bound to vfio-pci")


def test_a_busy_card(pair: tuple[Console, Console], ports: list[str]) -> None:
    a, b = pair
    a.run(f"tx = aiflow.Sender({ports[0]!r})")
    said = b.error(f"aiflow.Receiver({ports[0]!r})")
    assert "busy" in said
    assert f"process {a.pid}" in said
    usable, note = rows()[ports[0]]
    assert not usable
    assert "busy" in note
    a.run("tx.close()")
    b.run(f"rx = aiflow.Receiver({ports[0]!r}); rx.close()")


def test_a_card_is_free_once_its_process_is_killed(pair: tuple[Console, Console], ports: list[str]) -> None:
    with Console() as other:
        other.run(f"tx = aiflow.Sender({ports[0]!r})")
        os.kill(other.pid, signal.SIGKILL)
        pair[0].run(f"tx = aiflow.Sender({ports[0]!r})")


def test_a_forked_child_does_not_keep_the_card(pair: tuple[Console, Console], ports: list[str]) -> None:
    a, b = pair
    child = a.run(
        f"""
        tx = aiflow.Sender({ports[0]!r})
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        tx.close()
        answer = child
        """
    )
    try:
        b.run(f"rx = aiflow.Receiver({ports[0]!r}); rx.close()")
    finally:
        a.run(f"os.kill({child}, 9); os.waitpid({child}, 0)")


def test_a_process_that_started_dpdk_before_vfio_is_told_to_start_again(ports: list[str]) -> None:
    """DPDK looks for vfio at its start only. Here that finds an empty directory, in a mount namespace of its own."""
    with Console("unshare", "--mount", AIFLOW_MEMORY="no-huge", AIFLOW_EAL_MEMORY="64MiB") as late:
        late.run(
            """
            from aiflow import _eal
            import subprocess
            subprocess.run(["mount", "-t", "tmpfs", "none", "/dev/vfio"], check=True)
            _eal.start()
            subprocess.run(["umount", "/dev/vfio"], check=True)
            """
        )
        assert "start the process again" in late.error(f"aiflow.Sender({ports[0]!r})")


USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
SMALL = {"AIFLOW_MEMORY": "no-huge", "AIFLOW_EAL_MEMORY": "64MiB", "HOME": "/tmp", "AIFLOW_RUNTIME_DIR": "/tmp/user"}


def test_an_ordinary_user_needs_two_rights(pair: tuple[Console, Console], ports: list[str], cards: list[str]) -> None:
    _, b = pair
    group = machine.group(cards[0])
    open_it = f"tx = aiflow.Sender({ports[0]!r})"
    try:
        with Console("prlimit", "--memlock=8388608", *USER, **SMALL) as user:
            said = user.error(open_it)
            assert f"no permission for {group}" in said
            assert "chown" in said
            machine.shell("chown", "65534", str(group))
            said = user.error(open_it)
            assert "ulimit -l" in said
            resource.prlimit(user.pid, resource.RLIMIT_MEMLOCK, (128 << 20, 128 << 20))
            b.run(f"rx = aiflow.Receiver({ports[1]!r})")
            b.start("answer = same(rx.recv(timeout=60), images)")
            user.run(open_it)
            user.run("tx.send(images, timeout=60); tx.close()")
            assert b.finish()
    finally:
        machine.shell("chown", "0", str(group))
