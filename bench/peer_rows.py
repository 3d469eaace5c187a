"""Results of a case beside a peer: rows of the tables, and of `extra_info` in the JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from contest import Link, Round, Talk
from intervals import Median
from loads import Load


@dataclass(frozen=True)
class CarryRow:
    """Slices beside a peer. Rates are medians. `ratios` are of pairs of rounds; above 1, aiflow is better."""

    load: str
    name: str
    slice_bytes: int
    slice_elements: int
    gb_per_s: float
    elements_per_s: float
    cpu_s_per_gb: float
    aiflow_gb_per_s: float
    aiflow_elements_per_s: float
    aiflow_cpu_s_per_gb: float
    ratios: dict[str, dict[str, Any]]
    others: float

    @classmethod
    def of(cls, load: Load, ours: Sequence[Round], theirs: Link, others: float) -> Self:
        """Compute the row from the rounds of both."""
        gb = load.nbytes / 1e9
        seconds, our_seconds = ([one.seconds for one in rounds] for rounds in (theirs.rounds, ours))
        cpu, our_cpu = ([one.cpu for one in rounds] for rounds in (theirs.rounds, ours))
        return cls(
            load=load.name,
            name=theirs.name,
            slice_bytes=load.nbytes,
            slice_elements=len(load.sizes),
            gb_per_s=gb / statistics.median(seconds),
            elements_per_s=len(load.sizes) / statistics.median(seconds),
            cpu_s_per_gb=statistics.median(cpu) / gb,
            aiflow_gb_per_s=gb / statistics.median(our_seconds),
            aiflow_elements_per_s=len(load.sizes) / statistics.median(our_seconds),
            aiflow_cpu_s_per_gb=statistics.median(our_cpu) / gb,
            ratios={
                "speed": Median.of_ratios(seconds, our_seconds).as_dict(),
                "cpu": Median.of_ratios(cpu, our_cpu).as_dict(),
            },
            others=others,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON file."""
        return {"kind": "carry", **asdict(self)}


@dataclass(frozen=True)
class TalkRow:
    """One element there and back beside a peer: seconds, as medians of the rounds' quantiles.

    `ratios` has peer ÷ aiflow at p50. p99 is reported, but not compared: it mainly depends on the machine.
    """

    name: str
    polling: bool
    p50: float
    p99: float
    cpu_s_per_call: float
    aiflow_p50: float
    aiflow_p99: float
    aiflow_cpu_s_per_call: float
    ratios: dict[str, dict[str, Any]]
    p99_ratio: dict[str, Any]
    others: float

    @classmethod
    def of(
        cls, name: str, polling: bool, ours: Sequence[Talk], theirs: Sequence[Talk], calls: int, others: float
    ) -> Self:
        """Compute the row from the rounds of both."""
        p50, our_p50, p99, our_p99 = (
            [talk.quantile(share) for talk in talks] for share in (0.5, 0.99) for talks in (theirs, ours)
        )
        return cls(
            name=name,
            polling=polling,
            p50=statistics.median(p50),
            p99=statistics.median(p99),
            cpu_s_per_call=statistics.median(talk.cpu for talk in theirs) / calls,
            aiflow_p50=statistics.median(our_p50),
            aiflow_p99=statistics.median(our_p99),
            aiflow_cpu_s_per_call=statistics.median(talk.cpu for talk in ours) / calls,
            ratios={"p50": Median.of_ratios(p50, our_p50).as_dict()},
            p99_ratio=Median.of_ratios(p99, our_p99).as_dict(),
            others=others,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON file."""
        return {"kind": "talk", **asdict(self)}


@dataclass(frozen=True)
class IdleRow:
    """Share of one CPU that both processes of an idle pair use, by name."""

    shares: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON file."""
        return {"kind": "idle", **asdict(self)}
