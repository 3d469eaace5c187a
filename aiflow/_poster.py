"""Elements → posted slices: planned for the ports, encoded, spread over the receivers, and given to the loop.

`Poster` and `Planner` are parts of one Sender and never hold it: a Sender that is dropped can go.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from aiflow import scheduler
from aiflow._dp_outgoing import give_up
from aiflow._dp_tx import TxAgent
from aiflow._encode import encode, encode_pieces, encode_rows
from aiflow._system import threads
from aiflow._transfer.batcher import Post
from aiflow._transfer.demand import DemandMeter
from aiflow._transfer.fanout import Partition, array_of
from aiflow._transfer.form import Form
from aiflow._transfer.manifest import Piece, described
from aiflow.config import parse_switch_limits
from aiflow.monitor import Monitor
from aiflow.options import Scheduling

__all__ = ["Planner", "Poster"]


class Planner:
    """Makes a `scheduler.Plan` for each slice, and explains the newest.

    Parameters
    ----------
    monitor : Monitor
    scheduling : Scheduling
    """

    def __init__(self, monitor: Monitor, scheduling: Scheduling) -> None:
        self._monitor = monitor
        self._scheduling = scheduling
        self._limits = parse_switch_limits(scheduling.switch_limits)
        self._is_measured = scheduling.policy in scheduler.SHARING
        self._newest: tuple[tuple[int, int, int], scheduler.Plan] | None = None  # and what it depends on

    def plan(self, nbytes: int) -> scheduler.Plan:
        """The plan of a slice of `nbytes` that begins now."""
        now = (nbytes, *self._monitor.begin_slice())
        newest = self._newest  # another thread may send, too
        if newest is None or newest[0] != now or self._is_measured:  # without measures it depends on nothing else
            plan = self._plan_for(nbytes, self._monitor.port_states(*now[1:], self._is_measured))
            self._newest = newest = now, plan
        return newest[1]

    def _plan_for(self, nbytes: int, states: list[scheduler.PortState]) -> scheduler.Plan:
        asked = self._scheduling
        return scheduler.plan(
            asked.policy, nbytes, states, weights=asked.weights, place=asked.place, switch_limits=self._limits
        )

    def explain(self, demand: scheduler.Demand | None) -> str:
        """Why each port got its part of the newest slice, a line a port; then the demand, if there is one."""
        if self._newest is None:
            return "nothing was sent yet"
        (nbytes, _, usable), plan = self._newest
        if not usable:  # it was made before a receiver was there, as the first one is
            plan = self._plan_for(nbytes, self._monitor.port_states(0, 0))
        return "\n".join([plan.explain() or "no port is up", *([demand.explain()] if demand is not None else [])])


class Poster:
    """Posts slices, all parts of one before the parts of the next: every receiver sees the same order.

    Parameters
    ----------
    agent : TxAgent
    planner : Planner
    partition : Partition
        Names the receivers: none for the only one that answers.

    Attributes
    ----------
    lock : threading.RLock
        Held while a slice for several receivers is posted. A signal handler may send while a send is interrupted.
    """

    def __init__(self, agent: TxAgent, planner: Planner, partition: Partition) -> None:
        self.lock = threads.unpatched("threading").RLock()
        self.planner = planner
        self._agent = agent
        self._partition = partition
        self._nb_receivers = len(partition.receivers)
        self._interrupted: tuple[list[Post], list[Any]] | None = None  # the slice whose posting was interrupted

    def post(self, elements: Any, demand: DemandMeter, wait: bool, posted: list[Any]) -> None:
        """Post what `Sender.send` was given; the parts are appended to `posted`."""
        if self._nb_receivers > 1:
            pieces = list(described(elements))
            demand.check(sum(piece.form.nbytes for piece in pieces), stacklevel=4)
            with self.lock:
                self.post_all(self.posts_of(pieces), posted)
        else:
            manifest, buffers, nbytes = encode(elements)
            demand.check(nbytes, stacklevel=4)
            self._agent.post(buffers, manifest, self.planner.plan(nbytes), 0, wait, posted)

    def post_rows(self, stream: str, buffer: Any, row: Form, count: int, wait: bool, posted: list[Any]) -> None:
        """Post `count` like elements that follow each other in one buffer."""
        if self._nb_receivers > 1:
            with self.lock:
                self.post_all(self._posts_of_rows(stream, buffer, row, count), posted)
        else:
            manifest = encode_rows(stream, row, count)
            self._agent.post_rows(buffer, count, manifest, self.planner.plan(count * row.nbytes), 0, wait, posted)

    def posts_of(self, pieces: list[Piece]) -> list[Post]:
        """One call for each receiver's part of these elements."""
        if self._nb_receivers <= 1:
            return [self._post_of(pieces, 0)]
        chosen = self._partition.split(
            [piece.stream for piece in pieces],
            [piece.form.nbytes for piece in pieces],
            lambda: [(str(piece.stream), array_of(piece.buffer, piece.form)) for piece in pieces],
        )
        parts = [np.flatnonzero(chosen == k) for k in range(self._nb_receivers)]
        return [self._post_of([pieces[i] for i in numbers], k, numbers) for k, numbers in enumerate(parts)]

    def _post_of(self, pieces: list[Piece], receiver: int, numbers: Any = None) -> Post:
        manifest, buffers, nbytes = encode_pieces(pieces)

        def post(posted: list[Any]) -> Any:
            part = self._agent.post(buffers, manifest, self.planner.plan(nbytes), receiver, False, posted)
            part.numbers = numbers
            return part

        return post

    def _posts_of_rows(self, stream: str, buffer: Any, row: Form, count: int) -> list[Post]:
        rows = memoryview(buffer)

        def elements() -> list[Any]:
            return [(stream, array_of(rows[i * row.nbytes : (i + 1) * row.nbytes], row)) for i in range(count)]

        def post(k: int, numbers: Any, manifest: bytes, posted: list[Any]) -> Any:
            plan = self.planner.plan(len(numbers) * row.nbytes)
            if len(numbers) and numbers[-1] - numbers[0] + 1 == len(numbers):
                piece = rows[numbers[0] * row.nbytes : (numbers[-1] + 1) * row.nbytes]
                part = self._agent.post_rows(piece, len(numbers), manifest, plan, k, False, posted)
            else:
                pieces = [rows[i * row.nbytes : (i + 1) * row.nbytes] for i in numbers]
                part = self._agent.post(pieces, manifest, plan, k, False, posted)
            part.numbers = numbers
            return part

        chosen = self._partition.split([stream] * count, [row.nbytes] * count, elements)
        parts = [np.flatnonzero(chosen == k) for k in range(self._nb_receivers)]
        return [partial(post, k, part, encode_rows(stream, row, len(part))) for k, part in enumerate(parts)]

    def post_all(self, posts: list[Post], posted: list[Any]) -> None:
        """Post the parts of a slice that are not in `posted` yet, all before the parts of the next one."""
        with self.lock:
            if self._interrupted is not None:  # we are a signal handler
                begun, theirs = self._interrupted
                for post in begun:
                    post(theirs)
            self._interrupted = posts, posted
            try:
                for post in posts:
                    post(posted)
            finally:
                self._interrupted = None

    def give_up(self, posted: list[Any]) -> None:
        """End the parts that an error or an interrupt left in flight: nothing reads the buffers after this."""
        give_up(posted, self._nb_receivers)
