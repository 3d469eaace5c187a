"""The layout of the emulated cluster, and how elements are dealt out: plain data, nothing is made."""

from __future__ import annotations

import json

import pytest

from aiflow.errors import ConfigError
from aiflow.lab.elements import balanced
from aiflow.lab.topology import MBIT, Layout, parse_rate


def test_rates_as_people_write_them() -> None:
    assert [parse_rate(text) for text in ("100mbit", "1gbit", "100", "2.5 Gbit/s")] == [10**8, 10**9, 10**8, 25 * 10**8]
    for nonsense in ("", "fast", "-1mbit", "1kbit", "90gbit"):
        with pytest.raises(ConfigError):
            parse_rate(nonsense)


def test_a_layout_survives_being_written_down() -> None:
    layout = Layout(rates_bps=(1 * MBIT, 2 * MBIT, 3 * MBIT, 4 * MBIT), trunk_bps=5 * MBIT, loss=0.25)
    assert Layout.from_dict(json.loads(json.dumps(layout.as_dict()))) == layout


@pytest.mark.parametrize("fields", [{"switches": 5}, {"rates_bps": (MBIT, MBIT)}, {"loss": 0.9}, {"senders": 0}])
def test_a_layout_that_cannot_be_is_refused(fields) -> None:
    with pytest.raises(ConfigError):
        Layout(**fields)


def test_every_port_has_an_address_of_its_own() -> None:
    ports = Layout(ports=16, senders=8, receivers=8).all_ports()
    assert len({port.mac for port in ports}) == len({port.address for port in ports}) == len(ports) == 256
    assert all(len(port.switch_interface) < 16 for port in ports)  # IFNAMSIZ


def test_elements_are_dealt_out_evenly() -> None:
    sizes = [220_000 + 977 * i % 90_000 for i in range(512)]
    parts = balanced(sizes, 2)
    assert sorted(parts[0] + parts[1]) == list(range(512))
    one, two = (sum(sizes[i] for i in part) for part in parts)
    assert abs(one - two) < 0.001 * one
