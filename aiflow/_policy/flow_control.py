"""Flow control: what keeps a port from sending more than the network takes. Pure Python; the loop applies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from aiflow.config import FLOW_CONTROLS, parse_rate
from aiflow.errors import ConfigError

__all__ = ["FLOW_CONTROLS", "FlowControl", "Pace"]

GAP_SPEED = 1e9
"""The line rate that the paper's gaps are for, bit/s: at a tenth of it they are ten times as long."""


class Pace(NamedTuple):
    """The law of one port's gaps, as the loop takes it.

    Attributes
    ----------
    rate_based : bool
        The gaps are the law; False: the receiver's credit bounds what is under way.
    frame_ns : float
        Between the starts of two frames, at least; 0 for none.
    byte_ns : float
        And at least so much for each byte of the first.
    burst_ns : int
        How far the loop may be ahead of that, in time.
    gain, threshold : float
        `reverse`: k, and the loss that counts as a signal. gain 0: gaps stay as they are.
    """

    rate_based: bool
    frame_ns: float
    byte_ns: float
    burst_ns: int
    gain: float = 0.0
    threshold: float = 0.0


LINE_SHARE = 0.998
"""Of a configured speed; the rest is for what a link carries besides our frames and for clocks that differ, so that a
queue that once filled empties again."""

LATE_NS = 4_000_000
"""A loop that was not run for so long may make up for it; what is older is lost."""


@dataclass(frozen=True)
class FlowControl:
    """A flow control and its constants.

    Attributes
    ----------
    name : str
        One of `FLOW_CONTROLS`.
    gap_us : float
        `static`: from the start of a frame to the start of the next, for 1 Gbit/s, in µs; scales with the line rate.
    base_us : float
        `reverse`: T_base, likewise.
    gain : float
        `reverse`: k in T = T_0 · (1 + k · loss), T_0 the larger of `base_us` and, if `capped`, the frame's own time.
    threshold : float
        `reverse`: loss that counts as a signal.
    capped : bool
        `reverse`: no gap is shorter than its frame's time on the line, as behind a real NIC. False: the bare law.
    rate : str or float, optional
        `token_bucket`: bit/s of each port; default: the port's speed.
    burst : int
        `token_bucket`: bytes that may go at once.
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
        """What ``flow_control=`` says: a name, or one with constants of its own."""
        return asked if isinstance(asked, FlowControl) else cls(asked)

    def pace(self, speed_bps: float | None, *, given: bool = False) -> Pace:
        """The law for a port.

        Parameters
        ----------
        speed_bps : float or None
            Its link's speed; None: nobody said, and 1 Gbit/s is taken, which the gaps are for.
        given : bool
            It was configured. A driver that knows its link's speed keeps it, too, and leaves nothing to do for us.

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
