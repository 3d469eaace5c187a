"""Loans that a test hands over, and how much of them is not free again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mbufs import everything_returned
from peer import MiB, content
from wait import PATIENCE_S, Deadline

import aiflow

Array = np.ndarray[Any, Any]


def used(tx: aiflow.Sender) -> int:
    """Bytes of loans that are not free again."""
    gc.collect()
    assert tx._loans.pool is not None
    tx._loans.pool.sweep()
    return tx._loans.pool.used


def filled(tx: aiflow.Sender, shape: Any, dtype: Any = np.uint8, seed: int = 1) -> Array:
    loan = tx.loan(shape, dtype)
    loan.reshape(-1).view(np.uint8)[:] = content(seed, loan.nbytes)
    return loan


def handed_over(tx: aiflow.Sender, rx: aiflow.Receiver, elements: Any) -> tuple[aiflow.TimeSlice, aiflow.SliceReport]:
    ticket = tx.send(elements, wait=False)
    time_slice = rx.recv(PATIENCE_S)
    return time_slice, ticket.result(PATIENCE_S)


def meet(tx: aiflow.Sender, rx: aiflow.Receiver) -> None:
    """Send loans until the receiver's process has mapped their memory."""
    deadline = Deadline()
    while True:
        ticket = tx.send({"first": filled(tx, 64)}, wait=False)
        rx.recv(PATIENCE_S).release()
        if ticket.result(PATIENCE_S).lent_bytes:
            return
        deadline.check("no loan is lent")


@contextmanager
def lending(endpoint: str, sender: Any = None, receiver: Any = None) -> Iterator[tuple[aiflow.Sender, aiflow.Receiver]]:
    with (
        everything_returned(),
        aiflow.Receiver(endpoint, loans=True, memory=16 * MiB, **(receiver or {})) as rx,
        aiflow.Sender(endpoint, **(sender or {})) as tx,
    ):
        meet(tx, rx)
        yield tx, rx
