"""Elements → the manifest of a slice and a buffer for each: the only encoder, a compiled loop over the elements.

`encode` takes what `Sender.send` takes, `encode_pieces` takes described elements (`manifest.Piece`), `encode_rows`
takes the rows of a batch. Bytes and C-contiguous arrays of plain numbers cost a few attribute look-ups each;
everything else goes through `manifest.as_bytes`. The layout is in include/aiflow/wire/manifest.h.
"""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

import numpy as np
from aiflow.errors import ConfigError
from aiflow._transfer.filemarks import ELEMENT, Marked
from aiflow._transfer._runs import Received
from aiflow._transfer.form import MAX_AXES, Form
from aiflow._transfer.manifest import MAX_STREAM_BYTES, as_bytes, checked_stream, named, pieces

cdef extern from *:
    """
    #include "aiflow/wire/manifest.h"
    /* A run's header in host order. */
    struct aiflow_run {
        uint64_t nbytes;
        uint32_t count, first;
        int numbered, kind;
        Py_ssize_t stream_len, form_len, marks_len;
    };
    static inline void aiflow_put_run(char *at, const struct aiflow_run *r)
    {
        struct af_run run = {.count = AF_BE32(r->count), .nbytes = AF_BE64(r->nbytes), .first = AF_BE32(r->first),
                             .numbered = (uint8_t)r->numbered, .kind = (uint8_t)r->kind,
                             .stream_len = AF_BE16((uint16_t)r->stream_len),
                             .form_len = AF_BE16((uint16_t)r->form_len),
                             .marks_len = AF_BE16((uint16_t)r->marks_len)};

        memcpy(at, &run, sizeof run);
    }
    static inline void aiflow_put_manifest(char *at, uint32_t nb_runs, uint32_t nb_elements, uint64_t nbytes)
    {
        struct af_manifest m = {.format = AF_MANIFEST_FORMAT, .payload_bytes = AF_BE16(1), .nb_runs = AF_BE32(nb_runs),
                                .nb_elements = AF_BE32(nb_elements), .nbytes = AF_BE64(nbytes)};

        memcpy(at, &m, sizeof m);
    }
    """
    enum:
        AF_RUN_HEADER
        AF_MANIFEST_HEADER
    struct aiflow_run:
        uint64_t nbytes
        uint32_t count, first
        int numbered, kind
        Py_ssize_t stream_len, form_len, marks_len
    void aiflow_put_run(char *at, const aiflow_run *run) noexcept
    void aiflow_put_manifest(char *at, uint32_t nb_runs, uint32_t nb_elements, uint64_t nbytes) noexcept

cdef object ndarray = np.ndarray
cdef object uint8 = np.dtype(np.uint8)
cdef str PLAIN = "biufc"  # kinds of dtype whose arrays have the buffer protocol as they are
cdef dict forms = {}       # dtype → {shape → (form as a manifest carries it, bytes of such an array)}


cdef tuple form_of(object dtype, tuple shape):
    """How a manifest carries the form of a plain array, and its bytes; None where `as_bytes` must judge."""
    cdef dict shapes = forms.get(dtype)
    cdef tuple found
    if shapes is None:
        if dtype.kind not in PLAIN:
            return None
        if len(forms) > 256:
            forms.clear()
        shapes = forms[dtype] = {}
    found = shapes.get(shape)
    if found is None:
        if len(shape) > MAX_AXES:
            return None
        if len(shapes) > 4096:
            shapes.clear()
        form = Form(dtype, shape)
        found = shapes[shape] = (form.encode(), form.nbytes)
    return found


cdef bytes name_of(object stream):
    """A stream's name as a manifest carries it."""
    cdef bytes name
    try:
        name = stream.encode()
    except UnicodeEncodeError:
        return named(checked_stream(stream), Form(uint8, ()))[0]
    if len(name) > MAX_STREAM_BYTES:
        named(stream, Form(uint8, ()))  # raises
    return name


cdef class _Runs:
    """The runs of one slice: elements of one stream and form that follow each other share a run."""

    cdef list encoded
    cdef list buffers
    cdef uint64_t nbytes
    cdef uint64_t nb_elements
    # the run that is open
    cdef object stream       # a str, or None where they are numbered
    cdef object dtype        # of its arrays, None for bytes and what `as_bytes` made
    cdef object shape
    cdef bytes form
    cdef bytes marks         # of a file's run: it is never joined with another
    cdef int kind
    cdef uint64_t count, first, size

    def __cinit__(self):
        self.marks = b""
        self.encoded = []
        self.buffers = []

    cdef int add(self, object stream, object element, uint64_t number) except -1:
        """Take one element; its stream is a str, or None for the number."""
        cdef object kind = type(element)
        cdef object dtype = None, shape
        cdef tuple known
        cdef uint64_t size
        cdef bytes form
        if kind is bytes:
            size = len(<bytes>element)
            if self.count and self.dtype is bytes and size == self.size and self._follows(stream, number):
                self._count_in(element)
                return 0
            known = form_of(uint8, (size,))
            self._open(stream, number, bytes, None, known[0], size)
            self._count_in(element)
            return 0
        if kind is ndarray and element.flags.c_contiguous:
            dtype = element.dtype
            shape = element.shape
            if self.count and dtype is self.dtype and shape == self.shape and self._follows(stream, number):
                self._count_in(element)
                return 0
            known = form_of(dtype, shape)
            if known is not None:
                self._open(stream, number, dtype, shape, known[0], known[1])
                self._count_in(element)
                return 0
        if kind is Marked:
            return self._add_file(element)
        if stream is None and isinstance(element, Received):
            key = element.key
            if element.mark is not None:
                return self._add_file(Marked(key, element.array, element.mark))
            if isinstance(key, str):
                return self.add(key, element.array, 0)
            return self.add(None, element.array, key)
        buffer, wide = as_bytes(element, f"element {number if stream is None else stream!r}")
        form = named(None, wide)[1]
        size = wide.nbytes
        self._open(stream, number, None, None, form, size)
        self._count_in(buffer)
        return 0

    cdef int _add_file(self, object marked) except -1:
        buffer, wide = as_bytes(marked.buffer, f"file {marked.stream!r}")
        return self._add_marked(checked_stream(marked.stream), buffer, wide, marked.mark)

    cdef int _add_marked(self, object stream, object buffer, object wide, object mark) except -1:
        """A file is a run of its own."""
        self.flush()
        self.kind, self.marks = mark.encode()
        self._open(stream, 0, None, None, named(None, wide)[1], wide.nbytes)
        self._count_in(buffer)
        self.flush()
        self.kind, self.marks = ELEMENT, b""
        self.dtype = None
        return 0

    cdef int add_piece(self, object piece) except -1:
        """Take one described element: its stream is a str, or its number."""
        stream, buffer, wide, mark = piece
        if mark is not None:
            return self._add_marked(stream, buffer, wide, mark)
        cdef bint is_named = isinstance(stream, str)
        self._open(stream if is_named else None, 0 if is_named else stream, None, None, named(None, wide)[1],
                   wide.nbytes)
        return self._count_in(buffer)

    cdef int add_rows(self, object stream, object row, uint64_t count) except -1:
        """Take `count` like elements without a buffer for each."""
        self._open(stream, 0, None, None, named(None, row)[1], row.nbytes)
        self.count = count
        self.nbytes = count * self.size
        self.nb_elements = count
        return 0

    cdef bint _follows(self, object stream, uint64_t number):
        if stream is None:
            return self.stream is None and number == self.first + self.count
        return stream is self.stream or stream == self.stream

    cdef int _count_in(self, object buffer) except -1:
        self.buffers.append(buffer)
        self.count += 1
        self.nbytes += self.size
        self.nb_elements += 1
        return 0

    cdef int _open(self, object stream, uint64_t number, object dtype, object shape, bytes form,
                   uint64_t size) except -1:
        """What follows is of this form. No new run where that is only another type of object."""
        self.dtype = dtype
        self.shape = shape
        if self.count and size == self.size and form == self.form and self._follows(stream, number):
            return 0
        self.flush()
        self.stream = stream
        self.first = number if stream is None else 0
        self.form = form
        self.size = size
        return 0

    cdef int flush(self) except -1:
        cdef bytes name, encoded
        cdef char *at
        cdef aiflow_run run
        if not self.count:
            return 0
        name = b"" if self.stream is None else name_of(self.stream)
        run.nbytes, run.count, run.first = self.size, <uint32_t>self.count, <uint32_t>self.first
        run.numbered, run.kind = self.stream is None, self.kind
        run.stream_len, run.form_len, run.marks_len = len(name), len(self.form), len(self.marks)
        encoded = PyBytes_FromStringAndSize(NULL, AF_RUN_HEADER + len(name) + len(self.form) + len(self.marks))
        at = PyBytes_AsString(encoded)
        aiflow_put_run(at, &run)
        at += AF_RUN_HEADER
        memcpy(at, PyBytes_AsString(name), len(name))
        memcpy(at + len(name), PyBytes_AsString(self.form), len(self.form))
        memcpy(at + len(name) + len(self.form), PyBytes_AsString(self.marks), len(self.marks))
        self.encoded.append(encoded)
        self.count = 0
        return 0

    cdef bytes manifest(self):
        self.flush()
        cdef bytes header = PyBytes_FromStringAndSize(NULL, AF_MANIFEST_HEADER)
        check_count(self.nb_elements)
        aiflow_put_manifest(PyBytes_AsString(header), <uint32_t>len(self.encoded), <uint32_t>self.nb_elements,
                            self.nbytes)
        if len(self.encoded) == 1:
            return header + <bytes>self.encoded[0]
        return header + b"".join(self.encoded)


cdef int check_count(object count) except -1:
    if count > 0xFFFFFFFF:
        raise ConfigError(f"{count} elements are more than a slice can number: send several slices")
    return 0


def encode(elements):
    """The manifest of the elements that `Sender.send` takes.

    Parameters
    ----------
    elements : mapping or iterable
        See `Sender.send`.

    Returns
    -------
    manifest : bytes
    buffers : list
        A contiguous buffer for each element, by the buffer protocol.
    nbytes : int
        Bytes of all elements.

    Raises
    ------
    TypeError, ConfigError
        For what cannot be sent.
    """
    cdef _Runs runs = _Runs.__new__(_Runs)
    cdef uint64_t number = 0
    if type(elements) is dict:
        for stream, element in (<dict>elements).items():
            runs.add(stream if type(stream) is str else checked_stream(stream), element, 0)
    elif type(elements) is list or type(elements) is tuple:
        for item in elements:
            if isinstance(item, tuple) and len(<tuple>item) == 2:
                stream, element = item
                runs.add(stream if type(stream) is str else checked_stream(stream), element, 0)
            else:
                runs.add(None, item, number)
            number += 1
    else:
        for stream, element in pieces(elements):
            if isinstance(stream, str):
                runs.add(stream, element, 0)
            else:
                runs.add(None, element, stream)
    return runs.manifest(), runs.buffers, runs.nbytes


def encode_pieces(described):
    """The manifest of described elements, such as one receiver's part of a slice.

    Parameters
    ----------
    described : iterable of aiflow._transfer.manifest.Piece

    Returns
    -------
    manifest, buffers, nbytes
        As for `encode`.

    Raises
    ------
    TypeError, ConfigError
        As `encode`.
    """
    cdef _Runs runs = _Runs.__new__(_Runs)
    for piece in described:
        runs.add_piece(piece)
    return runs.manifest(), runs.buffers, runs.nbytes


def encode_rows(stream, form, count):
    """The manifest of `count` like elements of one stream, with no Python object for each.

    Parameters
    ----------
    stream : str
    form : aiflow._transfer.manifest.Form
        Of one element.
    count : int

    Returns
    -------
    bytes

    Raises
    ------
    TypeError, ConfigError
        As `encode`.
    """
    cdef _Runs runs = _Runs.__new__(_Runs)
    check_count(count)
    if count:
        runs.add_rows(checked_stream(stream), form, count)
    return runs.manifest()
