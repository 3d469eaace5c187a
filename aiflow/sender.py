"""The sending side: `Sender`, and the `Ticket` of a slice under way."""

from __future__ import annotations

import itertools
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from aiflow import monitor, scheduler
from aiflow._dp_tx import MOST_RECEIVERS, TxLoop
from aiflow._eal import Mempool
from aiflow._encode import encode, encode_pieces, encode_rows
from aiflow._policy.flow_control import FlowControl
from aiflow._ports.portset import PortSet
from aiflow._system import threads
from aiflow._transfer import result
from aiflow._transfer.batcher import PutTicket, Streaming
from aiflow._transfer.fanout import Partition, array_of, whole_of
from aiflow._transfer.manifest import Form, Piece, as_bytes, described
from aiflow._transfer.ticket import Ticket, again
from aiflow._transfer.waiter import Waiting
from aiflow.config import (
    INTERVAL_S,
    SCORE_WEIGHTS,
    check_scheduling,
    parse_endpoints,
    parse_idle,
    parse_max_cores,
    parse_names,
    parse_seconds,
    parse_size,
    parse_switch_limits,
    parse_switches,
    parse_timeout,
)
from aiflow.errors import ConfigError, SliceTimeout, not_copied
from aiflow.report import PortTable, SliceReport, port_table

__all__ = ["Sender", "Ticket"]

MBUFS_PER_PORT = 3071
"""Both rings of a port (1024 each at the most, which virtio fills up front), what is staged, and the caches."""

GOODBYE_S = 0.5
"""How long `close` waits for the receiver's answer to our BYE."""

_serial = itertools.count(1)


def _default_name() -> str:
    """Host and process id, and a number that tells the process's Senders apart from the second on."""
    serial = next(_serial)
    return f"{socket.gethostname()}-{os.getpid()}{f'-{serial}' if serial > 1 else ''}"[-60:]


def _pool_for(frame_size: int, socket_id: int, nb_ports: int, needs_eal_memory: bool) -> Mempool:
    return Mempool(f"tx-{frame_size}", nb_ports * MBUFS_PER_PORT, frame_size, socket_id, not needs_eal_memory)


class Sender:
    """Sends time slices to a receiver over every port it is given.

    Parameters
    ----------
    ports : str or list of str
        Endpoints: ``"local:NAME"``, ``"local:NAME*4"``, ``"af_packet:IFNAME"``, … (`aiflow ports` lists them all); 32
        ports in a process at the most.
    to : str or list of str, optional
        The receiver's name; default: the only one that answers. Several names, 16 at the most: each slice is spread
        over these receivers, over the same ports or over ports of their own.
    name : str, optional
        What receivers see as `TimeSlice.sender`, at most 63 bytes; default: host and process id, and a number
        from the process's second Sender on.
    partition : str or callable
        How a slice is spread over several receivers. ``"balanced"``: even by bytes. ``"by_stream"``: each stream stays
        with one receiver. Or ``(elements, receivers) → an index into receivers for each element``; it is given a list
        of (stream, ndarray) and the receivers' names. Each receiver gets its part as a slice, be it empty.
    policy : str
        Port choice: ``"pull"``, ``"score"``, ``"round_robin"``, ``"weighted"``, ``"least_queue"``.
    flow_control : str or flow.FlowControl
        ``"credit"``, ``"reverse"``, ``"static"``, ``"token_bucket"``, ``"none"``, or one with constants of its own.
    slice_ms : float, optional
        Length of a time slice in milliseconds. `put` collects for so long; what each slice asks of the ports is
        compared with what they can give (`demand`). Default: `put` collects until `flush`, and nothing is compared.
    put_memory : int or str
        Bytes that `put` may have collected and under way, as a number or "256MiB"; then it blocks.
    peer_timeout : float
        Seconds without a sign of life from the receiver before `PeerLost`. A receiver that lives and grants nothing,
        because its reader is slow, never counts.
    frame_size : int, optional
        Largest Ethernet frame in bytes, header included, from 512 to 65000. Default: what the ports take. A port or
        path that takes less than what is asked for is an error.
    idle : str
        What a thread does that waits for a slice, and polls the ports meanwhile. ``"backoff"``: it spins for some
        microseconds, yields, then sleeps, longer and longer. ``"spin"``: it polls without a pause, for the least
        latency, and takes a core's whole time while it waits: give both ends a core of their own.
    max_cores : float, optional
        The most processor time that moving the frames may take, in cores: with 0.25 it rests for three quarters of the
        time, and slices take longer. One thread at a time serves all ports, so 1 or more changes nothing. What your own
        threads do besides (describing elements, for one) is not counted. From 0.001 on; default: no limit.
    link_speed : str or number, or a list of them, optional
        What each port's link carries, such as ``"100mbit"`` or bit/s, one for all or one for each port, where the
        driver makes its speed up or a network behind it carries less: for the port table, the shares and the gaps.
        Under ``"credit"`` no more than 0.998 of it is sent; the gaps of the other flow controls scale with it.
    place : str
        What a policy deals out: ``"chunks"``, so that an element travels over all ports, or whole ``"elements"``.
    score_weights : sequence of float
        Of bandwidth use, ring fill and loss in a port's score: three numbers that add up to 1.
    switches : list of str or "probe", optional
        The switch that each port hangs on; ``"probe"`` finds it out from which ports answer each other.
    switch_limits : mapping, optional
        What each switch carries at most (such as ``{"switch 1": "700mbit"}``), where that is less than its ports: for
        policies that deal out shares.
    monitor_interval : float
        Seconds over which the port table's rates are measured; 0: not at all.
    faults : dict or list of dict, optional
        Faults made on purpose, for tests, in the frames that we send or that arrive, the same ones for the same seed:
        see `aiflow.config.FAULTS`. Without it the shim does not exist.

    Raises
    ------
    ConfigError
        An argument cannot be used as given.
    PortError, EalError, PoolExhausted
        A port cannot be had, DPDK cannot start here, or there is no memory for it. That no receiver is there yet is
        no error: `send` awaits it.

    Notes
    -----
    A context manager, also an async one: leaving it flushes, leaving it by an exception aborts. `send` may be called
    from several threads.
    """

    def __init__(
        self,
        ports: str | Iterable[str],
        *,
        to: str | Sequence[str] | None = None,
        name: str | None = None,
        partition: str | Callable[..., Any] = "balanced",
        policy: str = "pull",
        flow_control: str | FlowControl = "credit",
        slice_ms: float | None = None,
        put_memory: int | str = "256MiB",
        peer_timeout: float = 10.0,
        frame_size: int | None = None,
        idle: str = "backoff",
        max_cores: float | None = None,
        link_speed: str | float | Sequence[str | float] | None = None,
        place: str = "chunks",
        score_weights: Sequence[float] = SCORE_WEIGHTS,
        switches: Sequence[str] | str | None = None,
        switch_limits: Mapping[str, str | float] | None = None,
        monitor_interval: float = INTERVAL_S,
        faults: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        self._closed = self._ended = True  # takes no work; has nothing left to close
        self._ending = threads.unpatched("threading").RLock()  # a signal handler may close, too
        self.endpoints = parse_endpoints(ports)
        check_scheduling(policy, place, score_weights)
        spins = parse_idle(idle)
        max_cores = parse_max_cores(max_cores)
        self.policy = policy
        self.place = place
        self.flow_control = FlowControl.of(flow_control)
        nb_ports = sum(endpoint.nb_ports for endpoint in self.endpoints)
        parse_switches(switches, nb_ports)
        self._switch_limits = parse_switch_limits(switch_limits)
        speeds = monitor.LinkSpeeds(link_speed, nb_ports)
        self.name = name if name is not None else _default_name()
        self.peer_timeout = parse_seconds(peer_timeout, "peer_timeout")
        self.slice_ms = slice_ms
        # Every receiver sees the slices in the same order. A signal handler may send while a send is interrupted.
        self._posting = threads.unpatched("threading").RLock()
        self._unposted: tuple[list[Callable[[list[Any]], Any]], list[Any]] | None = None  # of the send interrupted
        self._streaming = Streaming(
            self,
            None if slice_ms is None else parse_seconds(slice_ms, "slice_ms") / 1e3,
            parse_size(put_memory),
            self._posting,
        )
        self._to = parse_names(to, MOST_RECEIVERS)
        self._partition = Partition(partition, self._to)
        self._planned: tuple[tuple[int, int, int], scheduler.Plan] | None = None  # what the newest plan was made for
        flow = self.flow_control
        self._loop = TxLoop(
            self.name,
            self._to or [""],
            nb_ports,
            self.peer_timeout,
            frame_size is not None,
            faults,
            # the loop's thread must not hold the Sender
            lambda index, port: flow.pace(speeds.of(index, port), given=speeds.given(index) is not None),
            monitor_interval,
        )
        self._monitor = monitor.Monitor(self._loop, speeds, score_weights, switches)
        self._waiting = Waiting(self._loop)
        self._loop.spins = spins
        self._loop.max_cores = max_cores
        self._loop.start("aiflow-sender")
        try:
            self._ports = PortSet(
                self.endpoints,
                "sender",
                pool_for=_pool_for,
                attach=self._loop.attach,
                detach=self._loop.detach,
                frame_size=frame_size,
                joining=self._loop.set_joining,
                died=self._loop.note_death,
            )
        except BaseException:
            self._loop.stop()
            raise
        self._closed = self._ended = False

    # ---- sending ----

    def send(self, elements: Any, *, wait: bool = True, timeout: float | None = None) -> Any:
        """Send one time slice.

        Parameters
        ----------
        elements : mapping or iterable
            Stream → buffer, or (stream, buffer) pairs, or buffers (streams "0", "1", …). A buffer is bytes, a
            memoryview, a numpy array of any shape and order whose dtype is made of numpy's own types, or whatever has
            the buffer protocol or DLPack on the CPU. Arrays that are not in one piece are copied, all others are read
            where they lie. A subclass of ndarray (matrix, recarray, one with a unit …) travels as a plain array, and a
            dtype without its metadata and its ``align=True``; offsets of fields stay. A `TimeSlice`, a `Shard` or
            elements of them are sent on as they are, each under the stream that it came with.
        wait : bool
            Return once the receiver holds all of it; False: return a `Ticket` at once, with the first frames on their
            way. The buffers must not change until the Ticket is done.
        timeout : float, optional
            Seconds for the whole call, the wait for a receiver included. Only with `wait`.

        Returns
        -------
        SliceReport or Ticket

        Raises
        ------
        SliceTimeout
            `timeout` ran out; `delivered` says whether the receiver may hold it.
        PeerLost
            No receiver answered, or it fell silent, for `peer_timeout` seconds, or it went away in mid-slice.
        PoolExhausted
            The slice is larger than the receiver's ``memory``.
        IntegrityError
            What arrived is not what was sent: a buffer was changed meanwhile.
        PortError
            A port cannot come up, or a path carries small frames and not full ones.
        ConfigError
            Several receivers answer and `to` names none, or the Sender is closed.
        EalError
            This process was forked from the Sender's.
        TypeError
            For a bare buffer, a str, objects, a masked array, or a dtype of another library (bfloat16, for one): send
            its ``.view(np.uint16)``.

        Notes
        -----
        It delivers, or raises; ``delivered`` on the error says whether the receiver holds the slice (None: that cannot
        be known), ``delivered_by`` the same of several. Once it has returned, raised or been interrupted, nothing reads
        the buffers any more.
        """
        self._check_open()
        timeout = parse_timeout(timeout)
        posted: list[Any] = []
        try:
            if len(self._to) > 1:
                buffers = list(described(elements))
                self._streaming.check(self, sum(piece.form.nbytes for piece in buffers), stacklevel=3)
                with self._posting:
                    self._post_all(self._posts_of(buffers), posted)
            else:
                manifest, buffers, nbytes = encode(elements)
                self._streaming.check(self, nbytes, stacklevel=3)
                self._loop.post(buffers, manifest, self._plan(nbytes), 0, wait, posted)
            del buffers  # the traceback of an error would keep them, and a mapping of the caller's from being closed
            return self._sent(posted, wait, timeout)
        except BaseException:
            _give_up(posted)
            raise

    def _posts_of(self, pieces: list[Piece]) -> list[Callable[[list[Any]], Any]]:
        """What posts one slice: a call for each receiver's part, which it appends to the list that it is given."""
        if len(self._to) == 1 or not self._to:
            return [self._post_of(*encode_pieces(pieces), 0)]
        chosen = self._partition.split(
            [piece.stream for piece in pieces],
            [piece.form.nbytes for piece in pieces],
            lambda: [(str(piece.stream), array_of(piece.buffer, piece.form)) for piece in pieces],
        )
        return [
            self._post_of(*encode_pieces(pieces[i] for i in numbers), k, numbers)
            for k, numbers in enumerate(np.flatnonzero(chosen == k) for k in range(len(self._to)))
        ]

    def _post_of(
        self, manifest: bytes, buffers: list[Any], nbytes: int, receiver: int, numbers: Any = None
    ) -> Callable[[list[Any]], Any]:
        plan = partial(self._plan, nbytes)

        def post(into: list[Any]) -> Any:
            part = self._loop.post(buffers, manifest, plan(), receiver, False, into)
            part.numbers = numbers
            return part

        return post

    def _post_all(self, posts: list[Callable[[list[Any]], Any]], posted: list[Any]) -> None:
        """Post the parts of a slice that are not in `posted` yet, all before the parts of the next one."""
        with self._posting:
            if self._unposted is not None:  # we are a signal handler
                begun, theirs = self._unposted
                for post in begun:
                    post(theirs)
            self._unposted = posts, posted
            try:
                for post in posts:
                    post(posted)
            finally:
                self._unposted = None

    def _posts_of_rows(self, stream: str, buffer: Any, row: Form, count: int) -> list[Callable[[list[Any]], Any]]:
        """The same for like elements that follow each other in one buffer, and several receivers."""
        rows = memoryview(buffer)

        def elements() -> list[Any]:
            return [(stream, array_of(rows[i * row.nbytes : (i + 1) * row.nbytes], row)) for i in range(count)]

        def post(k: int, numbers: Any, manifest: bytes, into: list[Any]) -> Any:
            plan = self._plan(len(numbers) * row.nbytes)
            if len(numbers) and numbers[-1] - numbers[0] + 1 == len(numbers):
                piece = rows[numbers[0] * row.nbytes : (numbers[-1] + 1) * row.nbytes]
                part = self._loop.post_rows(piece, len(numbers), manifest, plan, k, False, into)
            else:
                pieces = [rows[i * row.nbytes : (i + 1) * row.nbytes] for i in numbers]
                part = self._loop.post(pieces, manifest, plan, k, False, into)
            part.numbers = numbers
            return part

        chosen = self._partition.split([stream] * count, [row.nbytes] * count, elements)
        parts = [np.flatnonzero(chosen == k) for k in range(len(self._to))]
        return [partial(post, k, part, encode_rows(stream, row, len(part))) for k, part in enumerate(parts)]

    def send_batch(self, stream: str, array: Any, *, wait: bool = True, timeout: float | None = None) -> Any:
        """Send every row of the first axis as an element of `stream`, with no Python object for each.

        Parameters
        ----------
        stream : str
            Name of the stream.
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
            If the array has no axis.
        SliceTimeout, PeerLost, PoolExhausted, IntegrityError, PortError, EalError, TypeError
            As `send`.
        """
        self._check_open()
        timeout = parse_timeout(timeout)
        buffer, form = as_bytes(array, "the batch")
        if not form.shape:
            raise ConfigError("send_batch sends the rows of the first axis: give the array one, or use send")
        if form.order == "F":
            buffer, form = as_bytes(np.array(array, order="C"), "the batch")
        count, *row = form.shape
        row_form = Form(form.dtype, tuple(row))
        self._streaming.check(self, form.nbytes, stacklevel=3)
        posted: list[Any] = []
        try:
            if len(self._to) > 1:
                with self._posting:
                    self._post_all(self._posts_of_rows(stream, buffer, row_form, count), posted)
            else:
                manifest = encode_rows(stream, row_form, count)
                self._loop.post_rows(buffer, count, manifest, self._plan(form.nbytes), 0, wait, posted)
            del buffer  # as in `send`
            return self._sent(posted, wait, timeout)
        except BaseException:
            _give_up(posted)
            raise

    def put(self, stream: str, buffer: Any, *, copy: bool = True) -> PutTicket | None:
        """Give one element to the stream of slices: it is collected, and sent in the background.

        A slice holds what came within `slice_ms` milliseconds of its first element; without `slice_ms`, what came until
        `flush`. Blocks while `put_memory` bytes are collected and under way.

        Parameters
        ----------
        stream : str
            Name of the stream.
        buffer : buffer
            One element, as for `send`.
        copy : bool
            True: the buffer is yours again at once. False: it is read where it lies, and yours again when the Ticket
            is done; until then it must not change.

        Returns
        -------
        Ticket or None
            With ``copy=False``, of the slice that the element goes with.

        Raises
        ------
        SliceTimeout, PeerLost, PoolExhausted, IntegrityError, PortError
            An earlier slice of `put` has failed, as `send` would have; this element was not taken. Each failure is
            told once: by the next `put`, `flush` or `close`, or by a Ticket's ``result``.
        PoolExhausted
            Also when `put_memory` is full and only `flush` would empty it, or the element is larger than that.
        TypeError, ConfigError
            For what cannot be sent.

        Warns
        -----
        DemandWarning
            With this element the slice asks for more than the ports can give within `slice_ms`. It is sent even so.
        """
        self._check_open()
        return self._streaming.put(self, stream, buffer, copy)

    def flush(self, timeout: float | None = None) -> None:
        """Send what `put` has collected, and wait until every slice sent with ``wait=False`` has ended.

        Raises
        ------
        SliceTimeout
            If that takes longer than `timeout` seconds.
        PeerLost, PoolExhausted, IntegrityError, PortError
            A slice of `put` has failed. (What `send` was given tells by its Ticket.)
        """
        timeout = parse_timeout(timeout)
        self._loop.check_process()
        self._streaming.cut()
        if not self._waiting.until(self._idle, timeout):
            raise SliceTimeout(f"slices are still under way after {timeout} s: wait longer, or close by an exception")
        self._streaming.complain()

    def _idle(self) -> bool:
        return not self._loop.busy or self._ports.error is not None

    def _plan(self, nbytes: int) -> scheduler.Plan:
        measured = self.policy in scheduler.SHARING
        now = (nbytes, *self._monitor.begin_slice())
        planned = self._planned  # another thread may send, too
        if planned is None or planned[0] != now or measured:  # without measures it depends on nothing else
            plan = self._plan_of(nbytes, self._monitor.port_states(*now[1:], measured))
            self._planned = planned = now, plan
        return planned[1]

    def _plan_of(self, nbytes: int, states: list[scheduler.PortState]) -> scheduler.Plan:
        return scheduler.plan(
            self.policy,
            nbytes,
            states,
            weights=self._monitor.weights,
            place=self.place,
            switch_limits=self._switch_limits,
        )

    def explain(self) -> str:
        """Why each port got what it got in the newest slice, and what that asked of them beside what they can give."""
        if self._planned is None:
            return "nothing was sent yet"
        (nbytes, _, usable), plan = self._planned
        if not usable:  # it was made before a receiver was there, as the first one is
            plan = self._plan_of(nbytes, self._monitor.port_states(0, 0))
        demand = self.demand
        return "\n".join([plan.explain() or "no port is up", *([demand.explain()] if demand is not None else [])])

    def _sent(self, posted: list[Any], wait: bool, timeout: float | None) -> Any:
        outgoing = whole_of(posted)
        ticket = Ticket(self, outgoing)
        if not wait:
            return ticket
        waited_for = ""
        if not self._waiting.until(ticket._ended, timeout):
            waited_for = f"in {timeout} s {self._waits_for(outgoing)}"
            outgoing.cancel()
        return ticket._finish(waited_for)

    def _report(self, outgoing: Any, waited_for: str = "") -> SliceReport:
        if any(part.error != "ok" for part in outgoing.parts):
            known = self._known(result.blamed(outgoing).receiver)
            raise result.failure(outgoing, known, self._name_of, waited_for)
        return result.report(outgoing, self._loop.port_names, self._name_of)

    def _known(self, receiver: int) -> result.Known:
        return result.Known(
            self.endpoints,
            self.peer_timeout,
            self._to[receiver] if self._to else "",
            self._loop.others(receiver),
            self._loop.rivals(receiver),
            self._loop.drops(),
            self._loop.dropped(receiver),
            self._ports.hints(),
        )

    def _waits_for(self, outgoing: Any) -> str:
        """What a slice that has not ended waits for."""
        receiver = next((part.receiver for part in outgoing.parts if not part.done), 0)
        return result.waits_for(outgoing, self._known(receiver))

    def _name_of(self, part: Any) -> str:
        return self._to[part.receiver] if len(self._to) > 1 else str(self._loop.last_receiver())

    # ---- what is to be seen ----

    @property
    def receiver(self) -> str | None:
        """Name of the receiver that we are joined to, the first of several; None before one answered."""
        return next(iter(self.receivers), None)

    @property
    def receivers(self) -> tuple[str, ...]:
        """Names of the receivers that we are joined to now."""
        return tuple(self._loop.receivers)

    @property
    def port_table(self) -> PortTable:
        """A snapshot of the port path table, a row a port that is up."""
        return port_table(self._monitor)

    @property
    def counters(self) -> dict[str, int]:
        """Frames that were not taken, by reason; what the delivery did; slices that asked too much of the ports.

        ``reports`` heard, ``probes`` sent, ``spurious``: frames called lost that had only been late, ``demands_unmet``;
        ``rx_nombuf``: frames dropped because their pool had no mbuf for them, ``tx_nombuf``: times that a frame to send
        waited for one.
        """
        return {**self._loop.drops(), **self._loop.counters(), "demands_unmet": self._streaming.unmet}

    @property
    def demand(self) -> scheduler.Demand | None:
        """What the newest slice asks of the ports (M, B_total = M / T), and what they can give.

        None without `slice_ms`, and while neither the links' speeds nor a slice's have told.
        """
        return self._streaming.demand

    def describe(self) -> list[dict[str, Any]]:
        """Which driver serves each endpoint."""
        return self._ports.describe()

    # ---- life ----

    def _check_open(self) -> None:
        self._loop.check_process()
        if self._closed:
            raise ConfigError("this Sender is closed: open another one")
        if self._ports.error is not None:
            raise again(self._ports.error)

    def close(self, *, abort: bool = False) -> None:
        """Wait for what is in flight, say goodbye, close the ports; raises what `flush` raises.

        Idempotent; after an interrupt, closing again finishes what was left.

        Parameters
        ----------
        abort : bool
            Give up what is under way or was collected, instead of waiting for it.
        """
        if self._ended or not self._loop.pid_is_ours():
            return
        self._closed = True
        try:
            if not abort and not self._streaming.closed:  # else we go on with an end that was interrupted
                self.flush()
        finally:
            with self._ending:
                self._end()

    def _end(self) -> None:
        """Each step may be repeated: an interrupt ends it anywhere."""
        if self._ended:
            return
        self._streaming.close()
        for outgoing in self._loop.outstanding():
            outgoing.cancel()
        self._loop.close(GOODBYE_S)
        self._ports.close()
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
            if kind is None and not self._closed:
                self._streaming.cut()
                await self._waiting.until_async(self._idle, None)
            abort = kind is not None
        finally:  # also when its task is cancelled
            self.close(abort=abort)

    def __del__(self) -> None:
        if getattr(self, "_ended", True) or not self._loop.pid_is_ours():
            return
        if not self._closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)
        self.close(abort=True)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise not_copied(self, "open another one there, on the same endpoints")

    def __repr__(self) -> str:
        joined = ", ".join(map(repr, self.receivers))
        state = "closed" if self._closed else f"to {joined}" if joined else "looking for a receiver"
        return f"<Sender {', '.join(map(str, self.endpoints))}: {state}>"


def _give_up(posted: list[Any]) -> None:
    """End what an error or an interrupt has left under way: nothing reads the buffers after this."""
    for part in posted:
        part.cancel()
