"""What a Receiver hands over: time slices, and the elements in them."""

from __future__ import annotations

import operator
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NoReturn, SupportsIndex, overload

import numpy as np

from aiflow._dp_incoming import Exporter
from aiflow._policy.partition import even
from aiflow._transfer.filemarks import FileMark
from aiflow._transfer.manifest import Received, Run, Span, spans_of, streams_of
from aiflow._transfer.verdicts import MOST_BYTES, told
from aiflow.errors import ConfigError, EalError, not_copied

__all__ = ["Element", "Shard", "TimeSlice"]


NAMES_SHOWN = 10
"""Streams that an error lists."""


class Element(Exporter, Received):
    """One element of a time slice: an image, a video frame, a tensor.

    Its memory belongs to the slice. Arrays and views taken out keep that memory alive, also after the slice was
    released and the Receiver closed; while any is held, the whole slice counts against the Receiver's ``memory``.
    The first of several like elements lies at a multiple of 64 bytes, and the others follow without a gap, so their
    arrays are aligned for their dtype only. Copy what a library wants aligned to more.

    Two are equal that are the same element of the same slice. To another process send `array`: an Element itself
    cannot be pickled or copied.

    Attributes
    ----------
    stream : str
        The stream it belongs to, as the sender named it.
    number : int
        Its place in the slice, from 0.
    nbytes : int
        Size in bytes.
    dtype : numpy.dtype
    shape : tuple of int
        As sent.
    """

    __slots__ = ("_run", "_slice", "number")

    def __init__(self, time_slice: TimeSlice, run: Run, number: int) -> None:
        self._slice = time_slice
        self._run = run
        self.number = number

    @property
    def stream(self) -> str:
        """The stream it belongs to."""
        return self._run.stream_of(self.number)

    @property
    def key(self) -> str | int:
        """Its stream, or the stream's number where the sender named none."""
        return self._run.key_of(self.number)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._run.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """As sent; uint8 for plain bytes."""
        return self._run.form.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As sent; (nbytes,) for plain bytes."""
        return self._run.form.shape

    @property
    def mark(self) -> FileMark | None:
        """What it is on a disk, of an element that ``aiflow send`` has sent; None for all others."""
        return self._run.mark

    @property
    def latency_ns(self) -> int:
        """Nanoseconds from sending to arrival of its slowest frame.

        Between hosts it is as good as their clocks agree; 0 where they disagree by more than an hour or the frame
        seems to have arrived before it was sent.
        """
        latency: int = self._slice._held().latency_ns(self.number)
        return latency

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """One contiguous ndarray of `dtype` and `shape`, yours to write.

        No copy; with ``assemble=False`` the segments are gathered into a fresh array, at each call.

        Raises
        ------
        ConfigError
            If the slice was released.
        """
        incoming = self._slice._held()
        if incoming.assembled:
            return _shaped(incoming.view(self.number), self._run)
        gathered = np.empty(self.nbytes, np.uint8)
        at = 0
        for segment in self.segments:
            gathered[at : at + segment.nbytes] = segment
            at += segment.nbytes
        return _shaped(gathered, self._run)

    @property
    def segments(self) -> list[np.ndarray[Any, Any]]:
        """With ``assemble=False``: read-only uint8 arrays, one a frame, that ARE the received mbufs' payloads.

        In order, no copy. Each keeps the slice's mbufs out of their pool.

        Raises
        ------
        ConfigError
            If the Receiver assembles its elements (use `array`), or the slice was released.
        """
        incoming = self._slice._held()
        if incoming.assembled:
            raise ConfigError("segments are there with Receiver(assemble=False) only: use element.array")
        return [np.frombuffer(view, np.uint8) for view in incoming.segments(self.number) if view.nbytes]

    def tobytes(self) -> bytes:
        """A copy of the element's bytes, in the memory's order."""
        return self.array.tobytes(order="A")

    def __bytes__(self) -> bytes:
        return self.tobytes()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.array
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"an element of dtype {array.dtype} cannot be had as {dtype} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an element of no axes has no length")
        return self.shape[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Element):
            return NotImplemented
        return self._slice is other._slice and self.number == other.number

    def __hash__(self) -> int:
        return hash((id(self._slice), self.number))

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "take its array or its tobytes()")

    def __repr__(self) -> str:
        return f"<Element {self.number} stream={self.stream!r} {self.dtype}{list(self.shape)} {self.nbytes} bytes>"


def _shaped(buffer: Any, run: Run) -> np.ndarray[Any, Any]:
    form = run.form
    if run.nbytes == 0:
        return np.empty(form.shape, form.dtype, order="F" if form.order == "F" else "C")
    flat = np.frombuffer(buffer, form.dtype)
    if len(form.shape) == 1:
        return flat
    return flat.reshape(form.shape, order="F" if form.order == "F" else "C")


class _Elements:
    """Elements of one slice, as runs of them: what a slice and its shards have in common."""

    _spans: Sequence[Span]
    _length: int
    _streams: dict[str, list[Span]] | None = None
    _places: list[int] | None = None  # of each span's first element

    def _whole(self) -> TimeSlice:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Element]:
        time_slice = self._whole()
        for run, start, count in self._spans:
            for number in range(start, start + count):
                yield Element(time_slice, run, number)

    @property
    def streams(self) -> list[str]:
        """Names of its streams, in order of their first element."""
        return list(self._by_stream())

    def _by_stream(self) -> dict[str, list[Span]]:
        if self._streams is None:
            self._streams = streams_of(self._spans)
        return self._streams

    def _named(self, name: str) -> list[Span]:
        streams = self._by_stream()
        if name in streams:
            return streams[name]
        names = ", ".join(map(repr, [*streams][:NAMES_SHOWN])) or "none"
        more = f" and {len(streams) - NAMES_SHOWN} more" if len(streams) > NAMES_SHOWN else ""
        raise KeyError(f"there is no stream {name!r} here. There is {names}{more}")

    def stream(self, name: str) -> list[Element]:
        """All elements of the stream `name`, in order; KeyError if there is none."""
        time_slice = self._whole()
        return [
            Element(time_slice, run, number)
            for run, start, count in self._named(name)
            for number in range(start, start + count)
        ]

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> Element: ...
    @overload
    def __getitem__(self, key: slice) -> list[Element]: ...
    def __getitem__(self, key: str | SupportsIndex | slice) -> Element | list[Element]:
        """The stream's only element, the element at a place, or a list of those at a slice of places.

        Raises
        ------
        KeyError
            If there is no such stream, or it has several elements (then `stream` lists them).
        IndexError
            If there is no such place.
        TypeError
            For any other key.
        """
        if isinstance(key, str):
            spans = self._named(key)
            if len(spans) != 1 or spans[0].nb_elements != 1:
                raise KeyError(f"stream {key!r} has several elements: use stream({key!r})")
            return Element(self._whole(), spans[0].run, spans[0].start)
        if isinstance(key, slice):
            return [self._at(place) for place in range(*key.indices(self._length))]
        try:
            index = operator.index(key)
        except TypeError:
            raise TypeError(
                "elements are found by a stream's name, a place or a slice of places, "
                f"not by {type(key).__name__}: {key!r:.80}"
            ) from None
        place = index + self._length if index < 0 else index
        if not 0 <= place < self._length:
            raise IndexError(f"there is no element {index}: there are {self._length}")
        return self._at(place)

    def _at(self, place: int) -> Element:
        if self._places is None:
            self._places = list(accumulate((span.nb_elements for span in self._spans), initial=0))
        at = bisect_right(self._places, place) - 1
        return Element(self._whole(), self._spans[at].run, self._spans[at].start + place - self._places[at])

    def __contains__(self, what: object) -> bool:
        """True for the name of a stream, and for an element of these."""
        if isinstance(what, Element):
            return what._slice is self._whole() and any(
                span.start <= what.number < span.start + span.nb_elements for span in self._spans
            )
        return isinstance(what, str) and what in self._by_stream()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "take its as_arrays(), or the array of each element")

    def as_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """One array a stream, with a first axis over the stream's elements; no Python object for each element.

        Returns
        -------
        dict of str to ndarray
            Where a stream's elements follow each other in memory (what `Sender.send_batch` sends) the array is a view
            of them, yours to write; else a copy.

        Raises
        ------
        ConfigError
            If the elements of a stream differ in dtype or shape.
        """
        arrays = {}
        for name, spans in self._by_stream().items():
            if len({span.run.form for span in spans}) > 1:
                raise ConfigError(f"stream {name!r} has elements of several dtypes or shapes: iterate over them")
            parts = [self._rows(*span) for span in spans]
            arrays[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return arrays

    def _rows(self, run: Run, start: int, count: int) -> np.ndarray[Any, Any]:
        time_slice = self._whole()
        incoming = time_slice._held()
        shape = (count, *run.form.shape)
        if run.nbytes == 0:
            return np.empty(shape, run.form.dtype)
        if not incoming.assembled or run.form.order == "F":
            return np.stack([Element(time_slice, run, number).array for number in range(start, start + count)])
        return np.frombuffer(incoming.view(start, count), np.uint8).view(run.form.dtype).reshape(shape)


class TimeSlice(_Elements):
    """All elements that a sender put into one time slice; whole, and checked against the sender's CRC32C.

    A sequence of `Element` in the sender's order, and a context manager that releases it at the end. `Sender.send`
    takes it, or its elements, as they are: each keeps its stream. It cannot be pickled or copied.

    Parameters
    ----------
    incoming : aiflow._dp_incoming.Incoming
        The data plane's slice.

    Attributes
    ----------
    slice_id : int
        Its number within the sender's session, from 1.
    sender : str
        The sender's name. Several may have the same.
    instance : int
        Which Sender it was: 48 random bits, the same through all its sessions.
    nbytes : int
        Bytes of all elements.
    seconds : float
        From its first frame's arrival to its last one's, the wait for memory included.
    """

    _failed: bool | None = None  # what was said of it; None: nothing yet

    def __init__(self, incoming: Any) -> None:
        self._incoming = incoming
        self.slice_id: int = incoming.slice_id
        self.sender: str = incoming.sender
        self.instance: int = incoming.instance
        self.nbytes: int = incoming.nbytes
        self.seconds: float = incoming.seconds
        self._length = incoming.nb_elements
        self._spans = spans_of(incoming.manifest)

    def _whole(self) -> TimeSlice:
        return self

    def _held(self) -> Any:
        if self._incoming is None:
            raise ConfigError(
                "this time slice was released: take its arrays before the next one is received, or keep the slice "
                "itself by not advancing the Receiver"
            )
        return self._incoming

    def shards(self, n: int) -> list[Shard]:
        """Split into `n` parts even by bytes, for `n` workers that run in step (SPMD).

        Parameters
        ----------
        n : int
            Parts, at least 1. Some are empty when there are fewer elements.

        Returns
        -------
        list of Shard
            Every element once, in each part in the slice's order. The largest part has at most 1.05 times the mean's
            bytes, or those of the largest element, whenever the elements allow it (`aiflow._policy.partition.even`
            says how it is sought). The same elements are split the same way in every process, so a worker may take its
            own part without asking the others. Elements of one size stay together, so the parts of a batch are views
            of it (`as_arrays`). Nothing is copied: the parts read the slice's memory, and end with its `release`.

        Raises
        ------
        ConfigError
            If `n` is less than 1.
        """
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise ConfigError(f"shards(n={n!r}): n is a number of parts, at least 1")
        sizes = np.repeat([span.run.nbytes for span in self._spans], [span.nb_elements for span in self._spans])
        parts = even(sizes, n)
        return [Shard(self, np.flatnonzero(parts == index), index, n) for index in range(n)]

    # ---- life ----

    def confirm(self) -> None:
        """With ``Receiver(confirm="release")``: tell the sender that the slice is where you want it.

        Only then does its `send` return, and report it delivered. More calls do nothing; with ``confirm="held"`` the
        sender has its word already. The slice stays yours until `release`.

        Raises
        ------
        ConfigError
            If the slice was failed or released, or the Receiver is closed.
        EalError
            In a process that was forked from the Receiver's.
        """
        self._judge(None)

    def fail(self, reasons: Mapping[str | int, str] | str) -> None:
        """With ``Receiver(confirm="release")``: tell the sender what could not be used, and why.

        Its `send` raises `DeliveryError` with these reasons. The elements that are not named are confirmed.

        Parameters
        ----------
        reasons : mapping or str
            Stream, or an element's number → why; a str is the reason for all of the slice.

        Raises
        ------
        KeyError
            For a stream or a number that the slice has not.
        ConfigError
            If the slice was confirmed or released, or with ``confirm="held"``: its sender has been told that it is
            delivered.
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
        """Pass the user's word on. What takes time is done: an interrupt leaves a slice without a word, which fails."""
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
        """Give the slice up; its memory goes back when no array taken out of it is left. Idempotent.

        With ``Receiver(confirm="release")`` it confirms the slice, unless `fail` was called.
        """
        incoming, self._incoming = self._incoming, None
        if incoming is not None and not self._failed:  # a fail() that was interrupted is none, and no confirmation
            incoming.confirm()

    def __enter__(self) -> TimeSlice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self._incoming is not None and self._incoming.awaited:
            self.fail(f"{type(error).__name__}: {error}")
        self.release()

    def __repr__(self) -> str:
        return f"<TimeSlice {self.slice_id} from {self.sender!r}: {self._length} elements, {self.nbytes} bytes>"


class Shard(_Elements):
    """One part of a time slice, as `TimeSlice.shards` makes them: a view, to be used like the slice.

    It holds the slice, and no memory of its own: with `TimeSlice.release`, or when the Receiver is advanced, its
    elements go as the slice's do. Arrays taken out stay valid.

    Attributes
    ----------
    index, nb_shards : int
        Which part of how many.
    slice_id : int
        Of the slice.
    sender : str
        Of the slice.
    nbytes : int
        Bytes of the elements in this part.
    """

    def __init__(self, time_slice: TimeSlice, numbers: np.ndarray[Any, Any], index: int, nb_shards: int) -> None:
        self._slice = time_slice
        self.index = index
        self.nb_shards = nb_shards
        self.slice_id = time_slice.slice_id
        self.sender = time_slice.sender
        self._length = len(numbers)
        self._spans = _spans_of(numbers, time_slice._spans)
        self.nbytes = sum(span.run.nbytes * span.nb_elements for span in self._spans)

    def _whole(self) -> TimeSlice:
        return self._slice

    def __repr__(self) -> str:
        return (
            f"<Shard {self.index} of {self.nb_shards}, slice {self.slice_id} from {self.sender!r}: "
            f"{self._length} elements, {self.nbytes} bytes>"
        )


def _spans_of(numbers: np.ndarray[Any, Any], spans: Sequence[Span]) -> list[Span]:
    """The elements of ascending `numbers`, as pieces of `spans`."""
    if not len(numbers):
        return []
    starts = np.array([span.start for span in spans])
    belongs = np.searchsorted(starts, numbers, side="right") - 1
    edges = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(belongs) != 0)) + 1
    firsts = np.concatenate([[0], edges])
    counts = np.diff(np.concatenate([firsts, [len(numbers)]]))
    return [
        Span(spans[belongs[first]].run, int(numbers[first]), int(count))
        for first, count in zip(firsts, counts, strict=True)
    ]
