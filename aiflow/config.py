"""What the user typed, checked: sizes, endpoints, and faults made on purpose."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiflow.errors import ConfigError

__all__ = [
    "FAULTS", "IDLE", "MAX_PORTS", "SCHEMES", "Endpoint", "parse_endpoint", "parse_endpoints", "parse_faults",
    "parse_idle", "parse_max_cores", "parse_seconds", "parse_size", "parse_timeout",
]  # fmt: skip

MAX_PORTS = 32
"""Ports of one process at most (DPDK's RTE_MAX_ETHPORTS as Debian builds it)."""

SCHEMES = {
    "local": "local:NAME[*N]          processes of one host, no root, no hugepages",
    "memif": "memif:NAME[*N]          the same, over shared-memory ports (memif)",
    "vhost": "vhost:NAME[*N]          the same, over vhost-user and virtio-user ports",
    "ring": "ring:NAME[*N]           two ends in one process",
    "af_packet": "af_packet:IFNAME        a kernel network interface (CAP_NET_RAW)",
    "af_xdp": "af_xdp:IFNAME           a kernel network interface through XDP (root)",
    "pci": "pci:DOMAIN:BUS:DEV.FUNC a network card bound to vfio-pci or uio",
    "vdev": "vdev:DPDK-DEVARGS       any other virtual device of DPDK",
}
"""Endpoint schemes, each with its form and what it is for."""

_WITH_COUNT = frozenset({"local", "memif", "vhost", "ring"})
_NAME = re.compile(r"[A-Za-z0-9._-]{1,48}")
_IFNAME = re.compile(r"[^\s/:,=*\x00-\x1f]{1,15}")
_DBDF = re.compile(r"(?:([0-9A-Fa-f]{1,8}):)?([0-9A-Fa-f]{1,2}):([0-9A-Fa-f]{1,2})\.([0-7])")
_VDEV = re.compile(r"[a-z][a-z0-9_]*[A-Za-z0-9_-]*(?:,.*)?")
_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


IDLE = {
    "backoff": "spin for 20 µs, yield for 80, then sleep, longer and longer",
    "spin": "poll without a pause for as long as a call waits: the least latency, for a core's whole time",
}
"""What a thread does that waits in `send`, `recv` or a Ticket's ``result``, and polls the ports meanwhile."""


def parse_idle(idle: str) -> bool:
    """Whether ``idle=`` asks to spin; ConfigError for what it does not know."""
    if not isinstance(idle, str) or idle not in IDLE:
        raise ConfigError(f"idle={idle!r} is unknown: use {' or '.join(map(repr, IDLE))}")
    return idle == "spin"


def parse_max_cores(max_cores: float | None) -> float | None:
    """``max_cores=``, checked: None, or a number of at least 0.001.

    Raises
    ------
    ConfigError
    """
    if max_cores is None:
        return None
    if isinstance(max_cores, bool) or not isinstance(max_cores, (int, float)) or not 0.001 <= max_cores < 1e6:
        raise ConfigError(f"max_cores={max_cores!r}: give cores from 0.001 on, such as 0.5, or None for no limit")
    return float(max_cores)


def parse_seconds(value: Any, what: str) -> float:
    """Seconds, more than 0; ConfigError for anything else, under the name `what`."""
    try:
        seconds = -1.0 if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{what}={value!r}: give a number of seconds, more than 0 and less than 1000000")
    return seconds


def parse_timeout(timeout: Any) -> float | None:
    """The most seconds to wait: None and infinity for no end, 0 to only look; ConfigError for what is none.

    Raises
    ------
    ConfigError
    """
    if timeout is None or (isinstance(timeout, float) and timeout == math.inf):
        return None
    if isinstance(timeout, (int, float)) and timeout == 0:
        return 0.0
    return parse_seconds(timeout, "timeout")


def parse_size(size: int | str) -> int:
    """Bytes meant by ``"1GiB"``, ``"64 MB"``, ``"4096"`` or an int.

    Parameters
    ----------
    size : int or str
        A number of bytes, or a number and one of B, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024).

    Returns
    -------
    int
        Bytes, positive.

    Raises
    ------
    ConfigError
        If it is no such size.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise ConfigError(f"a size is an int or a str such as '1GiB', not {type(size).__name__}")
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].upper()) if match else None
        if match is None or unit is None:
            raise ConfigError(f"size {size!r} is not understood: write a number and B, KB, MB, GB, KiB, MiB or GiB")
        size = int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)
    if size <= 0:
        raise ConfigError(f"a size must be positive, not {size}")
    return size


@dataclass(frozen=True)
class Endpoint:
    """Where ports are: one entry of ``ports=``.

    Attributes
    ----------
    scheme : str
        One of `SCHEMES`.
    target : str
        What follows the colon: a name, an interface, a PCI address, devargs.
    nb_ports : int
        Ports asked for there.
    text : str
        The endpoint as typed.
    """

    scheme: str
    target: str
    nb_ports: int
    text: str

    def __str__(self) -> str:
        return self.text


def parse_endpoint(text: str) -> Endpoint:
    """Parse one endpoint, such as ``"local:demo*4"`` or ``"af_packet:eth1"``.

    Raises
    ------
    ConfigError
        If it is not of a known form.
    """
    if not isinstance(text, str):
        raise ConfigError(f"an endpoint is a str such as 'local:demo', not {type(text).__name__}")
    scheme, colon, target = text.strip().partition(":")
    if scheme not in SCHEMES or not colon:
        forms = "\n  ".join(SCHEMES.values())
        raise ConfigError(f"endpoint {text!r} is not of a known form; use one of\n  {forms}")
    nb_ports = 1
    if scheme in _WITH_COUNT:
        target, star, count = target.partition("*")
        if star:
            if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_PORTS):
                raise ConfigError(f"endpoint {text!r}: the number of ports after * must be 1 to {MAX_PORTS}")
            nb_ports = int(count)
        if not _NAME.fullmatch(target):
            raise ConfigError(f"endpoint {text!r}: a name has 1 to 48 letters, digits, dots, underscores and dashes")
    elif scheme == "pci":
        match = _DBDF.fullmatch(target)
        if match is None:
            raise ConfigError(f"endpoint {text!r}: a PCI address looks like 0000:3b:00.0; lspci -D lists them")
        domain, bus, dev, function = match.groups()
        target = f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(dev, 16):02x}.{function}"
    elif scheme == "vdev":
        if not _VDEV.fullmatch(target):
            raise ConfigError(f"endpoint {text!r}: write a DPDK driver and its arguments, as in vdev:net_tap0,iface=t0")
    elif not _IFNAME.fullmatch(target):
        raise ConfigError(
            f"endpoint {text!r}: {target!r} cannot be a network interface; `ip link` lists them"
            + (". One port an interface: list each of them" if "*" in target else "")
        )
    return Endpoint(scheme, target, nb_ports, text.strip())


def parse_endpoints(ports: str | Iterable[str]) -> tuple[Endpoint, ...]:
    """Parse the ``ports=`` of a Sender or Receiver: one endpoint, or several.

    Raises
    ------
    ConfigError
        If one is malformed, one is given twice, there is none, or they ask for more than `MAX_PORTS` ports.
    """
    if isinstance(ports, str):
        ports = [ports]
    try:
        endpoints = tuple(parse_endpoint(text) for text in ports)
    except TypeError:
        raise ConfigError(f"ports is an endpoint or a list of endpoints, not {type(ports).__name__}") from None
    if not endpoints:
        raise ConfigError("no endpoint given; ports='local:demo' is a start")
    seen = set()
    for endpoint in endpoints:
        if (endpoint.scheme, endpoint.target) in seen:
            hint = f"; for two ports there: {endpoint.scheme}:{endpoint.target}*2"
            raise ConfigError(f"endpoint {endpoint.text!r} is given twice{hint * (endpoint.scheme in _WITH_COUNT)}")
        seen.add((endpoint.scheme, endpoint.target))
    asked = sum(endpoint.nb_ports for endpoint in endpoints)
    if asked > MAX_PORTS:
        raise ConfigError(f"{asked} ports asked for, and a process can have {MAX_PORTS}: ask for fewer")
    return endpoints


FAULTS = {
    "ways": "'out' (frames that we send; the default), 'in' (frames that arrive here), or both: ('out', 'in')",
    "ports": "indices of the ports that suffer, in the order in which they were opened; default: all",
    "kinds": "names of the frames that suffer: DATA, PACKED, MANIFEST, GRANT, FEEDBACK, HELLO, PROBE, BYE, VOID, CLOSE",
    "seed": "of the random numbers; the same seed makes the same faults of the same frames",
    "drop": "probability that a frame is lost",
    "burst": "probability that losses begin with it; burst_frames: how many in a row on average (default 10)",
    "drop_first": "the first so many are lost",
    "drop_for": "all are lost for so many seconds, from the first frame on",
    "down_after": "drop_for begins so many seconds after the first frame",
    "down_every": "and comes again with this period, in seconds",
    "corrupt": "probability that one bit of it is flipped",
    "truncate": "probability that it is cut short",
    "repeat": "probability that it passes `copies` times (default 2)",
    "copies": "how often a repeated frame passes; alone: every frame does",
    "reorder": "probability that it is held back for up to `reorder_for` seconds (default 0.001) while others pass",
    "delay": "seconds by which every frame is late",
    "stall": "probability that nothing passes from here on for `stall_for` seconds (default 0.01), and then everything",
}
"""Keys of ``faults=`` of `Sender` and `Receiver`: a dict, or a list of them, of which each direction of a port follows
the first that names it."""

_KINDS = ("DATA", "PACKED", "MANIFEST", "GRANT", "FEEDBACK", "HELLO", "PROBE", "BYE", "VOID", "CLOSE")
_WAYS = {"out": 0, "in": 1}


def _number(faults: dict[str, Any], key: str, default: float = 0.0, most: float = float("inf")) -> float:
    value = faults.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ConfigError(f"faults: {key}={value!r}; {FAULTS.get(key, key)} (a number from 0 to {most:g})")
    return float(value)


def _parse_rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    faults = dict(rule)
    kinds = set(faults.pop("kinds", _KINDS))
    unknown = kinds - set(_KINDS)
    if unknown:
        raise ConfigError(f"unknown kinds of frames: {', '.join(map(str, unknown))}; there are {', '.join(_KINDS)}")
    ways = faults.pop("ways", "out")
    ways = (ways,) if isinstance(ways, str) else tuple(ways)
    if not ways or set(ways) - set(_WAYS):
        raise ConfigError(f"faults: ways={ways!r}; {FAULTS['ways']}")
    ports = faults.pop("ports", None)

    def ppm(key: str, default: float = 0.0) -> int:
        return round(_number(faults, key, default, 1) * 1e6)

    def ns(key: str, default: float = 0.0) -> int:
        return round(_number(faults, key, default, 1e6) * 1e9)

    repeats = 1.0 if "copies" in faults else 0.0
    fields = {
        "kinds": sum(1 << (1 + _KINDS.index(kind)) for kind in kinds),
        "drop_ppm": ppm("drop"),
        "burst_ppm": ppm("burst"), "burst_frames": int(_number(faults, "burst_frames", 10, 1e6)),
        "repeat_ppm": ppm("repeat", repeats), "copies": int(_number(faults, "copies", 2, 100)),
        "reorder_ppm": ppm("reorder"), "reorder_ns": ns("reorder_for", 0.001),
        "corrupt_ppm": ppm("corrupt"), "truncate_ppm": ppm("truncate"),
        "stall_ppm": ppm("stall"), "stall_ns": ns("stall_for", 0.01), "delay_ns": ns("delay"),
        "drop_first": int(_number(faults, "drop_first", 0, 2**31)),
        "down_after_ns": ns("down_after"), "down_for_ns": ns("drop_for"), "down_every_ns": ns("down_every"),
    }  # fmt: skip
    parsed = {
        "ways": {_WAYS[way] for way in ways},
        "ports": None if ports is None else {int(port) for port in ports},
        "seed": int(_number(faults, "seed", 1, 2**63)),
        "rule": fields,
    }
    if faults:
        raise ConfigError(f"unknown faults: {', '.join(sorted(map(str, faults)))}; there are {', '.join(FAULTS)}")
    return parsed


def parse_faults(faults: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Rules of the fault shim (include/aiflow/rt/fault_line.h) out of ``faults=``: see `FAULTS`.

    Raises
    ------
    ConfigError
        For a key that is none, or a value out of its range.
    """
    if not faults:
        return []
    return [_parse_rule(rule) for rule in ([faults] if isinstance(faults, Mapping) else faults)]
