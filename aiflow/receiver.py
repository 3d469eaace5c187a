"""The receiving side: `Receiver`."""

from __future__ import annotations

import socket
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import Any, NoReturn, SupportsIndex

from aiflow._dp_incoming import MBUF_OVERHEAD, Store
from aiflow._dp_rx import RxLoop
from aiflow._eal import Mempool
from aiflow._ports.portset import PortSet
from aiflow._system import limits, threads
from aiflow._transfer.reasons import joined, of_drops, of_pools
from aiflow._transfer.ticket import again
from aiflow._transfer.waiter import Waiting
from aiflow.config import (
    parse_choice,
    parse_endpoints,
    parse_idle,
    parse_max_cores,
    parse_memory,
    parse_seconds,
    parse_timeout,
)
from aiflow.errors import ConfigError, PoolExhausted, SliceTimeout, not_copied
from aiflow.monitor import INTERVAL_S, LinkSpeeds, Monitor
from aiflow.report import PortTable, port_table
from aiflow.sender import MBUFS_PER_PORT
from aiflow.slices import TimeSlice

__all__ = ["Receiver"]

USUAL_MBUF = 16384
"""Bytes of an mbuf at the default frame size of ``local:``."""

STARVED_S = 10.0
"""How long a sender's request may wait for memory that the user holds before `recv` says so."""

NAMED = ("local", "memif", "vhost", "ring")


class _Pools:
    """Where ports' mbufs come from. The ports hold this, and not the Receiver: one that is dropped can go."""

    def __init__(self, loop: RxLoop, memory: int, assemble: bool) -> None:
        self._loop = loop
        self._memory = memory
        self._assemble = assemble
        self._kept: dict[int, Mempool] = {}

    def __call__(self, frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Mempool:
        nb_mbufs = nb_ports * MBUFS_PER_PORT
        if self._assemble:
            return Mempool(f"rx-{frame_size}", nb_mbufs, frame_size, socket_id, not needs_eal_memory)
        # Kept mbufs are the elements' memory: one pool of that size for all ports with frames of this size.
        if frame_size not in self._kept:
            kept = self._memory // (frame_size + MBUF_OVERHEAD) + 1
            pool = Mempool(f"kept-{frame_size}", kept + 8 * MBUFS_PER_PORT, frame_size, socket_id, not needs_eal_memory)
            self._kept[frame_size] = pool
            self._loop.mbuf_bytes = max(self._loop.mbuf_bytes, frame_size + MBUF_OVERHEAD)
        return self._kept[frame_size]

    def clear(self) -> None:
        """Hold them no more."""
        self._kept.clear()


class _Slices:
    """What a loop over a Receiver holds: several may run at once, and each releases its own slices only."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._current: TimeSlice | None = None

    def __iter__(self) -> _Slices:
        return self

    def __next__(self) -> TimeSlice:
        self._release()
        self._current = self._receiver._next()
        return self._current

    def __aiter__(self) -> _Slices:
        return self

    async def __anext__(self) -> TimeSlice:
        self._release()
        self._current = await self._receiver._anext()
        return self._current

    def _release(self) -> None:
        if self._current is not None:
            self._current.release()
            self._current = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "iterate over the Receiver")


class Receiver:
    """Receives time slices from one or several senders.

    Parameters
    ----------
    ports : str or list of str
        Endpoints, as for `Sender`.
    name : str, optional
        What senders may ask for with ``to=``, at most 63 bytes; default: the endpoint's NAME, else the host's.
    assemble : bool
        True: every element is one contiguous array. False: elements stay in the mbufs that brought them
        (`Element.segments`), one copy less.
    memory : int or str
        The most it will hold, in bytes or as "1GiB": slices being received, waiting, and held by you, with tables of 32
        bytes an element and 4 a frame. A slice larger than that is refused at once. Grown on demand; with
        ``assemble=False`` mbufs for all of it, which count whole, are made with the first ports, and those that the
        ports themselves need: 24,568, or 410 MB at the default frame size of ``local:``.
    timeout : float, optional
        Default of `recv`, in seconds.
    until : str, optional
        "bye": iteration ends when every sender seen has closed.
    confirm : str
        When a sender is told that its slice is delivered. "held": as soon as the slice is whole and checked in this
        process's memory. "release": when you say so by `TimeSlice.confirm` or `TimeSlice.release`, which advancing the
        iteration does too; `TimeSlice.fail` makes the sender's `send` raise, and so does a slice that was dropped
        without a word. Up to 8 slices of a sender, 2 large ones, may wait for your word at a time.
    peer_timeout : float
        Seconds of a sender's silence after which its unfinished slice is freed. Where its death can be seen (local
        ports), that happens at once.
    frame_size : int, optional
        Largest Ethernet frame in bytes, header included, from 512 to 65000; default: what the ports take.
    idle : str
        ``"backoff"`` or ``"spin"``: what a thread does that waits in `recv`, as for `Sender`.
    max_cores : float, optional
        The most processor time that it may take, in cores, as for `Sender`. Senders are slowed down to that.
    link_speed, monitor_interval
        For the port table, as for `Sender`.
    faults : dict or list of dict, optional
        As for `Sender`: see `aiflow.config.FAULTS`.

    Raises
    ------
    ConfigError
        An argument cannot be used as given.
    PortError, EalError, PoolExhausted
        A port cannot be had, DPDK cannot start here, or there is no memory for it.

    Notes
    -----
    Iterable, also asynchronously, and a context manager. It shows whole slices only, each exactly once within a
    session, in order for each sender. Advancing an iteration releases the slice before; arrays taken out stay valid.
    Several threads or tasks may iterate at once: each slice goes to one of them, and stays until that one asks for the
    next. ``next(rx)`` is an iteration of the calling thread, ``anext(rx)`` of the task.

    The array of the first of several like elements lies at a multiple of 64 bytes; the others follow without a gap,
    aligned for their dtype only.
    """

    def __init__(
        self,
        ports: str | Iterable[str],
        *,
        name: str | None = None,
        assemble: bool = True,
        memory: int | str = "1GiB",
        timeout: float | None = None,
        until: str | None = None,
        confirm: str = "held",
        peer_timeout: float = 10.0,
        frame_size: int | None = None,
        idle: str = "backoff",
        max_cores: float | None = None,
        link_speed: str | float | Sequence[str | float] | None = None,
        monitor_interval: float = INTERVAL_S,
        faults: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        self._closed = self._ended = True  # takes no work; has nothing left to close
        self._ending = threads.unpatched("threading").RLock()  # a signal handler may close, too
        self.endpoints = parse_endpoints(ports)
        spins = parse_idle(idle)
        max_cores = parse_max_cores(max_cores)
        speeds = LinkSpeeds(link_speed, sum(endpoint.nb_ports for endpoint in self.endpoints))
        if until is not None:
            parse_choice(until, "until", ("bye",), ", or None to go on until close()")
        parse_choice(confirm, "confirm", ("held", "release"))
        names = [endpoint.target for endpoint in self.endpoints if endpoint.scheme in NAMED]
        self.name = name if name is not None else names[0] if names else socket.gethostname()[:60]
        self.assemble = bool(assemble)
        self.memory = parse_memory(memory)
        nb_ports = sum(endpoint.nb_ports for endpoint in self.endpoints)
        limits.warn_of_memory(self.memory + nb_ports * MBUFS_PER_PORT * USUAL_MBUF, stacklevel=2)
        self.timeout = parse_timeout(timeout)
        self.until = until
        self.confirm = confirm
        # Of each thread that calls next(), and each task that calls anext().
        self._current: weakref.WeakKeyDictionary[Any, TimeSlice] = weakref.WeakKeyDictionary()
        self._back: list[Any] = []  # slices that an interrupted call had taken
        self._reports: Mempool | None = None
        if not self.assemble:
            self._reports = Mempool("reports", 2047, 2048, -1, True)
        self._loop = RxLoop(
            self.name,
            Store(self.memory, self.assemble),
            not self.assemble,
            parse_seconds(peer_timeout, "peer_timeout"),
            self._reports,
            faults,
            monitor_interval,
            confirm == "release",
        )
        self._pools = _Pools(self._loop, self.memory, self.assemble)
        self._monitor = Monitor(self._loop, speeds)
        self._waiting = Waiting(self._loop)
        self._loop.spins = spins
        self._loop.max_cores = max_cores
        self._loop.start("aiflow-receiver")
        try:
            self._ports = PortSet(
                self.endpoints,
                "receiver",
                pool_for=self._pools,
                attach=self._loop.attach,
                detach=self._loop.detach,
                frame_size=frame_size,
            )
        except BaseException:
            self._loop.close()
            raise
        self._closed = self._ended = False

    # ---- receiving ----

    def recv(self, timeout: float | None = None) -> TimeSlice:
        """Wait for the next whole slice.

        Parameters
        ----------
        timeout : float, optional
            Seconds, 0 to only look; default: the Receiver's.

        Returns
        -------
        TimeSlice
            Yours until you release it, or drop it and every array taken out of it.

        Raises
        ------
        SliceTimeout
            Nothing came in time.
        PoolExhausted
            A sender has been waiting for memory for 10 seconds or until the timeout, and you hold it all: the message
            says which slices.
        PortError
            A port cannot come up.
        ConfigError
            The Receiver is closed, or, with ``until="bye"``, every sender has closed.
        EalError
            This process was forked from the Receiver's.
        """
        wanted = self.timeout if timeout is None else parse_timeout(timeout)
        self._loop.check_process()
        self._check_open()
        time_slice = self._wait(wanted)
        if time_slice is None:
            raise self._at_end()
        return time_slice

    async def arecv(self, timeout: float | None = None) -> TimeSlice:
        """`recv` for an event loop.

        Parameters
        ----------
        timeout : float, optional
            As for `recv`, and so are the errors.

        Returns
        -------
        TimeSlice
        """
        wanted = self.timeout if timeout is None else parse_timeout(timeout)
        self._loop.check_process()
        self._check_open()
        time_slice = await self._wait_async(wanted)
        if time_slice is None:
            raise self._at_end()
        return time_slice

    def _wait(self, timeout: float | None) -> TimeSlice | None:
        """The next slice; None at the end."""
        found: list[Any] = []
        try:
            if not self._waiting.until(lambda: self._look(found, timeout), timeout):
                raise self._too_late(timeout)
            return TimeSlice(found[0]) if found else None
        except BaseException:
            self._give_back(found)
            raise

    async def _wait_async(self, timeout: float | None) -> TimeSlice | None:
        found: list[Any] = []
        try:
            if not await self._waiting.until_async(lambda: self._look(found, timeout), timeout):
                raise self._too_late(timeout)
            return TimeSlice(found[0]) if found else None
        except BaseException:
            self._give_back(found)
            raise

    def _look(self, found: list[Any], timeout: float | None) -> bool:
        """Whether there is a slice, or a reason to stop waiting. An interrupt finds a slice that it took in `found`."""
        if self._back:  # no call until it is there
            found += self._back[:1]
            del self._back[0]
        elif not found:
            self._loop.pop(found)
        if found:
            return True
        nbytes, seconds = self._loop.starving
        if nbytes and seconds > 0.9 * min(STARVED_S, STARVED_S if timeout is None else timeout):
            raise self._exhausted(nbytes)
        if self._ports.error is not None:
            raise again(self._ports.error)
        return self._closed or self._over()

    def _give_back(self, found: list[Any]) -> None:
        """An interrupt came when a slice was taken: it is the next call's."""
        self._back += found
        if found:
            self._loop.tell()

    def _at_end(self) -> ConfigError:
        return ConfigError(
            "this Receiver was closed while it waited"
            if self._closed
            else "every sender has said goodbye: iterate with `for time_slice in rx` to end without an error"
        )

    def _over(self) -> bool:
        return self.until == "bye" and bool(self._loop.finished)

    def _too_late(self, timeout: float | None) -> Exception:
        nbytes, _ = self._loop.starving
        if nbytes:
            return self._exhausted(nbytes)
        got, total = self._loop.progress
        drops = self._loop.drops()
        facts = [*of_drops(drops), *of_pools(drops), *self._ports.hints()]
        waiting = sum(incoming.awaited for incoming in self._loop.slices)
        if waiting:
            facts.append(
                f"{waiting} slices wait for your confirm() or fail(): a sender may have 8 in flight, 2 of them large"
            )
        if got < total:
            facts.append(f"{got} of {total} bytes of the newest slice have arrived")
        elif not self._loop.nb_sessions:
            facts.append("no sender has been heard yet")
        text = f"no whole slice arrived within {timeout} s: check the sender, or wait longer"
        return SliceTimeout(text + joined(facts))

    def _exhausted(self, nbytes: int) -> PoolExhausted:
        held = sorted(self._loop.slices, key=lambda incoming: -incoming.charged)
        total = sum(incoming.charged for incoming in held)
        holders = ", ".join(f"slice {held.slice_id} from {held.sender!r} ({held.charged} bytes)" for held in held[:5])
        return PoolExhausted(
            f"a sender waits to send {nbytes} bytes, and of memory={self.memory} bytes you hold {total} in "
            f"{len(held)} slices that are not released or have arrays still alive: {holders}. Release them, copy what "
            "you keep, or give the Receiver more memory="
        )

    def __iter__(self) -> Iterator[TimeSlice]:
        return _Slices(self)

    def __aiter__(self) -> AsyncIterator[TimeSlice]:
        return _Slices(self)

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
        self._loop.check_process()
        time_slice = None if self._closed else self._wait(self.timeout)
        if time_slice is None:
            raise StopIteration
        return time_slice

    async def _anext(self) -> TimeSlice:
        self._loop.check_process()
        time_slice = None if self._closed else await self._wait_async(self.timeout)
        if time_slice is None:
            raise StopAsyncIteration
        return time_slice

    # ---- what is to be seen ----

    @property
    def port_table(self) -> PortTable:
        """A snapshot of the port path table, a row a port that is up."""
        return port_table(self._monitor)

    @property
    def counters(self) -> dict[str, int]:
        """Frames that were not taken, by reason; what was handed over; senders that went without a goodbye.

        ``slices``, ``elements`` and ``bytes`` handed over, ``senders_gone``; ``rx_nombuf``: frames dropped because the
        pool had no mbuf for them, ``tx_nombuf``: times that a frame to send waited for one.
        """
        return {**self._loop.drops(), **self._loop.counters()}

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes so far, and in all, of the slice that is being received."""
        return self._loop.progress

    @property
    def memory_used(self) -> int:
        """Bytes of `memory` that slices hold now, granted ones included."""
        return self._loop.store.used

    def describe(self) -> list[dict[str, Any]]:
        """Which driver serves each endpoint."""
        return self._ports.describe()

    # ---- life ----

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this Receiver is closed: open another one")

    def close(self) -> None:
        """Close the ports and free what nobody holds. Arrays taken out stay valid.

        Idempotent; after an interrupt, closing again finishes what was left.
        """
        self._close("")

    def _close(self, failed: str) -> None:
        """Close; `failed`: why slices that wait for the user's word have failed, "" for no better reason."""
        if self._ended:
            return
        self._closed = True
        if not self._loop.pid_is_ours():
            return
        self._loop.tell()  # whoever waits in another thread
        with self._ending:
            self._end(failed)
        self._current.clear()

    def _end(self, failed: str) -> None:
        """Each step may be repeated: an interrupt ends it anywhere."""
        if self._ended:
            return
        self._loop.close(*([failed.encode("utf-8", "backslashreplace")] if failed else []))
        self._ports.close()
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
        if getattr(self, "_ended", True) or not self._loop.pid_is_ours():
            return
        if not self._closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "open another one there, on endpoints of its own")

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._loop.nb_sessions} senders"
        return f"<Receiver {self.name!r} on {', '.join(map(str, self.endpoints))}: {state}>"
