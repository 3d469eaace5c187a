"""What a Receiver returns: time slices, and shards of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from aiflow._policy.partition import even
from aiflow._transfer._element import Element, ElementSequence
from aiflow._transfer._runs import Run, runs_of
from aiflow._transfer.verdicts import MOST_BYTES, told
from aiflow.errors import ConfigError, EalError, not_copied

__all__ = ["Element", "Shard", "Slices", "TimeSlice"]


class TimeSlice(ElementSequence):
    """All elements that a sender put into one time slice: complete, and checked against the sender's CRC32C.

    A sequence of `Element` in the sender's order, and a context manager that releases it at the end. `Sender.send`
    takes it, or its elements: each keeps its stream. It cannot be pickled or copied.

    Parameters
    ----------
    incoming : aiflow._dp_incoming.Incoming
        The data plane's slice.

    Attributes
    ----------
    slice_id : int
        Its number within the sender's session, from 1.
    sender : str
        The sender's name. Several senders may have the same.
    instance : int
        Number of the Sender: 48 random bits, the same in all its sessions.
    nbytes : int
        Bytes of all elements.
    seconds : float
        From the arrival of its first frame to that of its last, the wait for memory included.
    copied : int
        Bytes that `Receiver.recv` has copied into the arrays of its ``into``. The others came straight there.
    """

    _failed: bool | None = None  # the verdict on it; None: none yet

    def __init__(self, incoming: Any) -> None:
        self._incoming = incoming
        self.slice_id: int = incoming.slice_id
        self.sender: str = incoming.sender
        self.instance: int = incoming.instance
        self.nbytes: int = incoming.nbytes
        self.seconds: float = incoming.seconds
        self.copied: int = incoming.copied
        self._list(runs_of(incoming.manifest), incoming.nb_elements)

    def _held(self) -> Any:
        if self._incoming is None:
            raise ConfigError(
                "this time slice was released: take its arrays before the next one is received, or keep the slice "
                "itself by not advancing the Receiver"
            )
        return self._incoming

    def shards(self, n: int) -> list[Shard]:
        """Split into `n` parts even by bytes, for `n` workers in step (SPMD).

        Parameters
        ----------
        n : int
            Number of parts, at least 1. Some are empty when there are fewer elements.

        Returns
        -------
        list of Shard
            Every element once, in each part in the slice's order. The largest part has at most 1.05 times the mean
            bytes, or those of the largest element, whenever the elements allow it (`aiflow._policy.partition.even`).
            The same elements are split the same way in every process: each worker takes its own part without asking
            the others. Elements of one size stay together, so the parts of a batch are views of it (`as_arrays`).
            Nothing is copied: the parts read the slice's memory, and end with its `release`.

        Raises
        ------
        ConfigError
            If `n` is less than 1.
        """
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise ConfigError(f"shards(n={n!r}): n is a number of parts, at least 1")
        sizes = np.repeat([run.nbytes for run in self._runs], [run.nb_elements for run in self._runs])
        parts = even(sizes, n)
        return [Shard(self, np.flatnonzero(parts == index), index, n) for index in range(n)]

    # ---- life ----

    def confirm(self) -> None:
        """Confirm the slice to its sender, with ``Receiver(confirm="release")``.

        Only then does the sender's `send` return, and report it delivered. Further calls do nothing, and with
        ``confirm="held"`` the slice is confirmed already. The slice stays yours until `release`.

        Raises
        ------
        ConfigError
            If the slice was failed or released, or the Receiver is closed.
        EalError
            In a process that was forked from the Receiver's.
        """
        self._judge(None)

    def fail(self, reasons: Mapping[str | int, str] | str) -> None:
        """Report elements that could not be used to the sender, with ``Receiver(confirm="release")``.

        The sender's `send` raises `DeliveryError` with these reasons. All other elements are confirmed.

        Parameters
        ----------
        reasons : mapping or str
            Stream, or an element's number → why; a str is the reason for all of the slice.

        Raises
        ------
        KeyError
            For a stream or a number that is not in the slice.
        ConfigError
            If the slice was confirmed or released, or with ``confirm="held"``: its sender knows it as delivered.
        """
        incoming = self._held()
        if not incoming.confirms:
            raise ConfigError("its sender has been told that it is delivered: open the Receiver with confirm='release'")
        if not reasons:
            self.confirm()
        elif isinstance(reasons, str):
            failed = dict.fromkeys(range(self._length), reasons)
            self._judge(told(failed) if self._length else reasons.encode("utf-8", "backslashreplace")[:MOST_BYTES])
        else:
            failed = {number: why for key, why in reasons.items() for number in self._numbers(key)}
            self._judge(told(failed))

    def _numbers(self, key: str | int) -> list[int]:
        if isinstance(key, str):
            return [element.number for element in self.stream(key)]
        if not 0 <= key < self._length:
            raise KeyError(f"element {key}: the slice has {self._length}")
        return [key]

    def _judge(self, failed: bytes | None) -> None:
        """Pass the verdict on. An interrupt before this leaves the slice without one, which counts as a failure."""
        incoming = self._held()
        if not incoming.confirms or (self._failed is False and failed is None):
            return
        if self._failed is not None:
            raise ConfigError(f"this time slice was {'failed' if self._failed else 'confirmed'} already")
        if incoming.pid != os.getpid():
            raise EalError("this process was forked from the Receiver's: its slices are the parent's to confirm")
        if not incoming.is_heard:
            raise ConfigError("the Receiver is closed: its sender has been told that the slice was not confirmed")
        self._failed = failed is not None
        if failed is None:
            incoming.confirm()
        else:
            incoming.fail(failed)

    def release(self) -> None:
        """Release the slice; its memory is freed when no array taken out of it is left. Idempotent.

        With ``Receiver(confirm="release")`` it confirms the slice, unless `fail` was called.
        """
        incoming, self._incoming = self._incoming, None
        if incoming is not None and not self._failed:  # an interrupted fail() gave no verdict: no confirmation
            incoming.confirm()

    def __enter__(self) -> TimeSlice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self._incoming is not None and self._incoming.awaited:
            self.fail(f"{type(error).__name__}: {error}")
        self.release()

    def __repr__(self) -> str:
        return f"<TimeSlice {self.slice_id} from {self.sender!r}: {self._length} elements, {self.nbytes} bytes>"

    def _repr_html_(self) -> str:
        from aiflow._html import views  # only notebooks need it

        return views.of_slice(self, f"slice {self.slice_id} from {self.sender}")


class Slices:
    """One loop over a Receiver. Several may run at once: each releases its own slices only."""

    def __init__(self, receiver: Any) -> None:
        self._receiver = receiver
        self._current: TimeSlice | None = None

    def __iter__(self) -> Slices:
        return self

    def __next__(self) -> TimeSlice:
        self._release()
        current: TimeSlice = self._receiver._next()
        self._current = current
        return current

    def __aiter__(self) -> Slices:
        return self

    async def __anext__(self) -> TimeSlice:
        self._release()
        current: TimeSlice = await self._receiver._anext()
        self._current = current
        return current

    def _release(self) -> None:
        if self._current is not None:
            self._current.release()
            self._current = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "iterate over the Receiver")


class Shard(ElementSequence):
    """One part of a time slice, from `TimeSlice.shards`: a view with the interface of the slice.

    It has no memory of its own: its elements are released with the slice. Arrays taken out stay valid.

    Attributes
    ----------
    index, nb_shards : int
        Number of this part, and of all parts.
    slice_id : int
        Of the slice.
    sender : str
        Of the slice.
    nbytes : int
        Bytes of the elements in this part.
    """

    def __init__(self, time_slice: TimeSlice, numbers: np.ndarray[Any, Any], index: int, nb_shards: int) -> None:
        self.index = index
        self.nb_shards = nb_shards
        self.slice_id = time_slice.slice_id
        self.sender = time_slice.sender
        self._list(_parts_of(numbers, time_slice._runs), len(numbers), time_slice)
        self.nbytes = sum(run.nbytes * run.nb_elements for run in self._runs)

    def __repr__(self) -> str:
        return (
            f"<Shard {self.index} of {self.nb_shards}, slice {self.slice_id} from {self.sender!r}: "
            f"{self._length} elements, {self.nbytes} bytes>"
        )

    def _repr_html_(self) -> str:
        from aiflow._html import views  # only notebooks need it

        return views.of_slice(self, f"shard {self.index} of {self.nb_shards}, slice {self.slice_id} from {self.sender}")


def _parts_of(numbers: np.ndarray[Any, Any], runs: Sequence[Run]) -> list[Run]:
    """The elements of ascending `numbers`, as parts of `runs`."""
    if not len(numbers):
        return []
    starts = np.array([run.start for run in runs])
    belongs = np.searchsorted(starts, numbers, side="right") - 1
    edges = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(belongs) != 0)) + 1
    firsts = np.concatenate([[0], edges])
    counts = np.diff(np.concatenate([firsts, [len(numbers)]]))
    return [
        runs[belongs[first]].part(int(numbers[first]), int(count)) for first, count in zip(firsts, counts, strict=True)
    ]
