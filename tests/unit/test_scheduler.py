"""The scheduler decides once per slice, in plain Python: shares, reasons, demand, switches."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiflow
from aiflow import config, scheduler
from aiflow.errors import ConfigError
from aiflow.scheduler import PortState, demand, group_by_switch, plan, spread

pytestmark = pytest.mark.unit

UNEQUAL = [PortState(i, True, speed) for i, speed in enumerate((100e6, 100e6, 50e6, 10e6))]


def test_pull_lets_every_port_take_part_and_says_so() -> None:
    made = plan("pull", 1000, [PortState(0, True), PortState(3, False)])
    assert made.port_mask & 0b1001 == 0b1001
    assert not made.quotas
    assert "port 0: takes the next chunk" in made.explain()
    assert "no live path" in made.explain().splitlines()[1]


def test_round_robin_deals_equal_shares_whatever_the_speed() -> None:
    assert plan("round_robin", 1000, UNEQUAL).quotas == {0: 250, 1: 250, 2: 250, 3: 250}


def test_weighted_deals_by_speed_and_says_so() -> None:
    made = plan("weighted", 26_000, UNEQUAL)
    assert made.quotas == {0: 10_000, 1: 10_000, 2: 5000, 3: 1000}
    assert "port 3: 3.8%, 1000 bytes: 10 Mbit/s" in made.explain()


def test_without_a_speed_for_every_port_shares_are_equal() -> None:
    ports = [PortState(0, True, 1e9), PortState(1, True)]
    assert plan("weighted", 1000, ports).quotas == {0: 500, 1: 500}


def test_score_is_the_paper_s_formula() -> None:
    port = PortState(0, True, None, bandwidth_rate=0.5, buffer_occupancy=0.25, drop_rate=0.1)
    assert math.isclose(scheduler.score(port), 0.57 * 0.5 + 0.31 * 0.75 + 0.12 * 0.9)
    assert math.isclose(scheduler.score(port, (1, 0, 0)), 0.5)
    assert scheduler.score(PortState(0, True)) == pytest.approx(1.0)


def test_score_takes_from_a_port_that_is_busy_full_or_lossy() -> None:
    free = PortState(0, True, 1e8)
    for worse in ({"bandwidth_rate": 0.9}, {"buffer_occupancy": 0.9}, {"drop_rate": 0.9}):
        quotas = plan("score", 10_000, [free, free._replace(number=1, **worse)]).quotas
        assert quotas[0] > quotas[1] > 0


def test_score_weights_are_settable_and_checked() -> None:
    busy = [PortState(0, True, 1e8, bandwidth_rate=0.5), PortState(1, True, 1e8, drop_rate=0.5)]
    assert plan("score", 3000, busy, weights=(1, 0, 0)).quotas == {0: 1000, 1: 2000}
    for weights in ((1, 1, 1), (0.5, 0.5), (1.5, -0.5, 0), "abc", None):
        with pytest.raises(ConfigError, match="three numbers"):
            plan("score", 1, busy, weights=weights)  # type: ignore[arg-type]


@given(
    policy=st.sampled_from(["score", "round_robin", "weighted"]),
    nbytes=st.integers(0, 10**12),
    speeds=st.lists(st.floats(1e3, 1e12), min_size=1, max_size=32),
    rates=st.tuples(*[st.floats(0, 2)] * 3),
)
def test_shares_cover_the_slice_and_no_more_than_a_byte_a_port_too_much(policy, nbytes, speeds, rates) -> None:
    ports = [PortState(i, True, speed, *rates) for i, speed in enumerate(speeds)]
    quotas = plan(policy, nbytes, ports).quotas
    assert nbytes - 1 <= sum(quotas.values()) <= nbytes * (1 + 1e-9) + len(ports) + 1


def test_a_switch_gets_no_more_than_it_carries() -> None:
    ports = [PortState(i, True, 100e6, switch="a" if i < 4 else "b") for i in range(5)]
    quotas = plan("weighted", 300, ports, switch_limits={"a": 200e6}).quotas
    assert [quotas[i] for i in range(5)] == [50, 50, 50, 50, 100]


def test_demand_is_compared_with_what_the_ports_can_give() -> None:
    met = demand(10_000_000, 1.0, [100e6])
    assert met.met
    assert met.needed_bps == 80e6
    assert met.available_bps == pytest.approx(100e6 * 1460 / 1514)
    refused = demand(100_000_000, 1.0, [100e6] * 4)
    assert not refused.met
    assert "need 800.0 Mbit/s of 385.7 Mbit/s" in refused.explain()
    assert "2.07 s" in refused.explain()
    assert "no port" in demand(1, 1.0, []).explain()
    with pytest.raises(ConfigError):
        demand(1, 0.0, [1e9])


def test_streams_are_spread_within_what_each_switch_carries() -> None:
    sizes = [250_000] * 30 + [1_000_000] * 3
    chosen = spread(sizes, 1.0, [60e6, 30e6])
    load = [8 * sum(size for size, to in zip(sizes, chosen, strict=True) if to == switch) for switch in (0, 1)]
    assert load[0] <= 60e6
    assert load[1] <= 30e6
    with pytest.raises(ConfigError, match="switch"):
        spread(sizes, 1.0, [40e6, 30e6])


def test_ports_that_hear_one_receiver_port_hang_on_one_switch() -> None:
    answers = {0: ["r0", "r1"], 1: ["r2"], 2: ["r1"], 3: ["r2", "r3"], 4: []}
    assert group_by_switch(answers) == {0: "switch 1", 2: "switch 1", 1: "switch 2", 3: "switch 2"}


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown: use one of 'pull'"):
        aiflow.Sender("local:nobody", policy="fastest")
    with pytest.raises(ConfigError, match="unknown: use one of 'credit'"):
        aiflow.Sender("local:nobody", flow_control="hope")
    with pytest.raises(ConfigError, match="'chunks' or 'elements'"):
        aiflow.Sender("local:nobody", place="slices")
    with pytest.raises(TypeError):
        aiflow.Sender("local:nobody", polcy="pull")  # type: ignore[call-arg]


def imports_of(module: ModuleType) -> set[str | None]:
    tree = ast.parse(Path(module.__file__ or "").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_the_scheduler_imports_nothing_compiled() -> None:
    standard = {"__future__", "collections.abc", "dataclasses", "math", "re", "typing"}
    assert imports_of(scheduler) <= standard | {"aiflow.errors", "aiflow.config"}
    assert imports_of(config) <= standard | {"aiflow.errors"}


@pytest.mark.parametrize("place", scheduler.PLACEMENTS)
@pytest.mark.parametrize("policy", scheduler.POLICIES)
def test_every_policy_delivers_exactly_over_either_placement(policy: str, place: str) -> None:
    rng = np.random.default_rng(1)
    small = [b"x" * k for k in range(99)]
    slices = [[rng.bytes(int(rng.integers(0, 90_000))) for _ in range(20)] + small for _ in "12"]
    endpoint = f"ring:policy-{policy}-{place}*4"
    with (
        aiflow.Receiver(endpoint) as rx,
        aiflow.Sender(endpoint, policy=policy, place=place, link_speed="1gbit") as tx,
    ):
        for elements in slices:
            ticket = tx.send(elements, wait=False)
            with rx.recv(timeout=30) as got:
                assert [bytes(element) for element in got] == elements
            report = ticket.result(30)
            assert sum(port.frames for port in report.ports) == report.frames_sent
        assert len(tx.explain().splitlines()) == 4
