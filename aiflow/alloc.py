"""Arrays in page-aligned memory of their own: `empty`, and a Sender's `Loans`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from aiflow._eal_loans import Pool
from aiflow._eal_regions import Memory
from aiflow._system import threads

__all__ = ["Loans", "empty"]


def empty(shape: int | tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    """An uninitialised ndarray, page-aligned and on huge pages where the kernel gives them.

    Network cards behind an IOMMU read such an array where it lies, in frames of more than 4 KiB (`frame_size=`): no
    payload is copied. Arrays below 64 KiB are copied. Other drivers copy each payload once, from any array.

    The first `send` of an array over a card locks all of it in memory, within `ulimit -l`: that takes time.
    The card keeps its last frames until it sends others. So the memory of an array that is gone comes back when the
    next slices are sent, or when the port is closed.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : numpy dtype
        Not object.

    Returns
    -------
    ndarray
        C-contiguous; it owns its memory through its base.
    """
    return _made("empty()", shape, dtype, Memory)


def _made(what: str, shape: int | tuple[int, ...], dtype: Any, memory: Callable[[int], Any]) -> np.ndarray[Any, Any]:
    """An array in memory of its own.

    Parameters
    ----------
    what : str
        The call that makes it, for errors.
    shape : int or tuple of int
    dtype : numpy dtype
        Not object.
    memory : callable
        Gives a buffer of this number of bytes, at least 1.
    """
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"{what} makes arrays that can be sent: not of Python objects")
    if np.any(np.less(shape, 0)):
        raise ValueError(f"shape {shape!r} has a negative axis: axes are 0 or more")
    axes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    count = int(np.prod(axes, dtype=np.int64))
    if not count or not dtype.itemsize:
        return np.empty(axes, dtype)
    array: np.ndarray[Any, Any] = np.frombuffer(memory(count * dtype.itemsize), np.uint8).view(dtype).reshape(axes)
    return array


class Loans:
    """The loans of a Sender. Their memory is made with the first one.

    Parameters
    ----------
    limit : int
        Bytes of all loans together.
    agent : TxAgent
    ports : OwnPorts or Ports
        Its peers get the memory.

    Attributes
    ----------
    pool : Pool or None
    """

    def __init__(self, limit: int, agent: Any, ports: Any) -> None:
        self.pool: Pool | None = None
        self._limit = limit
        self._agent = agent
        self._ports = ports
        self._lock = threads.unpatched("threading").Lock()

    def array(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """A new loan: see `Sender.loan`."""
        if self.pool is None:
            self._open()
        assert self.pool is not None
        return _made("loan()", shape, dtype, self.pool.take)

    def _open(self) -> None:
        with self._lock:
            if self.pool is None:
                self._agent.pool = pool = Pool(self._limit)  # first: peers that come from now on get it, too
                self._ports._lend(pool)
                self.pool = pool

    def close(self) -> None:
        """Make none any more. Idempotent."""
        if self.pool is not None:
            self.pool.close()
