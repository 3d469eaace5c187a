# cython: embedsignature=False
"""Elements of a received slice, and what a slice and its shards have in common as sequences of them.

Compiled, because a slice may have a million elements.
"""

import operator
from bisect import bisect_right
from itertools import accumulate

from cpython.buffer cimport PyBUF_FORMAT, PyObject_GetBuffer
from libc.stdint cimport uint64_t

import numpy as np
from aiflow._transfer._runs cimport Received, Run
from aiflow._transfer._runs import streams_of
from aiflow.errors import ConfigError, not_copied

NAMES_SHOWN = 10  # streams that an error lists
cdef object ndarray = np.ndarray


cdef class ElementSequence


cdef class Element(Received):
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

    cdef ElementSequence _slice
    cdef Run _run
    cdef readonly uint64_t number

    def __init__(self, ElementSequence time_slice not None, Run run not None, uint64_t number):
        self._slice = time_slice
        self._run = run
        self.number = number

    @property
    def stream(self):
        """The stream it belongs to."""
        return self._run.name_of(self.number)

    @property
    def key(self):
        """Its stream, or the stream's number where the sender named none."""
        return self._run.key_of(self.number)

    @property
    def nbytes(self):
        """Size in bytes."""
        return self._run.nbytes

    @property
    def dtype(self):
        """As sent; uint8 for plain bytes."""
        return self._run.dtype

    @property
    def shape(self):
        """As sent; (nbytes,) for plain bytes."""
        return self._run.shape

    @property
    def mark(self):
        """Its file mark, if ``aiflow send`` has sent it; None otherwise."""
        return self._run.mark

    @property
    def latency_ns(self):
        """Nanoseconds from sending to arrival of its slowest frame.

        Between hosts it is as exact as their clocks. 0 where they differ by more than an hour, or the frame seems to
        have arrived before it was sent.
        """
        return self._slice.held().latency_ns(self.number)

    @property
    def array(self):
        """One contiguous ndarray of `dtype` and `shape`, writable unless it is on loan.

        No copy. With ``assemble=False`` each call gathers the segments into a new array.

        Raises
        ------
        ConfigError
            If the slice was released.
        """
        return self._array()

    cdef object _array(self):
        cdef Run run = self._run
        incoming = self._slice.held()
        if run.nbytes == 0:
            return np.empty(run.shape, run.dtype, run.order)
        if incoming.assembled:
            return shaped(run, incoming.view(self.number))
        gathered = np.empty(run.nbytes, np.uint8)
        at = 0
        for segment in self.segments:
            gathered[at : at + segment.nbytes] = segment
            at += segment.nbytes
        return shaped(run, gathered)

    @property
    def segments(self):
        """With ``assemble=False``: the payloads of the received mbufs, as read-only uint8 arrays, one a frame.

        In order, without a copy. Each array keeps the slice's mbufs out of their pool.

        Raises
        ------
        ConfigError
            If the Receiver assembles its elements (use `array`), or the slice was released.
        """
        incoming = self._slice.held()
        if incoming.assembled:
            raise ConfigError("segments are there with Receiver(assemble=False) only: use element.array")
        return [np.frombuffer(view, np.uint8) for view in incoming.segments(self.number) if view.nbytes]

    def tobytes(self):
        """Return a copy of the element's bytes, in memory order."""
        return self._array().tobytes(order="A")

    def __bytes__(self):
        return self.tobytes()

    def __array__(self, dtype=None, copy=None):
        array = self._array()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"an element of dtype {array.dtype} cannot be had as {dtype} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        array = self._array()
        try:
            PyObject_GetBuffer(array, buffer, flags)
        except (ValueError, BufferError):
            # Dtypes without a buffer format (datetime64 …): their bytes for a file or a socket, and for numpy, which
            # asks for the format, a refusal as numpy's arrays give it: it takes __array__ then.
            if flags & PyBUF_FORMAT:
                raise
            PyObject_GetBuffer(array.reshape(-1, order="A").view("u1"), buffer, flags)

    def __dlpack__(self, **options):
        return self._array().__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)

    def __len__(self):
        if not self._run.shape:
            raise TypeError("an element of no axes has no length")
        return self._run.shape[0]

    def __eq__(self, other):
        if not isinstance(other, Element):
            return NotImplemented
        return self._slice is (<Element>other)._slice and self.number == (<Element>other).number

    def __hash__(self):
        return hash((id(self._slice), self.number))

    def __reduce_ex__(self, protocol):
        raise not_copied(self, "take its array or its tobytes()")

    def __repr__(self):
        return f"<Element {self.number} stream={self.stream!r} {self.dtype}{list(self.shape)} {self.nbytes} bytes>"

    def _repr_html_(self):
        from aiflow._html import views  # only notebooks need it

        return views.of_element(self)


cdef object shaped(Run run, object buffer):
    if run.order == "F":
        return ndarray(run.shape, run.dtype, buffer, 0, None, "F")
    return ndarray(run.shape, run.dtype, buffer)


cdef Element element_of(ElementSequence time_slice, Run run, uint64_t number):
    cdef Element element = Element.__new__(Element)
    element._slice = time_slice
    element._run = run
    element.number = number
    return element


cdef class ElementSequence:
    """Elements of one slice, as runs or parts of runs: the base of slices and shards."""

    cdef public object _incoming  # a time slice's, of the data plane; None once it is released
    cdef readonly list _runs
    cdef readonly uint64_t _length
    cdef readonly ElementSequence _part_of  # the time slice; None: it is one
    cdef dict _streams  # of `_by_stream`, made when asked for
    cdef list _places   # of each run's first element; likewise

    def _list(self, list runs not None, uint64_t length, ElementSequence part_of=None):
        """Take the elements of these runs."""
        self._runs = runs
        self._length = length
        self._part_of = part_of

    cdef ElementSequence whole(self):
        return self if self._part_of is None else self._part_of

    cdef object held(self):
        return self._held() if self._incoming is None else self._incoming

    def __len__(self):
        return self._length

    def __iter__(self):
        cdef ElementSequence time_slice = self.whole()
        cdef uint64_t number
        cdef Run run
        for run in self._runs:
            for number in range(run.start, run.start + run.nb_elements):
                yield element_of(time_slice, run, number)

    @property
    def streams(self):
        """Names of its streams, in order of their first element."""
        return list(self._by_stream())

    def _by_stream(self):
        if self._streams is None:
            self._streams = streams_of(self._runs)
        return self._streams

    cdef list _named(self, name):
        cdef dict streams = self._by_stream()
        if name in streams:
            return streams[name]
        names = ", ".join(map(repr, [*streams][:NAMES_SHOWN])) or "none"
        more = f" and {len(streams) - NAMES_SHOWN} more" if len(streams) > NAMES_SHOWN else ""
        raise KeyError(f"there is no stream {name!r} here. There is {names}{more}")

    def stream(self, name):
        """Return all elements of the stream `name`, in order; KeyError if there is none."""
        cdef ElementSequence time_slice = self.whole()
        cdef list found = []
        cdef uint64_t number
        cdef Run run
        for run in self._named(name):
            for number in range(run.start, run.start + run.nb_elements):
                found.append(element_of(time_slice, run, number))
        return found

    def __getitem__(self, key):
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
        cdef list runs
        cdef Run run
        if isinstance(key, str):
            runs = self._named(key)
            run = runs[0]
            if len(runs) != 1 or run.nb_elements != 1:
                raise KeyError(f"stream {key!r} has several elements: use stream({key!r})")
            return element_of(self.whole(), run, run.start)
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

    cdef Element _at(self, uint64_t place):
        cdef Run run
        if self._places is None:
            self._places = list(accumulate([(<Run?>run).nb_elements for run in self._runs], initial=0))
        at = bisect_right(self._places, place) - 1
        run = self._runs[at]
        return element_of(self.whole(), run, run.start + place - <uint64_t>self._places[at])

    def __contains__(self, what):
        """True for the name of a stream, and for an element of these."""
        cdef Run run
        if isinstance(what, Element):
            if (<Element>what)._slice is not self.whole():
                return False
            for run in self._runs:
                if run.start <= (<Element>what).number < run.start + run.nb_elements:
                    return True
            return False
        return isinstance(what, str) and what in self._by_stream()

    def __reduce_ex__(self, protocol):
        raise not_copied(self, "take its as_arrays(), or the array of each element")

    def as_arrays(self):
        """Return one array a stream, with a first axis over its elements; no Python object for each element.

        Returns
        -------
        dict of str to ndarray
            Where a stream's elements follow each other in memory, as those of `Sender.send_batch` do, the array is a
            view of them, writable unless they are on loan; else a copy.

        Raises
        ------
        ConfigError
            If the elements of a stream differ in dtype or shape.
        """
        cdef dict arrays = {}
        cdef list runs
        cdef ElementSequence time_slice = self.whole()
        for name, runs in self._by_stream().items():
            if len(runs) == 1:
                arrays[name] = rows_of(time_slice, runs[0])
                continue
            if len({(<Run?>run).form for run in runs}) > 1:
                raise ConfigError(f"stream {name!r} has elements of several dtypes or shapes: iterate over them")
            arrays[name] = np.concatenate([rows_of(time_slice, run) for run in runs])
        return arrays


cdef object rows_of(ElementSequence time_slice, Run run):
    """One array over the elements of a run."""
    cdef uint64_t number
    incoming = time_slice.held()
    shape = (run.nb_elements, *run.shape)
    if run.nbytes == 0:
        return np.empty(shape, run.dtype)
    if run.order == "F" or not incoming.is_one_piece(run.start, run.nb_elements):
        return np.stack([element_of(time_slice, run, number)._array()
                         for number in range(run.start, run.start + run.nb_elements)])
    return ndarray(shape, run.dtype, incoming.view(run.start, run.nb_elements))
