"""The outcome of a slice: its report, or the error that says why it failed and which receivers hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiflow._transfer._runs import runs_of
from aiflow._transfer.reasons import joined, of_drops, of_pools, of_strangers
from aiflow._transfer.verdicts import heard
from aiflow.errors import (
    AiflowError,
    ConfigError,
    DeliveryError,
    IntegrityError,
    PeerLost,
    PoolExhausted,
    PortError,
    SliceTimeout,
)
from aiflow.report import PortReport, ReceiverReport, SliceReport

__all__ = ["Known", "Memory", "failure", "lasting", "report", "waits_for"]

NameOf = Callable[[Any], str]
"""The receiver's name of a part."""


@dataclass(frozen=True)
class Memory:
    """Facts about the memory that a slice waits for.

    Attributes
    ----------
    receiver : str
        Its name.
    free_bytes : int
        What is free of its memory, by its newest feedback.
    needs : int
        Bytes that the slice takes.
    holders : list of str
        What the Receivers of this process hold.
    """

    receiver: str
    free_bytes: int
    needs: int
    holders: list[str]

    def __str__(self) -> str:
        return (
            f"{self.receiver!r} has no memory for it yet: {self.free_bytes} bytes are free there, and it takes "
            f"{self.needs}; its user holds slices that are not released" + joined(self.holders)
        )


@dataclass
class Known:
    """Facts that an error mentions beside the slice.

    Attributes
    ----------
    endpoints : sequence
    peer_timeout : float
    wanted : str
        The receiver in ``to=``; "" for any.
    others : list of str
        Names of receivers that answered, but are not the one in ``to=``.
    rivals : list of (str, str)
        Name and MAC of receivers that answer at the same time.
    drops : dict of str to int
        Frames that our ports dropped, by reason, and ``tx_nombuf``.
    dropped : (str, int)
        The most frequent reason for which the receiver drops frames, and how many.
    hints : list of str
        Facts from the ports: where they looked, which have no carrier.
    memory : Memory or None
        When a slice to this receiver waits for memory.
    """

    endpoints: Sequence[Any]
    peer_timeout: float
    wanted: str = ""
    others: list[str] = field(default_factory=list)
    rivals: list[tuple[str, str]] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    dropped: tuple[str, int] = ("ok", 0)
    hints: list[str] = field(default_factory=list)
    memory: Memory | None = None

    @property
    def where(self) -> str:
        """The endpoints, as typed."""
        return ", ".join(map(str, self.endpoints))

    def facts(self) -> list[str]:
        """What may explain that no receiver, or the wrong one, is heard."""
        found = list(self.hints)
        if self.others:
            found.append(f"{_quoted(self.others)} answered, and to={self.wanted!r} names another")
        if self.rivals and self.rivals[0][0] and len(self.rivals) == 1:
            name, mac = self.rivals[0]
            found.append(f"a second receiver named {name!r} answers (MAC {mac}): give each a name= of its own")
        found += [f"of what came to us, {fact}" for fact in of_drops(self.drops)]
        reason, count = self.dropped
        found += [f"the receiver says that of what came to it, {fact}" for fact in of_drops({reason: count})]
        return found + of_pools(self.drops)


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def waits_for(whole: Any, known: Known) -> str:
    """What a slice that has not ended waits for, in words."""
    outgoing = next((part for part in whole.parts if not part.done), whole.parts[0])
    if not outgoing.has_receiver:
        return f"no receiver has answered on {known.where}" + joined(known.facts() + of_strangers(known.drops))
    if outgoing.is_queued:
        first = [f"of the first, the receiver {known.memory}"] if known.memory else []
        return "slices before it are in flight, or wait for the confirmation of the receiver's user" + joined(first)
    if outgoing.held:
        return "the receiver holds it, and its user has not confirmed it"
    if outgoing.waits_for_memory:
        text = f"the receiver {known.memory}" if known.memory else "the receiver has been asked for memory"
        return text + joined(of_pools(known.drops))  # its manifest may not have left
    told = [f"the receiver says that of what came to it, {fact}" for fact in of_drops(dict([known.dropped]))]
    return f"{outgoing.acked_bytes} of {outgoing.nbytes} bytes have arrived" + joined(told + of_pools(known.drops))


def report(whole: Any, port_names: Sequence[tuple[str, str]], name_of: NameOf) -> SliceReport:
    """The report of a slice that the receivers hold.

    Parameters
    ----------
    whole : aiflow._dp_outgoing.Outgoing or aiflow._transfer.fanout.FanOut
        The slice; `done`.
    port_names : sequence of (str, str)
        Name and driver of each port, by its index.
    name_of : callable
        The receiver's name of a part.
    """
    frames, again = whole.frames
    connecting = whole.connecting or 0.0
    return SliceReport(  # by place: keywords take half as long again
        whole.slice_id,
        whole.nb_elements,
        whole.nbytes,
        whole.seconds - connecting,
        frames,
        again,
        tuple(
            [
                PortReport(port_names[index][0], port_names[index][1], frames, nbytes)
                for index, frames, nbytes in whole.port_frames()
            ]
        ),
        tuple([ReceiverReport(name_of(part), part.nb_elements, part.nbytes, True) for part in whole.parts]),
        connecting,
        sum([part.placed_bytes for part in whole.parts]),
        sum([part.lent_bytes for part in whole.parts]),
    )


def lasting(error: AiflowError, whole: Any, name_of: NameOf) -> AiflowError:
    """The error of the ports, as the error of a slice that it stopped."""
    return type(error)(str(error), delivered=whole.delivered, delivered_by=_delivered_by(whole, name_of))


def blamed(whole: Any) -> Any:
    """The part of a slice whose error says best why it was not delivered."""
    failed = [part for part in whole.parts if part.error != "ok"]
    return min(failed, key=lambda part: part.error == "cancelled")  # the cause, not the parts that we then gave up


def failure(whole: Any, known: Known, name_of: NameOf, waited_for: str = "") -> AiflowError:
    """The error of a slice, or of its part for one of several receivers: why it was not delivered, and what to do.

    Parameters
    ----------
    whole : aiflow._dp_outgoing.Outgoing or aiflow._transfer.fanout.FanOut
        The slice; `done`, and not delivered.
    known : Known
    name_of : callable
        The receiver's name of a part.
    waited_for : str
        Of a slice that was given up: what it waited for then.
    """
    outgoing = blamed(whole)
    where, peer_timeout = known.where, known.peer_timeout
    if outgoing.error == "failed":
        return _delivery_error(outgoing, whole, name_of)
    what = f"the slice of {outgoing.nb_elements} elements and {outgoing.nbytes} bytes"
    if len(whole.parts) > 1:
        name = name_of(outgoing)
        where = f"{where}, to={name!r},"
        what = f"the part of {outgoing.nb_elements} elements and {outgoing.nbytes} bytes for {name!r}"
    kind, text = {
        "no_peer": (
            PeerLost,
            f"no receiver answered on {where} for {peer_timeout} s: start one with Receiver(…) on its side, "
            "or check the names and the link" + joined(known.facts() + of_strangers(known.drops)),
        ),
        "silent": (
            PeerLost,
            f"the receiver on {where} gave no sign of life for {peer_timeout} s: check its process and the "
            "link; the next send looks for it again" + joined(known.facts()),
        ),
        "restarted": (
            PeerLost,
            f"the receiver on {where} went away while {what} was in flight: call send() again for the one that returns"
            + joined(known.facts()),
        ),
        "too_large": (
            PoolExhausted,
            f"{what} needs more than the receiver's memory of {outgoing.detail} bytes: split it, or give the "
            f"receiver memory= of at least {outgoing.needs}",
        ),
        "no_pages": (
            PoolExhausted,
            f"{what} needs {outgoing.needs} bytes, and the system of the receiver has {outgoing.detail} for it now: "
            "raise the memory limit of its container, end other programs there, or split the slice",
        ),
        "integrity": (
            IntegrityError,
            f"{what} did not arrive as it was sent: its CRC32C differs. Don't change buffers while they are sent",
        ),
        "refused": (IntegrityError, f"the receiver refused {what}: its manifest is not sound (version mismatch?)"),
        "unknown": (
            IntegrityError,
            f"the receiver refused {what}: {outgoing.text}. Install the same aiflow on both sides",
        ),
        "stalled": (
            PortError,
            f"the receiver on {where} answers, and in {peer_timeout} s has taken none of the frames of {what}: "
            "a switch or a driver on the way carries small frames and not these; pass a smaller frame_size=. Its "
            "session has ended, and so have all slices in flight" + joined(known.facts()),
        ),
        "cancelled": (
            SliceTimeout,
            f"{what} was given up before it was delivered: "
            + (waited_for or "the receiver did not have it all; call send() again"),
        ),
        "ambiguous": (ConfigError, _ambiguous(known)),
        "mtu": (
            PortError,
            f"the paths on {where} carry small frames but not full ones: an MTU on the way, or the receiver's "
            "frames, are smaller than ours; pass frame_size= of what they take",
        ),
        "no_memory": (PoolExhausted, f"no memory left to describe {what}: send smaller slices"),
    }[outgoing.error]
    delivered_by = _delivered_by(whole, name_of)
    if len(whole.parts) > 1:
        holders = [name for name, delivered in delivered_by.items() if delivered]
        text += f". Receivers that hold their parts: {', '.join(holders) or 'none'}"
    return kind(text, delivered=whole.delivered, delivered_by=delivered_by)


def _ambiguous(known: Known) -> str:
    """Several receivers answer. ``to=`` helps only where their names differ."""
    names = {name for name, _ in known.rivals}
    told = ", ".join(f"{name!r} (MAC {mac})" for name, mac in known.rivals)
    if len(names) == 1 and len(known.rivals) > 1:
        return (
            f"two receivers of one name answer on {known.where}: {told}. Give each a name= of its own "
            "(the default is the host's), and say to='NAME'"
        )
    return f"several receivers answer on {known.where}: {told}. Say which one with to='NAME'"


def _delivery_error(outgoing: Any, whole: Any, name_of: NameOf) -> DeliveryError:
    """The error for elements that the receiver's user could not use: which streams, and why."""
    elements: dict[int, str] = {}
    failed: dict[str, str] = {}
    for part in whole.parts:
        if part.error != "failed":
            continue
        told = heard(part.text, part.nb_elements)
        elements |= {int(number if part.numbers is None else part.numbers[number]): told[number] for number in told}
        failed |= {
            run.stream_of(number): told[number]
            for run in runs_of(part.manifest)
            for number in range(run.start, run.start + run.nb_elements)
            if number in told
        }
    some = "; ".join(f"{stream!r}: {reason}" for stream, reason in list(failed.items())[:3])
    more = f"; and {len(failed) - 3} more streams" if len(failed) > 3 else ""
    count = f"{len(elements)} of {whole.nb_elements} elements"
    text = f"the receiver could not use {count} ({some or outgoing.text}{more})"
    return DeliveryError(
        f"{text}: mend that on its side, and call send() again for them",
        failed=failed,
        failed_elements=elements,
        delivered=False,
        delivered_by=_delivered_by(whole, name_of),
    )


def _delivered_by(whole: Any, name_of: NameOf) -> dict[str, bool | None]:
    return {name_of(part): part.delivered for part in whole.parts}
