"""Opening of ports that need no peer: af_packet, af_xdp, pci and vdev.

A function for each scheme. ``pool_for`` is that of `PortSet`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from aiflow import _eal
from aiflow._eal_cards import CARD_IS_BUSY
from aiflow._ports import xdp_ports
from aiflow._ports.netdev import Interface, claim_fanout
from aiflow._ports.packet_ring import (
    KERNEL_OVERHEAD,
    packet_ring,
    packet_sockets,
    unacknowledged_frames,
    widen_send_buffer,
)
from aiflow._ports.pci_card import claim_uio, inspect_pci
from aiflow._ports.xdp_probe import AF_XDP, XDP_ROOM, quiet_xdp
from aiflow._system import threads
from aiflow._system.descriptors import kept_devices, sockets_of
from aiflow.config import Endpoint
from aiflow.errors import ConfigError, PortError

__all__ = ["open_af_packet", "open_af_xdp", "open_pci", "open_vdev"]

_DEFAULT_ROOM = 2048  # bytes of an mbuf where the driver decides on the frame size
_TAG_AND_FCS = 8  # bytes that a card may store beside the frame: a VLAN tag and the checksum
_CARD_UNIT = 1024  # bytes: cards use so much of an mbuf as is a multiple of this (e1000, ixgbe; others: of 128)

_finding_sockets = threads.unpatched("threading").Lock()  # one port opens at a time: new sockets belong to that one


def _forked() -> None:
    """Runs in every forked child: a lock that another thread of the parent held would stay locked."""
    global _finding_sockets
    _finding_sockets = threads.unpatched("threading").Lock()


os.register_at_fork(after_in_child=_forked)


def _checked_frame(endpoint: Endpoint, wanted: int | None, largest: int, remedy: str) -> int:
    """The frame size to use on a port that can carry `largest` bytes. Raises ConfigError."""
    if wanted is not None and wanted > largest:
        raise ConfigError(
            f"{endpoint}: frame_size={wanted} is more than the {largest} bytes it can carry; "
            f"use that size or less, or {remedy}"
        )
    return wanted or largest


def open_af_packet(
    endpoint: Endpoint, interface: Interface, frame_size: int | None, pool_for: Callable[..., Any]
) -> tuple[Any, set[int]]:
    """Open an interface through a packet socket; returns the port, and the descriptors of its sockets."""
    remedy = f"ip link set {interface.name} mtu …"
    frame_size = _checked_frame(endpoint, frame_size, interface.frame_size, remedy)
    ring = packet_ring(frame_size)
    pool = pool_for(min(ring.frame_bytes, _eal.MAX_DATA_ROOM), interface.socket_id, 1, False)
    devargs = (
        f"iface={interface.name},qpairs=1,qdisc_bypass=0,blocksz={ring.block_bytes},"
        f"framesz={ring.frame_bytes},framecnt={ring.nb_frames}"
    )
    device = f"net_af_packet_{_eal.next_serial()}"
    with contextlib.ExitStack() as undo, _finding_sockets:
        group = undo.enter_context(claim_fanout(endpoint, interface))
        others = packet_sockets(interface.index)
        port = _eal.Port.open(endpoint.text, device, devargs, pool, frame_size=frame_size, rx_ring=ring.nb_frames)
        sockets = packet_sockets(interface.index) - others
        port.hold(group)
        undo.pop_all()
    send_buffer = widen_send_buffer(sockets, ring.nb_frames * (frame_size + KERNEL_OVERHEAD))
    port.tx_window = unacknowledged_frames(frame_size, ring.nb_frames, send_buffer)
    port.wake_fds = sorted(sockets)
    return port, sockets


def _descriptors(family: int) -> set[int]:
    """Descriptors of the process's sockets of an address family."""
    with contextlib.suppress(OSError):  # no descriptor is free to list them with
        return {fd for fd, _ in sockets_of(family)}
    return set()


def open_af_xdp(endpoint: Endpoint, interface: Interface, frame_size: int | None, pool_for: Callable[..., Any]) -> Any:
    """Open queue 0 of an interface through AF_XDP, or take over the port of an earlier user."""
    remedy = "use af_packet, which carries jumbo frames"
    found = xdp_ports.take_over(endpoint, interface, frame_size)
    if found is not None:
        return found
    frame_size = _checked_frame(endpoint, frame_size, interface.frame_size, remedy)
    pool = pool_for(_DEFAULT_ROOM if frame_size <= 1536 else XDP_ROOM, interface.socket_id, 1, False)
    quiet_xdp()
    try:
        with _finding_sockets:
            others = _descriptors(AF_XDP)
            port = _eal.Port.open(
                endpoint.text,
                f"net_af_xdp_{_eal.next_serial()}",
                f"iface={interface.name},start_queue=0,queue_count=1",
                pool,
                frame_size=frame_size,
                nb_rxd=2048,
                nb_txd=2048,
                rx_ring=1024,
                tx_window=1024,
            )
            port.wake_fds = sorted(_descriptors(AF_XDP) - others)
        xdp_ports.opened(port, interface)
        return port
    except PortError as exc:
        if "xsk socket" not in str(exc):
            raise
        raise PortError(
            f"{endpoint}: queue 0 of {interface.name} is busy or refuses XDP. Another program may use it (ip link "
            f"show {interface.name} lists XDP programs), or a process that had a port on it: DPDK 22.11 keeps the "
            f"queue until the process ends. Close that, or use af_packet:{interface.name}. ({exc})"
        ) from exc


def open_pci(endpoint: Endpoint, frame_size: int | None, pool_for: Callable[..., Any]) -> Any:
    """Open a network card that DPDK drives."""
    socket_id = inspect_pci(endpoint)
    # A frame that needs two mbufs is copied.
    room = -(-((frame_size or 0) + _TAG_AND_FCS) // _CARD_UNIT) * _CARD_UNIT
    pool = pool_for(min(max(room, _DEFAULT_ROOM), _eal.MAX_DATA_ROOM), socket_id, 1, True)
    claim = claim_uio(endpoint)
    try:
        with kept_devices():
            try:
                port = _open_card(endpoint, frame_size, pool)
            except PortError as exc:
                if CARD_IS_BUSY not in str(exc):
                    raise
                inspect_pci(endpoint)  # another process may only have inspected it; this one waits until it is free
                port = _open_card(endpoint, frame_size, pool)
    except BaseException:
        if claim is not None:
            claim.close()
        raise
    if claim is not None:
        port.hold(claim)
    return port


def _open_card(endpoint: Endpoint, frame_size: int | None, pool: Any) -> Any:
    try:
        return _eal.Port.open(
            endpoint.text, endpoint.target, "", pool, bus="pci", frame_size=frame_size, rx_interrupts=True
        )
    except PortError as exc:
        if "does not open" in str(exc):
            raise
        # Some drivers refuse receive interrupts, and some kernels.
        return _eal.Port.open(endpoint.text, endpoint.target, "", pool, bus="pci", frame_size=frame_size)


def open_vdev(endpoint: Endpoint, frame_size: int | None, pool_for: Callable[..., Any]) -> Any:
    """Open a virtual device of DPDK with the user's arguments."""
    device, _, devargs = endpoint.target.partition(",")
    pool = pool_for(max(frame_size or 0, _DEFAULT_ROOM), -1, 1, True)
    return _eal.Port.open(endpoint.text, device, devargs, pool, frame_size=frame_size)
