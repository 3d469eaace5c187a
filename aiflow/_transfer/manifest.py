"""Describes elements, and parses the manifest of a slice, which lists them run-length coded.

`aiflow._encode` writes manifests; the layout is in include/aiflow/wire/manifest.h.
"""

from __future__ import annotations

import ast
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from aiflow._transfer.filemarks import ELEMENT, FileMark, Marked
from aiflow.errors import AiflowError, ConfigError

__all__ = [
    "Form",
    "Piece",
    "Received",
    "Run",
    "Span",
    "as_bytes",
    "checked_stream",
    "describe",
    "described",
    "form_of_bytes",
    "named",
    "parse",
    "pieces",
    "spans_of",
    "streams_of",
]

_HEADER = struct.Struct(">BBHIIQ")
_RUN = struct.Struct(">IQIBBHHH")
MAX_STREAM_BYTES = 4096
REMEMBERED_BYTES = 1024
"""Manifests up to this size are parsed once for many slices."""
MAX_AXES = 32  # numpy 1's; numpy 2 has 64


class Form(NamedTuple):
    """How to read the bytes of an element.

    Attributes
    ----------
    dtype : numpy.dtype
    shape : tuple of int
    order : str
        "C", or "F" for Fortran order.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str = "C"

    @property
    def nbytes(self) -> int:
        """Bytes of one element of this form."""
        return self.dtype.itemsize * prod(self.shape)

    def encode(self) -> bytes:
        """As a manifest carries it."""
        return _encode_form(self)

    @staticmethod
    def decode(encoded: bytes) -> Form:
        """Decode what `encode` makes. The bytes come from a peer and are checked."""
        return _decode_form(encoded)


@lru_cache(maxsize=1024)
def _descr_of(dtype: np.dtype[Any]) -> Any:
    """A dtype as a manifest describes it; TypeError where a receiver could not read back the same dtype."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a dtype's metadata stays with the sender
            descr = np.lib.format.dtype_to_descr(dtype)
        same = np.lib.format.descr_to_dtype(descr) == dtype
    except (TypeError, ValueError):
        same = False
    if not same:
        plain = dtype.names is None and dtype.itemsize in (1, 2, 4, 8)
        view = f"np.uint{8 * dtype.itemsize}" if plain else f"'V{dtype.itemsize}'"
        raise TypeError(
            f"dtype {dtype} cannot be described to a receiver: it is not made of numpy's own types, or its fields "
            f"overlap or are out of order. Send array.view({view}), and view it as its dtype there"
        )
    return descr


@lru_cache(maxsize=4096)
def _encode_form(form: Form) -> bytes:
    return f"{form.order}{list(form.shape)}{_descr_of(form.dtype)!r}".encode()


@lru_cache(maxsize=4096)
def _decode_form(encoded: bytes) -> Form:
    text = encoded.decode()
    order, rest = text[:1], text[1:]
    end = rest.index("]") + 1
    shape = tuple(int(n) for n in ast.literal_eval(rest[:end]))
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(rest[end:]))
    if order not in ("C", "F") or dtype.hasobject or any(n < 0 for n in shape) or len(shape) > MAX_AXES:
        raise ValueError(f"element form {text!r} is not one that can be sent")
    return Form(dtype, shape, order)


def _form_of(encoded: bytes) -> Form:
    """A form from the wire. The cache is bounded, so that a hostile peer cannot fill the memory."""
    if len(encoded) > REMEMBERED_BYTES:
        return _decode_form.__wrapped__(encoded)
    return _decode_form(encoded)


@lru_cache(maxsize=1024)
def form_of_bytes(nbytes: int) -> Form:
    """The form of plain bytes: uint8, one axis."""
    return Form(np.dtype(np.uint8), (nbytes,))


class Received:
    """An element of a received slice. Sending it sends its array, under the stream that it came with."""

    __slots__ = ()

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """Its bytes, as sent."""
        raise NotImplementedError

    @property
    def mark(self) -> FileMark | None:
        """Its file mark, if it is a file."""
        raise NotImplementedError

    @property
    def key(self) -> str | int:
        """Its stream as a manifest has it: a name, or a number where none was given."""
        raise NotImplementedError


def as_bytes(element: Any, what: str) -> tuple[Any, Form]:
    """A contiguous byte buffer of an element, and its form. Only memory that is not in one piece is copied.

    Parameters
    ----------
    element : buffer
        bytes, memoryview, numpy array, anything with the buffer protocol, or a DLPack tensor on the CPU.
    what : str
        Its name in errors.

    Raises
    ------
    TypeError
        For a str, the object dtype, a dtype that only its own library knows, or a tensor outside the CPU's memory.
    """
    if isinstance(element, Marked):
        element = element.buffer
    if isinstance(element, (np.ndarray, np.generic)):  # np.bytes_ and np.str_ are Python's bytes and str, too
        if type(element) is not np.ndarray and isinstance(element, np.ma.MaskedArray):  # it takes 20 ms to import
            raise TypeError(f"{what} is a masked array: send its data and its mask as two elements, or .filled()")
        array = np.asarray(element)  # a plain one: no method of a subclass runs
    elif isinstance(element, bytes):
        return element, form_of_bytes(len(element))
    elif isinstance(element, bytearray):
        return memoryview(element), form_of_bytes(len(element))  # it keeps its size while this is held
    elif isinstance(element, str):
        raise TypeError(f"{what} is a str: encode it to bytes first")
    else:
        array = _array_of(element, what)
    if array.ndim > MAX_AXES:
        raise TypeError(f"{what} has {array.ndim} axes: {MAX_AXES} is the most that can be sent")
    if array.dtype.hasobject:
        raise TypeError(f"{what} has dtype {array.dtype}: Python objects cannot be sent, only plain numbers and bytes")
    _descr_of(array.dtype)  # before anything of the slice is posted
    if array.flags.c_contiguous:
        order = "C"
    elif array.flags.f_contiguous:
        order, array = "F", array.T
    else:
        order, array = "C", np.ascontiguousarray(array)
    form = Form(array.dtype, array.shape[::-1] if order == "F" else array.shape, order)
    if array.nbytes == 0:
        return b"", form
    return array.reshape(-1).view(np.uint8), form


def _array_of(element: Any, what: str) -> np.ndarray[Any, Any]:
    if isinstance(element, Received):
        return element.array
    kind = type(element).__name__
    try:
        view = memoryview(element)
    except AiflowError:
        raise
    except TypeError:  # it has no buffer protocol
        return _tensor_of(element, what, kind)
    except (ValueError, BufferError) as error:  # a memoryview that was released, an mmap that was closed, …
        if hasattr(element, "__dlpack__"):
            return _tensor_of(element, what, kind)
        raise TypeError(f"{what} ({kind}) cannot be read: {error}. Send it before it is given up") from None
    try:
        return np.asarray(view)
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(
            f"{what} ({kind}) has a buffer that numpy cannot read ({error}): send memoryview(…).cast('B')"
        ) from None


def _tensor_of(element: Any, what: str, kind: str) -> np.ndarray[Any, Any]:
    if hasattr(element, "__dlpack__"):
        try:
            return np.from_dlpack(element)
        except (RuntimeError, TypeError, ValueError, BufferError) as error:
            raise TypeError(f"{what} ({kind}) cannot be read through DLPack ({error}): {_remedy(element)}") from None
    if hasattr(element, "__array__") or hasattr(element, "__array_interface__"):
        raise TypeError(f"{what} is a {kind}, which numpy can make an array of: send np.asarray(…) of it")
    raise TypeError(
        f"{what} is a {kind}, which has neither the buffer protocol nor DLPack: send bytes, a numpy array or a CPU "
        "tensor"
    )


def _remedy(tensor: Any) -> str:
    """What to do with a tensor that numpy does not take."""
    if getattr(tensor, "requires_grad", False) is True:
        return "send tensor.detach()"
    try:
        kind = tensor.__dlpack_device__()[0]
    except Exception:  # a library may raise anything here; its first error has said why it cannot be read
        kind = _CPU
    return "view it as a dtype that numpy has" if kind == _CPU else "copy it to the CPU"


_CPU = 1  # kDLCPU


def pieces(elements: Any) -> Iterator[tuple[str | int, Any]]:
    """(stream, buffer) of each element that `send` takes; without a name, the stream is its index."""
    if isinstance(elements, Mapping):
        for stream, element in elements.items():
            yield checked_stream(stream), element
        return
    if isinstance(elements, (str, memoryview)) or _is_buffer(elements):
        raise TypeError("send takes a mapping or an iterable of elements: write send([buffer]) for a single one")
    if not isinstance(elements, Iterable):
        raise TypeError(f"send takes a mapping or an iterable of elements, not {type(elements).__name__}")
    for index, item in enumerate(elements):
        if isinstance(item, tuple) and len(item) == 2:
            yield checked_stream(item[0]), item[1]
        elif isinstance(item, Marked):
            yield checked_stream(item.stream), item
        elif isinstance(item, Received):
            yield item.key, item.array if item.mark is None else Marked(str(item.key), item.array, item.mark)
        else:
            yield index, item


def _is_buffer(elements: Any) -> bool:
    """Whether this is a single element, although it may be iterable, as the bytes of an mmap are."""
    if any(hasattr(elements, name) for name in ("__array__", "__array_interface__", "__dlpack__")):
        return True
    try:
        memoryview(elements).release()
    except (TypeError, ValueError, BufferError):
        return False
    return True


def checked_stream(stream: Any) -> str:
    """Return the name of a stream if it can be sent; TypeError otherwise."""
    if not isinstance(stream, str):
        raise TypeError(f"a stream's name is a str, not {type(stream).__name__}: {stream!r}")
    try:
        stream.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise TypeError(f"the stream name {stream!r} is not text that UTF-8 can carry") from None
    return stream


def named(stream: str | int | None, form: Form) -> tuple[bytes, bytes]:
    """A stream's name and an element's form as a manifest carries them.

    Raises
    ------
    ConfigError, TypeError
        If one of them is longer than that allows, or the dtype cannot be described.
    """
    name = stream.encode("utf-8", "surrogateescape") if isinstance(stream, str) else b""
    if len(name) > MAX_STREAM_BYTES:
        raise ConfigError(f"a stream's name of {len(name)} bytes is too long: {MAX_STREAM_BYTES} is the most")
    encoded = form.encode()
    if len(encoded) > 0xFFFF:
        raise ConfigError(f"the dtype {form.dtype} takes {len(encoded)} bytes to describe: 65535 is the most")
    return name, encoded


class Piece(NamedTuple):
    """An element to be sent: its stream (or its number, where it has no name), its bytes, and their form."""

    stream: str | int
    buffer: Any
    form: Form
    mark: FileMark | None = None


def describe(stream: str, element: Any) -> Piece:
    """Describe one element; TypeError or ConfigError if a manifest cannot carry it."""
    piece = Piece(checked_stream(stream), *as_bytes(element, f"element {stream!r}"))
    named(piece.stream, piece.form)
    return piece


def described(elements: Any) -> Iterator[Piece]:
    """Describe each element that `send` takes."""
    for stream, element in pieces(elements):
        mark = element.mark if isinstance(element, Marked) else None
        yield Piece(stream, *as_bytes(element, f"element {stream!r}"), mark)


class Run(NamedTuple):
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
    form : Form
    mark : FileMark or None
        Set for elements that are files.
    """

    start: int
    nb_elements: int
    stream: str | None
    first: int
    nbytes: int
    form: Form
    mark: FileMark | None = None

    def key_of(self, number: int) -> str | int:
        """The stream of element `number`, or its number where it has no name."""
        return self.stream if self.stream is not None else self.first + number - self.start

    def stream_of(self, number: int) -> str:
        """The stream of element `number`."""
        return str(self.key_of(number))


def parse(manifest: bytes) -> list[Run]:
    """The runs of a received manifest (its lengths were checked when it arrived)."""
    _, _, _, nb_runs, _, _ = _HEADER.unpack_from(manifest)
    at, start, runs = _HEADER.size, 0, []
    for _ in range(nb_runs):
        count, nbytes, first, numbered, kind, stream_len, form_len, marks_len = _RUN.unpack_from(manifest, at)
        at += _RUN.size
        stream = None if numbered else manifest[at : at + stream_len].decode("utf-8", "surrogateescape")
        at += stream_len
        try:
            form = _form_of(manifest[at : at + form_len])
        except Exception:  # a peer may have written anything here: fall back to plain bytes
            form = form_of_bytes(nbytes)
        if form.nbytes != nbytes:
            form = form_of_bytes(nbytes)
        at += form_len
        mark = None if kind == ELEMENT else FileMark.decode(kind, manifest[at : at + marks_len])
        at += marks_len
        if count:  # a run of none names a stream that has no element
            runs.append(Run(start, count, stream, first, nbytes, form, mark))
        start += count
    return runs


class Span(NamedTuple):
    """Elements `start` … `start` + `nb_elements` - 1, all of one run."""

    run: Run
    start: int
    nb_elements: int


def spans_of(manifest: bytes) -> Sequence[Span]:
    """The runs of a received manifest, each as a span."""
    if len(manifest) > REMEMBERED_BYTES:
        return [Span(run, run.start, run.nb_elements) for run in parse(manifest)]
    return _remembered_spans(manifest)


@lru_cache(maxsize=256)
def _remembered_spans(manifest: bytes) -> tuple[Span, ...]:
    """Small slices often have the same manifest as the one before."""
    return tuple(Span(run, run.start, run.nb_elements) for run in parse(manifest))


def streams_of(spans: Sequence[Span]) -> dict[str, list[Span]]:
    """The elements of each stream, in order."""
    streams: dict[str, list[Span]] = {}
    for span in spans:
        if span.run.stream is not None:
            streams.setdefault(span.run.stream, []).append(span)
        else:
            for number in range(span.start, span.start + span.nb_elements):
                streams.setdefault(span.run.stream_of(number), []).append(Span(span.run, number, 1))
    return streams
