"""The table at the end: one row per case, with ratios within the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

BUSY = 0.05  # share of the machine used by other processes that causes a warning
UNSTEADY = 0.2  # (highest - lowest) / median of testpmd's samples that causes a warning

LEGEND = """
copies: of each payload byte, from the sender's array to the receiver's array.
÷memcpy: paired, round by round, with the C library's memcpy of the same number of bytes.
testpmd: the same driver, cores, frame size and ring size in C. It touches no payload and drops excess frames.
others: share of the machine that other processes used.
net_ring passes the sender's own mbufs, so a bandwidth is meaningless.
"""


@dataclass(frozen=True)
class Row:
    """A line of the table. None: not applicable, or not measured."""

    name: str
    driver: str
    frame_bytes: int
    copies: int
    frames_per_s: float
    testpmd_frames_per_s: float | None
    testpmd_spread: float | None
    gb_per_s: float | None
    memcpy_gb_per_s: float
    of_memcpy: float | None
    others: float
    frames_retransmitted: int

    @property
    def of_testpmd(self) -> float | None:
        """Frames per second relative to testpmd."""
        return self.frames_per_s / self.testpmd_frames_per_s if self.testpmd_frames_per_s else None

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON file."""
        return {"kind": "transfer", **asdict(self), "of_testpmd": self.of_testpmd}


def _cell(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield (
        f"{'case':20} {'driver':26} {'frame':>6} {'copies':>6} {'GB/s':>6} {'÷memcpy':>8} "
        f"{'frames/s':>11} {'testpmd':>11} {'÷testpmd':>8} {'others':>7}"
    )
    for row in rows:
        yield (
            f"{row.name:20} {row.driver:26} {row.frame_bytes:6} {row.copies:6} "
            f"{_cell(row.gb_per_s, '.2f'):>6} {_cell(row.of_memcpy, '.2f'):>8} "
            f"{row.frames_per_s:11,.0f} {_cell(row.testpmd_frames_per_s, ',.0f'):>11} "
            f"{_cell(row.of_testpmd, '.2f'):>8} {row.others:7.0%}"
        )


def warnings(rows: list[Row]) -> Iterator[str]:
    """Yield warnings about the figures of the table."""
    if any(row.others > BUSY for row in rows):
        yield (
            f"Other processes used more than {BUSY:.0%} of the machine. A polling pair suffers on both cores: "
            "do not quote these figures."
        )
    unsteady = [row.name for row in rows if (row.testpmd_spread or 0) > UNSTEADY]
    if unsteady:
        yield f"testpmd's own samples differ by more than {UNSTEADY:.0%}: {', '.join(unsteady)}."
    again = [f"{row.name} {row.frames_retransmitted}" for row in rows if row.frames_retransmitted]
    if again:
        yield f"Frames were retransmitted: {', '.join(again)}."
