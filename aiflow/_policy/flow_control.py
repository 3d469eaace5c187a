"""Flow control: bounds what a port sends to what the network takes. Pure Python; the loop applies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from aiflow.config import FLOW_CONTROLS, parse_rate
from aiflow.errors import ConfigError

__all__ = ["FLOW_CONTROLS", "FlowControl", "Pace"]

GAP_SPEED = 1e9
"""Line rate that the paper's gaps hold for, in bit/s. At a tenth of it they are ten times as long."""


class Pace(NamedTuple):
    """The pacing of one port, as the loop takes it.

    Attributes
    ----------
    rate_based : bool
        The gaps bound the frames in flight; False: the receiver's credit does.
    frame_ns : float
        Least time between the starts of two frames; 0 for none.
    byte_ns : float
        Least time for each byte of the first frame.
    burst_ns : int
        How far ahead of that schedule the loop may send.
    gain, threshold : float
        `reverse`: k, and the loss that counts as a signal. With gain 0 the gaps are fixed.
    """

    rate_based: bool
    frame_ns: float
    byte_ns: float
    burst_ns: int
    gain: float = 0.0
    threshold: float = 0.0


LINE_SHARE = 0.998
"""Share of a configured speed that is used. The rest covers other frames on the link and clocks that differ, so that a
full queue drains again."""

LATE_NS = 4_000_000
"""How much delay a loop may make up for by sending faster, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class FlowControl:
    """A flow control and its constants: ``Sender(…, flow_control=FlowControl("static", gap_us=10))``.

    Parameters
    ----------
    name : str
        ``"credit"`` (the default), ``"reverse"``, ``"static"``, ``"token_bucket"`` or ``"none"``.
    gap_us : float
        `static`: microseconds from the start of a frame to the start of the next, at 1 Gbit/s; it scales with the line
        rate. Default: 8.
    base_us : float
        `reverse`: T_base, in microseconds at 1 Gbit/s. Default: 1.5.
    gain : float
        `reverse`: k in T = T_0 · (1 + k · loss), T_0 the larger of `base_us` and, if `capped`, the frame's own time.
        Default: 22.5.
    threshold : float
        `reverse`: share of lost frames that counts as a signal. Default: 0.002.
    capped : bool
        `reverse`: True (the default): no gap is shorter than its frame's time on the line, as behind a real NIC.
        False: the formula alone.
    rate : str or float, optional
        `token_bucket`: bit/s of each port, as a number or "100mbit". Default: the port's speed.
    burst : int
        `token_bucket`: bytes that may go at once. Default: 48448, 32 frames of 1514 bytes.

    Raises
    ------
    ConfigError
        A constant is out of its range.
    """

    name: str = "credit"
    gap_us: float = 8.0
    base_us: float = 1.5
    gain: float = 22.5
    threshold: float = 0.002
    capped: bool = True
    rate: str | float | None = None
    burst: int = 32 * 1514

    def __post_init__(self) -> None:
        if self.name not in FLOW_CONTROLS:
            raise ConfigError(
                f"flow_control={self.name!r} is unknown: use one of {', '.join(map(repr, FLOW_CONTROLS))}"
            )
        for field in ("gap_us", "base_us", "burst"):
            if not 0 < getattr(self, field) < 1e9:
                raise ConfigError(f"flow control {field}={getattr(self, field)!r}: give a number above 0")
        if not 0 <= self.gain < 1e6 or not 0 < self.threshold < 1:
            raise ConfigError("flow control: gain is 0 or more, and threshold between 0 and 1")
        if self.rate is not None:
            parse_rate(self.rate, "rate")

    @classmethod
    def of(cls, asked: str | FlowControl) -> FlowControl:
        """Return the flow control that ``flow_control=`` means: `asked` is a name, or one with constants of its own."""
        return asked if isinstance(asked, FlowControl) else cls(asked)

    def pace(self, speed_bps: float | None, *, given: bool = False) -> Pace:
        """Return the pacing of a port.

        Parameters
        ----------
        speed_bps : float or None
            Speed of its link; None: not known, and the gaps are those of 1 Gbit/s.
        given : bool
            Whether it was configured. A driver that knows its link's speed keeps to it, and needs no pacing.

        Returns
        -------
        Pace
        """
        speed = speed_bps or GAP_SPEED
        scale = 1e3 * GAP_SPEED / speed
        if self.name == "static":
            return Pace(True, self.gap_us * scale, 0.0, LATE_NS)
        if self.name == "reverse":
            line = 8e9 / speed if self.capped else 0.0
            return Pace(True, self.base_us * scale, line, LATE_NS, self.gain, self.threshold)
        if self.name == "token_bucket":
            byte_ns = 8e9 / (parse_rate(self.rate, "rate") if self.rate is not None else speed)
            return Pace(True, 0.0, byte_ns, round(self.burst * byte_ns))
        if self.name == "credit" and speed_bps and given:
            return Pace(False, 0.0, 8e9 / (LINE_SHARE * speed_bps), LATE_NS)
        return Pace(self.name == "none", 0.0, 0.0, 0)
