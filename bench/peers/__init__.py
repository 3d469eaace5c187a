"""The peers that carry the load: aiflow, and the alternatives of a Python user, each used as its documentation advises.

A peer is a module with `version()` and two classes. `Sink(directory, load, **options)` is created first and has
`address`; `recv()` returns a slice as numpy arrays in recycled memory (a list, or for a batch one array with rows),
valid until the next call. `Source(address, load, **options)` has `send(elements)`. Both have `close()`.

A peer with calls also has `Caller(address, nbytes, polling)` with `call(array)`, and `Answerer(directory, nbytes,
polling)` with `answer()`: one element there, and the same one back.

A peer with loans also has `Lender(address, nbytes)` with `lend()`, which returns memory to be filled, and `send()`. Its
`Borrower(directory, nbytes)` has `take()`, which polls and returns the array, and `give_back()`. `lends` is False where
a copy stands in for a loan.
"""

from __future__ import annotations

import importlib
from typing import Any

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "aiflow": ("ours", {}),
    "aiflow, mbufs kept": ("ours", {"assemble": False}),
    "aiflow, shared ports": ("ours", {"shared": True}),  # of the calls: both directions over the same ports
    "memcpy": ("memcpy", {}),
    "bare loop, four copies": ("bare", {"way": "copied"}),
    "bare loop, three copies": ("bare", {"way": "lent"}),
    "bare loop, two copies": ("bare", {"way": "external"}),
    "pyzmq ipc": ("pyzmq", {"transport": "ipc"}),
    "pyzmq tcp": ("pyzmq", {"transport": "tcp"}),
    "TCP sockets": ("tcp", {}),
    "shared-memory ring": ("shm_ring", {}),
    "shared-memory ring, 1 MB": ("shm_ring", {"small": True}),
    "iceoryx2": ("iceoryx", {}),
    "zenoh": ("zenoh_shm", {}),
    "Arrow Flight": ("flight", {}),
    "gRPC": ("grpc_stream", {}),
    "gRPC + gzip": ("grpc_stream", {"gzip": True}),
}
"""Name in tables → module and options."""

PACKAGES = {
    "pyzmq": "zmq",
    "iceoryx": "iceoryx2",
    "zenoh_shm": "zenoh",
    "flight": "pyarrow.flight",
    "grpc_stream": "grpc",
}
"""Module → its imports that may be missing."""


def find(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the module of a contestant, and its options."""
    module, options = CONTESTANTS[name]
    return importlib.import_module(f"peers.{module}"), options


def missing(name: str) -> str:
    """Return why this contestant cannot run here, or an empty string."""
    package = PACKAGES.get(CONTESTANTS[name][0])
    if package is None:
        return ""
    try:
        importlib.import_module(package)
    except ImportError as exc:
        return f"{package} cannot be imported ({exc}): pip install 'aiflow-dpdk[bench]'"
    return ""
