"""``faults=`` of `Sender` and `Receiver` → rules of the fault shim (include/aiflow/rt/fault_line.h)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiflow._wire import KINDS
from aiflow.config import FAULTS
from aiflow.errors import ConfigError

__all__ = ["parse_faults"]

_WAYS = {"out": 0, "in": 1}


def parse_faults(faults: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Check ``faults=`` and turn it into rules of the fault shim.

    Parameters
    ----------
    faults : mapping, iterable of mappings, or None
        Keys and values as `aiflow.config.FAULTS` lists them.

    Returns
    -------
    list of dict
        For each rule: ``ways`` and ``ports`` (sets of int, or None for all ports), ``seed``, and ``rule``, the fields
        of ``struct af_fault_rule``: probabilities in parts per million, times in nanoseconds.

    Raises
    ------
    ConfigError
        For an unknown key, or a value out of its range.
    """
    if not faults:
        return []
    return [_parse_rule(rule) for rule in ([faults] if isinstance(faults, Mapping) else faults)]


def _parse_rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    left = dict(rule)
    ports = left.pop("ports", None)
    parsed = {
        "ways": _ways(left),
        "ports": None if ports is None else {int(port) for port in ports},
        "seed": int(_number(left, "seed", 1, 2**63)),
        "rule": {"kinds": _kinds(left), **_fields(left)},
    }
    if left:
        raise ConfigError(f"unknown faults: {', '.join(sorted(map(str, left)))}; there are {', '.join(FAULTS)}")
    return parsed


def _ways(left: dict[str, Any]) -> set[int]:
    ways = left.pop("ways", "out")
    ways = (ways,) if isinstance(ways, str) else tuple(ways)
    if not ways or set(ways) - set(_WAYS):
        raise ConfigError(f"faults: ways={ways!r}; {FAULTS['ways']}")
    return {_WAYS[way] for way in ways}


def _kinds(left: dict[str, Any]) -> int:
    """Bit k: the rule holds for frames of kind k."""
    kinds = set(left.pop("kinds", KINDS))
    unknown = kinds - set(KINDS)
    if unknown:
        raise ConfigError(f"unknown kinds of frames: {', '.join(map(str, unknown))}; there are {', '.join(KINDS)}")
    return sum(1 << KINDS[kind] for kind in kinds)


def _fields(left: dict[str, Any]) -> dict[str, int]:
    def ppm(key: str, default: float = 0.0) -> int:
        return round(_number(left, key, default, 1) * 1e6)

    def ns(key: str, default: float = 0.0) -> int:
        return round(_number(left, key, default, 1e6) * 1e9)

    repeats = 1.0 if "copies" in left else 0.0
    return {
        "drop_ppm": ppm("drop"),
        "burst_ppm": ppm("burst"), "burst_frames": int(_number(left, "burst_frames", 10, 1e6)),
        "repeat_ppm": ppm("repeat", repeats), "copies": int(_number(left, "copies", 2, 100)),
        "reorder_ppm": ppm("reorder"), "reorder_ns": ns("reorder_for", 0.001),
        "corrupt_ppm": ppm("corrupt"), "truncate_ppm": ppm("truncate"),
        "stall_ppm": ppm("stall"), "stall_ns": ns("stall_for", 0.01), "delay_ns": ns("delay"),
        "drop_first": int(_number(left, "drop_first", 0, 2**31)),
        "down_after_ns": ns("down_after"), "down_for_ns": ns("drop_for"), "down_every_ns": ns("down_every"),
    }  # fmt: skip


def _number(left: dict[str, Any], key: str, default: float = 0.0, most: float = float("inf")) -> float:
    value = left.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ConfigError(f"faults: {key}={value!r}; {FAULTS.get(key, key)} (a number from 0 to {most:g})")
    return float(value)
