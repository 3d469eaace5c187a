"""The verdicts of `aiflow diagnose` from made-up snapshots: of one end, of several receivers, of links of all kinds."""

from __future__ import annotations

from typing import Any

import pytest

from aiflow._observe.diagnosis import Cpu, End, Verdict, cpu_shares, measures, verdict
from aiflow._observe.kernel import Thread
from aiflow._observe.watching import _flows

pytestmark = pytest.mark.unit

SECONDS = 10.0
GIGABIT = 1e9
QUIET = Cpu(0.0, 0.0, 0.0, 0.0)


def waits(**shares: float) -> dict[str, float]:
    """A Sender's waits for one receiver; the rest of the time it had no slice."""
    rest = {"application": 1 - sum(shares.values())}
    return dict.fromkeys(("receiver", "path", "memory", "confirmation"), 0.0) | rest | shares


def port(name: str, busy: float, bps: float, speed: float | None, lost: float = 0.0) -> dict[str, Any]:
    """Shares and rates of a Sender's port."""
    known = {"port_link_speed_bits_per_second": speed} if speed else {}
    frames = {"port_transmit_frames": 1e4, "port_lost_frames": 1e4 * lost}
    figures = {"port_usable": 1, "port_busy_seconds": busy, "port_transmit_bytes": bps / 8, **frames, **known}
    return {"name": name, "driver": "net_af_packet", "figures": figures}


def side(scale: float, document: dict[str, Any]) -> dict[str, Any]:
    """The side after `scale` seconds: each counter has grown by so much."""
    gauges = ("port_usable", "port_link_speed_bits_per_second", "peer_joined")

    def grown(figures: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value if name in gauges else grown(value) if isinstance(value, dict) else scale * value
            for name, value in figures.items()
        }

    lists = {
        key: [{**one, "figures": grown(one["figures"])} for one in document.get(key, [])] for key in ("peers", "ports")
    }
    return {**document, **lists, "figures": grown(document["figures"])}


def end(document: dict[str, Any], cpu: Cpu | None = QUIET) -> End:
    return End(side(0.0, document), side(SECONDS, document), SECONDS, cpu)


def sender(
    *peers: dict[str, float], ports: tuple[dict[str, Any], ...] = (), busy: float = 0.1, cpu: Cpu | None = QUIET
) -> End:
    """A Sender with these waits for each receiver, which are called a, b, …"""
    figures = {"loop_busy_seconds": busy, "loop_rest_seconds": 0.0, "caller_wait_seconds": 1.0, "bytes": 1e6}
    joined = [
        {"name": name, "figures": {"peer_joined": 1, "wait_seconds": shares}}
        for name, shares in zip("abcd", peers, strict=False)
    ]
    shown = ports or (port("p0", 1.0, 0.5 * GIGABIT, None),)
    return end({"role": "sender", "name": "s", "figures": figures, "peers": joined, "ports": list(shown)}, cpu)


def receiver(busy: float = 0.1, waited: float = 1.0, cpu: Cpu | None = QUIET, **figures: Any) -> End:
    known = {
        "loop_busy_seconds": busy,
        "loop_rest_seconds": 0.0,
        "caller_wait_seconds": waited,
        "reader_behind_seconds": 0.0,
        "arrival_seconds": {"idle": 0.0, "arriving": 1.0, "memory": 0.0},
        "bytes": 1e6,
    }
    return end({"role": "receiver", "name": "a", "figures": known | figures, "peers": [], "ports": []}, cpu)


def of(tx: End | None, rx: End | None) -> Verdict:
    return verdict(measures(tx, rx, 0))


class TestLinks:
    @pytest.mark.parametrize(("rate", "speed", "cause"), [
        (0.95, GIGABIT, "link"),
        (0.5, GIGABIT, "unclear"),  # loss, a window, or the far end
        (0.95, None, "unclear"),
    ])  # fmt: skip
    def test_the_senders_end_alone_names_a_link_that_is_full(
        self, rate: float, speed: float | None, cause: str
    ) -> None:
        tx = sender(waits(path=1.0), ports=(port("p0", 1.0, rate * GIGABIT, speed),))
        assert of(tx, None).cause == cause

    def test_both_ends_do_not_name_a_link_that_carries_less_than_its_speed(self) -> None:
        tx = sender(waits(path=1.0), ports=(port("p0", 1.0, 0.4 * GIGABIT, GIGABIT),))
        assert of(tx, receiver()).cause == "unclear"

    def test_both_ends_name_a_link_of_unknown_speed(self) -> None:
        assert of(sender(waits(path=1.0)), receiver()).cause == "link"

    @pytest.mark.parametrize(("speed", "cause"), [(None, "unclear"), (GIGABIT, "link")])
    def test_losses_may_be_the_reason_where_a_link_is_not_known_to_be_full(
        self, speed: float | None, cause: str
    ) -> None:
        tx = sender(waits(path=1.0), ports=(port("p0", 1.0, 0.95 * GIGABIT, speed, lost=0.05),))
        assert of(tx, receiver()).cause == cause

    def test_full_links_of_unknown_and_unequal_speed_are_links(self) -> None:
        ports = (port("p0", 1.0, 10 * GIGABIT, None), port("p1", 1.0, GIGABIT, None))
        found = of(sender(waits(path=1.0), ports=ports), receiver())
        assert found.cause == "link"
        assert "p1" in found.text

    def test_full_links_of_known_and_unequal_speed_are_links(self) -> None:
        ports = (port("p0", 1.0, 9.5 * GIGABIT, 10 * GIGABIT), port("p1", 1.0, 0.95 * GIGABIT, GIGABIT))
        assert of(sender(waits(path=1.0), ports=ports), receiver()).cause == "link"

    def test_links_that_the_pacer_keeps_full_with_few_frames_in_flight_are_links(self) -> None:
        ports = (port("p0", 0.28, 0.99 * GIGABIT, GIGABIT), port("p1", 0.16, 0.98 * GIGABIT, GIGABIT))
        assert of(sender(waits(path=1.0), ports=ports), receiver()).cause == "link"

    def test_a_port_far_below_its_speed_is_named(self) -> None:
        ports = (port("p0", 1.0, GIGABIT, GIGABIT), port("p1", 1.0, 0.2 * GIGABIT, GIGABIT))
        found = of(sender(waits(path=1.0), ports=ports), receiver())
        assert found.cause == "port"
        assert "p1" in found.text

    @pytest.mark.parametrize("speed", [None, 10 * GIGABIT])
    def test_a_port_for_which_the_others_wait_is_named_with_or_without_a_speed(self, speed: float | None) -> None:
        ports = (port("p0", 0.1, GIGABIT, speed), port("p1", 1.0, GIGABIT, speed))
        found = of(sender(waits(path=1.0), ports=ports), receiver())
        assert found.cause == "port"
        assert "p1" in found.text

    @pytest.mark.parametrize("speed", [None, GIGABIT])
    def test_an_uneven_share_is_no_slow_port(self, speed: float | None) -> None:
        """As by weights: each sends at its link's speed, one for less time."""
        ports = (port("p0", 1.0, 0.9 * GIGABIT, speed), port("p1", 0.1, 0.09 * GIGABIT, speed))
        assert of(sender(waits(path=1.0), ports=ports), receiver()).cause == "unclear"


class TestBusyLoops:
    def test_a_busy_loop_is_not_named_while_the_other_end_is_unknown(self) -> None:
        assert of(sender(waits(path=1.0), busy=0.98), None).cause == "unclear"
        assert of(None, receiver(busy=0.98, waited=0.0)).cause == "unclear"

    @pytest.mark.parametrize(("rate", "speed", "cause"), [
        (0.95, GIGABIT, "link"),
        (0.95, None, "unclear"),
        (0.4, GIGABIT, "sender-cpu"),
    ])  # fmt: skip
    @pytest.mark.parametrize("other", [0.2, 0.7])
    def test_a_loop_that_a_full_link_paces_lacks_no_cpu(
        self, rate: float, speed: float | None, cause: str, other: float
    ) -> None:
        tx = sender(waits(path=1.0), ports=(port("p0", 1.0, rate * GIGABIT, speed),), busy=0.97)
        assert of(tx, receiver(busy=other)).cause == cause

    def test_two_loops_that_a_full_link_paces_hide_no_link(self) -> None:
        tx = sender(waits(path=1.0), ports=(port("p0", 1.0, 0.95 * GIGABIT, GIGABIT),), busy=0.97)
        assert of(tx, receiver(busy=0.97)).cause == "link"


class TestThreads:
    """Of the process's threads, 1 is the loop's worker, 2 waits in aiflow, and 3 is another."""

    @staticmethod
    def starved(number: int) -> Cpu:
        none = {each: Thread(0, 0) for each in (1, 2, 3)}
        ran = none | {number: Thread(int(3e9), int(6e9))}
        return cpu_shares(none, ran, SECONDS, 1, {2}, 0.0)

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_driver_without_a_cpu_is_named(self, number: int) -> None:
        tx = sender(waits(path=1.0), cpu=self.starved(number))
        assert of(tx, receiver()).cause == "sender-cpu"

    def test_other_threads_without_a_cpu_are_not(self) -> None:
        shares = self.starved(3)
        assert shares.user_starved == pytest.approx(0.6)
        assert shares.starved == 0
        tx = sender(waits(path=1.0), cpu=shares)
        assert of(tx, receiver()).cause != "sender-cpu"
        assert measures(tx, receiver(), 0).sender_starved == 0


class TestSeveralReceivers:
    def flows(self, tx: End, **receivers: End) -> dict[str, str]:
        joined = dict(enumerate("ab"))
        found = _flows([("s", joined, tx)], {name: [one] for name, one in receivers.items()})
        return {flow.receiver: flow.verdict.cause for flow in found}

    def test_each_flow_has_the_waits_of_its_own_receiver(self) -> None:
        tx = sender(waits(path=1.0), waits(memory=0.95))
        slow = receiver(waited=0.0, reader_behind_seconds=0.95)
        assert self.flows(tx, a=receiver(), b=slow) == {"a": "link", "b": "reader"}

    def test_the_program_is_not_slow_for_one_while_another_is_full(self) -> None:
        tx = sender(waits(path=1.0), waits())
        assert self.flows(tx, a=receiver(), b=receiver()) == {"a": "link", "b": "unclear"}

    def test_slices_to_one_then_to_the_other_add_up(self) -> None:
        tx = sender(waits(path=0.45), waits(path=0.45))
        assert set(self.flows(tx, a=receiver(), b=receiver()).values()) == {"unclear"}

    def test_a_program_that_offers_little_to_both_is_named(self) -> None:
        tx = sender(waits(path=0.1), waits(path=0.1))
        assert set(self.flows(tx, a=receiver(), b=receiver()).values()) == {"application"}

    @pytest.mark.parametrize("held", [
        {"waited": 0.0, "reader_behind_seconds": 1.0},
        {"waited": 0.5, "arrival_seconds": {"idle": 0.0, "arriving": 0.5, "memory": 0.5}},
    ])  # fmt: skip
    def test_a_receiver_that_another_sender_fills_bounds_no_program_that_offers_little(
        self, held: dict[str, Any]
    ) -> None:
        assert of(sender(waits(path=0.1)), receiver(**held)).cause == "application"

    def test_a_receiver_that_came_meanwhile(self) -> None:
        tx = sender(waits(path=1.0), waits(path=1.0))
        tx.before["peers"].pop()
        assert self.flows(tx, a=receiver(), b=receiver()) == {"a": "link", "b": "link"}
