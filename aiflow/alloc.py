"""Arrays in page-aligned memory of their own: `empty`."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

__all__ = ["empty"]


def empty(shape: int | tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    """An uninitialised ndarray, page-aligned and on huge pages where the kernel gives them.

    Where a driver takes payloads from foreign memory, sending such an array copies nothing. The drivers in use today
    copy each payload once, from any array.

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
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    array: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8).view(dtype).reshape(axes)
    return array
