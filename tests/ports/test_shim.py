"""`faults=` at live ports: under every kind of fault, either way, every slice arrives as it was sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from faults import faults_of
from peer import name as new_name
from wait import PATIENCE_S, Deadline

import aiflow
from aiflow import _dp, _wire, config
from aiflow._faults import parse_faults
from aiflow.errors import ConfigError

RNG = np.random.default_rng(7)
IMAGES = [RNG.integers(0, 256, 30_000 + 1000 * k, dtype=np.uint8) for k in range(12)]
SMALL_FRAMES = 1514  # so that there are hundreds of them


def exchange(
    tx_faults: Any, rx_faults: Any, nb_ports: int = 2, slices: int = 4, until: str | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """Slices through the faults, compared byte by byte; the counts of the sender and of the receiver.

    At least `slices` slices, and more until both ends have counted `until`: the number of frames varies.
    """
    endpoint = f"local:{new_name()}*{nb_ports}"
    with (
        aiflow.Receiver(endpoint, faults=rx_faults) as rx,
        aiflow.Sender(endpoint, faults=tx_faults, frame_size=SMALL_FRAMES) as tx,
    ):
        passed, deadline = 0, Deadline()
        while True:
            tickets = [tx.send(IMAGES[k:], wait=False) for k in range(slices)]
            for k in range(slices):
                with rx.recv(timeout=PATIENCE_S) as time_slice:
                    passed += 1
                    assert time_slice.slice_id == passed
                    assert [e.tobytes() for e in time_slice] == [bytes(image) for image in IMAGES[k:]]
                tickets[k].result(PATIENCE_S)
            sent, received = faults_of(tx), faults_of(rx)
            if until is None or (sent[until] and received[until]) or deadline.passed:
                return sent, received


KINDS = {
    "drop": ({"drop": 0.02}, "dropped"),
    "burst": ({"burst": 0.005, "burst_frames": 8}, "burst"),
    "corrupt": ({"corrupt": 0.02}, "corrupted"),
    "truncate": ({"truncate": 0.02}, "truncated"),
    "repeat": ({"repeat": 0.1, "copies": 3}, "repeated"),
    "reorder": ({"reorder": 0.1, "reorder_for": 0.002}, "reordered"),
    "delay": ({"delay": 0.003}, "delayed"),
    "stall": ({"stall": 0.005, "stall_for": 0.02}, "stalls"),
    "down": ({"drop_for": 0.01, "down_every": 0.03}, "down"),
}


@pytest.mark.parametrize("way", ["out", "in"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_arrives_in_spite_of(kind: str, way: str) -> None:
    faults, counted = KINDS[kind]
    if way == "in":  # a sender hears reports only: one for dozens of frames
        faults = {
            key: 0.2 if value < 0.2 and key in KINDS and key != "delay" else value for key, value in faults.items()
        }
    theirs = {**faults, "ways": ("out", "in"), "seed": 6}
    sent, received = exchange({**faults, "ways": way, "seed": 5}, theirs, until=counted)
    assert sent[counted] > 0
    assert received[counted] > 0


def test_a_single_port_and_direction_suffers() -> None:
    faults = [{"ports": [1], "ways": "in", "drop": 1.0}, {"ports": [1], "delay": 0.001}]
    sent, received = exchange(faults, None, slices=2)
    assert sent["dropped"] > 0  # port 1 hears nothing,
    assert sent["delayed"] > 0  # and what it sends, if only HELLOs, is late
    assert set(received.values()) == {0}


def test_without_faults_there_is_no_shim() -> None:
    for counts in exchange(None, None, slices=1):
        assert set(counts.values()) == {0}


WRONG = [
    {"drop": 2}, {"drop": "much"}, {"kinds": ("DATA", "LETTER")}, {"ways": "sideways"}, {"ways": ()}, {"dropp": 0.1},
    {"copies": 1000},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_fault_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_faults(wrong)


def test_an_endpoint_may_have_as_many_ports_as_a_loop() -> None:
    assert config.MAX_PORTS == _dp.MAX_PORTS


def test_the_kinds_are_those_of_the_wire() -> None:
    assert all(kind in config.FAULTS["kinds"] for kind in _wire.KINDS)
    assert parse_faults({"drop": 0.1})[0]["rule"]["kinds"] == sum(1 << kind for kind in _wire.KINDS.values())
