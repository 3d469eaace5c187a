"""What bounds a run: a verdict from two snapshots of a Sender and its Receiver, or of one of them.

`RULES` is the table. Each rule gives a cause a strength between 0 and 1 from measured shares of the time. The strongest
cause wins if it is strong enough and no other comes near; else the verdict is "unclear". A wrong name is worse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from aiflow._observe.kernel import Thread

__all__ = ["CAUSES", "Cpu", "End", "Measures", "Verdict", "measures", "verdict"]

STRONG = 0.5
"""The least strength of a verdict."""

ADVICE = "look for longer (--seconds), or on the other end's host, or give the Sender link_speed="
NEAR = 0.1
"""Two causes whose strengths differ by less than this are unclear."""

CAUSES = {
    "link": "the links carry no more: add ports or faster links, or compress before you send",
    "port": "one port is much slower than the others: check its link, or leave it out",
    "sender-cpu": "the sender has too little CPU: raise its CPU limit or max_cores=, or give it a core of its own",
    "receiver-cpu": "the receiver has too little CPU: raise its CPU limit or max_cores=, or give it a core of its own",
    "reader": "the program that reads the slices is slower than they arrive: let it do less for each, or add readers",
    "memory": "slices wait for memory while the reader waits for slices: raise the Receiver's memory=",
    "disk": "the program waits for its disk: use a faster one, or write less",
    "application": "the sending program offers less than the ports carry: nothing in aiflow is to be changed",
}
"""The verdicts, and what to do."""


class Cpu(NamedTuple):
    """Shares of the time, of one process, between two snapshots.

    Attributes
    ----------
    starved : float
        Of the threads that drive the loop, the one that had the least of the CPU that it wanted was ready and had none.
    user_starved : float
        The same of all threads but the loop's worker.
    delayed : float
        A thread was ready and had none, however much it wanted.
    disk : float
        Share of looks at which a thread waited for the disk.
    """

    starved: float
    user_starved: float
    delayed: float
    disk: float


class End(NamedTuple):
    """One end of a flow at two moments: two ``sides`` of snapshots, the seconds between, and its CPU shares."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    seconds: float
    cpu: Cpu | None


class Measures(NamedTuple):
    """Shares of the time, from 0 to 1, and rates. NaN: not known, because that end is not on this host.

    Attributes
    ----------
    offered : float
        The Sender had a slice to send.
    path, grant, confirmation : float
        It waited for the delivery of granted data; for memory; for the user's confirmation there.
    sender_busy, receiver_busy : float
        The loop moved frames, or had frames and no CPU.
    sender_starved, receiver_starved : float
        A thread that wants a CPU nearly all the time was ready and had none, or the loop rested because of max_cores=.
    sender_delayed, receiver_delayed : float
        The same of any thread, however often it sleeps.
    reader_waits : float
        The reader's calls waited for a slice.
    memory_waits : float
        A slice waited for the Receiver's memory.
    behind : float
        A whole slice waited for the reader.
    sender_disk, receiver_disk : float
        A thread waited for the disk.
    busiest_port, other_ports : float
        Frames were in flight: on the port where this was longest, and on the mean of the others. One port: NaN.
    slowest_port : float
        What the slowest port sends ÷ the mean of the others: while it is busy, or, where most links are known to be
        full, of what its link carries.
    slow_port : str
        The name of the slowest port, if there are several.
    link_use : float
        What the ports sent ÷ what their links carry. NaN: a link's speed is not known.
    lost : float
        Of all frames sent.
    goodput_bps : float
        Element bits per second.
    has_links : bool
        The ports have links whose speed may be the limit: they are not shared memory.
    """

    offered: float
    path: float
    grant: float
    confirmation: float
    sender_busy: float
    receiver_busy: float
    sender_starved: float
    receiver_starved: float
    sender_delayed: float
    receiver_delayed: float
    reader_waits: float
    memory_waits: float
    behind: float
    sender_disk: float
    receiver_disk: float
    busiest_port: float
    other_ports: float
    slowest_port: float
    slow_port: str
    link_use: float
    lost: float
    goodput_bps: float
    has_links: bool


class Verdict(NamedTuple):
    """What bounds the run.

    Attributes
    ----------
    cause : str
        A key of `CAUSES`; "unclear", or "idle" when nothing was sent.
    text : str
        The verdict and its numbers, a sentence.
    advice : str
    strengths : dict
        Of each cause.
    measures : Measures
    """

    cause: str
    text: str
    advice: str
    strengths: dict[str, float]
    measures: Measures


NAN = float("nan")
SHARED = ("net_memif", "net_ring", "net_vhost", "net_virtio_user")  # drivers whose frames cross no link


def _between(value: float, least: float, most: float) -> float:
    """0 up to `least`, 1 from `most` on, and a line between. NaN counts as 0."""
    return min(max((_known(value) - least) / (most - least), 0.0), 1.0)


def _known(value: float, otherwise: float = 0.0) -> float:
    """A share that may be NaN, because its end is elsewhere."""
    return otherwise if value != value else value


def cpu_shares(
    before: Mapping[int, Thread],
    after: Mapping[int, Thread],
    seconds: float,
    loop: int | None,
    callers: Collection[int],
    disk: float,
) -> Cpu:
    """Shares of the time between two looks at the threads of a process.

    `loop` is the number of the loop's worker; `callers` are those of threads that wait in aiflow at times, and then
    drive the loop. Other threads are the program's: they may want all CPUs, and the transfer does not wait for them.

    A thread that also sleeps gets through its work, late as it may be. So its waits for a CPU count only if it runs or
    waits for one nearly all the time. A cgroup's limit shows as such waits, too.
    """
    starved, user_starved, delayed = 0.0, 0.0, 0.0
    for number, now in after.items():
        if number not in before:
            continue
        run = (now.run - before[number].run) / 1e9 / seconds
        delay = (now.delay - before[number].delay) / 1e9 / seconds
        wants = delay * _between(run + delay, 0.6, 0.85)
        delayed = max(delayed, delay)
        if number == loop or number in callers:
            starved = max(starved, wants)
        if number != loop:
            user_starved = max(user_starved, wants)
    return Cpu(min(starved, 1.0), min(user_starved, 1.0), min(delayed, 1.0), disk)


def _share(end: End | None, name: str, state: str = "") -> float:
    """Growth of a time of a side, as a share of the time."""
    if end is None:
        return NAN
    now, then = end.after["figures"][name], end.before["figures"][name]
    if state:
        now, then = now[state], then.get(state, 0.0)
    share: float = (now - then) / end.seconds
    return min(max(share, 0.0), 1.0)


def _waits(end: End, number: int) -> dict[str, float]:
    """Growth of a Sender's waits for one receiver, by its place in the Sender's list, as shares of the time."""
    now = end.after["peers"][number]["figures"]["wait_seconds"]
    before = end.before["peers"]
    was = before[number]["figures"]["wait_seconds"] if number < len(before) else {}
    return {state: min(max((now[state] - was.get(state, 0.0)) / end.seconds, 0.0), 1.0) for state in now}


def _offered(waits: list[dict[str, float]], own: int) -> float:
    """The most of the time in which the Sender can have had a slice to send, to this receiver or to another.

    Slices to several receivers may overlap, or not. While it waits for the others, it is not the program that is slow.
    """
    others = (sum(each[state] for state in ("path", "memory", "confirmation")) for each in waits)
    elsewhere = sum(share for number, share in enumerate(others) if number != own)
    return min(1.0 - waits[own]["application"] + elsewhere, 1.0)


class _Ports(NamedTuple):
    """Figures of a Sender's ports: see `Measures`."""

    busiest_port: float = NAN
    other_ports: float = NAN
    slowest_port: float = NAN
    slow_port: str = ""
    link_use: float = NAN
    lost: float = NAN


def _ports(end: End | None) -> _Ports:
    """How long the ports were busy, what each sent in that time, and how full the links are."""
    if end is None:
        return _Ports()
    before = {port["name"]: port["figures"] for port in end.before["ports"]}
    ports = [port for port in end.after["ports"] if port["name"] in before and port["figures"]["port_usable"]]
    speeds = [port["figures"].get("port_link_speed_bits_per_second") for port in ports]
    known = bool(ports) and all(speeds)
    busy, sent, frames, lost = [], [], 0, 0
    for port in ports:
        now, then = port["figures"], before[port["name"]]
        sent.append(8 * (now["port_transmit_bytes"] - then["port_transmit_bytes"]) / end.seconds)
        busy.append(min(max((now["port_busy_seconds"] - then["port_busy_seconds"]) / end.seconds, 0.0), 1.0))
        frames += now["port_transmit_frames"] - then["port_transmit_frames"]
        lost += now["port_lost_frames"] - then["port_lost_frames"]
    use = sum(sent) / sum(speeds) if known else NAN
    # A paced link is full with few frames in flight. A small share of the load is not slow.
    divisors = speeds if use >= 0.6 else [max(each, 1e-3) for each in busy]
    pace = [bps / divisor for bps, divisor in zip(sent, divisors, strict=True)]
    if len(ports) < 2:
        return _Ports(link_use=use, lost=lost / max(frames, 1))
    busiest = max(busy)
    # The others wait for a port only if it is busy for as long as any. One with a small share of a slice is not.
    slowest = min((number for number in range(len(ports)) if busy[number] >= 0.7 * busiest), key=pace.__getitem__)
    others = [pace[number] for number in range(len(ports)) if number != slowest and busy[number] > 0.01]
    mean = sum(others) / len(others) if others else 0.0
    ratio = pace[slowest] / mean if mean else 1.0
    waiting = (sum(busy) - busiest) / (len(busy) - 1)
    return _Ports(busiest, waiting, ratio, ports[slowest]["name"], use, lost / max(frames, 1))


def _starved(end: End | None, in_aiflow: float) -> float:
    """How much of the time this end wanted a CPU and had none.

    While the user's thread is not in aiflow, as `in_aiflow` says, the loop's worker has little to do: then only the
    user's threads count. Else only those that drive the loop do.
    """
    if end is None:
        return NAN
    rest = _share(end, "loop_rest_seconds")  # of max_cores=
    if end.cpu is None:
        return rest
    return max(in_aiflow * end.cpu.starved + (1 - in_aiflow) * end.cpu.user_starved, rest)


def _delayed(end: End | None) -> float:
    """How much of the time a thread of this end was ready, and had no CPU or had to rest."""
    if end is None:
        return NAN
    return max(end.cpu.delayed if end.cpu is not None else 0.0, _share(end, "loop_rest_seconds"))


def measures(sender: End | None, receiver: End | None, peer: int | None = None) -> Measures:
    """The shares behind a verdict.

    Parameters
    ----------
    sender, receiver : End or None
        The two ends, as far as they are on this host.
    peer : int, optional
        The receiver's place in the Sender's list. None: no receiver has joined.
    """
    end = receiver or sender
    waits = [_waits(sender, number) for number in range(len(sender.after["peers"]))] if sender is not None else []
    own = waits[peer or 0] if waits else {}
    offered = _offered(waits, peer or 0) if waits else NAN
    reader_waits = _share(receiver, "caller_wait_seconds")
    rate = 0.0
    if end is not None:
        rate = 8 * (end.after["figures"]["bytes"] - end.before["figures"]["bytes"]) / end.seconds
    return Measures(
        offered=offered,
        path=own.get("path", NAN),
        grant=own.get("memory", NAN),
        confirmation=own.get("confirmation", NAN),
        sender_busy=_share(sender, "loop_busy_seconds"),
        receiver_busy=_share(receiver, "loop_busy_seconds"),
        sender_starved=_starved(sender, offered),
        receiver_starved=_starved(receiver, reader_waits),
        sender_delayed=_delayed(sender),
        receiver_delayed=_delayed(receiver),
        reader_waits=reader_waits,
        memory_waits=_share(receiver, "arrival_seconds", "memory"),
        behind=_share(receiver, "reader_behind_seconds"),
        sender_disk=sender.cpu.disk if sender is not None and sender.cpu is not None else NAN,
        receiver_disk=receiver.cpu.disk if receiver is not None and receiver.cpu is not None else NAN,
        **_ports(sender)._asdict(),
        goodput_bps=max(rate, 0.0),
        has_links=sender is not None and any(port["driver"] not in SHARED for port in sender.after["ports"]),
    )


# ------------------------------------------------------------------------------------------------------------- rules


def _apart(own: float, other: float) -> float:
    """1: the other end waits far less for a CPU. 0: as long. Where both wait, the machine is full and neither is it."""
    return 1 - _between(_known(other) / own, 0.3, 0.8) if _known(own) > 0 else 1.0


def _full(m: Measures) -> float:
    """How sure it is that the links are full, where nothing else bounds the run.

    Without speeds both ends must be seen, and few losses: the pacer fills a queue before a link, and spills none.
    """
    if m.link_use == m.link_use:
        return _between(m.link_use, 0.6, 0.85)
    return 0.0 if m.receiver_busy != m.receiver_busy else 1 - _between(m.lost, 0.005, 0.03)


def _busy(m: Measures, own: float, other: float) -> float:
    """A loop is busy nearly all the time, and the other end's is not.

    A few frames make an iteration busy, so a fast link that is full can do that, too. Both must be known not to be so.
    """
    if other != other or (m.has_links and m.link_use != m.link_use):
        return 0.0
    free = 1 - _full(m) if m.has_links else 1.0
    return _between(own, 0.75, 0.95) * (1 - _between(other, 0.75, 0.95)) * free


def _sender_cpu(m: Measures) -> float:
    alone = _busy(m, m.sender_busy, m.receiver_busy)
    matters = max(_known(m.path, 1.0), 1 - _known(m.offered))  # while it waits for memory it needs no CPU
    starved = _between(m.sender_starved, 0.1, 0.6) * _apart(m.sender_delayed, m.receiver_delayed)
    return max(starved, alone) * min(matters, 1.0)


def _receiver_cpu(m: Measures) -> float:
    alone = _busy(m, m.receiver_busy, m.sender_busy)
    matters = max(_known(m.path, 1.0), 1 - _known(m.reader_waits, 1.0))  # while nothing comes it needs none
    starved = _between(m.receiver_starved, 0.1, 0.6) * _apart(m.receiver_delayed, m.sender_delayed)
    return max(starved, alone) * min(matters, 1.0)


def _cpu(m: Measures) -> float:
    busy = max(_between(m.sender_busy, 0.75, 0.95), _between(m.receiver_busy, 0.75, 0.95))
    if m.link_use == m.link_use:
        busy *= 1 - _full(m)  # full links keep a loop busy, too
    starved = max(_between(m.sender_starved, 0.1, 0.6), _between(m.receiver_starved, 0.1, 0.6))
    delayed = max(_between(m.sender_delayed, 0.4, 0.7), _between(m.receiver_delayed, 0.4, 0.7))
    return max(starved, delayed, busy)


def _reader(m: Measures) -> float:
    if m.reader_waits != m.reader_waits:
        return 0.0
    stopped = max(_known(m.behind), _known(m.grant) + _known(m.confirmation), _known(m.memory_waits))
    return min(1 - m.reader_waits, stopped) * _known(m.offered, 1.0)  # another Sender may be the one that fills it


def _all_busy(m: Measures) -> float:
    """1: all ports are busy for as long, or their use is known. 0: they wait for one. One port: 1."""
    if m.link_use == m.link_use or m.busiest_port != m.busiest_port or m.busiest_port <= 0:
        return 1.0
    return _between(m.other_ports / m.busiest_port, 0.5, 0.8)


def _slow(m: Measures) -> float:
    """How sure it is that one port is slower than it should be.

    Where all are busy, and a link's speed is not known, it may carry all that its link does.
    """
    slow = 1 - _between(_known(m.slowest_port, 1.0), 0.5, 0.8)
    return slow * (1 - _all_busy(m)) if m.link_use != m.link_use else slow


def _waits_for_frames(m: Measures) -> float:
    """The Sender waits for frames that are on their way, and neither a CPU nor the reader is the reason.

    A reader that never waits for a slice is slower than the links. They are full while its memory still fills up.
    """
    return _known(m.path) * (1 - _cpu(m)) * (1 - _reader(m)) * (1 - _known(m.receiver_disk)) if m.has_links else 0.0


def _disk(m: Measures) -> float:
    reads = min(_known(m.sender_disk), 1 - _known(m.offered, 1.0))
    writes = min(_known(m.receiver_disk), 1 - _known(m.reader_waits, 1.0))
    return _between(max(reads, writes), 0.1, 0.5)


class Rule(NamedTuple):
    """How strong a cause is, and the measures to show with it."""

    strength: Callable[[Measures], float]
    shows: tuple[str, ...]


RULES: dict[str, Rule] = {
    "link": Rule(
        lambda m: _waits_for_frames(m) * _full(m) * _all_busy(m) * (1 - _slow(m)),
        ("path", "link_use", "lost", "sender_busy", "receiver_busy", "slow_port", "slowest_port"),
    ),
    "port": Rule(
        lambda m: _waits_for_frames(m) * _slow(m),
        ("path", "slow_port", "slowest_port", "busiest_port", "other_ports"),
    ),
    "sender-cpu": Rule(_sender_cpu, ("sender_busy", "sender_starved", "receiver_busy")),
    "receiver-cpu": Rule(
        lambda m: _receiver_cpu(m) * (1 - _disk(m)), ("receiver_busy", "receiver_starved", "sender_busy")
    ),
    "reader": Rule(
        lambda m: _reader(m) * (1 - _between(m.receiver_starved, 0.1, 0.6)) * (1 - _disk(m)),
        ("reader_waits", "behind", "grant", "confirmation"),
    ),
    "memory": Rule(
        lambda m: min(
            2 * min(max(_known(m.grant), _known(m.memory_waits)), _known(m.reader_waits)), _known(m.offered, 1.0)
        ),
        ("grant", "memory_waits", "reader_waits"),
    ),
    "disk": Rule(_disk, ("receiver_disk", "sender_disk", "reader_waits")),
    "application": Rule(
        lambda m: (1 - _known(m.offered, 1.0)) * (1 - _between(m.sender_starved, 0.1, 0.6)) * (1 - _disk(m)),
        ("offered", "sender_starved", "reader_waits"),
    ),
}
"""Cause → its rule. The order does not matter."""


WORDS = {
    "offered": "the sender had a slice to send for {} of the time",
    "path": "it waited for the delivery of granted data for {}",
    "grant": "it waited for memory of the receiver for {}",
    "confirmation": "it waited for the confirmation of the receiver's user for {}",
    "sender_busy": "the sender's loop was busy for {}",
    "receiver_busy": "the receiver's loop was busy for {}",
    "sender_starved": "the sender wanted a CPU and had none for {}",
    "receiver_starved": "the receiver wanted a CPU and had none for {}",
    "sender_delayed": "one of its threads was ready without a CPU for {}",
    "receiver_delayed": "one of the receiver's threads was ready without a CPU for {}",
    "reader_waits": "the reader waited for slices for {}",
    "memory_waits": "a slice waited for memory for {}",
    "behind": "a whole slice waited for the reader for {}",
    "sender_disk": "the sending program waited for its disk for {}",
    "receiver_disk": "the receiving program waited for its disk for {}",
    "busiest_port": "the busiest port had frames in flight for {}",
    "other_ports": "the other ports for {} on average",
    "slowest_port": "it sent {} of the mean of the others, by its link or its time",
    "slow_port": "the slowest port is {}",
    "link_use": "the ports sent {} of what their links carry",
    "lost": "{} of the frames were lost",
}
"""Measure → its words."""


def in_words(m: Measures, names: tuple[str, ...]) -> str:
    """These measures in words, as far as they are known."""
    known = [(name, getattr(m, name)) for name in names]
    told = [(name, share if isinstance(share, str) else f"{share:.0%}") for name, share in known if share == share]
    return "; ".join(WORDS[name].format(text) for name, text in told if text)


def verdict(m: Measures) -> Verdict:
    """The verdict of these measures."""
    strengths = {cause: round(rule.strength(m), 3) for cause, rule in RULES.items()}
    if m.goodput_bps <= 0 and _known(m.offered) < 0.01:
        return Verdict("idle", "nothing was sent", "start the transfer, then look again", strengths, m)
    first, second, *_ = sorted(strengths, key=lambda cause: -strengths[cause])
    if strengths[first] < STRONG or strengths[first] - strengths[second] < NEAR:
        near = f"the nearest are {first} ({strengths[first]:.2f}) and {second} ({strengths[second]:.2f})"
        return Verdict("unclear", near, ADVICE, strengths, m)
    return Verdict(first, in_words(m, RULES[first].shows), CAUSES[first], strengths, m)
