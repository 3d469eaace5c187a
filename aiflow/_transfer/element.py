"""Elements of a received slice, and what a slice and its shards have in common as sequences of them."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NoReturn, Protocol, SupportsIndex, overload

import numpy as np

from aiflow._dp_incoming import Exporter
from aiflow._transfer.filemarks import FileMark
from aiflow._transfer.manifest import Received, Run, Span, streams_of
from aiflow.errors import ConfigError, not_copied

__all__ = ["Element", "ElementSequence", "Holder"]

NAMES_SHOWN = 10
"""Streams that an error lists."""


class Holder(Protocol):
    """The time slice that elements belong to."""

    def _held(self) -> Any:
        """The data plane's slice; ConfigError once it is released."""


class Element(Exporter, Received):
    """One element of a time slice: an image, a video frame, a tensor.

    Its memory belongs to the slice. Arrays and views taken out keep that memory alive, also after the slice was
    released and the Receiver closed. While one is held, the whole slice counts against the Receiver's ``memory``.

    The first element of a batch is aligned to a multiple of 64 bytes. The others follow without a gap, so their arrays
    are aligned for their dtype only: copy them for a library that needs more.

    Elements are equal if they are the same element of the same slice. An Element cannot be pickled or copied: pass on
    its `array`.

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

    def __init__(self, time_slice: Holder, run: Run, number: int) -> None:
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
        """Its file mark, if ``aiflow send`` has sent it; None otherwise."""
        return self._run.mark

    @property
    def latency_ns(self) -> int:
        """Nanoseconds from sending to arrival of its slowest frame.

        Between hosts it is as exact as their clocks. 0 where they differ by more than an hour, or the frame seems to
        have arrived before it was sent.
        """
        latency: int = self._slice._held().latency_ns(self.number)
        return latency

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """One contiguous ndarray of `dtype` and `shape`, writable.

        No copy. With ``assemble=False`` each call gathers the segments into a new array.

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
        """With ``assemble=False``: the payloads of the received mbufs, as read-only uint8 arrays, one a frame.

        In order, without a copy. Each array keeps the slice's mbufs out of their pool.

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
        """Return a copy of the element's bytes, in memory order."""
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

    def _repr_html_(self) -> str:
        from aiflow._html import views  # only notebooks need it

        return views.of_element(self)


def _shaped(buffer: Any, run: Run) -> np.ndarray[Any, Any]:
    form = run.form
    if run.nbytes == 0:
        return np.empty(form.shape, form.dtype, order="F" if form.order == "F" else "C")
    flat = np.frombuffer(buffer, form.dtype)
    if len(form.shape) == 1:
        return flat
    return flat.reshape(form.shape, order="F" if form.order == "F" else "C")


class ElementSequence:
    """Elements of one slice, as spans of its runs: the base of slices and shards."""

    _spans: Sequence[Span]
    _length: int
    _streams: dict[str, list[Span]] | None = None
    _places: list[int] | None = None  # of each span's first element

    def _whole(self) -> Holder:
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
        """Return all elements of the stream `name`, in order; KeyError if there is none."""
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
        """Return the stream's only element, the element at a place, or the elements at a slice of places.

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
        """Return one array a stream, with a first axis over its elements; no Python object for each element.

        Returns
        -------
        dict of str to ndarray
            Where a stream's elements follow each other in memory, as those of `Sender.send_batch` do, the array is a
            writable view of them; else a copy.

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
