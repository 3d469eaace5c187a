"""What became of a slice: its report, or the error that says why it failed and who holds it even so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .errors import AiflowError, ConfigError, IntegrityError, PeerLost, PoolExhausted, PortError, SliceTimeout
from .report import PortReport, ReceiverReport, SliceReport

__all__ = ["failure", "lasting", "report"]

NameOf = Callable[[Any], str]
"""The receiver's name of a part."""


def report(whole: Any, port_names: Sequence[tuple[str, str]], name_of: NameOf) -> SliceReport:
    """Of a slice that the receivers hold.

    Parameters
    ----------
    whole : aiflow._dp_tx.Outgoing or aiflow.several.Several
        The slice; `done`.
    port_names : sequence of (str, str)
        Name and driver of each port, by its index.
    name_of : callable
        The receiver's name of a part.
    """
    frames, again = whole.frames
    return SliceReport(
        slice_id=whole.slice_id,
        elements=whole.nb_elements,
        nbytes=whole.nbytes,
        seconds=whole.seconds,
        frames_sent=frames,
        frames_retransmitted=again,
        ports=tuple(
            PortReport(port_names[index][0], port_names[index][1], frames, nbytes)
            for index, frames, nbytes in whole.port_frames()
        ),
        receivers=tuple(ReceiverReport(name_of(part), part.nb_elements, part.nbytes, True) for part in whole.parts),
    )


def lasting(error: AiflowError, whole: Any, name_of: NameOf) -> AiflowError:
    """An error of the ports, for a slice that it stopped."""
    return type(error)(str(error), delivered=whole.delivered, delivered_by=_delivered_by(whole, name_of))


def failure(whole: Any, endpoints: Sequence[Any], peer_timeout: float, name_of: NameOf) -> AiflowError:
    """Why a slice, or the part of it for one of several receivers, was not delivered, and what to do."""
    failed = [part for part in whole.parts if part.error != "ok"]
    outgoing = min(failed, key=lambda part: part.error == "cancelled")  # why, rather than that we then gave up
    where = ", ".join(map(str, endpoints))
    what = f"the slice of {outgoing.nb_elements} elements and {outgoing.nbytes} bytes"
    if len(whole.parts) > 1:
        name = name_of(outgoing)
        where = f"{where}, to={name!r},"
        what = f"the part of {outgoing.nb_elements} elements and {outgoing.nbytes} bytes for {name!r}"
    kind, text = {
        "no_peer": (
            PeerLost,
            f"no receiver answered on {where} for {peer_timeout} s: start one with Receiver(…) on its side, "
            "or check the names and the link",
        ),
        "silent": (
            PeerLost,
            f"the receiver on {where} gave no sign of life for {peer_timeout} s: check its process and the "
            "link; the next send looks for it again",
        ),
        "restarted": (
            PeerLost,
            f"the receiver on {where} went away while {what} was under way: send it again to the one that returns",
        ),
        "too_large": (
            PoolExhausted,
            f"{what} needs more than the receiver's memory of {outgoing.detail} bytes: split it, or give the "
            f"receiver memory= of at least {outgoing.needs}",
        ),
        "integrity": (
            IntegrityError,
            f"{what} did not arrive as it was sent: its CRC32C differs. Don't change buffers while they are sent",
        ),
        "refused": (IntegrityError, f"the receiver refused {what}: its manifest is not sound (version mismatch?)"),
        "cancelled": (SliceTimeout, f"{what} was given up before the receiver had it all: send it again"),
        "ambiguous": (ConfigError, f"several receivers answer on {where}: say which one with to='NAME'"),
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


def _delivered_by(whole: Any, name_of: NameOf) -> dict[str, bool | None]:
    return {name_of(part): part.delivered for part in whole.parts}
