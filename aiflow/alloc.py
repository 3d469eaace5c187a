"""Arrays in page-aligned memory of their own: `empty`."""

from __future__ import annotations

from typing import Any

import numpy as np

from aiflow._eal_regions import Memory

__all__ = ["empty"]


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
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError("empty() makes arrays that can be sent: not of Python objects")
    if np.any(np.less(shape, 0)):
        raise ValueError(f"shape {shape!r} has a negative axis: axes are 0 or more")
    axes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    count = int(np.prod(axes, dtype=np.int64))
    if not count or not dtype.itemsize:
        return np.empty(axes, dtype)
    memory = Memory(count * dtype.itemsize)
    array: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8).view(dtype).reshape(axes)
    return array
