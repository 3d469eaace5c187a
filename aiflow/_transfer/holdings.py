"""Memory of this process's Receivers that its Senders hold: relays send on what they have received.

A relay holds a slice until the next node has it. In a cycle of relays each may wait for the memory of the next, and
none can go on. The error of each says what its process holds, and who waits for that.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from aiflow._system import threads

__all__ = ["finish_ended", "listed", "note", "note_sender", "told"]

_MOST_NAMED = 5

_receivers: weakref.WeakKeyDictionary[Any, tuple[str, int]] = weakref.WeakKeyDictionary()
_senders: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threads.unpatched("threading").RLock()  # a signal handler may open a Receiver


def note(agent: Any, name: str, memory: int) -> None:
    """Remember a Receiver of this process, until it is collected.

    Parameters
    ----------
    agent : aiflow._dp_rx.RxAgent
    name : str
        Of the Receiver.
    memory : int
        Bytes that it may hold.
    """
    with _lock:
        _receivers[agent] = name, memory


def note_sender(agent: Any) -> None:
    """Remember the agent of a Sender of this process (`aiflow._dp_tx.TxAgent`), until it is collected."""
    with _lock:
        _senders.add(agent)


def finish_ended() -> None:
    """Give back the buffers of slices that have ended, of all Senders: a Receiver's slices may be among them.

    A Sender does so itself when its user asks for the result, or sends the next slice. A relay that waits for a slice
    before that has to call this when its memory is full.
    """
    with _lock:
        agents = list(_senders)
    for agent in agents:
        agent.finish_ended()


def told() -> list[str]:
    """A clause for each Receiver of this process that holds memory, the fullest first."""
    with _lock:
        found = [(agent, *each) for agent, each in _receivers.items() if agent.store.used]
    found.sort(key=lambda each: each[0].store.used / each[2], reverse=True)
    return [_clause(*each) for each in found]


def _clause(agent: Any, name: str, memory: int) -> str:
    slices, used, (awaited, _) = agent.slices, agent.store.used, agent.starving
    text = f"in this process Receiver {name!r} holds {used} of its {memory} bytes"
    if slices:
        text += f", in {listed(slices)}"
    if (rest := used - sum(one.charged for one in slices)) > 0:
        text += f", {rest} of them in slices that arrive or were not received yet"
    if awaited:
        text += f", and a sender waits for {awaited} bytes of it (relays in a cycle may all wait so)"
    return text


def listed(slices: Iterable[Any]) -> str:
    """Number, sender and bytes of the largest slices, largest first."""
    largest = sorted(slices, key=lambda incoming: -incoming.charged)
    named = [f"slice {one.slice_id} from {one.sender!r} ({one.charged} bytes)" for one in largest[:_MOST_NAMED]]
    more = len(largest) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
