"""One slice to several receivers: the receiver of each element, and the slice as the sum of its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aiflow._policy.partition import Numbers, even
from aiflow._transfer.form import Form
from aiflow.config import parse_partition
from aiflow.errors import ConfigError

__all__ = ["FanOut", "Partition", "array_of", "whole_of"]


class Partition:
    """Chooses a receiver for each element.

    Parameters
    ----------
    how : {"balanced", "by_stream"} or callable
        ``balanced``: even by bytes, slice by slice. ``by_stream``: a stream stays with the receiver of its first
        slice; a new stream goes to the receiver with the fewest bytes so far. A callable takes the elements, a list of
        (stream, ndarray), and the receivers' names; it returns an index into the names for each element.
    receivers : sequence of str
        Their names.

    Raises
    ------
    ConfigError
        For any other `how`.
    """

    def __init__(self, how: str | Callable[..., Any], receivers: Sequence[str]) -> None:
        self.how = parse_partition(how)
        self.receivers = tuple(receivers)
        self._homes: dict[str, int] = {}
        self._given = [0] * len(self.receivers)

    def split(self, streams: Sequence[str | int], sizes: Sequence[int], elements: Callable[[], list[Any]]) -> Numbers:
        """The receiver of each element.

        Parameters
        ----------
        streams : sequence of str or int
            Stream of each element.
        sizes : sequence of int
            Bytes of each.
        elements : callable
            Makes the list that a callable `how` takes.

        Raises
        ------
        ConfigError
            If the callable did not return an index for each element.
        """
        if callable(self.how):
            return self._chosen(self.how(elements(), self.receivers), len(sizes))
        if self.how == "balanced":
            return even(sizes, len(self.receivers))
        return self._by_stream(streams, sizes)

    def _by_stream(self, streams: Sequence[str | int], sizes: Sequence[int]) -> Numbers:
        names = [str(stream) for stream in streams]  # as a receiver sees them
        new: dict[str, int] = {}
        for stream, size in zip(names, sizes, strict=True):
            if stream in self._homes:
                self._given[self._homes[stream]] += size
            else:
                new[stream] = new.get(stream, 0) + size
        for stream in sorted(new, key=lambda stream: -new[stream]):
            home = min(range(len(self._given)), key=self._given.__getitem__)
            self._homes[stream] = home
            self._given[home] += new[stream]
        return np.array([self._homes[name] for name in names], np.intp)

    def _chosen(self, answer: Any, count: int) -> Numbers:
        n = len(self.receivers)
        try:
            chosen = np.asarray(answer)
        except ValueError:
            chosen = np.empty(0, object)
        if count == 0:
            return np.zeros(0, np.intp)
        if chosen.shape != (count,) or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= n:
            raise ConfigError(
                f"partition= returned {answer!r:.200}: return an index from 0 to {n - 1} for each of {count} elements"
            )
        return chosen.astype(np.intp)


def array_of(buffer: Any, form: Form) -> np.ndarray[Any, Any]:
    """An element's bytes as an array again, for a callable to look at."""
    if not form.nbytes:
        return np.empty(form.shape, form.dtype)
    flat = np.frombuffer(buffer, np.uint8).view(form.dtype)
    return flat.reshape(form.shape, order="F" if form.order == "F" else "C")


class FanOut:
    """The parts of one slice, a part for each receiver. It has the interface of an `Outgoing`.

    Parameters
    ----------
    parts : list of aiflow._dp_outgoing.Outgoing
        In the receivers' order.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.posted_at: float = min(part.posted_at for part in parts)

    @property
    def done(self) -> bool:
        """Whether all have ended, delivered or not."""
        return all(part.done for part in self.parts)

    @property
    def slice_id(self) -> int:
        """Its number in the first receiver's session."""
        return int(self.parts[0].slice_id)

    @property
    def nb_elements(self) -> int:
        """Of all parts."""
        return sum(part.nb_elements for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def acked_bytes(self) -> int:
        """Acknowledged so far, by all."""
        return sum(part.acked_bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        """From the post of the first to the end of the last."""
        ends: list[float] = [part.posted_at + part.seconds for part in self.parts]
        return max(ends) - self.posted_at

    @property
    def connecting(self) -> float | None:
        """Seconds from the post until the first receiver had joined; None before that."""
        joined: list[float] = [part.posted_at + part.connecting for part in self.parts if part.connecting is not None]
        return max(min(joined) - self.posted_at, 0.0) if joined else None

    @property
    def waited(self) -> float | None:
        """Seconds from the post to the first grant; None when none was needed."""
        waits: list[float] = [part.posted_at + part.waited for part in self.parts if part.waited is not None]
        return min(waits) - self.posted_at if waits else None

    @property
    def frames(self) -> tuple[int, int]:
        """Frames sent, and how many of them were retransmissions."""
        frames = [part.frames for part in self.parts]
        return sum(sent for sent, _ in frames), sum(again for _, again in frames)

    def port_frames(self) -> list[tuple[int, int, int]]:
        """Frames and bytes by index of the port."""
        ports: dict[int, tuple[int, int]] = {}
        for part in self.parts:
            for index, frames, nbytes in part.port_frames():
                before = ports.get(index, (0, 0))
                ports[index] = (before[0] + frames, before[1] + nbytes)
        return [(index, *counts) for index, counts in sorted(ports.items())]

    @property
    def delivered(self) -> bool | None:
        """True if all receivers hold their parts, False if one does not, None where that cannot be known."""
        known = [part.delivered for part in self.parts]
        return False if False in known else None if None in known else True

    def finish(self) -> None:
        """Release the buffers. Only once it is done."""
        for part in self.parts:
            part.finish()

    def cancel(self) -> None:
        """Give up the parts that have not ended; returns once all have."""
        for part in self.parts:
            part.cancel()


def whole_of(parts: list[Any]) -> Any:
    """The slice that these posted parts make."""
    return parts[0] if len(parts) == 1 else FanOut(parts)
