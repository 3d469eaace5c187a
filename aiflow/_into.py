"""Arrays that a slice is received into: `Receiver.recv` with ``into``, and `Receiver.empty`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from aiflow._dp_incoming import View
from aiflow._dp_into import MOST_STREAMS, Block, Offer
from aiflow._transfer._runs import Run, runs_of, streams_of
from aiflow._transfer.form import Form
from aiflow._transfer.manifest import checked_stream
from aiflow.errors import ConfigError

__all__ = ["Into", "empty_in"]


class Into:
    """The arrays of one call, offered to the loop while the call waits.

    Parameters
    ----------
    arrays : mapping
        Stream → array, or what has one.
    agent : aiflow._dp_rx.RxAgent
    assemble : bool
        Of the Receiver.
    """

    def __init__(self, arrays: Mapping[str, Any], agent: Any, assemble: bool) -> None:
        if not assemble:
            raise ConfigError("recv(into=…) needs a Receiver with assemble=True: segments stay in their mbufs")
        if not isinstance(arrays, Mapping):
            raise ConfigError(f"recv(into=…) takes a mapping of streams to arrays, not {type(arrays).__name__}")
        self._agent = agent
        self._arrays = {checked_stream(stream): _writable(stream, array) for stream, array in arrays.items()}
        self._check_apart()
        self._check_fences()
        self._offer = self._left() or self._new_offer()
        if self._offer is not None:
            self._offer.caller = weakref.ref(self)  # an interrupt may end the call without `end`
            self._offer.wanted = True

    @classmethod
    def of(cls, arrays: Mapping[str, Any] | None, agent: Any, assemble: bool) -> Into | None:
        """The arrays of a call; None if it gave none."""
        return None if arrays is None else cls(arrays, agent, assemble)

    def _check_apart(self) -> None:
        held = [(stream, array) for stream, array in self._arrays.items() if array.nbytes]
        for (stream, array), (other, after) in pairwise(sorted(held, key=lambda item: _address(item[1]))):
            if _address(array) + array.nbytes > _address(after):
                raise ConfigError(f"recv(into=…): the arrays of {stream!r} and {other!r} overlap")

    def _check_fences(self) -> None:
        store = self._agent.store
        for stream, array in self._arrays.items() if store.fenced else ():
            if array.nbytes and store.fenced_at(_address(array)):
                raise ConfigError(
                    f"recv(into=…): a sender that fell silent may still write to the array of {stream!r}: make another "
                    "one with empty(). It can be used again when that sender has ended"
                )

    def _left(self) -> Offer | None:
        """What an earlier call has left, if these are its arrays, and a slice still arrives in them."""
        key = self._key()
        for offer in self._agent.offers:
            overlaps = any(
                np.may_share_memory(mine, other) for mine in self._arrays.values() for other in offer.kept[0]
            )
            if not overlaps or not (offer.bound or offer.wanted):
                continue
            if offer.wanted and offer.caller is not None and offer.caller() is not None:
                raise ConfigError("recv(into=…): another call receives into one of these arrays")
            if offer.bound and offer.key != key:
                raise ConfigError(
                    "recv(into=…): a slice still arrives in one of these arrays, for a call that has ended: pass the "
                    "same arrays again, or receive that slice without into="
                )
            if offer.bound:
                left: Offer = offer
                return left
        return None

    def _key(self) -> object:
        return {stream: (_address(array), array.shape, array.dtype) for stream, array in self._arrays.items()}

    def _new_offer(self) -> Offer | None:
        if len(self._arrays) > MOST_STREAMS or any(array.size >> 32 for array in self._arrays.values()):
            return None  # the loop looks at fewer: all are copied
        streams = []
        for stream, array in self._arrays.items():
            shape = array.shape
            rows = Form(array.dtype, shape[1:]).encode() if shape else b""
            alone = Form(array.dtype, shape).encode()
            name = stream.encode("utf-8", "surrogateescape")
            streams.append((name, rows, alone, shape[0] if shape else 0, array.nbytes, _address(array)))
        offer = Offer(self._agent.store, streams, list(map(_memory_of, self._arrays.values())))
        offer.key = self._key()
        return offer

    # ---- while the call waits ----

    def offered(self) -> Offer | None:
        """Offer the arrays to the loop, if no slice has them."""
        if self._offer is not None:
            if not self._offer.bound:
                self._check_fences()
            self._agent.offer(self._offer)
        return self._offer

    def withdraw(self) -> bool:
        """Take the arrays back; False: a slice has them, and the call waits for that slice alone."""
        return self._offer is None or self._agent.withdraw(self._offer)

    def end(self) -> None:
        """End the call. A slice that has the arrays keeps them until it is received."""
        if self._offer is not None:
            self._agent.abandon(self._offer)

    # ---- the slice ----

    def take(self, incoming: Any) -> None:
        """Move elements to the arrays that do not lie there yet; ConfigError, and nothing is moved, if one misfits."""
        streams = streams_of(runs_of(incoming.manifest))
        for stream, array in self._arrays.items():
            _check_fits(stream, array, streams, incoming)
        moves = []
        for stream, array in self._arrays.items():
            at = _address(array)
            for run in streams[stream]:
                moves.append((run.start, run.nb_elements, at))
                at += run.nbytes * run.nb_elements
        moves = [move for move in moves if incoming.address(move[0]) != move[2]]
        if not moves:
            return
        self._check_fences()
        for stream, array in self._arrays.items() if incoming.key != self._key() else ():
            if any(np.may_share_memory(array, other) for other in incoming.arrays or ()):
                raise ConfigError(
                    f"recv(into=…): slice {incoming.slice_id} lies in arrays of an earlier call, and that of "
                    f"{stream!r} overlaps them: pass the same arrays again, or receive it without into="
                )
        incoming.key = self._key()
        incoming.arrays = [*(incoming.arrays or ()), *map(_memory_of, self._arrays.values())]
        for move in moves:
            incoming.move(*move)


def empty_in(store: Any, assemble: bool, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """`Receiver.empty`."""
    if not assemble:
        raise ConfigError("empty() needs a Receiver with assemble=True: without it there is no element memory")
    dtype = np.dtype(dtype)
    axes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if dtype.hasobject or any(axis < 0 for axis in axes):
        raise ConfigError(f"empty({shape!r}, {dtype}): axes are 0 or more, and elements are no Python objects")
    nbytes = prod(int(axis) for axis in axes) * dtype.itemsize
    if not nbytes:
        return np.empty(axes, dtype)
    array: np.ndarray[Any, Any] = np.frombuffer(Block(store, nbytes), np.uint8).view(dtype).reshape(axes)
    return array


def _memory_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What owns the memory of an array: of one out of an earlier slice, what was given then, and not that slice."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, View):
        for other in base.owner.arrays or ():
            if np.may_share_memory(other, array):
                return other  # type: ignore[no-any-return]
    return array


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _writable(stream: str, given: Any) -> np.ndarray[Any, Any]:
    """The array over the memory of `given`."""
    array = given
    if not isinstance(given, np.ndarray):
        try:
            array = np.asarray(memoryview(given))
        except (TypeError, ValueError, BufferError):
            if not hasattr(given, "__array__") or not np.shares_memory(array := np.asarray(given), np.asarray(given)):
                raise ConfigError(
                    f"recv(into=…): {type(given).__name__} for stream {stream!r} is no array that can be written to: "
                    "give a numpy array, a writable buffer or a CPU tensor"
                ) from None
    if not array.flags.writeable or not array.flags.c_contiguous:
        raise ConfigError(f"recv(into=…): the array for stream {stream!r} is read-only or not C-contiguous")
    if array.dtype.hasobject:
        raise ConfigError(f"recv(into=…): the array for stream {stream!r} holds Python objects")
    return np.asarray(array)


def _check_fits(stream: str, array: np.ndarray[Any, Any], streams: Mapping[str, list[Run]], incoming: Any) -> None:
    what = f"slice {incoming.slice_id} from {incoming.sender!r}"
    if stream not in streams:
        raise ConfigError(f"recv(into=…): {what} has no stream {stream!r}. It stays for the next recv()")
    runs = streams[stream]
    count = sum(run.nb_elements for run in runs)
    forms = {run.form for run in runs}
    form = runs[0].form
    shapes = [(count, *form.shape), form.shape] if count == 1 else [(count, *form.shape)]
    if len(forms) > 1 or (form.order == "F" and len(form.shape) > 1):
        raise ConfigError(
            f"recv(into=…): stream {stream!r} of {what} has elements of several dtypes or shapes, or in Fortran "
            "order. It stays for the next recv(), without into= for this stream"
        )
    if array.dtype != form.dtype or array.shape not in shapes:
        raise ConfigError(
            f"recv(into=…): stream {stream!r} of {what} needs an array of {form.dtype} and shape {shapes[-1]}, not "
            f"{array.dtype} and {array.shape}. It stays for the next recv()"
        )
