"""The manifest of a received slice → the runs of like elements that it lists.

The layout is in include/aiflow/wire/manifest.h; `aiflow._encode` writes manifests.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from aiflow._transfer.filemarks import ELEMENT, FileMark
from aiflow._transfer.form import Form, form_of_bytes

cdef extern from "aiflow/wire/manifest.h":
    struct af_manifest:
        uint32_t nb_runs
    struct af_run:
        uint32_t count, first
        uint64_t nbytes
        uint8_t numbered, kind
        uint32_t stream_len, form_len, marks_len
    struct af_run_cursor:
        af_run run
        const uint8_t *stream
        const uint8_t *form
        const uint8_t *marks
    bint af_manifest_read(const uint8_t *bytes, uint64_t len, af_manifest *out, af_run_cursor *runs) noexcept
    bint af_run_next(af_run_cursor *c) noexcept

cdef int NO_FILE = ELEMENT
cdef int REMEMBERED_BYTES = 1024, MOST_FORMS = 4096  # a peer cannot fill the memory
cdef dict forms = {}  # as manifests carry them → what `form_from` returns


cdef class Received:
    """An element of a received slice. Sending it sends its array, under the stream that it came with."""


cdef class Run:
    """Elements of one stream and form that follow each other in a slice.

    Attributes
    ----------
    start, nb_elements : int
        Numbers of the elements: start … start + nb_elements - 1.
    stream : str or None
        Their stream; None where the streams are numbers, from `first` on.
    first : int
    nbytes : int
        Bytes of each element.
    form : aiflow._transfer.form.Form
    mark : aiflow._transfer.filemarks.FileMark or None
        Set for elements that are files.
    """

    def __init__(self, start, nb_elements, stream, first, nbytes, form, mark=None):
        self.start = start
        self.nb_elements = nb_elements
        self.stream = stream
        self.first = first
        self.nbytes = nbytes
        self.form = form
        self.dtype, self.shape, self.order = form
        self.mark = mark

    cdef str name_of(self, uint64_t number):
        return self.stream if self.stream is not None else str(self.first + number - self.start)

    def key_of(self, uint64_t number):
        """The stream of element `number`, or its number where it has no name."""
        return self.stream if self.stream is not None else self.first + number - self.start

    def stream_of(self, uint64_t number):
        """The stream of element `number`."""
        return self.name_of(number)

    def part(self, uint64_t start, uint64_t nb_elements):
        """`nb_elements` of its elements, from number `start` on."""
        return part_of(self, start, nb_elements)


cdef Run part_of(Run whole, uint64_t start, uint64_t nb_elements):
    cdef Run run = Run.__new__(Run)
    run.start = start
    run.nb_elements = nb_elements
    run.stream = whole.stream
    run.first = <uint32_t>(whole.first + start - whole.start)
    run.nbytes = whole.nbytes
    run.form, run.dtype, run.shape, run.order = whole.form, whole.dtype, whole.shape, whole.order
    run.mark = whole.mark
    return run


cdef tuple form_from(bytes encoded, uint64_t nbytes):
    """(form, its dtype, shape, order, bytes of an element)."""
    cdef tuple known = forms.get(encoded)
    if known is None:
        try:
            form = Form.decode(encoded)
            known = form, *form, form.nbytes
        except Exception:  # a peer may have written anything here
            form = form_of_bytes(nbytes)
            known = form, *form, nbytes
        if len(encoded) <= REMEMBERED_BYTES and known[4] == nbytes:
            if len(forms) >= MOST_FORMS:
                forms.clear()
            forms[encoded] = known
    if known[4] != nbytes:  # plain bytes, then
        form = form_of_bytes(nbytes)
        return form, *form, nbytes
    return known


def runs_of(bytes manifest not None):
    """The runs of a received manifest.

    Parameters
    ----------
    manifest : bytes
        Its lengths were checked when it arrived.

    Returns
    -------
    list of Run
    """
    cdef const uint8_t *encoded = manifest
    cdef af_manifest header
    cdef af_run_cursor cursor
    cdef af_run *read = &cursor.run
    cdef uint64_t start = 0
    cdef list runs = []
    cdef Run run
    if not af_manifest_read(encoded, len(manifest), &header, &cursor):
        raise ValueError("a manifest is shorter than its header")
    for _ in range(header.nb_runs):
        if not af_run_next(&cursor):
            raise ValueError("a manifest is shorter than its runs")
        if not read.count:  # a run of none names a stream that has no element
            continue
        run = Run.__new__(Run)
        run.start = start
        run.nb_elements = read.count
        run.first = read.first
        run.nbytes = read.nbytes
        if not read.numbered:
            run.stream = (<char *>cursor.stream)[:read.stream_len].decode("utf-8", "surrogateescape")
        run.form, run.dtype, run.shape, run.order, _ = form_from(cursor.form[:read.form_len], read.nbytes)
        if read.kind != NO_FILE:
            run.mark = FileMark.decode(read.kind, <bytes>cursor.marks[:read.marks_len])
        runs.append(run)
        start += read.count
    return runs


def streams_of(runs):
    """The elements of each stream, in order.

    Parameters
    ----------
    runs : sequence of Run

    Returns
    -------
    dict of str to list of Run
    """
    cdef dict streams = {}
    cdef uint64_t number
    cdef Run run
    for run in runs:
        if run.stream is not None:
            _add(streams, run.stream, run)
            continue
        for number in range(run.start, run.start + run.nb_elements):
            _add(streams, run.name_of(number), part_of(run, number, 1))
    return streams


cdef int _add(dict streams, object name, Run run) except -1:
    cdef list found = streams.get(name)
    if found is None:
        streams[name] = [run]
    else:
        found.append(run)
    return 0
