"""Watches the processes of this user for some seconds, and gives a verdict for each flow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from aiflow._observe import kernel
from aiflow._observe.diagnosis import End, Verdict, cpu_shares, measures, verdict
from aiflow._observe.readers import changes, look

__all__ = ["Flow", "watch"]

LOOK_S = 0.05
"""Seconds between two looks at the states of the threads."""

_RENEW = 20  # looks until new threads are noticed


class Flow(NamedTuple):
    """A Sender and its Receiver, or the one of them that is on this host.

    Attributes
    ----------
    sender, receiver : str
        Names; "" for an end that is not on this host.
    verdict : Verdict
    """

    sender: str
    receiver: str
    verdict: Verdict


class _Process:
    """What the kernel says of one process over the time."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.threads = kernel.threads_of(pid)
        self.inner = kernel.inner_numbers(pid)
        self.states = kernel.States(pid)
        self.looks = 0
        self.in_disk = 0

    def look(self) -> None:
        """Note whether a thread waits for the disk now."""
        self.looks += 1
        if self.looks % _RENEW == 0:
            self.states.renew()
        self.in_disk += b"D" in self.states.now()

    def end(self, before: dict[str, Any], after: dict[str, Any], seconds: float) -> End:
        """The shares of a side of this process."""
        disk = self.in_disk / self.looks if self.looks else 0.0
        threads = kernel.threads_of(self.pid)
        inner = self.inner | kernel.inner_numbers(self.pid)
        callers = {inner[number] for number in after["callers"] if number in inner}
        loop = inner.get(after["thread"])
        return End(before, after, seconds, cpu_shares(self.threads, threads, seconds, loop, callers, disk))


def watch(seconds: float) -> tuple[list[Flow], list[str]]:
    """Watch for some seconds, and give a verdict for each flow.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    flows : list of Flow
        One for each Sender and each receiver that it is joined to, and one for each other Receiver.
    silent : list of str
        See `aiflow._observe.readers.Seen`.
    """
    older = {document["pid"]: document for document in look().documents}
    processes = {pid: _Process(pid) for pid in older if isinstance(pid, int)}  # others are out of the kernel's sight
    until = time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0:
            for process in processes.values():
                process.look()
            time.sleep(min(LOOK_S, left))
    finally:
        for process in processes.values():
            process.states.close()
    seen = look()
    newer = {document["pid"]: document for document in seen.documents}
    senders: list[tuple[str, dict[int, str], End]] = []
    receivers: dict[str, list[End]] = {}
    for pid, document in newer.items():
        if pid not in older:
            continue
        for before, after, between in changes(older[pid], document):
            known = processes.get(pid)
            end = known.end(before, after, between) if known is not None else End(before, after, between, None)
            if after["role"] == "sender":
                peers = enumerate(after["peers"])
                joined = {number: peer["name"] for number, peer in peers if peer["figures"]["peer_joined"]}
                senders.append((after["name"], joined, end))
            else:
                receivers.setdefault(after["name"], []).append(end)
    return list(_flows(senders, receivers)), seen.silent


def _flows(senders: list[tuple[str, dict[int, str], End]], receivers: dict[str, list[End]]) -> Iterator[Flow]:
    met = set()
    for name, joined, end in senders:
        for number, peer in joined.items() or [(None, "")]:
            found = receivers.get(peer, [])
            receiver = found[0] if len(found) == 1 else None  # several of one name: which it is cannot be known
            met |= {peer} if receiver is not None else set()
            yield Flow(name, peer, verdict(measures(end, receiver, number)))
    for name, ends in receivers.items():
        if name not in met:
            for end in ends:
                yield Flow("", name, verdict(measures(None, end)))
