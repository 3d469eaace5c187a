"""aiflow beside the alternatives of a Python user: rounds in turn, ratios of pairs.

pytest-benchmark's own columns are the peer's seconds per round, from the clock of the sending process. The comparison
is in `extra_info`: both rates, CPU seconds per GB of both, and the ratios with their intervals.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from contest import IN_A_ROW, BusyMeter, Conversation, Link
from loads import Load
from peer_rows import CarryRow, IdleRow, TalkRow
from side_by_side import CALLS, LATENCY_BYTES, load_of

YARDSTICKS = ["memcpy", *(f"bare loop, {copies} copies" for copies in ("four", "three", "two"))]
FEW_COPIES = ["shared-memory ring", "iceoryx2", "zenoh"]
LIBRARIES = ["pyzmq ipc", "TCP sockets", *FEW_COPIES, "Arrow Flight"]
CASES = {
    "demo": [
        *YARDSTICKS,
        *LIBRARIES,
        *("shared-memory ring, 1 MB", "pyzmq tcp", "gRPC", "gRPC + gzip", "aiflow, mbufs kept"),
    ],
    "huge": [*YARDSTICKS, *LIBRARIES, "gRPC"],
    "64": LIBRARIES,
    "512": LIBRARIES,
    "4096": ["memcpy", *LIBRARIES, "gRPC"],
}
TALKS = {
    True: ["pyzmq ipc", "TCP sockets", *FEW_COPIES],
    False: ["pyzmq ipc", "TCP sockets", "iceoryx2", "zenoh", "Arrow Flight", "gRPC"],
}
WARM_UP = 3  # slices: they touch new memory
LEAST = 3  # minimum rounds of a slow peer, of one slice each if need be
IDLE_SETTLE_S, IDLE_S = 1.0, 5.0
AddRow = Callable[[Any], dict[str, Any]]


class _Clock:
    """Seconds measured by the children, as a timer for pytest-benchmark."""

    seconds = 0.0

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


_CLOCK = _Clock()


def seconds_measured() -> float:
    return _CLOCK.seconds


def _need(name: str) -> None:
    if why := peers.missing(name):
        pytest.skip(why)


@pytest.fixture(scope="module")
def ours(request: pytest.FixtureRequest, cores: tuple[int, int]) -> Iterator[Link]:
    """The processes of aiflow, the same ones beside each peer that carries the load."""
    with Link("aiflow", load_of(request.param), cores) as link:
        link.round(WARM_UP)
        yield link


@pytest.fixture(scope="module")
def our_talk(request: pytest.FixtureRequest, cores: tuple[int, int]) -> Iterator[Conversation]:
    """The same for conversations."""
    with Conversation("aiflow", LATENCY_BYTES, request.param, cores) as pair:
        pair.round(CALLS)
        yield pair


def _settle(link: Link, seconds: float) -> tuple[int, int]:
    """Warm a link up. Return the number of rounds that fit into `seconds`, and their number of slices."""
    begin = time.monotonic()
    link.round(1)
    once = time.monotonic() - begin
    if once * WARM_UP < seconds:
        begin = time.monotonic()
        link.round(WARM_UP - 1)
        once = (time.monotonic() - begin) / (WARM_UP - 1)
    link.rounds.clear()
    in_a_row = max(1, min(IN_A_ROW, int(seconds / once / LEAST)))
    return max(LEAST, int(seconds / once / in_a_row)), in_a_row


@pytest.mark.benchmark(timer=seconds_measured)
@pytest.mark.parametrize(
    ("ours", "name"), [(load, name) for load, names in CASES.items() for name in names], indirect=["ours"]
)
def test_carry(benchmark: Any, ours: Link, name: str, cores: Any, rounds: int, seconds: float, row: AddRow) -> None:
    _need(name)
    load: Load = ours.load
    with Link(name, load, cores) as theirs:
        possible, in_a_row = _settle(theirs, seconds)
        ours.rounds.clear()
        busy = BusyMeter([*ours.pids, *theirs.pids])

        def both() -> None:
            for link in (ours, theirs) if len(ours.rounds) % 2 else (theirs, ours):
                link.round(in_a_row)
            _CLOCK.advance(theirs.rounds[-1].seconds)

        benchmark.group = load.name
        benchmark.pedantic(both, rounds=min(rounds, possible))
        others = busy.others()
    if not benchmark.stats:
        return  # --benchmark-disable
    result = CarryRow.of(load, ours.rounds, theirs, others)
    benchmark.extra_info.update(**row(result), aiflow_about=ours.about, about=theirs.about, cores=list(cores))


@pytest.mark.benchmark(timer=seconds_measured)
@pytest.mark.parametrize(
    ("our_talk", "name", "polling"),
    [pytest.param(polling, name, polling) for polling, names in TALKS.items() for name in names],
    indirect=["our_talk"],
)
def test_talk(
    benchmark: Any, our_talk: Conversation, name: str, polling: bool, cores: Any, rounds: int, row: AddRow
) -> None:
    _need(name)
    with Conversation(name, LATENCY_BYTES, polling, cores) as theirs:
        theirs.round(CALLS)
        theirs.rounds.clear()
        our_talk.rounds.clear()
        busy = BusyMeter([*our_talk.pids, *theirs.pids])

        def both() -> None:
            our_talk.round(CALLS)
            _CLOCK.advance(statistics.median(theirs.round(CALLS).seconds))

        benchmark.group = f"{LATENCY_BYTES} B there and back, " + ("both sides poll" if polling else "idle back-off")
        benchmark.pedantic(both, rounds=rounds)
        others = busy.others()
    if not benchmark.stats:
        return
    result = TalkRow.of(name, polling, our_talk.rounds, theirs.rounds, CALLS, others)
    benchmark.extra_info.update(**row(result), about=theirs.about, cores=list(cores))


@pytest.mark.benchmark(timer=seconds_measured)
def test_idle(benchmark: Any, cores: Any, row: AddRow) -> None:
    """Measure the CPU time of connected, idle pairs: all pairs at the same time."""
    load = load_of("4096")
    names = [name for name in ["aiflow", *LIBRARIES] if not peers.missing(name)]
    with contextlib.ExitStack() as life:
        links = [life.enter_context(Link(name, load, cores)) for name in names]
        for link in links:
            link.round(1)

        def idle() -> dict[str, float]:
            time.sleep(IDLE_SETTLE_S)
            _CLOCK.advance(IDLE_S)
            begins = [link.cpu_seconds() for link in links]
            begin = time.monotonic()
            time.sleep(IDLE_S)
            took = time.monotonic() - begin
            return {link.name: (link.cpu_seconds() - before) / took for link, before in zip(links, begins, strict=True)}

        benchmark.group = "idle"
        shares = benchmark.pedantic(idle)
    if not benchmark.stats:
        return
    result = IdleRow(shares)
    benchmark.extra_info.update(**row(result))
