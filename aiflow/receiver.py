"""The receiving side: `Receiver`."""

from __future__ import annotations

import socket
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn, SupportsIndex, Unpack

import numpy as np

from aiflow._dp_incoming import MBUF_OVERHEAD, Store
from aiflow._dp_rx import RxAgent
from aiflow._eal import Mempool
from aiflow._engine import Engine, ReceiverPools
from aiflow._into import Into, empty_in
from aiflow._ports.memories import able
from aiflow._system import limits, threads
from aiflow._transfer.context import fresh
from aiflow._transfer.holdings import finish_ended, listed, note
from aiflow._transfer.reasons import joined, of_drops, of_pools, of_strangers
from aiflow.config import parse_choice, parse_memory, parse_seconds, parse_timeout
from aiflow.errors import ConfigError, PoolExhausted, SliceTimeout, not_copied
from aiflow.monitor import LinkSpeeds
from aiflow.options import FlatKeywords, Polling, Telemetry, check_known, grouped
from aiflow.report import PortTable
from aiflow.shared_ports import MBUFS_PER_PORT, Ports, asked_polling, endpoints_of, ports_for
from aiflow.slices import Slices, TimeSlice

__all__ = ["Receiver"]

USUAL_MBUF = 16384
"""Bytes of an mbuf at the default frame size of ``local:``."""

STARVED_S = 10.0
"""Seconds that a sender's request may wait for memory that the user holds before `recv` raises."""

NAMED = ("local", "memif", "vhost", "ring")
"""Endpoint schemes whose target is a name, and so the default of ``name=``."""


class Receiver:
    """Receives time slices from one or several senders.

    Parameters
    ----------
    ports : str or list of str, or Ports
        Endpoints, or `Ports` that are shared, as for `Sender`.
    name : str, optional
        Name for the ``to=`` of senders, up to 63 bytes; default: the endpoint's NAME, else the host's.
    assemble : bool
        True: every element is one contiguous array. False: elements stay in the mbufs of their frames
        (`Element.segments`), one copy less.
    memory : int or str
        Limit of its memory, in bytes or as "1GiB": slices that are received, wait, or are held by you, plus tables of
        32 bytes an element and 4 a frame. A larger slice is refused at once. Memory grows on demand. With
        ``assemble=False`` mbufs for all of it are made with the first ports, beside those of the ports themselves:
        24,568 mbufs, or 410 MB at the default frame size of ``local:``.
    prefault : bool
        Give all of `memory` its pages when the Receiver opens, and not as slices need them: the first slices are as
        fast as later ones. It takes about 0.1 s to 1 s for each GiB, and the memory counts as used from then on.
    loans : bool
        Take loans of senders on this host (`Sender.loan`): their arrays are read-only here, and lie in the sender's
        memory. They count there until you release them; in `memory` their tables count alone.
    timeout : float, optional
        Default of `recv`, in seconds; None: no limit.
    until : str, optional
        "bye": iteration ends when every sender seen has closed. Default: at `close`.
    confirm : str
        When a sender learns that its slice is delivered. "held": as soon as the slice is whole and checked in this
        process's memory. "release": with `TimeSlice.confirm` or `TimeSlice.release`; advancing the iteration releases
        too. After `TimeSlice.fail`, or when the slice was dropped unconfirmed, the sender's `send` raises. Up to 8
        slices of a sender, 2 large ones, may wait for confirmation at a time.
    peer_timeout : float
        Seconds of silence from a sender before its unfinished slice is freed. On local ports the sender's death is
        seen at once.
    frame_size : int, optional
        Largest Ethernet frame in bytes, header included, 512 to 65000; default: what the ports take.
    polling : Polling, optional
    telemetry : Telemetry, optional
    faults : dict or list of dict, optional
        Faults made on purpose, for tests: see `aiflow.config.FAULTS`.
    **flat
        Fields of `Polling` and `Telemetry`: ``idle``, ``max_cores``, ``link_speed``, ``monitor_interval``,
        ``metrics_port``.

    Raises
    ------
    ConfigError
        An argument cannot be used as given.
    PortError, EalError, PoolExhausted
        A port cannot be opened, DPDK cannot start, or memory is short.

    Notes
    -----
    Iterable, also asynchronously, and a context manager. It shows whole slices only, each exactly once within a
    session, in order for each sender. Advancing an iteration releases the slice before; arrays taken out stay valid.
    Several threads or tasks may iterate at once: each slice goes to one of them, and stays until that one asks for the
    next. ``next(rx)`` is an iteration of the calling thread, ``anext(rx)`` of the task.

    The array of the first element of a batch is aligned to a multiple of 64 bytes; the others follow without a gap.
    """

    def __init__(
        self,
        ports: str | Iterable[str] | Ports,
        *,
        name: str | None = None,
        assemble: bool = True,
        memory: int | str = "1GiB",
        prefault: bool = False,
        loans: bool = False,
        timeout: float | None = None,
        until: str | None = None,
        confirm: str = "held",
        peer_timeout: float = 10.0,
        frame_size: int | None = None,
        polling: Polling | None = None,
        telemetry: Telemetry | None = None,
        faults: dict[str, Any] | list[dict[str, Any]] | None = None,
        **flat: Unpack[FlatKeywords],
    ) -> None:
        self._closed = self._ended = True  # takes no work; has nothing left to close
        self._ending = threads.unpatched("threading").RLock()  # a signal handler may close, too
        check_known("Receiver", flat, Polling, Telemetry)
        self.endpoints = endpoints_of(ports)
        polling = asked_polling(polling, flat)
        telemetry = grouped(Telemetry, "telemetry", telemetry, flat)
        nb_ports = sum(endpoint.nb_ports for endpoint in self.endpoints)
        speeds = LinkSpeeds(telemetry.link_speed, nb_ports)
        if until is not None:
            parse_choice(until, "until", ("bye",), ", or None to go on until close()")
        parse_choice(confirm, "confirm", ("held", "release"))
        names = [endpoint.target for endpoint in self.endpoints if endpoint.scheme in NAMED]
        self.name = name if name is not None else names[0] if names else socket.gethostname()[:60]
        self.assemble = bool(assemble)
        if loans and not self.assemble:
            raise ConfigError("loans=True with assemble=False: a loan is no mbuf; leave one of them out")
        self.memory = parse_memory(memory)
        limits.warn_of_memory(self.memory + nb_ports * MBUFS_PER_PORT * USUAL_MBUF, stacklevel=2)
        self.timeout = parse_timeout(timeout)
        self.until = until
        self.confirm = confirm
        # Of each thread that calls next(), and each task that calls anext().
        self._current: weakref.WeakKeyDictionary[Any, TimeSlice] = weakref.WeakKeyDictionary()
        self._back: list[Any] = []  # slices that an interrupted call had taken
        store = Store(self.memory, self.assemble, any(map(able, self.endpoints)))
        if prefault:
            store.prefault()
        silence, interval = parse_seconds(peer_timeout, "peer_timeout"), telemetry.monitor_interval
        self._agent = agent = RxAgent(
            self.name, store, not self.assemble, silence, interval, confirm == "release", bool(loans)
        )
        agent.pools = self._pools = pools = ReceiverPools(agent, self.memory, self.assemble, MBUF_OVERHEAD)
        self._engine = Engine(agent, speeds)
        feedback = None if self.assemble else Mempool("reports", 2047, 2048, -1, True)
        used = ports_for(ports, "receiver", pools, feedback, frame_size, polling, faults)
        self._ports = self._engine.ports = used
        try:
            self._engine.join(f"Receiver {self.name!r}")
            self._engine.show(self.name, self.endpoints, {"confirm": confirm, "assemble": self.assemble}, telemetry)
            self._closed = self._ended = False
        except BaseException:
            self._engine.leave()
            raise
        note(agent, self.name, self.memory)

    # ---- receiving ----

    def recv(self, timeout: float | None = None, into: Mapping[str, Any] | None = None) -> TimeSlice:
        """Wait for the next whole slice.

        Parameters
        ----------
        timeout : float, optional
            Seconds, 0 to only look; default: the Receiver's.
        into : mapping, optional
            Stream → array that its elements are to lie in: writable, C-contiguous, of the same dtype. The array
            has the shape of the element, or, for N elements of one shape, a first axis of N before theirs. Those of
            `empty` save a copy on ``local:``. After a timeout a slice may still arrive in the arrays: pass them
            again, or receive that slice first.

        Returns
        -------
        TimeSlice
            Yours until you release it, or drop it and all arrays taken out of it.

        Raises
        ------
        SliceTimeout
            No slice arrived in time.
        PoolExhausted
            A sender has waited for memory for 10 seconds, or until the timeout, and you hold all of it. The message
            names the slices.
        PortError
            A port cannot come up.
        ConfigError, EalError
            The Receiver is closed, or with ``until="bye"`` every sender is; or this process was forked from its own.
            Or the slice does not fit into the arrays of `into`: then it stays, for the next call.
        """
        wanted = self.timeout if timeout is None else parse_timeout(timeout)
        self._agent.check_process()
        self._check_open()
        time_slice = self._wait(wanted, Into.of(into, self._agent, self.assemble))
        if time_slice is None:
            raise self._at_end()
        return time_slice

    async def arecv(self, timeout: float | None = None, into: Mapping[str, Any] | None = None) -> TimeSlice:
        """`recv` for an event loop.

        Parameters
        ----------
        timeout : float, optional
            As for `recv`; it returns and raises the same.
        into : mapping, optional
            As for `recv`.
        """
        wanted = self.timeout if timeout is None else parse_timeout(timeout)
        self._agent.check_process()
        self._check_open()
        time_slice = await self._wait_async(wanted, Into.of(into, self._agent, self.assemble))
        if time_slice is None:
            raise self._at_end()
        return time_slice

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
        """An uninitialised ndarray in this Receiver's memory, for `recv` with ``into``.

        Its bytes count against ``memory`` until the array and all views of it are gone. A sender on the same host
        writes straight into it, if ``into`` names it alone, and the slice has that stream alone.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : numpy dtype
            Not object.

        Returns
        -------
        ndarray
            C-contiguous. It stays valid after `close`.

        Raises
        ------
        PoolExhausted
            There is not so much left of ``memory``.
        ConfigError
            The Receiver is closed, or has ``assemble=False``; or the shape or dtype cannot be used.
        """
        self._agent.check_process()
        self._check_open()
        return empty_in(self._agent.store, self.assemble, shape, dtype)

    def _wait(self, timeout: float | None, into: Into | None = None) -> TimeSlice | None:
        """The next slice; None at the end."""
        found: list[Any] = []
        try:
            if not self._engine.waiter.until(partial(self._look, found, timeout, into), timeout):
                raise self._too_late(timeout)
            return self._taken(found, into)
        except BaseException:
            self._give_back(found)
            raise
        finally:
            if into is not None:
                into.end()

    async def _wait_async(self, timeout: float | None, into: Into | None = None) -> TimeSlice | None:
        found: list[Any] = []
        try:
            if not await self._engine.waiter.until_async(partial(self._look, found, timeout, into), timeout):
                raise self._too_late(timeout)
            return self._taken(found, into)
        except BaseException:
            self._give_back(found)
            raise
        finally:
            if into is not None:
                into.end()

    def _taken(self, found: list[Any], into: Into | None) -> TimeSlice | None:
        if found and into is not None:
            into.take(found[0])
        return TimeSlice(found[0]) if found else None

    def _look(self, found: list[Any], timeout: float | None, into: Into | None = None) -> bool:
        """Whether there is a slice, or a reason to stop waiting. The slice is in `found`, also after an interrupt."""
        if self._back and (into is None or into.withdraw()):  # no call until it is there
            found += self._back[:1]
            del self._back[0]
        elif not found:
            self._agent.pop(found, into.offered() if into is not None else None)
        if found:
            return True
        nbytes, seconds = self._agent.starving
        if nbytes:
            finish_ended()  # of a relay's Senders; the memory counts from the loop's next iteration on
        if nbytes and seconds > 0.9 * min(STARVED_S, STARVED_S if timeout is None else timeout):
            raise self._exhausted(nbytes)
        if self._ports.error is not None:
            raise fresh(self._ports.error)
        return self._closed or self._over()

    def _give_back(self, found: list[Any]) -> None:
        """Keep a slice that a call had taken, and could not return, for the next call."""
        self._back[:0] = found
        if found:
            self._agent.tell()

    def _at_end(self) -> ConfigError:
        return ConfigError(
            "this Receiver was closed while it waited"
            if self._closed
            else "every sender has said goodbye: iterate with `for time_slice in rx` to end without an error"
        )

    def _over(self) -> bool:
        return self.until == "bye" and bool(self._agent.finished)

    def _too_late(self, timeout: float | None) -> Exception:
        nbytes, _ = self._agent.starving
        if nbytes:
            return self._exhausted(nbytes)
        got, total = self._agent.progress
        drops = self._agent.drops()
        facts = [*of_drops(drops), *of_pools(drops), *self._ports.hints()]
        if drops["rx_nombuf"] and not self.assemble:  # else the pool's size does not depend on memory=
            facts.append("release slices sooner, or give the Receiver a bigger memory=")
        waiting = sum(incoming.awaited for incoming in self._agent.slices)
        if waiting:
            facts.append(
                f"{waiting} slices wait for your confirm() or fail(): a sender may have 8 in flight, 2 of them large"
            )
        if got < total:
            facts.append(f"{got} of {total} bytes of the newest slice have arrived")
        elif not self._agent.nb_sessions:
            facts += ["no sender has been heard yet", *of_strangers(drops)]
        text = f"no whole slice arrived within {timeout} s: check the sender, or wait longer"
        return SliceTimeout(text + joined(facts))

    def _exhausted(self, nbytes: int) -> PoolExhausted:
        held = self._agent.slices
        total = sum(incoming.charged for incoming in held)
        return PoolExhausted(
            f"a sender waits to send {nbytes} bytes, and of memory={self.memory} bytes you hold {total} in "
            f"{len(held)} slices that are not released or have arrays still alive: {listed(held)}. Release them, copy "
            f"what you keep, or give the Receiver more memory=. Arrays of empty() and slices not yet received "
            f"hold {max(self._agent.store.used - total, 0)} bytes"
        )

    def __iter__(self) -> Iterator[TimeSlice]:
        return Slices(self)

    def __aiter__(self) -> AsyncIterator[TimeSlice]:
        return Slices(self)

    def __next__(self) -> TimeSlice:
        me = threading.current_thread()
        self._release(me)
        time_slice = self._current[me] = self._next()
        return time_slice

    def __anext__(self) -> Coroutine[Any, Any, TimeSlice]:
        import asyncio  # 30 ms of imports that threads never need

        try:
            task = asyncio.current_task()  # of the caller: wait_for() runs us in another
        except RuntimeError:  # no loop is running yet
            task = None
        return self._anext_of(task or threading.current_thread())

    async def _anext_of(self, whose: Any) -> TimeSlice:
        self._release(whose)
        time_slice = self._current[whose] = await self._anext()
        return time_slice

    def _release(self, whose: Any) -> None:
        current = self._current.pop(whose, None)
        if current is not None:
            current.release()

    def _next(self) -> TimeSlice:
        self._agent.check_process()
        time_slice = None if self._closed else self._wait(self.timeout)
        if time_slice is None:
            raise StopIteration
        return time_slice

    async def _anext(self) -> TimeSlice:
        self._agent.check_process()
        time_slice = None if self._closed else await self._wait_async(self.timeout)
        if time_slice is None:
            raise StopAsyncIteration
        return time_slice

    # ---- state ----

    @property
    def port_table(self) -> PortTable:
        """A snapshot of the port path table, a row a port that is up."""
        return self._engine.port_table()

    @property
    def counters(self) -> dict[str, int]:
        """Frames that were dropped here, by reason, and counts of the delivery.

        ``slices``, ``elements`` and ``bytes`` delivered, ``senders_gone``: those that left without a goodbye.
        ``rx_nombuf``: frames dropped because the pool had no mbuf for them; ``tx_nombuf``: times that a frame to send
        waited for one.
        """
        return {**self._agent.drops(), **self._agent.counters()}

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes so far, and in all, of the newest slice."""
        return self._agent.progress

    @property
    def memory_used(self) -> int:
        """Bytes of `memory` that slices hold now, including granted ones."""
        return self._agent.store.used

    def describe(self) -> list[dict[str, Any]]:
        """Return which driver serves each endpoint, and who uses it."""
        rows = self._ports.describe()
        for row in rows:
            row["hints"] += self._pools.hints(row["endpoint"])
        return rows

    # ---- life ----

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this Receiver is closed: open another one")

    def close(self) -> None:
        """Close the ports and free all memory without arrays. Arrays taken out stay valid.

        Idempotent; after an interrupt, closing again finishes the rest.
        """
        self._close("")

    def _close(self, failed: str) -> None:
        """Close; `failed`: why slices that wait for confirmation have failed, "" for no particular reason."""
        if self._ended:
            return
        self._closed = True
        if not self._agent.pid_is_ours():
            return
        self._agent.tell()  # callers that wait in other threads
        with self._ending:
            self._end(failed)
        self._current.clear()

    def _end(self, failed: str) -> None:
        """Each step may be repeated: an interrupt ends it anywhere."""
        if self._ended:
            return
        self._agent.close(*([failed.encode("utf-8", "backslashreplace")] if failed else []))
        self._engine.leave()
        self._back.clear()
        self._pools.clear()
        self._ended = True

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._close("" if error is None else f"the receiver ended by {type(error).__name__}: {error}")

    async def __aenter__(self) -> Receiver:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)

    def __del__(self) -> None:
        if getattr(self, "_ended", True) or not self._agent.pid_is_ours():
            return
        if not self._closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "open another one there, on endpoints of its own")

    def __repr__(self) -> str:
        return f"<Receiver {self.name!r} on {', '.join(map(str, self.endpoints))}: {self._state()}>"

    def _state(self) -> str:
        return "closed" if self._closed else f"{self._agent.nb_sessions} senders"

    def _repr_html_(self) -> str:
        from aiflow._html import views  # only notebooks need it

        return views.of_side(self, f"Receiver {self.name}", f"{self._state()}, {self.memory_used:,} bytes held")
