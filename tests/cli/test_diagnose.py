"""``aiflow diagnose`` names what bounds a run. Each run makes one thing the bottleneck, in other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bottlenecks import MB, End, Scene, running

from aiflow._observe import diagnosis

SECONDS = 3


def diagnosed(aiflow: Any, scene: Scene) -> dict[str, Any]:
    """The verdict on the flow of a run."""
    with running(scene):
        for _ in range(3):  # on a loaded machine it may say "unclear", and never a wrong name
            (flow,) = aiflow("diagnose", "--json", "--seconds", SECONDS).ends(0)["flows"]
            print(flow["cause"], flow["numbers"], flow["strengths"])
            if flow["cause"] != "unclear":
                break
    assert (flow["sender"], flow["receiver"]) == ("one", "other")
    found: dict[str, Any] = flow
    return found


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.usefixtures("own_runtime_directory")
class TestVerdicts:
    """The eight kinds; tests/soak/test_verdicts.py has five set-ups of each."""

    @pytest.mark.parametrize(
        "scene",
        [
            Scene("link", link="100mbit", nbytes=2 * MB),
            Scene("sender-cpu", sender=End(cpu=0.15)),
            Scene("receiver-cpu", receiver=End(cpu=0.15)),
            Scene("reader", receiver=End(pause=0.02)),
            Scene("memory", receiver=End(options={"memory": "12MiB"}), hold=0.1),
            Scene("disk", receiver=End(disk_bps=4 * MB, options={"memory": "16MiB"}), nbytes=2 * MB),
        ],
        ids=lambda scene: scene.cause,
    )
    def test_the_bottleneck_is_named(self, aiflow: Any, scene: Scene) -> None:
        assert diagnosed(aiflow, scene)["cause"] == scene.cause

    def test_one_slow_port_is_named(self, aiflow: Any) -> None:
        flow = diagnosed(aiflow, Scene("port", link="100mbit", slow={1: "20mbit"}, nbytes=2 * MB))
        assert flow["cause"] == "port"
        assert "af_packet:s1" in flow["numbers"]

    @pytest.mark.parametrize("pause", [0.02, 0.1])
    def test_an_application_that_offers_little(self, aiflow: Any, pause: float) -> None:
        flow = diagnosed(aiflow, Scene("application", sender=End(pause=pause)))
        assert flow["cause"] == "application"
        assert flow["measures"]["offered"] < 0.3
        assert f"had a slice to send for {flow['measures']['offered']:.0%}" in flow["numbers"]


# ---- the rules ----

QUIET = diagnosis.Measures(
    offered=1.0,
    path=0.0,
    grant=0.0,
    confirmation=0.0,
    sender_busy=0.1,
    receiver_busy=0.1,
    sender_starved=0.0,
    receiver_starved=0.0,
    sender_delayed=0.0,
    receiver_delayed=0.0,
    reader_waits=1.0,
    memory_waits=0.0,
    behind=0.0,
    sender_disk=0.0,
    receiver_disk=0.0,
    busiest_port=0.9,
    other_ports=0.9,
    slowest_port=1.0,
    slow_port="",
    link_use=float("nan"),
    lost=0.0,
    goodput_bps=1e9,
    has_links=True,
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a link": ("link", {"path": 1.0}),
    "shared memory has no link": ("unclear", {"path": 1.0, "has_links": False}),
    "each slice waits for one port": ("port", {"path": 1.0, "other_ports": 0.3, "slowest_port": 0.3}),
    "a loop that is always busy": ("sender-cpu", {"path": 1.0, "sender_busy": 0.98, "has_links": False}),
    "both loops are busy": ("unclear", {"path": 1.0, "sender_busy": 0.98, "receiver_busy": 0.98}),
    "the sender has no CPU": ("sender-cpu", {"path": 1.0, "sender_starved": 0.6, "sender_delayed": 0.6}),
    "one end is starved, and the other waits for a CPU, too": (
        "unclear",
        {"path": 1.0, "sender_starved": 0.6, "sender_delayed": 0.6, "receiver_delayed": 0.5},
    ),
    "both have no CPU": ("unclear", {"path": 1.0, "sender_starved": 0.6, "receiver_starved": 0.6}),
    "links fill memory that the reader does not empty": ("reader", {"path": 1.0, "reader_waits": 0.0, "behind": 1.0}),
    "a reader that confirms late": ("reader", {"confirmation": 0.9, "reader_waits": 0.05}),
    "memory and reader alternate": ("memory", {"grant": 0.5, "memory_waits": 0.5, "reader_waits": 0.5, "path": 0.5}),
    "the reader works while memory is full": ("reader", {"grant": 0.9, "memory_waits": 0.9, "reader_waits": 0.1}),
    "half and half": ("unclear", {"offered": 0.5, "path": 0.5}),
    "nothing is sent": ("idle", {"offered": 0.0, "goodput_bps": 0.0}),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", CASES)
def test_rules_name_a_cause_only_when_it_stands_out(name: str) -> None:
    cause, measures = CASES[name]
    found = diagnosis.verdict(QUIET._replace(**measures))
    assert found.cause == cause, found.strengths
    assert found.text
    assert found.advice


@pytest.mark.unit
@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_with_one_end_alone_nothing_is_made_up(end: str) -> None:
    """What only the other end knows is NaN: no rule may take that for a number."""
    sender_only = {"offered", "path", "grant", "confirmation", "busiest_port", "other_ports", "slowest_port"}
    busy = {"path": 1.0, "sender_busy": 0.98, "receiver_busy": 0.98}
    receiver_only = {"reader_waits", "memory_waits", "behind"}
    hidden = sender_only if end == "receiver" else receiver_only
    other = "sender" if end == "receiver" else "receiver"
    hidden |= {f"{other}_busy", f"{other}_starved", f"{other}_delayed", f"{other}_disk"}
    found = diagnosis.verdict(QUIET._replace(**busy | dict.fromkeys(hidden, float("nan"))))
    assert found.cause == "unclear"
    assert "nan" not in found.text
    assert all(strength == strength for strength in found.strengths.values())


@pytest.mark.unit
def test_every_cause_has_a_rule_words_and_advice() -> None:
    assert set(diagnosis.RULES) == set(diagnosis.CAUSES)
    check: Callable[[str], bool] = diagnosis.WORDS.__contains__
    assert all(check(name) for rule in diagnosis.RULES.values() for name in rule.shows)


@pytest.mark.usefixtures("own_runtime_directory")
def test_nothing_to_diagnose_is_said(aiflow: Any) -> None:
    _, stderr = aiflow("diagnose", "--seconds", 0.5).text(1)
    assert "no Sender or Receiver of this user is open" in stderr
