"""Holes of sparse files: ranges without blocks on the disk, which read as zeros."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

_LEAST_BYTES = 16 << 20  # of holes: fewer are read and sent as zeros


def is_sparse(status: os.stat_result) -> bool:
    """Return whether a file may have so large holes that it pays to look for them.

    A file system that compresses uses fewer blocks, too; the file then has one range of data.
    """
    return status.st_size - status.st_blocks * 512 >= _LEAST_BYTES


def data_ranges(fd: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each range of data in the first `nbytes` bytes of a file (lseek(2), SEEK_DATA)."""
    at = 0
    while at < nbytes:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: there is no data behind `at`
                yield at, nbytes  # the file system does not say
            return
        if begin < nbytes:
            yield begin, min(end, nbytes)
        at = end
