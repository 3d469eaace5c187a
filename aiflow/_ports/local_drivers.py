"""DPDK drivers that join two processes of one host, and how each side opens its ports."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from aiflow import _eal
from aiflow._ports.runtime_dir import reason
from aiflow._system import threads
from aiflow._system.descriptors import Descriptor
from aiflow._system.filelock import lock
from aiflow.errors import ConfigError, PortError

__all__ = ["DRIVERS", "Driver", "close_receiving", "driver_of", "open_receiving", "open_sending"]


@dataclass(frozen=True)
class Driver:
    """A pair of DPDK drivers that joins two processes of one host.

    Attributes
    ----------
    name : str
        As in the endpoint's scheme.
    receiver, sender : str
        DPDK's driver on each side.
    frame_size : int
        Default largest frame, bytes.
    max_frame_size : int
        Largest frame that the driver supports, bytes.
    ring_size : int
        Largest number of frames in a ring, a power of two.
    ring_bytes : int
        Limit for the rings of all ports of a connection: see `ring_for`.
    sender_needs_eal_memory : bool
        The receiver reads the sender's mbufs in place.
    min_mbuf : int
        Least data room of an mbuf, in bytes, that the driver accepts.
    """

    name: str
    receiver: str
    sender: str
    frame_size: int
    max_frame_size: int
    ring_size: int
    ring_bytes: int
    sender_needs_eal_memory: bool
    min_mbuf: int

    def ring_for(self, frame_size: int, nb_ports: int = 1) -> int:
        """Ring size of each port of a connection, in frames of `frame_size` bytes.

        Large enough to keep both sides busy, small enough for all rings together to stay in cache.
        """
        frames = max(_MIN_RING, min(self.ring_size, self.ring_bytes // (frame_size * nb_ports)))
        return 1 << frames.bit_length() - 1


_MIN_RING = 64

DRIVERS = {
    # one copy on each core; at most 4 MiB for the rings of all ports of a connection
    "memif": Driver("memif", "net_memif", "net_memif", 16384, 65000, 1024, 4 << 20, False, 64),
    "vhost": Driver("vhost", "net_vhost", "net_virtio_user", 9216, 65000, 1024, 1 << 30, True, 1536),
}
"""Drivers for shared-memory endpoints, by name."""


def driver_of(scheme: str) -> Driver:
    """The driver of ``local:``, ``memif:`` or ``vhost:``; AIFLOW_LOCAL=vhost chooses another for ``local:``."""
    name = scheme
    if scheme == "local":
        name = os.environ.get("AIFLOW_LOCAL") or "memif"
        if name not in DRIVERS:
            raise ConfigError(f"AIFLOW_LOCAL={name!r}: local endpoints are served by {' or '.join(DRIVERS)}")
    return DRIVERS[name]


# ---------------------------------------------------------------------------------------------------- memif's server

_lock = threads.unpatched("threading").Lock()
_memif_socket: Path | None = None  # all server ports of this process share it, each with an id: see Port.park
_memif_alive: Descriptor | None = None  # the lock beside it, held for the life of this process
_memif_ports: set[_eal.Port] = set()
_ATTEMPTS = 10  # to find a free name


def _forked() -> None:
    """Runs in every forked child: a lock that another thread of the parent held would stay locked."""
    global _lock
    _lock = threads.unpatched("threading").Lock()


os.register_at_fork(after_in_child=_forked)


def _memif_path(root: Path) -> str:
    """The socket of this process's server; a new one if there is none, or if a cleaner has removed it."""
    global _memif_socket, _memif_alive
    if _memif_socket is None or not _memif_socket.exists():
        _memif_socket, _memif_alive = _free_name(root)
    return str(_memif_socket)


def _free_name(root: Path) -> tuple[Path, Descriptor]:
    """A name that no other process has, in any container, because we hold the lock beside it."""
    for _ in range(_ATTEMPTS):
        path = root / f"sock-{secrets.token_hex(4)}"
        try:
            root.mkdir(mode=0o700, exist_ok=True)  # a cleaner may have been there
            alive = lock(path.with_suffix(".lock"))
        except BlockingIOError:
            continue  # another process holds it while it cleans up
        except OSError as exc:
            raise PortError(f"{root}: {reason(exc)}") from exc
        if alive is not None:
            return path, alive
    raise PortError(f"{root} was removed; create it again, or set AIFLOW_RUNTIME_DIR to another directory")


@atexit.register
def _unlink_socket() -> None:
    if _memif_socket is not None and _memif_alive is not None and _memif_alive.fd >= 0:  # not a forked child's
        with contextlib.suppress(OSError):
            _memif_socket.unlink()
        with contextlib.suppress(OSError):
            _memif_socket.with_suffix(".lock").unlink()


def open_receiving(
    driver: Driver, label: str, directory: Path, frame_size: int, ring_size: int, pool: _eal.Mempool
) -> tuple[_eal.Port, str, int]:
    """Open a receiver's port; `ring_size` frames in each direction.

    Parameters
    ----------
    driver : Driver
    label : str
        The port's name in tables.
    directory : Path
        The endpoint's directory.
    frame_size : int
        Bytes.
    ring_size : int
        A power of two: see `Driver.ring_for`.
    pool : Mempool

    Returns
    -------
    port : Port
    path : str
        The socket that the sender's port connects to.
    identity : int
        memif's number of the port on that socket.

    Raises
    ------
    PortError
    """
    number = _eal.next_serial()
    if driver.name == "vhost":
        path = str(directory / f"vhost-{number}")
        port = _eal.Port.open(
            label,
            f"net_vhost_aiflow{number}",
            f"iface={path},queues=1",
            pool,
            frame_size=frame_size,
            rx_ring=ring_size,
            tx_window=ring_size,
        )
        return port, path, number
    with _lock:
        path = _memif_path(directory.parent)
        devargs = _memif_devargs("server", path, number, frame_size, ring_size)
        port = _eal.Port.open(
            label, f"net_memif_aiflow{number}", devargs, pool, frame_size=frame_size, nb_rxd=ring_size, nb_txd=ring_size
        )
        _memif_ports.add(port)
        _eal.unpark()
    return port, path, number


def close_receiving(port: _eal.Port) -> None:
    """Close a port of `open_receiving`."""
    with _lock:
        if port in _memif_ports:
            _memif_ports.remove(port)
            if not _memif_ports:
                port.park()
                return
    port.close()


def open_sending(
    driver: Driver, label: str, path: str, identity: int, frame_size: int, ring_size: int, pool: _eal.Mempool
) -> _eal.Port:
    """Open a sender's port to a receiver's port from `open_receiving`; `ring_size` frames in each direction.

    Raises
    ------
    PortError
        If the port cannot be opened: no process listens on the socket, for instance.
    """
    number = _eal.next_serial()
    if driver.name == "memif":
        device = f"net_memif_aiflow{number}"
        devargs = _memif_devargs("client", path, identity, frame_size, ring_size)
    else:
        device = f"net_virtio_user_aiflow{number}"
        # mrg_rxbuf=0: a frame is a single mbuf
        devargs = f"path={path},queues=1,queue_size={ring_size},mrg_rxbuf=0"
    return _eal.Port.open(label, device, devargs, pool, frame_size=frame_size, nb_rxd=ring_size, nb_txd=ring_size)


def _memif_devargs(role: str, path: str, identity: int, frame_size: int, ring_size: int) -> str:
    log2_ring_size = ring_size.bit_length() - 1
    return f"role={role},id={identity},socket={path},socket-abstract=no,bsize={frame_size},rsize={log2_ring_size}"
