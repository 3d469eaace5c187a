"""The form of an element: how its bytes are read, and how a manifest carries that."""

from __future__ import annotations

import ast
import warnings
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

__all__ = ["MAX_AXES", "Form", "described_dtype", "form_of_bytes"]

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
        text = encoded.decode()
        order, rest = text[:1], text[1:]
        end = rest.index("]") + 1
        shape = tuple(int(n) for n in ast.literal_eval(rest[:end]))
        dtype = np.lib.format.descr_to_dtype(ast.literal_eval(rest[end:]))
        if order not in ("C", "F") or dtype.hasobject or any(n < 0 for n in shape) or len(shape) > MAX_AXES:
            raise ValueError(f"element form {text!r} is not one that can be sent")
        return Form(dtype, shape, order)


@lru_cache(maxsize=1024)
def described_dtype(dtype: np.dtype[Any]) -> Any:
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
    return f"{form.order}{list(form.shape)}{described_dtype(form.dtype)!r}".encode()


@lru_cache(maxsize=1024)
def form_of_bytes(nbytes: int) -> Form:
    """The form of plain bytes: uint8, one axis."""
    return Form(np.dtype(np.uint8), (nbytes,))
