"""The sending side: `Sender`."""

from __future__ import annotations

import itertools
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn, SupportsIndex, Unpack, overload

import numpy as np

from aiflow import scheduler
from aiflow._dp_tx import MOST_RECEIVERS, TxAgent
from aiflow._engine import Engine
from aiflow._policy.flow_control import FlowControl
from aiflow._poster import Planner, Poster
from aiflow._system import threads
from aiflow._transfer.batcher import Batcher
from aiflow._transfer.context import Context
from aiflow._transfer.demand import DemandMeter
from aiflow._transfer.fanout import Partition, whole_of
from aiflow._transfer.form import Form
from aiflow._transfer.holdings import note_sender
from aiflow._transfer.in_flight import InFlight
from aiflow._transfer.manifest import as_bytes
from aiflow._transfer.ticket import Ticket
from aiflow.alloc import Loans
from aiflow.config import parse_names, parse_seconds, parse_size, parse_switches, parse_timeout
from aiflow.errors import ConfigError, SliceTimeout, not_copied
from aiflow.monitor import LinkSpeeds
from aiflow.options import Polling, Scheduling, SenderKeywords, Telemetry, check_known, grouped, scheduling_of
from aiflow.report import PortTable, SliceReport
from aiflow.shared_ports import Ports, asked_polling, endpoints_of, port_pool, ports_for

__all__ = ["Sender", "Ticket"]

GOODBYE_S = 0.5
"""How long `close` waits for the receiver's answer to our BYE."""

_serial = itertools.count(1)


def _default_name() -> str:
    """Host and process id, and a number from the process's second Sender on."""
    serial = next(_serial)
    return f"{socket.gethostname()}-{os.getpid()}{f'-{serial}' if serial > 1 else ''}"[-60:]


class Sender:
    """Sends time slices to one or several receivers over every port that it is given.

    Parameters
    ----------
    ports : str or list of str, or Ports
        Endpoints: ``"local:NAME"``, ``"local:NAME*4"``, ``"af_packet:IFNAME"``, … (`aiflow ports` lists them); up to
        32 ports in a process. `Ports` are shared with other Senders and Receivers.
    to : str or list of str, optional
        Name of the receiver, default: the only one that answers. Several names, up to 16: each slice is spread.
    name : str, optional
        What receivers see as `TimeSlice.sender`, up to 63 bytes; default: host and process id.
    partition : str or callable
        How a slice is spread over several receivers: ``"balanced"`` by bytes, ``"by_stream"`` (a stream stays with its
        receiver), or ``(elements, receivers) → an index into receivers for each element``. Each gets a slice, be it
        empty. The callable gets a list of (stream, ndarray), and the names.
    policy : str or Scheduling
        Port choice: ``"pull"``, ``"score"``, ``"round_robin"``, ``"weighted"``, ``"least_queue"``.
    flow_control : str or FlowControl
        ``"credit"``, ``"reverse"``, ``"static"``, ``"token_bucket"``, ``"none"``.
    slice_ms : float, optional
        Length of a time slice in milliseconds: `put` sends after it, and `demand` compares. Default: until `flush`.
    put_memory : int or str
        Bytes that `put` may have collected and in flight, such as "256MiB"; then it blocks.
    loan_memory : int or str
        Bytes of all loans together (`loan`), such as "512MiB". They take memory from when they are made.
    peer_timeout : float
        Seconds without a sign of life from the receiver before `PeerLost`. A receiver that lives and grants nothing
        never counts.
    frame_size : int, optional
        Largest Ethernet frame in bytes, header included, 512 to 65000; default: what the ports take. A port or path
        that takes less is then an error.
    polling : Polling, optional
    telemetry : Telemetry, optional
    faults : dict or list of dict, optional
        Faults made on purpose, for tests: see `aiflow.config.FAULTS`.
    **flat
        Fields of `Scheduling`, `Polling`, `Telemetry`: ``place``, ``score_weights``, ``switches``, ``switch_limits``,
        ``idle``, ``max_cores``, ``link_speed``, ``monitor_interval``, ``metrics_port``.

    Raises
    ------
    ConfigError
        An argument cannot be used as given.
    PortError, EalError, PoolExhausted
        A port cannot be opened, DPDK cannot start, or memory is short. `send` awaits a receiver that is not there.

    Notes
    -----
    A context manager, also an async one: leaving it flushes, leaving it by an exception aborts. `send` may be called
    from several threads.
    """

    def __init__(
        self,
        ports: str | Iterable[str] | Ports,
        *,
        to: str | Sequence[str] | None = None,
        name: str | None = None,
        partition: str | Callable[..., Any] = "balanced",
        policy: str | Scheduling = "pull",
        flow_control: str | FlowControl = "credit",
        slice_ms: float | None = None,
        put_memory: int | str = "256MiB",
        loan_memory: int | str = "512MiB",
        peer_timeout: float = 10.0,
        frame_size: int | None = None,
        polling: Polling | None = None,
        telemetry: Telemetry | None = None,
        faults: dict[str, Any] | list[dict[str, Any]] | None = None,
        **flat: Unpack[SenderKeywords],
    ) -> None:
        self._ended = True  # nothing to close yet
        self._ending = threads.unpatched("threading").RLock()  # a signal handler may close, too
        check_known("Sender", flat, Scheduling, Polling, Telemetry)
        self.endpoints = endpoints_of(ports)
        scheduling = scheduling_of(policy, flat)
        polling = asked_polling(polling, flat)
        telemetry = grouped(Telemetry, "telemetry", telemetry, flat)
        self.policy = scheduling.policy
        self.place = scheduling.place
        self.flow_control = flow = FlowControl.of(flow_control)
        nb_ports = sum(endpoint.nb_ports for endpoint in self.endpoints)
        parse_switches(scheduling.switches, nb_ports)
        speeds = LinkSpeeds(telemetry.link_speed, nb_ports)
        self.name = name if name is not None else _default_name()
        self.peer_timeout = parse_seconds(peer_timeout, "peer_timeout")
        self.slice_ms = slice_ms
        seconds = None if slice_ms is None else parse_seconds(slice_ms, "slice_ms") / 1e3
        receivers = parse_names(to, MOST_RECEIVERS)

        def pace_of(index: int, port: Any) -> Any:  # the loop's thread must not hold the Sender
            return flow.pace(speeds.of(index, port), given=speeds.given(index) is not None)

        parted, collected = Partition(partition, receivers), parse_size(put_memory)
        lent = parse_size(loan_memory)
        used = ports_for(ports, "sender", port_pool, None, frame_size, polling, faults)
        fixed, interval = used.frame_size is not None, telemetry.monitor_interval
        self._agent = agent = TxAgent(
            self.name, receivers or [""], nb_ports, self.peer_timeout, fixed, pace_of, interval
        )
        self._engine = engine = Engine(agent, speeds, scheduling)
        self._context = Context(agent, engine.waiter, self.endpoints, self.peer_timeout, receivers)
        self._poster = Poster(agent, Planner(engine.monitor, scheduling), parted)
        self._demand = DemandMeter(seconds, engine.path_speeds, self._poster.lock)
        self._batcher = Batcher(self._context, self._poster, self._demand, collected)
        self._ports = self._context.ports = engine.ports = used
        self._loans = Loans(lent, agent, used)
        try:
            engine.join(f"Sender {self.name!r}")
            engine.show(self.name, self.endpoints, {"policy": scheduling.policy, "slice_ms": slice_ms}, telemetry)
            self._context.closed = self._ended = False
        except BaseException:
            engine.leave()
            raise
        note_sender(agent)

    # ---- sending ----

    def loan(self, shape: int | tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
        """An uninitialised array in memory that this Sender shares: a ``Receiver(loans=True)`` reads it where it lies.

        Fill it, then send it: from then on it is read-only. A slice of nothing but loans of this Sender, or parts of
        them, is handed over without a copy. Else it is copied once; `SliceReport.lent_bytes` says so. The bytes of a
        loan are not summed: there is one copy. A view from before `send` stays writable, and changes what was sent.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : numpy dtype
            Not object.

        Returns
        -------
        ndarray
            C-contiguous, page-aligned. Its memory is used again when it is gone here, and released by all receivers.

        Raises
        ------
        PoolExhausted
            `loan_memory` is in use, by arrays here or by receivers, or the system has no memory.
        ConfigError
            The Sender is closed.
        EalError
            This process was forked from the Sender's.
        """
        self._context.check_open()
        self._agent.check_process()
        return self._loans.array(shape, dtype)

    @overload
    def send(self, elements: Any, *, wait: Literal[True] = True, timeout: float | None = None) -> SliceReport: ...
    @overload
    def send(self, elements: Any, *, wait: Literal[False], timeout: float | None = None) -> Ticket: ...
    @overload
    def send(self, elements: Any, *, wait: bool, timeout: float | None = None) -> SliceReport | Ticket: ...
    def send(self, elements: Any, *, wait: bool = True, timeout: float | None = None) -> SliceReport | Ticket:
        """Send one time slice.

        Parameters
        ----------
        elements : mapping or iterable
            Stream → buffer, or (stream, buffer) pairs, or buffers (streams "0", "1", …). A buffer is bytes, a numpy
            array of any shape and order whose dtype is made of numpy's own types, or any object with the buffer
            protocol or DLPack on the CPU. Only arrays that are not in one piece are copied. A subclass of ndarray
            travels as a plain array. A `TimeSlice`, a `Shard` or its elements keep their streams.
        wait : bool
            True: return once the receiver holds all of it. False: return a `Ticket` at once; the buffers must not
            change until it is done.
        timeout : float, optional
            Seconds for the whole call, the wait for a receiver included. Only with `wait`.

        Returns
        -------
        SliceReport or Ticket

        Raises
        ------
        SliceTimeout
            `timeout` ran out.
        PeerLost
            No receiver answered, or it was silent, for `peer_timeout` seconds, or it went away during the slice.
        PoolExhausted
            The slice is larger than the receiver's ``memory``.
        IntegrityError
            The data that arrived differs: a buffer was changed meanwhile.
        PortError
            A port cannot come up, or a path carries small frames and not full ones.
        ConfigError
            Several receivers answer and `to` names none, or the Sender is closed.
        EalError
            This process was forked from the Sender's.
        TypeError
            For a bare buffer, a str, objects, a masked array, or a dtype of another library (send its view).

        Notes
        -----
        It delivers, or raises. ``delivered`` on the error says whether the receiver holds the slice (None: unknown),
        ``delivered_by`` the same of each receiver. After it has returned or raised, nothing reads the buffers.
        """
        self._context.check_open()
        timeout = parse_timeout(timeout)
        posted: list[Any] = []
        try:
            self._poster.post(elements, self._demand, wait, posted)
            return self._sent(posted, wait, timeout)
        except BaseException:
            self._poster.give_up(posted)
            raise

    @overload
    def send_batch(
        self, stream: str, array: Any, *, wait: Literal[True] = True, timeout: float | None = None
    ) -> SliceReport: ...
    @overload
    def send_batch(self, stream: str, array: Any, *, wait: Literal[False], timeout: float | None = None) -> Ticket: ...
    @overload
    def send_batch(
        self, stream: str, array: Any, *, wait: bool, timeout: float | None = None
    ) -> SliceReport | Ticket: ...
    def send_batch(
        self, stream: str, array: Any, *, wait: bool = True, timeout: float | None = None
    ) -> SliceReport | Ticket:
        """Send every row of the first axis as an element of `stream`, with no Python object for each.

        Parameters
        ----------
        stream : str
        array : buffer
            At least one axis; copied if it is not C-contiguous.
        wait, timeout
            As for `send`.

        Returns
        -------
        SliceReport or Ticket

        Raises
        ------
        ConfigError
            If the array has no axis; else as `send`.
        """
        self._context.check_open()
        timeout = parse_timeout(timeout)
        buffer, form = as_bytes(array, "the batch")
        if not form.shape:
            raise ConfigError("send_batch sends the rows of the first axis: give the array one, or use send")
        if form.order == "F":
            buffer, form = as_bytes(np.array(array, order="C"), "the batch")
        count, *row = form.shape
        self._demand.check(form.nbytes, stacklevel=3)
        posted: list[Any] = []
        try:
            self._poster.post_rows(stream, buffer, Form(form.dtype, tuple(row)), count, wait, posted)
            del buffer  # the traceback of an error would keep it, and a mapping of the caller's from being closed
            return self._sent(posted, wait, timeout)
        except BaseException:
            self._poster.give_up(posted)
            raise

    def _sent(self, posted: list[Any], wait: bool, timeout: float | None) -> SliceReport | Ticket:
        flight = InFlight(self._context, whole_of(posted))
        if not wait:
            return Ticket(self._context, flight, self)
        waited_for = ""
        if not self._context.waiter.until(flight.ended, timeout):
            waited_for = f"in {timeout} s {flight.waits_for}"
            flight.cancel()
        return flight.finish(waited_for)

    @overload
    def put(self, stream: str, buffer: Any, *, copy: Literal[True] = True) -> None: ...
    @overload
    def put(self, stream: str, buffer: Any, *, copy: Literal[False]) -> Ticket: ...
    @overload
    def put(self, stream: str, buffer: Any, *, copy: bool) -> Ticket | None: ...
    def put(self, stream: str, buffer: Any, *, copy: bool = True) -> Ticket | None:
        """Collect one element for a slice, which is sent in the background `slice_ms` after its first element.

        Without `slice_ms`, `flush` sends it. Blocks while `put_memory` bytes are collected and in flight.

        Parameters
        ----------
        stream : str
        buffer : buffer
            One element, as for `send`.
        copy : bool
            True: the buffer is yours again at once. False: it must not change until the Ticket is done.

        Returns
        -------
        Ticket or None
            With ``copy=False``, of the slice that the element goes with.

        Raises
        ------
        SliceTimeout, PeerLost, PoolExhausted, IntegrityError, PortError
            An earlier slice of `put` has failed, as `send` would have; this element was not taken. One call raises
            each failure: the next `put`, `flush` or `close`, or a Ticket's ``result``.
        PoolExhausted
            Also when `put_memory` is full and only `flush` would empty it, or the element is larger than that.
        TypeError, ConfigError
            For what cannot be sent.

        Warns
        -----
        DemandWarning
            With this element the slice asks for more than the ports give within `slice_ms`. It is sent anyway.
        """
        self._context.check_open()
        flight = self._batcher.put(stream, buffer, copy)
        return None if flight is None else Ticket(self._context, flight, self)

    def flush(self, timeout: float | None = None) -> None:
        """Send what `put` has collected, and wait until every slice sent with ``wait=False`` has ended.

        Raises
        ------
        SliceTimeout
            If that takes longer than `timeout` seconds.
        PeerLost, PoolExhausted, IntegrityError, PortError
            A slice of `put` has failed. Tickets report those of `send`.
        """
        timeout = parse_timeout(timeout)
        self._agent.check_process()
        self._batcher.cut()
        if not self._context.waiter.until(self._idle, timeout):
            raise SliceTimeout(f"slices are still in flight after {timeout} s: wait longer, or close by an exception")
        self._batcher.complain()

    def _idle(self) -> bool:
        return not self._agent.busy or self._ports.error is not None

    def explain(self) -> str:
        """Say why each port got its part of the newest slice, and whether the ports can meet its demand."""
        return self._poster.planner.explain(self.demand)

    # ---- state ----

    @property
    def receiver(self) -> str | None:
        """Name of the receiver that we are joined to, the first of several; None before one answered."""
        return next(iter(self.receivers), None)

    @property
    def receivers(self) -> tuple[str, ...]:
        """Names of the receivers that we are joined to now."""
        return tuple(self._agent.receivers)

    @property
    def port_table(self) -> PortTable:
        """A snapshot of the port path table, a row a port that is up."""
        return self._engine.port_table()

    @property
    def counters(self) -> dict[str, int]:
        """Frames that were dropped here, by reason, and counts of the delivery.

        ``reports`` heard, ``probes`` sent, ``spurious`` losses (the frame was only late), ``demands_unmet``.
        ``rx_nombuf``: frames dropped because the pool had no mbuf for them; ``tx_nombuf``: times that a frame to send
        waited for one.
        """
        return {**self._agent.drops(), **self._agent.counters(), "demands_unmet": self._demand.unmet}

    @property
    def demand(self) -> scheduler.Demand | None:
        """What the newest slice asks of the ports (M, B_total = 8·M / T), and what they can give.

        None without `slice_ms`, and while neither link speeds nor the rate of earlier slices are known.
        """
        return self._demand.newest

    def describe(self) -> list[dict[str, Any]]:
        """Return which driver serves each endpoint, and who uses it."""
        return self._ports.describe()

    # ---- life ----

    def close(self, *, abort: bool = False) -> None:
        """Wait for what is in flight, say goodbye, close the ports; raises what `flush` raises.

        Idempotent; after an interrupt, closing again finishes the rest.

        Parameters
        ----------
        abort : bool
            Give up what is in flight or collected, instead of waiting for it.
        """
        if self._ended or not self._agent.pid_is_ours():
            return
        self._context.closed = True
        try:
            if not abort and not self._batcher.closed:  # else we go on with an end that was interrupted
                self.flush()
        finally:
            with self._ending:
                self._end()

    def _end(self) -> None:
        """Each step may be repeated: an interrupt ends it anywhere."""
        if self._ended:
            return
        self._batcher.close()
        for outgoing in self._agent.outstanding():
            outgoing.cancel()
        self._agent.close(GOODBYE_S)
        self._engine.leave()
        self._loans.close()
        self._ended = True

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self.close(abort=kind is not None)

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, kind: object, *exc: object) -> None:
        abort = True
        try:
            if kind is None and not self._context.closed:
                self._batcher.cut()
                await self._context.waiter.until_async(self._idle, None)
            abort = kind is not None
        finally:  # also when its task is cancelled
            self.close(abort=abort)

    def __del__(self) -> None:
        if getattr(self, "_ended", True) or not self._agent.pid_is_ours():
            return
        if not self._context.closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)
        self.close(abort=True)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "open another one there, on the same endpoints")

    def __repr__(self) -> str:
        return f"<Sender {', '.join(map(str, self.endpoints))}: {self._state()}>"

    def _state(self) -> str:
        joined = ", ".join(map(repr, self.receivers))
        return "closed" if self._context.closed else f"to {joined}" if joined else "looking for a receiver"

    def _repr_html_(self) -> str:
        from aiflow._html import views  # only notebooks need it

        return views.of_side(self, f"Sender {self.name}", self._state())
