"""Flow control and port choice: constants in plain Python, control laws in the simulator, and real switch ports.

The simulator (tests/core/shaped.c) drives the same state machines as the live loop, on a simulated clock. Its times and
losses are exact, so the tests assert them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core import compiled
from subprocesses import environment

import aiflow
from aiflow._policy.flow_control import FLOW_CONTROLS, LATE_NS, FlowControl
from aiflow.config import parse_rate
from aiflow.errors import ConfigError

Outcome = dict[str, Any]
unit = pytest.mark.unit

# ---- constants ----


@unit
def test_gaps_are_for_1_gbit_and_scale_with_the_line_rate() -> None:
    assert FlowControl("static").pace(1e9).frame_ns == pytest.approx(8000)
    assert FlowControl("static").pace(1e8).frame_ns == pytest.approx(80_000)
    assert FlowControl("reverse").pace(1e8).frame_ns == pytest.approx(15_000)
    assert FlowControl("static", gap_us=12).pace(1e10).frame_ns == pytest.approx(1200)


@unit
def test_the_paper_s_constants_are_the_defaults() -> None:
    pace = FlowControl("reverse").pace(1e9)
    assert (pace.frame_ns, pace.gain, pace.threshold) == (pytest.approx(1500), 22.5, 0.002)
    assert pace.byte_ns * 1024 == pytest.approx(8192)  # no faster than the line
    assert FlowControl("reverse", capped=False).pace(1e9).byte_ns == 0


@unit
def test_credit_is_a_window_and_the_others_are_gaps() -> None:
    assert [name for name in FLOW_CONTROLS if not FlowControl(name).pace(1e9).rate_based] == ["credit"]
    assert FlowControl("token_bucket", rate="80mbit").pace(1e8).byte_ns == pytest.approx(100)
    assert FlowControl("token_bucket").pace(1e8).byte_ns == pytest.approx(80)
    assert FlowControl("none").pace(None)[1:4] == (0, 0, 0)


@unit
def test_a_link_s_speed_that_was_given_is_kept_under_credit_too() -> None:
    given = FlowControl("credit").pace(1e8, given=True)
    assert not given.rate_based  # the receiver's credit still bounds the frames in flight
    assert 80 <= given.byte_ns <= 80.4
    assert FlowControl("credit").pace(1e8)[1:4] == (0, 0, 0)  # a driver that knows its speed keeps it
    assert FlowControl("none").pace(1e8, given=True)[1:4] == (0, 0, 0)


@unit
@pytest.mark.parametrize(
    "nonsense",
    [{"name": "hope"}, {"gap_us": 0}, {"gain": -1}, {"threshold": 1.0}, {"rate": "fast"}, {"burst": 0}],
)
def test_nonsense_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FlowControl(**nonsense)


@unit
def test_rates_are_read_as_people_write_them() -> None:
    assert [parse_rate(rate) for rate in ("100mbit", "1 Gbit/s", "2.5g", 1e6)] == [1e8, 1e9, 2.5e9, 1e6]


# ---- laws, in the simulator ----


@pytest.fixture(scope="session")
def shaped(tmp_path_factory) -> Path:
    return compiled("shaped.c", tmp_path_factory.mktemp("core") / "shaped", "-O2")


def run(program: Path, options: str) -> Outcome:
    # It ends by exiting, with its peers still up: leaks are exchange.c's business.
    ran = subprocess.run(
        [str(program), *options.split()],
        capture_output=True,
        text=True,
        timeout=250,
        env={"ASAN_OPTIONS": "detect_leaks=0"},
        check=False,
    )
    assert ran.returncode == 0, f"{options}\n{ran.stdout}{ran.stderr}"
    return json.loads(ran.stdout)


def seeds(program: Path, options: str, count: int = 4) -> list[Outcome]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda seed: run(program, f"{options} seed={seed}"), range(1, count + 1)))


def used(outcome: Outcome, mbit: float) -> float:
    """Share of what the switch ports could have carried until the last slice was whole."""
    return 8 * outcome["wire_bytes"] / 1e3 / outcome["ms"] / mbit


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / len(values) / sum(value * value for value in values)


@unit
@pytest.mark.parametrize("senders", [2, 8])
def test_credit_shares_a_port_fairly_without_loss_and_keeps_it_busy(shaped, senders: int) -> None:
    outcome = run(shaped, f"senders={senders} bytes={16_000_000 // senders}")
    assert outcome["lost"] == 0
    assert used(outcome, 100) >= 0.95
    finished = outcome["finished_ms"]
    assert max(finished) <= 1.05 * min(finished)
    assert jain([1 / ms for ms in finished]) >= 0.98


@unit
@pytest.mark.parametrize("limit_kb", [9, 15, 24])  # 6, 10 and 16 frames
def test_a_slow_link_with_a_short_queue_is_kept_busy(shaped, limit_kb: int) -> None:
    """A small window is used up before a receiver has 16 frames to report."""
    outcome = run(shaped, f"bytes=16000000 access=1000 limit_kb={limit_kb}")
    assert used(outcome, 100) >= 0.95


@unit
def test_credit_makes_room_for_one_that_comes_late(shaped) -> None:
    """One has the port for 200 ms, then each gets half of it."""
    first, second = run(shaped, "senders=2 bytes=8000000 late_ms=200")["finished_ms"]
    whole_ms = 8_000_000 * 8 * 1514 / 1460 / 100e6 * 1e3
    assert first == pytest.approx(200 + 2 * (whole_ms - 200), rel=0.05)
    assert second == pytest.approx(2 * whole_ms, rel=0.05)


@unit
def test_credit_holds_when_the_ends_are_not_run_for_a_while(shaped) -> None:
    for outcome in seeds(shaped, "senders=2 bytes=8000000 stall_us=8000 stall_every_ms=50"):
        assert outcome["lost"] <= 1e-4 * outcome["frames"]
        assert used(outcome, 100) >= 0.93


@unit
@pytest.mark.parametrize("limit_kb", [32, 64])
def test_credit_learns_the_size_of_a_shallow_queue_from_a_few_frames(shaped, limit_kb: int) -> None:
    outcome = run(shaped, f"senders=2 bytes=8000000 access=400 limit_kb={limit_kb}")
    assert 0 < outcome["lost"] <= 12
    assert used(outcome, 100) >= 0.95


@unit
@pytest.mark.parametrize("loss", [10, 100, 300])
def test_credit_does_not_take_random_loss_for_a_full_queue(shaped, loss: int) -> None:
    for outcome in seeds(shaped, f"bytes=8000000 loss={loss}"):
        assert outcome["unlucky"] > 0
        assert used(outcome, 100) >= 0.94


@unit
def test_static_loses_what_overload_leaves_it(shaped) -> None:
    """(ρ - 1) / ρ at ρ = 2, and delivers all the same."""
    outcome = run(shaped, "bytes=8000000 access=1000 limit_kb=64 rate_based=1 frame_gap_ns=60560")
    assert outcome["lost"] / outcome["frames"] == pytest.approx(1 / 2, abs=0.02)
    assert outcome["delivered"] == 1


@unit
def test_reverse_loses_no_more_than_its_law_and_does_not_crawl(shaped) -> None:
    """(ρ - 1) / (ρ + k) at ρ = 2, k = 22; at most 1.25 times static's time."""
    options = "bytes=16000000 access=1000 limit_kb=64 rate_based=1 frame_gap_ns=60560"
    static, reverse = run(shaped, options), run(shaped, f"{options} gain=22")
    assert 0 < reverse["lost"] / reverse["frames"] <= 1.15 / 24
    assert reverse["ms"] <= 1.25 * static["ms"]


@unit
def test_reverse_cures_a_slight_overrun(shaped) -> None:
    """A gap 2.4 % too short, as the paper's of 8 µs is for 1024-byte packets."""
    options = "bytes=16000000 access=1000 limit_kb=64 rate_based=1 frame_gap_ns=118164"
    static, reverse = run(shaped, options), run(shaped, f"{options} gain=22")
    assert static["lost"] > 100
    assert reverse["lost"] <= 0.219 * static["lost"]
    assert reverse["ms"] <= 1.25 * static["ms"]


@unit
def test_none_floods_and_delivers(shaped) -> None:
    outcome = run(shaped, "bytes=2000000 access=1000 limit_kb=64 rate_based=1")
    assert outcome["lost"] > outcome["frames"] / 2
    assert outcome["delivered"] == 1


UNEQUAL = "ports=4 rate2=50 rate3=10 bytes=13000000"
IDEAL_MS = 13_000_000 * 8 * 1514 / 1460 / 260e6 * 1e3
EQUAL_SHARES = "quota0=250 quota1=250 quota2=250 quota3=250"
BY_SPEED = "quota0=384 quota1=384 quota2=192 quota3=39"


@unit
@pytest.mark.parametrize("plan", ["", "shortest=1", "whole=1", BY_SPEED, f"whole=1 {BY_SPEED}"])
def test_unequal_ports_finish_together(shaped, plan: str) -> None:
    assert run(shaped, f"{UNEQUAL} {plan}")["ms"] <= 1.05 * IDEAL_MS


@unit
def test_equal_shares_of_unequal_ports_wait_until_one_share_is_left(shaped) -> None:
    """The other ports take over the slow port's share when they have sent their own."""
    outcome = run(shaped, f"{UNEQUAL} {EQUAL_SHARES}")
    assert outcome["port_bytes"][3] < 0.07 * sum(outcome["port_bytes"])  # not the quarter that it was dealt
    assert 1.3 * IDEAL_MS < outcome["ms"] < 1.6 * IDEAL_MS


@unit
@pytest.mark.parametrize("plan", [EQUAL_SHARES, f"whole=1 {EQUAL_SHARES}"])
def test_crawling_ports_strand_no_share(shaped, plan: str) -> None:
    """Two ports of a hundredth of the speed: neither's share waits for them."""
    outcome = run(shaped, f"ports=4 bytes=13000000 rate2=1 rate3=1 {plan}")
    assert outcome["ms"] < 1.35 * 13_000_000 * 8 * 1514 / 1460 / 202e6 * 1e3


@unit
@pytest.mark.parametrize("plan", ["", EQUAL_SHARES, "whole=1", f"whole=1 {EQUAL_SHARES}", "shortest=1"])
def test_a_port_that_dies_strands_neither_its_share_nor_its_element(shaped, plan: str) -> None:
    outcome = run(shaped, f"ports=4 bytes=13000000 die_ms=60 {plan}")
    assert outcome["delivered"] == 1
    assert outcome["again"] > 0  # it died with frames in flight
    assert outcome["port_bytes"][0] < 0.15 * sum(outcome["port_bytes"])


@unit
def test_whole_elements_survive_loss_on_every_port(shaped) -> None:
    for outcome in seeds(shaped, "ports=4 bytes=3000000 elements=7 whole=1 loss=300 slices=3"):
        assert outcome["delivered"] == 3
        assert outcome["again"] >= outcome["unlucky"] / 2 > 0


# ---- live ----


@unit
@pytest.mark.parametrize("flow_control", FLOW_CONTROLS)
def test_every_flow_control_delivers_exactly(flow_control: str) -> None:
    endpoint = f"ring:flow-{flow_control}*2"
    content = [bytes([k]) * (k * 1000) for k in range(60)]
    with (
        aiflow.Receiver(endpoint) as rx,
        aiflow.Sender(endpoint, flow_control=flow_control, link_speed="10gbit", faults={"drop": 0.02}) as tx,
    ):
        ticket = tx.send(content, wait=False)
        with rx.recv(timeout=30) as got:
            assert [bytes(element) for element in got] == content
        ticket.result(30)
        gaps = [row.send_interval for row in tx.port_table]
        assert not any(gaps) if flow_control == "none" else all(gaps)


@unit
def test_a_port_gets_no_more_than_its_link_s_speed() -> None:
    """Two ports of 100 and 300 Mbit/s: 10 MB can't be there before 0.2 s, whatever the driver takes."""
    endpoint = "ring:paced*2"
    content = np.zeros(10_000_000, np.uint8)
    with aiflow.Receiver(endpoint) as rx, aiflow.Sender(endpoint, link_speed=["100mbit", "300mbit"]) as tx:
        ticket = tx.send([content], wait=False)
        rx.recv(timeout=30).release()
        report = ticket.result(30)
    burst = 2 * LATE_NS / 1e9
    assert report.seconds > 8 * content.nbytes / 400e6 - burst
    slow, fast = sorted(port.nbytes for port in report.ports)
    for nbytes, rate in ((slow, 100e6), (fast, 300e6)):
        assert 8 * nbytes / rate <= report.seconds + burst


RECEIVE = """
    import sys, aiflow
    with aiflow.Receiver(sys.argv[1].split(","), name="sink", until="bye") as rx:
        print("ready", flush=True)
        for time_slice in rx:
            assert all((element.array == 7).all() for element in time_slice)
"""

SEND = """
    import sys, numpy as np, aiflow
    with aiflow.Sender(sys.argv[1].split(","), link_speed=sys.argv[2].split(",")) as tx:
        tx.send([np.full(1000, 7, np.uint8)] * 20, timeout=30)
        print("ready", flush=True)
        sys.stdin.readline()
        report = tx.send([np.full(170_000, 7, np.uint8)] * int(sys.argv[3]), timeout=100)
        print(report.frames_sent, report.frames_retransmitted, *(row.drop_rate for row in tx.port_table))
"""


def process(prefix: tuple[str, ...], code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def queues(switch, nb_ports: int) -> tuple[int, int]:
    """Frames that the switch ports towards the receiver have sent, and dropped."""
    stats = [json.loads(switch.run("tc", "-s", "-j", "qdisc", "show", "dev", f"r{i}"))[0] for i in range(nb_ports)]
    return sum(each["packets"] for each in stats), sum(each["drops"] for each in stats)


@pytest.mark.root
@pytest.mark.slow
def test_two_senders_onto_one_receiver_s_ports_overflow_no_switch_queue(net) -> None:
    """Overload 2:1 at two real switch ports: credit loses at most a frame of ten thousand."""
    nb_ports = 2
    source, switch, sink = net.switched(nb_ports, rate="100mbit")
    other = net.namespace("other")
    for i in range(nb_ports):
        net.veth(other, f"s{i}", switch, f"o{i}")
        switch.ip("link", "set", "dev", f"o{i}", "master", "br0")
        other.shape(f"s{i}")
    ours = ",".join(f"af_packet:s{i}" for i in range(nb_ports))
    receiver = process(sink.prefix, RECEIVE, ours.replace(":s", ":r"))
    senders = []
    try:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        senders = [process(host.prefix, SEND, ours, "100mbit,100mbit", "60") for host in (source, other)]
        for sender in senders:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "ready\n"
        sent_before, lost_before = queues(switch, nb_ports)
        for sender in senders:
            assert sender.stdin is not None
            sender.stdin.write("go\n")
            sender.stdin.flush()
        for sender in senders:
            out, errors = sender.communicate(timeout=120)
            assert sender.returncode == 0, errors
            frames, again, *_ = map(float, re.findall(r"[\d.e-]+", out))
            assert again <= 0.01 * frames
        sent, lost = queues(switch, nb_ports)
        assert sent - sent_before > 2 * 60 * 170_000 / 1500  # both went this way
        assert lost - lost_before <= 1e-4 * (sent - sent_before)
        assert receiver.wait(60) == 0
    finally:
        for each in (receiver, *senders):
            each.kill()
            each.communicate()


@unit
def test_a_trunk_that_all_ports_share_is_kept_busy_and_its_queue_found_out(shaped) -> None:
    """Eight ports of 100 Mbit/s behind 700: the loss that shows the queue's size is a few frames."""
    outcome = run(shaped, "ports=8 bytes=40000000 trunk=700")
    assert outcome["lost"] <= 1e-3 * outcome["frames"]
    assert used(outcome, 700) >= 0.97


DUAL = """
    import json, sys, time, numpy as np, aiflow
    from aiflow import scheduler
    ports = sys.argv[1].split(",")
    with aiflow.Sender(ports, policy="weighted", switches="probe", link_speed="100mbit",
                       switch_limits={"switch 2": "100mbit"}) as tx:
        deadline = time.monotonic() + 60
        while sum(row.dest_mac != "" for row in tx.port_table) < len(ports):
            assert time.monotonic() < deadline, tx.port_table
            tx.send([np.full(5, 7, np.uint8)], timeout=30)
        report = tx.send([np.full(170_000, 7, np.uint8)] * 24, timeout=60)
        print(json.dumps([[row.name, row.switch] for row in tx.port_table]))
        print(json.dumps({port.name: port.nbytes for port in report.ports}))
        print(tx.explain())
"""


@pytest.mark.root
def test_two_switches_are_told_apart_by_who_answers_and_share_a_slice(net) -> None:
    source, sink = net.namespace("source"), net.namespace("sink")
    for label, ports in (("left", (0, 2)), ("right", (1, 3))):
        switch = net.namespace(label)
        switch.bridge()
        for i in ports:
            for host, letter in ((source, "s"), (sink, "r")):
                net.veth(host, f"{letter}{i}", switch, f"{letter}{i}")
                switch.ip("link", "set", "dev", f"{letter}{i}", "master", "br0")
    ours = [f"af_packet:s{i}" for i in range(4)]
    receiver = process(sink.prefix, RECEIVE, ",".join(ours).replace(":s", ":r"))
    try:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        sender = process(source.prefix, DUAL, ",".join(ours))
        out, errors = sender.communicate(timeout=120)
        assert sender.returncode == 0, errors
        switches, nbytes, *reasons = out.splitlines()
        assert dict(json.loads(switches)) == {
            ours[0]: "switch 1",
            ours[2]: "switch 1",
            ours[1]: "switch 2",
            ours[3]: "switch 2",
        }
        sent = json.loads(nbytes)
        # What the second switch carries at most is half of what its ports would; the last share left is everybody's.
        assert sent[ours[1]] + sent[ours[3]] == pytest.approx(sum(sent.values()) / 3, rel=0.25)
        assert len(reasons) == 4
    finally:
        receiver.kill()
        receiver.communicate()
