"""Counters of dropped frames in words for a user: what came, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["joined", "of_drops", "of_pools", "of_strangers"]

_WORDS = {
    "vlan": "came with a VLAN tag: let the switch send this port its frames untagged",
    "version": "are of another version of aiflow's wire format: install the same aiflow on both sides",
    "segments": "came in more pieces than this build joins: pass a smaller frame_size=",
    "mtu": "are larger than this port takes: pass frame_size= of what both sides take",
    "length": "were cut short on the way: an MTU there is smaller than the frames, pass a smaller frame_size=",
    "crc": "were damaged on the way: check cables and switches",
    "size": "have sizes that contradict their slice",
    "header": "have a header that contradicts itself",
    "kind": "are of a kind that this build does not know: install the same aiflow on both sides",
    "dst_mac": "are for another MAC address",
    "busy": "found no room to note their sender or slice: close senders that are not needed, or give more memory=",
    "conflict": "brought other bytes for a part that was here: buffers were changed while they were sent",
    "manifest": "have a part of a manifest that contradicts the rest: install the same aiflow on both sides",
    "rx_nombuf": "found no free mbuf in the pool",
}
"""Reasons that hint at a fault. Others (duplicates, frames of other protocols) belong to an ordinary run."""


def of_drops(drops: Mapping[str, int]) -> list[str]:
    """A clause for each telling reason, the most frequent first.

    Parameters
    ----------
    drops : mapping of str to int
        Reason → frames, as `Receiver.counters` has them.
    """
    telling = sorted((reason for reason in _WORDS if drops.get(reason)), key=lambda reason: -drops[reason])
    return [_counted(drops[reason], _WORDS[reason]) for reason in telling]


def of_strangers(drops: Mapping[str, int]) -> list[str]:
    """A clause when no other side was heard, and the link carries frames of others; else nothing.

    Parameters
    ----------
    drops : mapping of str to int
        As for `of_drops`; only ``foreign`` and ``broadcast`` count.
    """
    strange = drops.get("foreign", 0) + drops.get("broadcast", 0)
    if not strange:
        return []
    noun = "frame of another protocol has" if strange == 1 else "frames of other protocols have"
    return [f"{strange} {noun} come: the link works, and no aiflow is heard on it. Check the name, and VLANs"]


def of_pools(counts: Mapping[str, int]) -> list[str]:
    """A clause when frames to send waited for a free mbuf, else nothing.

    Parameters
    ----------
    counts : mapping of str to int
        As for `of_drops`; only ``tx_nombuf`` counts.
    """
    if not counts.get("tx_nombuf"):
        return []
    return ["frames to send have waited for a free mbuf: the driver keeps them until the other side reads"]


def _counted(count: int, words: str) -> str:
    if count != 1:
        return f"{count} frames {words}"
    verb, _, rest = words.partition(" ")
    singular = {"are": "is", "have": "has"}.get(verb, verb)
    return f"1 frame {singular} {rest}"


def joined(facts: Iterable[str]) -> str:
    """Facts as the end of a message: "" when there are none."""
    return "".join(f"; {fact}" for fact in facts)
