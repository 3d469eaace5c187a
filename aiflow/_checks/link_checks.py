"""Links: carrier, speed, duplex and MTU of each interface that can be an endpoint."""

from __future__ import annotations

from collections.abc import Iterator

from aiflow._checks.finding import Finding, better, broken, ok
from aiflow._checks.host import CAP_NET_ADMIN, Host, started_with
from aiflow._ports.interface_use import Network, built_on

__all__ = ["links"]

_IFF_UP = 0x1
_LEAST_MTU = 498  # a frame of 512 bytes, the smallest frame_size=
_MTU, _JUMBO = 1500, 9000
_JUMBO_FROM_MBPS = 10_000  # below, frames of 1514 bytes fill a link without effort
_SLOW_MBPS = 1000


def links(host: Host) -> Iterator[Finding]:
    """Carrier, speed and MTU of each Ethernet interface of the kernel."""
    names = host.interfaces()
    if not names:
        yield ok("no Ethernet interface of the kernel")
    for name in names:
        yield from _link(host, name)
    mtus = {name: host.number(f"/sys/class/net/{name}/mtu") or 0 for name in names if _is_up(host, name)}
    if len(mtus) > 1 and len(set(mtus.values())) > 1:
        listed = ", ".join(f"{name} {mtu}" for name, mtu in mtus.items())
        text = f"MTUs differ ({listed}): ports that are used together all have frames of the smallest"
        # Without a command: the network of the smallest may carry no larger frames. An uplink may well differ.
        spare = {mtu for name, mtu in mtus.items() if not _leads_out(host, name)}
        yield better(text) if len(spare) > 1 else ok(text)


def _leads_out(host: Host, name: str) -> str:
    """Why a change of the interface may cut the host off; "" if it cannot."""
    try:
        network: Network = host.network()
    except OSError:
        return "; the routes of this host cannot be read, so no command is given"
    interfaces = {name, *built_on(name, host.path("/sys/class/net"))}
    numbers = {network.numbers.get(interface) for interface in interfaces}
    if any(route.interface in numbers and (route.is_default or " via " in route.text) for route in network.routes):
        return "; other networks are reached over it, and a change can cut this host off, so no command is given"
    return ""


def _is_up(host: Host, name: str) -> bool:
    return bool(int(host.read(f"/sys/class/net/{name}/flags") or "0", 16) & _IFF_UP)


def _link(host: Host, name: str) -> Iterator[Finding]:
    where = f"/sys/class/net/{name}"
    denied = ""
    if host.is_denied(CAP_NET_ADMIN):
        denied = started_with("--user 0 --cap-add NET_ADMIN", "runAsUser: 0 and this capability in its securityContext")
    kept = _leads_out(host, name) or denied
    if not _is_up(host, name):
        text = f"{name} is down: it carries nothing{denied}"
        yield better(text, "" if denied else f"ip link set dev {name} up", as_root=not denied)
        return
    if host.read(f"{where}/carrier") == "0":
        text = f"{name} is up, but has no carrier: look at the cable, and at the other side, which may be down"
        yield better(text, _ethtool_or_peer(host, name), as_root=True)
        return
    speed, mtu = host.number(f"{where}/speed") or -1, host.number(f"{where}/mtu") or 0
    fine = True
    if mtu < _LEAST_MTU:
        fine = False
        text = f"{name}: an MTU of {mtu} is too small for aiflow's frames"
        text += kept
        yield broken(text, "" if kept else f"ip link set dev {name} mtu {_MTU}", as_root=not kept)
    elif mtu < _MTU:
        fine = False
        text = f"{name}: the MTU is {mtu}, and small frames are more work a byte. Raise it if the network carries more"
        text += kept
        yield better(text, "" if kept else f"ip link set dev {name} mtu {_MTU}", as_root=not kept)
    elif mtu < _JUMBO and speed >= _JUMBO_FROM_MBPS and host.path(f"{where}/device").exists():
        fine = False
        text = f"{name}: {speed // 1000} Gbit/s with an MTU of {mtu}. If the switch carries jumbo frames, use them"
        text += kept
        yield better(text, "" if kept else f"ip link set dev {name} mtu {_JUMBO}", as_root=not kept)
    if host.read(f"{where}/duplex") == "half" and speed > 0:
        fine = False
        text = f"{name}: half duplex loses frames"
        text += kept
        yield better(text, "" if kept else f"ethtool -s {name} autoneg on", as_root=not kept)
    elif 0 < speed < _SLOW_MBPS:
        fine = False
        text = (
            f"{name}: the link runs at {speed} Mbit/s. A bad cable is a common cause; or the other side is fixed to it"
        )
        yield better(f"{text}{kept}", "" if kept else f"ethtool -s {name} autoneg on", as_root=not kept)
    if fine:
        rate = f"{speed} Mbit/s" if speed > 0 else "speed unknown"
        yield ok(f"{name}: carrier, {rate}, MTU {mtu}")


def _ethtool_or_peer(host: Host, name: str) -> str:
    """Of a pair of virtual interfaces the other end is known; of a card, its driver can tell more."""
    index, other = host.read(f"/sys/class/net/{name}/ifindex"), host.read(f"/sys/class/net/{name}/iflink")
    if index and other and index != other and not host.path(f"/sys/class/net/{name}/device").exists():
        for peer in host.path("/sys/class/net").glob("*"):
            if host.read(f"/sys/class/net/{peer.name}/ifindex") == other:
                return f"ip link set dev {peer.name} up"
    return f"ethtool {name}"
