"""Rounds between two processes: the load of every peer is carried, timed and verified in the same way.

A `Link` is a source and a sink of one peer (`peers`), each in a process and on a core of its own. A round is several
slices in a row. For each slice, the sink is told to receive and the source to send. The clock of the source runs from
its first call until the sink has confirmed, over a pipe, that it has the slice as numpy arrays. Then, while no clock
runs, the sink compares a checksum of all bytes. The first slice does not count: another process has used the caches. A
round also contains the CPU time of all threads of each process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
import peers
import psutil
from loads import ROTATION, Load, checksum

from aiflow.lab.children import Child, report_failure

PATIENCE_S = 120.0
IN_A_ROW = 4
"""Slices of a round. As in real use, slices follow each other; after a switch of processes the first one is slower."""
ENDS = 64
"""Bytes at either end of a loan that is not filled."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Environment of every process: freed memory is reused, so that the loop never touches new memory."""


class PeerError(Exception):
    """A process of a peer failed. The message contains its traceback."""


@dataclass(frozen=True)
class Round:
    """Seconds of a slice, and CPU seconds of both sides."""

    seconds: float
    cpu_source: float
    cpu_sink: float

    @property
    def cpu(self) -> float:
        """CPU seconds of both sides."""
        return self.cpu_source + self.cpu_sink


@dataclass(frozen=True)
class Talk:
    """Seconds of each call of a round, and CPU seconds of both sides."""

    seconds: list[float]
    cpu: float

    def quantile(self, share: float) -> float:
        """Return this quantile of the seconds of a call."""
        return float(np.quantile(self.seconds, share))


class Process(Child):
    """One end of a link: a child that answers ``(kind, value)`` to each command."""

    error = PeerError
    detailed = True
    farewell = ("close",)

    def __init__(self, body: Any, *arguments: Any) -> None:
        super().__init__(_run_and_exit, body, *arguments, name=body.__name__)

    def answer(self, patience: float = PATIENCE_S) -> Any:
        """Return the value of the next message."""
        _kind, value = self.hear(patience)
        return value

    def ask(self, *command: Any) -> Any:
        """Send a command and return the answer."""
        self.tell(*command)
        return self.answer()


def _run_and_exit(pipe: Connection, body: Any, *arguments: Any) -> None:
    """Exit without the atexit handlers of the peers' libraries: their state is unknown."""
    try:
        body(pipe, *arguments)
    except (KeyboardInterrupt, BrokenPipeError, EOFError):
        pass
    except BaseException as error:
        report_failure(pipe, error)
        os._exit(1)
    os._exit(0)


class _Pair:
    """The two processes of a peer. The sink starts first. `about` has their versions and options."""

    def __init__(self, name: str, cores: tuple[int, int], source: Any, sink: Any, *args: Any) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory(prefix="aiflow-bench-")
        told, tells = multiprocessing.get_context("spawn").Pipe(duplex=False)
        self._ends: list[Process] = []
        try:
            with _environment(ALLOCATOR):  # malloc reads it when a process starts
                self.sink = Process(sink, name, *args, cores[1], self._directory.name, tells)
                self._ends.append(self.sink)
                self.source = Process(source, name, *args, cores[0], told)
                self._ends.insert(0, self.source)
            self.about: dict[str, Any] = self.sink.answer()
            self.source.tell(self.about.pop("address"))
            self.about.update(self.source.answer())
        except BaseException:
            self.close()
            raise
        finally:
            told.close()
            tells.close()

    def idle(self, seconds: float) -> float:
        """Return the share of a CPU that both processes use while they are idle."""
        before, begin = self.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / (time.monotonic() - begin)

    def cpu_seconds(self) -> float:
        """Return the CPU time of both processes so far."""
        return sum(_cpu_seconds(end.pid) for end in self._ends)

    @property
    def pids(self) -> list[int]:
        """Process ids of both processes."""
        return [end.pid for end in self._ends]

    def peak_memory(self) -> tuple[int, int]:
        """Return the maximum resident bytes of source and sink."""
        return self.source.ask("memory"), self.sink.ask("memory")

    def close(self) -> None:
        """End both processes."""
        for end in self._ends:
            end.close()
        self._ends = []
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Link(_Pair):
    """A peer that carries a load.

    Parameters
    ----------
    name : str
        Of `peers.CONTESTANTS`.
    load : Load
    cores : (int, int)
        CPUs of source and sink.
    """

    def __init__(self, name: str, load: Load, cores: tuple[int, int]) -> None:
        super().__init__(name, cores, _source, _sink, load)
        self.load = load
        self.rounds: list[Round] = []
        self._number = 0

    def round(self, in_a_row: int = IN_A_ROW) -> Round:
        """Carry the next slices. Return the average of all except the first one."""
        carried = [self._carry() for _ in range(in_a_row)]
        counted = carried[1:] or carried
        result = Round(*(statistics.fmean(column) for column in zip(*map(astuple, counted), strict=True)))
        self.rounds.append(result)
        return result

    def _carry(self) -> Round:
        which = self._number % ROTATION
        self._number += 1
        self.sink.tell("round", which)
        self.source.tell("round", which)
        seconds, cpu_source = self.source.answer()
        return Round(seconds, cpu_source, self.sink.answer())


class Conversation(_Pair):
    """A peer that carries one element there and the same one back, many times a round.

    Parameters
    ----------
    name : str
        Of `peers.CONTESTANTS`.
    nbytes : int
        Size of the element.
    polling : bool
        Whether both sides poll. Otherwise they wait as the peer's users do.
    cores : (int, int)
        CPUs of the caller and of the answering side.
    """

    def __init__(self, name: str, nbytes: int, polling: bool, cores: tuple[int, int]) -> None:
        super().__init__(name, cores, _caller, _answerer, nbytes, polling)
        self.rounds: list[Talk] = []

    def round(self, calls: int, pause: tuple[float, float] = (0.0, 0.0)) -> Talk:
        """Make this number of calls, each after a pause drawn between these two, in seconds."""
        self.sink.tell("round", calls)
        self.source.tell("round", calls, pause)
        seconds, cpu_source = self.source.answer()
        talk = Talk(seconds, cpu_source + self.sink.answer())
        self.rounds.append(talk)
        return talk


class Handover(_Pair):
    """A peer that lends the sender memory, and hands the receiver an array of the same bytes. Both sides poll.

    A large loan that is filled takes the caches: code and objects of the next `send` come from memory. So there are two
    kinds of rounds. In one of them the sender writes the ends of the loan only, and the caches are warm at any size.

    Parameters
    ----------
    name : str
        Of `peers.CONTESTANTS`.
    nbytes : int
        Size of the loan.
    cores : (int, int)
        CPUs of the sender and of the receiver.
    """

    def __init__(self, name: str, nbytes: int, cores: tuple[int, int]) -> None:
        super().__init__(name, cores, _lender, _borrower, nbytes)
        self.rounds: list[list[float]] = []
        self.filled: list[list[float]] = []

    def round(self, calls: int, filled: bool) -> list[float]:
        """Hand over this number of loans. Return the seconds of each, from `send` to the array in hand."""
        self.sink.tell("round", calls, filled)
        self.source.tell("round", calls, filled)
        seconds: list[float] = self.source.answer()
        self.sink.answer()
        (self.filled if filled else self.rounds).append(seconds)
        return seconds


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its threads in nanosecond resolution (psutil counts ticks)."""
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID if pid == os.getpid() else (~pid << 3) | 2)


def _peak() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def _commands(pipe: Connection) -> Iterator[list[Any]]:
    """Yield the arguments of each requested round."""
    while True:
        command, *arguments = pipe.recv()
        if command == "close":
            return
        if command == "memory":
            pipe.send(("ok", _peak()))
        else:
            yield arguments


def _source(pipe: Connection, name: str, load: Load, core: int, told: Connection) -> None:
    os.sched_setaffinity(0, {core})
    peer, options = peers.find(name)
    slices = load.slices()
    (address,) = pipe.recv()
    source = peer.Source(address, load, **options)
    pipe.send(("ready", getattr(source, "about", {})))
    for (which,) in _commands(pipe):
        cpu = time.process_time()
        begin = time.perf_counter()
        source.send(slices[which])
        if not told.poll(PATIENCE_S):
            raise TimeoutError("the sink did not confirm the slice")
        told.recv_bytes()
        took = time.perf_counter() - begin
        pipe.send(("ok", (took, time.process_time() - cpu)))
    source.close()


def _sink(pipe: Connection, name: str, load: Load, core: int, directory: str, tells: Connection) -> None:
    os.sched_setaffinity(0, {core})
    peer, options = peers.find(name)
    expected = [checksum(elements) for elements in load.slices()]
    sink = peer.Sink(directory, load, **options)
    pipe.send(("ready", {"address": sink.address, "version": peer.version(), **getattr(sink, "about", {})}))
    for (which,) in _commands(pipe):
        cpu = time.process_time()
        arrays = sink.recv()
        tells.send_bytes(b"!")
        cpu = time.process_time() - cpu
        parts = sink.parts(arrays) if hasattr(sink, "parts") else arrays
        if checksum(parts) != expected[which]:
            raise AssertionError(f"{name}: the slice did not arrive as it was sent")
        del arrays, parts
        if hasattr(sink, "release"):  # the receiver's work, too: other peers do it in recv
            before = time.process_time()
            sink.release()
            cpu += time.process_time() - before
        pipe.send(("ok", cpu))
    sink.close()


def _caller(pipe: Connection, name: str, nbytes: int, polling: bool, core: int, told: Connection) -> None:
    os.sched_setaffinity(0, {core})
    peer, options = peers.find(name)
    (address,) = pipe.recv()
    caller = peer.Caller(address, nbytes, polling, **options)
    random = np.random.default_rng(2024)
    array = random.integers(0, 256, nbytes, np.uint8)
    pipe.send(("ready", {}))
    for calls, pause in _commands(pipe):
        cpu = time.process_time()
        seconds = []
        for _ in range(calls):
            if pause[1]:
                time.sleep(random.uniform(*pause))
            array[:8] += 1
            begin = time.perf_counter()
            reply = caller.call(array)
            seconds.append(time.perf_counter() - begin)
            if not np.array_equal(reply, array):
                raise AssertionError(f"{name}: the answer differs from the request")
        pipe.send(("ok", (seconds, time.process_time() - cpu)))
    caller.close()


def _answerer(
    pipe: Connection, name: str, nbytes: int, polling: bool, core: int, directory: str, tells: Connection
) -> None:
    os.sched_setaffinity(0, {core})
    peer, options = peers.find(name)
    answerer = peer.Answerer(directory, nbytes, polling, **options)
    pipe.send(("ready", {"address": answerer.address, "version": peer.version()}))
    for (calls,) in _commands(pipe):
        cpu = time.process_time()
        for _ in range(calls):
            answerer.answer()
        pipe.send(("ok", time.process_time() - cpu))
    answerer.close()


class _Contents:
    """What a loan holds: bytes that differ from those of the loan before, or a number at both ends."""

    def __init__(self, nbytes: int) -> None:
        random = np.random.default_rng(2024)
        self._patterns = [random.integers(0, 256, nbytes, np.uint8) for _ in range(2)]

    def write(self, array: np.ndarray[Any, Any], number: int, filled: bool) -> None:
        if filled:
            np.copyto(array, self._patterns[number % 2])
        else:
            array[:ENDS] = array[-ENDS:] = number % 256

    def check(self, array: np.ndarray[Any, Any], number: int, filled: bool) -> bool:
        if filled:
            return np.array_equal(array, self._patterns[number % 2])
        return bool((array[:ENDS] == number % 256).all() and (array[-ENDS:] == number % 256).all())


def _lender(pipe: Connection, name: str, nbytes: int, core: int, told: Connection) -> None:
    os.sched_setaffinity(0, {core})
    peer, options = peers.find(name)
    contents = _Contents(nbytes)
    (address,) = pipe.recv()
    lender = peer.Lender(address, nbytes, **options)
    pipe.send(("ready", {}))
    for calls, filled in _commands(pipe):
        seconds = []
        for number in range(calls):
            contents.write(lender.lend(), number, filled)
            begin = time.perf_counter()
            lender.send()
            if not told.poll(PATIENCE_S):
                raise TimeoutError("the sink did not confirm the loan")
            (end,) = struct.unpack("d", told.recv_bytes())
            seconds.append(end - begin)  # CLOCK_MONOTONIC is the same in all processes
        pipe.send(("ok", seconds))
    lender.close()


def _borrower(pipe: Connection, name: str, nbytes: int, core: int, directory: str, tells: Connection) -> None:
    os.sched_setaffinity(0, {core})
    peer, options = peers.find(name)
    contents = _Contents(nbytes)
    borrower = peer.Borrower(directory, nbytes, **options)
    pipe.send(("ready", {"address": borrower.address, "version": peer.version(), "lends": borrower.lends}))
    for calls, filled in _commands(pipe):
        for number in range(calls):
            array = borrower.take()
            end = time.perf_counter()
            if not contents.check(array, number, filled):
                raise AssertionError(f"{name}: the loan did not arrive as it was written")
            del array
            borrower.give_back()
            tells.send_bytes(struct.pack("d", end))
        pipe.send(("ok", None))
    borrower.close()


class BusyMeter:
    """The share of the machine that other processes used since the start: neither idle nor used by this benchmark."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._begin = self._read()

    def _read(self) -> tuple[float, float, float]:
        cpu = psutil.cpu_times()
        idle = cpu.idle + cpu.iowait
        busy = cpu.user + cpu.nice + cpu.system + cpu.irq + cpu.softirq + cpu.steal
        own = sum(sum(process.cpu_times()[:2]) for process in self._processes)
        return idle + busy, busy, own

    def others(self) -> float:
        """Return the share, 0 … 1."""
        total, busy, own = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        return max(0.0, (busy - own) / total) if total else 0.0


def take_turns(links: Sequence[Link], rounds: int, warm_up: int) -> None:
    """Run rounds of all links in turn, in alternating order. `Link.rounds` then has the rounds after the warm-up."""
    for number in range(warm_up + rounds):
        if number == warm_up:
            for link in links:
                link.rounds.clear()
        for link in links if number % 2 else reversed(links):
            link.round()
