"""Sender and receiver state machines in plain C, on a simulated network and clock (tests/core/simulate.c).

The test builds the program with the sanitizers. The C code checks every run; a test also shows that its fault took
place. test_simulator.py has the worlds that are drawn from seeds.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from core import Outcome, compiled, network, run, run_seeds

pytestmark = pytest.mark.unit

# what happens; how it shows; the longest that a run may take in simulated milliseconds
SCENARIOS: dict[str, tuple[str, Callable[[Outcome], bool], float]] = {
    "nothing": ("", lambda o: network(o, "lost") == o["again"] == 0, 300),
    "loss_of_a_hundredth": ("loss=100", lambda o: network(o, "lost") > 0 and o["again"] > 0, 600),
    "loss_of_a_tenth": ("loss=1000", lambda o: network(o, "lost") > 20, 3000),
    "loss_of_three_tenths": ("loss=3000", lambda o: network(o, "lost") > 100, 8000),
    "loss_in_bursts": ("loss=200 burst=30", lambda o: network(o, "lost") > 0, 3000),
    "every_frame_twice": ("dup=10000", lambda o: network(o, "doubled") > 100, 300),
    "flipped_bits": ("corrupt=200", lambda o: network(o, "damaged") > 5 and o["drops"].get("11", 0) > 0, 1000),
    "frames_overtake_each_other": ("jitter_us=100", lambda o: o["spurious"] > 0, 600),
    "small_elements": ("small=1 loss=100 dup=500 jitter_us=30", lambda o: network(o, "sent") > 100, 3000),
    "elements_without_bytes": ("zero=2 loss=100", lambda o: network(o, "sent") > 0, 600),
    "elements_stay_in_their_frames": ("keep=1 loss=100 small=1", lambda o: network(o, "lost") > 0, 1000),
    "two_senders": ("senders=2 loss=50 jitter_us=30", lambda o: o["delivered"] == 24, 3000),
    "four_senders": ("senders=4 slices=6 loss=50", lambda o: o["delivered"] == 24, 3000),
    "first_and_last_frame_lost": (
        "first_lost=1 last_lost=1",
        lambda o: network(o, "first") == 1 and network(o, "last") > 3,
        1000,
    ),
    "feedback_lost_for_50_ms": ("mute_ms=50", lambda o: network(o, "muted") > 5, 300),
    "a_path_dies": ("die_ms=1 die_way=3 bytes=200000", lambda o: network(o, "cut") > 10 and o["again"] > 0, 1000),
    "a_path_dies_one_way": ("die_ms=1 die_way=1 bytes=200000", lambda o: network(o, "cut") > 10, 1000),
    "a_path_dies_the_other_way": ("die_ms=1 die_way=2 bytes=200000", lambda o: network(o, "cut") > 2, 1000),
    "some_are_cancelled": ("cancel=3 loss=100", lambda o: o["failed"] > 0, 1000),
    "grants_wait_for_memory": ("memory_kb=2000 hold_ms=5 senders=2 loss=20", lambda o: o["waited"] > 0, 3000),
    "the_receiver_restarts": ("rx_restart_ms=1 bytes=200000 loss=50", lambda o: o["receivers"] == 2, 5000),
    "a_sender_restarts": ("tx_restart_ms=1 senders=2 loss=50", lambda o: o["delivered"] > 12, 5000),
    "receive_rings_are_small": ("ring=32 ports=8 bytes=200000", lambda o: network(o, "sent") > 1000, 600),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_when(simulate, name) -> None:
    options, took_place, longest_ms = SCENARIOS[name]
    outcomes = run_seeds(simulate, options)
    assert any(took_place(outcome) for outcome in outcomes), outcomes[0]
    if name not in ("some_are_cancelled", "the_receiver_restarts", "a_sender_restarts"):
        assert not any(outcome["failed"] for outcome in outcomes)
    assert max(outcome["ms"] for outcome in outcomes) < longest_ms
    assert not any(network(outcome, "overflowed") for outcome in outcomes)


CONFIRMED: dict[str, str] = {
    "all": "confirm=1 loss=100",
    "every_other": "confirm=2 loss=1000 jitter_us=30",
    "in_runs_and_late": "confirm=5 loss=300 slices=60 small=1 bytes=300",
    "while_some_are_cancelled": "confirm=3 cancel=3 loss=100",
    "and_the_receiver_is_killed": "confirm=2 rx_restart_ms=1 bytes=200000 loss=50",
    "while_memory_is_short_and_senders_stop": (
        "confirm=3 memory_kb=300 hold_ms=5 bytes=1500 pause_ms=1 pause_for_ms=4000 pause_way=2"
    ),
}


@pytest.mark.parametrize("name", CONFIRMED)
def test_senders_hear_what_the_user_says_of_slices(simulate, name) -> None:
    """The sender hears the user's confirmation, or the failure with its reason (simulate.c checks)."""
    outcomes = run_seeds(simulate, CONFIRMED[name])
    assert all(outcome["delivered"] for outcome in outcomes)
    assert any(outcome["failed"] for outcome in outcomes) == (name != "all")


def test_fault_30_reordering_by_up_to_a_thousand_frames(simulate) -> None:
    """One frame in ten of a window of 896 is late by more than the window: it is retransmitted and delivered once."""
    options = "ports=1 window=896 ring=1024 slices=20 bytes=200000 reorder=1000 jitter_us=5000"
    outcomes = run_seeds(simulate, options, 4)
    assert all(network(outcome, "overtaken") >= 1000 for outcome in outcomes), outcomes
    assert all(outcome["again"] > 0 and outcome["delivered"] == 20 for outcome in outcomes)


def test_losses_are_repaired_one_for_one(simulate) -> None:
    """Lost frames are retransmitted; spurious losses stay below one hundredth of the retransmissions."""
    outcomes = run_seeds(simulate, "loss=100 slices=40", 8)
    assert sum(outcome["spurious"] for outcome in outcomes) <= 0.01 * sum(outcome["again"] for outcome in outcomes)
    assert sum(outcome["again"] for outcome in outcomes) <= 1.2 * sum(network(o, "lost") for o in outcomes)


def test_the_same_seed_is_the_same_run(simulate) -> None:
    options = ("loss=300", "jitter_us=50", "dup=100", "senders=2", "seed=9")
    assert run(simulate, *options) == run(simulate, *options)


FANS: dict[str, tuple[str, Callable[[Outcome], bool]]] = {
    "nothing": ("", lambda o: o["again"] == 0),
    "loss_of_a_hundredth": ("loss=100", lambda o: network(o, "lost") > 0 and o["again"] > 0),
    "frames_are_lost_doubled_and_late": (
        "loss=100 dup=300 corrupt=100 jitter_us=50",
        lambda o: network(o, "lost") > 0,
    ),
    "four_receivers_and_a_small_window": ("receivers=4 window=10 loss=50", lambda o: o["most_in_flight"] == 10),
    "more_receivers_than_the_window_has_places": ("receivers=4 window=3", lambda o: o["most_in_flight"] == 3),
    "ports_of_their_own": ("apart=1 loss=50", lambda o: o["most_shared"] == 1),
}


@pytest.mark.parametrize("name", FANS)
def test_several_receivers_get_their_own_and_share_windows_when(simulate, name) -> None:
    """The numbers of all nodes are equal. No port has more frames in flight than its window (invariants.h)."""
    options, took_place = FANS[name]
    outcomes = run_seeds(simulate, f"fan=1 twins=1 receivers=2 slices=30 {options}")
    assert any(took_place(outcome) for outcome in outcomes), outcomes[0]
    assert not any(outcome["failed"] for outcome in outcomes)
    if "apart" not in options:
        assert max(outcome["most_shared"] for outcome in outcomes) > 1


@pytest.mark.parametrize("apart", [0, 1])
def test_a_receiver_that_falls_silent_delays_no_other(simulate, apart) -> None:
    options = f"fan=1 receivers=2 slices=40 bytes=100000 apart={apart}"
    alone = run_seeds(simulate, options, 4)
    outcomes = run_seeds(simulate, f"{options} silent_ms=8 timeout_ms=1000", 4)
    for outcome, before in zip(outcomes, alone, strict=True):
        assert 0 < outcome["failed"] < 40  # some came before it died, the others' all did
        # 100 ms until its silence is noticed, on each port at once
        assert outcome["ended_ms"][0] < before["ended_ms"][0] + 150
        assert outcome["ended_ms"][1] > 1000


BOTH_WAYS: dict[str, tuple[str, Callable[[Outcome], bool]]] = {
    "one_each": ("", lambda o: o["delivered"] == 24),
    "frames_are_lost_and_late": ("loss=100 jitter_us=50", lambda o: o["again"] > 0),
    "several_on_each_port": ("senders=2 receivers=2 loss=100", lambda o: o["most_shared"] > 1),
    "three_nodes": ("nodes=3 receivers=2 loss=50", lambda o: o["senders"] == 3),
    "agents_use_different_ports": ("senders=2 receivers=2 unlike=1 loss=50", lambda o: o["delivered"] == 48),
    "ports_are_point_to_point": ("direct=1 loss=100", lambda o: o["delivered"] == 24),
    "senders_come_and_go": ("senders=2 receivers=2 lives=2 loss=50", lambda o: o["renewals"] > 8),
    "a_node_restarts": ("senders=2 rx_restart_ms=1 whole=1 bytes=200000", lambda o: o["receivers"] == 3),
    "one_agent_of_a_node_restarts": ("senders=2 tx_restart_ms=1 bytes=200000 loss=50", lambda o: o["delivered"] > 0),
    "a_port_is_lost_to_all_its_agents": (
        "senders=2 receivers=2 whole=1 unplug_ms=1 unplug_for_ms=20 bytes=200000",
        lambda o: network(o, "unplug") > 0,
    ),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_ports_serve_both_ways_when(simulate, name) -> None:
    """Each node has senders and receivers on its ports, and the numbers of all nodes are equal."""
    options, took_place = BOTH_WAYS[name]
    outcomes = run_seeds(simulate, f"nodes=2 twins=1 {options}")
    assert any(took_place(outcome) for outcome in outcomes), outcomes[0]
    if "restarts" not in name:
        assert not any(outcome["failed"] for outcome in outcomes)


CRC_WAYS = {
    "strands": {"sse4_2"},
    "pclmul": {"sse4_2", "pclmulqdq"},
    "avx2": {"vpclmulqdq", "avx2"},
    "avx512": {"vpclmulqdq", "avx512bw", "avx512vl"},
}


def cpu_flags() -> set[str]:
    return set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())


@pytest.mark.parametrize("flags", [(), ("-msse4.2",)], ids=["portable", "sse4.2"])
def test_crc32c_by_every_way_that_this_cpu_has(tmp_path, flags) -> None:
    """All give the values of RFC 3720 and of the bitwise definition at every length and alignment, and copy exactly."""
    ways = [way for way, needed in CRC_WAYS.items() if needed <= cpu_flags()] if flags else ["strands"]
    if not ways:
        pytest.skip("this CPU has no SSE4.2")
    program = compiled("crc.c", tmp_path / "crc", *flags)
    ran = subprocess.run([str(program)], check=True, timeout=250, capture_output=True, text=True)
    assert ran.stdout.split() == ways[::-1]


@pytest.mark.parametrize("way", CRC_WAYS)
def test_a_lesser_way_can_be_asked_for(tmp_path, way) -> None:
    """AIFLOW_CRC32C selects one, so that one machine can test each."""
    if not CRC_WAYS[way] <= cpu_flags():
        pytest.skip(f"this CPU has no {way}")
    program = compiled("crc.c", tmp_path / "crc", "-msse4.2")
    asked = {**os.environ, "AIFLOW_CRC32C": way}
    ran = subprocess.run([str(program)], check=True, timeout=250, capture_output=True, text=True, env=asked)
    assert ran.stdout.split()[0] == way


@pytest.mark.parametrize("way", CRC_WAYS)
@pytest.mark.parametrize(
    "options", ["dup=10000 corrupt=1000", "bytes=200000 loss=100 corrupt=500", "small=1 corrupt=500"]
)
def test_damaged_payloads_never_stay(tmp_path_factory, way, options) -> None:
    """A payload is copied while its CRC is computed. A chunk that is there is never overwritten; a damaged one is."""
    if not CRC_WAYS[way] <= cpu_flags():
        pytest.skip(f"this CPU has no {way}")
    program = tmp_path_factory.getbasetemp() / "simulate-sse4.2"
    if not program.exists():
        compiled("simulate.c", program, "-msse4.2")
    outcomes = run_seeds(program, options, 4, AIFLOW_CRC32C=way)
    assert all(network(outcome, "damaged") > 5 and outcome["drops"].get("11", 0) > 0 for outcome in outcomes)
    assert not any(outcome["failed"] for outcome in outcomes)
