"""A baseline, not a peer: bare_loop.c, which makes aiflow's copies over memif and nothing else. Built on first use.

Its modes: "copied" makes memif's two copies and one on each side; "lent" saves the sender's copy, because its mbufs are
the shared memory (zero-copy client); "external" makes two copies, see bare_loop.c.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from loads import Load

from aiflow import _eal_args
from aiflow._ports import local_drivers

SOURCE = Path(__file__).parent.parent / "bare_loop.c"
FLAGS = ["-O3", "-shared", "-fPIC", "-DALLOW_EXPERIMENTAL_API"]
START_S = 30.0

_MEMIF = local_drivers.DRIVERS["memif"]
FRAME_BYTES, RING = _MEMIF.frame_size, _MEMIF.ring_for(_MEMIF.frame_size)


class BuildError(Exception):
    """Output of the compiler."""


def version() -> str:
    return "C"


def build() -> Path:
    """Return the shared library, recompiled if its source is newer."""
    library = Path(tempfile.gettempdir()) / f"aiflow-bench-{os.getuid()}" / "bare_loop.so"
    library.parent.mkdir(mode=0o700, exist_ok=True)
    if library.parent.stat().st_uid != os.getuid():
        raise BuildError(f"{library.parent} belongs to another user")
    if library.exists() and library.stat().st_mtime > SOURCE.stat().st_mtime:
        return library
    pkg_config = os.environ.get("PKG_CONFIG", "pkg-config")
    dpdk = subprocess.run([pkg_config, "--cflags", "--libs", "libdpdk"], capture_output=True, text=True, check=True)
    made = library.with_suffix(f".{os.getpid()}")
    command = [os.environ.get("CC", "cc").split()[-1], *FLAGS, str(SOURCE), "-o", str(made), *dpdk.stdout.split()]
    result = subprocess.run([*command, "-lrte_net_memif", "-lrte_bus_vdev"], capture_output=True, text=True)
    if result.returncode:
        raise BuildError(result.stderr)
    made.rename(library)
    return library


class _Port:
    """A memif port of this process."""

    def __init__(self, role: str, socket: str, zero_copy: bool = False, by_reference: bool = False) -> None:
        _, arguments = _eal_args.choose(f"bare-{os.getpid()}")
        arguments += ["--log-level", "error"]
        self.library = ctypes.CDLL(str(build()))
        self.library.bare_link_up.restype = ctypes.c_bool
        argv = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
        devargs = (
            f"role={role},id=0,socket={socket},socket-abstract=no,bsize={FRAME_BYTES},rsize={RING.bit_length() - 1}"
        )
        if zero_copy:
            devargs += ",zero-copy=yes"
        failed = self.library.bare_open(
            len(arguments),
            argv,
            devargs.encode(),
            FRAME_BYTES,
            RING,
            ctypes.c_bool(by_reference),
        )
        if failed:
            raise RuntimeError(f"bare_open: step {failed} failed")
        self._argv = argv  # the EAL keeps a reference

    def await_link(self) -> None:
        deadline = time.monotonic() + START_S
        while not self.library.bare_link_up():
            if time.monotonic() > deadline:
                raise TimeoutError("the other memif port is not there")
            time.sleep(0.001)


def _addresses(elements: Any) -> Any:
    if isinstance(elements, np.ndarray):
        elements = [elements]  # the rows of a batch are contiguous
    sizes = (ctypes.c_uint64 * len(elements))(*(array.nbytes for array in elements))
    return (ctypes.c_void_p * len(elements))(*(array.ctypes.data for array in elements)), sizes


class Sink:
    def __init__(self, directory: str, load: Load, way: str) -> None:
        self.address = f"{directory}/memif"
        self._memory, self._nbytes = load.memory(), load.nbytes
        self._addresses, _ = _addresses(self._memory)
        # memif: the zero-copy side is the client, and a client must find its server
        self._port = None if way == "external" else _Port("server", self.address)

    def recv(self) -> Any:
        if self._port is None:
            self._port = _Port("client", self.address, zero_copy=True)
        self._port.library.bare_recv(self._addresses, ctypes.c_uint64(self._nbytes))
        return self._memory

    def close(self) -> None:
        pass


class Source:
    def __init__(self, address: str, load: Load, way: str) -> None:
        if way == "external":
            self._port = _Port("server", address, by_reference=True)
        else:
            self._port = _Port("client", address, zero_copy=way == "lent")

    def send(self, elements: Any) -> None:
        self._port.await_link()
        addresses, sizes = _addresses(elements)
        self._port.library.bare_send(addresses, sizes, ctypes.c_uint32(len(addresses)))

    def close(self) -> None:
        pass


class _Talking:
    """One end of a conversation. It always polls, and makes four copies a way."""

    def __init__(self, role: str, socket: str, nbytes: int) -> None:
        self._port = _Port(role, socket)
        self._array = np.ones(nbytes, np.uint8)
        self._memory, self._nbytes = ctypes.c_void_p(self._array.ctypes.data), ctypes.c_uint64(nbytes)

    def close(self) -> None:
        pass


class Answerer(_Talking):
    def __init__(self, directory: str, nbytes: int, polling: bool, way: str) -> None:
        self.address = f"{directory}/memif"
        super().__init__("server", self.address, nbytes)

    def answer(self) -> None:
        self._port.library.bare_answer(self._memory, self._nbytes, ctypes.c_uint32(1))


class Caller(_Talking):
    def __init__(self, address: str, nbytes: int, polling: bool, way: str) -> None:
        super().__init__("client", address, nbytes)
        self._port.await_link()

    def call(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._port.library.bare_call(ctypes.c_void_p(array.ctypes.data), self._memory, self._nbytes)
        return self._array
