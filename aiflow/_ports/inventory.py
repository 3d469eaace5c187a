"""The inventory behind ``aiflow ports``: which endpoints can be used here, and why not the others."""

from __future__ import annotations

import functools

from aiflow._ports import netdev
from aiflow._ports.local_drivers import DRIVERS, driver_of
from aiflow._ports.pci_card import driver_of_card, inspect_pci, memory_mode, network_cards
from aiflow._ports.registry import live
from aiflow._ports.runtime_dir import runtime_directory
from aiflow.config import parse_endpoint, parse_endpoints
from aiflow.errors import ConfigError, PortError

__all__ = ["available"]

_Row = tuple[str, bool, str]


def available() -> list[_Row]:
    """Endpoints that can be used here, and the reason against each of the others; starts and opens nothing.

    Returns
    -------
    list of (endpoint, usable, note)
    """
    return [
        *_shared_memory(),
        ("ring:NAME", True, "both ends in one process"),
        *(row for name in netdev.interface_names() for row in _interface(name)),
        *_cards(),
        ("vdev:DPDK-DEVARGS", True, "any virtual device of DPDK"),
    ]


def _shared_memory() -> list[_Row]:
    served = driver_of("local")
    try:
        runtime_directory()
        fault = ""
    except PortError as exc:
        fault = str(exc)
    rows = [("local:NAME", not fault, fault or f"served by {served.name} ({served.receiver})")]
    for name, driver in DRIVERS.items():
        rows.append((f"{name}:NAME", not fault, fault or f"{driver.receiver} receives, {driver.sender} sends"))
    if not fault:
        rows.extend((name.endpoint, True, f"a receiver waits there ({name.owner})") for name in live())
    return rows


def _interface(name: str) -> list[_Row]:
    rows = []
    for scheme in ("af_packet", "af_xdp"):
        text = f"{scheme}:{name}"
        try:
            found = netdev.inspect(parse_endpoint(text))
            notes = (f"frames up to {found.frame_size} bytes", *found.notes)
            rows.append((text, True, "; ".join(notes)))
        except ConfigError:
            text = f"{scheme}:{netdev.ascii_name(name)}"
            rows.append((text, False, "no endpoint can have this name: ip link set NAME name NEWNAME"))
        except PortError as exc:
            rows.append((text, False, str(exc).removeprefix(f"{text}: ")))
    return rows


def _cards() -> list[_Row]:
    rows = []
    mode = functools.cache(memory_mode)
    for address in network_cards():
        (endpoint,) = parse_endpoints(f"pci:{address}")
        try:
            inspect_pci(endpoint, mode)
            rows.append((endpoint.text, True, f"bound to {driver_of_card(endpoint.target)}"))
        except PortError as exc:
            rows.append((endpoint.text, False, str(exc).partition(": ")[2]))
    return rows or [("pci:DBDF", False, "no network card on the PCI bus")]
