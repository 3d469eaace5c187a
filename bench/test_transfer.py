"""Frames and bytes per second through Sender → Receiver, beside a C testpmd and a memcpy measured in the same run."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import veth
from intervals import Median
from ratios import Row
from transfer import KERNEL, Case, Memcpy, Transfer, pinned, versions

SLICES = [
    Case("memif"),
    Case("memif", assemble=False),
    Case("vhost"),
]
FRAMES = [
    Case("memif", 1514),
    Case("vhost", 1514),
    Case("ring", 1514),
    Case("af_packet"),
    Case("af_xdp"),
]
WARM_UP = 4  # rounds: the first slices use new memory of the receiver


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name) for case in [*SLICES, *FRAMES]],
)
def test_transfer(benchmark: Any, case: Case, slices: Any, cores: Any, rounds: int, testpmd: Any, row: Any) -> None:
    if case.driver not in KERNEL:
        return _transfer(benchmark, case, slices, cores, rounds, testpmd, row)
    if why := veth.missing():
        pytest.skip(why)
    # one pair for each: af_xdp keeps its queue until the process ends
    with veth.pair() as interfaces:
        baseline = testpmd(case, interfaces)
    with veth.pair() as interfaces:
        return _transfer(benchmark, case, slices, cores, rounds, lambda _: baseline, row, interfaces)


def _transfer(
    benchmark: Any,
    case: Case,
    slices: Any,
    cores: Any,
    rounds: int,
    testpmd: Any,
    row: Any,
    interfaces: tuple[str, str] | None = None,
) -> None:
    baseline = testpmd(case)
    with Transfer(case, slices, cores, interfaces) as transfer:
        benchmark.group = "frames" if case in FRAMES else "slice"
        benchmark.pedantic(transfer.send, setup=transfer.prepare, rounds=rounds, warmup_rounds=WARM_UP)
        others = transfer.busy.others()
        transfer.verify()
    if not benchmark.stats:
        return  # --benchmark-disable
    seconds = benchmark.stats.stats.data
    copies = transfer.memcpy_seconds[-len(seconds) :]
    reports = transfer.reports[-len(seconds) :]
    frames_per_s = statistics.median(
        report.frames_sent / second for report, second in zip(reports, seconds, strict=True)
    )
    result = Row(
        name=case.name,
        driver=transfer.drivers,
        frame_bytes=case.frame_bytes,
        copies=case.copies,
        frames_per_s=frames_per_s,
        testpmd_frames_per_s=baseline.frames_per_s if baseline else None,
        testpmd_spread=baseline.spread if baseline else None,
        # net_ring passes the sender's own mbufs: bytes per second are meaningless
        gb_per_s=None if case.driver == "ring" else transfer.nbytes / statistics.median(seconds) / 1e9,
        memcpy_gb_per_s=transfer.nbytes / statistics.median(copies) / 1e9,
        of_memcpy=None
        if case.driver == "ring"
        else statistics.median(copy / second for copy, second in zip(copies, seconds, strict=True)),
        others=others,
        frames_retransmitted=sum(report.frames_retransmitted for report in reports),
    )
    benchmark.extra_info.update(
        versions(),
        **row(result),
        ratios={} if case.driver == "ring" else {"memcpy": Median.of_ratios(copies, seconds).as_dict()},
        slice_bytes=transfer.nbytes,
        slice_elements=len(slices[0]),
        bytes_copied_by_driver=case.driver != "ring",
        memory=transfer.memory_mode,
        testpmd=baseline.how if baseline else None,
        testpmd_best_frames_per_s=baseline.best_frames_per_s if baseline else None,
    )


def test_memcpy(benchmark: Any, slices: Any, cores: Any, rounds: int) -> None:
    """Copy the same bytes with the C library, on one core, for the absolute figure. Ratios use the paired copies."""
    memcpy = Memcpy(slices[0])
    benchmark.group = "slice"
    with pinned(cores[0]):
        benchmark.pedantic(memcpy.run, args=(slices[1],), rounds=rounds, warmup_rounds=WARM_UP)
    benchmark.extra_info.update(versions(), slice_bytes=sum(image.nbytes for image in slices[0]))
