"""Describes elements for the manifest of a slice, which `aiflow._encode` writes and `aiflow._transfer._runs` reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from aiflow._transfer._runs import Received
from aiflow._transfer.filemarks import FileMark, Marked
from aiflow._transfer.form import MAX_AXES, Form, described_dtype, form_of_bytes
from aiflow.errors import AiflowError, ConfigError

__all__ = ["Piece", "as_bytes", "checked_stream", "describe", "described", "named", "pieces"]

MAX_STREAM_BYTES = 4096


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
    described_dtype(array.dtype)  # before anything of the slice is posted
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
