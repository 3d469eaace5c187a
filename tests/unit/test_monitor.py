"""Table 2's columns: the formulas of section 3.4 in plain Python, and the samples that the loop takes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
import time

import pytest
from faults import faults_of
from subprocesses import environment
from wait import Deadline, wait_for

import aiflow
from aiflow.errors import ConfigError
from aiflow.monitor import LinkSpeeds, metrics
from aiflow.report import COLUMNS

unit = pytest.mark.unit


def sample(frames: int = 0, nbytes: int = 0, queued: int = 0, capacity: int = 0) -> dict[str, int]:
    return {"frames": frames, "bytes": nbytes, "queued": queued, "capacity": capacity}


@unit
def test_the_formulas_of_the_paper() -> None:
    got = metrics(sample(1000, 1_000_000), sample(2000, 2_514_000, 30, 120), 0.5, 100e6, 400, 390)
    assert got.tx_rate == 2000  # (N(T) - N(T - t)) / t
    assert got.rate_bps == pytest.approx(2000 * 1514 * 8)
    assert got.bandwidth_rate == pytest.approx(2000 * 1514 * 8 / 100e6)
    assert got.drop_rate == pytest.approx(10 / 400)
    assert got.buffer_occupancy == 0.25


@unit
def test_nothing_is_made_up_where_nothing_is_known() -> None:
    got = metrics(sample(), sample(), 0.0, None, 0, 0)
    assert (got.tx_rate, got.drop_rate, got.buffer_occupancy) == (0, 0, 0)
    assert math.isnan(got.bandwidth_rate)
    assert metrics(sample(500, 500), sample(3, 3), 0.1, 1e9, 1, 1).tx_rate == 0  # attached anew


@unit
def test_link_speed_is_read_for_all_ports_or_for_each() -> None:
    assert LinkSpeeds("100mbit", 2).of(31, None) == 100e6
    assert [LinkSpeeds(["1gbit", 5e7], 2).of(i, None) for i in (0, 1)] == [1e9, 5e7]
    with pytest.raises(ConfigError, match="2 rates for 3 ports"):
        LinkSpeeds([1e9, 1e9], 3)
    for nonsense in ("fast", "", 0, -1, "1 parsec", True):
        with pytest.raises(ConfigError, match="no rate"):
            LinkSpeeds(nonsense, 1)


@unit
def test_the_table_shows_what_went_over_each_port() -> None:
    endpoint = "ring:monitor*2"
    with (
        aiflow.Receiver(endpoint, link_speed="1gbit", monitor_interval=0.05) as rx,
        aiflow.Sender(endpoint, link_speed=["1gbit", "10gbit"], monitor_interval=0.05) as tx,
    ):

        def busy_rows():
            """Rows of an interval in which both ports carried data; None if the look came after its end."""
            tx.send({"x": bytes(1_000_000)}, wait=False)
            rx.recv(timeout=20).release()
            deadline = Deadline(0.1)
            while not deadline.passed:
                rows = list(tx.port_table)
                if all(row.tx_rate > 100 for row in rows):
                    return rows
                time.sleep(0.005)
            return None

        rows = wait_for(busy_rows)
        for row, speed in zip(rows, (1e9, 1e10), strict=True):
            assert row.link_speed_bps == speed
            assert row.bandwidth_rate == pytest.approx(row.rate_bps / speed)
            assert row.drop_rate == 0
            assert 0 <= row.buffer_occupancy <= 1
            assert 0 < row.port_score <= 1
        table = tx.port_table.as_array()
        assert table.dtype == COLUMNS
        assert list(COLUMNS.names or ()) == [
            *("port_id", "dest_mac", "lcore_id", "tx_rate", "bandwidth_rate", "drop_rate", "buffer_occupancy"),
            *("port_score", "send_interval", "updated_time"),
        ]
        assert not any(math.isnan(value) for name in ("tx_rate", "port_score", "drop_rate") for value in table[name])
        assert "bandwidth_rate" in tx.port_table._repr_html_()
        # and the intervals after it
        wait_for(lambda: all(row.tx_rate < 100 for row in tx.port_table))
        assert len(rx.port_table) == 2


@unit
def test_loss_is_the_receiver_s_count_of_the_present_slice() -> None:
    endpoint = "ring:monitor-loss"
    with (
        aiflow.Receiver(endpoint) as rx,
        aiflow.Sender(endpoint, faults={"drop": 0.2, "kinds": ("DATA",), "seed": 7}) as tx,
    ):
        ticket = tx.send({"x": bytes(2_000_000)}, wait=False)
        rx.recv(timeout=20).release()
        report = ticket.result(20)
        assert report.frames_retransmitted > 0  # the fault took place
        dropped = faults_of(tx)["dropped"]
        assert tx.port_table[0].drop_rate == pytest.approx(dropped / report.frames_sent, rel=0.25)
        tx.send({"y": b"small"}, wait=False).result(20)
        assert tx.port_table[0].drop_rate < 0.05  # another slice, another count


@unit
def test_loss_is_of_the_path_that_there_is() -> None:
    """A slice is posted before its path starts again at number 0, and passes the numbers of the old path."""
    endpoint, slice_bytes = "ring:monitor-anew", 6_000_000
    with aiflow.Sender(endpoint) as tx:
        with aiflow.Receiver(endpoint) as rx:
            ticket = tx.send({"x": bytes(slice_bytes)}, wait=False)
            rx.recv(timeout=20).release()
            before = ticket.result(20).frames_sent
        ticket = tx.send({"x": bytes(slice_bytes)}, wait=False)
        with aiflow.Receiver(endpoint, faults={"drop": 0.2, "ways": "in", "kinds": ("DATA",), "seed": 7}) as rx:
            rx.recv(timeout=20).release()
            sent = ticket.result(20).frames_sent
            dropped = faults_of(rx)["dropped"]
            assert sent > before + 100 > 200  # the old path's numbers were reached again
            assert tx.port_table[0].drop_rate == pytest.approx(dropped / sent, rel=0.25)


@unit
def test_monitoring_can_be_switched_off() -> None:
    endpoint = "ring:monitor-off"
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint, monitor_interval=0) as tx:
        tx.send({"x": bytes(100_000)}, wait=False)
        rx.recv(timeout=20).release()
        assert tx._agent.samples() is None
        assert tx.port_table[0].tx_rate == 0
        assert tx.port_table[0].frames > 0


RECEIVE = """
    import sys, aiflow
    with aiflow.Receiver(sys.argv[1].split(","), name="sink", until="bye") as rx:
        print("ready", flush=True)
        for time_slice in rx:
            pass
"""

SEND = """
    import json, sys, time, numpy as np, aiflow
    from pathlib import Path

    def interface(row):
        counters = Path("/sys/class/net") / row.name.split(":")[1] / "statistics"
        return [int((counters / name).read_text()) for name in ("tx_packets", "tx_bytes")]

    with aiflow.Sender(sys.argv[1].split(","), link_speed="100mbit", monitor_interval=0.2) as tx:
        tx.send([bytes(1000)] * 20, timeout=30)
        print("ready", flush=True)
        sys.stdin.readline()
        first, before, began = list(tx.port_table), [interface(row) for row in tx.port_table], time.monotonic()
        ticket = tx.send([np.zeros(170_000, np.uint8)] * 100, wait=False)
        rates = []
        while not ticket.done():
            time.sleep(0.2)
            rates.append([row.bandwidth_rate for row in tx.port_table])
        ticket.result(100)
        seconds = time.monotonic() - began
        after = [interface(row) for row in tx.port_table]
        print(json.dumps({
            "table": [[b.frames - a.frames, b.nbytes - a.nbytes] for a, b in zip(first, tx.port_table)],
            "interface": [[b - a for a, b in zip(x, y)] for x, y in zip(before, after)],
            "drop_rates": [row.drop_rate for row in tx.port_table],
            "frames": [row.frames - a.frames for a, row in zip(first, tx.port_table)],
            "rates": rates, "seconds": seconds,
        }), flush=True)
        sys.stdin.readline()
"""


@pytest.mark.root
@pytest.mark.slow
def test_the_columns_agree_with_the_kernel_s_counters(net) -> None:
    """Frames, bytes and loss are within 2 % of /sys/class/net and of the switch's count of losses."""
    source, switch, sink = net.switched(2, rate="100mbit")
    ports = "af_packet:s0,af_packet:s1"
    processes = []

    def received() -> int:
        return sum(int(sink.run("cat", f"/sys/class/net/r{i}/statistics/rx_packets")) for i in range(2))

    try:
        for host, code, names in ((sink, RECEIVE, ports.replace(":s", ":r")), (source, SEND, ports)):
            processes.append(
                subprocess.Popen(
                    [*host.prefix, sys.executable, "-c", textwrap.dedent(code), names],
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        receiver, sender = processes
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
        switch.lose(30)
        came_before = received()
        assert sender.stdin is not None
        sender.stdin.write("go\n")
        sender.stdin.flush()
        got = json.loads(sender.stdout.readline())
        came = received() - came_before  # before it closes: goodbyes are no part of it
        _, errors = sender.communicate("close\n", timeout=120)
        assert sender.returncode == 0, errors
        for table, interface in zip(got["table"], got["interface"], strict=True):
            assert table == pytest.approx(interface, rel=0.02)
        lost = sum(rate * frames for rate, frames in zip(got["drop_rates"], got["frames"], strict=True))
        left = sum(frames for frames, _ in got["interface"])
        assert switch.lost() > 100
        assert lost == pytest.approx(left - came, rel=0.02, abs=12)  # a few frames are in flight at each look
        # no interval carries more than the link, and what the sender's own queue holds
        assert all(0 < max(column) < 1.3 for column in zip(*got["rates"], strict=True))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
