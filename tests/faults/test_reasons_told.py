"""A counter that knows why frames were dropped reaches the error that a user reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from wait import settle
from wiretap import Wiretap

import aiflow
from aiflow._transfer.reasons import of_drops, of_strangers
from aiflow._wire import DROPS

# reason → the change to a sender's frames that makes it, and words of the error
MADE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "foreign": (lambda frame: frame[:12] + b"\x08\x00" + frame[14:], "no aiflow is heard on it"),
    "vlan": (lambda frame: frame[:12] + b"\x81\x00\x00\x05" + frame[12:], "came with a VLAN tag"),
    "crc": (lambda frame: frame[:30] + bytes([frame[30] ^ 1]) + frame[31:], "damaged on the way"),
    "dst_mac": (lambda frame: b"\x02\x00\x00\x00\x00\x77" + frame[6:], "for another MAC address"),
    "version": (lambda frame: frame[:14] + bytes([frame[14] ^ 0xF0]) + frame[15:], "another version of aiflow's wire"),
}


@pytest.mark.parametrize("reason", MADE)
def test_a_receiver_says_why_it_took_nothing(reason: str, name: str) -> None:
    change, words = MADE[reason]
    with (
        Wiretap(name, change) as tap,
        aiflow.Receiver(tap.receiver, memory="8MiB") as rx,
        aiflow.Sender(tap.sender, frame_size=9000, peer_timeout=30) as tx,
    ):
        ticket = tx.send([b"x"], wait=False)
        assert settle(lambda: rx.counters[reason] >= 2), rx.counters
        with pytest.raises(aiflow.SliceTimeout, match=words):
            rx.recv(timeout=0.1)
        ticket.cancel()


# Reasons that belong to an ordinary run, with loss, repeated frames, restarts and other users of a switch.
ORDINARY = {"ok", "runt", "broadcast", "session", "src_mac", "path", "number", "replay", "duplicate", "not_granted"}
ORDINARY |= {
    "element",
    "seq",
    "end",
    "hello",
    "report",
    "place",
}  # only a forger makes these; a bad CRC hides what chance makes


@pytest.mark.unit
def test_every_reason_is_told_or_ordinary() -> None:
    told = {reason for reason in DROPS if of_drops({reason: 2}) or reason == "foreign"}
    assert told | ORDINARY == set(DROPS)
    assert not told & ORDINARY


@pytest.mark.unit
def test_strangers_are_counted_in_words() -> None:
    assert of_strangers({"vlan": 1}) == []
    assert of_strangers({"foreign": 1})[0].startswith("1 frame of another protocol has come")
    assert of_strangers({"foreign": 2, "broadcast": 1})[0].startswith("3 frames of other protocols have come")
