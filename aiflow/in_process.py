"""A Sender and a Receiver in one process."""

from __future__ import annotations

import itertools
import os
from typing import Any, NamedTuple

from aiflow.receiver import Receiver
from aiflow.sender import Sender

__all__ = ["Pair", "pair"]

_serial = itertools.count()


class Pair(NamedTuple):
    """A Sender and its Receiver, from `pair`: unpack it, or use it as a context manager that closes both."""

    sender: Sender
    receiver: Receiver

    def close(self) -> None:
        """Close both, the sender first."""
        try:
            self.sender.close()
        finally:
            self.receiver.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            self.sender.__exit__(kind, *exc)
        finally:
            self.receiver.close()


def pair(
    nb_ports: int = 1, *, slice_ms: float | None = None, put_memory: int | str = "256MiB", **receiver_options: Any
) -> Pair:
    """A Sender and a Receiver in this process, joined by net_ring ports: for notebooks, tests and first steps.

    Parameters
    ----------
    nb_ports : int
        Ports between them.
    slice_ms, put_memory
        For the Sender: see `Sender.put`.
    **receiver_options
        For the Receiver: ``assemble``, ``memory``, ``timeout`` … All other options of the Sender have their defaults.
        To set them, open both sides on the same ``"ring:NAME"``.

    Returns
    -------
    Pair
        (Sender, Receiver). Rings pass the sender's own mbufs: they measure no bandwidth.
    """
    endpoint = f"ring:pair-{os.getpid()}-{next(_serial)}*{nb_ports}"
    receiver = Receiver(endpoint, **receiver_options)
    try:
        return Pair(Sender(endpoint, slice_ms=slice_ms, put_memory=put_memory), receiver)
    except BaseException:
        receiver.close()
        raise
