"""Parsing of keywords: every value that a user passes to `Sender` or `Receiver` is checked here.

Every parser raises `ConfigError` for a value that cannot be used. The tables of known values are here too, so that
this module imports nothing but `errors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiflow.errors import ConfigError

__all__ = [
    "FAULTS", "FLOW_CONTROLS", "IDLE", "INTERVAL_S", "MAX_PORTS", "PARTITIONS", "PLACEMENTS", "POLICIES", "SCHEMES",
    "SCORE_WEIGHTS", "Endpoint", "check_scheduling", "parse_choice", "parse_endpoint", "parse_endpoints", "parse_idle",
    "parse_link_speeds", "parse_listen", "parse_max_cores", "parse_memory", "parse_names", "parse_partition",
    "parse_rate", "parse_seconds", "parse_size", "parse_switch_limits", "parse_switches", "parse_timeout",
]  # fmt: skip

MAX_PORTS = 32
"""Most ports in one process (DPDK's RTE_MAX_ETHPORTS as Debian builds it)."""

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
"""Endpoint schemes, each with its form and its use."""

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
_RATE = re.compile(r"\s*([0-9.]+)\s*([kmg]?)(bit|bit/s|bitps|bps)?\s*")
_RATE_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}

# ---- known values ----

POLICIES = {
    "pull": "a port takes the next chunk when its window has room",
    "score": "shares by the paper's score of each port, times its speed",
    "round_robin": "equal shares",
    "weighted": "shares by the ports' speeds",
    "least_queue": "a chunk goes to the port with the fewest frames in flight",
}
"""Policies of port choice (docs/design.md: Port choice)."""

PLACEMENTS = ("chunks", "elements")
"""Units that a policy assigns to ports: single chunks, so that an element may use all ports, or whole elements."""

SCORE_WEIGHTS = (0.57, 0.31, 0.12)
"""The paper's tuned weights of bandwidth use, ring fill and loss."""

FLOW_CONTROLS = {
    "credit": "the receiver grants memory for whole slices, and each path a window that its links can take; "
    "a port whose link_speed was given gets no more than that",
    "reverse": "the receiver's measured loss widens the gap between frames (the paper's)",
    "static": "a fixed gap between frames",
    "token_bucket": "a rate, and a bucket of what may go at once",
    "none": "as fast as the driver takes it",
}
"""Flow controls (docs/design.md: Flow control)."""

PARTITIONS = ("balanced", "by_stream")
"""Named ways to spread a slice over several receivers."""

IDLE = {
    "backoff": "spin for 20 µs, yield for 80, then sleep with growing intervals",
    "spin": "poll without a pause while a call waits: the least latency, for a whole core",
}
"""Idle strategies of a thread that waits in `send`, `recv` or a Ticket's ``result`` and polls the ports meanwhile."""

INTERVAL_S = 0.1
"""Seconds between two samples of the monitor, by default."""

MEMORY_MOST = 1 << 46
"""Upper bound of a Receiver's ``memory``, in bytes: a fraction of the address space."""

FAULTS = {
    "ways": "'out' (frames that we send; the default), 'in' (frames that arrive here), or both: ('out', 'in')",
    "ports": "indices of the ports with faults, in the order in which they were opened; default: all",
    "kinds": "names of the frames with faults: DATA, PACKED, MANIFEST, GRANT, FEEDBACK, HELLO, PROBE, BYE, VOID, "
    "CLOSE, PLACED, PLACED_PACK",
    "seed": "of the random numbers; the same seed makes the same faults in the same frames",
    "drop": "probability that a frame is lost",
    "burst": "probability that losses begin with it; burst_frames: how many in a row on average (default 10)",
    "drop_first": "this number of frames is lost at first",
    "drop_for": "seconds, from the first frame on, in which all are lost",
    "down_after": "seconds from the first frame until drop_for begins",
    "down_every": "seconds after which drop_for begins again",
    "corrupt": "probability that one bit of it is flipped",
    "truncate": "probability that it is cut short",
    "repeat": "probability that it is duplicated: it passes `copies` times (default 2)",
    "copies": "copies per duplicated frame; given without `repeat`, every frame is duplicated",
    "reorder": "probability that it is held back for up to `reorder_for` seconds (default 0.001) while others pass",
    "delay": "seconds by which every frame is late",
    "stall": "probability that all frames wait from here on, for `stall_for` seconds (default 0.01)",
}
"""Keys of ``faults=`` of `Sender` and `Receiver`: a dict, or a list of them. Each direction of a port follows the first
dict that names it."""


# ---- numbers and choices ----


def parse_choice(value: Any, what: str, known: Collection[str], otherwise: str = "") -> Any:
    """Return `value` if it is one of `known`; `otherwise` ends the error's hint."""
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{what}={value!r} is unknown: use {' or '.join(map(repr, known))}{otherwise}")
    return value


def parse_idle(idle: str) -> bool:
    """Return whether ``idle=`` asks to spin."""
    return bool(parse_choice(idle, "idle", IDLE) == "spin")


def parse_max_cores(max_cores: float | None) -> float | None:
    """Check ``max_cores=``: None, or a number of cores, at least 0.001."""
    if max_cores is None:
        return None
    if isinstance(max_cores, bool) or not isinstance(max_cores, (int, float)) or not 0.001 <= max_cores < 1e6:
        raise ConfigError(f"max_cores={max_cores!r}: give cores from 0.001 on, such as 0.5, or None for no limit")
    return float(max_cores)


def parse_listen(value: int | str, what: str = "metrics_port=") -> tuple[str, int]:
    """Check an address to listen at: ``9100``, or ``"ADDRESS:PORT"``. Without an address, only this host can connect.

    `what` names the option in the error.
    """
    address, _, number = str(value).rpartition(":")
    if isinstance(value, bool) or not number.isascii() or not number.isdecimal() or not 0 <= int(number) < 65536:
        raise ConfigError(f"{what}{value!r}: give a port such as 9100, or 'ADDRESS:PORT'")
    return address.strip("[]") or "127.0.0.1", int(number)


def parse_seconds(value: Any, what: str) -> float:
    """Check a number of seconds above 0; `what` names the keyword in the error."""
    try:
        seconds = -1.0 if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{what}={value!r}: give a number of seconds, more than 0 and less than 1000000")
    return seconds


def parse_timeout(timeout: Any) -> float | None:
    """Check ``timeout=``: None and infinity wait without end, 0 only looks, else a number of seconds."""
    if timeout is None:
        return None
    if type(timeout) in (int, float) and 0 < timeout < 1e6:  # as nearly always
        return float(timeout)
    if isinstance(timeout, float) and timeout == math.inf:
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
        If it is not a size.
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


def parse_memory(memory: int | str) -> int:
    """Bytes of a Receiver's ``memory=``.

    Raises
    ------
    ConfigError
        For anything but a size, or one above 64 TiB.
    """
    nbytes = parse_size(memory)
    if nbytes > MEMORY_MOST:
        raise ConfigError(f"memory={memory!r} is more than any machine has: give less than 64 TiB")
    return nbytes


def parse_rate(rate: str | float, what: str = "link_speed", *, default_unit: str = "") -> float:
    """Bit/s meant by ``"100mbit"``, ``"1gbit"``, ``"2.5 Gbit/s"`` or a number.

    Parameters
    ----------
    rate : str or number
        A number is in bit/s.
    what : str
        The keyword, for the error.
    default_unit : {"", "k", "m", "g"}
        Unit of a str that is a bare number: bit/s, kbit/s, Mbit/s or Gbit/s.

    Returns
    -------
    float
        Bit/s.
    """
    bps = 0.0
    if isinstance(rate, str):
        match = _RATE.fullmatch(rate.lower())
        try:
            bps = float(match[1]) * _RATE_UNITS[match[2] or ("" if match[3] else default_unit)] if match else 0.0
        except ValueError:
            bps = 0.0
    elif isinstance(rate, int | float) and not isinstance(rate, bool):
        bps = float(rate)
    if not 0 < bps < 1e15:
        bare = {"": "bit/s", "k": "kbit/s", "m": "Mbit/s", "g": "Gbit/s"}[default_unit]
        raise ConfigError(f"{what}={rate!r} is no rate: give a number of {bare}, or '100mbit', '1gbit'")
    return bps


# ---- names and groups of values ----


def parse_names(to: Any, most: int) -> list[str]:
    """Names of the receivers in ``to=``, at most `most`; [] for the only one that answers."""
    if to is None:
        return []
    names = [to] if isinstance(to, str) else list(to) if isinstance(to, Iterable) else [to]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"to={to!r}: give a receiver's name, or several")
    if len(set(names)) < len(names):
        raise ConfigError(f"to={to!r}: name each receiver once")
    if len(names) > most:
        raise ConfigError(f"to= names {len(names)} receivers: {most} is the most, open a second Sender")
    return names


def parse_partition(partition: Any) -> str | Callable[..., Any]:
    """Check ``partition=``: one of `PARTITIONS`, or a callable."""
    if callable(partition):
        return partition  # type: ignore[no-any-return]
    if partition not in PARTITIONS:
        known = ", ".join(map(repr, PARTITIONS))
        raise ConfigError(f"partition={partition!r} is unknown: use {known} or a callable")
    return str(partition)


def check_scheduling(policy: Any, place: Any = "chunks", weights: Any = SCORE_WEIGHTS) -> None:
    """Check the fields of `aiflow.Scheduling` that need no other."""
    if not isinstance(policy, str) or policy not in POLICIES:
        raise ConfigError(f"policy={policy!r} is unknown: use one of {', '.join(map(repr, POLICIES))}")
    parse_choice(place, "place", PLACEMENTS)
    try:
        sound = len(weights) == 3 and min(weights) >= 0 and math.isclose(sum(weights), 1.0, abs_tol=1e-6)
    except TypeError:
        sound = False
    if not sound:
        raise ConfigError(f"score_weights={weights!r}: give three numbers, none negative, that add up to 1")


def parse_switches(switches: Sequence[str] | str | None, nb_ports: int) -> Sequence[str] | str | None:
    """Check ``switches=``: a name for each of `nb_ports` ports, "probe", or None."""
    if switches is None or switches == "probe":
        return switches
    if isinstance(switches, str) or len(switches) != nb_ports:
        raise ConfigError(f"switches={switches!r}: give the name of each port's switch, {nb_ports} in all, or 'probe'")
    return switches


def parse_switch_limits(limits: Mapping[str, str | float] | None) -> dict[str, float]:
    """Bit/s of each switch in ``switch_limits=``."""
    return {name: parse_rate(rate, "switch_limits") for name, rate in (limits or {}).items()}


def parse_link_speeds(
    speeds: str | float | Sequence[str | float] | None, nb_ports: int
) -> tuple[float | None, list[float]]:
    """Bit/s in ``link_speed=``: the rate of all ports (or None), and the rate of each (or []).

    Raises
    ------
    ConfigError
        For what is no rate, or a sequence of another length than `nb_ports`.
    """
    if speeds is None:
        return None, []
    if isinstance(speeds, str | int | float):
        return parse_rate(speeds), []
    each = [parse_rate(rate) for rate in speeds]
    if len(each) != nb_ports:
        raise ConfigError(f"link_speed= has {len(each)} rates for {nb_ports} ports: one, or one for each")
    return None, each


# ---- endpoints ----


@dataclass(frozen=True)
class Endpoint:
    """Where ports are: one entry of ``ports=``.

    Attributes
    ----------
    scheme : str
        One of `SCHEMES`.
    target : str
        The text after the colon: a name, an interface, a PCI address, devargs.
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

    @property
    def port_names(self) -> list[str]:
        """Names of its ports."""
        if self.scheme in _WITH_COUNT:
            return [f"{self.scheme}:{self.target}#{number}" for number in range(self.nb_ports)]
        return [self.text]


def parse_endpoint(text: str) -> Endpoint:
    """Parse one endpoint, such as ``"local:demo*4"`` or ``"af_packet:eth1"``.

    Raises
    ------
    ConfigError
        If its form is unknown.
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
        If an endpoint is malformed or given twice, if there is none, or for more than `MAX_PORTS` ports in all.
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
